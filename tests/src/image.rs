//! Building OCI images in a layout directory, good ones and bad ones.
//!
//! Invariant: what is written here depends only on what it is told, never on the clock, so the
//! same description always has the same digest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

mod entry;
mod layer;
mod os_tree;

pub use entry::{Entry, Kind, LongNames};
pub use layer::{Blob, Compression, Layer, sha256_of_file};
pub use os_tree::{KERNEL, os_tree};

use crate::process::{command, run};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The OCI name of the machine's architecture.
pub const HOST_ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Image {
    layers: Vec<Layer>,
    ready: Vec<(PathBuf, Blob)>,
    base: Option<Written>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    architecture: String,
    created: String,
}

impl Image {
    /// An image without layers, of this machine's architecture, labelled as bootable.
    pub fn new(version: &str) -> Self {
        let labels = [
            ("containers.bootc", "1"),
            ("org.opencontainers.image.version", version),
        ];
        Self {
            layers: Vec::new(),
            ready: Vec::new(),
            base: None,
            labels: labels.map(|(key, value)| (key.into(), value.into())).into(),
            annotations: BTreeMap::new(),
            architecture: HOST_ARCHITECTURE.into(),
            created: "2025-01-01T00:00:00Z".into(),
        }
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Puts the image on top of another one of the same layout, whose labels it inherits.
    #[must_use]
    pub fn on(mut self, base: &Written) -> Self {
        self.base = Some(base.clone());
        self
    }

    /// Puts the layers of an image of another layout below the image's own, without reading them.
    ///
    /// # Errors
    /// When the other layout is incomplete.
    pub fn with_layers_of(mut self, layout: &Layout, image: &Written) -> Result<Self> {
        let manifest = layout.json(&image.digest)?;
        let config = layout.json(&image.config_digest)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        let diff_ids = config["rootfs"]["diff_ids"]
            .as_array()
            .context("no diff_ids")?;
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let blob = Blob::from_json(layer, diff_id).context("an odd layer")?;
            self.ready.push((layout.blob(&blob.digest), blob));
        }
        Ok(self)
    }

    /// Sets a label of the configuration; an empty value removes it.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        if value.is_empty() {
            self.labels.remove(key);
        } else {
            self.labels.insert(key.into(), value.into());
        }
        self
    }

    /// Sets an annotation of the manifest.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// Sets the architecture, by its OCI name.
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.architecture = architecture.into();
        self
    }

    /// Sets the time of creation, in RFC 3339.
    #[must_use]
    pub fn created(mut self, created: &str) -> Self {
        self.created = created.into();
        self
    }

    fn config(&self, layout: &Layout, blobs: &[Blob]) -> Result<Value> {
        let mut labels = BTreeMap::new();
        let mut diff_ids = Vec::new();
        if let Some(base) = &self.base {
            let config = layout.json(&base.config_digest)?;
            let inherited = config["config"]["Labels"].as_object().into_iter().flatten();
            labels.extend(inherited.map(|(key, value)| (key.clone(), value.clone())));
            diff_ids.extend(
                config["rootfs"]["diff_ids"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
            );
        }
        labels.extend(
            self.labels
                .iter()
                .map(|(key, value)| (key.clone(), json!(value))),
        );
        diff_ids.extend(blobs.iter().map(|blob| json!(blob.diff_id)));
        let history: Vec<Value> = diff_ids
            .iter()
            .enumerate()
            .map(|(n, _)| json!({"created": self.created, "created_by": format!("layer {n}")}))
            .collect();
        Ok(json!({
            "architecture": self.architecture, "os": "linux", "created": self.created,
            "config": {"Labels": labels, "Cmd": ["/sbin/init"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
        }))
    }

    /// Writes the image into `layout`, without a tag.
    ///
    /// # Errors
    /// When the layout is not writable or a layer's source not readable.
    pub fn write(&self, layout: &Layout) -> Result<Written> {
        let dir = layout.blob_dir();
        let mut blobs = Vec::new();
        for (source, blob) in &self.ready {
            let target = layout.blob(&blob.digest);
            if !target.exists() && fs::hard_link(source, &target).is_err() {
                fs::copy(source, &target).context("copying a blob")?;
            }
            blobs.push(blob.clone());
        }
        let own: Vec<Blob> = self
            .layers
            .iter()
            .map(|layer| layer.write_blob(&dir))
            .collect::<Result<_>>()?;
        blobs.extend(own);
        let config = layout.put(CONFIG, &self.config(layout, &blobs)?)?;
        let mut layers = Vec::new();
        if let Some(base) = &self.base {
            let manifest = layout.json(&base.digest)?;
            layers.extend(manifest["layers"].as_array().cloned().unwrap_or_default());
        }
        layers.extend(blobs.iter().map(
            |blob| json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}),
        ));
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        let mut descriptor = layout.put(MANIFEST, &manifest)?;
        descriptor["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        Written::new(descriptor, &manifest)
    }

    /// Writes the image into `layout` under a tag.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub fn write_as(&self, layout: &Layout, tag: &str) -> Result<Written> {
        let written = self.write(layout)?;
        layout.tag(tag, &written.descriptor)?;
        Ok(written)
    }
}

/// An image that stands in a layout.
#[derive(Clone, Debug)]
pub struct Written {
    /// `sha256:…` of the manifest.
    pub digest: String,
    /// `sha256:…` of the configuration.
    pub config_digest: String,
    /// `sha256:…` of every layer, lowest first.
    pub layers: Vec<String>,
    /// Bytes of all layer blobs.
    pub size: u64,
    descriptor: Value,
}

impl Written {
    fn new(descriptor: Value, manifest: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no digest");
        let layers = manifest["layers"]
            .as_array()
            .context("a manifest without layers")?;
        Ok(Self {
            digest: text(&descriptor["digest"])?,
            config_digest: text(&manifest["config"]["digest"])?,
            layers: layers
                .iter()
                .map(|layer| text(&layer["digest"]))
                .collect::<Result<_>>()?,
            size: layers
                .iter()
                .filter_map(|layer| layer["size"].as_u64())
                .sum(),
            descriptor,
        })
    }
}

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

    fn blob_dir(&self) -> PathBuf {
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

    fn put(&self, media_type: &str, value: &Value) -> Result<Value> {
        let bytes = serde_json::to_vec(value)?;
        let partial = self.path.join("partial");
        fs::write(&partial, &bytes).context("writing a blob")?;
        let digest = format!("sha256:{}", sha256_of_file(&partial)?);
        fs::rename(&partial, self.blob(&digest))?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
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
    fn tag(&self, tag: &str, descriptor: &Value) -> Result<()> {
        let index = read_json(&self.path.join("index.json"))?;
        let mut manifests = index["manifests"].as_array().cloned().unwrap_or_default();
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
        let index = read_json(&self.path.join("index.json"))?;
        let descriptor = index["manifests"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|descriptor| descriptor["annotations"][REF_NAME] == tag)
            .with_context(|| format!("no image {tag} in {}", self.path.display()))?
            .clone();
        let manifest = self.json(&Written::digest_of(&descriptor)?)?;
        Written::new(descriptor, &manifest)
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

impl Written {
    fn digest_of(descriptor: &Value) -> Result<String> {
        descriptor["digest"]
            .as_str()
            .map(str::to_owned)
            .context("a descriptor without digest")
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
}
