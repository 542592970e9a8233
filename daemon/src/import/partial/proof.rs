//! The proof that what is in the repository is the layer: its tar, made again, has the diff_id.

use std::io;

use ostree::prelude::*;
use ostree::{ObjectType, gio};

use super::Setback;
use super::description::Description;
use super::known::{has_content, open};
use super::wanted::Wanted;
use crate::chunked::tar_split::{self, Rebuild};
use crate::chunked::{Part, TarSplitError};
use crate::image::layer::Layer;
use crate::image::reference::Digest;
use crate::import::error::{During, Error};
use crate::import::objects::hex;

/// Compares the table of contents with the rest of the tar, entry by entry, and the tar with the diff_id.
///
/// # Errors
/// [`Setback::Whole`] when the table says something else than the tar, when the tar is not the one that the
/// image promises, or when a file that was here is damaged. A damaged one is removed, so that the whole layer
/// brings it anew.
pub(super) fn prove(
    layer: &Layer,
    description: &Description,
    wanted: &Wanted,
    repo: &ostree::Repo,
    cancellable: &gio::Cancellable,
) -> Result<(), Setback> {
    let differs = |error: TarSplitError| Setback::Whole(format!("its table of contents: {error}"));
    let split: Option<&Part> = layer.chunked.as_ref().and_then(|c| c.tar_split.as_ref());
    let (Some(split), Some(digest)) = (split, description.toc.tar_split_digest) else {
        return Err(Setback::Whole("nothing proves its tar".to_owned()));
    };
    let pieces = tar_split::read(&description.tar_split, &digest, split.unpacked);
    let pieces = pieces.map_err(differs)?;
    let mut rebuild = Rebuild::default();
    let content = |name: &str| {
        if cancellable.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let target = wanted
            .files
            .get(name)
            .map(|target| &wanted.targets[*target]);
        let object = target.and_then(|target| target.id);
        let object = object.ok_or_else(|| io::Error::other("it is no file of the table"))?;
        let file = open(repo, &object, cancellable).map_err(io::Error::other)?;
        file.ok_or_else(|| io::Error::other("it is no file in the repository"))
    };
    let compared = tar_split::matches(
        &description.toc,
        pieces.map(|piece| {
            let piece = piece?;
            rebuild.add(&piece, content)?;
            Ok(piece)
        }),
    );
    if cancellable.is_cancelled() {
        return Err(Error::Cancelled.into());
    }
    let reason = match compared {
        // Of another length than the table says, or not to be read.
        Err(error @ TarSplitError::Content { .. }) => differs(error),
        Err(error) => return Err(differs(error)),
        Ok(()) => {
            let found = rebuild.finish();
            if Digest::from_sha256(&found) == layer.diff_id {
                return Ok(());
            }
            let (found, expected) = (hex(&found), &layer.diff_id);
            tracing::warn!(digest = %layer.digest, found, %expected, "a layer is not what its parts make");
            Setback::Whole(format!(
                "its parts make a tar with the digest {found}, not {expected}"
            ))
        }
    };
    let damaged = remove_damaged(wanted, repo, cancellable)?;
    match damaged.first() {
        Some(object) => Err(Setback::Whole(format!(
            "{} objects of the repository are damaged, {object} for one",
            damaged.len()
        ))),
        None => Err(reason),
    }
}

/// Removes the objects that are not what their names say; tells them. What is deployed has a hard link of its
/// own, so that nothing that runs loses a file.
fn remove_damaged(
    wanted: &Wanted,
    repo: &ostree::Repo,
    cancellable: &gio::Cancellable,
) -> Result<Vec<String>, Error> {
    let mut damaged = Vec::new();
    for target in &wanted.targets {
        let (Some(content), Some(id)) = (&target.content, &target.id) else {
            continue;
        };
        if cancellable.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let file = open(repo, id, cancellable).ok().flatten();
        let has = file.map(|file| has_content(file, content));
        if has.is_some_and(|has| has.unwrap_or(false)) {
            continue;
        }
        // It may only be another file than the index says: its name decides.
        let object = hex(id);
        let looked = repo.fsck_object(ObjectType::File, &object, Some(cancellable));
        match looked.during("looking at an object that seems to be damaged") {
            Ok(()) => continue,
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => tracing::warn!(object, %error, "a file of the repository is damaged"),
        }
        match repo.delete_object(ObjectType::File, &object, Some(cancellable)) {
            Ok(()) => damaged.push(object),
            // Somebody else was faster.
            Err(error) => tracing::debug!(object, %error, "a damaged object cannot be removed"),
        }
    }
    Ok(damaged)
}
