//! Deltas between two versions of a set of images, made once.

use std::path::Path;

use anyhow::Result;

use crate::bootable::product::{lock, product};
use crate::image::Layout;
use crate::image::delta::{Copies, Delta, Differ};

/// What decides how a delta looks.
const WRITER: &str = concat!(
    include_str!("../image/delta.rs"),
    include_str!("../image/delta/blocks.rs"),
    include_str!("../image/delta/older.rs"),
    include_str!("../image/delta/operations.rs"),
);

/// The delta from the image `old` to the image `new` of the set `name`, which takes that from the older one, and
/// the layout that it is in; made below `images` if need be.
///
/// # Errors
/// When there are no such images, or the disk is full.
pub fn between(
    images: &Path,
    name: &str,
    layout: &Layout,
    [old, new]: [&str; 2],
    copies: Copies,
) -> Result<(Layout, Delta)> {
    let _lock = lock(images)?;
    let (old, new) = (layout.find(old)?, layout.find(new)?);
    let kind = match copies {
        Copies::Blocks => "delta",
        Copies::Files => "delta-of-whole-files",
        Copies::Nothing => "delta-of-nothing",
    };
    let out = images.join(format!("{name}-{kind}"));
    product(&out, &[&old.digest, &new.digest, WRITER], |out| {
        let differ = Differ::new(layout, &old, &new).copies(copies);
        differ.write(&Layout::create(out)?).map(drop)
    })?;
    let made = Layout::create(out)?;
    let delta = Delta::find(&made, &new)?;
    Ok((made, delta))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::image::{Image, Layer};

    #[test]
    fn a_delta_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path().join("set")).unwrap();
        let mut content = vec![0; 100_000];
        fastrand::Rng::with_seed(1).fill(&mut content);
        for tag in ["a", "b"] {
            content[50_000] ^= 1;
            let layer = Layer::new().file("usr/file", content.clone());
            let image = Image::new(tag).layer(layer);
            image.write_as(&layout, tag).unwrap();
        }
        let make_of = |versions, copies| {
            let made = between(dir.path(), "set", &layout, versions, copies);
            made.unwrap()
        };
        let make = |versions| make_of(versions, Copies::Blocks);
        let (made, delta) = make(["a", "b"]);
        assert!((10..2000).contains(&delta.size), "{delta:?}");
        let written = || fs::metadata(made.blob(&delta.manifest)).unwrap().modified();
        let first = written().unwrap();
        let (_, larger) = make_of(["a", "b"], Copies::Files);
        assert!(larger.size > 100_000, "{larger:?}");
        assert_eq!(make(["a", "b"]).1.list, delta.list);
        assert_eq!(written().unwrap(), first);
        assert_ne!(make(["b", "a"]).1.list, delta.list);
    }
}
