//! What keeps an image that is not deployed (yet), or half of one, from every tool's clean-up.
//!
//! All tools look for manifests in the commits under `ostree/container/baseimage`, and keep the
//! layers that those name (on-disk notes 1.11). Owns our refs there: one an image, named by its
//! manifest's digest; of the merge commit if there is one, else of a placeholder that has the
//! manifest and nothing else. Invariant: a guard that nobody needs goes with the next import,
//! so that what was given up does not pile up.

use std::collections::BTreeMap;

use ostree::gio;
use ostree::prelude::*;

use super::error::{During, Error};
use super::objects::Attributes;
use super::transaction::Transaction;
use super::tree::Dir;
use super::{DIGEST_KEY, MANIFEST_KEY, slices};
use crate::image::layout::Image;
use crate::image::reference::{BASEIMAGE_PREFIX, Digest, guard_ref};

/// Guards an image that is going to be fetched, from the end of the transaction on, and lets
/// go of others than those that are `needed`.
pub(super) fn half_fetched(
    transaction: &mut Transaction<'_>,
    image: &Image,
    needed: &[Digest],
) -> Result<(), Error> {
    let meta = transaction.dirmeta(&Attributes::default_directory())?;
    let metadata = BTreeMap::from([
        (DIGEST_KEY.to_owned(), image.digest.as_str().to_variant()),
        (MANIFEST_KEY.to_owned(), image.manifest_json.to_variant()),
    ]);
    let metadata = metadata.to_variant();
    let commit = transaction.write_commit(&Dir::new(meta), None, &metadata, 0)?;
    for name in unneeded(transaction.repo(), image, needed)? {
        transaction.remove_ref(&name);
    }
    transaction.set_ref(&guard_ref(&image.digest), &commit);
    Ok(())
}

/// Guards an image that is here as `commit`, at once, and lets go of others than those that
/// are `needed`.
pub(super) fn whole(
    repo: &ostree::Repo,
    image: &Image,
    commit: &str,
    needed: &[Digest],
    cancellable: &gio::Cancellable,
) -> Result<(), Error> {
    let set = |name: &str, commit| {
        repo.set_ref_immediate(None, name, commit, Some(cancellable))
            .during("guarding a pulled image")
    };
    set(&guard_ref(&image.digest), Some(commit))?;
    let unneeded = unneeded(repo, image, needed)?;
    unneeded.iter().try_for_each(|name| set(name, None))
}

/// Our guards of other images than this one and those that are `needed`. What has another
/// name there is of an earlier version, and of nobody.
fn unneeded(repo: &ostree::Repo, image: &Image, needed: &[Digest]) -> Result<Vec<String>, Error> {
    let flags = ostree::RepoListRefsExtFlags::NONE;
    let ours = repo
        .list_refs_ext(Some(BASEIMAGE_PREFIX), flags, gio::Cancellable::NONE)
        .during("listing what is guarded")?;
    let stay: Vec<String> = needed
        .iter()
        .chain([&image.digest])
        .map(guard_ref)
        .collect();
    let ours = ours.into_keys();
    let stays = |name: &str| {
        let mut guards = stay.iter();
        guards.any(|guard| name == guard || slices::is_of(guard, name))
    };
    Ok(ours.filter(|name| !stays(name)).collect())
}
