//! A commit as a tree of files, for the few small ones that matter before it boots.
//!
//! Invariants: nothing is checked out; links are followed inside the commit and never out of it.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd as _;

use ostree::gio;
use ostree::prelude::*;

use super::error::{During, Error};

/// No file that is read has more bytes; what is longer is read this far.
pub(crate) const LARGEST: usize = 64 * 1024;
/// As many links as Linux follows.
const LINKS: usize = 40;

/// The files of one commit.
pub(crate) struct CommitFiles<'a> {
    repo: &'a ostree::Repo,
    root: gio::File,
    /// Whether `/etc` is what the host makes it from.
    as_host: bool,
    cancellable: &'a gio::Cancellable,
}

impl<'a> CommitFiles<'a> {
    /// Opens the commit as a host sees it, with an `/etc` that is made from `/usr/etc`.
    pub(crate) fn as_host(
        repo: &'a ostree::Repo,
        commit: &str,
        cancellable: &'a gio::Cancellable,
    ) -> Result<Self, Error> {
        let files = Self::open(repo, commit, cancellable)?;
        Ok(Self {
            as_host: true,
            ..files
        })
    }

    /// Opens the commit as it is.
    pub(crate) fn open(
        repo: &'a ostree::Repo,
        commit: &str,
        cancellable: &'a gio::Cancellable,
    ) -> Result<Self, Error> {
        let (root, _) = repo
            .read_commit(commit, Some(cancellable))
            .during("reading a commit")?;
        Ok(Self {
            repo,
            root,
            as_host: false,
            cancellable,
        })
    }

    /// The names in a directory, in byte order, each with whether it is a symbolic link; `None` if there is
    /// no such directory.
    pub(crate) fn names(&self, path: &str) -> Result<Option<Vec<(String, bool)>>, Error> {
        let Some(directory) = self.resolve(path)? else {
            return Ok(None);
        };
        if self.kind(&directory) != gio::FileType::Directory {
            return Ok(None);
        }
        let children = directory
            .enumerate_children(
                "standard::name,standard::type",
                gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS,
                Some(self.cancellable),
            )
            .during("listing a directory of a commit")?;
        let mut names = Vec::new();
        while let Some(child) = children
            .next_file(Some(self.cancellable))
            .during("listing a directory of a commit")?
        {
            let name = child.name().to_string_lossy().into_owned();
            names.push((name, child.file_type() == gio::FileType::SymbolicLink));
        }
        names.sort();
        Ok(Some(names))
    }

    /// The content of a file, links followed; `None` if it leads to no file.
    pub(crate) fn text(&self, path: &str) -> Result<Option<String>, Error> {
        match self.resolve(path)? {
            Some(file) if self.kind(&file) == gio::FileType::Regular => self.read(&file).map(Some),
            _ => Ok(None),
        }
    }

    /// The file that a path leads to, links followed: where it is, relative to the root, and its
    /// content, open at the beginning. `None` if it leads to no file.
    pub(crate) fn file(&self, path: &str) -> Result<Option<(String, File)>, Error> {
        let Some(parts) = self.follow(path)? else {
            return Ok(None);
        };
        let file = self.at(&parts);
        if self.kind(&file) != gio::FileType::Regular {
            return Ok(None);
        }
        let Some(object) = file.downcast_ref::<ostree::RepoFile>() else {
            return Ok(None);
        };
        let file = open_object(self.repo, &object.checksum(), self.cancellable)?;
        Ok(file.map(|file| (parts.join("/"), file)))
    }

    /// By its object: the stream that an `OstreeRepoFile` opens is none of GIO's file streams, which
    /// `load_contents` takes it for.
    fn read(&self, file: &gio::File) -> Result<String, Error> {
        let Some(object) = file.downcast_ref::<ostree::RepoFile>() else {
            return Ok(String::new());
        };
        let context = "reading a file of a commit";
        let (stream, _, _) = self
            .repo
            .load_file(&object.checksum(), Some(self.cancellable))
            .during(context)?;
        let mut text = Vec::new();
        while let Some(stream) = &stream {
            let bytes = stream
                .read_bytes(4096, Some(self.cancellable))
                .during(context)?;
            if bytes.is_empty() || text.len() > LARGEST {
                break;
            }
            text.extend_from_slice(&bytes);
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// What a path leads to, links followed; `None` if it leads nowhere.
    fn resolve(&self, path: &str) -> Result<Option<gio::File>, Error> {
        Ok(self.follow(path)?.map(|parts| self.at(&parts)))
    }

    /// Follows a path, and the links on it, from the root.
    fn follow(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        let mut rest: VecDeque<String> = parts(path).map(str::to_owned).collect();
        let mut found: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                found.pop();
                continue;
            }
            found.push(part);
            let file = self.at(&found);
            match self.kind(&file) {
                gio::FileType::Unknown => return Ok(None),
                gio::FileType::SymbolicLink if links == LINKS => return Ok(None),
                gio::FileType::SymbolicLink => {
                    links += 1;
                    let target = self.target(&file)?;
                    found.pop();
                    if target.starts_with('/') {
                        found.clear();
                    }
                    for part in parts(&target).rev() {
                        rest.push_front(part.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(Some(found))
    }

    fn at(&self, parts: &[String]) -> gio::File {
        let mut path = parts.join("/");
        if self.as_host && parts.first().is_some_and(|first| first == "etc") {
            path.insert_str(0, "usr/");
        }
        match path.as_str() {
            "" => self.root.clone(),
            path => self.root.resolve_relative_path(path),
        }
    }

    /// `Unknown` for what is not there.
    fn kind(&self, file: &gio::File) -> gio::FileType {
        let flags = gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS;
        file.query_file_type(flags, Some(self.cancellable))
    }

    fn target(&self, link: &gio::File) -> Result<String, Error> {
        let info = link
            .query_info(
                "standard::symlink-target",
                gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS,
                Some(self.cancellable),
            )
            .during("reading a link of a commit")?;
        let target = info.symlink_target().unwrap_or_default();
        Ok(target.to_string_lossy().into_owned())
    }
}

/// The content of a file object, open at the beginning; `None` if it is no regular file.
///
/// # Errors
/// Also where contents are stored compressed, as on no host.
pub(crate) fn open_object(
    repo: &ostree::Repo,
    checksum: &str,
    cancellable: &gio::Cancellable,
) -> Result<Option<File>, Error> {
    let context = "opening a file of a commit";
    let (stream, info, _) = repo
        .load_file(checksum, Some(cancellable))
        .during(context)?;
    if info.file_type() != gio::FileType::Regular {
        return Ok(None);
    }
    let stream = stream.and_then(|stream| stream.downcast::<gio::UnixInputStream>().ok());
    let stream = stream.ok_or_else(|| Error::Ostree {
        context,
        text: "the repository does not store it as it is".into(),
    })?;
    // Opened anew, because the stream closes its own descriptor.
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    File::open(path).during(context).map(Some)
}

/// The parts of a path that lead somewhere.
fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
}
