//! Writes `oci-delta` artifacts: how the layers of an image are made from the files of an older one.
//!
//! Owns what such an artifact says and where it is listed; by the format of tar-diff, version 1. Invariants:
//! what is made is the tar of the layer, byte by byte, unless it was told to be damaged; the same images give
//! the same artifact; of tars, only one file of each image at a time is in memory.

mod blocks;
mod older;
mod operations;

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Read, Write};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::older::OlderFiles;
use self::operations::Operations;
use super::layout::INDEX;
use super::members::Members;
use super::{Layout, MANIFEST, Written, open_tar};

const ARTIFACT: &str = "application/vnd.io.github.containers.oci-delta.v1";
const TAR_DIFF: &str = "application/vnd.tar-diff";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Begins the names of all annotations.
const PREFIX: &str = "io.github.containers.delta";

/// As the usual tool compresses unless it is told otherwise.
const LEVEL: i32 = 3;

/// What a delta takes from the older image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// Whole files, and blocks of the file of the same path.
    Blocks,
    /// Only whole files.
    Files,
    /// Nothing.
    Nothing,
}

/// A delta from one image to another, to be written.
#[derive(Clone, Debug)]
pub struct Differ<'a> {
    layout: &'a Layout,
    old: &'a Written,
    new: &'a Written,
    level: i32,
    copies: Copies,
    damaged: bool,
}

impl<'a> Differ<'a> {
    /// A delta between two images of a layout.
    pub fn new(layout: &'a Layout, old: &'a Written, new: &'a Written) -> Self {
        Self {
            layout,
            old,
            new,
            level: LEVEL,
            copies: Copies::Blocks,
            damaged: false,
        }
    }

    /// Compressed at another level of Zstandard.
    #[must_use]
    pub fn level(mut self, level: i32) -> Self {
        self.level = level;
        self
    }

    /// One that takes that from the older image, instead of all that it can.
    #[must_use]
    pub fn copies(mut self, copies: Copies) -> Self {
        self.copies = copies;
        self
    }

    /// One that can be applied, but makes another tar: a byte of the first file is another.
    #[must_use]
    pub fn damaged(mut self) -> Self {
        self.damaged = true;
        self
    }

    /// Writes the artifact into a layout, with one tar-diff for each layer that the older image does not have;
    /// and the list that names it, under the tag that it is looked for by.
    ///
    /// # Errors
    /// When the images cannot be read, or the layout not written.
    pub fn write(&self, out: &Layout) -> Result<Delta> {
        let older = match self.copies {
            Copies::Blocks | Copies::Files => OlderFiles::of(self.layout, self.old, &out.path)?,
            Copies::Nothing => OlderFiles::none()?,
        };
        let here: HashSet<&String> = self.old.layers.iter().collect();
        let mut layers = Vec::new();
        for layer in self.new.layers.iter().filter(|layer| !here.contains(layer)) {
            let partial = out.path.join("partial-diff");
            let mut file = BufWriter::new(File::create(&partial)?);
            let tar = open_tar(&self.layout.blob(layer))?;
            self.patch(&older, tar, &mut file)
                .with_context(|| format!("a delta for {layer}"))?;
            file.flush()?;
            let mut descriptor = out.take_in(&partial, TAR_DIFF)?;
            descriptor["annotations"] = json!({
                format!("{PREFIX}.content"): "image-layer", format!("{PREFIX}.to"): layer,
            });
            layers.push(descriptor);
        }
        self.list(out, &layers)?;
        Delta::find(out, self.new)
    }

    /// Writes how a tar is made.
    fn patch(&self, older: &OlderFiles, tar: impl Read, diff: impl Write) -> Result<()> {
        let mut members = Members::new(tar);
        let mut operations = Operations::new(diff, self.level)?;
        let mut damaged = self.damaged;
        while let Some(member) = members.next()? {
            operations.data(&member.raw)?;
            let mut content = Vec::new();
            while let Some(bytes) = members.content()? {
                content.extend_from_slice(bytes);
            }
            if let Some(byte) = content.first_mut()
                && std::mem::take(&mut damaged)
            {
                *byte ^= 1;
            }
            if !older.copy(&content, &mut operations)? {
                let path = member.name.as_str();
                match self.copies {
                    Copies::Blocks => older.copy_blocks(path, &content, &mut operations)?,
                    Copies::Files | Copies::Nothing => operations.data(&content)?,
                }
            }
        }
        operations.data(&members.take_end())?;
        while let Some(padding) = members.padding()? {
            operations.data(&padding)?;
        }
        operations.finish()
    }

    /// Writes the manifest of the artifact, and the list of what is beside the image.
    fn list(&self, out: &Layout, layers: &[Value]) -> Result<()> {
        let Written { descriptor, .. } = self.new;
        let subject = json!({
            "mediaType": MANIFEST, "digest": self.new.digest, "size": descriptor["size"],
        });
        let annotations = json!({
            format!("{PREFIX}.target"): self.new.digest,
            format!("{PREFIX}.source"): self.old.digest,
            format!("{PREFIX}.source-config"): self.old.config_digest,
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT,
            "config": out.put(EMPTY, &json!({}))?, "layers": layers,
            "subject": subject, "annotations": annotations,
        });
        let mut artifact = out.put(MANIFEST, &manifest)?;
        artifact["artifactType"] = json!(ARTIFACT);
        artifact["annotations"] = annotations;
        let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [artifact]});
        let list = out.put(INDEX, &list)?;
        out.tag(&tag_beside(self.new), &list)
    }
}

/// A delta that stands in a layout.
#[derive(Clone, Debug)]
pub struct Delta {
    /// The tag of the list that names it.
    pub tag: String,
    /// `sha256:…` of the list.
    pub list: String,
    /// `sha256:…` of the manifest.
    pub manifest: String,
    /// `sha256:…` of the tar-diffs, and of the empty configuration.
    pub blobs: Vec<String>,
    /// Bytes of all tar-diffs.
    pub size: u64,
}

impl Delta {
    /// The delta that was written last to lead to `image`.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(layout: &Layout, image: &Written) -> Result<Self> {
        let tag = tag_beside(image);
        let list = Written::digest_of(&layout.descriptor(&tag)?)?;
        let manifest = Written::digest_of(&layout.json(&list)?["manifests"][0])?;
        let artifact = layout.json(&manifest)?;
        let layers = artifact["layers"].as_array().context("no layers")?;
        let blobs = layers.iter().chain([&artifact["config"]]);
        Ok(Self {
            tag,
            list,
            manifest,
            blobs: blobs.map(Written::digest_of).collect::<Result<_>>()?,
            size: layers
                .iter()
                .filter_map(|layer| layer["size"].as_u64())
                .sum(),
        })
    }
}

/// Where registries without an own list of what is beside an image have one (OCI distribution specification
/// 1.1, "Referrers Tag Schema").
fn tag_beside(image: &Written) -> String {
    image.digest.replace(':', "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Compression, Image, Layer};

    pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    }

    const FILE: usize = 300_000;

    fn old_layer() -> Layer {
        Layer::new()
            .file("usr/same", noise(1, FILE))
            .file("usr/changed", noise(2, FILE))
            .file("usr/hidden", noise(3, FILE))
            .file("sysroot/object", noise(4, FILE))
    }

    fn new_layer() -> Layer {
        let mut changed = noise(2, FILE);
        changed.splice(1000..1000, noise(9, 500));
        changed[200_000] ^= 1;
        Layer::new()
            .in_records()
            .dir("usr")
            .file("usr/renamed", noise(1, FILE))
            .file("usr/changed", changed)
            .file("usr/empty", "")
            .hardlink("usr/hard", "usr/changed")
    }

    /// An older image whose second layer hides a file of the first, and one with a new second layer.
    fn images(layout: &Layout, new: Layer) -> [Written; 2] {
        let image = |layer: Layer| {
            let first = Image::new("1").layer(old_layer().compressed(Compression::Zstd));
            first.layer(layer).write(layout).unwrap()
        };
        [image(Layer::new().whiteout("usr/hidden")), image(new)]
    }

    fn tar_of(layer: &Layer) -> Vec<u8> {
        let mut tar = Vec::new();
        layer.write_tar(&mut tar).unwrap();
        tar
    }

    /// What the delta for the last layer makes of the files of [`old_layer`].
    fn applied(layout: &Layout, delta: &Delta) -> Vec<u8> {
        let diff = std::fs::read(layout.blob(&delta.blobs[0])).unwrap();
        operations::apply(&diff, |path| match path {
            "usr/same" => noise(1, FILE),
            "usr/changed" => noise(2, FILE),
            _ => panic!("{path} is not there"),
        })
    }

    #[test]
    fn a_delta_makes_the_tar_out_of_older_files() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let [old, new] = images(&layout, new_layer());
        let differ = Differ::new(&layout, &old, &new);
        let delta = differ.write(&layout).unwrap();
        // One layer, and the configuration.
        assert_eq!(delta.blobs.len(), 2);
        assert!(delta.size < 5000, "{delta:?}");
        assert_eq!(applied(&layout, &delta), tar_of(&new_layer()));
        assert_eq!(differ.write(&layout).unwrap().list, delta.list);

        for (copies, files) in [(Copies::Files, 1), (Copies::Nothing, 2)] {
            let other = differ.clone().copies(copies).write(&layout).unwrap();
            let least = files * FILE as u64;
            let expected = least..least + FILE as u64 / 2;
            assert!(expected.contains(&other.size), "{copies:?}: {other:?}");
            assert_eq!(applied(&layout, &other), tar_of(&new_layer()));
        }

        let damaged = differ.damaged().write(&layout).unwrap();
        let (wrong, tar) = (applied(&layout, &damaged), tar_of(&new_layer()));
        assert_eq!(wrong.len(), tar.len());
        let other = wrong.iter().zip(&tar).filter(|(one, two)| one != two);
        assert_eq!(other.count(), 1);
    }

    #[test]
    fn what_the_older_image_does_not_show_is_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let layer = Layer::new()
            .file("usr/hidden", noise(3, FILE))
            .file("sysroot/object", noise(4, FILE));
        let [old, new] = images(&layout, layer.clone());
        let delta = Differ::new(&layout, &old, &new).write(&layout).unwrap();
        assert!(delta.size > 2 * FILE as u64, "{delta:?}");
        assert_eq!(applied(&layout, &delta), tar_of(&layer));
    }

    #[test]
    fn it_is_listed_beside_its_image() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let [old, new] = images(&layout, new_layer());
        let delta = Differ::new(&layout, &old, &new).write(&layout).unwrap();
        assert_eq!(delta.tag, new.digest.replace("sha256:", "sha256-"));
        let list = layout.json(&delta.list).unwrap();
        let listed = &list["manifests"][0];
        assert_eq!(listed["artifactType"], ARTIFACT);
        let source = "io.github.containers.delta.source-config";
        assert_eq!(listed["annotations"][source], old.config_digest);
        let manifest = layout.json(&delta.manifest).unwrap();
        assert_eq!(manifest["subject"]["digest"], new.digest);
        assert_eq!(manifest["annotations"], listed["annotations"]);
        let to = &manifest["layers"][0]["annotations"]["io.github.containers.delta.to"];
        assert_eq!(to, new.layers.last().unwrap());
    }
}
