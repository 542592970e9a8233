//! The fewest bytes that fetch an image file by file: what its tables of contents say is new.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::image::Layout;

/// Where a layer's table of contents is: position, length and more.
const TABLE: &str = "io.github.containers.zstd-chunked.manifest-position";

/// Where the rest of its tar is, without the content of files.
const REST: &str = "io.github.containers.zstd-chunked.tarsplit-position";

#[derive(Deserialize)]
struct Contents {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    digest: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    end_offset: u64,
}

/// A layer with a table of contents.
struct Layer {
    digest: String,
    /// Bytes of the table itself, and of the rest of the tar.
    overhead: u64,
    contents: Contents,
}

/// What has to be fetched at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ideal {
    /// Bytes of new contents as they are compressed, once each.
    pub contents: u64,
    /// Bytes of the tables, and of the rest of the tar, of the layers that have changed.
    pub overhead: u64,
}

/// What has to be fetched of the image `next` where `first` is. `None` when a layer has no table.
///
/// # Errors
/// When the layout is incomplete, or a table cannot be understood.
pub fn between(layout: &Layout, first: &str, next: &str) -> Result<Option<Ideal>> {
    let (Some(first), Some(next)) = (layers(layout, first)?, layers(layout, next)?) else {
        return Ok(None);
    };
    let mut known: HashSet<&str> = HashSet::new();
    for entry in first.iter().flat_map(|layer| &layer.contents.entries) {
        known.insert(&entry.digest);
    }
    let mut ideal = Ideal::default();
    for layer in &next {
        if first.iter().any(|old| old.digest == layer.digest) {
            continue;
        }
        ideal.overhead += layer.overhead;
        for entry in &layer.contents.entries {
            if !entry.digest.is_empty() && known.insert(&entry.digest) {
                ideal.contents += entry.end_offset - entry.offset;
            }
        }
    }
    Ok(Some(ideal))
}

/// The layers above the base, which never has a table.
fn layers(layout: &Layout, tag: &str) -> Result<Option<Vec<Layer>>> {
    let manifest = layout.json(&layout.find(tag)?.digest)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    layers
        .iter()
        .skip(1)
        .map(|layer| read(layout, layer))
        .collect()
}

fn read(layout: &Layout, layer: &Value) -> Result<Option<Layer>> {
    let position = |name: &str| -> Option<(u64, u64)> {
        let mut numbers = layer["annotations"][name].as_str()?.split(':');
        let mut next = || numbers.next()?.parse().ok();
        Some((next()?, next()?))
    };
    let Some((offset, length)) = position(TABLE) else {
        return Ok(None);
    };
    let digest = layer["digest"]
        .as_str()
        .context("a layer without digest")?
        .to_owned();
    let mut table = vec![0; usize::try_from(length)?];
    File::open(layout.blob(&digest))?.read_exact_at(&mut table, offset)?;
    let contents = serde_json::from_slice(&zstd::decode_all(&table[..])?)?;
    let overhead = length + position(REST).map_or(0, |(_, length)| length);
    Ok(Some(Layer {
        digest,
        overhead,
        contents,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::chunked::Style;
    use crate::image::{Compression, Image, Layer};

    #[test]
    fn only_what_is_new_counts() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let noise = |seed| {
            let mut chance = fastrand::Rng::with_seed(seed);
            (0..100_000).map(|_| chance.u8(..)).collect::<Vec<u8>>()
        };
        let image = |tag: &str, second: u64| {
            let layer = Layer::new()
                .compressed(Compression::Chunked(Style::Modern))
                .file("usr/same", noise(1))
                .file("usr/again", noise(second))
                .file("usr/other", noise(second));
            let image = Image::new(tag).layer(Layer::new()).layer(layer);
            image.write_as(&layout, tag).unwrap();
        };
        image("a", 2);
        image("b", 3);
        let ideal = between(&layout, "a", "b").unwrap().unwrap();
        // One content, though two files have it.
        assert!((100_000..101_000).contains(&ideal.contents), "{ideal:?}");
        assert!((100..4000).contains(&ideal.overhead), "{ideal:?}");
        let nothing = Some(Ideal::default());
        assert_eq!(between(&layout, "a", "a").unwrap(), nothing);
        Image::new("c")
            .layer(Layer::new())
            .layer(Layer::new())
            .write_as(&layout, "c")
            .unwrap();
        assert_eq!(between(&layout, "a", "c").unwrap(), None);
    }
}
