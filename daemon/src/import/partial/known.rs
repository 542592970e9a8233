//! Which contents of a layer are in the repository already, and under which names.
//!
//! What no index knows is looked for where it is most likely: at the same path of an image that
//! is here, if a file of the same size is there. It is read once, and remembered.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ostree::prelude::*;
use ostree::{ObjectType, RepoMode, gio};
use sha2::{Digest as _, Sha256};

use super::Begun;
use super::wanted::{Content, Wanted};
use crate::chunked;
use crate::image::layer::Layer;
use crate::image::reference::Digest;
use crate::import::commit_files::open_object;
use crate::import::error::{During, Error};
use crate::import::index::{Contents, Record, newest_first};
use crate::import::objects::{
    Attributes, Id, S_IFMT, S_IFREG, file_header, hex, sha256, xattrs_from_variant,
};
use crate::import::path::{PathRules, Place, place};
use crate::import::transaction::load_tree;
use crate::import::tree::Dir;

/// Most images that are looked through for contents that no index knows.
const IMAGES: usize = 3;
/// Threads that read files which no index knows.
const THREADS: usize = 2;
/// Entries of all tables of contents that an import remembers, at most; that of a whole system has some ten
/// thousand. What is beyond is read again.
const ENTRIES: usize = 128 * 1024;

/// What is in the repository, for the layers of one import.
pub(crate) struct Stock {
    /// By content.
    pub(crate) contents: Arc<Contents>,
    /// The trees of images that are here, newest first, once somebody asked.
    trees: OnceLock<Vec<Dir>>,
    /// What was looked at for the plan, by layer.
    begun: Mutex<HashMap<Digest, Begun>>,
}

impl std::fmt::Debug for Stock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stock").finish_non_exhaustive()
    }
}

impl Stock {
    /// What is in `repo`; `for_import`, what is learned of it stays beyond the end of the process.
    pub(crate) fn of(repo: &ostree::Repo, for_import: bool) -> Result<Self, Error> {
        Ok(Self {
            contents: Arc::new(Contents::load(repo, for_import)?),
            trees: OnceLock::new(),
            begun: Mutex::default(),
        })
    }

    /// Remembers what was looked at of a layer, as long as all of that is not too much.
    pub(super) fn begin(&self, layer: &Layer, begun: Begun) {
        let mut all = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let entries: usize = all.values().map(Begun::entries).sum();
        if entries.saturating_add(begun.entries()) <= ENTRIES {
            all.insert(layer.digest.clone(), begun);
        }
    }

    /// What is remembered of the layer; only once.
    pub(super) fn begun(&self, layer: &Layer) -> Option<Begun> {
        let mut all = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&layer.digest)
    }

    /// The trees of images that are here. Nothing of it is an error: less is found then.
    fn trees(&self, repo: &ostree::Repo) -> &[Dir] {
        self.trees.get_or_init(|| {
            let commits = newest_first(repo).unwrap_or_default();
            let trees = commits
                .iter()
                .filter_map(|commit| load_tree(repo, commit).ok());
            let is_image = |tree: &Dir| tree.dirs.contains_key("usr");
            trees.filter(is_image).take(IMAGES).collect()
        })
    }

    /// Whether there is anything that could save a download.
    pub(super) fn is_empty(&self, repo: &ostree::Repo) -> bool {
        self.contents.is_empty() && self.trees(repo).is_empty()
    }

    /// Finds the objects that `wanted` names; tells for each target that needs another header
    /// which object has its content.
    pub(super) fn look_up(
        &self,
        repo: &ostree::Repo,
        wanted: &mut Wanted,
        entries: &[chunked::Entry],
        rules: PathRules,
        cancellable: &gio::Cancellable,
    ) -> Result<Vec<Option<Id>>, Error> {
        let mut elsewhere = self.look_again(repo, wanted, cancellable)?;
        let is_found = |wanted: &Wanted, elsewhere: &[Option<Id>], at: usize| {
            wanted.targets[at].id.is_some() || elsewhere[at].is_some()
        };
        let mut candidates = BTreeMap::new();
        for entry in entries {
            let Some(target) = wanted.files.get(&entry.name) else {
                continue;
            };
            if is_found(wanted, &elsewhere, *target) {
                continue;
            }
            let Some(content) = wanted.targets[*target].content else {
                continue;
            };
            let Ok(Place::At(path)) = place(&entry.name, rules) else {
                continue;
            };
            let same_path = self
                .trees(repo)
                .iter()
                .filter_map(|tree| file_at(tree, &path));
            for object in same_path.filter(|object| !self.contents.knows(object)) {
                candidates.insert(object, content.size);
            }
        }
        if !candidates.is_empty() {
            self.read(repo, &candidates, cancellable)?;
            elsewhere = self.look_again(repo, wanted, cancellable)?;
        }
        Ok(elsewhere)
    }

    /// [`Stock::look_up`], only among what is known by now.
    pub(super) fn look_again(
        &self,
        repo: &ostree::Repo,
        wanted: &mut Wanted,
        cancellable: &gio::Cancellable,
    ) -> Result<Vec<Option<Id>>, Error> {
        let mut elsewhere = vec![None; wanted.targets.len()];
        for (target, elsewhere) in wanted.targets.iter_mut().zip(&mut elsewhere) {
            let (Some(content), None) = (target.content, target.id) else {
                continue;
            };
            let mut records = self.contents.find(&content.digest);
            // Objects that need not be written again come first.
            records.sort_by_key(|record| record.header != target.header_id);
            for record in records.iter().filter(|record| record.size == content.size) {
                if !has_object(repo, &record.object, cancellable)? {
                    continue;
                }
                if record.header == target.header_id {
                    target.id = Some(record.object);
                } else {
                    *elsewhere = Some(record.object);
                }
                break;
            }
        }
        Ok(elsewhere)
    }

    /// Reads objects that no index knows, if they have the size that is looked for.
    fn read(
        &self,
        repo: &ostree::Repo,
        candidates: &BTreeMap<Id, u64>,
        cancellable: &gio::Cancellable,
    ) -> Result<(), Error> {
        let candidates: Vec<_> = candidates.iter().collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let (repo, cancellable) = (repo.clone(), cancellable.clone());
                    let (candidates, next) = (&candidates, &next);
                    scope.spawn(move || {
                        while let Some((object, size)) =
                            candidates.get(next.fetch_add(1, Ordering::Relaxed))
                        {
                            if cancellable.is_cancelled() {
                                return Err(Error::Cancelled);
                            }
                            match record(&repo, object, **size, &cancellable) {
                                Ok(Some(record)) => self.contents.learn(record),
                                Ok(None) => {}
                                Err(error) => tracing::debug!(%error, "a file cannot be read"),
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            let results = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
            // A panic of one costs no more than what it would have found.
            results.filter_map(Result::ok).collect()
        })
    }
}

fn file_at(tree: &Dir, path: &[Box<str>]) -> Option<Id> {
    let (name, parents) = path.split_last()?;
    let parents: Vec<&str> = parents.iter().map(AsRef::as_ref).collect();
    tree.dir(&parents)?.files.get(name).copied()
}

/// Whether a file object is there.
pub(super) fn has_object(
    repo: &ostree::Repo,
    id: &Id,
    cancellable: &gio::Cancellable,
) -> Result<bool, Error> {
    repo.has_object(ObjectType::File, &hex(id), Some(cancellable))
        .during("looking for an object")
}

/// What is in an object, if it is a file of that size, and what its name says: attributes of the file that
/// somebody changed since are not those of the object.
fn record(
    repo: &ostree::Repo,
    object: &Id,
    size: u64,
    cancellable: &gio::Cancellable,
) -> Result<Option<Record>, Error> {
    let context = "reading a file that may be reused";
    let (info, xattrs) = repo
        .query_file(&hex(object), Some(cancellable))
        .during(context)?;
    let attributes = Attributes {
        uid: info.attribute_uint32("unix::uid"),
        gid: info.attribute_uint32("unix::gid"),
        mode: info.attribute_uint32("unix::mode"),
        xattrs: xattrs_from_variant(&xattrs),
    };
    let found = u64::try_from(info.size()).unwrap_or(0);
    if attributes.mode & S_IFMT != S_IFREG || found != size || size == 0 {
        return Ok(None);
    }
    let Some(file) = open(repo, object, cancellable)? else {
        return Ok(None);
    };
    let header = file_header(&attributes, "");
    let (mut content, mut whole) = (Sha256::new(), Sha256::new_with_prefix(&header));
    let mut read = 0;
    in_pieces(file.take(size), |piece| {
        content.update(piece);
        whole.update(piece);
        read += piece.len() as u64;
    })
    .during(context)?;
    let (content, whole): (Id, Id) = (content.finalize().into(), whole.finalize().into());
    Ok((read == size && whole == *object).then(|| Record {
        content,
        header: sha256(&header),
        size,
        object: *object,
    }))
}

/// Reads all of a file.
fn in_pieces(mut content: impl io::Read, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(()),
            count => take(&buffer[..count]),
        }
    }
}

/// The content of a file object; `None` if it is no regular file.
///
/// Where contents are stored as they are, the file is opened by its name: a layer has ten thousands,
/// and their attributes do not matter here.
pub(super) fn open(
    repo: &ostree::Repo,
    object: &Id,
    cancellable: &gio::Cancellable,
) -> Result<Option<File>, Error> {
    let checksum = hex(object);
    if matches!(repo.mode(), RepoMode::Bare | RepoMode::BareUserOnly)
        && let Some(root) = repo.path().path()
    {
        let (bucket, rest) = checksum.split_at(2);
        let path = root
            .join("objects")
            .join(bucket)
            .join(format!("{rest}.file"));
        let flags =
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
            return Ok(Some(file.into()));
        }
    }
    // Also what is written but not committed yet.
    open_object(repo, &checksum, cancellable)
}

/// Whether a file has the content that is wanted.
pub(super) fn has_content(file: File, content: &Content) -> io::Result<bool> {
    let (mut hasher, mut read) = (Sha256::new(), 0);
    in_pieces(file.take(content.size.saturating_add(1)), |piece| {
        hasher.update(piece);
        read += piece.len() as u64;
    })?;
    Ok(read == content.size && <Id>::from(hasher.finalize()) == content.digest)
}
