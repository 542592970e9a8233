//! What the entries of a plain layer become, whether its tar describes them or its table of
//! contents: places in a tree, and objects.
//!
//! Invariants: every entry is either in the tree, deliberately dropped, or a typed error; the
//! same layer becomes the same tree by either description.

use std::collections::{BTreeMap, HashMap};

use super::guess::Guess;
use super::layer_tree::{LayerTree, Path};
use super::objects::{Attributes, S_IFDIR, S_IFLNK, S_IFREG, file_header};
use super::path::{PathRules, Place, REPOSITORY, display, place, relative};
use super::tar_layer::ReadError;
use super::write_pool::Slot;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// A file with content.
    Regular,
    /// A symbolic link.
    Symlink,
    /// Another name of a file.
    HardLink,
    /// What ostree cannot store, in words: "a named pipe".
    Unsupported(String),
}

/// One entry of a layer.
pub(crate) trait Entry {
    /// What it is.
    fn kind(&self) -> Kind;
    /// Its path, as it was written down.
    fn path(&self) -> Result<String, ReadError>;
    /// What it links to, as it was written down; never empty.
    fn link_target(&self, path: &str) -> Result<String, ReadError>;
    /// Whether it has a time of change.
    fn is_changed(&self) -> bool;
    /// Owner, mode and extended attributes.
    fn attributes(&mut self, file_type: u32) -> Result<Attributes, ReadError>;
    /// Stores the file with this header and its content.
    fn store(&mut self, header: Vec<u8>) -> Result<Slot, ReadError>;
    /// Stores an object that is nothing but its header.
    fn store_header(&mut self, header: Vec<u8>) -> Result<Slot, ReadError>;
}

/// The entries of one layer so far.
#[derive(Debug)]
pub(crate) struct Entries {
    rules: PathRules,
    tree: LayerTree,
    /// Files of the image's own ostree repository that this layer changed, by path: hard
    /// links to them elsewhere in the layer are meant to have the changed content.
    changed: HashMap<String, Slot>,
    dropped: BTreeMap<Box<str>, u64>,
    guess: Option<Guess>,
}

impl Entries {
    /// None yet.
    pub(crate) fn new(rules: PathRules) -> Self {
        Self {
            rules,
            tree: LayerTree::default(),
            changed: HashMap::new(),
            dropped: BTreeMap::new(),
            guess: None,
        }
    }

    /// Files get labels by this guess. Directories and links get theirs when the tree is
    /// finished.
    pub(crate) fn with_labels(mut self, guess: Option<&Guess>) -> Self {
        self.guess = guess.map(|guess| guess.of_layer(false));
        self
    }

    /// The tree of all of them.
    pub(crate) fn into_tree(mut self) -> LayerTree {
        for (name, count) in &self.dropped {
            tracing::debug!(name, count, "content of a layer was dropped");
        }
        self.tree.has_others = self.guess.is_some_and(|guess| guess.has_others());
        self.tree
    }

    /// Takes the next one.
    pub(crate) fn take(&mut self, entry: &mut impl Entry) -> Result<(), ReadError> {
        let path = entry.path()?;
        // Old tars know no directories, only names that end in a slash.
        let kind = match entry.kind() {
            Kind::Regular if path.ends_with('/') => Kind::Directory,
            kind => kind,
        };
        let repository = relative(&path)?;
        let in_repository = repository.starts_with(REPOSITORY);
        if entry.is_changed() && in_repository && kind == Kind::Regular {
            // Its label is that of the paths that are linked to it.
            let attributes = entry.attributes(S_IFREG)?;
            let slot = entry.store(file_header(&attributes, ""))?;
            self.changed.insert(repository, slot);
            return Ok(());
        }
        if entry.is_changed() && kind == Kind::HardLink && !in_repository {
            let target = relative(&entry.link_target(&path)?)?;
            if target.starts_with(REPOSITORY) {
                return self.repository_link(&path, &target);
            }
        }
        match self.place(&path)? {
            Some(place) => self.put(entry, kind, &path, &place),
            None => Ok(()),
        }
    }

    fn put(
        &mut self,
        entry: &mut impl Entry,
        kind: Kind,
        path: &str,
        place: &Path,
    ) -> Result<(), ReadError> {
        match kind {
            Kind::Directory => {
                let attributes = entry.attributes(S_IFDIR)?;
                Ok(self.tree.dir(place, attributes)?)
            }
            Kind::Symlink => {
                let slot = self.symlink(entry, path, place)?;
                Ok(self.tree.file(place, slot)?)
            }
            Kind::HardLink => {
                let target = entry.link_target(path)?;
                self.hard_link(place, path, &target)
            }
            Kind::Regular => {
                let attributes = self.label(place, entry.attributes(S_IFREG)?)?;
                let slot = entry.store(file_header(&attributes, ""))?;
                Ok(self.tree.file(place, slot)?)
            }
            Kind::Unsupported(name) => Err(ReadError::Rule(format!(
                "{path} is {name}, which ostree cannot store"
            ))),
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
            self.tree.alias(&place, slot)?;
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

    fn symlink(&self, entry: &mut impl Entry, path: &str, place: &Path) -> Result<Slot, ReadError> {
        let target = entry.link_target(path)?;
        let mut attributes = entry.attributes(S_IFLNK)?;
        // The system reports this mode for every symbolic link, whatever the layer says.
        attributes.mode = S_IFLNK | 0o777;
        let attributes = self.label(place, attributes)?;
        entry.store_header(file_header(&attributes, &target))
    }

    fn label(&self, place: &Path, attributes: Attributes) -> Result<Attributes, ReadError> {
        match &self.guess {
            Some(guess) => guess
                .attributes(&display(place), attributes)
                .map_err(ReadError::Write),
            None => Ok(attributes),
        }
    }
}
