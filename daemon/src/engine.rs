//! The owner of the daemon's state: which jobs run, what is known, who is told.
//!
//! One task owns everything that changes; others hold an [`Engine`] (commands in, a
//! `watch` of [`Status`] out). Invariants: the task never
//! waits for a job, the sysroot thread or the disk, so commands are always answered at once;
//! one write job at a time, others wait if their callers said so; a job belongs to the
//! daemon, not to its caller; every job that was announced ends with a final [`JobView`],
//! published after the change it made.

mod chronicle;
mod entry;
mod job;
mod known;
mod roster;
mod status;
mod stream;
mod task;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

pub use crate::record::history::Entry;
pub use crate::record::last_check::LastCheck;
pub use job::{JobId, JobView, RunState};
pub use status::{Look, OsRelease, Status};

use crate::config::{self, Config};
use crate::error::Error;
use crate::inhibit::Inhibitors;
use crate::jobs::Request;
use crate::jobs::log::Log;
use crate::jobs::packages::Packages;
use crate::observe::logind::Logind;
use crate::observe::systemd::Systemd;
use crate::packages::Difference;
use crate::sysroot::{self, Snapshot, Sysroot};
use task::Task;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub uid: u32,
    /// The name that the client gave itself.
    pub label: String,
    /// Its reason.
    pub reason: String,
}

/// On which terms a job runs beside others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// While another job writes, wait for it rather than fail.
    pub queue: bool,
    /// Give way to jobs that somebody waits for.
    pub background: bool,
    /// The place in the queue; higher goes first.
    pub priority: i32,
    /// The user who may reboot the host while nobody else is logged in; `None`: whoever is.
    pub alone: Option<u32>,
}

/// What a job can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stop.
    Cancel,
    /// Stop to fetch until it is resumed.
    Pause,
    /// Go on.
    Resume,
    /// Somebody waits for it now: it is no background job any more.
    Adopt,
    /// One of those who asked for it has read the result.
    Release,
}

/// What the configuration files say: the configuration and what to know about it.
type Loaded = Result<(Config, Vec<String>), String>;

enum Command {
    Submit {
        request: Request,
        caller: Caller,
        terms: Terms,
        reply: oneshot::Sender<Result<JobId, Error>>,
    },
    Tell {
        job: JobId,
        order: Order,
        uid: u32,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Log {
        job: JobId,
        reply: oneshot::Sender<Result<(Log, watch::Receiver<JobView>), Error>>,
    },
    Reload {
        loaded: Loaded,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    Looked(Result<Snapshot, sysroot::Error>),
    Ping {
        reply: oneshot::Sender<()>,
    },
}

/// A handle to the engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Arc<Status>>,
    attended: Arc<AtomicUsize>,
    inhibitors: Inhibitors,
    packages: Packages,
    root: PathBuf,
}

/// A call on its way to becoming a job, which the process must live to see: a password
/// dialog can be open for longer than the idle time.
#[derive(Debug)]
pub struct Attendance(Arc<AtomicUsize>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the engine works with.
#[derive(Debug)]
pub struct Parts {
    /// The deployments.
    pub sysroot: Sysroot,
    /// Where the configuration files are found: `/` on a host.
    pub root: PathBuf,
    /// The configuration, or why there is none.
    pub config: Result<Config, String>,
    /// What an administrator should know about the configuration.
    pub warnings: Vec<String>,
    /// The running system's own description.
    pub os: OsRelease,
    /// Sessions, inhibitors, reboot.
    pub logind: Logind,
    /// The finalizing unit, and programs of the host.
    pub systemd: Systemd,
    /// `/var/lib/osteward`.
    pub state_directory: PathBuf,
    /// `/run/osteward`.
    pub runtime_directory: PathBuf,
}

impl Engine {
    /// Starts the task. `changes` says that somebody changed the sysroot.
    pub fn spawn(parts: Parts, changes: mpsc::Receiver<()>) -> Self {
        let (commands, queue) = mpsc::channel(64);
        let (publish, status) = watch::channel(Arc::new(Status::unknown(&parts.warnings)));
        let (root, inhibitors) = (parts.root.clone(), Inhibitors::default());
        let packages = Packages::new(&parts.state_directory, parts.sysroot.repo_path());
        let shared = (inhibitors.clone(), packages.clone());
        let task = Task::new(parts, shared, publish, commands.clone());
        tokio::spawn(task.run(queue, changes));
        Self {
            commands,
            status,
            attended: Arc::default(),
            inhibitors,
            packages,
            root,
        }
    }

    /// Says that a call is on its way, until the value is dropped.
    pub fn attend(&self) -> Attendance {
        self.attended.fetch_add(1, Ordering::Relaxed);
        Attendance(self.attended.clone())
    }

    /// Whether there are jobs, waiting, running or still readable, or calls that may become
    /// one, or somebody inhibits the exit.
    pub fn is_needed(&self) -> bool {
        !self.status.borrow().jobs.is_empty()
            || self.attended.load(Ordering::Relaxed) > 0
            || !self.inhibitors.list().is_empty()
    }

    /// Who inhibits what; whoever holds an entry of it is on it.
    pub fn inhibitors(&self) -> &Inhibitors {
        &self.inhibitors
    }

    /// What is known now. Never waits.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// Follows what is known; the latest value wins.
    pub fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Starts a job, or joins one, or lets it wait, or says why not.
    pub async fn submit(
        &self,
        request: Request,
        caller: Caller,
        terms: Terms,
    ) -> Result<JobId, Error> {
        self.ask(|reply| Command::Submit {
            request,
            caller,
            terms,
            reply,
        })
        .await
    }

    /// Tells a job something on behalf of `uid`, who may.
    pub async fn tell(&self, job: JobId, order: Order, uid: u32) -> Result<(), Error> {
        let tell = |reply| Command::Tell {
            job,
            order,
            uid,
            reply,
        };
        self.ask(tell).await
    }

    /// The last lines that a job has said, the oldest first.
    pub async fn log(&self, job: JobId) -> Result<Vec<String>, Error> {
        let (log, _) = self.ask(|reply| Command::Log { job, reply }).await?;
        Ok(log.lines())
    }

    /// A pipe with the events of a job from now on, one JSON object a line.
    pub async fn stream(&self, job: JobId) -> Result<OwnedFd, Error> {
        let (log, view) = self.ask(|reply| Command::Log { job, reply }).await?;
        if log.listeners() >= stream::AT_MOST {
            return Err(Error::LimitsExceeded(format!(
                "{} others listen to this job, which is the most; close a stream first",
                stream::AT_MOST
            )));
        }
        stream::open(&log, view).map_err(|error| Error::Internal(error.to_string()))
    }

    /// How two deployments differ in packages, read from them if need be.
    pub async fn packages_between(&self, old: &str, new: &str) -> Result<Arc<Difference>, Error> {
        let _attendance = self.attend();
        let status = self.status();
        let snapshot = status.snapshot().ok_or(Error::NotBooted)?;
        let named = |id: &str| {
            let mut deployments = snapshot.deployments.iter();
            let found = deployments.find(|deployment| deployment.id == id);
            found.ok_or_else(|| Error::UnknownObject(format!("there is no deployment {id}")))
        };
        self.packages.between(named(old)?, named(new)?).await
    }

    /// Reads the configuration files again, and uses what they say.
    pub async fn reload(&self) -> Result<(), Error> {
        let root = self.root.clone();
        let load = move || config::load(&root).map_err(|error| error.to_string());
        let loaded = tokio::task::spawn_blocking(load).await;
        let loaded = loaded.map_err(|error| Error::Internal(error.to_string()))?;
        self.ask(|reply| Command::Reload { loaded, reply }).await
    }

    /// Whether the task still takes commands: what the watchdog asks.
    pub async fn answers(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Ping { reply }).await.is_ok() && answer.await.is_ok()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let ended = || Error::Internal("the engine has ended".into());
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}
