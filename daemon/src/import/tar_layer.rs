//! Reads the tar of a plain layer, entry by entry.
//!
//! Invariant: owner, mode with setuid bits and extended attributes are kept, times are not.

use std::collections::BTreeMap;
use std::io::{self, Read};

use ostree::gio;
use ostree::prelude::*;
use tar::EntryType;

use super::entries::{Entries, Entry, Kind};
use super::guess::Guess;
use super::layer_tree::{LayerTree, Misfit};
use super::objects::{Attributes, IN_MEMORY, NoRoom, Payload, Xattrs, check_room};
use super::path::{BadPath, PathRules, text};
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

/// Reads all entries of `archive`; the objects go to `pool`, with labels by the guess.
pub(crate) fn read(
    archive: &mut tar::Archive<TarStream>,
    budget: &super::stream::HeaderBudget,
    rules: PathRules,
    guess: Option<&Guess>,
    pool: &mut WritePool<'_>,
    cancellable: &gio::Cancellable,
) -> Result<LayerTree, ReadError> {
    let mut taken = Entries::new(rules).with_labels(guess);
    let mut entries = archive.entries()?;
    loop {
        if cancellable.is_cancelled() {
            return Err(ReadError::Cancelled);
        }
        budget.headers();
        let Some(entry) = entries.next() else { break };
        budget.content();
        let mut entry = entry?;
        if !entry.header().entry_type().is_pax_global_extensions() {
            let mut described = Described {
                entry: &mut entry,
                pool,
            };
            taken.take(&mut described)?;
        }
        // Whatever was not needed is read here, where it does not count as headers.
        io::copy(&mut entry, &mut io::sink())?;
    }
    Ok(taken.into_tree())
}

/// An entry of a tar, and where its object goes.
struct Described<'entry, 'tar, 'scope, R: Read> {
    entry: &'entry mut tar::Entry<'tar, R>,
    pool: &'entry mut WritePool<'scope>,
}

impl<R: Read> Entry for Described<'_, '_, '_, R> {
    fn kind(&self) -> Kind {
        match self.entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::Regular,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char => Kind::Unsupported("a character device".to_owned()),
            EntryType::Block => Kind::Unsupported("a block device".to_owned()),
            EntryType::Fifo => Kind::Unsupported("a named pipe".to_owned()),
            other => {
                let letter = char::from(other.as_byte());
                Kind::Unsupported(format!("of the unknown type {letter:?}"))
            }
        }
    }

    fn path(&self) -> Result<String, ReadError> {
        Ok(text(&self.entry.path_bytes())?.to_owned())
    }

    fn link_target(&self, path: &str) -> Result<String, ReadError> {
        let target = self.entry.link_name_bytes();
        let Some(target) = target.filter(|target| !target.is_empty()) else {
            return Err(ReadError::Rule(format!("{path} is a link to nothing")));
        };
        Ok(text(&target)?.to_owned())
    }

    fn is_changed(&self) -> bool {
        self.entry.header().mtime().unwrap_or(0) > 0
    }

    fn attributes(&mut self, file_type: u32) -> Result<Attributes, ReadError> {
        attributes(self.entry, file_type)
    }

    fn store(&mut self, header: Vec<u8>) -> Result<Slot, ReadError> {
        let size = self.entry.size();
        if size > IN_MEMORY {
            check_room(size, self.pool.tmp())?;
        }
        let (payload, content) = self.pool.read(header, size, self.entry)?;
        Ok(self.pool.push_with(payload, content)?)
    }

    fn store_header(&mut self, header: Vec<u8>) -> Result<Slot, ReadError> {
        Ok(self.pool.push(Payload::Memory(header))?)
    }
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
