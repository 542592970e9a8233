//! The files of an image layout: in a directory, or in a tar that is read where it lies.
//!
//! Invariants: only regular files are read; every wait is one of a blocking pool, never of an executor
//! thread; what a client handed over is read through its own descriptor, and of a directory nothing is
//! opened that lies outside of it, whatever links are in it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::stream;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use tokio_util::bytes::{Bytes, BytesMut};

use super::archive::Archive;
use super::layout::LayoutError;
use super::{ByteStream, Error, blob};

/// Bytes per read: large enough that the way to the blocking pool and back does not matter.
const CHUNK: u64 = 256 << 10;

/// What the unit hides from the daemon (ProtectHome= and PrivateTmp=), also by the names that
/// these places have on image-based hosts.
const HIDDEN: [&str; 7] = [
    "/home",
    "/root",
    "/run/user",
    "/tmp",
    "/var/home",
    "/var/roothome",
    "/var/tmp",
];

/// An archive or a layout directory that a client has opened, and what messages call it.
#[derive(Clone, Debug)]
pub struct Handed {
    descriptor: Arc<OwnedFd>,
    shown: PathBuf,
    is_directory: bool,
}

impl PartialEq for Handed {
    /// Whether it is the very same descriptor, which two calls never have.
    fn eq(&self, other: &Handed) -> bool {
        Arc::ptr_eq(&self.descriptor, &other.descriptor)
    }
}

impl Handed {
    /// Takes a descriptor of a regular file or a directory.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for anything else: reading it could block, or never end.
    pub fn new(descriptor: OwnedFd, shown: PathBuf) -> Result<Handed, Error> {
        let file = File::from(descriptor);
        let metadata = file.metadata().map_err(|source| Error::Io {
            path: shown.clone(),
            source,
        })?;
        if !metadata.is_file() && !metadata.is_dir() {
            return Err(Error::NotSupported(
                "the descriptor is neither of a regular file nor of a directory; save the archive \
                 to a file first"
                    .to_owned(),
            ));
        }
        Ok(Handed {
            descriptor: Arc::new(file.into()),
            shown,
            is_directory: metadata.is_dir(),
        })
    }

    /// What messages call it.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// Its files. Blocks.
    pub(super) fn members(
        &self,
        scratch: &Path,
        abandoned: &std::sync::atomic::AtomicBool,
    ) -> Result<Members, Error> {
        if self.is_directory {
            return Ok(Members::Handed {
                directory: self.descriptor.clone(),
                shown: self.shown.clone(),
            });
        }
        let file = self.descriptor.try_clone().map_err(|source| Error::Io {
            path: self.shown.clone(),
            source,
        })?;
        let archive = Archive::read(file.into(), &self.shown, scratch, abandoned)?;
        Ok(Members::Archive {
            archive,
            shown: self.shown.clone(),
        })
    }
}

/// Files by their names in a layout.
#[derive(Debug)]
pub(super) enum Members {
    /// Files below a directory.
    Directory(PathBuf),
    /// Files below a directory that a client has opened.
    Handed {
        directory: Arc<OwnedFd>,
        shown: PathBuf,
    },
    /// Members of a tar.
    Archive { archive: Archive, shown: PathBuf },
}

/// One file, or a part of one.
#[derive(Debug)]
pub(super) struct Member {
    file: Arc<File>,
    offset: u64,
    /// Bytes.
    pub(super) length: u64,
    /// What messages call it.
    shown: PathBuf,
}

impl Members {
    /// A directory by its path.
    pub(super) fn directory(path: &Path) -> Members {
        Members::Directory(path.to_owned())
    }

    /// The archive at `path`. Blocks.
    pub(super) fn archive(
        path: &Path,
        scratch: &Path,
        abandoned: &std::sync::atomic::AtomicBool,
    ) -> Result<Members, Error> {
        let (file, _) = open_regular(path).map_err(|source| named_error(path, source))?;
        Ok(Members::Archive {
            archive: Archive::read(file, path, scratch, abandoned)?,
            shown: path.to_owned(),
        })
    }

    /// Opens the file of that name, which the caller made from what it has checked.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Io`].
    pub(super) async fn open(&self, name: &str) -> Result<Member, Error> {
        match self {
            Members::Archive { archive, shown } => {
                let shown = shown.join(name);
                let found = archive.member(name);
                let (file, offset, length) = found.ok_or_else(|| Error::NotFound {
                    what: shown.display().to_string(),
                })?;
                Ok(Member {
                    file,
                    offset,
                    length,
                    shown,
                })
            }
            Members::Directory(path) => {
                let path = path.join(name);
                let shown = path.clone();
                Member::whole(shown, move || open_regular(&path), named_error).await
            }
            Members::Handed { directory, shown } => {
                let (directory, shown) = (directory.clone(), shown.join(name));
                let name = name.to_owned();
                Member::whole(shown, move || open_beneath(&directory, &name), io_error).await
            }
        }
    }
}

impl Member {
    async fn whole(
        shown: PathBuf,
        open: impl FnOnce() -> io::Result<(File, u64)> + Send + 'static,
        explain: fn(&Path, io::Error) -> Error,
    ) -> Result<Member, Error> {
        let opened = on_blocking_pool(open).await;
        let (file, length) = opened.map_err(|source| explain(&shown, source))?;
        Ok(Member {
            file: Arc::new(file),
            offset: 0,
            length,
            shown,
        })
    }

    /// Only these bytes of it, as far as they are there.
    pub(super) fn part(self, range: &Range<u64>) -> Member {
        let end = range.end.min(self.length);
        let start = range.start.min(end);
        Member {
            offset: self.offset + start,
            length: end - start,
            ..self
        }
    }

    /// The content in pieces; it ends early when the file got shorter.
    pub(super) fn chunks(self) -> ByteStream {
        Box::pin(stream::try_unfold((self, 0), |(member, done)| async move {
            let wanted = CHUNK.min(member.length - done);
            if wanted == 0 {
                return Ok(None);
            }
            let (file, at) = (member.file.clone(), member.offset + done);
            let read = on_blocking_pool(move || {
                // Bounded by CHUNK, so the cast cannot lose anything.
                let mut chunk = BytesMut::zeroed(wanted as usize);
                let count = file.read_at(&mut chunk, at)?;
                chunk.truncate(count);
                Ok(chunk.freeze())
            });
            match read.await {
                Ok(chunk) if chunk.is_empty() => Ok(None),
                Ok(chunk) => {
                    let done = done + chunk.len() as u64;
                    Ok(Some((chunk, (member, done))))
                }
                Err(source) => Err(io_error(&member.shown, source)),
            }
        }))
    }

    /// All of it, if it has at most `limit` bytes.
    pub(super) async fn read(self, limit: u64) -> Result<Bytes, Error> {
        if self.length > limit {
            return Err(Error::Invalid(LayoutError::Unreadable {
                what: "manifest",
                reason: format!(
                    "{} is longer than the {limit} bytes allowed",
                    self.shown.display()
                ),
            }));
        }
        blob::collect(self.chunks()).await
    }
}

/// Opens a regular file; anything else could block, or never end.
fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let waiting_for_nobody = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = File::options();
    let file = options.read(true).custom_flags(waiting_for_nobody);
    regular(file.open(path)?)
}

/// As [`open_regular`], for what lies below `directory`.
fn open_beneath(directory: &OwnedFd, name: &str) -> io::Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // What is mounted over a file there can be somebody else's.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let opened = openat2(directory, name, flags, Mode::empty(), resolve);
    regular(File::from(opened.map_err(|error| match error {
        rustix::io::Errno::XDEV => io::Error::other("it leads out of what was handed over"),
        error => error.into(),
    })?))
}

fn regular(file: File) -> io::Result<(File, u64)> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok((file, metadata.len()))
}

async fn on_blocking_pool<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn io_error(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NotFound {
            what: path.display().to_string(),
        },
        _ => Error::Io {
            path: path.to_owned(),
            source,
        },
    }
}

/// Of what the daemon itself looks for by its name.
fn named_error(path: &Path, source: io::Error) -> Error {
    match io_error(path, source) {
        Error::NotFound { what } if HIDDEN.iter().any(|place| path.starts_with(place)) => {
            Error::NotFound {
                what: format!(
                    "{what}, in a place that the daemon cannot see and `osteward switch` hands over,"
                ),
            }
        }
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_grows_or_shrinks_gives_no_more_than_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blob");
        std::fs::write(&path, vec![7; 600_000]).unwrap();
        let members = Members::directory(directory.path());
        let member = members.open("blob").await.unwrap();
        assert_eq!(member.length, 600_000);
        std::fs::write(&path, vec![8; 700_000]).unwrap();
        assert_eq!(blob::collect(member.chunks()).await.unwrap().len(), 600_000);
        let member = members.open("blob").await.unwrap();
        std::fs::write(&path, vec![8; 7]).unwrap();
        assert_eq!(blob::collect(member.chunks()).await.unwrap().len(), 7);
    }

    #[tokio::test]
    async fn nothing_is_opened_outside_of_what_was_handed_over() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        for path in [directory.path().join("secret"), inside.join("file")] {
            std::fs::write(path, "text").unwrap();
        }
        let secret = directory.path().join("secret");
        std::os::unix::fs::symlink(secret, inside.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("relative")).unwrap();
        std::os::unix::fs::symlink("file", inside.join("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            inside.join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        let handed = Handed::new(File::open(&inside).unwrap().into(), "/home/x".into()).unwrap();
        let members = handed.members(Path::new("/"), &Default::default()).unwrap();
        for name in ["file", "link"] {
            assert_eq!(members.open(name).await.unwrap().length, 4, "{name}");
        }
        for (name, words) in [
            ("absolute", "leads out of"),
            ("relative", "leads out of"),
            ("pipe", "not a regular file"),
            ("none", "/home/x/none does not exist"),
        ] {
            let error = members.open(name).await.unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("/home/x"),
                "{error}"
            );
        }
        let members = Members::directory(&inside);
        assert_eq!(members.open("absolute").await.unwrap().length, 4);
        assert!(members.open("pipe").await.is_err());
    }

    #[test]
    fn only_files_and_directories_can_be_handed_over() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let error = Handed::new(reader.into(), "x".into()).unwrap_err();
        assert!(matches!(error, Error::NotSupported(_)), "{error}");
        let null = File::open("/dev/null").unwrap();
        assert!(Handed::new(null.into(), "x".into()).is_err());
        let directory = File::open("/").unwrap();
        assert!(Handed::new(directory.into(), "x".into()).is_ok());
    }
}
