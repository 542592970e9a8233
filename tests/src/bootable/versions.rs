//! The images: version 1, its updates, and those that must not be booted or cannot be.

use std::path::Path;

use anyhow::{Context, Result};

use super::layers;
use super::own::Own;
use super::product::product;
use super::tree::{build_script, run_over};
use super::{Suite, bound};
use crate::image::{Compression, Entry, Image, Kind, Layer, Layout, Written};

/// Each is made by the script of its name, on top of the one that is named second.
const DERIVED: [(&str, &str); 6] = [
    ("v2", "v1"),
    ("v3", "v2"),
    ("v4", "v3"),
    ("broken", "v2"),
    ("no-init", "v2"),
    ("no-kernel", "v2"),
];

/// Bytes of `big`'s one file: more than is free on the disk.
const BIG: u64 = 700 << 20;

/// Bytes that each of [`pulse`]'s images adds.
const PULSE: usize = 8 << 20;

/// Writes all images of a suite into the layout `out`; those of [`bound`] if there is a tree of
/// podman's packages.
///
/// # Errors
/// With the words of a script that fails.
pub(super) fn make(
    out: &Path,
    suite: Suite,
    tree: &Path,
    big: (&Path, &str),
    own: &Own,
    podman: Option<(&Path, &str)>,
) -> Result<String> {
    let scripts = DERIVED
        .iter()
        .map(|(tag, _)| build_script(tag))
        .collect::<Result<Vec<_>>>()?;
    let scripts_text = scripts.concat();
    let sources = concat!(
        include_str!("versions.rs"),
        include_str!("tree.rs"),
        include_str!("bound.rs")
    );
    let podman_key = podman.map_or("", |(_, key)| key);
    let inputs = [
        suite.name(),
        big.1,
        &own.key,
        &scripts_text,
        sources,
        podman_key,
    ];
    product(out, &inputs, |out| {
        let layout = Layout::create(big.0)?.copy_to(out)?;
        let below = layout.find(layers::TAG)?;
        for tag in layout.tags()? {
            layout.untag(&tag)?;
        }
        let image = |version: &str, below: &Written| Image::new(version).on(below);
        image("1", &below)
            .layer(own.layer.clone())
            .write_as(&layout, "v1")?;
        let scratch = tempfile::tempdir_in(out)?;
        let changes = |tag: &str| scratch.path().join(tag);
        for (((tag, below), script), month) in DERIVED.iter().zip(&scripts).zip(2..) {
            let lower = lower_trees(below)
                .into_iter()
                .map(changes)
                .collect::<Vec<_>>();
            let mut trees: Vec<&Path> = lower.iter().map(std::path::PathBuf::as_path).collect();
            trees.extend([own.path.as_path(), tree]);
            run_over(&trees, &changes(tag), script).with_context(|| format!("making {tag}"))?;
            let layer = Layer::new().add_changes(&changes(tag))?;
            let version = tag.trim_start_matches('v');
            image(version, &layout.find(below)?)
                .created(&format!("2025-{month:02}-01T00:00:00Z"))
                .layer(layer)
                .write_as(&layout, tag)?;
        }
        let second = layout.find("v2")?;
        image("2", &second)
            .architecture("arm64")
            .write_as(&layout, "arm64")?;
        if suite == Suite::Forky {
            image("big", &second)
                .layer(big_layer())
                .write_as(&layout, "big")?;
        }
        if let Some((podman, _)) = podman {
            bound::write(&layout, suite, podman, tree)?;
        }
        Ok(())
    })
}

/// The derived versions that `tag` is made of, topmost first.
fn lower_trees(mut tag: &'static str) -> Vec<&'static str> {
    let mut trees = Vec::new();
    while let Some((_, below)) = DERIVED.iter().find(|(name, _)| *name == tag) {
        trees.push(tag);
        tag = below;
    }
    trees
}

/// Zeros, because nothing looks at them: neither the registry nor ostree compresses.
fn big_layer() -> Layer {
    let zeros = Kind::FileFrom("/dev/zero".into(), BIG);
    let layer = Layer::new()
        .compressed(Compression::Plain)
        .dir("usr")
        .dir("usr/lib");
    let layer = layer
        .dir("usr/lib/lab")
        .file("usr/lib/lab/version", "big\n");
    layer.entry(Entry::new("usr/lib/lab/big", zeros, 0o644))
}

/// Writes the image `pulse-{n}` into a layout that has `v1`: version 1 with the version
/// `pulse {n}` and 8 MiB that no other has and that no compression makes smaller.
///
/// # Errors
/// When the layout has no `v1` or is not writable.
pub fn pulse(layout: &Layout, n: u32) -> Result<Written> {
    let version = format!("pulse {n}");
    let layer = Layer::new().compressed(Compression::Plain);
    let layer = layer.dir("usr").dir("usr/lib").dir("usr/lib/lab");
    let layer = layer
        .file("usr/lib/lab/version", format!("{version}\n"))
        .file("usr/lib/lab/pulse", noise(n, PULSE));
    let image = Image::new(&version).on(&layout.find("v1")?).layer(layer);
    image.write_as(layout, &format!("pulse-{n}"))
}

/// `size` bytes by splitmix64.
fn noise(seed: u32, size: usize) -> Vec<u8> {
    let mut state = u64::from(seed);
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_lies_on_all_it_was_derived_from() {
        assert_eq!(lower_trees("v4"), ["v4", "v3", "v2"]);
        assert_eq!(lower_trees("broken"), ["broken", "v2"]);
        assert!(lower_trees("v1").is_empty());
    }

    #[test]
    fn noise_differs_by_seed_and_does_not_compress() {
        let (one, two) = (noise(1, 1 << 16), noise(2, 1 << 16));
        assert_ne!(one[..8], two[..8]);
        assert_eq!(one, noise(1, 1 << 16));
        let small = zstd::encode_all(&one[..], 3).unwrap();
        assert!(small.len() > one.len() * 99 / 100, "{}", small.len());
    }
}
