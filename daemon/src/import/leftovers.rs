//! Which blobs that did not come whole stay, for whoever goes on with them, and which tables of contents.
//!
//! Owns the end of what [`partial_blob`](super::partial_blob) writes, and of the tables that were fetched
//! for a plan, when it is not the layer that ends it. Rule: only what an image lacks that is guarded, or
//! that a job comes back to.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ostree::gio;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::error::{During, Error, available};
use super::partial::KEPT;
use super::partial_blob::PREFIX;
use super::plan::stored_image;
use super::transaction::{is_complete, open, resolve, tmp_dir};
use crate::image::reference::{BASEIMAGE_PREFIX, Digest, blob_ref, guard_ref};

/// The images of which half-fetched layers stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All that osteward guards.
    Guarded,
    /// Only those with these manifests, as far as they are guarded.
    Only(Vec<Digest>),
}

/// Removes half-fetched layers, and tables of contents, of other images than the `wanted` ones from the
/// repository at `path`, or only counts them for a `dry_run`; returns the bytes that it frees. Blocks.
///
/// # Errors
/// When the repository cannot be read.
pub fn discard_half_fetched(path: &Path, wanted: &Wanted, dry_run: bool) -> Result<u64, Error> {
    let repo = open(path, &gio::Cancellable::new())?;
    let Lacking { layers, tables } = lacking(&repo, wanted)?;
    Ok(remove(&repo, PREFIX, &layers, dry_run)? + remove(&repo, KEPT, &tables, dry_run)?)
}

/// Removes the files with names of this prefix, but for those of `wanted`; tells how many bytes that gives.
fn remove(
    repo: &ostree::Repo,
    prefix: &str,
    wanted: &HashSet<Digest>,
    dry_run: bool,
) -> Result<u64, Error> {
    let mut freed = 0;
    for (entry, digest) in kept(repo, prefix)? {
        if digest.is_some_and(|digest| wanted.contains(&digest)) {
            continue;
        }
        let found = bytes(&entry);
        if !dry_run && let Err(error) = fs::remove_file(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "half a layer cannot be removed");
            continue;
        }
        freed += found;
    }
    Ok(freed)
}

/// Removes the half-fetched layers that nobody is fetching right now, because room is worth more; tells how
/// many bytes that gave.
pub(super) fn give_up(repo: &ostree::Repo) -> u64 {
    let mut freed = 0;
    for (entry, _) in kept(repo, PREFIX).unwrap_or_default() {
        let (path, found) = (entry.path(), bytes(&entry));
        if is_open(&path) {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => freed += found,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "half a layer cannot be removed");
            }
        }
    }
    freed
}

/// Whether somebody holds the lock of a half-fetched layer.
fn is_open(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
        return false;
    };
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    locked == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Removes the layers that nobody goes on with, when an import begins; one can do without that, too. Tables
/// stay: what a check found may be looked at next.
pub(super) fn tidy(repo: &ostree::Repo) {
    let lacking = lacking(repo, &Wanted::Guarded);
    let removed = lacking.and_then(|lacking| remove(repo, PREFIX, &lacking.layers, false));
    if let Err(error) = removed {
        tracing::warn!(%error, "half-fetched layers stay that nobody needs");
    }
}

/// Bytes that could be written when all half-fetched layers were given up, as happens when anything else
/// lacks room.
pub(super) fn room(repo: &ostree::Repo) -> Result<u64, Error> {
    let mut room = available(repo);
    for (entry, _) in kept(repo, PREFIX)? {
        room = room.saturating_add(bytes(&entry));
    }
    Ok(room)
}

const LOOKING: &str = "looking for half-fetched layers";

/// All files whose names are this prefix and a digest, and which.
fn kept(repo: &ostree::Repo, prefix: &str) -> Result<Vec<(fs::DirEntry, Option<Digest>)>, Error> {
    let entries = match fs::read_dir(tmp_dir(repo)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.during(LOOKING)?,
    };
    let mut kept = Vec::new();
    for entry in entries {
        let entry = entry.during(LOOKING)?;
        let name = entry.file_name();
        if let Some(hex) = name.to_str().and_then(|name| name.strip_prefix(prefix)) {
            kept.push((entry, format!("sha256:{hex}").parse().ok()));
        }
    }
    Ok(kept)
}

/// What the file occupies; what is no file, or no more, occupies nothing.
fn bytes(entry: &fs::DirEntry) -> u64 {
    match entry.metadata() {
        Ok(found) if found.is_file() => found.blocks().saturating_mul(512),
        _ => 0,
    }
}

/// What somebody goes on with.
#[derive(Default)]
struct Lacking {
    layers: HashSet<Digest>,
    /// Their tables of contents, if they have any.
    tables: HashSet<Digest>,
}

/// The layers that those images have and the repository has not.
fn lacking(repo: &ostree::Repo, wanted: &Wanted) -> Result<Lacking, Error> {
    let flags = ostree::RepoListRefsExtFlags::NONE;
    let mut guards = repo
        .list_refs_ext(Some(BASEIMAGE_PREFIX), flags, gio::Cancellable::NONE)
        .during("listing what is guarded")?;
    if let Wanted::Only(manifests) = wanted {
        let names: Vec<_> = manifests.iter().map(guard_ref).collect();
        guards.retain(|name, _| names.contains(name));
    }
    let cancellable = gio::Cancellable::new();
    let mut lacking = Lacking::default();
    for commit in guards.into_values() {
        let layers = stored_image(repo, &commit).map(|image| image.layers);
        for layer in layers.into_iter().flatten() {
            let is_here = match resolve(repo, &blob_ref(&layer.digest))? {
                Some(commit) => is_complete(repo, &commit, &cancellable)?,
                None => false,
            };
            if !is_here {
                let table = layer.chunked.map(|chunked| chunked.toc_digest);
                lacking.tables.extend(table);
                lacking.layers.insert(layer.digest);
            }
        }
    }
    Ok(lacking)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_is_at_makes_room_and_tables_go_when_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(directory.path());
        repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE)
            .unwrap();
        let path = |prefix: &str, name: &str| {
            let digest = Digest::of(name.as_bytes());
            tmp_dir(&repo).join(format!("{prefix}{}", digest.hex()))
        };
        let (one, two) = (path(PREFIX, "one"), path(PREFIX, "two"));
        let table = path(KEPT, "table");
        for path in [&one, &two, &table] {
            fs::write(path, vec![1; 10_000]).unwrap();
        }
        let open = fs::File::open(&one).unwrap();
        rustix::fs::flock(&open, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(give_up(&repo) >= 10_000);
        assert!(one.exists() && !two.exists() && table.exists());
        assert_eq!(give_up(&repo), 0);
        tidy(&repo);
        assert!(!one.exists() && table.exists());
        let discard = |dry_run| {
            let wanted = Wanted::Guarded;
            discard_half_fetched(directory.path(), &wanted, dry_run).unwrap()
        };
        let counted = discard(true);
        assert!(counted >= 10_000 && table.exists());
        assert_eq!(discard(false), counted);
        assert!(!table.exists());
    }
}
