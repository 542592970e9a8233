//! Threads that hash and write the objects of one layer while another thread parses it.
//!
//! Each owns a clone of the lane's repository handle; libostree allows any number of threads
//! to write objects inside one transaction. Invariant: [`WritePool::finish`] has joined them
//! all, so the transaction may be committed after it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use ostree::gio;

use super::error::Error;
use super::objects::{Id, Payload};

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

type Batch = Vec<(Slot, Payload)>;
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
}

/// The writers gave up; [`WritePool::finish`] tells why.
#[derive(Debug)]
pub(crate) struct Stopped;

impl<'scope> WritePool<'scope> {
    /// Starts the threads. `tmp` is the directory for content that is too large for memory.
    pub(crate) fn start(
        scope: &'scope Scope<'scope, '_>,
        repo: &ostree::Repo,
        tmp: PathBuf,
        cancellable: &gio::Cancellable,
    ) -> Self {
        let (batches, receiver) = sync_channel::<Batch>(WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let failed = Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS)
            .map(|_| {
                let (repo, cancellable) = (repo.clone(), cancellable.clone());
                let (receiver, failed) = (receiver.clone(), failed.clone());
                scope.spawn(move || {
                    let written = write_all(&repo, &receiver, &failed, &cancellable);
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
        }
    }

    /// Directory for [`Payload::read`].
    pub(crate) fn tmp(&self) -> &std::path::Path {
        &self.tmp
    }

    /// Queues one object and tells its slot; blocks while the writers are behind.
    pub(crate) fn push(&mut self, payload: Payload) -> Result<Slot, Stopped> {
        let slot = self.next;
        self.next += 1;
        self.weight += payload.weight();
        // A spooled file occupies the disk twice: do not let it wait for company.
        let flush = matches!(payload, Payload::Spooled(_));
        self.batch.push((slot, payload));
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
        for (slot, payload) in batch {
            written.push((slot, payload.write(repo, cancellable)?));
        }
    }
}
