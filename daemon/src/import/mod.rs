//! Layers of an OCI image become one commit in the ostree repository.
//!
//! One import, top to bottom: what is here already ([`plan()`]) → a placeholder that guards
//! half-fetched images → lanes that fetch, compare and write missing layers → one merge,
//! composed in memory → commit, image ref and guard in one transaction.
//!
//! Invariants: works on repository handles of its own, never on that of the sysroot; blocks
//! only threads of the blocking pool and of its own, and has joined them all when
//! [`import()`] returns; may be killed at any time without leaving a ref to anything unproven;
//! knows nothing of registries, only the [`Fetch`] it is given.

mod bound_images;
mod commit_files;
mod error;
mod etc_defaults;
mod feed;
mod guard;
mod image_arguments;
mod installed;
mod label;
mod layer_tree;
mod merge;
mod object_set;
mod objects;
mod path;
mod peek;
mod pipeline;
mod plan;
mod prepare_root;
mod room;
mod stream;
mod tar_layer;
mod transaction;
mod tree;
mod write_pool;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use ostree::prelude::*;
use ostree::{gio, glib};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::bound_images::{all_bound_images, bound_images};
pub use self::error::Error;
pub use self::etc_defaults::EtcDefaults;
pub use self::image_arguments::image_arguments;
pub use self::installed::{commit_of, installed};
pub use self::peek::{Peek, peek};
pub use self::plan::{Plan, plan, plan_at};
pub use self::room::{Room, room};

use self::error::{available, repository_path};
use self::path::PathRules;
use self::pipeline::{Lanes, Round};
use self::plan::{Survey, has_all_layers, stored_image, survey};
use self::transaction::{Transaction, is_complete, open, resolve};
use crate::image::layer::{Layer, LayerKind};
use crate::image::layout::Image;
use crate::image::reference::{Digest, ImageReference, blob_ref, image_ref};
use crate::image::{self, ByteStream};

/// Metadata of a merge commit: the digest of the platform's manifest as it was served.
const DIGEST_KEY: &str = "ostree.manifest-digest";
/// Metadata of a merge commit: the manifest, canonical JSON.
const MANIFEST_KEY: &str = "ostree.manifest";
/// Metadata of a merge commit: the configuration, canonical JSON.
const CONFIG_KEY: &str = "ostree.container.image-config";
/// Metadata of layer and merge commits: who wrote them.
const IMPORTER_KEY: &str = "ostree.importer.version";
/// What our value of [`IMPORTER_KEY`] begins with.
const IMPORTER: &str = "osteward-";
/// In the commit of a plain layer: the digest of its content, which was compared.
const DIFF_ID_KEY: &str = "osteward.diff-id";

/// Opens the stream of a layer's compressed blob, from its first byte.
pub type Fetch =
    Arc<dyn Fn(&Layer) -> BoxFuture<'static, Result<ByteStream, image::Error>> + Send + Sync>;

/// The steps after the last layer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// Layers are laid over each other in memory.
    Compose,
    /// SELinux labels are computed and written.
    Label,
    /// Directories and the commit are written.
    Write,
    /// The transaction is made durable and visible.
    Commit,
}

/// Is told how an import gets on; called from several threads, and must not block.
pub trait Observer: Send + Sync {
    /// What there is to do: layers to fetch, their compressed bytes, and the compressed
    /// bytes of layers that are here already. Called once, first.
    fn total(&self, layers: u32, bytes_to_fetch: u64, bytes_cached: u64);
    /// Compressed bytes of a layer that arrived since the last call.
    fn bytes(&self, digest: &Digest, delta: u64);
    /// A lane began with the layer.
    fn layer_started(&self, layer: &Layer);
    /// The layer is compared and written.
    fn layer_done(&self, layer: &Layer);
    /// The last byte of the last layer arrived and was compared.
    fn downloaded(&self);
    /// A step of the merge begins.
    fn merging(&self, step: MergeStep);
}

/// What to import, from where, and whom to tell.
pub struct ImportRequest {
    /// The ostree repository, opened anew for this import.
    pub repo_path: PathBuf,
    /// The image, verified against its digests.
    pub image: Arc<Image>,
    /// The name under which the merge commit is kept.
    pub imgref: ImageReference,
    /// Manifests of images that stay guarded, because somebody goes on with them later.
    pub needed: Vec<Digest>,
    /// Gives the layers' bytes.
    pub fetch: Fetch,
    /// Is told about progress.
    pub observer: Arc<dyn Observer>,
    /// Stops the import; layers that are finished stay.
    pub cancel: CancellationToken,
    /// Layers in flight at a time; 0 counts as 1.
    pub parallel_layers: usize,
}

impl std::fmt::Debug for ImportRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImportRequest")
            .field("repo_path", &self.repo_path)
            .field("image", &self.image.digest)
            .finish_non_exhaustive()
    }
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Checksum of the merge commit.
    pub commit: String,
    /// Compressed bytes that were fetched.
    pub bytes_fetched: u64,
    /// Layers that were fetched and written.
    pub layers_written: u32,
}

/// Imports an image; returns at once if it is here under that name already.
///
/// When the future is dropped the threads are told to stop and end by themselves.
///
/// # Errors
/// Any [`enum@Error`]. Layers that were finished before keep their refs, so that the next
/// attempt does not fetch them again.
pub async fn import(request: ImportRequest) -> Result<Imported, Error> {
    let stop = Stop::new(&request.cancel);
    match run(&request, &stop).await {
        Err(_) if request.cancel.is_cancelled() => Err(Error::Cancelled),
        other => other,
    }
}

/// Who wrote a commit, for humans and for `plan`.
fn importer() -> String {
    format!("{IMPORTER}{}", env!("CARGO_PKG_VERSION"))
}

/// Metadata of the commit of a plain layer.
fn importer_metadata(layer: &Layer) -> glib::Variant {
    let metadata = glib::VariantDict::new(None);
    metadata.insert(IMPORTER_KEY, importer());
    metadata.insert(DIFF_ID_KEY, layer.diff_id.as_str());
    metadata.end()
}

/// An empty dictionary of metadata.
fn no_metadata() -> glib::Variant {
    glib::VariantDict::new(None).end()
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Err(Error::Cancelled),
        Err(error) => Err(Error::Ostree {
            context: "importing an image",
            text: error.to_string(),
        }),
    }
}

/// Carries cancellation to libostree, and stops everything when the import's future is gone.
struct Stop {
    token: CancellationToken,
    cancellable: gio::Cancellable,
    watcher: JoinHandle<()>,
}

impl Stop {
    fn new(cancel: &CancellationToken) -> Self {
        let token = cancel.child_token();
        let cancellable = gio::Cancellable::new();
        let watcher = tokio::spawn({
            let (token, cancellable) = (token.clone(), cancellable.clone());
            async move {
                token.cancelled().await;
                cancellable.cancel();
            }
        });
        Self {
            token,
            cancellable,
            watcher,
        }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.watcher.abort();
        self.token.cancel();
        self.cancellable.cancel();
    }
}

enum Start {
    /// The image is here under its name.
    Here(String),
    Missing(Survey),
}

async fn run(request: &ImportRequest, stop: &Stop) -> Result<Imported, Error> {
    let (path, image, imgref) = (
        request.repo_path.clone(),
        request.image.clone(),
        request.imgref.clone(),
    );
    let (needed, cancellable) = (request.needed.clone(), stop.cancellable.clone());
    let start = blocking(move || prepare(&path, &image, &imgref, &needed, &cancellable)).await?;
    let survey = match start {
        Start::Here(commit) => {
            request.observer.total(0, 0, request.image.total_size());
            request.observer.downloaded();
            return Ok(Imported {
                commit,
                bytes_fetched: 0,
                layers_written: 0,
            });
        }
        Start::Missing(survey) => survey,
    };
    let lanes = lanes(request, stop, &survey.plan);
    fetch_layers(request, &lanes, &survey.plan.missing).await?;
    let commit = merge(request, stop).await?;
    Ok(Imported {
        commit,
        bytes_fetched: lanes.fetched.load(Ordering::Relaxed),
        layers_written: count(&survey.plan.missing),
    })
}

fn count(layers: &[Layer]) -> u32 {
    u32::try_from(layers.len()).unwrap_or(u32::MAX)
}

/// What the lanes share; tells the observer what they are going to do.
fn lanes(request: &ImportRequest, stop: &Stop, plan: &Plan) -> Arc<Lanes> {
    let (observer, size) = (request.observer.clone(), plan.download_size());
    observer.total(count(&plan.missing), size, plan.cached_size());
    if plan.missing.is_empty() {
        observer.downloaded();
    }
    Arc::new(Lanes {
        repo_path: request.repo_path.clone(),
        fetch: request.fetch.clone(),
        observer,
        stop: stop.token.clone(),
        cancellable: stop.cancellable.clone(),
        runtime: Handle::current(),
        to_fetch: AtomicUsize::new(plan.missing.len()),
        to_write: AtomicU64::new(size),
        fetched: AtomicU64::new(0),
    })
}

/// Chunks of the base, then the commit that they belong to, then files: what a later round
/// writes depends on the base.
async fn fetch_layers(
    request: &ImportRequest,
    lanes: &Arc<Lanes>,
    missing: &[Layer],
) -> Result<(), Error> {
    let mut rules = PathRules::current(true);
    for kind in [LayerKind::ObjectChunk, LayerKind::Commit, LayerKind::Plain] {
        let layers: Vec<_> = missing
            .iter()
            .filter(|layer| layer.kind == kind)
            .cloned()
            .collect();
        if layers.is_empty() {
            continue;
        }
        if kind == LayerKind::Plain {
            rules = base_rules(request, lanes).await?;
        }
        pipeline::run(lanes, Round::new(layers, rules), request.parallel_layers).await?;
    }
    Ok(())
}

async fn base_rules(request: &ImportRequest, lanes: &Arc<Lanes>) -> Result<PathRules, Error> {
    let (image, lanes) = (request.image.clone(), lanes.clone());
    blocking(move || {
        let repo = open(&lanes.repo_path, &lanes.cancellable)?;
        let allow_nonusr = match merge::base_commit(&repo, &image)? {
            Some(base) => prepare_root::allows_nonusr(&repo, &base, &lanes.cancellable)?,
            // Images without an ostree base are made for hosts that show all of them.
            None => true,
        };
        Ok(PathRules::current(allow_nonusr))
    })
    .await
}

async fn merge(request: &ImportRequest, stop: &Stop) -> Result<String, Error> {
    let (path, image, imgref) = (
        request.repo_path.clone(),
        request.image.clone(),
        request.imgref.clone(),
    );
    let (observer, cancellable) = (request.observer.clone(), stop.cancellable.clone());
    blocking(move || {
        let repo = open(&path, &cancellable)?;
        merge::merge(&repo, &image, &imgref, observer.as_ref(), &cancellable)
            .map_err(|error| error.with_space(&repo, 0))
    })
    .await
}

/// Everything before the first byte is fetched.
fn prepare(
    path: &std::path::Path,
    image: &Image,
    imgref: &ImageReference,
    needed: &[Digest],
    cancellable: &gio::Cancellable,
) -> Result<Start, Error> {
    let repo = open(path, cancellable)?;
    if let Some(commit) = stored(&repo, image, imgref, cancellable)? {
        guard::whole(&repo, image, &commit, needed, cancellable)?;
        return Ok(Start::Here(commit));
    }
    let survey = survey(&repo, image, cancellable)?;
    let (need, have) = (survey.plan.download_size(), available(&repo));
    if need > have {
        return Err(Error::NoSpace {
            need,
            have,
            where_: repository_path(&repo),
        });
    }
    let mut transaction = Transaction::begin(&repo, cancellable)?;
    guard::half_fetched(&mut transaction, image, needed)?;
    for (digest, commit) in &survey.aliases {
        transaction.set_ref(&blob_ref(digest), commit);
    }
    transaction
        .commit()
        .map_err(|error| error.with_space(&repo, need))?;
    Ok(Start::Missing(survey))
}

/// The merge commit that the image's ref points at, if it is of this very manifest and whole.
fn stored(
    repo: &ostree::Repo,
    image: &Image,
    imgref: &ImageReference,
    cancellable: &gio::Cancellable,
) -> Result<Option<String>, Error> {
    let Some(commit) = resolve(repo, &image_ref(imgref))? else {
        return Ok(None);
    };
    let same = stored_image(repo, &commit).is_some_and(|stored| stored.digest == image.digest);
    let whole = same
        && is_complete(repo, &commit, cancellable)?
        && has_all_layers(repo, image, cancellable)?;
    Ok(whole.then_some(commit))
}
