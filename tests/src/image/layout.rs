//! An OCI image layout directory: blobs by digest, and an index of names.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Written, sha256_of_file};
use crate::process::{command, run};

pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An OCI image layout directory.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The directory.
    pub path: PathBuf,
}

impl Layout {
    /// Makes `path` an empty layout, or opens the one that is there.
    ///
    /// # Errors
    /// When the directory is not writable.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let layout = Self { path: path.into() };
        fs::create_dir_all(layout.blob_dir()).context("creating an image layout")?;
        fs::write(
            layout.path.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        if !layout.path.join("index.json").exists() {
            layout.write_index(&[])?;
        }
        Ok(layout)
    }

    pub(super) fn blob_dir(&self) -> PathBuf {
        self.path.join("blobs/sha256")
    }

    /// The file that holds a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.blob_dir().join(digest.trim_start_matches("sha256:"))
    }

    /// A blob that is JSON.
    ///
    /// # Errors
    /// When it is absent or something else.
    pub fn json(&self, digest: &str) -> Result<Value> {
        read_json(&self.blob(digest))
    }

    pub(super) fn put(&self, media_type: &str, value: &Value) -> Result<Value> {
        let bytes = serde_json::to_vec(value)?;
        let partial = self.path.join("partial");
        fs::write(&partial, &bytes).context("writing a blob")?;
        self.take_in(&partial, media_type)
    }

    /// Makes a file of the layout's directory a blob; returns its descriptor.
    pub(super) fn take_in(&self, partial: &Path, media_type: &str) -> Result<Value> {
        let digest = format!("sha256:{}", sha256_of_file(partial)?);
        let size = fs::metadata(partial)?.len();
        fs::rename(partial, self.blob(&digest)).context("naming a blob")?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": size}))
    }

    fn manifests(&self) -> Result<Vec<Value>> {
        let index = read_json(&self.path.join("index.json"))?;
        Ok(index["manifests"].as_array().cloned().unwrap_or_default())
    }

    fn write_index(&self, manifests: &[Value]) -> Result<()> {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        fs::write(
            self.path.join("index.json"),
            serde_json::to_vec_pretty(&index)?,
        )
        .context("writing the index of an image layout")
    }

    /// Names what `descriptor` describes, taking the name from whatever had it.
    pub(super) fn tag(&self, tag: &str, descriptor: &Value) -> Result<()> {
        let mut manifests = self.manifests()?;
        manifests.retain(|other| other["annotations"][REF_NAME] != tag);
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] = json!({REF_NAME: tag});
        manifests.push(descriptor);
        self.write_index(&manifests)
    }

    /// Gives an image that is here already one more name, or moves the name to it.
    ///
    /// # Errors
    /// When the layout is not writable.
    pub fn retag(&self, tag: &str, image: &Written) -> Result<()> {
        self.tag(tag, &image.descriptor)
    }

    /// Takes a name away; the image stays.
    ///
    /// # Errors
    /// When the layout is not writable.
    pub fn untag(&self, tag: &str) -> Result<()> {
        let mut manifests = self.manifests()?;
        manifests.retain(|manifest| manifest["annotations"][REF_NAME] != tag);
        self.write_index(&manifests)
    }

    /// Puts several images, told apart by platform, behind one tag; returns the index's digest.
    ///
    /// # Errors
    /// When the layout is not writable.
    pub fn tag_platforms(&self, tag: &str, images: &[&Written]) -> Result<String> {
        let manifests: Vec<&Value> = images.iter().map(|image| &image.descriptor).collect();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let descriptor = self.put(INDEX, &index)?;
        self.tag(tag, &descriptor)?;
        Written::digest_of(&descriptor)
    }

    /// The image behind a tag that names no index.
    ///
    /// # Errors
    /// When there is no such tag.
    pub fn find(&self, tag: &str) -> Result<Written> {
        let descriptor = self.descriptor(tag)?;
        let manifest = self.json(&Written::digest_of(&descriptor)?)?;
        Written::new(descriptor, &manifest)
    }

    /// What has this name.
    pub(super) fn descriptor(&self, tag: &str) -> Result<Value> {
        let mut manifests = self.manifests()?.into_iter();
        manifests
            .find(|descriptor| descriptor["annotations"][REF_NAME] == tag)
            .with_context(|| format!("no image {tag} in {}", self.path.display()))
    }

    /// The names of all images, in the order they were given.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn tags(&self) -> Result<Vec<String>> {
        let manifests = self.manifests()?;
        let names = manifests
            .iter()
            .filter_map(|m| m["annotations"][REF_NAME].as_str());
        Ok(names.map(str::to_owned).collect())
    }

    /// Makes a second layout with the same images, which shares the files of the blobs.
    ///
    /// # Errors
    /// When it cannot be written, or the blobs are on another file system.
    pub fn copy_to(&self, path: &Path) -> Result<Self> {
        let copy = Self::create(path)?;
        for blob in fs::read_dir(self.blob_dir())? {
            let blob = blob?;
            let target = copy.blob_dir().join(blob.file_name());
            fs::hard_link(blob.path(), target).context("sharing a blob")?;
        }
        fs::copy(self.path.join("index.json"), path.join("index.json"))?;
        Ok(copy)
    }

    /// Copies what is behind `tag`, all platforms of it, to `docker://{destination}` over HTTP.
    ///
    /// # Errors
    /// With skopeo's words when that fails.
    pub fn push(&self, tag: &str, destination: &str) -> Result<()> {
        let source = format!("oci:{}:{tag}", self.path.display());
        let target = format!("docker://{destination}");
        let words = [
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--all",
            "--preserve-digests",
        ];
        run(command(words).args(["--dest-tls-verify=false", &source, &target])).map(drop)
    }
}

/// The tar of a layer, out of a blob whose compression is recognised by its first bytes.
///
/// # Errors
/// When it cannot be read.
pub fn open_tar(blob: &Path) -> Result<Box<dyn Read>> {
    let mut source = File::open(blob).with_context(|| format!("opening {}", blob.display()))?;
    let mut magic = [0; 4];
    source.read_exact(&mut magic)?;
    source.rewind()?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(source)?),
        _ => Box::new(source),
    })
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
}
