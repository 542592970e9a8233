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
mod entries;
mod error;
mod etc_defaults;
mod feed;
mod fetch;
mod guard;
mod guess;
mod image_arguments;
mod index;
mod installed;
mod journal;
mod label;
mod layer_commit;
mod layer_tree;
mod leftovers;
mod merge;
mod object_set;
mod objects;
mod older_image;
mod partial;
mod partial_blob;
mod parts;
mod patched;
mod path;
mod peek;
mod pipeline;
mod plan;
mod policy;
mod prepare_root;
mod room;
mod slices;
mod start;
mod stream;
mod tar_layer;
mod transaction;
mod tree;
mod write_pool;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ostree::prelude::*;
use ostree::{gio, glib};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::bound_images::{all_bound_images, bound_images};
pub use self::error::Error;
pub use self::etc_defaults::EtcDefaults;
pub use self::fetch::Fetch;
pub use self::image_arguments::image_arguments;
pub use self::index::discard_indexes;
pub use self::installed::{commit_of, installed};
pub use self::label::Labels;
pub use self::leftovers::{Wanted, discard_half_fetched};
pub use self::parts::{PlanRequest, plan_by_parts};
pub use self::peek::{Peek, peek};
pub use self::plan::{Plan, plan, plan_at};
pub use self::room::{Room, room};

use self::parts::Outlook;
use self::path::PathRules;
use self::pipeline::{Lanes, Round};
use self::slices::Slices;
use self::start::{Beginning, Missing, Start};
use self::transaction::open;
use crate::delta::Artifact;
use crate::image::layer::{Layer, LayerKind};
use crate::image::layout::Image;
use crate::image::reference::{Digest, ImageReference};

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
/// In commits whose labels are all those of one SELinux policy: which.
const POLICY_KEY: &str = "osteward.policy";

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

/// Is told how an import gets on; called from several threads, and must not block. Who does not care about
/// something leaves it out.
pub trait Observer: Send + Sync {
    /// What there is to do: layers to fetch, their compressed bytes, and the compressed
    /// bytes of layers that are here already. Called once, before the first layer is begun; bytes and notes
    /// of what it took to find that out may have come before.
    fn total(&self, _layers: u32, _bytes_to_fetch: u64, _bytes_cached: u64) {}
    /// Compressed bytes of a layer that arrived since the last call.
    fn bytes(&self, _digest: &Digest, _delta: u64) {}
    /// A lane began with the layer.
    fn layer_started(&self, _layer: &Layer) {}
    /// The layer is compared and written.
    fn layer_done(&self, _layer: &Layer) {}
    /// The last byte of the last layer arrived and was compared.
    fn downloaded(&self) {}
    /// A step of the merge begins.
    fn merging(&self, _step: MergeStep) {}
    /// There is more to fetch than was told.
    fn more(&self, _bytes: u64) {}
    /// Something to know, for people.
    fn note(&self, _text: String) {}
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
    pub fetch: Arc<dyn Fetch>,
    /// Deltas that lead to the image.
    pub deltas: Arc<[Artifact]>,
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
    /// What SELinux labels took.
    pub labels: Labels,
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

/// Metadata of the commit of a plain layer, which may have the labels of a policy.
fn importer_metadata(layer: &Layer, policy: Option<&str>) -> glib::Variant {
    let metadata = glib::VariantDict::new(None);
    metadata.insert(IMPORTER_KEY, importer());
    metadata.insert(DIFF_ID_KEY, layer.diff_id.as_str());
    if let Some(policy) = policy {
        metadata.insert(POLICY_KEY, policy);
    }
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

async fn run(request: &ImportRequest, stop: &Stop) -> Result<Imported, Error> {
    let outlook = Outlook::new(
        request.fetch.clone(),
        request.deltas.clone(),
        request.observer.clone(),
        stop,
    );
    let beginning = Beginning::of(request, outlook.clone());
    let missing = match blocking(move || beginning.run()).await? {
        Start::Here(commit) => {
            request.observer.total(0, 0, request.image.total_size());
            request.observer.downloaded();
            return Ok(Imported {
                commit,
                bytes_fetched: 0,
                layers_written: 0,
                labels: Labels::default(),
            });
        }
        Start::Missing(missing) => missing,
    };
    let plan = missing.survey.plan.clone();
    let lanes = lanes(request, outlook, missing);
    fetch_layers(request, &lanes, &plan.missing).await?;
    let merged = merge(request, stop, &lanes).await?;
    Ok(Imported {
        commit: merged.commit,
        bytes_fetched: lanes.outlook.fetched.load(Ordering::Relaxed),
        layers_written: count(&plan.missing),
        labels: merged.labels,
    })
}

fn count(layers: &[Layer]) -> u32 {
    u32::try_from(layers.len()).unwrap_or(u32::MAX)
}

/// What the lanes share; tells the observer what they are going to do.
fn lanes(request: &ImportRequest, outlook: Outlook, missing: Missing) -> Arc<Lanes> {
    let (observer, plan) = (&request.observer, missing.survey.plan);
    let size = plan.download_size();
    observer.total(count(&plan.missing), size, plan.cached_size());
    if plan.missing.is_empty() {
        observer.downloaded();
    }
    Arc::new(Lanes {
        repo_path: request.repo_path.clone(),
        outlook,
        guess: missing.guess,
        stock: missing.stock,
        slices: Slices::of(&request.image.digest),
        to_fetch: AtomicUsize::new(plan.missing.len()),
        to_write: AtomicU64::new(plan.needed_size()),
        given_up: Mutex::default(),
        is_tidied: AtomicBool::new(false),
        plan,
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
        let cancellable = &lanes.outlook.cancellable;
        let repo = open(&lanes.repo_path, cancellable)?;
        merge::rules(&repo, &image, cancellable)
    })
    .await
}

async fn merge(
    request: &ImportRequest,
    stop: &Stop,
    lanes: &Lanes,
) -> Result<merge::Merged, Error> {
    let (path, image, imgref) = (
        request.repo_path.clone(),
        request.image.clone(),
        request.imgref.clone(),
    );
    let (observer, cancellable) = (request.observer.clone(), stop.cancellable.clone());
    let (guess, stock) = (lanes.guess.clone(), lanes.stock.clone());
    blocking(move || {
        let repo = open(&path, &cancellable)?;
        let known = merge::Known {
            guess: guess.as_ref(),
            contents: stock.as_ref().map(|stock| &*stock.contents),
        };
        let observer = observer.as_ref();
        merge::merge(&repo, &image, &imgref, known, observer, &cancellable)
            .map_err(|error| error.with_space(&repo, 0))
    })
    .await
}
