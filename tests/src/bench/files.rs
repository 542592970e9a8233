//! Images that differ in the number of their files only, and updates that change the same in each.
//!
//! Invariant: what an update changes depends on its number alone, not on the image.

use std::path::Path;

use anyhow::Result;

use crate::bootable::product::{lock, product};
use crate::image::{Compression, Image, Layer, Layout, os_tree};
use crate::oracle::write_base;

/// Numbers of files.
pub const SIZES: [usize; 5] = [10_000, 20_000, 40_000, 80_000, 160_000];

/// Layers of files that never change.
const LAYERS: usize = 16;

/// Files in a directory.
const DIRECTORY: usize = 100;

/// Files that an update changes, and the bytes of each.
pub const CHANGE: (usize, usize) = (500, 32 << 10);

/// The layout of the image with `files` files as `v0`, and of its updates `v1` to `v{updates}`.
///
/// # Errors
/// When the disk is full, or with the oracle's words.
pub fn image_of(images: &Path, files: usize, updates: usize) -> Result<Layout> {
    let _lock = lock(images)?;
    let out = images.join(format!("files-{files}"));
    let inputs = [include_str!("files.rs"), &updates.to_string()];
    product(&out, &inputs, |out| write(out, files, updates))?;
    Layout::create(out)
}

fn write(out: &Path, files: usize, updates: usize) -> Result<()> {
    let layout = Layout::create(out)?;
    write_base(out, &layout, "base")?;
    let base = layout.find("base")?;
    let directory = layout.path.join("blobs/sha256");
    let mut image = Image::new("0").on(&base);
    for layer in [os_tree("0")]
        .into_iter()
        .chain((0..LAYERS).map(|layer| lasting(layer, files)))
    {
        let blob = layer.compressed(Compression::Zstd).write_blob(&directory)?;
        image = image.ready(layout.blob(&blob.digest), blob);
    }
    for update in 0..=updates {
        let created = format!("2025-01-{:02}T00:00:00Z", update + 1);
        let next = image.clone().created(&created).layer(changing(update));
        next.write_as(&layout, &format!("v{update}"))?;
    }
    Ok(())
}

/// One of the layers that stay.
fn lasting(number: usize, files: usize) -> Layer {
    let top = format!("usr/share/lasting-{number}");
    let mut layer = Layer::new().dir("usr").dir("usr/share").dir(&top);
    for file in (number..files.saturating_sub(CHANGE.0)).step_by(LAYERS) {
        let index = file / LAYERS;
        let directory = format!("{top}/{}", index / DIRECTORY);
        if index.is_multiple_of(DIRECTORY) {
            layer = layer.dir(&directory);
        }
        layer = layer.file(
            &format!("{directory}/{file}"),
            words(file as u64, 200 + file % 2000),
        );
    }
    layer
}

fn changing(update: usize) -> Layer {
    let mut layer = Layer::new()
        .dir("usr")
        .dir("usr/share")
        .dir("usr/share/changing");
    layer = layer.compressed(Compression::Zstd);
    for file in 0..CHANGE.0 {
        let seed = (update as u64 + 1) << 32 | file as u64;
        layer = layer.file(&format!("usr/share/changing/{file}"), words(seed, CHANGE.1));
    }
    layer
}

/// `size` bytes that compress to about a quarter.
fn words(seed: u64, size: usize) -> Vec<u8> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        let word = chance.u32(..).to_le_bytes();
        bytes.extend(word.map(|byte| byte & 15));
        bytes.extend([0; 4]);
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(layer: &Layer) -> usize {
        let mut tar = Vec::new();
        layer.write_tar(&mut tar).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let entries = archive.entries().unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().header().entry_type().is_file())
            .count()
    }

    #[test]
    fn an_image_has_as_many_files_as_it_says() {
        let lasting: usize = (0..LAYERS)
            .map(|number| members(&lasting(number, 3000)))
            .sum();
        assert_eq!(lasting + members(&changing(0)), 3000);
    }

    #[test]
    fn content_is_of_its_seed_and_compresses() {
        assert_eq!(words(1, 1000), words(1, 1000));
        assert_ne!(words(1, 1000), words(2, 1000));
        let small = zstd::encode_all(&words(3, 100_000)[..], 3).unwrap().len();
        assert!((20_000..45_000).contains(&small), "{small}");
    }
}
