//! One transaction of one repository handle: trees, commits and refs in, all at once or none.
//!
//! libostree renames the objects of a transaction one by one in no particular order. So that
//! a process killed in between leaves no commit that seems whole, every new commit is marked
//! partial until the transaction is through. Invariant: refs appear after all their objects.

use std::collections::HashSet;
use std::path::PathBuf;

use ostree::prelude::*;
use ostree::{ObjectType, TransactionGuard, gio, glib};

use super::error::{During, Error};
use super::objects::{Attributes, Id, dirmeta, dirtree, hex, parse_hex, write_metadata};
use super::path::DEPTH_MAX;
use super::tree::Dir;

/// An open transaction; dropped without [`Transaction::commit`] it is aborted.
pub(crate) struct Transaction<'repo> {
    repo: &'repo ostree::Repo,
    guard: Option<TransactionGuard<'repo>>,
    cancellable: gio::Cancellable,
    /// Metadata objects that were written already.
    known: HashSet<Id>,
    /// Commits that are marked partial until the end.
    marked: Vec<String>,
}

impl<'repo> Transaction<'repo> {
    /// Opens a transaction; prune by anybody waits until it is over.
    pub(crate) fn begin(
        repo: &'repo ostree::Repo,
        cancellable: &gio::Cancellable,
    ) -> Result<Self, Error> {
        let guard = repo
            .auto_transaction(Some(cancellable))
            .during("opening a transaction")?;
        Ok(Self {
            repo,
            guard: Some(guard),
            cancellable: cancellable.clone(),
            known: HashSet::new(),
            marked: Vec::new(),
        })
    }

    /// The repository that is written to.
    pub(crate) fn repo(&self) -> &'repo ostree::Repo {
        self.repo
    }

    /// Given to every call of libostree.
    pub(crate) fn cancellable(&self) -> &gio::Cancellable {
        &self.cancellable
    }

    /// Stores a directory's attributes.
    pub(crate) fn dirmeta(&mut self, attributes: &Attributes) -> Result<Id, Error> {
        let (id, variant) = dirmeta(attributes);
        if self.known.insert(id) {
            write_metadata(
                self.repo,
                ObjectType::DirMeta,
                &id,
                &variant,
                &self.cancellable,
            )?;
        }
        Ok(id)
    }

    /// Stores a tree (its directories; the files are there) and tells its identity.
    pub(crate) fn dirtree(&mut self, dir: &Dir) -> Result<Id, Error> {
        if self.cancellable.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let mut dirs = Vec::with_capacity(dir.dirs.len());
        for (name, child) in &dir.dirs {
            dirs.push((name.as_ref(), self.dirtree(child)?, child.meta));
        }
        let files = dir.files.iter().map(|(name, id)| (name.as_ref(), id));
        let (id, variant) = dirtree(files, dirs.into_iter());
        if self.known.insert(id) {
            write_metadata(
                self.repo,
                ObjectType::DirTree,
                &id,
                &variant,
                &self.cancellable,
            )?;
        }
        Ok(id)
    }

    /// Stores a commit of `root` without subject, and tells its checksum.
    pub(crate) fn write_commit(
        &mut self,
        root: &Dir,
        parent: Option<&str>,
        metadata: &glib::Variant,
        timestamp: u64,
    ) -> Result<String, Error> {
        let tree = hex(&self.dirtree(root)?);
        let cancellable = Some(&self.cancellable);
        let mtree = ostree::MutableTree::from_checksum(self.repo, &tree, &hex(&root.meta));
        let file = self
            .repo
            .write_mtree(&mtree, cancellable)
            .during("writing a tree")?;
        let root = file
            .downcast::<ostree::RepoFile>()
            .map_err(|_| Error::Ostree {
                context: "writing a tree",
                text: "libostree gave back no tree".into(),
            })?;
        let commit = self
            .repo
            .write_commit_with_time(
                parent,
                None,
                None,
                Some(metadata),
                &root,
                timestamp,
                cancellable,
            )
            .during("writing a commit")?
            .to_string();
        self.mark(&commit)?;
        Ok(commit)
    }

    /// Marks a commit partial until this transaction is through, unless it is there already
    /// and whole: others may be using it.
    pub(crate) fn mark(&mut self, commit: &str) -> Result<(), Error> {
        let known = self.marked.iter().any(|marked| marked == commit);
        if known || (is_stored(self.repo, commit) && !is_partial(self.repo, commit)) {
            return Ok(());
        }
        self.repo
            .mark_commit_partial(commit, true)
            .during("marking a new commit")?;
        self.marked.push(commit.to_owned());
        Ok(())
    }

    /// Sets a ref when the transaction is committed.
    pub(crate) fn set_ref(&self, name: &str, commit: &str) {
        self.repo.transaction_set_ref(None, name, Some(commit));
    }

    /// Removes a ref when the transaction is committed.
    pub(crate) fn remove_ref(&self, name: &str) {
        self.repo.transaction_set_ref(None, name, None);
    }

    /// [`Transaction::commit`], and begins another.
    pub(crate) fn renew(&mut self) -> Result<(), Error> {
        self.close()?;
        // Between the two anybody may prune what no ref holds.
        self.known.clear();
        let guard = self.repo.auto_transaction(Some(&self.cancellable));
        self.guard = Some(guard.during("opening a transaction")?);
        Ok(())
    }

    /// Makes everything visible, durably.
    ///
    /// Not to be cancelled: it does not take long, and half of it would be worth nothing.
    pub(crate) fn commit(mut self) -> Result<(), Error> {
        self.close()
    }

    fn close(&mut self) -> Result<(), Error> {
        if let Some(guard) = self.guard.take() {
            guard
                .commit(gio::Cancellable::NONE)
                .during("committing to the repository")?;
            for commit in self.marked.drain(..) {
                self.repo
                    .mark_commit_partial(&commit, false)
                    .during("completing a commit")?;
            }
        }
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // An aborted commit does not exist; one of which only the end failed stays marked.
        drop(self.guard.take());
        for commit in self.marked.drain(..) {
            if !is_stored(self.repo, &commit)
                && let Err(error) = self.repo.mark_commit_partial(&commit, false)
            {
                tracing::debug!(%error, "a mark of an aborted commit could not be removed");
            }
        }
    }
}

impl std::fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

/// Whether the commit is among the visible objects, not only in an open transaction.
fn is_stored(repo: &ostree::Repo, commit: &str) -> bool {
    let Some(root) = repo.path().path() else {
        return false;
    };
    let (bucket, rest) = commit.split_at_checked(2).unwrap_or((commit, ""));
    root.join("objects")
        .join(bucket)
        .join(format!("{rest}.commit"))
        .exists()
}

/// Whether the commit is marked as lacking objects.
fn is_partial(repo: &ostree::Repo, commit: &str) -> bool {
    repo.load_commit(commit)
        .is_ok_and(|(_, state)| state.contains(ostree::RepoCommitState::PARTIAL))
}

/// Opens the repository for one thread.
pub(crate) fn open(
    path: &std::path::Path,
    cancellable: &gio::Cancellable,
) -> Result<ostree::Repo, Error> {
    let repo = ostree::Repo::new_for_path(path);
    repo.open(Some(cancellable))
        .during("opening the repository")?;
    match repo.mode() {
        ostree::RepoMode::Bare | ostree::RepoMode::BareUser | ostree::RepoMode::Archive => Ok(repo),
        mode => Err(Error::Ostree {
            context: "opening the repository",
            text: format!("images cannot be stored in a repository of the mode {mode:?}"),
        }),
    }
}

/// The repository's directory for temporary files.
pub(crate) fn tmp_dir(repo: &ostree::Repo) -> PathBuf {
    repo.path().path().unwrap_or_default().join("tmp")
}

/// A tree from its objects; the files are not read.
pub(crate) fn load_tree(repo: &ostree::Repo, commit: &str) -> Result<Dir, Error> {
    let (variant, _) = repo.load_commit(commit).during("loading a commit")?;
    let (tree, meta) = (id_at(&variant, 6)?, id_at(&variant, 7)?);
    let mut room = ENTRIES_MAX;
    load_dir(repo, &tree, meta, 0, &mut room)
}

/// The directory at `path` in the tree of a commit; nothing else of it is read.
pub(crate) fn load_tree_at(
    repo: &ostree::Repo,
    commit: &str,
    path: &[&str],
) -> Result<Option<Dir>, Error> {
    let (variant, _) = repo.load_commit(commit).during("loading a commit")?;
    let (mut tree, mut meta) = (id_at(&variant, 6)?, id_at(&variant, 7)?);
    for name in path {
        let variant = repo
            .load_variant(ObjectType::DirTree, &hex(&tree))
            .during("loading a directory")?;
        let dirs = variant.child_value(1);
        let mut dirs = (0..dirs.n_children()).map(|index| dirs.child_value(index));
        let Some(dir) = dirs.find(|dir| dir.child_value(0).str() == Some(name)) else {
            return Ok(None);
        };
        (tree, meta) = (id_at(&dir, 1)?, id_at(&dir, 2)?);
    }
    let mut room = ENTRIES_MAX;
    load_dir(repo, &tree, meta, path.len(), &mut room).map(Some)
}

/// Most entries of a tree; images of whole systems have some hundred thousand.
const ENTRIES_MAX: usize = 4_000_000;

/// Depth and number are bounded because an image can bring its directories as objects, one of
/// which can be in many places; paths of tars become a little longer on their way in.
fn load_dir(
    repo: &ostree::Repo,
    tree: &Id,
    meta: Id,
    depth: usize,
    room: &mut usize,
) -> Result<Dir, Error> {
    if depth > DEPTH_MAX + 8 {
        return Err(corrupt());
    }
    let variant = repo
        .load_variant(ObjectType::DirTree, &hex(tree))
        .during("loading a directory")?;
    let mut dir = Dir::new(meta);
    let files = variant.child_value(0);
    let dirs = variant.child_value(1);
    let left = room.checked_sub(files.n_children() + dirs.n_children());
    *room = left.ok_or_else(corrupt)?;
    for index in 0..files.n_children() {
        let file = files.child_value(index);
        dir.files.insert(name_at(&file)?, id_at(&file, 1)?);
    }
    for index in 0..dirs.n_children() {
        let child = dirs.child_value(index);
        let (tree, meta) = (id_at(&child, 1)?, id_at(&child, 2)?);
        dir.dirs.insert(
            name_at(&child)?,
            load_dir(repo, &tree, meta, depth + 1, room)?,
        );
    }
    Ok(dir)
}

fn name_at(entry: &glib::Variant) -> Result<Box<str>, Error> {
    entry
        .child_value(0)
        .str()
        .map(Box::from)
        .ok_or_else(corrupt)
}

fn id_at(tuple: &glib::Variant, index: usize) -> Result<Id, Error> {
    tuple
        .child_value(index)
        .data()
        .try_into()
        .map_err(|_| corrupt())
}

fn corrupt() -> Error {
    Error::Ostree {
        context: "loading a directory",
        text: "an object has another shape than expected".into(),
    }
}

/// Whether a commit and everything below it is in the repository. A commit that is whole but
/// still marked partial (the process was killed at the last moment) loses the mark. One without a
/// mark was whole when its ref was set, so only the directory at its top is looked at; whoever
/// loads all of it finds out what became of the rest, and marks it.
pub(crate) fn is_complete(
    repo: &ostree::Repo,
    commit: &str,
    cancellable: &gio::Cancellable,
) -> Result<bool, Error> {
    let Ok((variant, state)) = repo.load_commit(commit) else {
        return Ok(false);
    };
    if !state.contains(ostree::RepoCommitState::PARTIAL) {
        let root = hex(&id_at(&variant, 6)?);
        return Ok(repo.load_variant(ObjectType::DirTree, &root).is_ok());
    }
    if !has_all_objects(repo, commit, cancellable)? {
        return Ok(false);
    }
    repo.mark_commit_partial(commit, false)
        .during("completing a commit")?;
    Ok(true)
}

/// Whether everything below a commit is there, file by file.
pub(crate) fn has_all_objects(
    repo: &ostree::Repo,
    commit: &str,
    cancellable: &gio::Cancellable,
) -> Result<bool, Error> {
    let Ok(root) = load_tree(repo, commit) else {
        return Ok(false);
    };
    let mut checked = HashSet::new();
    has_all_below(repo, &root, &mut checked, cancellable)
}

fn has_all_below(
    repo: &ostree::Repo,
    dir: &Dir,
    checked: &mut HashSet<Id>,
    cancellable: &gio::Cancellable,
) -> Result<bool, Error> {
    let has = |kind, id: &Id| {
        repo.has_object(kind, &hex(id), Some(cancellable))
            .during("looking for an object")
    };
    if checked.insert(dir.meta) && !has(ObjectType::DirMeta, &dir.meta)? {
        return Ok(false);
    }
    for id in dir.files.values() {
        if checked.insert(*id) && !has(ObjectType::File, id)? {
            return Ok(false);
        }
    }
    for child in dir.dirs.values() {
        if !has_all_below(repo, child, checked, cancellable)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The checksum a ref points at, if there is such a ref.
pub(crate) fn resolve(repo: &ostree::Repo, name: &str) -> Result<Option<String>, Error> {
    let commit = repo.resolve_rev(name, true).during("looking up a ref")?;
    Ok(commit
        .filter(|commit| parse_hex(commit).is_some())
        .map(|commit| commit.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_inside_each_other_end_somewhere() {
        let directory = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(directory.path());
        repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE)
            .unwrap();
        let cancellable = gio::Cancellable::new();
        let mut transaction = Transaction::begin(&repo, &cancellable).unwrap();
        let meta = transaction
            .dirmeta(&Attributes::default_directory())
            .unwrap();
        let mut tree: Option<Id> = None;
        for depth in 0..50 * DEPTH_MAX {
            let below = tree.map(|tree| ("d", tree, meta));
            let (id, variant) = dirtree(std::iter::empty(), below.into_iter());
            write_metadata(&repo, ObjectType::DirTree, &id, &variant, &cancellable).unwrap();
            tree = Some(id);
            if depth == DEPTH_MAX {
                assert!(load_dir(&repo, &id, meta, 0, &mut 1000).is_ok());
                assert!(load_dir(&repo, &id, meta, 0, &mut DEPTH_MAX.div_euclid(2)).is_err());
            }
        }
        let mut room = usize::MAX;
        assert!(load_dir(&repo, &tree.unwrap(), meta, 0, &mut room).is_err());
    }
}
