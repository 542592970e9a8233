//! A layer of which only those files are fetched that are not here yet.
//!
//! Its table of contents says what is in it ([`description`]), the index of contents what of
//! that is in the repository ([`known`]), and the rest comes in ranges of the blob
//! ([`missing`]). Invariants: every file has the digest that the table names; the tree is that
//! of the whole layer; nothing is called the layer before its tar was made again out of what is
//! in the repository, and had the diff_id ([`proof`]). Whatever is wrong with a table of
//! contents, with a part of the blob, or with where they come from, only means that the whole
//! layer is fetched: its digests decide alone what is an error.

mod description;
mod known;
mod local;
mod missing;
mod proof;
mod reach;
mod wanted;

use std::sync::Arc;

use ostree::gio;

pub(crate) use self::description::KEPT;
pub(crate) use self::known::Stock;
use self::local::{forget_removed, write_local};
use self::missing::Piece;
pub(crate) use self::reach::Reach;
use self::wanted::Wanted;
use super::error::Error;
use super::guess::Guess;
use super::index::Contents;
use super::layer_tree::LayerTree;
use super::objects::{Id, check_room};
use super::path::PathRules;
use super::slices::Slices;
use super::transaction::{Transaction, tmp_dir};
use super::write_pool::WritePool;
use crate::chunked::{Chunked, Part};
use crate::image::layer::{Layer, LayerKind, Transfer};

/// Smaller layers are fetched whole: it would take more requests, and hardly fewer bytes.
const SMALLEST: u64 = 256 * 1024;
/// Parts are fetched if that saves at least this part of the layer.
const SAVING: u64 = 16;

/// Why a layer is not fetched by parts.
#[derive(Debug)]
pub(crate) enum Setback {
    /// The whole will do; the reason is for the log.
    Whole(String),
    /// Neither will the whole.
    Failed(Error),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Where the table of contents of a layer is and what proves the rest, if both are there.
///
/// # Errors
/// Why not, if it has a table of contents.
pub(crate) fn usable(layer: &Layer) -> Result<Option<(&Chunked, &Part)>, &str> {
    if layer.kind != LayerKind::Plain || layer.transfer != Transfer::Blob {
        return Ok(None);
    }
    let Some(chunked) = &layer.chunked else {
        return layer.not_chunked.as_deref().map_or(Ok(None), Err);
    };
    match (chunked.old_writer, &chunked.tar_split) {
        (true, _) => Err("it was written in the old format, where nothing proves the whole tar"),
        (false, None) => Err("it has no tar-split, and so nothing proves the whole tar"),
        (false, Some(split)) => Ok((layer.size >= SMALLEST).then_some((chunked, split))),
    }
}

/// A layer whose parts were looked at.
struct Looked {
    description: description::Description,
    wanted: Wanted,
    /// Objects with the content of a target, but another header.
    elsewhere: Vec<Option<Id>>,
    pieces: Vec<Piece>,
    /// Bytes between two files that are fetched along with them, at most.
    gap: u64,
}

/// What an import remembers of a layer between its plan and the pull, so that the one does what the other
/// said.
pub(super) struct Begun {
    description: description::Description,
    gap: u64,
}

impl Begun {
    /// How much there is of it.
    fn entries(&self) -> usize {
        self.description.toc.entries.len()
    }
}

impl Looked {
    fn at(
        reach: &Reach<'_>,
        repo: &ostree::Repo,
        terms: &Terms<'_>,
        cancellable: &gio::Cancellable,
    ) -> Result<Self, Setback> {
        let Terms {
            stock,
            rules,
            guess,
            ..
        } = *terms;
        let (chunked, split) = match usable(reach.layer) {
            Ok(Some(usable)) => usable,
            Ok(None) => return Err(Setback::Whole("it has no parts".to_owned())),
            Err(reason) => return Err(Setback::Whole(reason.to_owned())),
        };
        if stock.is_empty(repo) {
            return Err(Setback::Whole(
                "nothing is here that it could share".to_owned(),
            ));
        }
        let (description, gap) = match stock.begun(reach.layer) {
            Some(Begun { description, gap }) => (description, gap),
            None => {
                let description = description::describe(reach, chunked, split, repo)?;
                (description, missing::gap(reach.fetch.pace()))
            }
        };
        let entries = &description.toc.entries;
        let mut wanted = Wanted::of(entries, rules, guess, reach.layer)?;
        let elsewhere = stock.look_up(repo, &mut wanted, entries, rules, cancellable)?;
        let pieces = missing::pieces(&wanted, &elsewhere, gap);
        Ok(Self {
            description,
            wanted,
            elsewhere,
            pieces,
            gap,
        })
    }

    /// Bytes that are still to be fetched.
    fn rest(&self) -> u64 {
        let ranges = self.pieces.iter().map(|piece| &piece.range);
        ranges.map(|range| range.end - range.start).sum()
    }

    /// Bytes of files that are written, when all of them are missing that seem to be.
    fn unpacked(&self) -> u64 {
        let pieces = self.pieces.iter().map(Piece::unpacked);
        let targets = self.wanted.targets.iter().zip(&self.elsewhere);
        let recast =
            targets.filter(|(target, elsewhere)| target.id.is_none() && elsewhere.is_some());
        let recast = recast.filter_map(|(target, _)| target.content.map(|content| content.size));
        pieces.chain(recast).fold(0, u64::saturating_add)
    }

    /// `more`: bytes that are to be fetched beside those of the files.
    fn is_worth_it(&self, Terms { whole, .. }: &Terms<'_>, more: u64) -> Result<(), Setback> {
        let rest = self.rest().saturating_add(more);
        if rest > *whole - *whole / SAVING {
            return Err(Setback::Whole(format!(
                "{rest} of its {whole} bytes would be fetched anyway"
            )));
        }
        Ok(())
    }
}

/// What a layer is compared with.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// What is here.
    pub(crate) stock: &'a Stock,
    /// Where its files go …
    pub(crate) rules: PathRules,
    /// … and with which labels. They do not matter for an [`estimate`]: a content under another header
    /// counts as being here all the same.
    pub(crate) guess: Option<&'a Guess>,
    /// Bytes that are to be fetched for the whole layer.
    pub(crate) whole: u64,
}

/// How many bytes are still to be fetched if the layer is fetched by parts. Nothing of it is written.
///
/// # Errors
/// [`Setback::Whole`] where the whole layer is the better choice.
pub(crate) fn estimate(
    reach: &Reach<'_>,
    repo: &ostree::Repo,
    terms: &Terms<'_>,
    cancellable: &gio::Cancellable,
) -> Result<u64, Setback> {
    let looked = Looked::at(reach, repo, terms, cancellable)?;
    let again = match usable(reach.layer) {
        Ok(Some((chunked, split))) => cost(chunked, split, repo),
        _ => 0,
    };
    looked.is_worth_it(terms, again)?;
    let rest = looked.rest().saturating_add(again);
    let Looked {
        description, gap, ..
    } = looked;
    terms.stock.begin(reach.layer, Begun { description, gap });
    Ok(rest)
}

/// Bytes that are fetched for the table of contents, if it is not kept.
pub(crate) fn cost(chunked: &Chunked, split: &Part, repo: &ostree::Repo) -> u64 {
    if description::is_kept(chunked, &tmp_dir(repo)) {
        return 0;
    }
    description::cost(chunked, split)
}

/// A layer that is in the repository.
pub(crate) struct Pulled {
    pub(crate) tree: LayerTree,
    /// The objects of its slots.
    pub(crate) ids: Vec<Id>,
}

/// Fetches what is missing of the layer and writes it; no ref is set.
///
/// # Errors
/// [`Setback::Whole`] when the whole layer has to be fetched, or is the better choice.
pub(crate) fn pull(
    reach: &Reach<'_>,
    terms: &Terms<'_>,
    transaction: &mut Transaction<'_>,
    slices: &Slices,
) -> Result<Pulled, Setback> {
    let (repo, cancellable) = (transaction.repo(), transaction.cancellable().clone());
    let stock = terms.stock;
    let mut looked = Looked::at(reach, repo, terms, &cancellable)?;
    // Before anything is written: one small content may be asked for under thousands of headers.
    let unpacked = looked.unpacked();
    check_room(unpacked, &tmp_dir(repo)).map_err(|_| Error::NoSpace {
        need: unpacked,
        have: 0,
        where_: String::new(),
    })?;
    let lost = write_local(&mut looked, repo, &stock.contents, &cancellable)?;
    if lost > 0 {
        // What could not be read after all has to be fetched like the rest.
        looked.pieces = missing::pieces(&looked.wanted, &looked.elsewhere, looked.gap);
    }
    looked.is_worth_it(terms, 0)?;
    reach.expect(looked.rest());
    if fetch(reach, &mut looked, &stock.contents, transaction, slices)? {
        forget_removed(&mut looked.wanted, repo, &cancellable)?;
    }
    // Contents that were fetched once for several objects are here now.
    looked.elsewhere = stock.look_again(repo, &mut looked.wanted, &cancellable)?;
    let lost = write_local(&mut looked, repo, &stock.contents, &cancellable)?;
    if lost > 0
        || looked
            .wanted
            .targets
            .iter()
            .any(|target| target.id.is_none())
    {
        return Err(Setback::Whole("a file of it is gone again".to_owned()));
    }
    proof::prove(
        reach.layer,
        &looked.description,
        &looked.wanted,
        repo,
        &cancellable,
    )?;
    if let Some(chunked) = &reach.layer.chunked {
        description::forget(&tmp_dir(repo), chunked);
    }
    let Wanted {
        targets,
        tree,
        slots,
        ..
    } = looked.wanted;
    let ids = slots.iter().filter_map(|slot| targets[*slot].id).collect();
    Ok(Pulled { tree, ids })
}

/// Fetches the pieces, slice by slice; tells whether there was more than one.
fn fetch(
    reach: &Reach<'_>,
    looked: &mut Looked,
    contents: &Arc<Contents>,
    transaction: &mut Transaction<'_>,
    slices: &Slices,
) -> Result<bool, Setback> {
    let pieces = std::mem::take(&mut looked.pieces);
    let (repo, cancellable) = (transaction.repo(), transaction.cancellable().clone());
    let (mut rest, mut is_sliced) = (pieces.as_slice(), false);
    while !rest.is_empty() {
        let count = slices.next(rest.iter().map(Piece::weight));
        let (now, later) = rest.split_at(count);
        rest = later;
        let (fetched, ids) = std::thread::scope(|scope| {
            let tmp = tmp_dir(repo);
            let mut pool = WritePool::start(scope, repo, tmp, Some(contents), &cancellable);
            let fetched = missing::fetch(reach, now, &looked.wanted, &mut pool);
            (fetched, pool.finish())
        });
        // The writers' reason first: the others only learn that they stopped.
        let ids = ids?;
        for (target, slot) in fetched? {
            looked.wanted.targets[target].id = Some(ids[slot]);
        }
        if !rest.is_empty() {
            let targets = now.iter().flat_map(Piece::targets);
            let objects = targets.filter_map(|target| looked.wanted.targets[target].id);
            contents.sync();
            slices.end(transaction, objects)?;
            is_sliced = true;
        }
    }
    Ok(is_sliced)
}
