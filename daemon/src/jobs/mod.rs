//! What the host can be asked to do: one file a job, its steps from top to bottom.
//!
//! Owns the requests, what a job is given ([`Job`]) and what it leaves ([`Outcome`]).
//! Invariants: a job starts from a fresh snapshot and checks its preconditions again
//! under the sysroot lock; a failure at any step leaves the booted and the rollback
//! deployment as they were; nothing reboots on doubt.

mod apply;
mod bound;
mod cached;
mod candidate;
mod check;
mod deltas;
mod discard;
pub mod downloads;
mod finalization;
mod kargs;
pub mod log;
mod manage;
pub mod packages;
pub mod progress;
pub mod rate;
mod reboot_required;
mod rollback;
mod room;
mod simulate;
mod soft_reboot;
mod source;
mod staging;
mod unchanged;
mod upgrade;
mod usr_overlay;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::image::Remembered;
use crate::image::reference::{Digest, OriginReference};
use crate::inhibit::Inhibitors;
use crate::observe::logind::Logind;
use crate::observe::systemd::Systemd;
use crate::record::last_check::LastCheck;
use crate::record::{self, Quarantine};
use crate::state::Command;
use crate::sysroot::Sysroot;
use downloads::Download;
use packages::Packages;
use progress::{Phases, Progress, phases};

pub use candidate::Candidate;
pub use kargs::Change as KernelChange;
pub use source::{Archive, direction};
pub use upgrade::Pull;

/// A job to do, with its options understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Look for something new; an answer of at most this age (seconds) will do.
    Check {
        /// Seconds.
        max_age: Option<u64>,
    },
    /// Pull the tracked image without staging.
    Download(Pull),
    /// Pull and stage the tracked image.
    Upgrade(Pull),
    /// Pull and stage another image, which is tracked from then on.
    Switch(OriginReference, Pull),
    /// Import and stage an image that the caller handed over.
    Import(Archive, Pull),
    /// Order the previous deployment first, at once.
    Rollback {
        /// Go back to the deployment with this digest instead of the previous one.
        digest: Option<Digest>,
        /// The caller agreed to lose what is staged.
        discard_staged: bool,
        /// Remember the digest left behind.
        quarantine: bool,
        /// Reboot then.
        apply: Option<Reboot>,
    },
    /// Order the booted deployment first again.
    CancelRollback,
    /// Reboot into the default deployment.
    Apply {
        /// Only if this digest boots next.
        digest: Option<Digest>,
        /// How.
        mode: Reboot,
        /// Although an inhibitor forbids it.
        ignore_inhibitors: bool,
    },
    /// Lock or unlock the finalization of a staged deployment.
    SetFinalization {
        /// Its id.
        deployment: String,
        /// Lock it.
        locked: bool,
    },
    /// Keep a deployment from every clean-up, or no longer.
    SetPinned {
        /// Its id.
        deployment: String,
        /// Keep it.
        pinned: bool,
    },
    /// Remove the deployment of that id.
    Remove(String),
    /// Remove what is not needed.
    Discard {
        /// What.
        what: Vec<Discardable>,
        /// Only tell.
        dry_run: bool,
    },
    /// Stage what boots next once more, with other kernel arguments.
    SetKernelArguments(KernelChange),
    /// Tell what an upgrade would lead to: what is staged, else the candidate, or the image
    /// with that digest.
    Simulate(Option<Digest>),
    /// Put an overlay over `/usr` of the running system until the next boot.
    UsrOverlay {
        /// One that is writable only where it is remounted so.
        read_only: bool,
    },
}

/// How to get into the next deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reboot {
    /// With the kernel and all.
    Full,
    /// Without the kernel where that can be, else with it.
    Auto,
    /// Without the kernel, or not at all.
    Soft,
}

/// What `Discard` can remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discardable {
    /// The staged deployment.
    Staged,
    /// The rollback deployment, unless it is pinned.
    Rollback,
    /// Downloads that were not staged.
    Cache,
    /// Images and objects that nothing refers to.
    Unreferenced,
}

impl Request {
    /// The name in `Job.Kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Request::Check { .. } => "check",
            Request::Download(_) => "download",
            Request::Upgrade(_) => "upgrade",
            Request::Switch(..) => "switch",
            Request::Import(..) => "import",
            Request::Rollback { .. } => "rollback",
            Request::CancelRollback => "cancel-rollback",
            Request::Apply { .. } => "apply",
            Request::SetFinalization { locked: true, .. } => "lock",
            Request::SetFinalization { locked: false, .. } => "unlock",
            Request::SetPinned { pinned: true, .. } => "pin",
            Request::SetPinned { pinned: false, .. } => "unpin",
            Request::Remove(_) => "remove",
            Request::Discard { .. } => "discard",
            Request::SetKernelArguments(_) => "kargs",
            Request::Simulate(_) => "simulate",
            Request::UsrOverlay { .. } => "usr-overlay",
        }
    }

    /// The phases that it goes through.
    pub fn phases(&self) -> Phases {
        match self {
            Request::Check { .. } => phases::CHECK,
            Request::Download(_) => phases::DOWNLOAD,
            Request::Upgrade(pull) | Request::Switch(_, pull) if pull.download_only => {
                phases::DOWNLOAD
            }
            Request::Upgrade(_) | Request::Switch(..) | Request::Import(..) => phases::UPGRADE,
            Request::Rollback { .. } | Request::CancelRollback => phases::ROLLBACK,
            Request::Apply { .. } => phases::APPLY,
            Request::SetFinalization { .. } | Request::SetPinned { .. } => phases::CHANGE,
            Request::Remove(_) | Request::Discard { .. } => phases::DISCARD,
            Request::SetKernelArguments(_) => phases::RESTAGE,
            Request::Simulate(_) => phases::CHECK,
            Request::UsrOverlay { .. } => phases::CHANGE,
        }
    }

    /// What it asks of the state table. Which deployment a digest names is the job's to
    /// find out, so a rollback by digest counts as possible.
    pub fn wish(&self, has_rollback: bool) -> Command {
        match self {
            Request::Check { .. } => Command::Check,
            Request::Download(_) => Command::Download,
            Request::Upgrade(pull) | Request::Switch(_, pull) if pull.download_only => {
                Command::Download
            }
            Request::Upgrade(_) => Command::Upgrade,
            Request::Switch(..) | Request::Import(..) => Command::Switch,
            Request::Rollback {
                digest,
                discard_staged,
                ..
            } => Command::Rollback {
                possible: digest.is_some() || has_rollback,
                discard_staged: *discard_staged,
            },
            Request::CancelRollback => Command::CancelRollback,
            Request::Apply { .. } => Command::Apply,
            Request::SetFinalization { .. } | Request::SetPinned { .. } | Request::Remove(_) => {
                Command::Manage
            }
            Request::Discard { .. } => Command::Discard,
            Request::SetKernelArguments(_) => Command::SetKernelArguments,
            Request::Simulate(_) => Command::Check,
            Request::UsrOverlay { .. } => Command::Manage,
        }
    }

    /// Whether it may run beside another job.
    pub fn is_read(&self) -> bool {
        matches!(self, Request::Check { .. } | Request::Simulate(_))
    }

    /// Whether it talks to a registry, which needs a configuration that can be trusted.
    pub fn uses_network(&self) -> bool {
        match self {
            Request::Upgrade(pull) | Request::Switch(_, pull) => !pull.from_cache,
            Request::Check { .. }
            | Request::Download(_)
            | Request::Import(..)
            | Request::Simulate(_) => true,
            Request::Rollback { .. }
            | Request::CancelRollback
            | Request::Apply { .. }
            | Request::SetFinalization { .. }
            | Request::SetPinned { .. }
            | Request::Remove(_)
            | Request::Discard { .. }
            | Request::SetKernelArguments(_)
            | Request::UsrOverlay { .. } => false,
        }
    }
}

/// One result of a job, as a plain value.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Texts that belong together two by two.
    Pairs(Vec<(String, String)>),
    /// Yes or no.
    Flag(bool),
    /// A number, mostly bytes.
    Number(u64),
    /// A deployment by id.
    Deployment(String),
    /// A candidate by digest.
    Update(Digest),
}

/// Results by key, in the words of `Job.Result`.
pub type Facts = Vec<(&'static str, Fact)>;

/// What a job leaves behind when it succeeds.
#[derive(Debug, Default)]
pub struct Outcome {
    /// For `Job.Result`.
    pub facts: Facts,
}

impl Outcome {
    /// Whether it is what an earlier check found, and nobody was asked.
    pub fn is_cached(&self) -> bool {
        self.facts.contains(&(check::CACHED, Fact::Flag(true)))
    }
}

/// What a job works with.
#[derive(Debug, Clone)]
pub struct Job {
    /// The deployments.
    pub sysroot: Sysroot,
    /// The configuration at the time the job began.
    pub config: Arc<Config>,
    /// Digests that are not staged by themselves.
    pub quarantine: Arc<Mutex<Result<Quarantine, record::Error>>>,
    /// Sessions, inhibitors, reboot.
    pub logind: Logind,
    /// The finalizing unit, and programs of the host outside of the sandbox.
    pub systemd: Systemd,
    /// Who keeps jobs from rebooting the host.
    pub inhibitors: Inhibitors,
    /// Nobody waits for it.
    pub background: bool,
    /// It may reboot only while nobody but this user is logged in.
    pub alone: Option<u32>,
    /// Where to say how far it is.
    pub progress: Progress,
    /// Fires when somebody cancels.
    pub cancel: CancellationToken,
    /// How the registry was asked last, for `max-age`.
    pub last_check: Option<LastCheck>,
    /// What is known of registries by now.
    pub registries: Remembered,
    /// Where the candidate goes as soon as it is known.
    pub found: tokio::sync::watch::Sender<Option<Candidate>>,
    /// What is known about packages in images, and where more goes.
    pub packages: Packages,
    /// What it fetches, for other jobs to know.
    pub download: Download,
}

impl Job {
    /// Does it.
    pub async fn run(&self, request: &Request) -> Result<Outcome, Error> {
        match request {
            Request::Check { max_age } => check::run(self, *max_age).await,
            Request::Download(pull) => upgrade::download(self, pull).await,
            Request::Upgrade(pull) => upgrade::upgrade(self, pull).await,
            Request::Switch(origin, pull) => upgrade::switch(self, origin, pull).await,
            Request::Import(archive, pull) => upgrade::import_archive(self, archive, pull).await,
            Request::Rollback {
                digest,
                discard_staged,
                quarantine,
                apply,
            } => {
                let back = rollback::Back {
                    digest: digest.as_ref(),
                    discard_staged: *discard_staged,
                    quarantine: *quarantine,
                };
                rollback::run(self, &back, *apply).await
            }
            Request::CancelRollback => rollback::cancel(self).await,
            Request::Apply {
                digest,
                mode,
                ignore_inhibitors,
            } => apply::run(self, digest.as_ref(), *mode, *ignore_inhibitors).await,
            Request::SetFinalization { deployment, locked } => {
                finalization::run(self, deployment, *locked).await
            }
            Request::SetPinned { deployment, pinned } => {
                manage::pin(self, deployment, *pinned).await
            }
            Request::Remove(deployment) => manage::remove(self, deployment).await,
            Request::Discard { what, dry_run } => discard::run(self, what, *dry_run).await,
            Request::SetKernelArguments(change) => kargs::run(self, change).await,
            Request::Simulate(digest) => simulate::run(self, digest.as_ref()).await,
            Request::UsrOverlay { read_only } => usr_overlay::run(self, *read_only).await,
        }
    }

    /// Ends the job here if somebody cancelled it.
    fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Why a digest is quarantined. An unreadable list is an error: any doubt means no.
    fn quarantined(&self, digest: &Digest) -> Result<Option<record::Reason>, Error> {
        let list = self
            .quarantine
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let list = list
            .as_ref()
            .map_err(|error| Error::Record(error.clone()))?;
        Ok(list.reason(digest.as_str()).cloned())
    }

    /// Changes the quarantine on a thread that may wait for the disk. Nobody waits with it:
    /// the engine reads the list meanwhile, and only the one job that writes changes it.
    async fn change_quarantine<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Quarantine) -> Result<T, record::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.quarantine.clone();
        let write = move || {
            let list = shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let mut list = list?;
            let changed = change(&mut list);
            *shared.lock().unwrap_or_else(PoisonError::into_inner) = Ok(list);
            changed
        };
        let written = tokio::task::spawn_blocking(write).await;
        Ok(written.map_err(|error| Error::Internal(error.to_string()))??)
    }
}

/// Unix seconds now.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
