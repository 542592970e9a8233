//! OCI images without ostree: names, manifests, and the bytes of layers from wherever they are.
//!
//! The one way in is a [`Source`]: it resolves a reference to the [`layout::Image`] for this machine and
//! streams its blobs. Invariants: every manifest, index and configuration was hashed and compared before
//! anything reads it; blobs have the size that the manifest says and are hashed by whoever consumes them,
//! once; nothing here blocks the executor, and no credential reaches an error, a log line or `Debug`.

mod auth;
mod blob;
mod invalid;
pub mod layout;
mod manifest;
mod oci_dir;
mod origin;
pub mod ref_name;
pub mod reference;
mod registry;
mod rfc3339;
mod session;

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
pub use tokio_util::bytes::Bytes;

use self::layout::{Image, Layer, LayoutError, host_architecture};
use self::manifest::{Document, select_platform};
use self::oci_dir::OciDir;
use self::reference::{Digest, ImageReference, ReferenceError};
use self::registry::Registry;

/// An index can lead to another one; real ones do so at most once.
const MAX_INDEX_DEPTH: usize = 3;

/// The bytes of a blob as they arrive. After the first error nothing more comes.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// Why an image, or a part of it, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry wants other credentials than it was given.
    #[error("no access to {host}: {reason}")]
    Auth {
        /// The registry.
        host: String,
        /// What it said, and where credentials were looked for.
        reason: String,
    },
    /// No connection, or one that broke or stalled, or a registry that is overloaded. Worth another try.
    #[error("{host} cannot be reached: {reason}; check the network and try again")]
    Unreachable {
        /// The registry.
        host: String,
        /// What went wrong on the way.
        reason: String,
    },
    /// There is no image, or no blob, of this name.
    #[error("{what} does not exist; check the name")]
    NotFound {
        /// Its name.
        what: String,
    },
    /// The image of this digest was there once, or never.
    #[error(
        "{image} has no manifest {digest} (any more); ask for another digest, or for none at all"
    )]
    DigestGone {
        /// Where it was looked for.
        image: String,
        /// What was looked for.
        digest: Digest,
    },
    /// Other bytes than those asked for.
    #[error("the {what} has the digest {actual} instead of {expected}")]
    DigestMismatch {
        /// Manifest or configuration.
        what: &'static str,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The registry answered with something that makes no sense.
    #[error("{host} does not behave like a registry: {reason}")]
    Protocol {
        /// The registry.
        host: String,
        /// What it answered.
        reason: String,
    },
    /// What was found is not an image that can be imported here.
    #[error(transparent)]
    Invalid(LayoutError),
    /// The name of the image makes no sense.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A file on this host cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something that would be needed and does not exist here.
    #[error("{0}")]
    NotSupported(String),
    /// Someone changed their mind.
    #[error("the transfer was cancelled")]
    Cancelled,
}

impl Error {
    /// Whether the same request can succeed a little later without anyone doing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Unreachable { .. })
    }
}

impl From<LayoutError> for Error {
    fn from(error: LayoutError) -> Error {
        match error {
            LayoutError::DigestMismatch {
                what,
                expected,
                actual,
            } => Error::DigestMismatch {
                what,
                expected,
                actual,
            },
            other => Error::Invalid(other),
        }
    }
}

/// How to deal with registries.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Registries spoken to in plain HTTP, as `HOST[:PORT]` like in a reference. Loopback always is.
    pub insecure: Vec<String>,
    /// Longest time to establish a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest time without a byte before a transfer counts as stalled.
    pub read_timeout: Duration,
    /// Longest manifest, index or configuration that is read, in bytes.
    pub max_manifest_bytes: u64,
    /// Where credentials are: the first file that exists is the only one read.
    pub auth_files: Vec<PathBuf>,
    /// How requests introduce themselves.
    pub user_agent: String,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        RegistryConfig {
            insecure: Vec::new(),
            connect_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
            max_manifest_bytes: 4 << 20,
            auth_files: ["/run/ostree", "/etc/ostree", "/usr/lib/ostree"]
                .map(|directory| PathBuf::from(directory).join("auth.json"))
                .to_vec(),
            user_agent: session::USER_AGENT.to_owned(),
        }
    }
}

/// Where one image comes from. Clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Source {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    Registry(Arc<Registry>),
    Directory(Arc<OciDir>),
}

/// A manifest or an index as it was served, and its digest, which was compared if one was asked for.
#[derive(Debug)]
struct RawDocument {
    digest: Digest,
    bytes: Bytes,
}

impl Source {
    /// Prepares to read an image; nothing is connected to or opened yet.
    ///
    /// # Errors
    /// None today; a later transport may not be able to promise that.
    pub fn open(image: &ImageReference, config: &RegistryConfig) -> Result<Source, Error> {
        let backend = match (image.in_registry(), image.oci_dir()) {
            (Some(reference), _) => Backend::Registry(Arc::new(Registry::new(reference, config))),
            (None, Some((path, tag))) => {
                Backend::Directory(Arc::new(OciDir::new(path, tag, config.max_manifest_bytes)))
            }
            (None, None) => return Err(Error::NotSupported(format!("{image} has no transport"))),
        };
        Ok(Source { backend })
    }

    /// Finds the image for this machine: what the reference names now or, given a digest, exactly that
    /// manifest (or, given the digest of an index, this machine's manifest in it).
    ///
    /// # Errors
    /// [`Error::NotFound`] for a name that does not exist, [`Error::DigestGone`] for a digest that does
    /// not, [`Error::Invalid`] and [`Error::DigestMismatch`] for what was found, and everything that can
    /// happen on a network.
    pub async fn resolve(&self, digest: Option<&Digest>) -> Result<Image, Error> {
        let mut found = self.document(digest).await?;
        let mut index_digest = None;
        for _ in 0..MAX_INDEX_DEPTH {
            match Document::parse(&found.bytes)? {
                Document::Manifest(manifest) => {
                    let digest = layout::digest_of(manifest.config())?;
                    let config = self.config(&digest, manifest.config().size()).await?;
                    return Ok(Image::parse(
                        found.digest,
                        index_digest,
                        &found.bytes,
                        &config,
                    )?);
                }
                Document::Index(index) => {
                    let entry = select_platform(&index.manifests, host_architecture())?;
                    let chosen = entry.digest()?;
                    index_digest.get_or_insert(found.digest);
                    found = self.document(Some(&chosen)).await?;
                }
            }
        }
        Err(Error::Invalid(LayoutError::Unreadable {
            what: "index",
            reason: "it leads to other indexes only".to_owned(),
        }))
    }

    /// Opens the blob of a layer. Its size is checked on the way; hashing it is up to the caller.
    ///
    /// # Errors
    /// As [`Source::resolve`], now or in the stream.
    pub async fn blob(&self, layer: &Layer) -> Result<ByteStream, Error> {
        self.open_blob(&layer.digest, layer.size).await
    }

    async fn open_blob(&self, digest: &Digest, size: u64) -> Result<ByteStream, Error> {
        match &self.backend {
            Backend::Registry(registry) => registry.blob(digest, size).await,
            Backend::Directory(directory) => directory.blob(digest, size).await,
        }
    }

    async fn document(&self, digest: Option<&Digest>) -> Result<RawDocument, Error> {
        match &self.backend {
            Backend::Registry(registry) => registry.document(digest).await,
            Backend::Directory(directory) => directory.document(digest).await,
        }
    }

    async fn config(&self, digest: &Digest, size: u64) -> Result<Bytes, Error> {
        let limit = match &self.backend {
            Backend::Registry(registry) => registry.max_manifest_bytes(),
            Backend::Directory(directory) => directory.max_manifest_bytes(),
        };
        if size > limit {
            return Err(Error::Invalid(LayoutError::Unreadable {
                what: "configuration",
                reason: format!("it has {size} bytes, more than the {limit} allowed"),
            }));
        }
        blob::collect(self.open_blob(digest, size).await?).await
    }
}

#[cfg(test)]
mod registry_tests;
#[cfg(test)]
mod test_images;
