//! The task behind the handle: the only owner of what changes.
//!
//! Owns the last look at the sysroot, the configuration in use and what is published; its
//! child [`work`] has the way of a job from the call to its end. Invariants: it never awaits
//! a job, the sysroot thread or the disk; a job's end is told only after a look that began
//! after it, so that nobody sees "succeeded" beside the old deployments.

mod work;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::chronicle::Chronicle;
use super::job::JobId;
use super::roster::Roster;
use super::status::{Look, Status};
use super::{Command, Loaded, Parts};
use crate::config::Config;
use crate::error::Error;
use crate::image::Remembered;
use crate::image::reference::ImageReference;
use crate::inhibit::Inhibitors;
use crate::jobs::downloads::Downloads;
use crate::jobs::packages::Packages;
use crate::jobs::{Candidate, Outcome};
use crate::record::history::Entry;
use crate::record::{self, Quarantine};
use crate::sysroot::{self, Snapshot};
use work::Ending;

pub(super) struct Task {
    parts: Parts,
    config: Arc<Config>,
    quarantine: Arc<Mutex<Result<Quarantine, record::Error>>>,
    found: watch::Sender<Option<Candidate>>,
    packages: Packages,
    downloads: Downloads,
    /// Remembers what earlier processes read; over before the first look is.
    earlier: Option<JoinHandle<()>>,
    registries: Remembered,
    jobs: Roster,
    chronicle: Chronicle,
    /// What the history will say of jobs that have not ended.
    entries: HashMap<JobId, Entry>,
    /// The last job's.
    last_number: u64,
    inhibitors: Inhibitors,
    looked: Option<Result<Arc<Snapshot>, sysroot::Error>>,
    running: JoinSet<(JobId, Result<Outcome, Error>)>,
    publish: watch::Sender<Arc<Status>>,
    commands: mpsc::Sender<Command>,
    looking: bool,
    look_again: bool,
    /// How many looks began.
    looks: u64,
    /// How many looks are done.
    looks_done: u64,
    ending: Vec<Ending>,
}

impl Task {
    pub(super) fn new(
        parts: Parts,
        (inhibitors, packages): (Inhibitors, Packages),
        publish: watch::Sender<Arc<Status>>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        let chronicle = Chronicle::open(&parts.state_directory, &parts.runtime_directory);
        Self {
            config: Arc::new(parts.config.clone().unwrap_or_default()),
            quarantine: Arc::new(Mutex::new(quarantine(&parts))),
            found: watch::channel(None).0,
            packages,
            downloads: Downloads::default(),
            earlier: None,
            jobs: Roster::default(),
            registries: registries(&chronicle),
            chronicle,
            entries: HashMap::new(),
            last_number: 0,
            inhibitors,
            looked: None,
            running: JoinSet::new(),
            publish,
            commands,
            looking: false,
            look_again: false,
            looks: 0,
            looks_done: 0,
            ending: Vec::new(),
            parts,
        }
    }

    pub(super) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        mut changes: mpsc::Receiver<()>,
    ) {
        let earlier = self.packages.clone();
        self.earlier = Some(tokio::task::spawn_blocking(move || earlier.load()));
        self.look();
        let mut found = self.found.subscribe();
        let mut inhibitors = self.inhibitors.changes();
        let mut packages = self.packages.changes();
        let mut watching = true;
        loop {
            let forget_at = self.jobs.next_forget();
            tokio::select! {
                command = queue.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                ended = self.running.join_next(), if !self.running.is_empty() => match ended {
                    Some(Ok((job, result))) => self.stopped(job, result),
                    Some(Err(error)) => tracing::error!(%error, "a job task broke"),
                    None => {}
                },
                change = changes.recv(), if watching => match change {
                    Some(()) => drop(self.look()),
                    None => watching = false,
                },
                Ok(()) = found.changed() => self.publish(),
                Ok(()) = inhibitors.changed() => self.publish(),
                Ok(()) = packages.changed() => self.publish(),
                () = self.chronicle.page_written() => self.go_on(),
                () = sleep_until(forget_at), if forget_at.is_some() => {
                    self.jobs.forget();
                    self.publish();
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit {
                request,
                caller,
                terms,
                reply,
            } => {
                let answer = self.submit(request, caller, terms);
                let _ = reply.send(answer);
            }
            Command::Tell {
                job,
                order,
                uid,
                reply,
            } => {
                let _ = reply.send(self.tell(job, order, uid));
            }
            Command::Log { job, reply } => {
                let log = self.jobs.named(job);
                let log = log.map(|job| (job.progress.log().clone(), job.view.subscribe()));
                let _ = reply.send(log);
            }
            Command::Reload { loaded, reply } => {
                let _ = reply.send(self.reload(loaded));
            }
            Command::Looked(result) => self.took_a_look(result),
            Command::Ping { reply } => drop(reply.send(())),
        }
    }

    /// Starts a look at the sysroot; while one is under way, another follows it. Returns
    /// the number of the look that shows everything up to now.
    fn look(&mut self) -> u64 {
        if std::mem::replace(&mut self.looking, true) {
            self.look_again = true;
            return self.looks + 1;
        }
        self.looks += 1;
        let (sysroot, commands) = (self.parts.sysroot.clone(), self.commands.clone());
        let earlier = self.earlier.take();
        tokio::spawn(async move {
            if let Some(earlier) = earlier {
                // A cache: without it there is less to tell.
                let _ = earlier.await;
            }
            let result = sysroot.snapshot().await;
            // The engine being gone means the process is ending.
            let _ = commands.send(Command::Looked(result)).await;
        });
        self.looks
    }

    fn took_a_look(&mut self, result: Result<Snapshot, sysroot::Error>) {
        self.looking = false;
        if let Err(error) = &result {
            tracing::warn!(%error, "the sysroot cannot be read");
        }
        self.looked = Some(result.map(Arc::new));
        self.looks_done = self.looks;
        if std::mem::take(&mut self.look_again) {
            self.look();
        }
        // First the host as it is now, then the jobs that made it so.
        self.publish();
        self.go_on();
    }

    /// Takes over what the files say now, as a new process would.
    fn reload(&mut self, loaded: Loaded) -> Result<(), Error> {
        (self.parts.config, self.parts.warnings) = match loaded {
            Ok((config, warnings)) => (Ok(config), warnings),
            Err(error) => (Err(error), Vec::new()),
        };
        // A job keeps what it began with.
        self.config = Arc::new(self.parts.config.clone().unwrap_or_default());
        let mut list = self
            .quarantine
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if list.is_err() {
            *list = quarantine(&self.parts);
        }
        drop(list);
        self.publish();
        match &self.parts.config {
            Ok(_) => {
                tracing::info!("the configuration was read again");
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the configuration cannot be used; nothing will be fetched");
                Err(Error::Config(error.clone()))
            }
        }
    }

    fn publish(&self) {
        let look = match &self.looked {
            None => Look::NotYet,
            Some(Ok(snapshot)) if snapshot.is_booted => Look::Seen(snapshot.clone()),
            Some(Ok(_)) | Some(Err(sysroot::Error::NotBooted)) => Look::NotBooted,
            Some(Err(error)) => Look::Broken(error.to_string()),
        };
        let mut status = Status {
            look,
            found: self.found.borrow().clone(),
            last_check: self.chronicle.last_check().cloned(),
            quarantined: self.quarantined(),
            jobs: self.jobs.views(),
            history: self.chronicle.entries(),
            inhibitors: self.inhibitors.list(),
            warnings: self.warnings(),
            idle_timeout: self.config.idle_timeout,
            os: self.parts.os.clone(),
            soft_reboots: self.parts.systemd.has_soft_reboot(),
            difference: None,
        };
        status.difference = status.compared().and_then(|(old, new)| {
            // Memory only; the comparison itself is done once.
            self.packages.difference(&old, &new)
        });
        self.publish.send_replace(Arc::new(status));
    }

    fn quarantined(&self) -> HashSet<String> {
        let list = self
            .quarantine
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        list.as_ref().map(Quarantine::digests).unwrap_or_default()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.parts.warnings.clone();
        warnings.extend(self.parts.config.as_ref().err().cloned());
        let list = self
            .quarantine
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        warnings.extend(list.as_ref().err().map(ToString::to_string));
        warnings.extend(self.chronicle.warning().map(str::to_owned));
        warnings
    }
}

/// What the process before this one found out about registries.
fn registries(chronicle: &Chronicle) -> Remembered {
    let registries = Remembered::default();
    if let Some(check) = chronicle.last_check()
        && let Some(server) = &check.token_server
        && let Ok(reference) = check.reference.parse::<ImageReference>()
    {
        registries.expect_token_server(&reference.canonical(), server.clone());
    }
    registries
}

fn quarantine(parts: &Parts) -> Result<Quarantine, record::Error> {
    Quarantine::load(&parts.state_directory)
        .inspect_err(|error| tracing::error!(%error, "the quarantine list cannot be read"))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
