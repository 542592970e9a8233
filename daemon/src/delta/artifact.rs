//! What the manifest of an `oci-delta` artifact says. Pure.
//!
//! Invariant: a delta that names another image than the one asked about, or layers that the image does not
//! have, is refused as a whole; what newer tools may add to it is passed over.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use crate::image::layout::Image;
use crate::image::reference::Digest;

/// The `artifactType` of such manifests.
pub const ARTIFACT_TYPE: &str = "application/vnd.io.github.containers.oci-delta.v1";
/// The media type of a blob that [`super::TarDiff`] reads.
const TAR_DIFF: &str = "application/vnd.tar-diff";

/// Annotation of the manifest: the image that the delta leads to.
const TARGET: &str = "io.github.containers.delta.target";
/// Annotation of the manifest: the image that it starts from.
const SOURCE: &str = "io.github.containers.delta.source";
/// Annotation of the manifest: the configuration of the image that it starts from.
const SOURCE_CONFIG: &str = "io.github.containers.delta.source-config";
/// Annotation of a layer: what it is.
const CONTENT: &str = "io.github.containers.delta.content";
/// Annotation of a layer that is one of the image, or leads to it: which one.
const TO: &str = "io.github.containers.delta.to";

/// A delta from one image to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Digest of the configuration of the image that it starts from.
    pub source_config: Digest,
    /// Digest of the manifest of that image, where it is known.
    pub source: Option<Digest>,
    /// How to make layers; others are fetched as usual.
    pub patches: Vec<Patch>,
}

/// How to make one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The layer that it leads to, by the digest of the blob in the image.
    pub to: Digest,
    /// The tar-diff.
    pub blob: Digest,
    /// Bytes of the tar-diff.
    pub size: u64,
}

/// Why the manifest of a delta is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not JSON, or not of that shape.
    #[error("its manifest cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Another kind of artifact, or no artifact.
    #[error("it is no delta")]
    NotADelta,
    /// It belongs to another image.
    #[error("it leads to {0}")]
    OtherTarget(String),
    /// No valid digest where one has to be.
    #[error("it has no valid {0}")]
    NoDigest(&'static str),
    /// A layer that the image does not have.
    #[error("it has something for the layer {0}, which is not in the image")]
    UnknownLayer(Digest),
    /// Two ways to one layer.
    #[error("it has the layer {0} more than once")]
    Twice(Digest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u64,
    #[serde(default)]
    artifact_type: String,
    subject: Option<Descriptor>,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Artifact {
    /// Reads the manifest of a delta that is said to lead to `image`.
    ///
    /// # Errors
    /// Any [`ArtifactError`].
    pub fn parse(manifest: &[u8], image: &Image) -> Result<Artifact, ArtifactError> {
        let manifest: Manifest = serde_json::from_slice(manifest)?;
        if manifest.schema_version != 2 || manifest.artifact_type != ARTIFACT_TYPE {
            return Err(ArtifactError::NotADelta);
        }
        let subject = manifest.subject.as_ref();
        let subject = subject.ok_or(ArtifactError::NoDigest("subject"))?;
        // The image may be in it, too.
        let embedded = manifest.layers.iter().filter(|layer| {
            layer.annotations.get(CONTENT).map(String::as_str) == Some("image-manifest")
        });
        let targets = std::iter::once(&subject.digest)
            .chain(manifest.annotations.get(TARGET))
            .chain(embedded.map(|layer| &layer.digest));
        for target in targets {
            if target != image.digest.as_str() {
                let shown = target.chars().take(80).collect();
                return Err(ArtifactError::OtherTarget(shown));
            }
        }
        let source_config = digest(manifest.annotations.get(SOURCE_CONFIG), "source")?;
        let source = match manifest.annotations.get(SOURCE) {
            None => None,
            some => Some(digest(some, "source")?),
        };
        Ok(Artifact {
            source_config,
            source,
            patches: patches(&manifest.layers, image)?,
        })
    }
}

fn patches(layers: &[Descriptor], image: &Image) -> Result<Vec<Patch>, ArtifactError> {
    let known: HashSet<&Digest> = image.layers.iter().map(|layer| &layer.digest).collect();
    let (mut seen, mut patches) = (HashSet::new(), Vec::new());
    for layer in layers {
        if layer.annotations.get(CONTENT).map(String::as_str) != Some("image-layer") {
            continue;
        }
        let to = digest(layer.annotations.get(TO), "target of a layer")?;
        if !known.contains(&to) {
            return Err(ArtifactError::UnknownLayer(to));
        }
        if !seen.insert(to.clone()) {
            return Err(ArtifactError::Twice(to));
        }
        // Layers that no difference helps with are in it as they are, and in the image anyway.
        if layer.media_type == TAR_DIFF {
            patches.push(Patch {
                to,
                blob: digest(Some(&layer.digest), "digest of a layer")?,
                size: layer.size,
            });
        }
    }
    Ok(patches)
}

fn digest(text: Option<&String>, what: &'static str) -> Result<Digest, ArtifactError> {
    let digest = text.and_then(|text| text.parse().ok());
    digest.ok_or(ArtifactError::NoDigest(what))
}

/// The configuration of the image that a delta starts from, as a list of artifacts can say it already; `None`
/// where only the manifest of the delta can tell.
pub fn names_source(annotations: &BTreeMap<String, String>) -> Option<Digest> {
    annotations.get(SOURCE_CONFIG)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(text: &str) -> String {
        Digest::of(text.as_bytes()).to_string()
    }

    /// An image of two layers, `one` and `two`.
    fn image() -> Image {
        let manifest = json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": of("config"), "size": 2},
            "layers": (["one", "two"]).map(|layer| json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": of(layer), "size": 3,
            })),
        });
        Image::from_commit_metadata(&of("image"), &manifest.to_string(), "null").unwrap()
    }

    fn manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": of("{}"), "size": 2},
            "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json",
                        "digest": of("image"), "size": 700},
            "layers": [
                {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": of("image"),
                 "size": 700, "annotations": {CONTENT: "image-manifest"}},
                {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": of("config"),
                 "size": 2, "annotations": {CONTENT: "image-config"}},
                {"mediaType": TAR_DIFF, "digest": of("patch"), "size": 70,
                 "annotations": {CONTENT: "image-layer", TO: of("one")}},
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": of("two"),
                 "size": 3, "annotations": {CONTENT: "image-layer", TO: of("two")}},
                {"mediaType": "text/plain", "digest": "?", "size": 1,
                 "annotations": {CONTENT: "something-new"}},
                {"mediaType": "text/plain", "digest": of("x"), "size": 1},
            ],
            "annotations": {
                TARGET: of("image"), SOURCE: of("old image"), SOURCE_CONFIG: of("old config"),
                "io.github.containers.delta.reused": "[]",
            },
        })
    }

    fn parse(manifest: &Value) -> Result<Artifact, ArtifactError> {
        Artifact::parse(manifest.to_string().as_bytes(), &image())
    }

    #[test]
    fn a_delta_says_from_where_and_for_which_layers() {
        let artifact = parse(&manifest()).unwrap();
        let digest = |text: &str| Digest::of(text.as_bytes());
        let patch = Patch {
            to: digest("one"),
            blob: digest("patch"),
            size: 70,
        };
        let expected = Artifact {
            source_config: digest("old config"),
            source: Some(digest("old image")),
            patches: vec![patch],
        };
        assert_eq!(artifact, expected);

        let mut short = manifest();
        short["annotations"] = json!({SOURCE_CONFIG: of("old config")});
        short["layers"].as_array_mut().unwrap().remove(0);
        let source = None;
        assert_eq!(parse(&short).unwrap(), Artifact { source, ..expected });
    }

    #[test]
    fn what_is_no_delta_for_the_image_is_refused() {
        use ArtifactError::*;
        type Change = fn(&mut Value);
        type Check = fn(&ArtifactError) -> bool;
        let cases: &[(Change, Check)] = &[
            (
                |m| m["schemaVersion"] = json!(1),
                |e| matches!(e, NotADelta),
            ),
            (
                |m| m["artifactType"] = json!("application/spdx+json"),
                |e| matches!(e, NotADelta),
            ),
            (
                |m| drop(m.as_object_mut().unwrap().remove("artifactType")),
                |e| matches!(e, NotADelta),
            ),
            (
                |m| m["subject"]["digest"] = json!(of("other")),
                |e| matches!(e, OtherTarget(_)),
            ),
            (
                |m| m["annotations"][TARGET] = json!("other"),
                |e| matches!(e, OtherTarget(_)),
            ),
            (
                |m| m["layers"][0]["digest"] = json!(of("other")),
                |e| matches!(e, OtherTarget(_)),
            ),
            (
                |m| m["subject"] = Value::Null,
                |e| matches!(e, NoDigest("subject")),
            ),
            (
                |m| m["annotations"][SOURCE_CONFIG] = json!("sha256:12"),
                |e| matches!(e, NoDigest(_)),
            ),
            (
                |m| m["annotations"] = json!({}),
                |e| matches!(e, NoDigest(_)),
            ),
            (
                |m| m["annotations"][SOURCE] = json!(""),
                |e| matches!(e, NoDigest(_)),
            ),
            (
                |m| m["layers"][2]["digest"] = json!("sha512:12"),
                |e| matches!(e, NoDigest(_)),
            ),
            (
                |m| m["layers"][2]["annotations"][TO] = json!("one"),
                |e| matches!(e, NoDigest(_)),
            ),
            (
                |m| m["layers"][2]["annotations"][TO] = json!(of("three")),
                |e| matches!(e, UnknownLayer(_)),
            ),
            (
                |m| m["layers"][2]["annotations"][TO] = json!(of("two")),
                |e| matches!(e, Twice(_)),
            ),
            (
                |m| m["layers"][2]["size"] = json!(-1),
                |e| matches!(e, Unreadable(_)),
            ),
            (|m| m["layers"] = json!(7), |e| matches!(e, Unreadable(_))),
        ];
        for (at, (change, is_expected)) in cases.iter().enumerate() {
            let mut changed = manifest();
            change(&mut changed);
            let error = parse(&changed).unwrap_err();
            assert!(is_expected(&error), "case {at}: {error}");
        }
        assert!(Artifact::parse(b"{", &image()).is_err());
    }

    #[test]
    fn a_list_may_say_where_it_starts() {
        let mut annotations = BTreeMap::from([(SOURCE_CONFIG.to_owned(), of("old"))]);
        assert_eq!(names_source(&annotations), Some(Digest::of(b"old")));
        annotations.insert(SOURCE_CONFIG.to_owned(), "old".to_owned());
        assert_eq!(names_source(&annotations), None);
    }
}
