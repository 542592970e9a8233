//! An image in the repository, as deltas see it: its files, by their paths in its layers.
//!
//! Invariant: nothing of it is read but what is asked for, and its directories once.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use ostree::gio;
use ostree::prelude::*;

use super::commit_files::open_object;
use super::error::Error;
use super::objects::{Id, hex};
use super::path::{PathRules, Place, place};
use super::transaction::load_tree;
use super::tree::Dir;
use crate::delta::SourceFiles;

/// An image that deltas start from.
#[derive(Debug)]
pub(crate) struct OlderImage {
    commit: String,
    tree: Mutex<Option<Arc<Dir>>>,
}

impl OlderImage {
    /// The image that was merged into this commit.
    pub(crate) fn of(commit: &str) -> Self {
        Self {
            commit: commit.to_owned(),
            tree: Mutex::default(),
        }
    }

    /// Its files.
    ///
    /// # Errors
    /// When its directories cannot be read.
    pub(crate) fn files(
        &self,
        repo: &ostree::Repo,
        cancellable: &gio::Cancellable,
    ) -> Result<OlderFiles, Error> {
        Ok(OlderFiles {
            repo: repo.clone(),
            tree: self.tree(repo)?,
            cancellable: cancellable.clone(),
        })
    }

    /// Loaded when it is needed first.
    fn tree(&self, repo: &ostree::Repo) -> Result<Arc<Dir>, Error> {
        let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = &*tree {
            return Ok(tree.clone());
        }
        let loaded = Arc::new(load_tree(repo, &self.commit)?);
        *tree = Some(loaded.clone());
        Ok(loaded)
    }
}

/// The files of an older image, by their paths in its layers.
pub(crate) struct OlderFiles {
    repo: ostree::Repo,
    tree: Arc<Dir>,
    cancellable: gio::Cancellable,
}

impl SourceFiles for OlderFiles {
    fn open(&mut self, path: &str) -> io::Result<Option<File>> {
        let Some(id) = find(&self.tree, path) else {
            return Ok(None);
        };
        open_object(&self.repo, &hex(&id), &self.cancellable).map_err(io::Error::other)
    }

    fn go_on(&mut self) -> io::Result<()> {
        if self.cancellable.is_cancelled() {
            return Err(io::Error::other("it was cancelled"));
        }
        Ok(())
    }
}

impl std::fmt::Debug for OlderFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OlderFiles").finish_non_exhaustive()
    }
}

/// What an entry of a layer became in the tree, by whichever rules it was written there.
fn find(tree: &Dir, path: &str) -> Option<Id> {
    let allow_nonusr = true;
    [true, false].into_iter().find_map(|retain_var| {
        let rules = PathRules {
            allow_nonusr,
            retain_var,
        };
        let Ok(Place::At(parts)) = place(path, rules) else {
            return None;
        };
        let (name, parents) = parts.split_last()?;
        let parents: Vec<&str> = parents.iter().map(AsRef::as_ref).collect();
        tree.dir(&parents)?.files.get(name).copied()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_go_on_when_it_was_cancelled() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = OlderFiles {
            repo: ostree::Repo::new_for_path(directory.path()),
            tree: Arc::new(Dir::new([0; 32])),
            cancellable: gio::Cancellable::new(),
        };
        assert!(files.go_on().is_ok());
        files.cancellable.cancel();
        assert!(files.go_on().is_err());
    }

    #[test]
    fn paths_of_layers_are_found_in_the_tree() {
        let file = |name: &str, id: u8| {
            let mut dir = Dir::new([0; 32]);
            dir.files.insert(name.into(), [id; 32]);
            dir
        };
        let mut usr = file("tool", 1);
        usr.dirs.insert("etc".into(), file("passwd", 2));
        let mut factory = Dir::new([0; 32]);
        factory.dirs.insert("var".into(), file("old", 3));
        let mut share = Dir::new([0; 32]);
        share.dirs.insert("factory".into(), factory);
        usr.dirs.insert("share".into(), share);
        let mut tree = file("top", 4);
        tree.dirs.insert("usr".into(), usr);
        tree.dirs.insert("var".into(), file("new", 5));
        for (path, expected) in [
            ("usr/tool", Some(1)),
            ("etc/passwd", Some(2)),
            ("usr/etc/passwd", Some(2)),
            ("var/old", Some(3)),
            ("var/new", Some(5)),
            ("top", Some(4)),
            ("usr/etc", None),
            ("usr", None),
            ("run/lock", None),
            ("usr/tool/below", None),
            ("", None),
        ] {
            let expected = expected.map(|id| [id; 32]);
            assert_eq!(find(&tree, path), expected, "{path}");
        }
    }
}
