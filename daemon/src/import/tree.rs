//! Trees of identities, and how layers flatten into one. Pure.
//!
//! The result is that of laying one checkout over another, directory by directory, as bootc
//! hosts do: a directory that is there keeps its owner, mode and attributes whatever an upper
//! layer says of it; files are applied before subdirectories, both in byte order.

use std::collections::BTreeMap;

use super::objects::Id;

/// A file of this prefix removes its namesake from the layers below.
pub(crate) const WHITEOUT: &str = ".wh.";
/// A file of this name empties its directory first.
pub(crate) const OPAQUE: &str = ".wh..wh..opq";

/// One directory: its metadata object and its children, by name in byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dir {
    pub(crate) meta: Id,
    pub(crate) files: BTreeMap<Box<str>, Id>,
    pub(crate) dirs: BTreeMap<Box<str>, Dir>,
}

/// A whiteout without a name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the whiteout {0:?} names nothing")]
pub(crate) struct EmptyWhiteout(String);

impl Dir {
    /// An empty directory.
    pub(crate) fn new(meta: Id) -> Self {
        Self {
            meta,
            files: BTreeMap::new(),
            dirs: BTreeMap::new(),
        }
    }

    /// The directory at `path` beneath this one.
    pub(crate) fn dir(&self, path: &[&str]) -> Option<&Dir> {
        path.iter().try_fold(self, |dir, name| dir.dirs.get(*name))
    }

    /// The directory at `path` beneath this one.
    pub(crate) fn dir_mut(&mut self, path: &[&str]) -> Option<&mut Dir> {
        path.iter()
            .try_fold(self, |dir, name| dir.dirs.get_mut(*name))
    }

    /// Whatever kind of file carries the name, as in libostree.
    fn is_opaque(&self) -> bool {
        self.files.contains_key(OPAQUE)
    }
}

/// Lays `upper` over `lower`, whiteouts taking effect.
///
/// `is_symlink` is asked about files with the prefix of whiteouts only: a symbolic link of
/// such a name is just a symbolic link.
pub(crate) fn lay<E: From<EmptyWhiteout>>(
    lower: &mut Option<Dir>,
    upper: &Dir,
    is_symlink: &mut impl FnMut(&Id) -> Result<bool, E>,
) -> Result<(), E> {
    if upper.is_opaque() {
        *lower = None;
    }
    let dir = lower.get_or_insert_with(|| Dir::new(upper.meta));
    for (name, id) in &upper.files {
        if let Some(hidden) = name.strip_prefix(WHITEOUT)
            && !is_symlink(id)?
        {
            if hidden.is_empty() {
                return Err(EmptyWhiteout(name.to_string()).into());
            }
            dir.files.remove(hidden);
            dir.dirs.remove(hidden);
        } else {
            dir.dirs.remove(name);
            dir.files.insert(name.clone(), *id);
        }
    }
    for (name, child) in &upper.dirs {
        dir.files.remove(name);
        let mut slot = dir.dirs.remove(name);
        lay(&mut slot, child, is_symlink)?;
        if let Some(merged) = slot {
            dir.dirs.insert(name.clone(), merged);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, layers, and what they become.
    type Case = (
        &'static str,
        &'static [&'static [&'static str]],
        &'static [&'static str],
    );

    /// `usr/bin/sh=1`: a file with identity 1; `usr/=3`: a directory with metadata 3.
    fn tree(entries: &[&str]) -> Dir {
        let mut root = Dir::new([0; 32]);
        for entry in entries {
            let (path, number) = entry.split_once('=').unwrap();
            let id = [number.parse().unwrap(); 32];
            let is_dir = path.ends_with('/');
            let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
            let file = if is_dir { None } else { parts.pop() };
            let mut dir = &mut root;
            for part in parts {
                dir = dir
                    .dirs
                    .entry(part.into())
                    .or_insert_with(|| Dir::new([0; 32]));
            }
            match file {
                Some(name) => drop(dir.files.insert(name.into(), id)),
                None => dir.meta = id,
            }
        }
        root
    }

    fn merge(layers: &[&[&str]]) -> Dir {
        let mut merged = None;
        for layer in layers {
            // Identity 99 stands for a symbolic link.
            lay::<EmptyWhiteout>(&mut merged, &tree(layer), &mut |id| Ok(*id == [99; 32])).unwrap();
        }
        merged.unwrap()
    }

    #[test]
    fn the_table_of_merges() {
        let cases: &[Case] = &[
            ("upper file wins", &[&["a=1"], &["a=2"]], &["a=2"]),
            ("both stay", &[&["a=1"], &["b=2"]], &["a=1", "b=2"]),
            ("file over directory", &[&["a/b=1"], &["a=2"]], &["a=2"]),
            ("directory over file", &[&["a=1"], &["a/b=2"]], &["a/b=2"]),
            (
                "whiteout of a file",
                &[&["a=1", "b=1"], &[".wh.a=9"]],
                &["b=1"],
            ),
            (
                "whiteout of a directory",
                &[&["a/b=1", "c=1"], &[".wh.a=9"]],
                &["c=1"],
            ),
            ("whiteout of nothing", &[&["c=1"], &[".wh.a=9"]], &["c=1"]),
            (
                "whiteout, then again",
                &[&["a/b=1"], &[".wh.a=9", "a/c=2"]],
                &["a/c=2"],
            ),
            (
                "whiteout in the first layer",
                &[&[".wh.a=9", "b=1"]],
                &["b=1"],
            ),
            (
                "own whiteout comes first",
                &[&["a=1"], &[".wh.a=9", "a=2"]],
                &["a=2"],
            ),
            (
                "own whiteout comes last",
                &[&["+a=1"], &[".wh.+a=9", "+a=2"]],
                &[],
            ),
            (
                "link named like one",
                &[&["a=1"], &[".wh.a=99"]],
                &["a=1", ".wh.a=99"],
            ),
            (
                "opaque",
                &[&["a/b=1", "a/c/d=1"], &["a/.wh..wh..opq=9", "a/e=2"]],
                &["a/e=2"],
            ),
            (
                "opaque root",
                &[&["a=1", "b/c=1"], &[".wh..wh..opq=9", "d=2"]],
                &["d=2"],
            ),
            (
                "overlay names pass",
                &[&["a=1"], &[".ostree-wh.a=2"]],
                &["a=1", ".ostree-wh.a=2"],
            ),
        ];
        for (name, layers, expected) in cases {
            assert_eq!(merge(layers), tree(expected), "{name}");
        }
    }

    #[test]
    fn directories_keep_the_metadata_of_the_lowest_layer() {
        let merged = merge(&[&["/=1", "a/=2", "a/x=1"], &["/=3", "a/=4", "a/y=2"]]);
        assert_eq!(merged, tree(&["/=1", "a/=2", "a/x=1", "a/y=2"]));
    }

    #[test]
    fn opaque_and_recreated_directories_take_the_upper_metadata() {
        let merged = merge(&[&["a/=2", "a/x=1"], &["a/=4", "a/.wh..wh..opq=9"]]);
        assert_eq!(merged, tree(&["a/=4"]));
        let merged = merge(&[&["a/=2", "a/x=1"], &[".wh.a=9", "a/=4"]]);
        assert_eq!(merged, tree(&["a/=4"]));
    }

    #[test]
    fn an_empty_whiteout_is_refused() {
        let mut merged = None;
        let result = lay::<EmptyWhiteout>(&mut merged, &tree(&[".wh.=9"]), &mut |_| Ok(false));
        assert_eq!(result, Err(EmptyWhiteout(".wh.".to_owned())));
    }

    #[test]
    fn directories_are_found_by_path() {
        let mut root = tree(&["usr/etc/x=1"]);
        assert!(root.dir(&["usr", "etc"]).is_some());
        assert!(root.dir(&["usr", "lib"]).is_none());
        root.dir_mut(&["usr", "etc"]).unwrap().files.clear();
        assert_eq!(root, tree(&["usr/etc/=0"]));
    }
}
