//! What an image consists of, and what its labels say.
//!
//! Pure. Invariants: an [`Image`] that came from [`Image::parse`] matched its digests, has as many
//! layers as its configuration has diff_ids, and only layers in a compression that can be read. The
//! JSON it carries is what goes into a merge commit, in the form that every tool on the host reads.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use serde::Serialize;

pub use super::invalid::LayoutError;
use super::layer::{Layer, layers, layers_without_config};
use super::manifest::Document;
use super::reference::Digest;
use super::rfc3339;

/// Config labels, one of which a bootable image has.
const LABELS_BOOTABLE: [&str; 2] = ["containers.bootc", "ostree.bootable"];
/// Config labels that carry a version, the first wins.
const LABELS_VERSION: [&str; 2] = ["org.opencontainers.image.version", "version"];
/// Config label in which builders of bootable images write the release of the kernel.
const LABEL_KERNEL: &str = "ostree.linux";
/// Annotation of the manifest and label of the configuration: when the image was built.
const CREATED: &str = "org.opencontainers.image.created";

/// The image for one platform, as its manifest and configuration describe it.
#[derive(Clone)]
pub struct Image {
    /// Of the platform's manifest as the registry serves it.
    pub digest: Digest,
    /// Of the index that the manifest was found through, if it was.
    pub index_digest: Option<Digest>,
    /// The manifest in OCI form as canonical JSON (sorted keys, no whitespace): `ostree.manifest`.
    pub manifest_json: String,
    /// The configuration as canonical JSON: `ostree.container.image-config`.
    pub config_json: String,
    /// In the order of the manifest, bottom first; the same digest may occur more than once.
    pub layers: Vec<Layer>,
    /// Of the configuration as the registry serves it.
    pub config_digest: Digest,
    /// Of the configuration.
    pub labels: BTreeMap<String, String>,
    /// Of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// OCI name (`amd64`, `arm64`); empty when a commit lacks the configuration.
    pub architecture: String,
    /// Unix seconds: the annotation of the manifest, else the time of the configuration.
    pub created: Option<u64>,
}

impl fmt::Debug for Image {
    // The two documents are long, and say nothing that is not in the other fields.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("digest", &self.digest)
            .field("index_digest", &self.index_digest)
            .field("layers", &self.layers.len())
            .field("architecture", &self.architecture)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Reads a manifest and its configuration, both as the registry serves them.
    ///
    /// # Errors
    /// Any [`LayoutError`] but `NoPlatform`, `NotBootable` and `Architecture`.
    pub fn parse(
        digest: Digest,
        index_digest: Option<Digest>,
        manifest_bytes: &[u8],
        config_bytes: &[u8],
    ) -> Result<Image, LayoutError> {
        verify("manifest", &digest, manifest_bytes)?;
        let Document::Manifest(manifest) = Document::parse(manifest_bytes)? else {
            return Err(LayoutError::NotAnImage("image index".to_owned()));
        };
        let config_digest = digest_of(manifest.config())?;
        verify("configuration", &config_digest, config_bytes)?;
        let config: ImageConfiguration = serde_json::from_slice(config_bytes)
            .map_err(|error| unreadable("configuration", &error))?;
        let layers = layers(&manifest, &config)?;
        let manifest_json = canonical_json("manifest", &manifest)?;
        let config_json = canonical_json("configuration", &config)?;
        Ok(Image {
            index_digest,
            layers,
            ..Image::describe(
                digest,
                config_digest,
                &manifest,
                Some(&config),
                manifest_json,
                config_json,
            )
        })
    }

    /// Reads back what a merge commit carries, whoever wrote it.
    ///
    /// Tolerant where [`Image::parse`] is strict, since the image is here already: a missing
    /// configuration (`null`, from early importers) leaves labels empty and every layer plain.
    ///
    /// # Errors
    /// [`LayoutError::Digest`] and [`LayoutError::Unreadable`] when even the list of layers cannot be told.
    pub fn from_commit_metadata(
        digest: &str,
        manifest_json: &str,
        config_json: &str,
    ) -> Result<Image, LayoutError> {
        let digest: Digest = digest.parse()?;
        let manifest: ImageManifest =
            serde_json::from_str(manifest_json).map_err(|error| unreadable("manifest", &error))?;
        let config: Option<ImageConfiguration> = serde_json::from_str(config_json)
            .map_err(|error| unreadable("configuration", &error))?;
        let config_digest = digest_of(manifest.config())?;
        let known = config
            .as_ref()
            .and_then(|config| layers(&manifest, config).ok());
        let layers = match known {
            Some(layers) => layers,
            None => layers_without_config(&manifest)?,
        };
        let (manifest_json, config_json) = (manifest_json.to_owned(), config_json.to_owned());
        Ok(Image {
            layers,
            ..Image::describe(
                digest,
                config_digest,
                &manifest,
                config.as_ref(),
                manifest_json,
                config_json,
            )
        })
    }

    /// Everything but the layers.
    fn describe(
        digest: Digest,
        config_digest: Digest,
        manifest: &ImageManifest,
        config: Option<&ImageConfiguration>,
        manifest_json: String,
        config_json: String,
    ) -> Image {
        let annotations: BTreeMap<String, String> =
            manifest.annotations().iter().flatten().map(owned).collect();
        let config_created = config
            .and_then(|config| config.created().as_deref())
            .and_then(rfc3339::unix_seconds);
        let annotated = annotations
            .get(CREATED)
            .and_then(|text| rfc3339::unix_seconds(text));
        Image {
            digest,
            index_digest: None,
            manifest_json,
            config_json,
            layers: Vec::new(),
            config_digest,
            labels: config.map(labels).unwrap_or_default(),
            annotations,
            architecture: config
                .map(|config| config.architecture().to_string())
                .unwrap_or_default(),
            created: annotated.or(config_created),
        }
    }

    /// The digest that its reference was served under: that of the index that led to it, if one did.
    pub fn served(&self) -> &Digest {
        self.index_digest.as_ref().unwrap_or(&self.digest)
    }

    /// The version for display, if the image states one.
    pub fn version(&self) -> Option<&str> {
        // It becomes part of boot entries.
        let label = |name: &&str| self.labels.get(*name)?.lines().next();
        LABELS_VERSION.iter().find_map(label)
    }

    /// The release of the kernel, if the image states it.
    pub fn kernel(&self) -> Option<&str> {
        self.labels.get(LABEL_KERNEL)?.lines().next()
    }

    /// The time for display, Unix seconds: the label of the configuration, else [`Image::created`], which is
    /// the time that a merge commit gets.
    pub fn timestamp(&self) -> Option<u64> {
        let label = self
            .labels
            .get(CREATED)
            .and_then(|text| rfc3339::unix_seconds(text));
        label.or(self.created)
    }

    /// Bytes of all layers as they are transferred, each counted once.
    pub fn total_size(&self) -> u64 {
        let sizes = self.unique_layers().into_iter().map(|layer| layer.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// The layers without repetitions, in the order of the manifest.
    pub fn unique_layers(&self) -> Vec<&Layer> {
        let mut seen = HashSet::new();
        self.layers
            .iter()
            .filter(|layer| seen.insert(&layer.digest))
            .collect()
    }

    /// Refuses an image that this machine could not boot.
    ///
    /// # Errors
    /// [`LayoutError::NotBootable`] without one of the two labels that say so,
    /// [`LayoutError::Architecture`] when it is for another kind of machine.
    pub fn require_bootable(&self, host_arch: &str) -> Result<(), LayoutError> {
        if !LABELS_BOOTABLE
            .iter()
            .any(|label| self.labels.contains_key(*label))
        {
            return Err(LayoutError::NotBootable);
        }
        if self.architecture != host_arch {
            return Err(LayoutError::Architecture {
                image: self.architecture.clone(),
                host: host_arch.to_owned(),
            });
        }
        Ok(())
    }
}

/// The architecture of this machine as OCI calls it: `amd64`, `arm64`, …
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

fn owned((key, value): (&String, &String)) -> (String, String) {
    (printable(key), printable(value))
}

/// Without control characters, of which a bus takes no zero and a terminal none; texts of several
/// lines are usual.
fn printable(text: &str) -> String {
    let is_shown = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(is_shown).collect()
}

/// The labels of the configuration.
pub(super) fn labels(config: &ImageConfiguration) -> BTreeMap<String, String> {
    let labels = config
        .config()
        .as_ref()
        .and_then(|config| config.labels().as_ref());
    labels.into_iter().flatten().map(owned).collect()
}

/// Refuses bytes that are not the ones named.
pub(super) fn verify(
    what: &'static str,
    expected: &Digest,
    bytes: &[u8],
) -> Result<(), LayoutError> {
    let actual = Digest::of(bytes);
    if actual == *expected {
        return Ok(());
    }
    Err(LayoutError::DigestMismatch {
        what,
        expected: expected.clone(),
        actual,
    })
}

pub(super) fn unreadable(what: &'static str, error: &serde_json::Error) -> LayoutError {
    LayoutError::Unreadable {
        what,
        reason: error.to_string(),
    }
}

pub(super) fn digest_of(descriptor: &Descriptor) -> Result<Digest, LayoutError> {
    Ok(descriptor.digest().as_ref().parse()?)
}

/// Sorted keys, no whitespace. serde_json's map is a sorted one unless a crate in the tree asks for
/// insertion order, which a test below would notice.
fn canonical_json(what: &'static str, document: &impl Serialize) -> Result<String, LayoutError> {
    serde_json::to_value(document)
        .and_then(|value| serde_json::to_string(&value))
        .map_err(|error| unreadable(what, &error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::layer::Compression;
    use super::super::test_images::{TestImage, bytes, diff_id, image};
    use super::*;

    const BOOTABLE: (&str, &str) = ("containers.bootc", "1");

    fn parse(image: &TestImage) -> Result<Image, LayoutError> {
        Image::parse(
            image.digest(),
            None,
            &bytes(&image.manifest),
            &bytes(&image.config),
        )
    }

    #[test]
    fn an_image_is_what_its_documents_say() {
        let given = image("amd64", &[BOOTABLE, ("version", "7")], &[b"one", b"two"]);
        let image = parse(&given).unwrap();
        assert_eq!(image.digest, given.digest());
        assert_eq!(image.config_digest, Digest::of(&bytes(&given.config)));
        assert_eq!(image.architecture, "amd64");
        assert_eq!(image.total_size(), 6);
        let layer = &image.layers[1];
        assert_eq!(
            (layer.index, layer.size, layer.compression),
            (1, 3, Compression::Gzip)
        );
        assert_eq!(layer.digest, Digest::of(b"two"));
        assert_eq!(layer.diff_id.as_str(), diff_id(b"two"));
        assert_eq!(image.require_bootable("amd64"), Ok(()));
        assert!(matches!(
            image.require_bootable("arm64"),
            Err(LayoutError::Architecture { .. })
        ));
    }

    #[test]
    fn the_stored_json_is_canonical_and_reads_back() {
        let given = image("amd64", &[BOOTABLE, ("a", "b")], &[b"one"]);
        let image = parse(&given).unwrap();
        assert!(
            image
                .manifest_json
                .starts_with(r#"{"config":{"digest":"sha256:"#)
        );
        assert!(image.config_json.starts_with(
            r#"{"architecture":"amd64","config":{"Labels":{"a":"b","containers.bootc":"1"}},"created":"#
        ));
        for json in [&image.manifest_json, &image.config_json] {
            // Whoever lets a crate switch on serde_json's preserve_order hears of it here.
            assert!(!json.contains(char::is_whitespace), "{json}");
            let sorted: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(*json, serde_json::to_string(&sorted).unwrap());
        }
        let read = Image::from_commit_metadata(
            image.digest.as_str(),
            &image.manifest_json,
            &image.config_json,
        );
        let read = read.unwrap();
        assert_eq!(read.layers, image.layers);
        assert_eq!((read.digest, read.labels), (image.digest, image.labels));
        assert_eq!(
            (read.created, read.config_digest),
            (image.created, image.config_digest)
        );
    }

    #[test]
    fn metadata_without_configuration_still_names_the_layers() {
        let image = parse(&image("amd64", &[BOOTABLE], &[b"one", b"two"])).unwrap();
        let digest = image.digest.as_str();
        let read = Image::from_commit_metadata(digest, &image.manifest_json, "null").unwrap();
        let digests: Vec<_> = read
            .layers
            .iter()
            .map(|layer| layer.digest.clone())
            .collect();
        assert_eq!(digests, [Digest::of(b"one"), Digest::of(b"two")]);
        assert!(read.labels.is_empty() && read.architecture.is_empty());
        assert!(Image::from_commit_metadata("sha256:1", &image.manifest_json, "null").is_err());
        assert!(Image::from_commit_metadata(digest, "{}", "null").is_err());
    }

    #[test]
    fn bytes_that_do_not_match_their_digest_are_refused() {
        let mut given = image("amd64", &[], &[b"one"]);
        let result = Image::parse(Digest::of(b""), None, &bytes(&given.manifest), b"");
        assert!(matches!(
            result,
            Err(LayoutError::DigestMismatch {
                what: "manifest",
                ..
            })
        ));
        given.config["author"] = json!("someone else");
        assert!(matches!(
            parse(&given),
            Err(LayoutError::DigestMismatch {
                what: "configuration",
                ..
            })
        ));
        given.manifest["config"]["digest"] = json!("sha256:12");
        assert!(matches!(
            parse(&given),
            Err(LayoutError::Digest(_) | LayoutError::Unreadable { .. })
        ));
    }

    #[test]
    fn documents_that_disagree_are_refused() {
        let mut given = image("amd64", &[], &[b"one", b"two"]);
        given.config["rootfs"]["diff_ids"] = json!([diff_id(b"one")]);
        let error = LayoutError::LayerCount {
            layers: 2,
            diff_ids: 1,
        };
        assert_eq!(parse(&given.sealed()).unwrap_err(), error);

        let mut given = image("amd64", &[], &[b"one"]);
        given.config["rootfs"]["diff_ids"] = json!(["sha256:../../x"]);
        assert!(matches!(
            parse(&given.sealed()),
            Err(LayoutError::Digest(_))
        ));

        let mut given = image("amd64", &[], &[b"one"]);
        given.manifest["layers"][0]["mediaType"] = json!("application/x-tar");
        assert!(matches!(
            parse(&given),
            Err(LayoutError::LayerMediaType { .. })
        ));

        assert_eq!(
            parse(&image("amd64", &[], &[])).unwrap_err(),
            LayoutError::NoLayers
        );

        let mut given = image("amd64", &[], &[b"one"]);
        given.config = json!([1, 2]);
        assert!(matches!(
            parse(&given.sealed()),
            Err(LayoutError::Unreadable { .. })
        ));
    }

    #[test]
    fn layers_may_repeat_and_are_fetched_once() {
        let image = parse(&image("amd64", &[], &[b"a", b"empty", b"b", b"empty"])).unwrap();
        assert_eq!(image.layers.len(), 4);
        let unique: Vec<usize> = image
            .unique_layers()
            .iter()
            .map(|layer| layer.index)
            .collect();
        assert_eq!(unique, [0, 1, 2]);
        assert_eq!(image.total_size(), 7);
    }

    #[test]
    fn versions_and_times_come_from_where_other_tools_look() {
        let mut given = image("amd64", &[("version", "1")], &[b"a"]);
        let plain = parse(&given).unwrap();
        assert_eq!(plain.version(), Some("1"));
        assert_eq!(
            (plain.created, plain.timestamp()),
            (Some(1_767_323_045), Some(1_767_323_045))
        );

        given.manifest["annotations"] = json!({CREATED: "1970-01-01T00:00:07Z"});
        let annotated = parse(&given).unwrap();
        assert_eq!(
            (annotated.created, annotated.timestamp()),
            (Some(7), Some(7))
        );
        given.manifest["annotations"] = json!({CREATED: "yesterday"});
        assert_eq!(parse(&given).unwrap().created, Some(1_767_323_045));

        let labels = [
            (LABELS_VERSION[0], "2"),
            ("version", "1"),
            (CREATED, "1970-01-01T00:00:09Z"),
        ];
        let mut given = image("amd64", &labels, &[b"a"]);
        given.config["created"] = json!(null);
        let labelled = parse(&given.sealed()).unwrap();
        assert_eq!(labelled.version(), Some("2"));
        assert_eq!((labelled.created, labelled.timestamp()), (None, Some(9)));
    }

    #[test]
    fn labels_are_fit_for_a_bus_and_a_boot_entry() {
        let labels = [
            ("version", "1\0\u{1b}[1m\noptions init=/x"),
            ("a\0b", "two\nlines"),
        ];
        let image = parse(&image("amd64", &labels, &[b"a"])).unwrap();
        assert_eq!(image.version(), Some("1[1m"));
        assert_eq!(image.labels["ab"], "two\nlines");
        let is_bad = |text: &String| text.contains(['\0', '\u{1b}']);
        assert!(
            !image
                .labels
                .iter()
                .any(|(key, value)| is_bad(key) || is_bad(value))
        );
    }

    #[test]
    fn either_label_makes_an_image_bootable() {
        for (labels, bootable) in [
            (&[BOOTABLE][..], true),
            (&[("ostree.bootable", "true")], true),
            (&[("containers.other", "1")], false),
        ] {
            let result = parse(&image("amd64", labels, &[b"a"]))
                .unwrap()
                .require_bootable("amd64");
            assert_eq!(result.is_ok(), bootable);
            assert!(bootable || result == Err(LayoutError::NotBootable));
        }
    }

    #[test]
    fn this_machine_has_an_oci_name() {
        assert!(!["x86_64", "aarch64", "x86"].contains(&host_architecture()));
    }
}
