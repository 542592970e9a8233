//! Threads that hash and write the objects of one layer while another thread parses it.
//!
//! Each owns a clone of the lane's repository handle; libostree allows any number of threads
//! to write objects inside one transaction. Invariant: [`WritePool::finish`] has joined them
//! all, so the transaction may be committed after it.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use ostree::gio;
use sha2::{Digest as _, Sha256};

use super::error::Error;
use super::index::{Contents, Record};
use super::objects::{IN_MEMORY, Id, Payload, sha256};

/// Threads of one layer.
const THREADS: usize = 2;
/// Batches that wait; with what is being filled and written this bounds the memory of a lane.
const WAITING: usize = 3;
/// A batch is handed over at this many bytes …
const BATCH_BYTES: usize = 512 * 1024;
/// … or at this many objects.
const BATCH_OBJECTS: usize = 128;

/// The place of a content object in the order in which a layer names them.
pub(crate) type Slot = usize;

/// What is known of an object's content, for the index of contents.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// Nobody asks.
    Ignored,
    /// It begins here in a payload in memory.
    From(usize),
    /// It was hashed on the way.
    Known {
        /// SHA-256 of it.
        content: Id,
        /// SHA-256 of what precedes it.
        header: Id,
        /// Its bytes.
        size: u64,
    },
}

type Batch = Vec<(Slot, Payload, Content)>;
type Written = Result<Vec<(Slot, Id)>, Error>;

/// The writers of one layer.
pub(crate) struct WritePool<'scope> {
    batches: SyncSender<Batch>,
    threads: Vec<ScopedJoinHandle<'scope, Written>>,
    failed: Arc<AtomicBool>,
    batch: Batch,
    weight: usize,
    next: Slot,
    tmp: PathBuf,
    learns: bool,
}

/// The writers gave up; [`WritePool::finish`] tells why.
#[derive(Debug)]
pub(crate) struct Stopped;

impl<'scope> WritePool<'scope> {
    /// Starts the threads. `tmp` is the directory for content that is too large for memory;
    /// `contents` learns what is in the objects.
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        repo: &ostree::Repo,
        tmp: PathBuf,
        contents: Option<&Arc<Contents>>,
        cancellable: &gio::Cancellable,
    ) -> Self {
        let (batches, receiver) = sync_channel::<Batch>(WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let failed = Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS)
            .map(|_| {
                let (repo, cancellable) = (repo.clone(), cancellable.clone());
                let (receiver, failed) = (receiver.clone(), failed.clone());
                let contents = contents.cloned();
                scope.spawn(move || {
                    let contents = contents.as_deref();
                    let written = write_all(&repo, &receiver, contents, &failed, &cancellable);
                    failed.fetch_or(written.is_err(), Ordering::Relaxed);
                    written
                })
            })
            .collect();
        Self {
            batches,
            threads,
            failed,
            batch: Batch::new(),
            weight: 0,
            next: 0,
            tmp,
            learns: contents.is_some(),
        }
    }

    /// Directory for [`Payload::read`].
    pub(crate) fn tmp(&self) -> &std::path::Path {
        &self.tmp
    }

    /// Takes header and exactly `length` bytes of `content`, as [`Payload::read`] does, together
    /// with what the index of contents wants to know.
    pub(crate) fn read(
        &self,
        header: Vec<u8>,
        length: u64,
        content: &mut impl Read,
    ) -> io::Result<(Payload, Content)> {
        if !self.learns || length == 0 {
            let payload = Payload::read(header, length, content, &self.tmp)?;
            return Ok((payload, Content::Ignored));
        }
        if length <= IN_MEMORY {
            let from = Content::From(header.len());
            return Ok((Payload::read(header, length, content, &self.tmp)?, from));
        }
        let (header_id, mut content) = (sha256(&header), Hashing::new(content));
        let payload = Payload::read(header, length, &mut content, &self.tmp)?;
        let known = Content::Known {
            content: content.finish(),
            header: header_id,
            size: length,
        };
        Ok((payload, known))
    }

    /// Queues one object and tells its slot; blocks while the writers are behind.
    pub(crate) fn push(&mut self, payload: Payload) -> Result<Slot, Stopped> {
        self.push_with(payload, Content::Ignored)
    }

    /// [`WritePool::push`], for an object of which the index of contents shall know.
    pub(crate) fn push_with(
        &mut self,
        payload: Payload,
        content: Content,
    ) -> Result<Slot, Stopped> {
        let slot = self.next;
        self.next += 1;
        self.weight += payload.weight();
        // A spooled file occupies the disk twice: do not let it wait for company.
        let flush = matches!(payload, Payload::Spooled(_));
        self.batch.push((slot, payload, content));
        if flush || self.weight >= BATCH_BYTES || self.batch.len() >= BATCH_OBJECTS {
            self.flush()?;
        }
        Ok(slot)
    }

    fn flush(&mut self) -> Result<(), Stopped> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        self.weight = 0;
        let batch = std::mem::take(&mut self.batch);
        self.batches.send(batch).map_err(|_| Stopped)
    }

    /// Waits for the writers; the identities are in the order of the slots.
    ///
    /// # Errors
    /// The first error that a writer met.
    pub(crate) fn finish(mut self) -> Result<Vec<Id>, Error> {
        // Stopped writers are asked for their reason below.
        let _ = self.flush();
        drop(self.batches);
        let mut ids = vec![[0; 32]; self.next];
        let mut failure = None;
        for thread in self.threads {
            match thread.join() {
                Ok(Ok(written)) => written.into_iter().for_each(|(slot, id)| ids[slot] = id),
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(_) => failure = failure.or(Some(panicked())),
            }
        }
        failure.map_or(Ok(ids), Err)
    }
}

fn panicked() -> Error {
    Error::Ostree {
        context: "writing objects",
        text: "a writer thread panicked".into(),
    }
}

fn write_all(
    repo: &ostree::Repo,
    batches: &Mutex<Receiver<Batch>>,
    contents: Option<&Contents>,
    failed: &AtomicBool,
    cancellable: &gio::Cancellable,
) -> Written {
    let mut written = Vec::new();
    loop {
        let batch = batches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(batch) = batch else { return Ok(written) };
        if failed.load(Ordering::Relaxed) {
            return Ok(written);
        }
        for (slot, payload, content) in batch {
            let known = contents.and_then(|_| known(content, &payload));
            let id = payload.write(repo, cancellable)?;
            written.push((slot, id));
            if let (Some(contents), Some(record)) = (contents, known) {
                contents.learn(Record {
                    object: id,
                    ..record
                });
            }
        }
    }
}

/// What the index is to know of an object but for its name.
fn known(content: Content, payload: &Payload) -> Option<Record> {
    let record = |content, header, size| Record {
        content,
        header,
        size,
        object: [0; 32],
    };
    match (content, payload) {
        (
            Content::Known {
                content,
                header,
                size,
            },
            _,
        ) => Some(record(content, header, size)),
        (Content::From(start), Payload::Memory(bytes)) => {
            let (header, content) = bytes.split_at_checked(start)?;
            Some(record(
                sha256(content),
                sha256(header),
                content.len() as u64,
            ))
        }
        (Content::From(_) | Content::Ignored, _) => None,
    }
}

/// Hashes what is read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
        }
    }

    /// SHA-256 of what was read.
    pub(crate) fn finish(self) -> Id {
        self.hasher.finalize().into()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
