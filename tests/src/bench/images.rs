//! The tree and its next versions as images, in several numbers of layers and compressions.
//!
//! Invariant: a set is in a directory of its own, made once, under the key of all it was made from;
//! versions share the blobs of layers that they do not change.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow};

use super::change::{Change, many_bytes, many_packages};
use super::tree::{Member, Tree, debian_tree};
use crate::bootable::product::{lock, product};
use crate::image::chunked::Style;
use crate::image::{Blob, Compression, Image, Layer, Layout, with_parents};
use crate::oracle::write_base;

/// More layers than this no set has.
pub(super) const MOST_LAYERS: usize = 60;

/// Threads that compress.
const WORKERS: usize = 2;

/// One way to cut and to compress the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// Layers above the tiny base.
    pub layers: usize,
    /// How these are compressed.
    pub compression: Compression,
}

/// What is measured, in this order.
pub const SETS: [Set; 6] = [
    Set::new(60, Compression::Gzip),
    Set::new(60, Compression::Zstd),
    Set::new(60, Compression::Chunked(Style::Modern)),
    Set::new(8, Compression::Zstd),
    Set::new(1, Compression::Gzip),
    Set::new(1, Compression::Chunked(Style::Modern)),
];

/// The tags of a set's images: the first, one with about 5 % of the bytes changed, and one with 40
/// packages changed.
pub const VERSIONS: [&str; 3] = ["a", "b", "c"];

impl Set {
    const fn new(layers: usize, compression: Compression) -> Self {
        Self {
            layers,
            compression,
        }
    }

    /// `60-gzip`, for example.
    pub fn name(self) -> String {
        let compression = match self.compression {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Plain => "plain",
            Compression::Chunked(_) => "chunked",
        };
        format!("{}-{compression}", self.layers)
    }

    /// The tags that it has. Few packages in few layers without parts are all of these layers once
    /// more, which is measured with the second version and is not worth its place on the disk.
    pub fn versions(self) -> &'static [&'static str] {
        match self.layers == MOST_LAYERS || self.is_chunked() {
            true => &VERSIONS,
            false => &VERSIONS[..2],
        }
    }

    /// Whether parts of its layers can be fetched.
    pub fn is_chunked(self) -> bool {
        matches!(self.compression, Compression::Chunked(_))
    }
}

/// All that images are made of.
#[derive(Debug)]
pub struct Source {
    images: PathBuf,
    tree: Tree,
    changes: [Change; 2],
    key: String,
}

impl Source {
    /// Makes the tree, with that share of its files, and the files that change.
    ///
    /// # Errors
    /// When Debian's archive is out of reach, or the disk is full.
    pub fn make(images: &Path, scale: f64) -> Result<Self> {
        let _lock = lock(images)?;
        let tree = debian_tree(images, scale)?;
        let out = images.join("changes");
        let inputs = [tree.key.as_str(), include_str!("change.rs")];
        let (bytes, packages) = (many_bytes(&tree), many_packages(&tree));
        let changes = |out: &Path| {
            [
                Change::new(&bytes, out.join(VERSIONS[1]), 2),
                Change::new(&packages, out.join(VERSIONS[2]), 3),
            ]
        };
        let key = product(&out, &inputs, |out| {
            let made = changes(out);
            made.iter().try_for_each(|change| change.write(&tree.root))
        })?;
        let changes = changes(&out);
        Ok(Self {
            images: images.to_owned(),
            tree,
            changes,
            key,
        })
    }

    /// Bytes and number of the first version's regular files.
    pub fn size(&self) -> (u64, usize) {
        let files = self.tree.files.iter().filter(|file| file.size > 0);
        (self.tree.bytes(), files.count())
    }

    /// The set's images, made if need be.
    ///
    /// # Errors
    /// When the disk is full, or with the oracle's words.
    pub fn set(&self, set: Set) -> Result<Layout> {
        let _lock = lock(&self.images)?;
        let out = self.images.join(set.name());
        let inputs = [
            &self.key,
            concat!(include_str!("images.rs"), include_str!("../image/layer.rs")),
        ];
        product(&out, &inputs, |out| self.write(set, out))?;
        Layout::create(out)
    }

    fn write(&self, set: Set, out: &Path) -> Result<()> {
        let layout = Layout::create(out)?;
        write_base(out, &layout, "base")?;
        let base = layout.find("base")?;
        let runs = self.tree.split(set.layers);
        let first = self.blobs(&layout, set, &runs, None)?;
        for (number, version) in set.versions().iter().enumerate() {
            let change = number.checked_sub(1).map(|index| &self.changes[index]);
            let touched = |run: &&[Member]| change.is_some_and(|change| change.touches(run));
            let changed: Vec<&[Member]> = runs.iter().copied().filter(touched).collect();
            let mut new = self.blobs(&layout, set, &changed, change)?.into_iter();
            let created = format!("2025-{:02}-01T00:00:00Z", number + 2);
            let mut image = Image::new(version).on(&base).created(&created);
            for (run, blob) in runs.iter().zip(&first) {
                let blob = match touched(run) {
                    true => new.next().context("a layer is missing")?,
                    false => blob.clone(),
                };
                image = image.ready(layout.blob(&blob.digest), blob);
            }
            image.write_as(&layout, version)?;
        }
        Ok(())
    }

    /// Writes a layer for each run of paths.
    fn blobs(
        &self,
        layout: &Layout,
        set: Set,
        runs: &[&[Member]],
        change: Option<&Change>,
    ) -> Result<Vec<Blob>> {
        let directory = layout.path.join("blobs/sha256");
        let next = AtomicUsize::new(0);
        let blobs: Mutex<Vec<(usize, Blob)>> = Mutex::default();
        let work = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(run) = runs.get(number) else {
                    return Ok(());
                };
                let layer = layer(&self.tree.root, run, change)?.compressed(set.compression);
                let blob = layer.write_blob(&directory)?;
                let mut blobs = blobs
                    .lock()
                    .map_err(|_| anyhow!("another thread panicked"))?;
                blobs.push((number, blob));
            }
        };
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                worker
                    .join()
                    .map_err(|_| anyhow!("a compressing thread panicked"))??;
            }
            Ok(())
        })?;
        let mut blobs = blobs.into_inner()?;
        blobs.sort_by_key(|(number, _)| *number);
        Ok(blobs.into_iter().map(|(_, blob)| blob).collect())
    }
}

/// The layer with these paths, and with the directories above them.
fn layer(tree: &Path, run: &[Member], change: Option<&Change>) -> Result<Layer> {
    let new_path = |file: &Member| change.and_then(|change| change.paths.get(&file.path));
    let same = run.iter().filter(|file| new_path(file).is_none());
    let changed: Vec<String> = run
        .iter()
        .filter_map(|file| new_path(file).cloned())
        .collect();
    let parents = changed
        .iter()
        .filter_map(|path| Some(path.rsplit_once('/')?.0));
    let below = with_parents(same.map(|file| file.path.as_str()).chain(parents));
    let layer = Layer::new().add_from(tree, &below)?;
    match change {
        Some(change) => layer.add_from(&change.root, &changed),
        None => Ok(layer),
    }
}
