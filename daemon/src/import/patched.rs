//! Layers made out of an older image that is here, by a delta that is published beside the new one.
//!
//! Owns which layers are made so. Invariants: a delta is taken only
//! where it starts from an image that is here as a whole; what it makes is read as the layer itself would
//! be, and is the layer only with its diff_id; whatever fails on the way means that the layer is fetched.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Observer;
use super::error::{During, Error, available};
use super::feed::Feed;
use super::objects::Id;
use super::older_image::OlderImage;
use super::parts::{self, Outlook, rest_of};
use super::path::PathRules;
use super::pipeline::{Content, Lanes, read_tar};
use super::plan::{Plan, stored_images};
use super::stream::TarStream;
use super::transaction::Transaction;
use crate::delta::{Artifact, Memory, TarDiff};
use crate::image::layer::{Compression, Layer, Transfer};
use crate::image::reference::Digest;

/// A layer may be unpacked to so many bytes, and …
const UNPACKED: u64 = 64 << 20;
/// … to so many times its size more. Layers of systems unpack to four times their size at most; a delta,
/// which anybody can publish, could fill the disk otherwise, where the layer itself would not.
const RATIO: u64 = 8;
/// What a file of a tar takes in the repository, at most: 1,024 bytes of the tar are in a block of 4,096.
const BLOCKS: u64 = 4;

/// A delta that is so many times smaller than the layer is taken without looking at what else there is.
const PLAINLY: u64 = 4;

/// How layers of one image can be made.
#[derive(Debug, Default)]
pub(crate) struct Patches {
    by_layer: HashMap<Digest, Patched>,
}

/// How one layer can be made.
#[derive(Clone, Debug)]
pub(crate) struct Patched {
    /// What is fetched, as if it were a layer.
    blob: Layer,
    from: Arc<OlderImage>,
    memory: Memory,
}

impl Patches {
    /// The smallest of the deltas for each layer, of those that start from an image in the repository.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub(crate) fn find(
        repo: &ostree::Repo,
        artifacts: &[Artifact],
        missing: &[Layer],
    ) -> Result<Patches, Error> {
        let mut patches = Patches::default();
        if artifacts.is_empty() || missing.is_empty() {
            return Ok(patches);
        }
        let memory = Memory::default();
        let stored = stored_images(repo)?;
        let layers: HashMap<_, _> = missing.iter().map(|layer| (&layer.digest, layer)).collect();
        for artifact in artifacts {
            let commit = stored.get(&artifact.source_config);
            let older = commit.or_else(|| stored.get(artifact.source.as_ref()?));
            let Some(commit) = older else { continue };
            let from = Arc::new(OlderImage::of(commit));
            for patch in &artifact.patches {
                let Some(layer) = layers.get(&patch.to) else {
                    continue;
                };
                let blob = Layer {
                    digest: patch.blob.clone(),
                    size: patch.size,
                    compression: Compression::Plain,
                    transfer: Transfer::Blob,
                    chunked: None,
                    not_chunked: None,
                    ..Layer::clone(layer)
                };
                let known = patches.by_layer.get(&patch.to);
                if known.is_none_or(|known| patch.size < known.blob.size) {
                    let (from, memory) = (from.clone(), memory.clone());
                    let patched = Patched { blob, from, memory };
                    patches.by_layer.insert(patch.to.clone(), patched);
                }
            }
        }
        Ok(patches)
    }

    /// Whether the delta for this layer is plainly the best, with `rest` bytes of it still to be fetched.
    pub(crate) fn is_plainly_best(&self, layer: &Layer, rest: u64) -> bool {
        let patched = self.by_layer.get(&layer.digest);
        patched.is_some_and(|patched| patched.blob.size < rest / PLAINLY)
    }

    /// Sets [`Plan::deltas`]: those that take fewer bytes than what is planned otherwise.
    pub(crate) fn settle(mut self, repo: &ostree::Repo, plan: &mut Plan) {
        for layer in plan.missing.clone() {
            let rest = rest_of(repo, &layer);
            let parts = plan.parts.get(&layer.digest).copied();
            let otherwise = parts.unwrap_or(rest).min(rest);
            if let Some(patched) = self.by_layer.remove(&layer.digest)
                && patched.blob.size < otherwise
            {
                plan.by_delta(&layer, patched, layer.size - rest);
            }
        }
    }
}

impl Patched {
    /// Bytes that are fetched for the layer.
    pub(crate) fn size(&self) -> u64 {
        self.blob.size
    }

    /// The tar of `layer`, as it is fetched.
    fn open(
        &self,
        outlook: &Outlook,
        repo: &ostree::Repo,
        layer: &Layer,
    ) -> Result<TarStream, Error> {
        let files = self.from.files(repo, &outlook.cancellable)?;
        let observer: Arc<dyn Observer> = Arc::new(Told {
            observer: outlook.observer.clone(),
            fetched: outlook.fetched.clone(),
            layer: layer.digest.clone(),
        });
        let (runtime, fetch, stop) = (&outlook.runtime, &outlook.fetch, &outlook.stop);
        let feed = Feed::open(runtime, fetch, &self.blob, &observer, stop, None);
        let tar = TarDiff::new(feed, files, limit(layer), &self.memory);
        Ok(TarStream::patched(tar.during("starting a delta")?))
    }
}

/// Whether the layer is to be made by a delta that could fill what is left of the disk.
pub(crate) fn may_fill(lanes: &Lanes, repo: &ostree::Repo, layer: &Layer) -> bool {
    lanes.has_delta(&layer.digest) && available(repo) < limit(layer).saturating_mul(BLOCKS)
}

/// Makes the layer and writes it, if a delta is to be used for it; no ref is set.
///
/// # Errors
/// Only what would keep the layer itself from being written, too; and [`Error::NoSpace`], after which another
/// transaction does without the delta.
pub(crate) fn pull(
    lanes: &Lanes,
    rules: PathRules,
    transaction: &mut Transaction<'_>,
    layer: &Layer,
) -> Result<Option<(Content, Vec<Id>)>, Error> {
    let Some(patched) = lanes.plan.deltas.get(&layer.digest) else {
        return Ok(None);
    };
    if lanes.is_given_up(&layer.digest) {
        return Ok(None);
    }
    let outlook = &lanes.outlook;
    let opened = patched.open(outlook, transaction.repo(), layer);
    let made = opened.and_then(|tar| read_tar(lanes, rules, transaction, layer, tar));
    match made {
        Ok((content, ids, _)) => Ok(Some((content, ids))),
        // What a header claims to need is another thing than room that ran out.
        Err(Error::Cancelled) => Err(Error::Cancelled),
        Err(_) if outlook.stop.is_cancelled() => Err(Error::Cancelled),
        Err(error) => {
            let digest = &patched.blob.digest;
            let note = format!("the delta {digest} is left aside: {error}");
            tracing::warn!("{note}");
            outlook.observer.note(note);
            let planned = parts::planned(lanes, layer);
            let otherwise = planned.unwrap_or_else(|| rest_of(transaction.repo(), layer));
            outlook.observer.more(otherwise);
            lanes.give_up(&layer.digest);
            // No write of this transaction will find room, of whatever it made.
            match error {
                Error::NoSpace { need: 0, .. } => Err(error),
                _ => Ok(None),
            }
        }
    }
}

/// Passes on what is told of a delta as if it were told of the layer.
struct Told {
    observer: Arc<dyn Observer>,
    fetched: Arc<AtomicU64>,
    layer: Digest,
}

impl Observer for Told {
    fn bytes(&self, _: &Digest, delta: u64) {
        // Also if it turns out to be of no use.
        self.fetched.fetch_add(delta, Ordering::Relaxed);
        self.observer.bytes(&self.layer, delta);
    }

    fn more(&self, bytes: u64) {
        self.observer.more(bytes);
    }

    fn note(&self, text: String) {
        self.observer.note(text);
    }
}

/// Most bytes of the tar of this layer, if a delta makes it.
fn limit(layer: &Layer) -> u64 {
    match layer.compression {
        Compression::Plain => layer.size,
        Compression::Gzip | Compression::Zstd => {
            UNPACKED.saturating_add(layer.size.saturating_mul(RATIO))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(compression: Compression, size: u64) -> Layer {
        Layer {
            index: 0,
            digest: Digest::of(b"layer"),
            size,
            compression,
            transfer: Transfer::Blob,
            diff_id: Digest::of(b"tar"),
            kind: crate::image::layer::LayerKind::Plain,
            chunked: None,
            not_chunked: None,
        }
    }

    #[test]
    fn the_fewest_bytes_decide() {
        use ostree::gio;

        let directory = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(directory.path());
        repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE)
            .unwrap();
        let whole = layer(Compression::Gzip, 1000);
        for (by_parts, delta, expected) in [
            (None, 999, 999),
            (None, 1000, 1000),
            (None, 5000, 1000),
            (Some(500), 499, 499),
            (Some(500), 500, 500),
            (Some(500), 999, 500),
            // Its table could not be kept, and is fetched twice.
            (Some(1100), 1050, 1000),
            (Some(1100), 999, 999),
        ] {
            let from = Arc::new(OlderImage::of(""));
            let patched = Patched {
                blob: layer(Compression::Plain, delta),
                from,
                memory: Memory::default(),
            };
            let mut plan = Plan::default();
            plan.missing.push(whole.clone());
            if let Some(bytes) = by_parts {
                plan.by_parts(&whole, bytes, 0);
            }
            let patches = Patches {
                by_layer: HashMap::from([(whole.digest.clone(), patched)]),
            };
            assert!(!patches.is_plainly_best(&whole, 4 * delta));
            assert!(patches.is_plainly_best(&whole, 4 * delta + 4));
            patches.settle(&repo, &mut plan);
            assert_eq!(plan.size_of(&whole), expected, "{by_parts:?} {delta}");
            assert_eq!(plan.download_size(), expected, "{by_parts:?} {delta}");
            assert_eq!(
                plan.deltas.len(),
                usize::from(delta < by_parts.unwrap_or(1000).min(1000))
            );
        }
    }

    #[test]
    fn what_a_delta_may_make_follows_from_the_layer() {
        assert_eq!(limit(&layer(Compression::Plain, 10)), 10);
        assert_eq!(limit(&layer(Compression::Gzip, 10)), (64 << 20) + 80);
        assert_eq!(limit(&layer(Compression::Zstd, u64::MAX)), u64::MAX);
    }
}
