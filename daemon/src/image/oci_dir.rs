//! Images in an OCI layout directory on this host: `index.json` and `blobs/sha256/…`.
//!
//! Invariants: only paths made from validated digests are opened, only regular files are read, and every
//! wait is one of tokio's file pool, never of an executor thread.

use std::io;
use std::path::{Path, PathBuf};

use futures_util::stream;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::bytes::{Bytes, BytesMut};

use super::layout::{LayoutError, host_architecture, verify};
use super::manifest::{Index, IndexEntry, select_platform};
use super::reference::Digest;
use super::{ByteStream, Error, RawDocument, blob};

/// Bytes per read: large enough that the way to the file pool and back does not matter.
const CHUNK: usize = 256 << 10;

/// One image in a layout directory.
#[derive(Debug)]
pub(super) struct OciDir {
    directory: PathBuf,
    tag: Option<String>,
    max_manifest_bytes: u64,
}

impl OciDir {
    pub(super) fn new(directory: &Path, tag: Option<&str>, max_manifest_bytes: u64) -> OciDir {
        OciDir {
            directory: directory.to_owned(),
            tag: tag.map(str::to_owned),
            max_manifest_bytes,
        }
    }

    /// Longest document that is read into memory, in bytes.
    pub(super) fn max_manifest_bytes(&self) -> u64 {
        self.max_manifest_bytes
    }

    /// The manifest or index of this digest, or the one that the tag names.
    pub(super) async fn document(&self, digest: Option<&Digest>) -> Result<RawDocument, Error> {
        let digest = match digest {
            Some(digest) => digest.clone(),
            None => self.named_document().await?,
        };
        let path = self.blob_path(&digest);
        let bytes = match self.read_document(&path).await {
            Err(Error::NotFound { .. }) => {
                let image = self.name();
                return Err(Error::DigestGone { image, digest });
            }
            read => read?,
        };
        verify("manifest", &digest, &bytes)?;
        Ok(RawDocument { digest, bytes })
    }

    /// The blob of this digest, which must have this many bytes.
    pub(super) async fn blob(&self, digest: &Digest, size: u64) -> Result<ByteStream, Error> {
        let path = self.blob_path(digest);
        let (file, actual) = open(&path).await?;
        let digest = digest.clone();
        let wrong_size = move |actual| {
            Error::Invalid(LayoutError::BlobSize {
                digest: digest.clone(),
                expected: size,
                actual,
            })
        };
        if actual != size {
            return Err(wrong_size(actual));
        }
        Ok(blob::sized(read_chunks(file, path), size, wrong_size))
    }

    fn name(&self) -> String {
        match &self.tag {
            Some(tag) => format!("oci:{}:{tag}", self.directory.display()),
            None => format!("oci:{}", self.directory.display()),
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.hex())
    }

    /// The digest that `index.json` gives for the tag, or for its only entry.
    async fn named_document(&self) -> Result<Digest, Error> {
        let bytes = self
            .read_document(&self.directory.join("index.json"))
            .await?;
        let index = Index::parse(&bytes)?;
        Ok(self.choose(&index)?.digest()?)
    }

    fn choose<'a>(&self, index: &'a Index) -> Result<&'a IndexEntry, Error> {
        let entries = &index.manifests;
        let Some(tag) = &self.tag else {
            return match &entries[..] {
                [only] => Ok(only),
                [] => Err(Error::NotFound {
                    what: format!("an image in {}", self.name()),
                }),
                _ => Err(Error::NotSupported(format!(
                    "{} holds several images; add the tag of one: {}",
                    self.name(),
                    tags(entries)
                ))),
            };
        };
        let tagged: Vec<IndexEntry> = entries
            .iter()
            .filter(|entry| entry.ref_name() == Some(tag))
            .cloned()
            .collect();
        let chosen = match &tagged[..] {
            [] => {
                let what = format!("{} (there is {})", self.name(), tags(entries));
                return Err(Error::NotFound { what });
            }
            [only] => only,
            // One tag on an image for each of several platforms.
            several => select_platform(several, host_architecture())?,
        };
        let position = entries.iter().position(|entry| entry == chosen);
        position
            .map(|at| &entries[at])
            .ok_or_else(|| Error::NotFound { what: self.name() })
    }

    async fn read_document(&self, path: &Path) -> Result<Bytes, Error> {
        let (file, size) = open(path).await?;
        let limit = self.max_manifest_bytes;
        let mut bytes = Vec::new();
        let read = file
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .await;
        read.map_err(|source| io_error(path, source))?;
        if size > limit || bytes.len() as u64 > limit {
            return Err(Error::Invalid(LayoutError::Unreadable {
                what: "manifest",
                reason: format!(
                    "{} is longer than the {limit} bytes allowed",
                    path.display()
                ),
            }));
        }
        Ok(bytes.into())
    }
}

fn tags(entries: &[IndexEntry]) -> String {
    let tags: Vec<&str> = entries.iter().filter_map(IndexEntry::ref_name).collect();
    if tags.is_empty() {
        "none with a tag".to_owned()
    } else {
        tags.join(", ")
    }
}

/// Opens a regular file; anything else could block, or never end.
async fn open(path: &Path) -> Result<(File, u64), Error> {
    let failed = |source| io_error(path, source);
    let metadata = tokio::fs::metadata(path).await.map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    let mut file = File::open(path).await.map_err(failed)?;
    file.set_max_buf_size(CHUNK);
    Ok((file, metadata.len()))
}

fn io_error(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NotFound {
            what: path.display().to_string(),
        },
        _ => Error::Io {
            path: path.to_owned(),
            source,
        },
    }
}

fn read_chunks(file: File, path: PathBuf) -> ByteStream {
    Box::pin(stream::try_unfold(
        (file, path),
        |(mut file, path)| async move {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            match file.read_buf(&mut chunk).await {
                Ok(0) => Ok(None),
                Ok(_) => Ok(Some((chunk.freeze(), (file, path)))),
                Err(source) => Err(io_error(&path, source)),
            }
        },
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::layout::{Image, host_architecture};
    use super::super::reference::ImageReference;
    use super::super::test_images::{TestImage, bytes, descriptor, image, index};
    use super::super::{RegistryConfig, Source};
    use super::*;

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
        let stream = source.blob(&found.layers[0]).await.unwrap();
        assert_eq!(blob::collect(stream).await.unwrap(), content);

        let path = layout.blob(&found.layers[0].digest);
        std::fs::write(&path, &content[1..]).unwrap();
        let error = source.blob(&found.layers[0]).await.err().unwrap();
        assert!(
            matches!(error, Error::Invalid(LayoutError::BlobSize { .. })),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        let error = source.blob(&found.layers[0]).await.err().unwrap();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        std::fs::create_dir(&path).unwrap();
        let error = source.blob(&found.layers[0]).await.err().unwrap();
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
}
