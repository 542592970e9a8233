//! OCI images without ostree: names, manifests, and the bytes of layers from wherever they are.
//!
//! The one way in is a [`Source`]: it resolves a reference to the [`layout::Image`] for this machine and
//! streams its blobs. Invariants: every manifest, index and configuration was hashed and compared before
//! anything reads it; blobs have the size that the manifest says and are hashed by whoever consumes them,
//! once; nothing here blocks the executor, and no credential reaches an error, a log line or `Debug`.

mod answer;
mod archive;
mod auth;
mod blob;
pub mod chunked;
mod connection;
mod digest;
mod error;
pub mod here;
mod invalid;
pub mod layer;
pub mod layout;
mod manifest;
mod members;
mod oci_layout;
mod open;
mod origin;
mod pace;
mod parallel;
mod proxies;
mod redirected;
pub mod ref_name;
pub mod reference;
mod referrers;
mod registry;
mod remembered;
mod retry;
pub(crate) mod rfc3339;
mod session;
mod spool;
mod storage;
mod throttle;
mod token;
mod transfer;

use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
pub use tokio_util::bytes::Bytes;

pub use self::error::Error;
use self::here::Here;
use self::layer::Layer;
use self::layout::{Image, LayoutError, host_architecture};
use self::manifest::{Document, select_platform};
pub use self::members::Handed;
use self::oci_layout::{OciLayout, Place};
pub use self::pace::Pace;
pub use self::proxies::Proxies;
use self::reference::{Digest, ImageReference};
pub use self::referrers::Referrer;
use self::registry::Registry;
pub use self::remembered::Remembered;
pub use self::retry::{Backoff, Listener, Notice};
use self::storage::Storage;
use self::transfer::{Otherwise, Transfer};

/// How requests introduce themselves unless configured otherwise.
const USER_AGENT: &str = concat!("osteward/", env!("CARGO_PKG_VERSION"));

/// An index can lead to another one; real ones do so at most once.
const MAX_INDEX_DEPTH: usize = 3;

/// The bytes of a blob as they arrive. After the first error nothing more comes.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// How to deal with registries.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Registries spoken to in plain HTTP, as `HOST[:PORT]` like in a reference. Loopback always is.
    pub insecure: Vec<String>,
    /// Longest time to establish a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest time until an answer begins, connecting and being led elsewhere included.
    pub response_timeout: Duration,
    /// Longest time without a byte before a transfer counts as stalled.
    pub read_timeout: Duration,
    /// How failures that may pass are waited out.
    pub backoff: Backoff,
    /// Longest manifest, index or configuration that is read, in bytes.
    pub max_manifest_bytes: u64,
    /// Longest layer that is fetched, in bytes.
    pub max_layer_bytes: u64,
    /// Most bytes of blobs a second, over all sources that share `remembered`; zero: as many as come.
    pub max_rate: u64,
    /// Nobody waits for what is fetched: it gets half of `max_rate`, and leaves the rest to others.
    pub background: bool,
    /// What is known of registries by now.
    pub remembered: Remembered,
    /// The way out.
    pub proxies: Proxies,
    /// Is told when a request is waited for and made again.
    pub listener: Listener,
    /// What sources on this host work with.
    pub here: Here,
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
            response_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            backoff: Backoff::default(),
            max_manifest_bytes: 4 << 20,
            max_layer_bytes: 32 << 30,
            max_rate: 0,
            background: false,
            remembered: Remembered::default(),
            proxies: Proxies::default(),
            listener: Listener::default(),
            here: Here::default(),
            auth_files: ["/run/ostree", "/etc/ostree", "/usr/lib/ostree"]
                .map(|directory| PathBuf::from(directory).join("auth.json"))
                .to_vec(),
            user_agent: USER_AGENT.to_owned(),
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
    Layout(Arc<OciLayout>),
    Storage(Arc<Storage>),
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
    /// [`Error::NotSupported`] for the container storage where no tool can read it.
    pub fn open(image: &ImageReference, config: &RegistryConfig) -> Result<Source, Error> {
        let limit = config.max_manifest_bytes;
        let backend = match (image.in_registry(), image.layout()) {
            (Some(reference), _) => Backend::Registry(Arc::new(Registry::new(reference, config))),
            (None, Some((path, tag))) => {
                let place = Place::Path(image.transport(), path.to_owned());
                let scratch = config.here.scratch.clone();
                Backend::Layout(Arc::new(OciLayout::new(place, tag, limit, scratch)))
            }
            (None, None) => {
                Backend::Storage(Arc::new(Storage::new(image.name(), limit, &config.here)?))
            }
        };
        Ok(Source { backend })
    }

    /// As [`Source::open`], for a layout that a client has opened; of several images in it `tag` names one.
    pub fn handed(handed: &Handed, tag: Option<&str>, config: &RegistryConfig) -> Source {
        let (limit, scratch) = (config.max_manifest_bytes, config.here.scratch.clone());
        let layout = OciLayout::new(Place::Handed(handed.clone()), tag, limit, scratch);
        Source {
            backend: Backend::Layout(Arc::new(layout)),
        }
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
                    let image = Image::parse(found.digest, index_digest, &found.bytes, &config)?;
                    self.check_sizes(&image)?;
                    return Ok(image);
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

    /// Whether the reference still means the manifest or the index of this digest, for the price of one
    /// small request. `false` says nothing: what it means has to be [resolved](Source::resolve) then.
    ///
    /// # Errors
    /// What can happen on a network.
    pub async fn still_means(&self, known: &Digest) -> Result<bool, Error> {
        match &self.backend {
            Backend::Registry(registry) => registry.still_means(known).await,
            // Nothing is nearer than the files themselves.
            Backend::Layout(_) | Backend::Storage(_) => Ok(false),
        }
    }

    /// Refuses layers that are longer than anything is fetched, before the first of them is.
    fn check_sizes(&self, image: &Image) -> Result<(), Error> {
        let limit = match &self.backend {
            Backend::Registry(registry) => registry.max_layer_bytes(),
            Backend::Layout(_) | Backend::Storage(_) => return Ok(()),
        };
        match image.layers.iter().find(|layer| layer.size > limit) {
            None => Ok(()),
            Some(layer) => Err(Error::Invalid(LayoutError::LayerTooLarge {
                digest: layer.digest.clone(),
                size: layer.size,
                limit,
            })),
        }
    }

    /// Makes the layers ready to be streamed, where that is more than opening them, and says what they will
    /// be like then ([`layer::Transfer`]).
    ///
    /// # Errors
    /// As [`Source::resolve`].
    pub async fn bring_out(&self, image: Image) -> Result<Image, Error> {
        match &self.backend {
            Backend::Storage(storage) => storage.bring_out(image).await,
            Backend::Registry(_) | Backend::Layout(_) => Ok(image),
        }
    }

    /// Opens what is transferred for a layer, from byte `from` on (0: the whole). Its size is checked on the
    /// way; hashing it is up to the caller.
    ///
    /// # Errors
    /// As [`Source::resolve`], now or in the stream.
    pub async fn blob(&self, layer: &Layer, from: u64) -> Result<ByteStream, Error> {
        let wanted = from..layer.size;
        check_range(layer, &wanted)?;
        match &self.backend {
            Backend::Registry(registry) => parallel::open(registry, &layer.digest, wanted).await,
            Backend::Layout(layout) => layout.blob(&layer.digest, layer.size, wanted).await,
            Backend::Storage(storage) => storage.blob(layer, from).await,
        }
    }

    /// Exactly these bytes of the layer's blob; they end with an error if not all of them come.
    ///
    /// # Errors
    /// [`Error::NoRanges`] when the source has blobs as a whole only; else as [`Source::resolve`]. Both also
    /// in the stream.
    pub async fn part(&self, layer: &Layer, range: Range<u64>) -> Result<ByteStream, Error> {
        check_range(layer, &range)?;
        match &self.backend {
            Backend::Registry(registry) => {
                let (digest, size) = (&layer.digest, layer.size);
                let part = Transfer::open(registry, digest, size, range, Otherwise::Nothing);
                Ok(part.await?.into_stream())
            }
            Backend::Layout(layout) => layout.blob(&layer.digest, layer.size, range).await,
            Backend::Storage(_) => Err(Error::NoRanges),
        }
    }

    /// Whether parts of blobs are to be had, as far as is known by now.
    pub fn has_parts(&self) -> bool {
        match &self.backend {
            Backend::Registry(registry) => registry.knows_ranges(),
            Backend::Layout(_) => true,
            Backend::Storage(_) => false,
        }
    }

    /// How many parts of one layer are to be asked for at a time, as things are now.
    pub fn connections(&self) -> usize {
        match &self.backend {
            Backend::Registry(registry) => registry.parts(),
            // Reading is fast, and what is read is unpacked beside it.
            Backend::Layout(_) | Backend::Storage(_) => 2,
        }
    }

    /// What a request takes and how fast bytes come, as measured so far.
    pub fn pace(&self) -> Pace {
        match &self.backend {
            Backend::Registry(registry) => registry.pace(),
            Backend::Layout(_) | Backend::Storage(_) => Pace::HERE,
        }
    }

    async fn document(&self, digest: Option<&Digest>) -> Result<RawDocument, Error> {
        match &self.backend {
            Backend::Registry(registry) => registry.document(digest).await,
            Backend::Layout(layout) => layout.document(digest).await,
            Backend::Storage(storage) => storage.document(digest).await,
        }
    }

    async fn config(&self, digest: &Digest, size: u64) -> Result<Bytes, Error> {
        let limit = match &self.backend {
            Backend::Registry(registry) => registry.max_manifest_bytes(),
            Backend::Layout(layout) => layout.max_manifest_bytes(),
            Backend::Storage(storage) => storage.max_manifest_bytes(),
        };
        if size > limit {
            return Err(Error::Invalid(LayoutError::Unreadable {
                what: "configuration",
                reason: format!("it has {size} bytes, more than the {limit} allowed"),
            }));
        }
        let stream = match &self.backend {
            Backend::Registry(registry) => parallel::open(registry, digest, 0..size).await?,
            Backend::Layout(layout) => layout.blob(digest, size, 0..size).await?,
            Backend::Storage(storage) => return storage.config(digest, size).await,
        };
        blob::collect(stream).await
    }
}

/// Refuses bytes that the layer does not have.
fn check_range(layer: &Layer, range: &Range<u64>) -> Result<(), Error> {
    if range.start <= range.end && range.end <= layer.size {
        return Ok(());
    }
    Err(Error::Invalid(LayoutError::Unreadable {
        what: "layer",
        reason: format!(
            "the bytes {} to {} are not in {}, which has {}",
            range.start, range.end, layer.digest, layer.size
        ),
    }))
}

#[cfg(test)]
mod layout_tests;
#[cfg(test)]
mod registry_tests;
#[cfg(test)]
mod test_images;
