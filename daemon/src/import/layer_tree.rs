//! The tree of one plain layer while its tar is being read. Pure.
//!
//! Files are slots in a list of objects still being written. Invariants: the last entry of a
//! path wins; whiteouts are ordinary files here; hard links are resolved once all entries are
//! known, to what their target is then; a layer has no more nodes than fit into memory, however
//! few bytes it takes to describe them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::objects::{Attributes, Id};
use super::path::display;
use super::tree::Dir;
use super::write_pool::Slot;

/// Path from the root, one element a component.
pub(crate) type Path = Vec<Box<str>>;

/// Longest chain of hard links to hard links that is followed.
const CHAIN: usize = 64;
/// Most files and directories of one layer; images of whole systems have some hundred thousand.
const NODES: usize = 2_000_000;
/// Most bytes of extended attributes of all directories of one layer.
const XATTR_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug)]
enum Node {
    Dir(Builder),
    File(Slot),
    /// A file whose object was stored for another path.
    Alias(Slot),
    /// A hard link to the path, to be resolved at the end.
    Link(Path),
}

#[derive(Debug, Default)]
struct Builder {
    /// `None` until the layer describes the directory itself.
    attributes: Option<Attributes>,
    children: BTreeMap<Box<str>, Node>,
}

/// An entry that does not fit into the tree of its layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("{0} lies beneath something that is not a directory")]
    ParentIsFile(String),
    #[error("the root is not a directory")]
    Root,
    #[error("{link} is a hard link to {target}, which is not in this layer")]
    MissingTarget {
        /// The hard link.
        link: String,
        /// What it names.
        target: String,
    },
    #[error("{link} is a hard link to the directory {target}")]
    DirectoryTarget {
        /// The hard link.
        link: String,
        /// What it names.
        target: String,
    },
    #[error("{0} is a hard link that leads back to itself")]
    Circle(String),
    #[error("it has more than {0} files and directories")]
    TooMany(usize),
    #[error("the extended attributes of its directories have more than {XATTR_BYTES} bytes")]
    Xattrs,
}

/// What a tree needs of the repository when it is finished.
pub(crate) trait Objects<E> {
    /// The object of the attributes that the directory at `path` has.
    fn directory(&mut self, path: &Path, attributes: &Attributes) -> Result<Id, E>;

    /// What the file at `path` is, where `id` was stored for another path.
    fn linked(&mut self, path: &Path, id: Id) -> Result<Id, E>;
}

/// The tree of one layer.
#[derive(Debug)]
pub(crate) struct LayerTree {
    root: Builder,
    /// Nodes that may still come.
    room: usize,
    limit: usize,
    xattr_bytes: usize,
    /// Some of its files kept labels of their own, see [`Guess::has_others`](super::guess::Guess::has_others).
    pub(crate) has_others: bool,
}

impl Default for LayerTree {
    fn default() -> Self {
        Self::with_limit(NODES)
    }
}

impl LayerTree {
    /// An empty tree that takes this many nodes.
    fn with_limit(limit: usize) -> Self {
        Self {
            root: Builder::default(),
            room: limit,
            limit,
            xattr_bytes: 0,
            has_others: false,
        }
    }

    /// A directory entry; what is already in the directory stays.
    pub(crate) fn dir(&mut self, path: &Path, attributes: Attributes) -> Result<(), Misfit> {
        let xattrs = attributes.xattrs.iter();
        let bytes: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
        self.xattr_bytes += bytes;
        if self.xattr_bytes > XATTR_BYTES {
            return Err(Misfit::Xattrs);
        }
        let Some((name, parent)) = path.split_last() else {
            self.root.attributes = Some(attributes);
            return Ok(());
        };
        let existing = self.parent(parent, path)?.children.get_mut(name);
        if let Some(Node::Dir(dir)) = existing {
            dir.attributes = Some(attributes);
            return Ok(());
        }
        let dir = Builder {
            attributes: Some(attributes),
            children: BTreeMap::new(),
        };
        self.put(path, Node::Dir(dir))
    }

    /// A regular file or symbolic link.
    pub(crate) fn file(&mut self, path: &Path, slot: Slot) -> Result<(), Misfit> {
        self.put(path, Node::File(slot))
    }

    /// A regular file or symbolic link whose object was stored for another path.
    pub(crate) fn alias(&mut self, path: &Path, slot: Slot) -> Result<(), Misfit> {
        self.put(path, Node::Alias(slot))
    }

    /// A hard link.
    pub(crate) fn link(&mut self, path: &Path, target: Path) -> Result<(), Misfit> {
        // A file that is a link to itself is a repetition of the file.
        if *path == target && self.find(&target).is_some() {
            return Ok(());
        }
        // Its target takes as much memory as that many nodes.
        let room = self.room.checked_sub(target.len());
        self.room = room.ok_or(Misfit::TooMany(self.limit))?;
        self.put(path, Node::Link(target))
    }

    fn put(&mut self, path: &Path, node: Node) -> Result<(), Misfit> {
        let (name, parent) = path.split_last().ok_or(Misfit::Root)?;
        let children = &mut self.parent(parent, path)?.children;
        let is_new = children.insert(name.clone(), node).is_none();
        match self.room.checked_sub(usize::from(is_new)) {
            Some(room) => self.room = room,
            None => return Err(Misfit::TooMany(self.limit)),
        }
        Ok(())
    }

    fn parent(&mut self, parts: &[Box<str>], path: &Path) -> Result<&mut Builder, Misfit> {
        let mut dir = &mut self.root;
        for part in parts {
            let child = match dir.children.entry(part.clone()) {
                Entry::Occupied(child) => child.into_mut(),
                Entry::Vacant(place) => {
                    let room = self.room.checked_sub(1);
                    self.room = room.ok_or(Misfit::TooMany(self.limit))?;
                    place.insert(Node::Dir(Builder::default()))
                }
            };
            let Node::Dir(next) = child else {
                return Err(Misfit::ParentIsFile(display(path)));
            };
            dir = next;
        }
        Ok(dir)
    }

    fn find(&self, path: &Path) -> Option<&Node> {
        let (name, parent) = path.split_last()?;
        let mut dir = &self.root;
        for part in parent {
            match dir.children.get(part) {
                Some(Node::Dir(next)) => dir = next,
                _ => return None,
            }
        }
        dir.children.get(name)
    }

    /// The finished tree; `ids` are the identities of the slots.
    pub(crate) fn finish<E: From<Misfit>>(
        &self,
        ids: &[Id],
        objects: &mut impl Objects<E>,
    ) -> Result<Dir, E> {
        self.convert(&self.root, &mut Path::new(), ids, objects)
    }

    fn convert<E: From<Misfit>>(
        &self,
        builder: &Builder,
        path: &mut Path,
        ids: &[Id],
        objects: &mut impl Objects<E>,
    ) -> Result<Dir, E> {
        let meta = match &builder.attributes {
            Some(attributes) => objects.directory(path, attributes)?,
            None => objects.directory(path, &Attributes::default_directory())?,
        };
        let mut dir = Dir::new(meta);
        for (name, node) in &builder.children {
            path.push(name.clone());
            match node {
                Node::Dir(child) => {
                    let child = self.convert(child, path, ids, objects)?;
                    dir.dirs.insert(name.clone(), child);
                }
                Node::File(slot) => {
                    dir.files.insert(name.clone(), ids[*slot]);
                }
                Node::Alias(slot) => {
                    let id = objects.linked(path, ids[*slot])?;
                    dir.files.insert(name.clone(), id);
                }
                Node::Link(target) => {
                    let slot = self.resolve(path, target)?;
                    let id = objects.linked(path, ids[slot])?;
                    dir.files.insert(name.clone(), id);
                }
            }
            path.pop();
        }
        Ok(dir)
    }

    fn resolve(&self, link: &Path, target: &Path) -> Result<Slot, Misfit> {
        let mut target = target;
        for _ in 0..CHAIN {
            match self.find(target) {
                Some(Node::File(slot) | Node::Alias(slot)) => return Ok(*slot),
                Some(Node::Link(next)) => target = next,
                Some(Node::Dir(_)) => {
                    let (link, target) = (display(link), display(target));
                    return Err(Misfit::DirectoryTarget { link, target });
                }
                None => {
                    let (link, target) = (display(link), display(target));
                    return Err(Misfit::MissingTarget { link, target });
                }
            }
        }
        Err(Misfit::Circle(display(link)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::objects::{S_IFDIR, dirmeta};

    fn path(text: &str) -> Path {
        text.split('/')
            .filter(|part| !part.is_empty())
            .map(Box::from)
            .collect()
    }

    /// Takes attributes for their identity, and objects as they are.
    struct Plain;

    impl Objects<Misfit> for Plain {
        fn directory(&mut self, _: &Path, attributes: &Attributes) -> Result<Id, Misfit> {
            Ok(dirmeta(attributes).0)
        }

        fn linked(&mut self, _: &Path, id: Id) -> Result<Id, Misfit> {
            Ok(id)
        }
    }

    fn finish(tree: &LayerTree) -> Result<Dir, Misfit> {
        let ids: Vec<Id> = (0..10).map(|slot| [slot; 32]).collect();
        tree.finish(&ids, &mut Plain)
    }

    #[test]
    fn parents_appear_by_themselves_and_learn_their_attributes_later() {
        let mut tree = LayerTree::default();
        tree.file(&path("usr/bin/sh"), 1).unwrap();
        let private = Attributes {
            mode: S_IFDIR | 0o700,
            ..Attributes::default_directory()
        };
        tree.dir(&path("usr"), private.clone()).unwrap();
        let root = finish(&tree).unwrap();
        let default = dirmeta(&Attributes::default_directory()).0;
        assert_eq!(root.meta, default);
        assert_eq!(root.dirs["usr"].meta, dirmeta(&private).0);
        assert_eq!(root.dirs["usr"].dirs["bin"].meta, default);
        assert_eq!(root.dirs["usr"].dirs["bin"].files["sh"], [1; 32]);
    }

    #[test]
    fn the_last_entry_of_a_path_wins() {
        let mut tree = LayerTree::default();
        tree.file(&path("a"), 1).unwrap();
        tree.file(&path("a"), 2).unwrap();
        tree.file(&path("b"), 3).unwrap();
        tree.dir(&path("b"), Attributes::default_directory())
            .unwrap();
        tree.file(&path("b/c"), 4).unwrap();
        tree.dir(&path("d"), Attributes::default_directory())
            .unwrap();
        tree.file(&path("d"), 5).unwrap();
        let root = finish(&tree).unwrap();
        assert_eq!(root.files["a"], [2; 32]);
        assert_eq!(root.dirs["b"].files["c"], [4; 32]);
        assert_eq!(root.files["d"], [5; 32]);
    }

    #[test]
    fn chains_of_hard_links_end_at_the_file_in_any_order() {
        let mut tree = LayerTree::default();
        tree.link(&path("z"), path("y")).unwrap();
        tree.link(&path("y"), path("usr/x")).unwrap();
        tree.file(&path("usr/x"), 1).unwrap();
        tree.link(&path("usr/x"), path("usr/x")).unwrap();
        let root = finish(&tree).unwrap();
        assert_eq!((root.files["z"], root.files["y"]), ([1; 32], [1; 32]));
    }

    #[test]
    fn hard_links_to_nothing_in_the_layer_are_refused() {
        let mut tree = LayerTree::default();
        tree.link(&path("a"), path("usr/b")).unwrap();
        assert!(matches!(finish(&tree), Err(Misfit::MissingTarget { .. })));
        tree.dir(&path("usr/b"), Attributes::default_directory())
            .unwrap();
        assert!(matches!(finish(&tree), Err(Misfit::DirectoryTarget { .. })));
        let mut circle = LayerTree::default();
        circle.link(&path("a"), path("b")).unwrap();
        circle.link(&path("b"), path("a")).unwrap();
        assert!(matches!(finish(&circle), Err(Misfit::Circle(_))));
    }

    #[test]
    fn implied_directories_count_and_repetitions_do_not() {
        let mut tree = LayerTree::with_limit(3);
        tree.file(&path("a/b/c"), 1).unwrap();
        tree.file(&path("a/b/c"), 2).unwrap();
        tree.dir(&path("a/b"), Attributes::default_directory())
            .unwrap();
        assert_eq!(tree.file(&path("d"), 1), Err(Misfit::TooMany(3)));
        let mut tree = LayerTree::with_limit(3);
        assert_eq!(tree.file(&path("a/b/c/d"), 1), Err(Misfit::TooMany(3)));
    }

    #[test]
    fn attributes_of_directories_are_bounded() {
        let mut tree = LayerTree::default();
        let heavy = Attributes {
            xattrs: vec![(b"user.x\0".to_vec(), vec![0; 1024 * 1024])],
            ..Attributes::default_directory()
        };
        let all =
            (0..64).try_for_each(|number| tree.dir(&path(&number.to_string()), heavy.clone()));
        assert_eq!(all, Err(Misfit::Xattrs));
    }

    #[test]
    fn nothing_lies_beneath_a_file() {
        let mut tree = LayerTree::default();
        tree.file(&path("lib"), 1).unwrap();
        assert_eq!(
            tree.file(&path("lib/x"), 2),
            Err(Misfit::ParentIsFile("/lib/x".into()))
        );
        assert_eq!(tree.file(&path(""), 2), Err(Misfit::Root));
    }
}
