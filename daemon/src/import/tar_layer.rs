//! Reads the tar of a plain layer: entries become slots of objects and places in a tree.
//!
//! Invariants: every entry is either in the tree, deliberately dropped, or a typed error;
//! owner, mode with setuid bits and extended attributes are kept, times are not.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};

use ostree::gio;
use ostree::prelude::*;
use tar::EntryType;

use super::layer_tree::{LayerTree, Misfit, Path};
use super::objects::{
    Attributes, NoRoom, Payload, S_IFDIR, S_IFLNK, S_IFREG, Xattrs, check_room, file_header,
};
use super::path::{BadPath, PathRules, Place, REPOSITORY, place, relative, text};
use super::stream::TarStream;
use super::write_pool::{Slot, Stopped, WritePool};

/// PAX records with this prefix are extended attributes.
const XATTR_RECORD: &[u8] = b"SCHILY.xattr.";
/// PAX records with this prefix describe holes, in a way that is not understood here.
const SPARSE_RECORD: &[u8] = b"GNU.sparse.";
/// Largest sum of extended attributes of one entry; no file system takes more.
const XATTR_BYTES: usize = 1024 * 1024;

/// Why the entries of a layer could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The tar stream is broken, or its source failed, or a spooled file could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The layer breaks a rule.
    #[error("{0}")]
    Rule(String),
    /// A file is larger than what is free.
    #[error("a file of {0} bytes does not fit")]
    NoRoom(u64),
    /// The writers gave up.
    #[error("the objects could not be written")]
    Stopped,
    /// A metadata object could not be written.
    #[error(transparent)]
    Write(super::error::Error),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl From<BadPath> for ReadError {
    fn from(bad: BadPath) -> Self {
        Self::Rule(bad.to_string())
    }
}

impl From<Misfit> for ReadError {
    fn from(misfit: Misfit) -> Self {
        Self::Rule(misfit.to_string())
    }
}

impl From<NoRoom> for ReadError {
    fn from(NoRoom(length): NoRoom) -> Self {
        Self::NoRoom(length)
    }
}

impl From<Stopped> for ReadError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Reads all entries of `archive`; the objects go to `pool`.
pub(crate) fn read(
    archive: &mut tar::Archive<TarStream>,
    budget: &super::stream::HeaderBudget,
    rules: PathRules,
    pool: &mut WritePool<'_>,
    cancellable: &gio::Cancellable,
) -> Result<LayerTree, ReadError> {
    let mut reader = Reader {
        rules,
        pool,
        tree: LayerTree::default(),
        changed: HashMap::new(),
        dropped: BTreeMap::new(),
    };
    let mut entries = archive.entries()?;
    loop {
        if cancellable.is_cancelled() {
            return Err(ReadError::Cancelled);
        }
        budget.headers();
        let Some(entry) = entries.next() else { break };
        budget.content();
        let mut entry = entry?;
        reader.entry(&mut entry)?;
        // Whatever was not needed is read here, where it does not count as headers.
        io::copy(&mut entry, &mut io::sink())?;
    }
    for (name, count) in &reader.dropped {
        tracing::debug!(name, count, "content of a layer was dropped");
    }
    Ok(reader.tree)
}

struct Reader<'pool, 'scope> {
    rules: PathRules,
    pool: &'pool mut WritePool<'scope>,
    tree: LayerTree,
    /// Files of the image's own ostree repository that this layer changed, by path: hard
    /// links to them elsewhere in the layer are meant to have the changed content.
    changed: HashMap<String, Slot>,
    dropped: BTreeMap<Box<str>, u64>,
}

impl Reader<'_, '_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), ReadError> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let raw_path = entry.path_bytes().into_owned();
        let path = text(&raw_path)?.to_owned();
        // Old tars know no directories, only names that end in a slash.
        let kind = if is_regular(kind) && path.ends_with('/') {
            EntryType::Directory
        } else {
            kind
        };
        let changed = entry.header().mtime().unwrap_or(0) > 0;
        let repository = relative(&path)?;
        if changed && repository.starts_with(REPOSITORY) && is_regular(kind) {
            let slot = self.regular(entry)?;
            self.changed.insert(repository, slot);
            return Ok(());
        }
        if changed && kind == EntryType::Link && !repository.starts_with(REPOSITORY) {
            let target = relative(&link_target(entry, &path)?)?;
            if target.starts_with(REPOSITORY) {
                return self.repository_link(&path, &target);
            }
        }
        match self.place(&path)? {
            Some(place) => self.put(entry, kind, &path, &place),
            None => Ok(()),
        }
    }

    fn put<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        kind: EntryType,
        path: &str,
        place: &Path,
    ) -> Result<(), ReadError> {
        match kind {
            EntryType::Directory => {
                let attributes = attributes(entry, S_IFDIR)?;
                Ok(self.tree.dir(place, attributes)?)
            }
            EntryType::Symlink => {
                let slot = self.symlink(entry, path)?;
                Ok(self.tree.file(place, slot)?)
            }
            EntryType::Link => {
                let target = link_target(entry, path)?;
                self.hard_link(place, path, &target)
            }
            _ if is_regular(kind) => {
                let slot = self.regular(entry)?;
                Ok(self.tree.file(place, slot)?)
            }
            other => Err(unsupported(path, other)),
        }
    }

    fn place(&mut self, path: &str) -> Result<Option<Path>, ReadError> {
        match place(path, self.rules)? {
            Place::At(parts) => Ok(Some(parts)),
            Place::Dropped(name) => {
                *self.dropped.entry(name).or_default() += 1;
                Ok(None)
            }
        }
    }

    /// A link into the image's own repository is worth something only if this layer
    /// changed the object; otherwise the base has the file already.
    fn repository_link(&mut self, path: &str, target: &str) -> Result<(), ReadError> {
        let Some(slot) = self.changed.get(target).copied() else {
            return Ok(());
        };
        if let Some(place) = self.place(path)? {
            self.tree.file(&place, slot)?;
        }
        Ok(())
    }

    fn hard_link(&mut self, place_: &Path, path: &str, target: &str) -> Result<(), ReadError> {
        match place(target, self.rules)? {
            Place::At(target) => Ok(self.tree.link(place_, target)?),
            Place::Dropped(_) => Err(ReadError::Rule(format!(
                "{path} is a hard link to {target}, which is not kept"
            ))),
        }
    }

    fn regular<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<Slot, ReadError> {
        let header = file_header(&attributes(entry, S_IFREG)?, "");
        check_room(entry.size(), self.pool.tmp())?;
        let payload = Payload::read(header, entry.size(), entry, self.pool.tmp())?;
        Ok(self.pool.push(payload)?)
    }

    fn symlink<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        path: &str,
    ) -> Result<Slot, ReadError> {
        let target = link_target(entry, path)?;
        let mut attributes = attributes(entry, S_IFLNK)?;
        // The system reports this mode for every symbolic link, whatever the tar said.
        attributes.mode = S_IFLNK | 0o777;
        Ok(self
            .pool
            .push(Payload::Memory(file_header(&attributes, &target)))?)
    }
}

fn is_regular(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
    )
}

fn unsupported(path: &str, kind: EntryType) -> ReadError {
    let name = match kind {
        EntryType::Char => "a character device".to_owned(),
        EntryType::Block => "a block device".to_owned(),
        EntryType::Fifo => "a named pipe".to_owned(),
        other => format!("of the unknown type {:?}", char::from(other.as_byte())),
    };
    ReadError::Rule(format!("{path} is {name}, which ostree cannot store"))
}

fn link_target<R: Read>(entry: &tar::Entry<'_, R>, path: &str) -> Result<String, ReadError> {
    let Some(target) = entry.link_name_bytes().filter(|target| !target.is_empty()) else {
        return Err(ReadError::Rule(format!("{path} is a link to nothing")));
    };
    Ok(text(&target)?.to_owned())
}

/// Owner, mode and extended attributes of an entry.
pub(crate) fn attributes<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    file_type: u32,
) -> Result<Attributes, ReadError> {
    let header = entry.header();
    let id = |value: u64| {
        u32::try_from(value).map_err(|_| ReadError::Rule(format!("{value} is no user or group")))
    };
    let (uid, gid) = (id(header.uid()?)?, id(header.gid()?)?);
    let mode = file_type | (header.mode()? & 0o7777);
    Ok(Attributes {
        uid,
        gid,
        mode,
        xattrs: xattrs(entry)?,
    })
}

fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Xattrs, ReadError> {
    // Sorted, and a name that is repeated counts once: that is what a file system gives back.
    let mut xattrs = BTreeMap::new();
    let mut total = 0;
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let key = record.key_bytes();
        if key.starts_with(SPARSE_RECORD) {
            return Err(ReadError::Rule(
                "a file is stored sparsely in the PAX way".into(),
            ));
        }
        if let Some(name) = key.strip_prefix(XATTR_RECORD) {
            if name.is_empty() || name.contains(&0) {
                return Err(ReadError::Rule(
                    "an extended attribute has no proper name".into(),
                ));
            }
            total += name.len() + record.value_bytes().len();
            let name = [name, b"\0"].concat();
            xattrs.insert(name, record.value_bytes().to_vec());
        }
    }
    if total > XATTR_BYTES {
        return Err(ReadError::Rule(
            "the extended attributes of a file are too large".into(),
        ));
    }
    Ok(xattrs.into_iter().collect())
}
