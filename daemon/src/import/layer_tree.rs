//! The tree of one plain layer while its tar is being read. Pure.
//!
//! Files are slots in a list of objects still being written. Invariants: the last entry of a
//! path wins; whiteouts are ordinary files here; hard links are resolved once all entries are
//! known, to what their target is then.

use std::collections::BTreeMap;

use super::objects::{Attributes, Id};
use super::path::display;
use super::tree::Dir;
use super::write_pool::Slot;

/// Path from the root, one element a component.
pub(crate) type Path = Vec<Box<str>>;

/// Longest chain of hard links to hard links that is followed.
const CHAIN: usize = 64;

#[derive(Debug)]
enum Node {
    Dir(Builder),
    File(Slot),
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
}

/// The tree of one layer.
#[derive(Debug, Default)]
pub(crate) struct LayerTree {
    root: Builder,
}

impl LayerTree {
    /// A directory entry; what is already in the directory stays.
    pub(crate) fn dir(&mut self, path: &Path, attributes: Attributes) -> Result<(), Misfit> {
        let Some((name, parent)) = path.split_last() else {
            self.root.attributes = Some(attributes);
            return Ok(());
        };
        let parent = self.parent(parent, path)?;
        match parent.children.get_mut(name) {
            Some(Node::Dir(dir)) => dir.attributes = Some(attributes),
            _ => {
                let dir = Builder {
                    attributes: Some(attributes),
                    children: BTreeMap::new(),
                };
                parent.children.insert(name.clone(), Node::Dir(dir));
            }
        }
        Ok(())
    }

    /// A regular file or symbolic link.
    pub(crate) fn file(&mut self, path: &Path, slot: Slot) -> Result<(), Misfit> {
        self.put(path, Node::File(slot))
    }

    /// A hard link.
    pub(crate) fn link(&mut self, path: &Path, target: Path) -> Result<(), Misfit> {
        // A file that is a link to itself is a repetition of the file.
        if *path == target && self.find(&target).is_some() {
            return Ok(());
        }
        self.put(path, Node::Link(target))
    }

    fn put(&mut self, path: &Path, node: Node) -> Result<(), Misfit> {
        let (name, parent) = path.split_last().ok_or(Misfit::Root)?;
        self.parent(parent, path)?
            .children
            .insert(name.clone(), node);
        Ok(())
    }

    fn parent(&mut self, parts: &[Box<str>], path: &Path) -> Result<&mut Builder, Misfit> {
        let mut dir = &mut self.root;
        for part in parts {
            let child = dir
                .children
                .entry(part.clone())
                .or_insert_with(|| Node::Dir(Builder::default()));
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

    /// The finished tree.
    ///
    /// `ids` are the identities of the slots; `dirmeta` stores a directory's attributes.
    pub(crate) fn finish<E: From<Misfit>>(
        &self,
        ids: &[Id],
        dirmeta: &mut impl FnMut(&Attributes) -> Result<Id, E>,
    ) -> Result<Dir, E> {
        self.convert(&self.root, &mut Path::new(), ids, dirmeta)
    }

    fn convert<E: From<Misfit>>(
        &self,
        builder: &Builder,
        path: &mut Path,
        ids: &[Id],
        dirmeta: &mut impl FnMut(&Attributes) -> Result<Id, E>,
    ) -> Result<Dir, E> {
        let meta = match &builder.attributes {
            Some(attributes) => dirmeta(attributes)?,
            None => dirmeta(&Attributes::default_directory())?,
        };
        let mut dir = Dir::new(meta);
        for (name, node) in &builder.children {
            path.push(name.clone());
            match node {
                Node::Dir(child) => {
                    let child = self.convert(child, path, ids, dirmeta)?;
                    dir.dirs.insert(name.clone(), child);
                }
                Node::File(slot) => {
                    dir.files.insert(name.clone(), ids[*slot]);
                }
                Node::Link(target) => {
                    let slot = self.resolve(path, target)?;
                    dir.files.insert(name.clone(), ids[slot]);
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
                Some(Node::File(slot)) => return Ok(*slot),
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

    fn finish(tree: &LayerTree) -> Result<Dir, Misfit> {
        let ids: Vec<Id> = (0..10).map(|slot| [slot; 32]).collect();
        tree.finish(&ids, &mut |attributes| Ok(dirmeta(attributes).0))
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
