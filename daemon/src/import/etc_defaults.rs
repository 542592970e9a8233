//! The configuration files that a commit brings along, as a tree to compare with.
//!
//! Invariant: nothing is checked out; no link is followed.

use std::io::{self, Read};
use std::path::Path;

use ostree::gio;
use ostree::prelude::*;

use super::error::{During, Error};
use super::transaction::open;
use crate::etc::{Attributes, Entry, Tree};

const QUERY: &str = "standard::type,standard::size,standard::symlink-target,\
                     unix::mode,unix::uid,unix::gid";

/// `/usr/etc` of a commit.
#[derive(Debug)]
pub struct EtcDefaults {
    repo: ostree::Repo,
    etc: gio::File,
}

impl EtcDefaults {
    /// Opens those of `commit`, with a handle of its own to the repository at `path`. Blocks.
    ///
    /// # Errors
    /// [`Error::Ostree`] when the repository or the commit cannot be read.
    pub fn open(repo_path: &Path, commit: &str) -> Result<Self, Error> {
        let cancellable = gio::Cancellable::new();
        let repo = open(repo_path, &cancellable)?;
        let (root, _) = repo
            .read_commit(commit, Some(&cancellable))
            .during("reading a commit")?;
        let etc = root.resolve_relative_path("usr/etc");
        Ok(Self { repo, etc })
    }
}

impl Tree for EtcDefaults {
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        let file = self.etc.resolve_relative_path(path);
        let flags = gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS;
        let info = match file.query_info(QUERY, flags, gio::Cancellable::NONE) {
            Ok(info) => info,
            Err(error)
                if error.matches(gio::IOErrorEnum::NotFound)
                    || error.matches(gio::IOErrorEnum::NotDirectory) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(io::Error::other(error.message().to_owned())),
        };
        let number = |name: &str| info.attribute_uint32(name);
        let attributes = Attributes {
            mode: number("unix::mode") & 0o7777,
            uid: number("unix::uid"),
            gid: number("unix::gid"),
        };
        Ok(Some(match info.file_type() {
            gio::FileType::Regular => {
                Entry::File(attributes, u64::try_from(info.size()).unwrap_or(0))
            }
            gio::FileType::Directory => Entry::Directory(attributes),
            gio::FileType::SymbolicLink => {
                let target = info.symlink_target().unwrap_or_default();
                Entry::Link(target, attributes.uid, attributes.gid)
            }
            _ => Entry::Other(attributes),
        }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        let file = self.etc.resolve_relative_path(path);
        let object = file.downcast_ref::<ostree::RepoFile>();
        let object = object.ok_or(io::ErrorKind::NotFound)?;
        // Unresolved, it has no parent to take the checksum from, and libostree looks all the same.
        object
            .ensure_resolved()
            .map_err(|error| io::Error::other(error.message().to_owned()))?;
        let loaded = self
            .repo
            .load_file(&object.checksum(), gio::Cancellable::NONE)
            .map_err(|error| io::Error::other(error.message().to_owned()))?;
        let stream = loaded.0.ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(stream.into_read()))
    }
}
