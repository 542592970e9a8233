//! The owner of the daemon's state: which jobs run, what is known, who is told.
//!
//! One task owns everything that changes; others hold an [`Engine`] (commands in, a
//! `watch` of [`Status`] out). Invariants: the task never
//! waits for a job or for the sysroot thread, so commands are always answered at once;
//! one write job at a time; a job belongs to the daemon, not to its caller; every job
//! that was announced ends with a final [`JobView`], published after the change it made.

mod job;
mod roster;
mod status;
mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

pub use job::{JobId, JobView, RunState};
pub use status::{LastCheck, Look, OsRelease, Status};

use crate::config::Config;
use crate::error::Error;
use crate::jobs::Request;
use crate::observe::logind::Logind;
use crate::observe::systemd::Systemd;
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

enum Command {
    Submit {
        request: Request,
        caller: Caller,
        reply: oneshot::Sender<Result<JobId, Error>>,
    },
    Cancel {
        job: JobId,
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
    /// The configuration, or why there is none.
    pub config: Result<Config, String>,
    /// What an administrator should know about the configuration.
    pub warnings: Vec<String>,
    /// The running system's own description.
    pub os: OsRelease,
    /// Sessions, inhibitors, reboot.
    pub logind: Logind,
    /// The unit that finalizes.
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
        let task = Task::new(parts, publish, commands.clone());
        tokio::spawn(task.run(queue, changes));
        Self {
            commands,
            status,
            attended: Arc::default(),
        }
    }

    /// Says that a call is on its way, until the value is dropped.
    pub fn attend(&self) -> Attendance {
        self.attended.fetch_add(1, Ordering::Relaxed);
        Attendance(self.attended.clone())
    }

    /// Whether there are jobs, running or still readable, or calls that may become one.
    pub fn is_needed(&self) -> bool {
        !self.status.borrow().jobs.is_empty() || self.attended.load(Ordering::Relaxed) > 0
    }

    /// What is known now. Never waits.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// Follows what is known; the latest value wins.
    pub fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Starts a job, or says why not.
    pub async fn submit(&self, request: Request, caller: Caller) -> Result<JobId, Error> {
        self.ask(|reply| Command::Submit {
            request,
            caller,
            reply,
        })
        .await
    }

    /// Asks a job to stop.
    pub async fn cancel(&self, job: JobId) -> Result<(), Error> {
        self.ask(|reply| Command::Cancel { job, reply }).await
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
