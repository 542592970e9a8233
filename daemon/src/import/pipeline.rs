//! Lanes: each takes missing layers one after another and writes them into the repository.
//!
//! A lane has its own repository handle and one open transaction, which it commits at a layer
//! boundary when enough was fetched or enough time has passed, so that an interruption costs
//! little and other tools need not wait long for the repository's lock. Invariant: the ref of
//! a layer is set only after its digest and diff_id were compared.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ostree::prelude::*;

use super::error::{Error, available};
use super::feed::{Feed, Received};
use super::guess::Guess;
use super::layer_tree::LayerTree;
use super::object_set::ObjectSet;
use super::objects::{Attributes, Id};
use super::partial::{self, Stock};
use super::partial_blob::PartialBlob;
use super::parts::Outlook;
use super::path::PathRules;
use super::plan::Plan;
use super::slices::Slices;
use super::stream::TarStream;
use super::tar_layer::ReadError;
use super::transaction::{Transaction, has_all_objects, open, tmp_dir};
use super::write_pool::WritePool;
use super::{
    layer_commit, leftovers, no_metadata, object_set, partial_blob, parts, patched, plan, tar_layer,
};
use crate::image::layer::{Layer, LayerKind};
use crate::image::reference::{Digest, blob_ref};

/// A transaction is committed when its layers had this many bytes …
const SLICE_BYTES: u64 = 64 * 1024 * 1024;
/// … or when it has been open for this long.
const SLICE_TIME: Duration = Duration::from_secs(60);

/// What all lanes of one import share.
pub(crate) struct Lanes {
    pub(crate) repo_path: PathBuf,
    /// Where layers come from, and who is told; stopped also by the first lane that fails.
    pub(crate) outlook: Outlook,
    /// What labels files may have.
    pub(crate) guess: Option<Guess>,
    /// What is here, if layers can share it.
    pub(crate) stock: Option<Arc<Stock>>,
    pub(crate) slices: Slices,
    /// Which layers are fetched by parts.
    pub(crate) plan: Plan,
    /// Layers that are not fetched to the end yet.
    pub(crate) to_fetch: AtomicUsize,
    /// Compressed bytes of the layers that are not written yet.
    pub(crate) to_write: AtomicU64,
    /// Layers whose delta was of no use.
    pub(crate) given_up: Mutex<HashSet<Digest>>,
    /// Halves of other layers were removed for want of room.
    pub(crate) is_tidied: AtomicBool,
}

impl Lanes {
    fn given_up(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the layer is tried by a delta.
    pub(crate) fn has_delta(&self, layer: &Digest) -> bool {
        self.plan.deltas.contains_key(layer) && !self.is_given_up(layer)
    }

    /// Whether the delta of the layer was of no use.
    pub(crate) fn is_given_up(&self, layer: &Digest) -> bool {
        self.given_up().contains(layer)
    }

    /// The delta of the layer is of no use.
    pub(crate) fn give_up(&self, layer: &Digest) {
        self.given_up().insert(layer.clone());
    }

    /// Whether another transaction may find the room that one lacked for the layer. `had_delta`: it was tried
    /// by a delta, which can have taken it. Else halves of layers that nobody is at are removed, once.
    fn makes_room(&self, repo: &ostree::Repo, layer: &Layer, had_delta: bool) -> bool {
        let took_it = had_delta && self.is_given_up(&layer.digest);
        took_it || (!self.is_tidied.swap(true, Ordering::Relaxed) && leftovers::give_up(repo) > 0)
    }
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

    /// The layer comes next.
    fn put_back(&self, layer: Layer) {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_front(layer);
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
                lanes.outlook.stop.cancel();
                lanes.outlook.cancellable.cancel();
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
    let repo = open(&lanes.repo_path, &lanes.outlook.cancellable)?;
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
    let mut transaction = Transaction::begin(repo, &lanes.outlook.cancellable)?;
    let opened = Instant::now();
    let (mut bytes, mut next, mut finished) = (0, Some(first), Vec::new());
    let result = loop {
        let Some(layer) = next.take() else {
            break Ok(());
        };
        if !finished.is_empty() && patched::may_fill(lanes, repo, &layer) {
            // What it makes in vain shall not be committed with others.
            round.put_back(layer);
            break Ok(());
        }
        let had_delta = lanes.has_delta(&layer.digest);
        match import_layer(lanes, round.rules, &mut transaction, &layer) {
            Ok((commit, partial)) => {
                transaction.set_ref(&blob_ref(&layer.digest), &commit);
                finished.push((layer.digest.clone(), partial));
            }
            Err(error) => {
                // It is what it should be, and will not be accepted the next time either.
                if let Error::Layer { digest, .. } = &error {
                    partial_blob::remove(&tmp_dir(repo), digest);
                }
                break Err((layer, had_delta, error));
            }
        }
        let size = lanes.plan.size_of(&layer);
        bytes += size;
        lanes.to_write.fetch_sub(size, Ordering::Relaxed);
        lanes.outlook.observer.layer_done(&layer);
        if bytes < SLICE_BYTES && opened.elapsed() < SLICE_TIME {
            next = round.next();
        }
    };
    let has_finished = !finished.is_empty();
    let commit = || {
        transaction.commit()?;
        // Not before: a kill in between must not lose both.
        for (digest, partial) in finished {
            partial_blob::remove(&tmp_dir(repo), &digest);
            drop(partial);
        }
        Ok(())
    };
    let (layer, had_delta, error) = match result {
        Ok(()) => return commit(),
        Err(failed) => failed,
    };
    // What was compared is worth keeping: the next attempt need not fetch it again.
    let mut is_kept = !has_finished;
    if has_finished && available(repo) > 0 {
        match commit() {
            Ok(()) => is_kept = true,
            Err(lost) => tracing::debug!(error = %lost, "finished layers could not be kept"),
        }
    }
    let is_full = matches!(error, Error::NoSpace { need: 0, .. });
    if is_full && is_kept && lanes.makes_room(repo, &layer, had_delta) {
        tracing::warn!(layer = %layer.digest, "it is tried once more after room was made");
        round.put_back(layer);
        return Ok(());
    }
    Err(error)
}

/// What a layer brought.
pub(crate) enum Content {
    Files(LayerTree),
    Objects(ObjectSet),
}

/// Fetches, compares and writes one layer; tells its commit, and what was kept of its blob and can go
/// when the commit has a ref. None is set here.
fn import_layer(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
) -> Result<(String, Option<PartialBlob>), Error> {
    if lanes.outlook.cancellable.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let shown = Layer {
        size: to_come(lanes, transaction.repo(), layer),
        ..layer.clone()
    };
    lanes.outlook.observer.layer_started(&shown);
    let (content, ids, partial) = fetch_layer(lanes, rules, transaction, layer)?;
    if lanes.to_fetch.fetch_sub(1, Ordering::AcqRel) == 1 {
        lanes.outlook.observer.downloaded();
    }
    let commit = match content {
        Content::Files(tree) => {
            layer_commit::write_files(transaction, layer, &tree, &ids, lanes.guess.as_ref())
        }
        Content::Objects(set) => write_objects(transaction, layer, &set, &ids),
    };
    Ok((commit?, partial))
}

/// Bytes that are fetched for the layer, as far as known.
fn to_come(lanes: &Lanes, repo: &ostree::Repo, layer: &Layer) -> u64 {
    if lanes.has_delta(&layer.digest) {
        return lanes.plan.size_of(layer);
    }
    let rest = parts::rest_of(repo, layer);
    let parts = lanes.plan.parts.get(&layer.digest).copied();
    parts.unwrap_or(rest).min(rest)
}

/// Fetches the layer as planned, or whole, and writes its objects.
fn fetch_layer(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
) -> Result<(Content, Vec<Id>, Option<PartialBlob>), Error> {
    if let Some((content, ids)) = patched::pull(lanes, rules, transaction, layer)? {
        return Ok((content, ids, None));
    }
    if let Some(pulled) = parts::pull(lanes, rules, transaction, layer)? {
        return Ok((Content::Files(pulled.tree), pulled.ids, None));
    }
    let (content, ids, received) = read_layer(lanes, rules, transaction, layer)?;
    let fetched = &lanes.outlook.fetched;
    fetched.fetch_add(received.fetched, Ordering::Relaxed);
    Ok((content, ids, received.partial))
}

type Read = (Content, Vec<Id>, Received);

/// Reads the layer to its end, its objects into the repository, and compares the digests. Whatever
/// fails with bytes that an earlier attempt kept is believed only when they were fetched once more.
fn read_layer(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
) -> Result<Read, Error> {
    let partial = PartialBlob::open(transaction.repo(), layer);
    let is_resumed = partial.as_ref().is_some_and(|partial| partial.kept() > 0);
    match read_blob(lanes, rules, transaction, layer, partial) {
        Err(error) if !matches!(error, Error::Cancelled | Error::Fetch(_)) => {
            partial_blob::remove(&tmp_dir(transaction.repo()), &layer.digest);
            // No write of this transaction will find more room; what a header claims is another thing.
            if !is_resumed || matches!(error, Error::NoSpace { need: 0, .. }) {
                return Err(error);
            }
            tracing::warn!(%error, layer = %layer.digest, "fetching the whole layer anew");
            lanes.outlook.observer.more(layer.size);
            read_blob(lanes, rules, transaction, layer, None)
        }
        other => other,
    }
}

/// Reads the layer to its end, from what was kept of it first.
fn read_blob(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
    partial: Option<PartialBlob>,
) -> Result<Read, Error> {
    let Outlook {
        runtime,
        fetch,
        observer,
        stop,
        ..
    } = &lanes.outlook;
    let feed = Feed::open(runtime, fetch, layer, observer, stop, partial);
    let stream = TarStream::new(feed, layer.compression)?;
    read_tar(lanes, rules, transaction, layer, stream)
}

/// Reads the tar of the layer to its end.
pub(crate) fn read_tar(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
    stream: TarStream,
) -> Result<Read, Error> {
    let cancellable = &lanes.outlook.cancellable;
    let budget = stream.budget();
    let mut archive = tar::Archive::new(stream);
    let repo = transaction.repo();
    // What comes whole now may be what parts of the next image are.
    let has_parts = matches!(partial::usable(layer), Ok(Some(_)));
    let stock = lanes.stock.as_ref().filter(|_| has_parts);
    let contents = stock.map(|stock| &stock.contents);
    let (content, ids) = std::thread::scope(|scope| {
        let mut pool = WritePool::start(scope, repo, tmp_dir(repo), contents, cancellable);
        let content = match layer.kind {
            LayerKind::Plain => {
                let guess = lanes.guess.as_ref();
                tar_layer::read(&mut archive, &budget, rules, guess, &mut pool, cancellable)
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
        Ok(content) => stream
            .finish(layer)
            .map(|received| (content, ids, received)),
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
