//! Which contents are in the repository: SHA-256 of a file's content → objects that have it.
//!
//! Owns `extensions/osteward/index` in the repository: a file for each merge commit
//! (`CHECKSUM.cidx`, whose digest is in the commit's metadata), and a journal of what was
//! learned since. All of it is a cache: what is damaged, foreign or gone is left out.
//! Invariants: a record is true when it is made, header and content (what becomes of the content
//! later is found out by a layer's diff_id); an index is durable before the commit that names it
//! is visible.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ostree::prelude::*;
use ostree::{ObjectType, gio, glib};

use super::error::Error;
use super::journal::{self, Journal};
use super::objects::{Id, hex, parse_hex, sha256};
use super::plan::image_commits;
use super::transaction::open;
use super::tree::Dir;

/// Metadata of a merge commit: SHA-256 of the index of its contents, 64 hexadecimal digits.
pub(crate) const INDEX_KEY: &str = "osteward.index";
/// Where the indexes are, in a repository; `extensions` is what libostree leaves to others.
const DIRECTORY: &str = "extensions/osteward/index";
/// How an index begins; the last byte is the version of its format.
const MAGIC: &[u8; 16] = b"osteward-cidx\0\0\x01";
/// Bytes of one record: content, header, size, object.
pub(super) const RECORD: usize = 32 + 32 + 8 + 32;
/// Bytes of the digest at the end.
const DIGEST: usize = 32;
/// Most records of one index; an image of a whole system has some ten thousand.
const RECORDS: usize = 500_000;
/// Most records that are learned beside those of the indexes. What is beyond is found again when it is needed.
const LEARNED: usize = 2 * RECORDS;
/// Most indexes that are read; a host has two or three images.
const INDEXES: usize = 8;

/// One object, and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Record {
    /// SHA-256 of the content alone.
    pub(crate) content: Id,
    /// SHA-256 of the bytes that precede it in the object: owner, mode, extended attributes.
    pub(crate) header: Id,
    /// Bytes of content.
    pub(crate) size: u64,
    /// The object.
    pub(crate) object: Id,
}

impl Record {
    pub(super) fn to_bytes(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..32].copy_from_slice(&self.content);
        bytes[32..64].copy_from_slice(&self.header);
        bytes[64..72].copy_from_slice(&self.size.to_be_bytes());
        bytes[72..].copy_from_slice(&self.object);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; RECORD]) -> Self {
        let part = |at: usize| {
            let mut id: Id = [0; 32];
            id.copy_from_slice(&bytes[at..at + 32]);
            id
        };
        let mut size = [0; 8];
        size.copy_from_slice(&bytes[64..72]);
        Self {
            content: part(0),
            header: part(32),
            size: u64::from_be_bytes(size),
            object: part(72),
        }
    }
}

/// The index of one commit, as it is on disk.
struct Index {
    /// Sorted records.
    bytes: Vec<u8>,
}

impl Index {
    /// Checks magic, version and digest of `bytes`; tells the digest.
    fn parse(mut bytes: Vec<u8>) -> Result<(Self, Id), &'static str> {
        let length = bytes.len();
        if length < MAGIC.len() + DIGEST || !bytes.starts_with(MAGIC) {
            return Err("it is none of this version");
        }
        let found = sha256(&bytes[..length - DIGEST]);
        if bytes[length - DIGEST..] != found {
            return Err("it is damaged");
        }
        bytes.truncate(length - DIGEST);
        bytes.drain(..MAGIC.len());
        if !bytes.len().is_multiple_of(RECORD) {
            return Err("it is not made of whole records");
        }
        Ok((Self { bytes }, found))
    }

    fn records(&self) -> &[[u8; RECORD]] {
        self.bytes.as_chunks().0
    }

    /// Its records of that content.
    fn find(&self, content: &Id) -> impl Iterator<Item = Record> {
        let records = self.records();
        let first = records.partition_point(|record| record[..32] < content[..]);
        let same = records[first..]
            .iter()
            .take_while(|record| record[..32] == content[..]);
        same.map(Record::from_bytes)
    }
}

/// What was learned since the indexes were written.
#[derive(Default)]
struct Learned {
    by_content: HashMap<Id, Vec<Record>>,
    /// How many records that are.
    count: usize,
    journal: Option<Journal>,
}

/// Everything that is known of contents; shared by the lanes of an import.
pub(crate) struct Contents {
    directory: PathBuf,
    indexes: Vec<Index>,
    /// Objects of which the content is known.
    objects: Mutex<HashSet<Id>>,
    learned: Mutex<Learned>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents")
            .field("indexes", &self.indexes.len())
            .finish_non_exhaustive()
    }
}

impl Contents {
    /// Reads what there is; nothing of it is an error. What is learned is remembered beyond the end of the
    /// process `for_import` only.
    pub(crate) fn load(repo: &ostree::Repo, for_import: bool) -> Result<Self, Error> {
        let root = repo.path().path().unwrap_or_default();
        let directory = root.join(DIRECTORY);
        let mut indexes = Vec::new();
        for commit in newest_first(repo)? {
            if indexes.len() == INDEXES {
                break;
            }
            match read(repo, &directory, &commit) {
                Ok(index) => indexes.extend(index),
                Err(reason) => tracing::debug!(commit, reason, "a content index is left out"),
            }
        }
        let (journal, records) = match for_import {
            true => Journal::open(&directory),
            false => (None, Journal::read(&directory)),
        };
        let mut objects: HashSet<Id> = HashSet::new();
        for index in &indexes {
            let records = index.records().iter().map(Record::from_bytes);
            objects.extend(records.map(|record| record.object));
        }
        let mut by_content: HashMap<Id, Vec<Record>> = HashMap::new();
        let count = records.len();
        for record in records {
            objects.insert(record.object);
            by_content.entry(record.content).or_default().push(record);
        }
        let learned = Learned {
            by_content,
            count,
            journal,
        };
        Ok(Self {
            directory,
            indexes,
            objects: Mutex::new(objects),
            learned: Mutex::new(learned),
        })
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Objects that have, or had, that content; whether they are still there is another question.
    pub(crate) fn find(&self, content: &Id) -> Vec<Record> {
        let mut found: Vec<Record> = self.indexes.iter().flat_map(|i| i.find(content)).collect();
        if let Some(learned) = self.learned().by_content.get(content) {
            found.extend(learned);
        }
        found
    }

    /// Whether nothing is known at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.indexes.is_empty() && self.learned().by_content.is_empty()
    }

    /// Whether the content of that object is known.
    pub(crate) fn knows(&self, object: &Id) -> bool {
        let objects = self.objects.lock();
        objects
            .unwrap_or_else(PoisonError::into_inner)
            .contains(object)
    }

    /// Learns what is in an object.
    pub(crate) fn learn(&self, record: Record) {
        if self.learned().count >= LEARNED {
            return;
        }
        let is_new = {
            let objects = self.objects.lock();
            let mut objects = objects.unwrap_or_else(PoisonError::into_inner);
            objects.insert(record.object)
        };
        if !is_new {
            return;
        }
        let mut learned = self.learned();
        let records = learned.by_content.entry(record.content).or_default();
        records.push(record);
        learned.count += 1;
        if let Some(journal) = &mut learned.journal {
            journal.append(&record);
        }
    }

    /// Makes what was learned survive a power cut.
    pub(crate) fn sync(&self) {
        if let Some(journal) = &mut self.learned().journal {
            journal.sync();
        }
    }

    /// The index of a tree, out of what is known of its objects; `None` if that is nothing.
    pub(crate) fn of_tree(&self, root: &Dir) -> Option<NewIndex> {
        let mut named = HashSet::new();
        name_objects(root, &mut named);
        let indexed = self.indexes.iter().flat_map(Index::records);
        let mut records: Vec<Record> = indexed.map(Record::from_bytes).collect();
        records.extend(self.learned().by_content.values().flatten());
        records.retain(|record| named.contains(&record.object));
        records.sort_unstable();
        records.dedup();
        records.truncate(RECORDS);
        if records.is_empty() {
            return None;
        }
        let mut bytes = Vec::with_capacity(MAGIC.len() + records.len() * RECORD + DIGEST);
        bytes.extend_from_slice(MAGIC);
        for record in records {
            bytes.extend_from_slice(&record.to_bytes());
        }
        let digest = sha256(&bytes);
        bytes.extend_from_slice(&digest);
        Some(NewIndex { bytes, digest })
    }

    /// Writes the index of `commit`, which is not visible yet, durably.
    pub(crate) fn write(&self, index: &NewIndex, commit: &str) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(&index.bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.directory.join(file_name(commit)))?;
        // The directories may be new, too.
        let mut directories = self
            .directory
            .ancestors()
            .take(DIRECTORY.split('/').count() + 1);
        directories.try_for_each(|directory| File::open(directory)?.sync_all())
    }

    /// Removes indexes of commits that are gone, and the journal: what it has of the new commit is in its
    /// index by now. The files of other images are read again when somebody asks.
    pub(crate) fn tidy(&self, repo: &ostree::Repo, cancellable: &gio::Cancellable) {
        remove_old(&self.directory, repo, false, cancellable);
    }
}

/// Removes the indexes of commits that are gone from the repository at `path`. Blocks.
///
/// # Errors
/// When the repository cannot be read.
pub fn discard_indexes(path: &Path) -> Result<(), Error> {
    let cancellable = gio::Cancellable::new();
    let repo = open(path, &cancellable)?;
    remove_old(&path.join(DIRECTORY), &repo, true, &cancellable);
    Ok(())
}

/// Removes indexes of commits that are gone, and whatever else is there; `keep` the journal or not.
fn remove_old(directory: &Path, repo: &ostree::Repo, keep: bool, cancellable: &gio::Cancellable) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if keep && name == journal::NAME {
            continue;
        }
        let commit = name
            .strip_suffix(".cidx")
            .filter(|c| parse_hex(c).is_some());
        let is_here = commit.is_some_and(|commit| {
            let there = repo.has_object(ObjectType::Commit, commit, Some(cancellable));
            there.unwrap_or(true)
        });
        if !is_here && let Err(error) = fs::remove_file(entry.path()) {
            tracing::debug!(%error, %name, "an old content index stays");
        }
    }
}

/// An index that is not written yet.
pub(crate) struct NewIndex {
    bytes: Vec<u8>,
    digest: Id,
}

impl NewIndex {
    /// The value of [`INDEX_KEY`].
    pub(crate) fn digest(&self) -> String {
        hex(&self.digest)
    }
}

fn name_objects(dir: &Dir, named: &mut HashSet<Id>) {
    named.extend(dir.files.values());
    dir.dirs.values().for_each(|dir| name_objects(dir, named));
}

fn file_name(commit: &str) -> String {
    format!("{commit}.cidx")
}

/// The commits of images, those first that may have the most in common with the next.
pub(crate) fn newest_first(repo: &ostree::Repo) -> Result<Vec<String>, Error> {
    let mut commits = image_commits(repo)?;
    let made = |commit: &String| {
        let loaded = repo.load_commit(commit);
        loaded.map_or(0, |(commit, _)| ostree::commit_get_timestamp(&commit))
    };
    commits.sort_by_cached_key(|commit| std::cmp::Reverse(made(commit)));
    Ok(commits)
}

/// The index that a commit names; `None` if it names none.
fn read(repo: &ostree::Repo, directory: &Path, commit: &str) -> Result<Option<Index>, String> {
    let (variant, _) = repo.load_commit(commit).map_err(|e| e.to_string())?;
    let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
    let Some(named) = metadata.lookup::<String>(INDEX_KEY).ok().flatten() else {
        return Ok(None);
    };
    let file = File::open(directory.join(file_name(commit))).map_err(|e| e.to_string())?;
    let longest = MAGIC.len() + RECORDS * RECORD + DIGEST;
    let mut bytes = Vec::new();
    file.take(longest as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    if bytes.len() > longest {
        return Err("it is too long".to_owned());
    }
    let (index, digest) = Index::parse(bytes)?;
    if hex(&digest) != named {
        return Err("it is not the one that the commit names".to_owned());
    }
    Ok(Some(index))
}
