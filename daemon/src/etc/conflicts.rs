//! What finalization makes of an `/etc` that was changed on the host and in the image.
//!
//! libostree copies what was changed on the host over what the new image brings, and asks
//! nobody. So what the image has changed in the same place is lost, which is worth knowing; and
//! where a directory and a file meet it gives up, at shutdown, when nobody sees it.

use std::io;
use std::path::{Path, PathBuf};

use super::{Change, Directory, Entry, Kind, Tree, is_same, names};

/// What comes of a path that was changed on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The host's version stays, and the image's new one is not seen.
    Kept,
    /// It stays removed, although the image has a new version.
    StaysRemoved,
    /// The host's version stays, although the image has none any more.
    Orphaned,
    /// The finalization fails: a directory meets a file.
    Blocked,
}

impl Outcome {
    /// The word of the API.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Kept => "kept",
            Outcome::StaysRemoved => "stays-removed",
            Outcome::Orphaned => "orphaned",
            Outcome::Blocked => "blocked",
        }
    }
}

/// A path that was changed on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Below `/etc`.
    pub path: PathBuf,
    /// What comes of it.
    pub outcome: Outcome,
}

/// The conflicts of `changes`, which were made to `current` since it was made from `defaults`,
/// with the defaults of a new image. Blocks.
///
/// # Errors
/// When a tree cannot be read.
pub fn conflicts(
    changes: &[Change],
    defaults: &Directory,
    current: &Directory,
    new: &dyn Tree,
) -> io::Result<Vec<Conflict>> {
    let mut found = Vec::new();
    for change in changes {
        let outcome = if is_below_a_file(change, changes, new)? {
            Some(Outcome::Blocked)
        } else {
            outcome(change, defaults, current, new)?
        };
        if let Some(outcome) = outcome {
            let path = change.path.clone();
            found.push(Conflict { path, outcome });
        }
    }
    Ok(found)
}

/// Whether the new image has a file where this path has a directory above it, and nothing that
/// the merge does first makes it one.
fn is_below_a_file(change: &Change, changes: &[Change], new: &dyn Tree) -> io::Result<bool> {
    for above in change.path.ancestors().skip(1) {
        if above.as_os_str().is_empty() {
            break;
        }
        let is_file = match new.entry(above)? {
            Some(Entry::File(..) | Entry::Other(_)) => true,
            // Where a link leads is seen only when it is followed.
            None | Some(Entry::Directory(_) | Entry::Link(..)) => false,
        };
        if is_file {
            return Ok(!is_copied_before(change, above, changes));
        }
    }
    Ok(false)
}

/// The merge removes first, then copies what was modified, then what was added; a directory
/// that is among those is copied as a whole.
fn is_copied_before(change: &Change, above: &Path, changes: &[Change]) -> bool {
    changes
        .iter()
        .filter(|other| other.path == above)
        .any(|other| match (other.kind, change.kind) {
            (Kind::Modified, Kind::Modified | Kind::Added) | (Kind::Added, Kind::Added) => true,
            (Kind::Removed, _) | (_, Kind::Removed) | (Kind::Added, Kind::Modified) => false,
        })
}

fn outcome(
    change: &Change,
    defaults: &Directory,
    current: &Directory,
    new: &dyn Tree,
) -> io::Result<Option<Outcome>> {
    let path = &change.path;
    let (before, here, there) = (
        defaults.entry(path)?,
        current.entry(path)?,
        new.entry(path)?,
    );
    let is_directory = |entry: &Option<Entry>| matches!(entry, Some(Entry::Directory(_)));
    if change.kind != Kind::Removed && is_directory(&there) && !is_directory(&here) {
        return Ok(Some(Outcome::Blocked));
    }
    if is_same(path, (current, &here), (new, &there))? {
        return Ok(None);
    }
    let is_as_before = match change.kind {
        // Of what was below it, nothing else is told.
        Kind::Removed => is_same_below(path, defaults, new)?,
        Kind::Modified | Kind::Added => is_same(path, (defaults, &before), (new, &there))?,
    };
    if is_as_before {
        return Ok(None);
    }
    Ok(match change.kind {
        Kind::Removed => there.map(|_| Outcome::StaysRemoved),
        Kind::Modified | Kind::Added if there.is_some() => Some(Outcome::Kept),
        Kind::Modified => Some(Outcome::Orphaned),
        Kind::Added => None,
    })
}

/// Whether the new image has everything that was at and below `path`, as it was.
fn is_same_below(path: &Path, defaults: &Directory, new: &dyn Tree) -> io::Result<bool> {
    let (before, there) = (defaults.entry(path)?, new.entry(path)?);
    if !is_same(path, (defaults, &before), (new, &there))? {
        return Ok(false);
    }
    for name in names(&defaults.0.join(path))? {
        if !is_same_below(&path.join(name), defaults, new)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::etc::{Sight, changes};

    fn tree(root: &Path, files: &[&str]) {
        fs::create_dir_all(root).unwrap();
        for line in files {
            let (path, text) = line.split_once('=').unwrap();
            let path = root.join(path);
            if text == "/" {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }
    }

    /// `path=text` of a file, `path=/` of a directory.
    fn found(defaults: &[&str], current: &[&str], new: &[&str]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let place = |name: &str| Directory(root.path().join(name));
        let (old, here, there) = (place("old"), place("here"), place("there"));
        tree(&old.0, defaults);
        tree(&here.0, current);
        tree(&there.0, new);
        let changes = changes(&old.0, &here.0, Sight::All).unwrap();
        let conflicts = conflicts(&changes, &old, &here, &there).unwrap();
        let line = |one: &Conflict| format!("{} {}", one.outcome.name(), one.path.display());
        conflicts.iter().map(line).collect()
    }

    #[test]
    fn only_what_changed_on_both_sides_is_a_conflict() {
        let old = ["a=1", "b=1", "c=1", "d=1", "e=1"];
        // a: here; b: there; c: both, alike; d: neither; e: both.
        let here = ["a=2", "b=1", "c=2", "d=1", "e=2", "own=1"];
        let there = ["a=1", "b=2", "c=2", "d=1", "e=3", "new=1"];
        assert_eq!(found(&old, &here, &there), ["kept e"]);
    }

    #[test]
    fn what_is_gone_on_one_side() {
        let old = ["a=1", "b=1", "c=1", "d/x=1", "same/x=1"];
        let here = ["b=2", "c=2"];
        let there = ["a=2", "c=2", "d/x=2", "same/x=1"];
        assert_eq!(
            found(&old, &here, &there),
            ["stays-removed a", "orphaned b", "stays-removed d"]
        );
        assert_eq!(found(&["a=1"], &[], &[]), Vec::<String>::new());
        assert_eq!(found(&[], &["a=1"], &["a=1"]), Vec::<String>::new());
        assert_eq!(found(&[], &["a=1"], &["a=2"]), ["kept a"]);
    }

    #[test]
    fn a_directory_that_meets_a_file() {
        // A file here, a directory there: the merge gives up.
        assert_eq!(found(&["a=1"], &["a=2"], &["a/x=1"]), ["blocked a"]);
        assert_eq!(found(&[], &["a=2"], &["a=/"]), ["blocked a"]);
        // A file in a directory that is a file there: likewise.
        assert_eq!(found(&["d/x=1"], &["d/x=2"], &["d=1"]), ["blocked d/x"]);
        assert_eq!(
            found(&["d/x=1"], &["d/x=1", "d/y=1"], &["d=1"]),
            ["blocked d/y"]
        );
        assert_eq!(
            found(&["d/x=1", "d/z=1"], &["d/z=1"], &["d=1"]),
            ["blocked d/x"]
        );
        // A directory that was added here is copied as a whole over the file.
        assert_eq!(found(&[], &["d/x=1"], &["d=1"]), ["kept d"]);
    }
}
