//! The first bytes of a large blob, kept in a file until its layer is in the repository, so that
//! whoever goes on after a kill or a power cut fetches only the rest.
//!
//! Owns the shape of the files `osteward-blob-<hex>` in the repository's `tmp`, one a blob. libostree
//! removes what is there and was not written to for a day (`core.tmp-expiry-secs`): who comes back later
//! than that fetches the layer anew. Invariants: a file is only appended to, by one writer at a time, in
//! big writes, and made durable by a thread of its own; what it holds is never trusted, but hashed with
//! all that follows it; a link is never followed; no import fails because of it, and it is the first
//! thing that goes when the disk gets full.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio_util::bytes::Bytes;

use super::transaction::tmp_dir;
use crate::image::layer::{Layer, Transfer};
use crate::image::reference::Digest;

/// What the names begin with.
pub(super) const PREFIX: &str = "osteward-blob-";

/// How large files are kept, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Blobs of up to this many bytes are not kept: one is all that a connection loses.
    pub(super) small: u64,
    /// Bytes of one write.
    pub(super) write: usize,
    /// Bytes after which the file is made durable. While that is done as many more may follow, so
    /// that a power cut costs less than 256 MB together with what has not come as far.
    pub(super) flush: u64,
    /// Bytes between two looks at the room that is left.
    pub(super) look: u64,
    /// Room that is left alone, beside what the rest of the layer takes.
    pub(super) reserve: u64,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            small: 16 << 20,
            write: 256 << 10,
            flush: 100_000_000,
            look: 32 << 20,
            reserve: 64 << 20,
        }
    }
}

/// A compressed byte makes about this many in the repository.
const UNPACKED: u64 = 3;

/// Pieces of one write at most, however small they are.
const PIECES: usize = 1024;

/// Bytes that are read from a file at once.
const READ: u64 = 1 << 20;

/// The file of one blob that is on its way in.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    file: File,
    path: PathBuf,
    terms: Terms,
    /// Bytes of the whole blob.
    size: u64,
    /// Bytes that the file has from an earlier time, and how many of them were read.
    kept: u64,
    read: u64,
    /// Bytes of the file, with those that wait.
    length: u64,
    /// What is too little for a write.
    waiting: Vec<Bytes>,
    weight: usize,
    /// Bytes since the file was made durable last, and since the last look at the room.
    unflushed: u64,
    unlooked: u64,
    flush: Option<JoinHandle<io::Result<()>>>,
    failure: Option<io::Error>,
}

impl PartialBlob {
    /// What is kept of the layer's blob, or an empty file for it; `None` when it is not to be kept,
    /// or cannot be.
    pub(crate) fn open(repo: &ostree::Repo, layer: &Layer) -> Option<Self> {
        let mut terms = Terms::default();
        let reserve = repo.min_free_space_bytes().unwrap_or(0);
        terms.reserve = terms.reserve.saturating_add(reserve);
        Self::open_in(&tmp_dir(repo), layer, terms)
    }

    /// [`PartialBlob::open`] in that directory, on those terms.
    pub(super) fn open_in(tmp: &Path, layer: &Layer, terms: Terms) -> Option<Self> {
        if !is_kept(layer, terms) {
            return None;
        }
        let path = path_of(tmp, &layer.digest);
        let opened = open_file(&path, layer.size).unwrap_or_else(|error| {
            tracing::debug!(%error, path = %path.display(), "the download is not kept");
            None
        });
        let (file, length) = opened?;
        let partial = Self {
            file,
            path,
            terms,
            size: layer.size,
            kept: length,
            read: 0,
            length,
            waiting: Vec::new(),
            weight: 0,
            // Nobody knows of what was written before.
            unflushed: length,
            unlooked: 0,
            flush: None,
            failure: None,
        };
        match partial.check_room() {
            Ok(()) => Some(partial),
            Err(error) => {
                partial.give_up(&error);
                None
            }
        }
    }

    /// Bytes that need not be fetched.
    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// The next bytes that were kept; `None` when there are no more.
    pub(crate) fn read(&mut self) -> Option<Bytes> {
        let wanted = READ.min(self.kept - self.read);
        let mut chunk = Vec::new();
        let read = (&self.file).take(wanted).read_to_end(&mut chunk);
        self.read += chunk.len() as u64;
        if (chunk.len() as u64) < wanted {
            // What cannot be read any more is fetched, and written again.
            tracing::warn!(path = %self.path.display(), ?read, "a kept download is damaged");
            (self.kept, self.length) = (self.read, self.read);
            self.failure = self.file.set_len(self.length).err();
        }
        (!chunk.is_empty()).then(|| chunk.into())
    }

    /// Appends what was fetched.
    ///
    /// # Errors
    /// When it cannot be written, or would take the room of something else: the file is worth
    /// nothing then, and to be [given up](PartialBlob::give_up).
    pub(crate) fn append(&mut self, chunk: &Bytes) -> io::Result<()> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if chunk.is_empty() {
            return Ok(());
        }
        let length = chunk.len() as u64;
        self.waiting.push(chunk.clone());
        self.weight += chunk.len();
        self.length += length;
        self.unflushed += length;
        self.unlooked += length;
        if self.weight >= self.terms.write || self.waiting.len() >= PIECES {
            self.write_waiting()?;
        }
        if self.unlooked >= self.terms.look {
            self.unlooked = 0;
            self.check_room()?;
        }
        if self.unflushed >= self.terms.flush {
            self.unflushed = 0;
            self.write_waiting()?;
            self.start_flush()?;
        }
        Ok(())
    }

    /// Writes what is left, which is all when nothing failed. The file stays until the layer is
    /// in the repository.
    ///
    /// # Errors
    /// As [`PartialBlob::append`].
    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.write_waiting()
    }

    /// Removes the file, because of `reason`.
    pub(crate) fn give_up(mut self, reason: &io::Error) {
        tracing::info!(path = %self.path.display(), %reason, "the download is not kept");
        self.waiting.clear();
        remove_file(&self.path);
        // A flush may keep the file open for a while; its room is needed now.
        if let Err(error) = self.file.set_len(0) {
            tracing::debug!(%error, "a kept download could not be cut");
        }
    }

    /// Everything else is worth more: there has to be room for what is left of the layer.
    fn check_room(&self) -> io::Result<()> {
        let room = rustix::fs::fstatvfs(&self.file)?;
        let have = room.f_bavail.saturating_mul(room.f_frsize);
        let rest = self.size.saturating_sub(self.length);
        let need = UNPACKED.saturating_mul(rest);
        if have < need.saturating_add(self.terms.reserve) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.weight = 0;
        let mut slices: Vec<_> = waiting.iter().map(|chunk| IoSlice::new(chunk)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes durable what was written, without waiting for it. Only a disk that has not taken the
    /// bytes before in the time in which these came is waited for: else there would be no bound.
    fn start_flush(&mut self) -> io::Result<()> {
        self.end_flush()?;
        let (file, path) = (self.file.try_clone()?, self.path.clone());
        let flush = move || {
            file.sync_data()?;
            // Its name, too.
            File::open(path.parent().unwrap_or(&path))?.sync_all()
        };
        let thread = Builder::new().name("flush".to_owned()).spawn(flush)?;
        self.flush = Some(thread);
        Ok(())
    }

    fn end_flush(&mut self) -> io::Result<()> {
        match self.flush.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(flushed)) => flushed,
            Some(Err(_)) => Err(io::Error::other("the thread that flushes panicked")),
        }
    }
}

impl Drop for PartialBlob {
    /// What came last is kept, too.
    fn drop(&mut self) {
        let ended = self.write_waiting().and(self.end_flush());
        if let Err(error) = ended {
            tracing::debug!(%error, path = %self.path.display(), "the end of a download is not kept");
        }
    }
}

/// Bytes of the layer's blob that are kept, and need not be fetched.
pub(crate) fn kept(repo_path: &Path, layer: &Layer) -> u64 {
    let path = path_of(&repo_path.join("tmp"), &layer.digest);
    match fs::symlink_metadata(path) {
        Ok(found) if is_kept(layer, Terms::default()) && is_ours(&found, layer.size) => found.len(),
        _ => 0,
    }
}

/// Removes what is kept of a layer's blob, if anything.
pub(crate) fn remove(tmp: &Path, digest: &Digest) {
    remove_file(&path_of(tmp, digest));
}

fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a kept download cannot be removed");
        }
        _ => {}
    }
}

/// Where the bytes of that blob are kept.
pub(super) fn path_of(tmp: &Path, digest: &Digest) -> PathBuf {
    tmp.join(format!("{PREFIX}{}", digest.hex()))
}

/// Streams that are made here, as of stores that keep layers unpacked, can be made again.
fn is_kept(layer: &Layer, terms: Terms) -> bool {
    layer.transfer == Transfer::Blob && layer.size > terms.small
}

/// Whether the file can be one that was written here, of a blob of that size.
fn is_ours(found: &fs::Metadata, size: u64) -> bool {
    let is_private = found.mode() & 0o077 == 0 && found.nlink() == 1;
    found.is_file() && is_private && found.len() <= size
}

/// The file and its length; `None` when another writer has it.
fn open_file(path: &Path, size: u64) -> io::Result<Option<(File, u64)>> {
    match fs::symlink_metadata(path) {
        Ok(found) if !is_ours(&found, size) => fs::remove_file(path)?,
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // What the writer before did until now counts; it may have removed the file, too.
    let found = file.metadata()?;
    Ok(is_ours(&found, size).then_some((file, found.len())))
}

#[cfg(test)]
mod tests;
