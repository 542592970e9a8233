//! Reads layers that carry objects of an ostree commit instead of files.
//!
//! The first layer of an encapsulated image holds the commit with its directories, the chunk
//! layers hold files. Every object is named by its identity, so each is checked by itself.
//! Invariant: an object whose bytes do not have the identity of its name fails the layer.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use ostree::prelude::*;
use ostree::{ObjectType, glib};
use tar::EntryType;

use super::error::During;
use super::objects::{
    Attributes, IN_MEMORY, Id, Payload, S_IFLNK, S_IFREG, Xattrs, check_room, file_header, hex,
    parse_hex, sha256, write_metadata,
};
use super::path::{REPOSITORY, relative, text};
use super::stream::{HeaderBudget, TarStream};
use super::tar_layer::ReadError;
use super::transaction::Transaction;
use super::tree::Dir;
use super::write_pool::WritePool;

/// Largest metadata object, libostree's own limit.
const METADATA_BYTES: u64 = 10 * 1024 * 1024;
/// Largest set of extended attributes of one file.
const XATTR_BYTES: u64 = 1024 * 1024;
/// Most bytes of extended attributes that are remembered for later files of the layer.
const XATTR_CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// What an object layer brought.
#[derive(Debug, Default)]
pub(crate) struct ObjectSet {
    /// The checksum of the commit; only in a commit layer.
    pub(crate) commit: Option<String>,
    /// The identity that the slots of the write pool must turn out to have.
    expected: Vec<Id>,
}

impl ObjectSet {
    /// Compares what was written with what was promised.
    pub(crate) fn check(&self, written: &[Id]) -> Result<(), String> {
        match self
            .expected
            .iter()
            .zip(written)
            .find(|(expected, found)| expected != found)
        {
            Some((expected, found)) => Err(format!(
                "the object {} is really {}",
                hex(expected),
                hex(found)
            )),
            None => Ok(()),
        }
    }

    /// The synthetic tree of a chunk: one file an object, named by its identity.
    pub(crate) fn tree(&self, meta: Id) -> Dir {
        let mut root = Dir::new(meta);
        for id in &self.expected {
            root.files.insert(hex(id).into(), *id);
        }
        root
    }
}

/// Reads all entries; files go to `pool`, metadata objects directly into `transaction`.
///
/// `with_commit` tells a commit layer from a chunk layer.
pub(crate) fn read(
    archive: &mut tar::Archive<TarStream>,
    budget: &HeaderBudget,
    with_commit: bool,
    transaction: &mut Transaction<'_>,
    pool: &mut WritePool<'_>,
) -> Result<ObjectSet, ReadError> {
    let mut reader = Reader {
        with_commit,
        transaction,
        pool,
        set: ObjectSet::default(),
        seen: HashSet::new(),
        xattrs: HashMap::new(),
        xattr_bytes: 0,
        next: None,
    };
    let mut entries = archive.entries()?;
    loop {
        if reader.transaction.cancellable().is_cancelled() {
            return Err(ReadError::Cancelled);
        }
        budget.headers();
        let Some(entry) = entries.next() else { break };
        budget.content();
        let mut entry = entry?;
        reader.entry(&mut entry)?;
        io::copy(&mut entry, &mut io::sink())?;
    }
    if with_commit && reader.set.commit.is_none() {
        return Err(rule("the layer has no commit"));
    }
    Ok(reader.set)
}

struct Reader<'a, 'repo, 'scope> {
    with_commit: bool,
    transaction: &'a mut Transaction<'repo>,
    pool: &'a mut WritePool<'scope>,
    set: ObjectSet,
    seen: HashSet<Id>,
    xattrs: HashMap<Id, Xattrs>,
    xattr_bytes: u64,
    /// The file that must come next, and which attributes it has.
    next: Option<(Id, Id)>,
}

impl Reader<'_, '_, '_> {
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), ReadError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::Directory || kind.is_pax_global_extensions() {
            return Ok(());
        }
        let path = relative(text(&entry.path_bytes())?)?;
        let Some(path) = path.strip_prefix(REPOSITORY) else {
            return Ok(());
        };
        if let Some(name) = path.strip_prefix("objects/") {
            return self.object(entry, name);
        }
        if let Some(name) = path.strip_prefix("xattrs/") {
            let name = name.rsplit('/').next().unwrap_or(name);
            let id = parse_hex(name).ok_or_else(|| rule("attributes without a checksum"))?;
            return self.remember_xattrs(entry, Some(id)).map(drop);
        }
        // The configuration and the refs of the encapsulated repository are not ours.
        Ok(())
    }

    fn object<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        name: &str,
    ) -> Result<(), ReadError> {
        let (id, suffix) = object_name(name)
            .ok_or_else(|| ReadError::Rule(format!("{name:?} is not the name of an object")))?;
        if self.with_commit && self.set.commit.is_none() && suffix != "commit" {
            return Err(rule("the layer does not begin with its commit"));
        }
        match suffix {
            "file" => self.file(entry, id),
            "file-xattrs" => self.remember_xattrs(entry, Some(id)).map(drop),
            "file-xattrs-link" | "file.xattrs" => self.xattrs_of_next(entry, id),
            _ if !self.with_commit => Err(rule("a chunk holds something else than files")),
            "commit" => self.commit(entry, &id),
            "commitmeta" => self.commit_metadata(entry, &id),
            "dirtree" => {
                let variant = metadata::<ostree::TreeVariantType, R>(entry, &id)?;
                ostree::validate_structureof_dirtree(&variant).map_err(|error| invalid(&error))?;
                self.store(ObjectType::DirTree, &id, &variant)
            }
            "dirmeta" => {
                let variant = metadata::<ostree::DirmetaVariantType, R>(entry, &id)?;
                ostree::validate_structureof_dirmeta(&variant).map_err(|error| invalid(&error))?;
                self.store(ObjectType::DirMeta, &id, &variant)
            }
            other => Err(ReadError::Rule(format!(
                "objects of the kind {other:?} are unknown"
            ))),
        }
    }

    fn store(
        &mut self,
        kind: ObjectType,
        id: &Id,
        variant: &glib::Variant,
    ) -> Result<(), ReadError> {
        let repo = self.transaction.repo();
        write_metadata(repo, kind, id, variant, self.transaction.cancellable())
            .map_err(ReadError::Write)
    }

    fn commit<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, id: &Id) -> Result<(), ReadError> {
        if self.set.commit.is_some() {
            return Err(rule("the layer has more than one commit"));
        }
        let variant = metadata::<ostree::CommitVariantType, R>(entry, id)?;
        ostree::validate_structureof_commit(&variant).map_err(|error| invalid(&error))?;
        let checksum = hex(id);
        self.transaction.mark(&checksum).map_err(ReadError::Write)?;
        self.store(ObjectType::Commit, id, &variant)?;
        self.set.commit = Some(checksum);
        Ok(())
    }

    /// Signatures and the like; not covered by the checksum of the name, and kept as they are.
    fn commit_metadata<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        id: &Id,
    ) -> Result<(), ReadError> {
        let checksum = hex(id);
        if self.set.commit.as_ref() != Some(&checksum) {
            return Err(rule("metadata of another commit than that of the layer"));
        }
        let bytes = read_bounded(entry, METADATA_BYTES)?;
        let variant = glib::Variant::from_data::<glib::VariantDict, _>(bytes);
        if !variant.is_normal_form() {
            return Err(rule("the metadata of the commit is malformed"));
        }
        let cancellable = self.transaction.cancellable().clone();
        self.transaction
            .repo()
            .write_commit_detached_metadata(&checksum, Some(&variant), Some(&cancellable))
            .during("writing the metadata of a commit")
            .map_err(ReadError::Write)
    }

    fn file<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, id: Id) -> Result<(), ReadError> {
        let Some((file, xattrs)) = self.next.take() else {
            return Err(ReadError::Rule(format!(
                "the attributes of {} are missing",
                hex(&id)
            )));
        };
        if file != id {
            return Err(ReadError::Rule(format!(
                "{} is not followed by its file",
                hex(&file)
            )));
        }
        if !self.seen.insert(id) {
            return if self.with_commit {
                Ok(())
            } else {
                Err(ReadError::Rule(format!(
                    "the object {} is there twice",
                    hex(&id)
                )))
            };
        }
        let xattrs =
            self.xattrs.get(&xattrs).cloned().ok_or_else(|| {
                ReadError::Rule(format!("attributes {} are missing", hex(&xattrs)))
            })?;
        let payload = self.payload(entry, xattrs)?;
        self.pool.push(payload)?;
        self.set.expected.push(id);
        Ok(())
    }

    fn payload<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        xattrs: Xattrs,
    ) -> Result<Payload, ReadError> {
        let header = entry.header();
        let id = |value| u32::try_from(value).map_err(|_| rule("an owner is out of range"));
        let (uid, gid) = (id(header.uid()?)?, id(header.gid()?)?);
        match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let mode = S_IFREG | (header.mode()? & 0o7777);
                let header = file_header(
                    &Attributes {
                        uid,
                        gid,
                        mode,
                        xattrs,
                    },
                    "",
                );
                let length = entry.size();
                if length > IN_MEMORY {
                    check_room(length, self.pool.tmp())?;
                }
                Ok(Payload::read(header, length, entry, self.pool.tmp())?)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let attributes = Attributes {
                    uid,
                    gid,
                    mode: S_IFLNK | 0o777,
                    xattrs,
                };
                Ok(Payload::Memory(file_header(&attributes, text(&target)?)))
            }
            _ => Err(rule("a file object is neither a file nor a symbolic link")),
        }
    }

    /// `NAME.file-xattrs-link` and, in the older format, `NAME.file.xattrs`.
    fn xattrs_of_next<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        file: Id,
    ) -> Result<(), ReadError> {
        if let Some((dangling, _)) = self.next {
            return Err(ReadError::Rule(format!(
                "{} is not followed by its file",
                hex(&dangling)
            )));
        }
        let xattrs = match entry.header().entry_type() {
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                link_target_id(text(&target)?).ok_or_else(|| rule("a link to no attributes"))?
            }
            // When the source file system allowed no more links.
            EntryType::Regular => self.remember_xattrs(entry, None)?,
            _ => {
                return Err(rule(
                    "a reference to attributes is neither a link nor a file",
                ));
            }
        };
        self.next = Some((file, xattrs));
        Ok(())
    }

    fn remember_xattrs<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        expected: Option<Id>,
    ) -> Result<Id, ReadError> {
        let bytes = read_bounded(entry, XATTR_BYTES)?;
        let id = sha256(&bytes);
        if expected.is_some_and(|expected| expected != id) {
            return Err(ReadError::Rule(format!(
                "the attributes {} are damaged",
                hex(&id)
            )));
        }
        self.xattr_bytes += bytes.len() as u64;
        if self.xattr_bytes > XATTR_CACHE_BYTES {
            return Err(rule("the extended attributes of the layer are too large"));
        }
        let variant = glib::Variant::from_data::<Vec<(Vec<u8>, Vec<u8>)>, _>(bytes);
        if !variant.is_normal_form() {
            return Err(rule("extended attributes are malformed"));
        }
        // The order is part of the identity, so it stays.
        let xattrs = (0..variant.n_children())
            .map(|index| {
                let pair = variant.child_value(index);
                (
                    pair.child_value(0).data().to_vec(),
                    pair.child_value(1).data().to_vec(),
                )
            })
            .collect();
        self.xattrs.insert(id, xattrs);
        Ok(id)
    }
}

fn rule(text: &str) -> ReadError {
    ReadError::Rule(text.to_owned())
}

fn invalid(error: &glib::Error) -> ReadError {
    ReadError::Rule(format!("an object is malformed: {}", error.message()))
}

/// `XX/YYYY.SUFFIX`, the suffix being everything after the first dot.
fn object_name(name: &str) -> Option<(Id, &str)> {
    let (bucket, rest) = name.split_once('/')?;
    let (stem, suffix) = rest.split_once('.')?;
    let id = (bucket.len() == 2).then(|| parse_hex(&format!("{bucket}{stem}")))??;
    Some((id, suffix))
}

/// The checksum in a link's target: `…/XX/YYYY.file-xattrs` or, older, `…/xattrs/XXYYYY`.
fn link_target_id(target: &str) -> Option<Id> {
    let (parent, name) = target.rsplit_once('/')?;
    if let Some(id) = parse_hex(name) {
        return Some(id);
    }
    let bucket = parent.rsplit('/').next()?;
    object_name(&format!("{bucket}/{name}")).map(|(id, _)| id)
}

fn read_bounded<R: Read>(entry: &mut tar::Entry<'_, R>, limit: u64) -> Result<Vec<u8>, ReadError> {
    if entry.header().entry_type() != EntryType::Regular {
        return Err(rule("a metadata object is not a file"));
    }
    if entry.size() > limit {
        return Err(ReadError::Rule(format!(
            "a metadata object has {} bytes",
            entry.size()
        )));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn metadata<T: glib::variant::StaticVariantType, R: Read>(
    entry: &mut tar::Entry<'_, R>,
    id: &Id,
) -> Result<glib::Variant, ReadError> {
    let bytes = read_bounded(entry, METADATA_BYTES)?;
    let found = sha256(&bytes);
    if found != *id {
        return Err(ReadError::Rule(format!(
            "the object {} is really {}",
            hex(id),
            hex(&found)
        )));
    }
    let variant = glib::Variant::from_data::<T, _>(bytes);
    if !variant.is_normal_form() {
        return Err(ReadError::Rule(format!(
            "the object {} is malformed",
            hex(id)
        )));
    }
    Ok(variant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects() {
        let stem = "1".repeat(62);
        let id = parse_hex(&format!("ab{stem}"));
        for suffix in ["file", "file-xattrs-link", "file.xattrs", "dirtree"] {
            let name = format!("ab/{stem}.{suffix}");
            assert_eq!(object_name(&name), id.map(|id| (id, suffix)));
        }
        assert_eq!(object_name(&format!("a/b{stem}.file")), None);
        assert_eq!(object_name("ab/12.file"), None);
        assert_eq!(link_target_id(&format!("../ab/{stem}.file-xattrs")), id);
        assert_eq!(link_target_id(&format!("../../xattrs/ab{stem}")), id);
        assert_eq!(link_target_id("x"), None);
    }
}
