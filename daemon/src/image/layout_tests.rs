//! Layouts as directories and as archives: what is found in them, and what is refused.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::layout::{Image, LayoutError, host_architecture};
use super::members::Handed;
use super::reference::{Digest, ImageReference};
use super::test_images::{TestImage, bytes, descriptor, image, index};
use super::{Error, RegistryConfig, Source, blob};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Layout {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        Layout(directory)
    }

    fn put(&self, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        std::fs::write(self.blob(&digest), content).unwrap();
        digest
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.0.path().join("blobs/sha256").join(digest.hex())
    }

    fn put_image(&self, image: &TestImage) -> Digest {
        for blob in &image.blobs {
            self.put(blob);
        }
        self.put(&bytes(&image.config));
        self.put(&bytes(&image.manifest))
    }

    fn write_index(&self, entries: &[Value]) {
        let document = json!({"schemaVersion": 2, "manifests": entries});
        std::fs::write(self.0.path().join("index.json"), bytes(&document)).unwrap();
    }

    fn source(&self, tag: &str) -> Source {
        let reference: ImageReference = format!("oci:{}{tag}", self.0.path().display())
            .parse()
            .unwrap();
        let config = RegistryConfig {
            max_manifest_bytes: 4096,
            ..RegistryConfig::default()
        };
        Source::open(&reference, &config).unwrap()
    }

    async fn resolve(&self, tag: &str) -> Result<Image, Error> {
        self.source(tag).resolve(None).await
    }
}

fn tagged(media_type: &str, document: &Value, tag: &str) -> Value {
    let mut entry = descriptor(media_type, &bytes(document));
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    entry
}

fn small(content: &[u8]) -> TestImage {
    image(host_architecture(), &[], &[content])
}

#[tokio::test]
async fn tags_digests_and_sole_images_are_found() {
    let layout = Layout::new();
    let (one, two) = (small(b"one"), small(b"two"));
    layout.put_image(&one);
    layout.put_image(&two);
    layout.write_index(&[descriptor(MANIFEST, &bytes(&one.manifest))]);
    assert_eq!(layout.resolve("").await.unwrap().digest, one.digest());

    let entries = [
        tagged(MANIFEST, &one.manifest, "1"),
        tagged(MANIFEST, &two.manifest, "2"),
    ];
    layout.write_index(&entries);
    assert_eq!(layout.resolve(":2").await.unwrap().digest, two.digest());
    let pinned = layout
        .source(":1")
        .resolve(Some(&two.digest()))
        .await
        .unwrap();
    assert_eq!(pinned.digest, two.digest());

    let error = layout.resolve("").await.unwrap_err();
    assert!(
        matches!(&error, Error::NotSupported(text) if text.ends_with(": 1, 2")),
        "{error}"
    );
    let error = layout.resolve(":3").await.unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { what } if what.ends_with("(there is 1, 2)")),
        "{error}"
    );
    let error = layout
        .source("")
        .resolve(Some(&Digest::of(b"gone")))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DigestGone { .. }), "{error}");
}

#[tokio::test]
async fn nested_indexes_lead_to_this_machine() {
    let layout = Layout::new();
    let (ours, other) = (small(b"ours"), image("vax", &[], &[b"other"]));
    layout.put_image(&ours);
    layout.put_image(&other);
    let platform = format!("linux/{}", host_architecture());
    let nested = index(&[("linux/vax", &other.manifest), (&platform, &ours.manifest)]);
    let index_digest = layout.put(&bytes(&nested));
    layout.write_index(&[tagged(INDEX, &nested, "os")]);
    for found in [
        layout.resolve(":os").await.unwrap(),
        layout
            .source(":os")
            .resolve(Some(&index_digest))
            .await
            .unwrap(),
    ] {
        assert_eq!(found.digest, ours.digest());
        assert_eq!(found.index_digest.as_ref(), Some(&index_digest));
    }
    // The platform's own manifest, asked for directly, has nothing to do with the index.
    let found = layout
        .source(":os")
        .resolve(Some(&ours.digest()))
        .await
        .unwrap();
    assert_eq!(found.index_digest, None);

    let foreign = index(&[("linux/vax", &other.manifest)]);
    layout.put(&bytes(&foreign));
    layout.write_index(&[tagged(INDEX, &foreign, "os")]);
    let error = layout.resolve(":os").await.unwrap_err();
    assert!(
        matches!(error, Error::Invalid(LayoutError::NoPlatform { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn indexes_that_never_end_are_given_up_on() {
    let layout = Layout::new();
    let platform = format!("linux/{}", host_architecture());
    let mut document = small(b"deep").manifest;
    for _ in 0..4 {
        layout.put(&bytes(&document));
        document = index(&[(&platform, &document)]);
    }
    layout.put(&bytes(&document));
    layout.write_index(&[descriptor(INDEX, &bytes(&document))]);
    let error = layout.resolve("").await.unwrap_err();
    assert!(
        matches!(error, Error::Invalid(LayoutError::Unreadable { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn blobs_stream_in_chunks() {
    let layout = Layout::new();
    let content = b"0123456789abcdef".repeat(50_000);
    let given = small(&content);
    layout.put_image(&given);
    layout.write_index(&[descriptor(MANIFEST, &bytes(&given.manifest))]);
    let source = layout.source("");
    let found = source.resolve(None).await.unwrap();
    let stream = source.blob(&found.layers[0], 0).await.unwrap();
    assert_eq!(blob::collect(stream).await.unwrap(), content);
    let rest = source.blob(&found.layers[0], 700_000).await.unwrap();
    assert_eq!(blob::collect(rest).await.unwrap(), content[700_000..]);
    assert!(source.has_parts());
    let part = source.part(&found.layers[0], 3..300_000).await.unwrap();
    assert_eq!(blob::collect(part).await.unwrap(), content[3..300_000]);

    let path = layout.blob(&found.layers[0].digest);
    std::fs::write(&path, &content[1..]).unwrap();
    let error = source.blob(&found.layers[0], 0).await.err().unwrap();
    assert!(
        matches!(error, Error::Invalid(LayoutError::BlobSize { .. })),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
    let error = source.blob(&found.layers[0], 0).await.err().unwrap();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    std::fs::create_dir(&path).unwrap();
    let error = source.blob(&found.layers[0], 0).await.err().unwrap();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[tokio::test]
async fn changed_long_and_missing_documents_are_refused() {
    let layout = Layout::new();
    let error = layout.resolve("").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");

    let given = small(b"one");
    let digest = layout.put_image(&given);
    layout.write_index(&[descriptor(MANIFEST, &bytes(&given.manifest))]);
    std::fs::write(layout.blob(&digest), b"{}").unwrap();
    let error = layout.resolve("").await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::DigestMismatch {
                what: "manifest",
                ..
            }
        ),
        "{error}"
    );

    std::fs::write(layout.blob(&digest), b" ".repeat(4097)).unwrap();
    let error = layout.resolve("").await.unwrap_err();
    assert!(
        matches!(error, Error::Invalid(LayoutError::Unreadable { .. })),
        "{error}"
    );

    std::fs::write(layout.0.path().join("index.json"), "{").unwrap();
    let error = layout.resolve("").await.unwrap_err();
    assert!(
        matches!(error, Error::Invalid(LayoutError::Unreadable { .. })),
        "{error}"
    );
    layout.write_index(&[]);
    let error = layout.resolve("").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn bad_digests_in_the_index_open_no_file() {
    let layout = Layout::new();
    let mut entry = descriptor(MANIFEST, b"");
    entry["digest"] = json!("sha256:../../../../etc/passwd");
    layout.write_index(&[entry]);
    let error = layout.resolve("").await.unwrap_err();
    assert!(
        matches!(error, Error::Invalid(LayoutError::Digest(_))),
        "{error}"
    );
}

/// The same layout as a tar.
fn packed(layout: &Layout) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all("./", layout.0.path()).unwrap();
    builder.into_inner().unwrap()
}

fn config() -> RegistryConfig {
    RegistryConfig {
        max_manifest_bytes: 4096,
        ..RegistryConfig::default()
    }
}

#[tokio::test]
async fn archives_are_read_where_they_lie_and_compressed_ones_too() {
    let layout = Layout::new();
    let content = b"0123456789abcdef".repeat(50_000);
    let (one, two) = (small(&content), small(b"two"));
    layout.put_image(&one);
    layout.put_image(&two);
    let entries = [
        tagged(MANIFEST, &one.manifest, "1"),
        tagged(MANIFEST, &two.manifest, "2"),
    ];
    layout.write_index(&entries);
    let tar = packed(&layout);
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("os.tar", tar.clone()),
        ("os.tar.zst", zstd::encode_all(tar.as_slice(), 1).unwrap()),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let source = |tag: &str| {
            let name = format!("oci-archive:{}{tag}", path.display());
            Source::open(&name.parse().unwrap(), &config()).unwrap()
        };
        let found = source(":1").resolve(None).await.unwrap();
        assert_eq!(found.digest, one.digest());
        let same = source(":2").resolve(Some(&one.digest())).await.unwrap();
        assert_eq!(same.digest, one.digest());
        let source = source(":1");
        source.resolve(None).await.unwrap();
        // Everything is read through the file that is open, wherever its name leads now.
        std::fs::remove_file(&path).unwrap();
        let stream = source.blob(&found.layers[0], 0).await.unwrap();
        assert_eq!(blob::collect(stream).await.unwrap(), content);
    }
    let gone = format!("oci-archive:{}/os.tar", directory.path().display());
    let error = Source::open(&gone.parse().unwrap(), &config()).unwrap();
    let error = error.resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn what_is_handed_over_is_read_through_its_descriptor() {
    let layout = Layout::new();
    let (one, two) = (small(b"one"), small(b"two"));
    layout.put_image(&one);
    layout.put_image(&two);
    let entries = [
        tagged(MANIFEST, &one.manifest, "1"),
        tagged(MANIFEST, &two.manifest, "2"),
    ];
    layout.write_index(&entries);
    let path = layout.0.path().join("os.tar");
    std::fs::write(&path, packed(&layout)).unwrap();
    let open = |path: &std::path::Path| {
        let file = std::fs::File::open(path).unwrap();
        Handed::new(file.into(), PathBuf::from("/home/user/os")).unwrap()
    };
    for handed in [open(&path), open(layout.0.path())] {
        let source = Source::handed(&handed, Some("2"), &config());
        let found = source.resolve(None).await.unwrap();
        assert_eq!(found.digest, two.digest());
        let stream = source.blob(&found.layers[0], 0).await.unwrap();
        assert_eq!(blob::collect(stream).await.unwrap(), b"two".as_slice());
        let error = Source::handed(&handed, None, &config()).resolve(None).await;
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("/home/user/os holds several images") && error.ends_with(": 1, 2"),
            "{error}"
        );
        let error = Source::handed(&handed, Some("3"), &config())
            .resolve(None)
            .await;
        assert!(matches!(error, Err(Error::NotFound { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_archive_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("os.tar");
    std::fs::write(&path, "no tar at all".repeat(100)).unwrap();
    for name in [
        format!("oci-archive:{}", path.display()),
        format!("oci-archive:{}", directory.path().display()),
    ] {
        let source = Source::open(&name.parse().unwrap(), &config()).unwrap();
        let error = source.resolve(None).await.unwrap_err();
        assert!(
            matches!(&error, Error::Invalid(_) | Error::Io { .. })
                && error
                    .to_string()
                    .contains(&*directory.path().to_string_lossy()),
            "{error}"
        );
    }
}
