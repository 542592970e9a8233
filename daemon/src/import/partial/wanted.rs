//! What a table of contents asks for: the tree of the layer, and the objects in it.

use std::collections::HashMap;

use super::Setback;
use crate::chunked;
use crate::image::layer::Layer;
use crate::import::entries::{Entries, Entry, Kind};
use crate::import::guess::Guess;
use crate::import::layer_tree::LayerTree;
use crate::import::objects::{Attributes, Id, S_IFREG, file_header, sha256};
use crate::import::path::{PathRules, text};
use crate::import::tar_layer::ReadError;
use crate::import::write_pool::Slot;

/// An object that the layer needs.
#[derive(Debug)]
pub(super) struct Target {
    /// What precedes its content.
    pub(super) header: Vec<u8>,
    /// SHA-256 of that.
    pub(super) header_id: Id,
    /// Its content; `None` if it has none.
    pub(super) content: Option<Content>,
    /// The object, once it is in the repository.
    pub(super) id: Option<Id>,
}

/// The content of an object, and where it is in the blob.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    /// SHA-256 of it.
    pub(super) digest: Id,
    /// Its bytes.
    pub(super) size: u64,
    /// Its first byte in the blob.
    pub(super) start: u64,
    /// The byte after it.
    pub(super) end: u64,
}

/// The objects of a layer, each once, and the tree that they are in.
pub(super) struct Wanted {
    pub(super) targets: Vec<Target>,
    pub(super) tree: LayerTree,
    /// What the tree's slots are.
    pub(super) slots: Vec<usize>,
    /// The files of the tar that have content, as the tar names them.
    pub(super) files: HashMap<Box<str>, usize>,
}

impl Wanted {
    /// Applies the rules of layers to the table.
    pub(super) fn of(
        entries: &[chunked::Entry],
        rules: PathRules,
        guess: Option<&Guess>,
        layer: &Layer,
    ) -> Result<Self, Setback> {
        let mut gathered = Gathered::default();
        let mut taken = Entries::new(rules).with_labels(guess);
        for entry in entries {
            let mut described = Described {
                entry,
                stored: None,
                gathered: &mut gathered,
            };
            taken.take(&mut described).map_err(|error| {
                let digest = &layer.digest;
                tracing::debug!(%digest, %error, "a table of contents breaks a rule");
                Setback::Whole(format!("its table of contents cannot be followed: {error}"))
            })?;
            let stored = described.stored;
            let chunked::Kind::File(content) = &entry.kind else {
                continue;
            };
            if content.digest.is_none() {
                continue;
            }
            // What the layer drops is a part of its tar all the same.
            let target = match stored {
                Some(target) => target,
                None => gathered.target(file_header(&nobodys(), ""), of_file(content)),
            };
            gathered.files.insert(entry.name.clone(), target);
        }
        Ok(Self {
            targets: gathered.targets,
            tree: taken.into_tree(),
            slots: gathered.slots,
            files: gathered.files,
        })
    }
}

#[derive(Default)]
struct Gathered {
    targets: Vec<Target>,
    /// Header and content → target.
    by_object: HashMap<(Id, Option<Id>), usize>,
    slots: Vec<usize>,
    files: HashMap<Box<str>, usize>,
}

impl Gathered {
    fn target(&mut self, header: Vec<u8>, content: Option<Content>) -> usize {
        let header_id = sha256(&header);
        let next = self.targets.len();
        let key = (header_id, content.map(|content| content.digest));
        let index = *self.by_object.entry(key).or_insert(next);
        if index == next {
            self.targets.push(Target {
                header,
                header_id,
                content,
                id: None,
            });
        }
        index
    }
}

/// What a file gets that is in no tree.
fn nobodys() -> Attributes {
    Attributes {
        uid: 0,
        gid: 0,
        mode: S_IFREG | 0o600,
        xattrs: Vec::new(),
    }
}

fn of_file(content: &chunked::Content) -> Option<Content> {
    let digest = content.digest?;
    Some(Content {
        digest,
        size: content.size,
        start: content.start,
        end: content.end,
    })
}

/// An entry of a table of contents.
struct Described<'a> {
    entry: &'a chunked::Entry,
    stored: Option<usize>,
    gathered: &'a mut Gathered,
}

impl Described<'_> {
    fn put(&mut self, header: Vec<u8>, content: Option<Content>) -> Slot {
        let target = self.gathered.target(header, content);
        self.stored = Some(target);
        self.gathered.slots.push(target);
        self.gathered.slots.len() - 1
    }
}

impl Entry for Described<'_> {
    fn kind(&self) -> Kind {
        match self.entry.kind {
            chunked::Kind::Directory => Kind::Directory,
            chunked::Kind::File(_) => Kind::Regular,
            chunked::Kind::Symlink(_) => Kind::Symlink,
            chunked::Kind::HardLink(_) => Kind::HardLink,
            chunked::Kind::Char => Kind::Unsupported("a character device".to_owned()),
            chunked::Kind::Block => Kind::Unsupported("a block device".to_owned()),
            chunked::Kind::Fifo => Kind::Unsupported("a named pipe".to_owned()),
        }
    }

    fn path(&self) -> Result<String, ReadError> {
        Ok(text(self.entry.name.as_bytes())?.to_owned())
    }

    fn link_target(&self, path: &str) -> Result<String, ReadError> {
        match &self.entry.kind {
            chunked::Kind::Symlink(target) | chunked::Kind::HardLink(target)
                if !target.is_empty() =>
            {
                Ok(text(target.as_bytes())?.to_owned())
            }
            _ => Err(ReadError::Rule(format!("{path} is a link to nothing"))),
        }
    }

    fn is_changed(&self) -> bool {
        self.entry.modified.is_some_and(|modified| modified > 0)
    }

    fn attributes(&mut self, file_type: u32) -> Result<Attributes, ReadError> {
        let xattrs = self.entry.xattrs.iter();
        // As libostree names them, with a zero byte at the end.
        let named =
            |(name, value): &(Vec<u8>, Vec<u8>)| ([name, &b"\0"[..]].concat(), value.clone());
        let mut xattrs: Vec<_> = xattrs.map(named).collect();
        xattrs.sort();
        Ok(Attributes {
            uid: self.entry.uid,
            gid: self.entry.gid,
            mode: file_type | (self.entry.mode & 0o7777),
            xattrs,
        })
    }

    fn store(&mut self, header: Vec<u8>) -> Result<Slot, ReadError> {
        let content = match &self.entry.kind {
            chunked::Kind::File(content) => of_file(content),
            _ => None,
        };
        Ok(self.put(header, content))
    }

    fn store_header(&mut self, header: Vec<u8>) -> Result<Slot, ReadError> {
        Ok(self.put(header, None))
    }
}
