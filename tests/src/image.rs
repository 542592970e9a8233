//! Building OCI images in a layout directory, good ones and bad ones.
//!
//! Invariant: what is written here depends only on what it is told, never on the clock, so the
//! same description always has the same digest.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

pub mod chunked;
pub mod delta;
mod entry;
mod from_disk;
mod hashing;
mod layer;
mod layout;
mod members;
mod os_tree;

pub use entry::{Entry, Kind, LongNames};
pub use from_disk::{paths_below, with_parents};
pub use hashing::sha256_of_file;
pub use layer::{Blob, Compression, Layer};
pub use layout::{Layout, open_tar};
pub use os_tree::{KERNEL, os_tree};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

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

    /// Puts a blob that is written already, into the file `source`, on top of those before, below
    /// the image's own layers.
    #[must_use]
    pub fn ready(mut self, source: PathBuf, blob: Blob) -> Self {
        self.ready.push((source, blob));
        self
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
        layers.extend(blobs.iter().map(Blob::to_json));
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

    fn digest_of(descriptor: &Value) -> Result<String> {
        descriptor["digest"]
            .as_str()
            .map(str::to_owned)
            .context("a descriptor without digest")
    }
}
