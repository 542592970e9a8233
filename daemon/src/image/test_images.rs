//! Small images for the tests of this folder: documents that agree with each other, and fake layers.

use serde_json::{Value, json};

use super::reference::Digest;

pub(super) const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image, as the documents that a registry would hold.
pub(super) struct TestImage {
    pub(super) manifest: Value,
    pub(super) config: Value,
    pub(super) blobs: Vec<Vec<u8>>,
}

/// An image whose layers are these bytes, all said to be gzip; the diff_id of one is [`diff_id`] of it.
pub(super) fn image(architecture: &str, labels: &[(&str, &str)], layers: &[&[u8]]) -> TestImage {
    let labels: serde_json::Map<String, Value> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    let diff_ids: Vec<String> = layers.iter().map(|layer| diff_id(layer)).collect();
    let config = json!({
        "os": "linux",
        "architecture": architecture,
        "created": "2026-01-02T03:04:05Z",
        "config": {"Labels": labels, "Volumes": null},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [],
    });
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|layer| descriptor(OCI_GZIP, layer))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &bytes(&config)),
        "layers": descriptors,
    });
    TestImage {
        manifest,
        config,
        blobs: layers.iter().map(|layer| layer.to_vec()).collect(),
    }
}

/// What these images call the diff_id of a layer.
pub(super) fn diff_id(layer: &[u8]) -> String {
    Digest::of(&[b"diff ", layer].concat()).to_string()
}

pub(super) fn bytes(document: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(document).unwrap()
}

pub(super) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).as_str(), "size": content.len()})
}

/// An index of these documents, each with the platform `linux/ARCHITECTURE[/VARIANT]`.
pub(super) fn index(entries: &[(&str, &Value)]) -> Value {
    let entries: Vec<Value> = entries
        .iter()
        .map(|(platform, manifest)| {
            let mut parts = platform.split('/');
            let mut entry = descriptor(
                "application/vnd.oci.image.manifest.v1+json",
                &bytes(manifest),
            );
            entry["platform"] = json!({"os": parts.next(), "architecture": parts.next()});
            if let Some(variant) = parts.next() {
                entry["platform"]["variant"] = json!(variant);
            }
            entry
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    })
}

impl TestImage {
    /// The configuration changed after the manifest was made: makes them agree again.
    pub(super) fn sealed(mut self) -> TestImage {
        let media_type = self.manifest["config"]["mediaType"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.manifest["config"] = descriptor(&media_type, &bytes(&self.config));
        self
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&bytes(&self.manifest))
    }
}
