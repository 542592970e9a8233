//! The one thread that owns `ostree::Sysroot`, and what may be asked of it.
//!
//! libostree's sysroot object is not safe for concurrent use, so it lives on a thread
//! of its own for the life of the process; requests are closures sent to it and answers
//! are plain owned structs. Invariants: no libostree object leaves the thread; starting
//! it does no I/O (loading is part of the first request); a failed load is a typed
//! answer and the next request tries again; every change happens under the sysroot lock
//! ([`Sysroot::lock`]) and ends with [`announce`]d to other tools.

mod boot_keys;
mod boot_room;
mod cached_update;
mod cleanup;
mod deploy;
mod finalization;
mod last_finalize;
mod reachable;
mod snapshot;
mod soft_reboot;
mod symbols;
mod watch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ostree::gio;
use ostree::prelude::FileExt;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use boot_room::{BootRoom, Kernel};
pub use cached_update::cache_update;
pub use cleanup::{Discarded, ImageCleanup, Prune};
pub use deploy::Staged;
pub use last_finalize::FinalizeFailure;
pub use snapshot::{Deployment, Slot, Snapshot};
pub use symbols::Symbols;
pub use watch::watch;

use crate::image::layout::Image;
use crate::image::reference::{Digest, ImageReference};

/// How often a held lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// Why the sysroot could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The host was not booted by ostree.
    #[error("this host was not booted by ostree; osteward only works on an image-based host")]
    NotBooted,
    /// Another tool holds the lock.
    #[error(
        "another tool (such as bootc, rpm-ostree or ostree admin) has held the sysroot lock for {0:?}; \
         wait until it is done and try again"
    )]
    Locked(Duration),
    /// Another tool writes to the repository, so nothing can be pruned.
    #[error("another tool is writing to the repository: {0}; wait until it is done and try again")]
    Importing(String),
    /// The file system is read-only and cannot be remounted.
    #[error("the sysroot cannot be made writable: {0}")]
    ReadOnly(String),
    /// No deployment answers the description.
    #[error("{0}")]
    NoDeployment(String),
    /// The finalization of what is staged cannot be locked or unlocked.
    #[error("the finalization lock cannot be changed: {0}")]
    CannotLock(String),
    /// A file system is full, or would be.
    #[error(
        "not enough space in {place}: {need} bytes needed, {have} available ({cause}); free some, \
         with `osteward discard` or `osteward remove` for one, and try again"
    )]
    NoSpace {
        /// Bytes that are needed, at least.
        need: u64,
        /// Bytes that can be written.
        have: u64,
        /// A directory of the file system.
        place: String,
        /// What did not fit, or who says so.
        cause: String,
    },
    /// The image is not one that libostree can make a deployment of.
    #[error("the image cannot be deployed: {0}")]
    Image(String),
    /// The request was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Anything else that libostree says.
    #[error("ostree: {0}")]
    Ostree(String),
}

impl From<ostree::glib::Error> for Error {
    fn from(error: ostree::glib::Error) -> Self {
        use gio::IOErrorEnum as Io;
        let text = error.message().to_owned();
        match error.kind::<Io>() {
            Some(Io::Cancelled) => Error::Cancelled,
            Some(Io::NoSpace) => no_space(text),
            Some(Io::WouldBlock) => Error::Importing(text),
            Some(Io::ReadOnly) => Error::ReadOnly(text),
            // libostree's own checks have no codes of their own.
            _ if text.contains("min-free-space") => no_space(text),
            _ if text.contains("Failed to find kernel in") => Error::Image(text),
            _ => Error::Ostree(text),
        }
    }
}

/// libostree tells neither how much nor where; [`Error::with_space`] fills that in.
fn no_space(cause: String) -> Error {
    Error::NoSpace {
        need: 0,
        have: 0,
        place: String::new(),
        cause,
    }
}

/// Bytes that can be written to the file system of `directory`; 0 when unknown.
fn free_bytes(directory: &Path) -> u64 {
    let attribute = gio::FILE_ATTRIBUTE_FILESYSTEM_FREE;
    gio::File::for_path(directory)
        .query_filesystem_info(attribute, gio::Cancellable::NONE)
        .map_or(0, |info| info.attribute_uint64(attribute))
}

impl Error {
    /// Completes [`Error::NoSpace`] with the file system that has less: changes write to the
    /// sysroot and to `/boot`, and libostree names neither.
    fn with_space(self, root: &Path) -> Self {
        match self {
            Error::NoSpace { need: 0, cause, .. } => {
                let places = [root.join("boot"), root.join("ostree")];
                let free = places.map(|place| (free_bytes(&place), place));
                let (have, place) = free.into_iter().min().unwrap_or_default();
                Error::NoSpace {
                    need: have + 1,
                    have,
                    place: place.display().to_string(),
                    cause,
                }
            }
            other => other,
        }
    }
}

type Call = Box<dyn FnOnce(&mut Owner) + Send>;

/// A handle to the thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct Sysroot {
    calls: mpsc::Sender<Call>,
    root: PathBuf,
    symbols: Symbols,
}

/// What lives on the thread.
struct Owner {
    root: PathBuf,
    loaded: Option<ostree::Sysroot>,
    /// Whether a [`Lock`] is out. It belongs to the loaded object, which must stay then.
    locked: bool,
    symbols: Symbols,
}

impl Owner {
    /// The sysroot as it is now on disk.
    fn current(&mut self) -> Result<ostree::Sysroot, Error> {
        let sysroot = match &self.loaded {
            Some(sysroot) => sysroot.clone(),
            None => {
                let sysroot = ostree::Sysroot::new(Some(&gio::File::for_path(&self.root)));
                // The unit gives the process a mount namespace of its own, so libostree
                // may remount /sysroot and /boot read-write in it (scheduler sandbox).
                sysroot.set_mount_namespace_in_use();
                sysroot.initialize().map_err(|error| self.explain(error))?;
                self.loaded.insert(sysroot).clone()
            }
        };
        match sysroot.load_if_changed(gio::Cancellable::NONE) {
            Ok(_) => Ok(sysroot),
            Err(error) => {
                if !self.locked {
                    self.loaded = None;
                }
                Err(self.explain(error))
            }
        }
    }

    /// Takes the sysroot lock unless somebody (we, too) holds it.
    fn try_lock(&mut self) -> Result<bool, Error> {
        let read_only = |error: ostree::glib::Error| Error::ReadOnly(error.message().into());
        let sysroot = self.current()?;
        // This makes the file systems writable before it looks at the lock.
        if !sysroot.try_lock().map_err(read_only)? {
            return Ok(false);
        }
        if sysroot.repo().is_writable().is_ok() {
            return Ok(true);
        }
        // The repository was opened before that, and libostree takes no locks in one that
        // was read-only then: a prune would not wait for other tools' transactions.
        sysroot.unlock();
        drop(sysroot);
        self.loaded = None;
        let sysroot = self.current()?;
        sysroot.repo().is_writable().map_err(read_only)?;
        sysroot.try_lock().map_err(read_only)
    }

    /// A load that fails on a host that is no ostree host is not ostree's fault.
    fn explain(&self, error: ostree::glib::Error) -> Error {
        if self.root.join("run/ostree-booted").exists() {
            error.into()
        } else {
            Error::NotBooted
        }
    }
}

impl Sysroot {
    /// Starts the thread for the sysroot at `root` (`/` on a host). Nothing is loaded yet.
    pub fn spawn(root: &Path) -> std::io::Result<Self> {
        let (calls, mut queue) = mpsc::channel::<Call>(64);
        let owner_root = root.to_owned();
        let symbols = Symbols::resolve();
        std::thread::Builder::new()
            .name("sysroot".into())
            .spawn(move || {
                let mut owner = Owner {
                    root: owner_root,
                    loaded: None,
                    locked: false,
                    symbols,
                };
                while let Some(call) = queue.blocking_recv() {
                    call(&mut owner);
                }
            })?;
        Ok(Self {
            calls,
            root: root.to_owned(),
            symbols,
        })
    }

    /// The repository of the sysroot, for those who open their own handle to it.
    pub fn repo_path(&self) -> PathBuf {
        self.root.join("ostree/repo")
    }

    async fn call<T: Send + 'static>(
        &self,
        request: impl FnOnce(&mut Owner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let call: Call = Box::new(move |owner| {
            // Nobody left to tell is fine: the request itself has been carried out.
            let _ = reply.send(request(owner));
        });
        let gone = || Error::Ostree("the sysroot thread has ended".into());
        self.calls.send(call).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Everything there is to know about the deployments, as plain data.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        self.call(|owner| {
            let sysroot = owner.current()?;
            snapshot::take(&sysroot, &owner.root, &owner.symbols)
        })
        .await
    }

    /// The image that was pulled last as `reference`, or the one with that digest, if it is
    /// in the repository; its layers may be missing.
    pub async fn stored_image(
        &self,
        reference: ImageReference,
        digest: Option<Digest>,
    ) -> Result<Option<Image>, Error> {
        self.call(move |owner| {
            let sysroot = owner.current()?;
            Ok(snapshot::stored_image(
                &sysroot,
                &reference,
                digest.as_ref(),
            ))
        })
        .await
    }

    /// The merge commit of the image with that digest, if it is in the repository.
    pub async fn merge_commit(&self, digest: Digest) -> Result<Option<String>, Error> {
        self.call(move |owner| {
            let sysroot = owner.current()?;
            Ok(snapshot::merge_commit(&sysroot, &digest))
        })
        .await
    }

    /// Remounts the sysroot read-write in our mount namespace if it is read-only, which
    /// an import needs and which must not wait for the lock.
    pub async fn ensure_writable(&self) -> Result<(), Error> {
        self.call(|owner| {
            if owner.try_lock()? {
                owner.current()?.unlock();
            }
            Ok(())
        })
        .await
    }

    /// Takes the sysroot lock that all ostree tools share, waiting at most `wait`.
    /// The thread stays free meanwhile, so snapshots are still answered.
    pub async fn lock(&self, wait: Duration, cancel: &CancellationToken) -> Result<Lock, Error> {
        let start = Instant::now();
        loop {
            let taken = self
                .call(|owner| {
                    let taken = owner.try_lock()?;
                    owner.locked |= taken;
                    Ok(taken)
                })
                .await?;
            if taken {
                return Ok(Lock {
                    sysroot: self.clone(),
                });
            }
            if start.elapsed() >= wait {
                return Err(Error::Locked(wait));
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(Error::Cancelled),
                () = tokio::time::sleep(LOCK_RETRY) => {}
            }
        }
    }
}

/// The sysroot lock, held. Changes are methods of it; dropping it lets go.
#[derive(Debug)]
pub struct Lock {
    sysroot: Sysroot,
}

impl Lock {
    /// Carries out a change and tells other tools that something changed.
    async fn change<T: Send + 'static>(
        &self,
        cancel: &CancellationToken,
        request: impl FnOnce(&ostree::Sysroot, &gio::Cancellable) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let root = self.sysroot.root.clone();
        self.look(cancel, move |sysroot, cancellable| {
            let result = request(sysroot, cancellable);
            announce(&root);
            result.map_err(|error| error.with_space(&root))
        })
        .await
    }

    /// Looks at what nobody else changes meanwhile.
    async fn look<T: Send + 'static>(
        &self,
        cancel: &CancellationToken,
        request: impl FnOnce(&ostree::Sysroot, &gio::Cancellable) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let cancellable = gio::Cancellable::new();
        let seen = cancellable.clone();
        let work = self.sysroot.call(move |owner| {
            let sysroot = owner.current()?;
            request(&sysroot, &seen)
        });
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => return result,
            () = cancel.cancelled() => {}
        }
        // libostree looks at the cancellable between its steps; the change either did
        // not happen or is complete, and the thread says which.
        ostree::gio::prelude::CancellableExt::cancel(&cancellable);
        work.await
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let unlock: Call = Box::new(|owner| {
            owner.locked = false;
            if let Some(sysroot) = &owner.loaded {
                sysroot.unlock();
            }
        });
        if let Err(mpsc::error::TrySendError::Full(unlock)) = self.sysroot.calls.try_send(unlock) {
            let calls = self.sysroot.calls.clone();
            tokio::spawn(async move { calls.send(unlock).await });
        }
    }
}

/// Touches the directory that bootc's path unit watches (on-disk format, change signal).
/// A failure is only worth a warning: the change itself has happened.
fn announce(root: &Path) {
    let directory = root.join("ostree/bootc");
    let touched = std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::File::open(&directory))
        .and_then(|directory| directory.set_modified(std::time::SystemTime::now()));
    if let Err(error) = touched {
        tracing::warn!(%error, path = %directory.display(), "cannot tell other tools of the change");
    }
}
