//! Reading one document of a registry: manifest or index, in OCI's or docker's words, and choosing the
//! entry of an index that is for this machine.
//!
//! Pure. Invariant: a manifest that leaves this module speaks OCI, whatever the registry served, since
//! that is what other tools on the host read back from the merge commit.

use oci_spec::image::{Descriptor, ImageManifest, MediaType};
use serde::Deserialize;
use serde_json::Value;

use super::answer::shown;
use super::layer::Compression;
use super::layout::{LayoutError, unreadable};
use super::reference::Digest;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What a registry may answer with when it is asked for a manifest.
pub(super) const MANIFEST_TYPES: [&str; 4] =
    [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];

/// One document as a registry or a directory holds it.
#[derive(Clone, Debug)]
pub(super) enum Document {
    /// The image for one platform, already in OCI form.
    Manifest(Box<ImageManifest>),
    /// A choice of images.
    Index(Index),
}

/// A choice of images for several platforms.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Index {
    /// In the order of preference of whoever made it.
    pub(super) manifests: Vec<IndexEntry>,
}

/// One image in an index. Only what the choice needs; what else it says does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IndexEntry {
    #[serde(default)]
    media_type: String,
    digest: String,
    /// Bytes of the document.
    pub(super) size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    variant: Option<String>,
}

impl Document {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// [`LayoutError::Schema1`], [`LayoutError::NotAnImage`], or [`LayoutError::Unreadable`] for what is
    /// malformed, or claims to be both.
    pub(super) fn parse(bytes: &[u8]) -> Result<Document, LayoutError> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| unreadable("manifest", &error))?;
        let malformed = |reason: &str| LayoutError::Unreadable {
            what: "manifest",
            reason: reason.to_owned(),
        };
        match value.get("schemaVersion").and_then(Value::as_u64) {
            Some(2) => {}
            Some(1) => return Err(LayoutError::Schema1),
            _ => return Err(malformed("it has no known schema version")),
        }
        let has = |field: &str| value.get(field).is_some();
        // A document that reads as either would be a different image for different readers.
        if has("manifests") && (has("layers") || has("config")) {
            return Err(malformed("it is a manifest and an index at once"));
        }
        let media_type = value
            .get("mediaType")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match media_type {
            "" if has("manifests") => Index::from_value(value).map(Document::Index),
            OCI_INDEX | DOCKER_INDEX => Index::from_value(value).map(Document::Index),
            "" | OCI_MANIFEST | DOCKER_MANIFEST => {
                let manifest = serde_json::from_value(value)
                    .map_err(|error| unreadable("manifest", &error))?;
                to_oci(manifest).map(|manifest| Document::Manifest(Box::new(manifest)))
            }
            other => Err(LayoutError::NotAnImage(other.to_owned())),
        }
    }
}

/// Puts OCI's media types in the place of docker's. Unknown types stay, for the error to name them.
fn to_oci(mut manifest: ImageManifest) -> Result<ImageManifest, LayoutError> {
    let config_type = manifest.config().media_type().as_ref();
    if config_type != DOCKER_CONFIG && *manifest.config().media_type() != MediaType::ImageConfig {
        return Err(LayoutError::NotAnImage(config_type.to_owned()));
    }
    let mut config = manifest.config().clone();
    config.set_media_type(MediaType::ImageConfig);
    manifest.set_config(config);
    if manifest.media_type().is_some() {
        manifest.set_media_type(Some(MediaType::ImageManifest));
    }
    for layer in manifest.layers_mut() {
        convert_layer(layer);
    }
    Ok(manifest)
}

fn convert_layer(layer: &mut Descriptor) {
    if let Some((_, media_type)) = layer_compression(layer.media_type().as_ref()) {
        layer.set_media_type(media_type);
    }
}

/// How a layer of this media type is compressed, and what OCI calls it; `None` for what cannot be read.
pub(super) fn layer_compression(media_type: &str) -> Option<(Compression, MediaType)> {
    Some(match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => {
            (Compression::Plain, MediaType::ImageLayer)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            (Compression::Gzip, MediaType::ImageLayerGzip)
        }
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            (Compression::Zstd, MediaType::ImageLayerZstd)
        }
        _ => return None,
    })
}

impl IndexEntry {
    /// The digest of the document.
    pub(super) fn digest(&self) -> Result<Digest, LayoutError> {
        Ok(self.digest.parse()?)
    }

    /// The tag of the entry in an OCI layout directory.
    pub(super) fn ref_name(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        annotations
            .get("org.opencontainers.image.ref.name")
            .map(String::as_str)
    }

    /// Whether the entry can be an image, or lead to one.
    fn is_image(&self) -> bool {
        self.media_type.is_empty() || MANIFEST_TYPES.contains(&self.media_type.as_str())
    }

    fn platform_name(&self) -> String {
        match &self.platform {
            Some(Platform {
                architecture,
                os,
                variant: Some(variant),
            }) => shown(&format!("{os}/{architecture}/{variant}")),
            Some(Platform {
                architecture,
                os,
                variant: None,
            }) => shown(&format!("{os}/{architecture}")),
            None => "an image that does not say for what".to_owned(),
        }
    }
}

impl Index {
    /// Reads an index, also that of an OCI layout directory.
    pub(super) fn parse(bytes: &[u8]) -> Result<Index, LayoutError> {
        let value = serde_json::from_slice(bytes).map_err(|error| unreadable("index", &error))?;
        Index::from_value(value)
    }

    fn from_value(value: Value) -> Result<Index, LayoutError> {
        serde_json::from_value(value).map_err(|error| unreadable("index", &error))
    }
}

/// The entry for linux on this architecture, the best variant of several; the only entry, if it does not
/// say what it is for.
///
/// # Errors
/// [`LayoutError::NoPlatform`] naming what there is instead.
pub(super) fn select_platform<'a>(
    entries: &'a [IndexEntry],
    architecture: &str,
) -> Result<&'a IndexEntry, LayoutError> {
    let images: Vec<&IndexEntry> = entries.iter().filter(|entry| entry.is_image()).collect();
    if let [only] = images[..]
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let rank = |entry: &&&IndexEntry| {
        let platform = entry.platform.as_ref()?;
        let matches = platform.os == "linux" && platform.architecture == architecture;
        matches
            .then(|| variant_rank(architecture, platform.variant.as_deref()))
            .flatten()
    };
    let usable = images.iter().filter(|entry| rank(entry).is_some());
    usable.min_by_key(rank).copied().ok_or_else(|| {
        let offered: Vec<String> = images.iter().map(|entry| entry.platform_name()).collect();
        LayoutError::NoPlatform {
            wanted: format!("linux/{architecture}"),
            offered: if offered.is_empty() {
                "nothing".to_owned()
            } else {
                offered.join(", ")
            },
        }
    })
}

/// How good a variant is for any machine of the architecture, 0 is best; `None` for one that only some
/// machines can run, since an image that does not boot is worse than none.
fn variant_rank(architecture: &str, variant: Option<&str>) -> Option<u8> {
    match (architecture, variant.unwrap_or_default()) {
        ("amd64", "v1") | ("arm64", "v8") | ("arm", "v7") => Some(0),
        ("arm", "v6") => Some(2),
        ("arm", "v5") => Some(3),
        (_, "") => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::layout::Image;
    use super::super::test_images::{bytes, image, index};
    use super::*;

    fn parse(document: &Value) -> Result<Document, LayoutError> {
        Document::parse(&bytes(document))
    }

    #[test]
    fn docker_manifests_are_stored_in_oci_words_under_their_own_digest() {
        let mut docker = image("amd64", &[], &[b"a", b"b", b"c"]);
        docker.manifest["mediaType"] = json!(DOCKER_MANIFEST);
        docker.manifest["config"]["mediaType"] = json!(DOCKER_CONFIG);
        for (at, kind) in ["tar", "tar.gzip", "tar.zstd"].into_iter().enumerate() {
            let media_type = format!("application/vnd.docker.image.rootfs.diff.{kind}");
            docker.manifest["layers"][at]["mediaType"] = json!(media_type);
        }
        let served = bytes(&docker.manifest);
        let image = Image::parse(docker.digest(), None, &served, &bytes(&docker.config)).unwrap();
        assert_eq!(image.digest, Digest::of(&served));
        let stored: Value = serde_json::from_str(&image.manifest_json).unwrap();
        assert_eq!(stored["mediaType"], OCI_MANIFEST);
        assert_eq!(
            stored["config"]["mediaType"],
            "application/vnd.oci.image.config.v1+json"
        );
        for (at, kind) in ["tar", "tar+gzip", "tar+zstd"].into_iter().enumerate() {
            let media_type = format!("application/vnd.oci.image.layer.v1.{kind}");
            assert_eq!(stored["layers"][at]["mediaType"], media_type);
        }
        let compressions: Vec<_> = image.layers.iter().map(|layer| layer.compression).collect();
        assert_eq!(
            compressions,
            [Compression::Plain, Compression::Gzip, Compression::Zstd]
        );
    }

    #[test]
    fn a_manifest_without_media_type_stays_without() {
        let mut given = image("amd64", &[], &[b"a"]);
        given.manifest.as_object_mut().unwrap().remove("mediaType");
        let Ok(Document::Manifest(manifest)) = parse(&given.manifest) else {
            panic!("not a manifest");
        };
        assert_eq!(*manifest.media_type(), None);
    }

    #[test]
    fn other_documents_are_refused() {
        assert_eq!(
            parse(&json!({"schemaVersion": 1})).unwrap_err(),
            LayoutError::Schema1
        );
        for document in [
            json!({}),
            json!([]),
            json!({"schemaVersion": 3}),
            json!({"schemaVersion": 2}),
            json!({"schemaVersion": 2, "manifests": 7}),
            json!({"schemaVersion": 2, "manifests": [], "layers": []}),
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "config": {}}),
        ] {
            let result = parse(&document);
            assert!(
                matches!(result, Err(LayoutError::Unreadable { .. })),
                "{document}"
            );
        }
        assert!(matches!(
            Document::parse(b"\xff{"),
            Err(LayoutError::Unreadable { .. })
        ));
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert!(matches!(
            Document::parse(&deep),
            Err(LayoutError::Unreadable { .. })
        ));

        let mut artifact = image("amd64", &[], &[b"a"]).manifest;
        artifact["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        assert!(
            matches!(parse(&artifact), Err(LayoutError::NotAnImage(kind)) if kind.contains("helm"))
        );
        artifact["mediaType"] = json!("text/plain");
        assert!(matches!(parse(&artifact), Err(LayoutError::NotAnImage(_))));
    }

    fn choose(platforms: &[&str], architecture: &str) -> Result<String, LayoutError> {
        let documents: Vec<Value> = platforms.iter().map(|platform| json!(platform)).collect();
        let entries: Vec<_> = platforms.iter().copied().zip(&documents).collect();
        let Document::Index(index) = parse(&index(&entries))? else {
            panic!("not an index");
        };
        let chosen = select_platform(&index.manifests, architecture)?.digest()?;
        let position = documents
            .iter()
            .position(|document| Digest::of(&bytes(document)) == chosen);
        Ok(platforms[position.unwrap()].to_owned())
    }

    #[test]
    fn the_entry_for_this_machine_is_chosen() {
        let both = ["linux/arm64", "linux/amd64"];
        assert_eq!(choose(&both, "amd64").unwrap(), "linux/amd64");
        assert_eq!(choose(&both, "arm64").unwrap(), "linux/arm64");
        for (platforms, architecture, chosen) in [
            (
                &["windows/amd64", "linux/amd64"][..],
                "amd64",
                "linux/amd64",
            ),
            (&["unknown/unknown", "linux/amd64"], "amd64", "linux/amd64"),
            (
                &["linux/arm64/v9", "linux/arm64/v8"],
                "arm64",
                "linux/arm64/v8",
            ),
            (
                &["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"],
                "arm",
                "linux/arm/v7",
            ),
            (&["linux/amd64/v3", "linux/amd64"], "amd64", "linux/amd64"),
            (&["linux/s390x", "linux/s390x"], "s390x", "linux/s390x"),
        ] {
            assert_eq!(choose(platforms, architecture).unwrap(), chosen);
        }
    }

    #[test]
    fn without_one_the_choice_is_told() {
        for (platforms, offered) in [
            (
                &["linux/arm64/v8", "windows/amd64"][..],
                "linux/arm64/v8, windows/amd64",
            ),
            (&["linux/amd64/v3"], "linux/amd64/v3"),
            (&[], "nothing"),
        ] {
            let error = LayoutError::NoPlatform {
                wanted: "linux/amd64".into(),
                offered: offered.into(),
            };
            assert_eq!(choose(platforms, "amd64").unwrap_err(), error);
        }
    }

    #[test]
    fn a_sole_entry_need_not_say_what_it_is_for() {
        let manifest = image("amd64", &[], &[b"a"]).manifest;
        let mut document = index(&[("linux/amd64", &manifest)]);
        document["manifests"][0]
            .as_object_mut()
            .unwrap()
            .remove("platform");
        let Ok(Document::Index(sole)) = parse(&document) else {
            panic!("not an index");
        };
        assert!(select_platform(&sole.manifests, "s390x").is_ok());
    }
}
