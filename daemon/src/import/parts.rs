//! Which of the missing layers are fetched by parts, and how many bytes that takes.
//!
//! Invariant: what is looked at before anybody decided for the image stays within bounds, whatever its
//! manifest says: bytes to fetch, and memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ostree::gio;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::partial::{self, Pulled, Reach, Setback, Stock, Terms};
use super::patched::Patches;
use super::path::PathRules;
use super::pipeline::Lanes;
use super::plan::{Plan, plan};
use super::transaction::{Transaction, open};
use super::{Fetch, Observer, Stop, blocking, merge, partial_blob};
use crate::chunked::{Chunked, Part};
use crate::delta::Artifact;
use crate::image::layer::Layer;
use crate::image::layout::Image;

/// Tables of contents that are fetched at a time …
const CONNECTIONS: usize = 4;
/// … if all of these together have no more bytes than this, decompressed.
const AT_A_TIME: u64 = 64 * 1024 * 1024;
/// Most bytes of all tables of one image, with what belongs to them; those of whole systems have some 8 MB …
const TABLES: u64 = 64 * 1024 * 1024;
/// … and decompressed, without what belongs to them.
const TABLES_UNPACKED: u64 = 256 * 1024 * 1024;
/// A table is looked at if it has no more than this part of what is to be fetched otherwise.
const TABLE: u64 = 4;

/// What is to be looked at.
pub struct PlanRequest {
    /// The ostree repository.
    pub repo_path: PathBuf,
    /// The image.
    pub image: Arc<Image>,
    /// Gives tables of contents.
    pub fetch: Arc<dyn Fetch>,
    /// Deltas that lead to the image.
    pub deltas: Arc<[Artifact]>,
    /// Is told of bytes that arrive.
    pub observer: Arc<dyn Observer>,
    /// Stops it.
    pub cancel: CancellationToken,
}

impl std::fmt::Debug for PlanRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlanRequest")
            .field("image", &self.image.digest)
            .finish_non_exhaustive()
    }
}

/// [`plan()`] with layers fetched by parts where that is fewer bytes, as an import would do it. Tells how
/// many bytes were fetched to find out.
///
/// # Errors
/// [`Error::Ostree`] when the repository cannot be read. What cannot be fetched for it is no error: then the
/// layer counts as a whole.
pub async fn plan_by_parts(request: PlanRequest) -> Result<(Plan, u64), Error> {
    let stop = Stop::new(&request.cancel);
    let PlanRequest {
        repo_path,
        image,
        fetch,
        deltas,
        observer,
        ..
    } = request;
    let outlook = Outlook::new(fetch, deltas, observer, &stop);
    blocking(move || {
        let repo = open(&repo_path, &outlook.cancellable)?;
        let mut plan = plan(&repo, &image)?;
        if !plan.missing.is_empty() {
            look(&outlook, &repo, &image, false, &mut plan)?;
        }
        Ok((plan, outlook.fetched.load(Ordering::Relaxed)))
    })
    .await
}

/// Where layers come from, and who is told; what the parts of one import have in common.
#[derive(Clone)]
pub(crate) struct Outlook {
    pub(crate) fetch: Arc<dyn Fetch>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) runtime: Handle,
    /// Stops it …
    pub(crate) stop: CancellationToken,
    /// … and calls of libostree.
    pub(crate) cancellable: gio::Cancellable,
    /// Bytes that were fetched.
    pub(crate) fetched: Arc<AtomicU64>,
    /// Deltas that lead to the image.
    pub(crate) deltas: Arc<[Artifact]>,
}

impl Outlook {
    pub(super) fn new(
        fetch: Arc<dyn Fetch>,
        deltas: Arc<[Artifact]>,
        observer: Arc<dyn Observer>,
        stop: &Stop,
    ) -> Self {
        Self {
            fetch,
            deltas,
            observer,
            runtime: Handle::current(),
            stop: stop.token.clone(),
            cancellable: stop.cancellable.clone(),
            fetched: Arc::default(),
        }
    }

    /// For the parts of one layer, whose bytes are counted in `fetched`; the observer was told to expect
    /// `expected`.
    fn reach<'a>(
        &'a self,
        layer: &'a Layer,
        fetched: &'a AtomicU64,
        expected: &'a AtomicU64,
    ) -> Reach<'a> {
        Reach {
            runtime: &self.runtime,
            fetch: &self.fetch,
            layer,
            observer: &self.observer,
            fetched,
            expected,
            stop: &self.stop,
        }
    }
}

/// What [`look`] found.
#[derive(Default)]
pub(crate) struct Found {
    /// What is here, if layers of the image can share it.
    pub(crate) stock: Option<Stock>,
    /// Why layers are fetched whole that say that they need not be.
    pub(crate) notes: Vec<String>,
}

/// Sets [`Plan::parts`] and [`Plan::deltas`]; `for_import`, if what is found is used at once.
pub(crate) fn look(
    outlook: &Outlook,
    repo: &ostree::Repo,
    image: &Image,
    for_import: bool,
    plan: &mut Plan,
) -> Result<Found, Error> {
    let patches = Patches::find(repo, &outlook.deltas, &plan.missing)?;
    let found = look_at_tables(outlook, repo, image, &patches, for_import, plan)?;
    patches.settle(repo, plan);
    Ok(found)
}

/// Sets [`Plan::parts`].
fn look_at_tables(
    outlook: &Outlook,
    repo: &ostree::Repo,
    image: &Image,
    patches: &Patches,
    for_import: bool,
    plan: &mut Plan,
) -> Result<Found, Error> {
    let mut found = Found::default();
    let has_parts = |layer: &Layer| matches!(partial::usable(layer), Ok(Some(_)));
    let mut layers = Vec::new();
    let mut room = Tables::default();
    for layer in &plan.missing {
        match partial::usable(layer) {
            Ok(Some(_)) if patches.is_plainly_best(layer, rest_of(repo, layer)) => {}
            Ok(Some((chunked, split))) if outlook.fetch.has_parts() => {
                match room.take(chunked, split, rest_of(repo, layer), repo) {
                    Ok(()) => layers.push(layer.clone()),
                    Err(reason) => found.notes.push(whole(layer, reason)),
                }
            }
            Ok(Some(_)) => found
                .notes
                .push(whole(layer, "its source gives no parts of it")),
            Ok(None) => {}
            Err(reason) => found.notes.push(whole(layer, reason)),
        }
    }
    if !image.layers.iter().any(has_parts) {
        return Ok(found);
    }
    let stock = Stock::of(repo, for_import)?;
    let rules = rules(repo, image, &outlook.cancellable)?;
    let estimates = estimate_all(outlook, repo, &layers, |layer| Terms {
        stock: &stock,
        rules,
        guess: None,
        whole: rest_of(repo, layer),
    });
    stock.contents.sync();
    for (layer, estimate) in layers.iter().zip(estimates) {
        match estimate {
            Ok(bytes) => plan.by_parts(layer, bytes, layer.size - rest_of(repo, layer)),
            Err(Setback::Failed(Error::Cancelled)) => return Err(Error::Cancelled),
            Err(Setback::Whole(reason)) => found.notes.push(whole(layer, &reason)),
            Err(Setback::Failed(error)) => found.notes.push(whole(layer, &error.to_string())),
        }
    }
    found.stock = Some(stock);
    Ok(found)
}

/// How much more of tables of contents is looked at.
struct Tables {
    packed: u64,
    unpacked: u64,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            packed: TABLES,
            unpacked: TABLES_UNPACKED,
        }
    }
}

impl Tables {
    /// Takes the table of a layer of which `rest` bytes are to be fetched otherwise.
    ///
    /// # Errors
    /// Why it is not looked at.
    fn take(
        &mut self,
        chunked: &Chunked,
        split: &Part,
        rest: u64,
        repo: &ostree::Repo,
    ) -> Result<(), &'static str> {
        let packed = self.packed.checked_sub(chunked.toc.length + split.length);
        let unpacked = self.unpacked.checked_sub(chunked.toc.unpacked);
        let (Some(packed), Some(unpacked)) = (packed, unpacked) else {
            return Err("the tables of contents of the image are too long");
        };
        if partial::cost(chunked, split, repo) > rest / TABLE {
            return Err("its table of contents is too long for what it could save");
        }
        (self.packed, self.unpacked) = (packed, unpacked);
        Ok(())
    }
}

/// How many of the tables of these layers are looked at side by side.
fn side_by_side(layers: &[Layer]) -> usize {
    let tables = layers.iter().filter_map(|layer| layer.chunked.as_ref());
    let longest = tables.map(|chunked| chunked.toc.unpacked).max();
    let count = AT_A_TIME / longest.unwrap_or(0).max(1);
    // Few enough for any integer after this.
    (count.clamp(1, CONNECTIONS as u64) as usize).min(layers.len())
}

/// Bytes that are still to be fetched for the whole layer.
pub(crate) fn rest_of(repo: &ostree::Repo, layer: &Layer) -> u64 {
    use ostree::prelude::FileExt as _;
    let path = repo.path().path().unwrap_or_default();
    let kept = partial_blob::kept(&path, layer);
    layer.size.saturating_sub(kept)
}

/// For the log.
pub(crate) fn whole(layer: &Layer, reason: &str) -> String {
    format!("layer {} is fetched whole: {reason}", layer.digest)
}

/// As far as the base is here: without it most of a host's layers have nothing to share anyway.
fn rules(
    repo: &ostree::Repo,
    image: &Image,
    cancellable: &gio::Cancellable,
) -> Result<PathRules, Error> {
    match merge::rules(repo, image, cancellable) {
        Err(Error::Raced(_)) => Ok(PathRules::current(true)),
        other => other,
    }
}

/// The estimates in the order of the layers.
fn estimate_all<'a>(
    outlook: &Outlook,
    repo: &ostree::Repo,
    layers: &[Layer],
    terms: impl Fn(&Layer) -> Terms<'a>,
) -> Vec<Result<u64, Setback>> {
    let terms: Vec<Terms<'_>> = layers.iter().map(terms).collect();
    let next = AtomicUsize::new(0);
    let mut estimates: Vec<(usize, _)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..side_by_side(layers))
            .map(|_| {
                let (repo, cancellable) = (repo.clone(), outlook.cancellable.clone());
                let (next, terms) = (&next, &terms);
                scope.spawn(move || {
                    let mut estimates = Vec::new();
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let (Some(layer), Some(terms)) = (layers.get(index), terms.get(index))
                        else {
                            return estimates;
                        };
                        // What comes now is told before anybody counts.
                        let expected = AtomicU64::new(u64::MAX);
                        let reach = outlook.reach(layer, &outlook.fetched, &expected);
                        let estimate = partial::estimate(&reach, &repo, terms, &cancellable);
                        estimates.push((index, estimate));
                    }
                })
            })
            .collect();
        let threads = threads.into_iter();
        threads
            .flat_map(|thread| thread.join().unwrap_or_default())
            .collect()
    });
    estimates.sort_by_key(|(index, _)| *index);
    let mut estimates = estimates.into_iter().peekable();
    // A thread that panicked has left its layers out.
    let missing = || Err(Setback::Whole("nothing is known of it".to_owned()));
    let at = |index| estimates.next_if(|(at, _)| *at == index);
    (0..layers.len())
        .map(at)
        .map(|found| found.map_or_else(missing, |(_, estimate)| estimate))
        .collect()
}

/// Bytes that the observer was told of the layer, if it is fetched by parts.
pub(crate) fn planned(lanes: &Lanes, layer: &Layer) -> Option<u64> {
    lanes.stock.as_ref()?;
    let (plan, digest) = (&lanes.plan, &layer.digest);
    let planned = plan.parts.get(digest).copied();
    // A delta was so much better that nobody looked at the table, and has failed.
    let may_do = || {
        let has_parts = matches!(partial::usable(layer), Ok(Some(_)));
        plan.deltas.contains_key(digest) && has_parts && lanes.outlook.fetch.has_parts()
    };
    planned.or_else(|| may_do().then_some(0))
}

/// Fetches the layer by parts and writes it, if that is how it is to be fetched; no ref is set.
pub(crate) fn pull(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
) -> Result<Option<Pulled>, Error> {
    let (Some(stock), Some(planned)) = (&lanes.stock, planned(lanes, layer)) else {
        return Ok(None);
    };
    let rest = rest_of(transaction.repo(), layer);
    let terms = Terms {
        stock,
        rules,
        guess: lanes.guess.as_ref(),
        whole: rest,
    };
    let outlook = &lanes.outlook;
    let (fetched, expected) = (AtomicU64::new(0), AtomicU64::new(planned));
    let reach = outlook.reach(layer, &fetched, &expected);
    let pulled = partial::pull(&reach, &terms, transaction, &lanes.slices);
    if let Err(Setback::Whole(_)) = &pulled {
        reach.expect(rest);
    }
    outlook
        .fetched
        .fetch_add(fetched.into_inner(), Ordering::Relaxed);
    match pulled {
        Ok(pulled) => Ok(Some(pulled)),
        Err(Setback::Whole(reason)) => {
            let note = whole(layer, &reason);
            tracing::info!("{note}");
            outlook.observer.note(note);
            Ok(None)
        }
        Err(Setback::Failed(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layer::{Compression, LayerKind, Transfer};
    use crate::image::reference::Digest;

    fn chunked(packed: u64, unpacked: u64) -> (Chunked, Part) {
        let part = |offset, length, unpacked| Part {
            offset,
            length,
            unpacked,
        };
        let split = part(1000, 1, 1);
        let chunked = Chunked {
            toc: part(2000, packed, unpacked),
            toc_digest: Digest::of(b"table"),
            tar_split: Some(split),
            old_writer: false,
        };
        (chunked, split)
    }

    #[test]
    fn tables_are_looked_at_within_bounds() {
        let directory = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(directory.path());
        repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE)
            .unwrap();
        let much = 1 << 40;
        for (packed, unpacked, rest, expected) in [
            // The bytes on the wire, those in memory, and what they could save.
            (TABLES / 4 - 1, 1000, much, 4),
            (1000, TABLES_UNPACKED / 8, much, 8),
            (1000, 1000, TABLE * 2000, 9),
            (1000, 1000, TABLE * 2000 - 1, 0),
        ] {
            let mut room = Tables::default();
            let (chunked, split) = chunked(packed, unpacked);
            let taken = (0..9).filter(|_| room.take(&chunked, &split, rest, &repo).is_ok());
            assert_eq!(taken.count(), expected, "{packed} {unpacked} {rest}");
        }
    }

    #[test]
    fn long_tables_are_looked_at_one_by_one() {
        let layer = |unpacked| Layer {
            index: 0,
            digest: Digest::of(b"layer"),
            size: 1 << 30,
            compression: Compression::Zstd,
            transfer: Transfer::Blob,
            diff_id: Digest::of(b"tar"),
            kind: LayerKind::Plain,
            chunked: Some(chunked(1, unpacked).0),
            not_chunked: None,
        };
        for (unpacked, expected) in [
            (&[0; 0][..], 0),
            (&[AT_A_TIME], 1),
            (&[1, 1], 2),
            (&[1, 1, 1, 1, 1], CONNECTIONS),
            (&[1, 1, 1, AT_A_TIME / 2, 1], 2),
            (&[1, 2 * AT_A_TIME, 1], 1),
        ] {
            let layers: Vec<_> = unpacked.iter().map(|unpacked| layer(*unpacked)).collect();
            assert_eq!(side_by_side(&layers), expected, "{unpacked:?}");
        }
    }
}
