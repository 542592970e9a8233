//! The files of an older image, by path and by content.
//!
//! Invariant: only what is in the image's tree is here: what later layers replace or hide is not, nor is what
//! belongs to no image (a host's mount points, the objects of encapsulated commits).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::blocks::common;
use super::operations::Operations;
use crate::image::members::{Member, Members};
use crate::image::{Layout, Written, open_tar};

/// Where files are that a host certainly has under the same path.
const TAKEN: [&str; 2] = ["usr/", "etc/"];

type Hash = [u8; 32];

/// Content in the file of all contents.
#[derive(Clone, Copy, Debug)]
struct Content {
    start: u64,
    length: u64,
    hash: Hash,
}

/// The files.
#[derive(Debug)]
pub(super) struct OlderFiles {
    contents: File,
    by_path: BTreeMap<String, Content>,
    by_hash: HashMap<Hash, String>,
}

impl OlderFiles {
    /// No files.
    pub(super) fn none() -> Result<Self> {
        Ok(Self {
            contents: tempfile::tempfile()?,
            by_path: BTreeMap::new(),
            by_hash: HashMap::new(),
        })
    }

    /// Those of an image; their contents are in a file without name in the directory `scratch`.
    pub(super) fn of(layout: &Layout, image: &Written, scratch: &Path) -> Result<Self> {
        let mut reader = Reader {
            contents: BufWriter::new(tempfile::tempfile_in(scratch)?),
            length: 0,
            tree: BTreeMap::new(),
        };
        for layer in &image.layers {
            let tar = open_tar(&layout.blob(layer))?;
            reader
                .layer(tar)
                .with_context(|| format!("reading {layer}"))?;
        }
        let mut by_hash = HashMap::new();
        for (path, content) in &reader.tree {
            by_hash.entry(content.hash).or_insert_with(|| path.clone());
        }
        let contents = reader.contents.into_inner();
        Ok(Self {
            contents: contents.map_err(std::io::IntoInnerError::into_error)?,
            by_path: reader.tree,
            by_hash,
        })
    }

    /// Makes the content of a new file out of one that has it as a whole, if there is one.
    pub(super) fn copy<W: Write>(
        &self,
        new: &[u8],
        operations: &mut Operations<W>,
    ) -> Result<bool> {
        match self.by_hash.get(&Hash::from(Sha256::digest(new))) {
            Some(path) => operations.copy(path, 0, new.len() as u64).map(|()| true),
            None => Ok(false),
        }
    }

    /// Makes the content of a new file out of what the file of the same path has of it, and the rest as it is.
    pub(super) fn copy_blocks<W: Write>(
        &self,
        name: &str,
        new: &[u8],
        operations: &mut Operations<W>,
    ) -> Result<()> {
        let path = path_of(name);
        let Some(content) = self.by_path.get(path) else {
            return operations.data(new);
        };
        let old = self.read(content)?;
        let mut done = 0;
        for part in common(&old, new) {
            operations.data(&new[done..part.new])?;
            operations.copy(path, part.old as u64, part.length as u64)?;
            done = part.new + part.length;
        }
        operations.data(&new[done..])
    }

    fn read(&self, content: &Content) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(content.length)?];
        let read = self.contents.read_exact_at(&mut bytes, content.start);
        read.context("reading an older file")?;
        Ok(bytes)
    }
}

/// Puts the tree together, layer by layer.
struct Reader {
    contents: BufWriter<File>,
    length: u64,
    tree: BTreeMap<String, Content>,
}

impl Reader {
    fn layer(&mut self, tar: impl Read) -> Result<()> {
        let mut members = Members::new(tar);
        let mut own = BTreeMap::new();
        while let Some(member) = members.next()? {
            let path = path_of(&member.name).to_owned();
            self.hide(&member, &path);
            if member.type_flag != b'0' {
                own.remove(&path);
                continue;
            }
            let content = self.keep(&mut members)?;
            if content.length > 0 && TAKEN.iter().any(|top| path.starts_with(top)) {
                own.insert(path, content);
            }
        }
        self.tree.append(&mut own);
        Ok(())
    }

    /// Takes away what the layers below have and this member replaces.
    fn hide(&mut self, member: &Member, path: &str) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        match name.strip_prefix(".wh.") {
            Some(".wh..opq") => self.forget_below(parent),
            Some(hidden) => {
                let hidden = format!("{parent}/{hidden}");
                let hidden = hidden.trim_start_matches('/');
                self.tree.remove(hidden);
                self.forget_below(hidden);
            }
            None => {
                self.tree.remove(path);
                if member.type_flag != b'5' {
                    self.forget_below(path);
                }
            }
        }
    }

    fn forget_below(&mut self, directory: &str) {
        let prefix = format!("{directory}/");
        let below = self.tree.range(prefix.clone()..);
        let below = below.take_while(|(path, _)| path.starts_with(&prefix));
        let below: Vec<String> = below.map(|(path, _)| path.clone()).collect();
        for path in below {
            self.tree.remove(&path);
        }
    }

    /// Appends the content of the present member.
    fn keep<R: Read>(&mut self, members: &mut Members<R>) -> Result<Content> {
        let (start, mut hash) = (self.length, Sha256::new());
        while let Some(bytes) = members.content()? {
            hash.update(bytes);
            self.contents.write_all(bytes)?;
            self.length += bytes.len() as u64;
        }
        Ok(Content {
            start,
            length: self.length - start,
            hash: hash.finalize().into(),
        })
    }
}

/// The path that a name in a tar means.
fn path_of(name: &str) -> &str {
    name.trim_start_matches("./").trim_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Image, Layer};

    #[test]
    fn the_tree_is_that_of_all_layers_together() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let lower = Layer::new()
            .file("usr/a/kept", "kept")
            .file("usr/a/gone", "gone")
            .file("usr/b/one", "one")
            .file("usr/b-is-no-child", "b")
            .file("usr/c/one", "one")
            .file("usr/linked", "linked")
            .file("./etc/conf", "old")
            .file("var/lib/state", "state")
            .file("usr/empty", "");
        let upper = Layer::new()
            .dir("usr/a")
            .whiteout("usr/a/gone")
            .whiteout("usr/b")
            .file("usr/c/two", "two")
            .opaque("usr/c")
            .symlink("usr/linked", "elsewhere")
            .file("etc/conf", "new");
        let image = Image::new("1").layer(lower).layer(upper);
        let image = image.write(&layout).unwrap();
        let files = OlderFiles::of(&layout, &image, dir.path()).unwrap();
        let paths: Vec<&str> = files.by_path.keys().map(String::as_str).collect();
        let expected = ["etc/conf", "usr/a/kept", "usr/b-is-no-child", "usr/c/two"];
        assert_eq!(paths, expected);
        assert_eq!(files.read(&files.by_path["etc/conf"]).unwrap(), b"new");
        assert_eq!(
            files.by_hash[&Hash::from(Sha256::digest("two"))],
            "usr/c/two"
        );
    }
}
