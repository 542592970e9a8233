//! Lanes: each takes missing layers one after another and writes them into the repository.
//!
//! A lane has its own repository handle and one open transaction, which it commits at a layer
//! boundary when enough was fetched or enough time has passed, so that an interruption costs
//! little and other tools need not wait long for the repository's lock. Invariant: the ref of
//! a layer is set only after its digest and diff_id were compared.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ostree::gio;
use ostree::prelude::*;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::error::{Error, available};
use super::feed::Feed;
use super::layer_tree::{LayerTree, Misfit};
use super::object_set::ObjectSet;
use super::objects::{Attributes, Id};
use super::path::PathRules;
use super::stream::TarStream;
use super::tar_layer::ReadError;
use super::transaction::{Transaction, has_all_objects, open, tmp_dir};
use super::write_pool::WritePool;
use super::{Fetch, Observer, importer_metadata, no_metadata, object_set, plan, tar_layer};
use crate::image::layer::{Layer, LayerKind};
use crate::image::reference::blob_ref;

/// A transaction is committed when its layers had this many bytes …
const SLICE_BYTES: u64 = 64 * 1024 * 1024;
/// … or when it has been open for this long.
const SLICE_TIME: Duration = Duration::from_secs(60);

/// What all lanes of one import share.
pub(crate) struct Lanes {
    pub(crate) repo_path: PathBuf,
    pub(crate) fetch: Fetch,
    pub(crate) observer: Arc<dyn Observer>,
    /// Stops the lanes; also cancelled by the first lane that fails.
    pub(crate) stop: CancellationToken,
    pub(crate) cancellable: gio::Cancellable,
    pub(crate) runtime: Handle,
    /// Layers that are not fetched to the end yet.
    pub(crate) to_fetch: AtomicUsize,
    /// Compressed bytes of the layers that are not written yet.
    pub(crate) to_write: AtomicU64,
    /// Compressed bytes of the layers that were fetched and compared.
    pub(crate) fetched: AtomicU64,
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes")
            .field("repo_path", &self.repo_path)
            .finish_non_exhaustive()
    }
}

/// One round of lanes over layers that do not depend on each other.
#[derive(Debug)]
pub(crate) struct Round {
    queue: Mutex<VecDeque<Layer>>,
    rules: PathRules,
}

impl Round {
    /// The largest layer first, so that no lane is left alone with it at the end.
    pub(crate) fn new(mut layers: Vec<Layer>, rules: PathRules) -> Self {
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        Self {
            queue: Mutex::new(layers.into()),
            rules,
        }
    }

    fn next(&self) -> Option<Layer> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// Fetches and writes the layers of a round in up to `count` lanes; all are joined at the end.
///
/// # Errors
/// That of the first lane that failed by itself; layers that were finished keep their refs.
pub(crate) async fn run(lanes: &Arc<Lanes>, round: Round, count: usize) -> Result<(), Error> {
    let layers = round
        .queue
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .len();
    let round = Arc::new(round);
    let threads = (0..count.clamp(1, layers.max(1))).map(|_| {
        let (lanes, round) = (lanes.clone(), round.clone());
        super::blocking(move || {
            let result = lane(&lanes, &round);
            if result.is_err() {
                lanes.stop.cancel();
                lanes.cancellable.cancel();
            }
            result
        })
    });
    let results = futures_util::future::join_all(threads).await;
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    // A lane that was stopped because of another says so; the other is what matters.
    let cause = errors
        .iter()
        .position(|error| !matches!(error, Error::Cancelled))
        .unwrap_or(0);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.swap_remove(cause))
    }
}

/// One lane, on a thread of its own.
fn lane(lanes: &Lanes, round: &Round) -> Result<(), Error> {
    let repo = open(&lanes.repo_path, &lanes.cancellable)?;
    let result = loop {
        let Some(first) = round.next() else {
            break Ok(());
        };
        if let Err(error) = slice(lanes, round, &repo, first) {
            break Err(error);
        }
    };
    result.map_err(|error| error.with_space(&repo, lanes.to_write.load(Ordering::Relaxed)))
}

/// Layers from `first` on in one transaction.
fn slice(lanes: &Lanes, round: &Round, repo: &ostree::Repo, first: Layer) -> Result<(), Error> {
    let mut transaction = Transaction::begin(repo, &lanes.cancellable)?;
    let opened = Instant::now();
    let (mut bytes, mut next, mut finished) = (0, Some(first), 0);
    let result = loop {
        let Some(layer) = next.take() else {
            break Ok(());
        };
        match import_layer(lanes, round.rules, &mut transaction, &layer) {
            Ok(commit) => transaction.set_ref(&blob_ref(&layer.digest), &commit),
            Err(error) => break Err(error),
        }
        finished += 1;
        bytes += layer.size;
        lanes.to_write.fetch_sub(layer.size, Ordering::Relaxed);
        lanes.observer.layer_done(&layer);
        if bytes < SLICE_BYTES && opened.elapsed() < SLICE_TIME {
            next = round.next();
        }
    };
    match result {
        Ok(()) => transaction.commit(),
        // What was compared is worth keeping: the next attempt need not fetch it again.
        Err(error) if finished > 0 && available(repo) > 0 => {
            if let Err(lost) = transaction.commit() {
                tracing::debug!(error = %lost, "finished layers could not be kept");
            }
            Err(error)
        }
        Err(error) => Err(error),
    }
}

enum Content {
    Files(LayerTree),
    Objects(ObjectSet),
}

/// Fetches, compares and writes one layer; tells its commit. No ref is set here.
fn import_layer(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
) -> Result<String, Error> {
    if lanes.cancellable.is_cancelled() {
        return Err(Error::Cancelled);
    }
    lanes.observer.layer_started(layer);
    let (content, ids) = read_layer(lanes, rules, transaction, layer)?;
    if lanes.to_fetch.fetch_sub(1, Ordering::AcqRel) == 1 {
        lanes.observer.downloaded();
    }
    lanes.fetched.fetch_add(layer.size, Ordering::Relaxed);
    match content {
        Content::Files(tree) => write_files(transaction, layer, &tree, &ids),
        Content::Objects(set) => write_objects(transaction, layer, &set, &ids),
    }
}

/// Reads the layer to its end, its objects into the repository, and compares the digests.
fn read_layer(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
) -> Result<(Content, Vec<Id>), Error> {
    let Lanes {
        runtime,
        fetch,
        observer,
        stop,
        cancellable,
        ..
    } = lanes;
    let feed = Feed::open(runtime, fetch, layer, observer, stop);
    let stream = TarStream::new(feed, layer.compression)?;
    let budget = stream.budget();
    let mut archive = tar::Archive::new(stream);
    let repo = transaction.repo();
    let (content, ids) = std::thread::scope(|scope| {
        let mut pool = WritePool::start(scope, repo, tmp_dir(repo), cancellable);
        let content = match layer.kind {
            LayerKind::Plain => {
                tar_layer::read(&mut archive, &budget, rules, &mut pool, cancellable)
                    .map(Content::Files)
            }
            LayerKind::ObjectChunk | LayerKind::Commit => {
                let with_commit = layer.kind == LayerKind::Commit;
                object_set::read(&mut archive, &budget, with_commit, transaction, &mut pool)
                    .map(Content::Objects)
            }
        };
        (content, pool.finish())
    });
    // The writers' reason first: the parser only learns that they stopped.
    let ids = ids?;
    let stream = archive.into_inner();
    match content {
        Ok(content) => stream.finish(layer).map(|()| (content, ids)),
        Err(error) => Err(blame(error, stream, layer)),
    }
}

/// What a reader's error really was: the source, a damaged blob, or the layer itself.
pub(crate) fn blame(error: ReadError, mut stream: TarStream, layer: &Layer) -> Error {
    if let Some(failure) = stream.take_failure() {
        return failure;
    }
    // A blob that cannot be unpacked may not be the one that was asked for.
    if let ReadError::Io(_) = error
        && let Err(damage) = stream.finish_blob()
    {
        return damage;
    }
    explain(error, layer)
}

fn explain(error: ReadError, layer: &Layer) -> Error {
    let digest = layer.digest.clone();
    match error {
        ReadError::Io(error) => match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::NoSpace {
                need: 0,
                have: 0,
                where_: String::new(),
            },
            _ => Error::Layer {
                digest,
                reason: format!("its tar cannot be read: {error}"),
            },
        },
        ReadError::Rule(reason) => Error::Layer { digest, reason },
        ReadError::NoRoom(need) => Error::NoSpace {
            need,
            have: 0,
            where_: String::new(),
        },
        ReadError::Write(error) => error,
        ReadError::Stopped | ReadError::Cancelled => Error::Cancelled,
    }
}

/// Either kind of trouble while a layer's tree is finished.
enum Trouble {
    Misfit(Misfit),
    Write(Error),
}

impl From<Misfit> for Trouble {
    fn from(misfit: Misfit) -> Self {
        Self::Misfit(misfit)
    }
}

fn write_files(
    transaction: &mut Transaction<'_>,
    layer: &Layer,
    tree: &LayerTree,
    ids: &[Id],
) -> Result<String, Error> {
    let mut dirmeta =
        |attributes: &Attributes| transaction.dirmeta(attributes).map_err(Trouble::Write);
    let root = tree
        .finish(ids, &mut dirmeta)
        .map_err(|trouble| match trouble {
            Trouble::Misfit(misfit) => Error::Layer {
                digest: layer.digest.clone(),
                reason: misfit.to_string(),
            },
            Trouble::Write(error) => error,
        })?;
    // Without a time the same layer is always the same commit.
    transaction.write_commit(&root, None, &importer_metadata(layer), 0)
}

fn write_objects(
    transaction: &mut Transaction<'_>,
    layer: &Layer,
    set: &ObjectSet,
    ids: &[Id],
) -> Result<String, Error> {
    let refuse = |reason| Error::Layer {
        digest: layer.digest.clone(),
        reason,
    };
    set.check(ids).map_err(refuse)?;
    let Some(commit) = &set.commit else {
        let meta = transaction.dirmeta(&Attributes::default_directory())?;
        return transaction.write_commit(&set.tree(meta), None, &no_metadata(), 0);
    };
    // Others' commits must not say what we have compared.
    if plan::content_of(transaction.repo(), commit).is_some() {
        return Err(refuse(format!(
            "the commit {commit} claims to be a layer that osteward wrote"
        )));
    }
    // The chunks are in by now, so nothing of the base may be missing.
    if has_all_objects(transaction.repo(), commit, transaction.cancellable())? {
        Ok(commit.clone())
    } else {
        Err(refuse(format!("the commit {commit} is not complete")))
    }
}
