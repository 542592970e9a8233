//! Files without a name, for what has to be unpacked before it can be read at any place.
//!
//! Invariants: nothing of them is left however the process ends; unpacking stops before it takes the room
//! that the host itself needs, and soon after nobody waits for it any more.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;

/// Room in bytes that unpacking leaves alone.
const RESERVE: u64 = 512 << 20;
/// How many bytes are written between two looks at the room that is left.
const LOOK: u64 = 64 << 20;
/// Bytes per read.
const CHUNK: usize = 256 << 10;

/// Tells a thread that works for a future that the future is gone.
#[derive(Debug, Default)]
pub(super) struct Abandon(Arc<AtomicBool>);

impl Abandon {
    /// What the thread looks at: true once this value was dropped.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A file without a name in `scratch`, readable by nobody else.
pub(super) fn nameless(scratch: &Path) -> Result<File, Error> {
    tempfile::tempfile_in(scratch).map_err(|source| Error::Io {
        path: scratch.to_owned(),
        source,
    })
}

/// Writes all of `content` into a nameless file in `scratch`. `what` is for messages.
///
/// # Errors
/// [`Error::NoSpace`] before the disk is full; [`Error::Io`] of the file; [`Error::Invalid`] when the
/// content itself cannot be read; [`Error::Cancelled`] when it was abandoned.
pub(super) fn fill(
    content: &mut impl Read,
    scratch: &Path,
    what: &Path,
    abandoned: &AtomicBool,
) -> Result<File, Error> {
    let mut file = nameless(scratch)?;
    let mut buffer = vec![0; CHUNK];
    let mut until_look = 0;
    loop {
        if abandoned.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let count = match content.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(super::archive::broken(what, &error)),
        };
        if until_look < count as u64 {
            check_room(&file, scratch, what)?;
            until_look = LOOK;
        }
        until_look -= count as u64;
        let written = file.write_all(&buffer[..count]);
        written.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => no_space(0, scratch, what),
            _ => Error::Io {
                path: scratch.to_owned(),
                source,
            },
        })?;
    }
}

fn check_room(file: &File, scratch: &Path, what: &Path) -> Result<(), Error> {
    let room = rustix::fs::fstatvfs(file).map_err(|error| Error::Io {
        path: scratch.to_owned(),
        source: error.into(),
    })?;
    let have = room.f_bavail.saturating_mul(room.f_frsize);
    if have < RESERVE + LOOK {
        return Err(no_space(have, scratch, what));
    }
    Ok(())
}

fn no_space(have: u64, scratch: &Path, what: &Path) -> Error {
    Error::NoSpace {
        what: what.display().to_string(),
        have,
        where_: scratch.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn what_is_filled_can_be_read_and_has_no_name() {
        let scratch = tempfile::tempdir().unwrap();
        let content = b"0123456789".repeat(100_000);
        let abandon = Abandon::default();
        let file = fill(
            &mut content.as_slice(),
            scratch.path(),
            Path::new("x"),
            &abandon.flag(),
        )
        .unwrap();
        let mut tail = [0; 10];
        file.read_exact_at(&mut tail, content.len() as u64 - 10)
            .unwrap();
        assert_eq!(&tail, b"0123456789");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_thread_stops_when_nobody_waits_for_it() {
        let scratch = tempfile::tempdir().unwrap();
        let abandon = Abandon::default();
        let flag = abandon.flag();
        drop(abandon);
        let endless = fill(&mut io::repeat(0), scratch.path(), Path::new("x"), &flag);
        assert!(matches!(endless, Err(Error::Cancelled)), "{endless:?}");
    }

    #[test]
    fn a_scratch_directory_that_is_not_there_is_named() {
        let nowhere = Path::new("/nonexistent/scratch");
        let error = nameless(nowhere).unwrap_err();
        assert!(
            matches!(&error, Error::Io { path, .. } if path == nowhere),
            "{error}"
        );
    }
}
