//! The task behind the handle: the only owner of what changes.
//!
//! Owns the jobs, the last look at the sysroot and what is published of both. Invariants:
//! it never awaits a job or the sysroot thread; a job's end is told only after a look that
//! began after it, so that nobody sees "succeeded" beside the old deployments.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::job::{self, JobId, JobView};
use super::roster::{Known, Roster};
use super::status::{LastCheck, Look, Status};
use super::{Caller, Command, Parts};
use crate::config::Config;
use crate::error::Error;
use crate::jobs::{Candidate, Job, Outcome, Request, now, progress::Progress};
use crate::record::{self, Quarantine};
use crate::state::{self, State};
use crate::sysroot::{self, Snapshot};

pub(super) struct Task {
    parts: Parts,
    config: Arc<Config>,
    quarantine: Arc<Mutex<Result<Quarantine, record::Error>>>,
    found: watch::Sender<Option<Candidate>>,
    jobs: Roster,
    looked: Option<Result<Arc<Snapshot>, sysroot::Error>>,
    last_check: Option<LastCheck>,
    running: JoinSet<(JobId, Result<Outcome, Error>)>,
    publish: watch::Sender<Arc<Status>>,
    commands: mpsc::Sender<Command>,
    looking: bool,
    look_again: bool,
    /// How many looks began.
    looks: u64,
    /// Jobs whose result waits for the look of that number, which shows what they changed.
    ending: Vec<(u64, JobId, Result<Outcome, Error>)>,
}

impl Task {
    pub(super) fn new(
        parts: Parts,
        publish: watch::Sender<Arc<Status>>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        let quarantine = Quarantine::load(&parts.state_directory)
            .inspect_err(|error| tracing::error!(%error, "the quarantine list cannot be read"));
        Self {
            config: Arc::new(parts.config.clone().unwrap_or_default()),
            quarantine: Arc::new(Mutex::new(quarantine)),
            found: watch::channel(None).0,
            jobs: Roster::default(),
            looked: None,
            last_check: None,
            running: JoinSet::new(),
            publish,
            commands,
            looking: false,
            look_again: false,
            looks: 0,
            ending: Vec::new(),
            parts,
        }
    }

    pub(super) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        mut changes: mpsc::Receiver<()>,
    ) {
        self.look();
        let mut found = self.found.subscribe();
        let mut watching = true;
        loop {
            let forget_at = self.jobs.next_forget();
            tokio::select! {
                command = queue.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                ended = self.running.join_next(), if !self.running.is_empty() => match ended {
                    Some(Ok((job, result))) => self.ended(job, result),
                    Some(Err(error)) => tracing::error!(%error, "a job task broke"),
                    None => {}
                },
                change = changes.recv(), if watching => match change {
                    Some(()) => drop(self.look()),
                    None => watching = false,
                },
                Ok(()) = found.changed() => self.publish(),
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
                reply,
            } => {
                let answer = self.submit(request, caller);
                let _ = reply.send(answer);
            }
            Command::Cancel { job, reply } => {
                let _ = reply.send(self.cancel(job));
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
        tokio::spawn(async move {
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
        let done = self.looks;
        if std::mem::take(&mut self.look_again) {
            self.look();
        }
        self.publish();
        // Jobs that ended while it was under way wait for the next one.
        let ending = std::mem::take(&mut self.ending).into_iter();
        let (shown, waiting): (Vec<_>, Vec<_>) = ending.partition(|(look, ..)| *look <= done);
        self.ending = waiting;
        for (_, job, result) in shown {
            self.jobs.finish(job, &result);
            self.publish();
        }
    }

    fn state(&self) -> State {
        if self.jobs.writer().is_some() {
            return State::Working;
        }
        match &self.looked {
            None => State::Unknown,
            Some(Err(sysroot::Error::NotBooted)) => State::NotBooted,
            Some(Err(_)) => State::Broken,
            Some(Ok(snapshot)) if !snapshot.is_booted => State::NotBooted,
            Some(Ok(snapshot)) if snapshot.staged().is_some() => State::Staged,
            Some(Ok(snapshot)) if snapshot.rollback_queued => State::RollbackQueued,
            Some(Ok(_)) => State::Idle,
        }
    }

    fn submit(&mut self, request: Request, caller: Caller) -> Result<JobId, Error> {
        if let Err(error) = &self.parts.config
            && request.uses_network()
        {
            return Err(Error::Config(error.clone()));
        }
        if let Some(id) = self.jobs.same(&request) {
            return Ok(id);
        }
        if let Err(error) = self.admit(&request) {
            // Whatever kept the sysroot from being read may be over; the next call will see.
            if matches!(self.looked, Some(Err(_))) {
                self.look();
            }
            return Err(error);
        }
        Ok(self.start(request, &caller))
    }

    fn admit(&self, request: &Request) -> Result<(), Error> {
        let snapshot = match &self.looked {
            Some(Ok(snapshot)) => snapshot.clone(),
            Some(Err(_)) | None => Arc::default(),
        };
        let wish = request.wish(snapshot.rollback().is_some());
        match state::next(self.state(), wish) {
            Ok(_) => Ok(()),
            Err(state::Refused::Busy) => {
                let busy = self.jobs.writer().map(JobId::path);
                Err(Error::Busy(busy.unwrap_or_default()))
            }
            Err(state::Refused::Broken) => match &self.looked {
                Some(Err(error)) => Err(error.clone().into()),
                _ => Err(Error::NotBooted),
            },
            Err(refused) => Err(Error::refused(refused, &snapshot)),
        }
    }

    fn start(&mut self, request: Request, caller: &Caller) -> JobId {
        let id = JobId(record::next_job_number(&self.parts.runtime_directory));
        let progress = Progress::new(request.phases());
        let cancel = CancellationToken::new();
        let view = watch::Sender::new(JobView::new(id, &request, caller, progress.read()));
        let last_check = self
            .last_check
            .as_ref()
            .filter(|check| check.error.is_none())
            .map(|check| check.time);
        let job = Job {
            sysroot: self.parts.sysroot.clone(),
            config: self.config.clone(),
            quarantine: self.quarantine.clone(),
            logind: self.parts.logind.clone(),
            systemd: self.parts.systemd.clone(),
            progress: progress.clone(),
            cancel: cancel.clone(),
            last_check,
            found: self.found.clone(),
        };
        tracing::info!(
            OSTEWARD_JOB = id.0,
            OSTEWARD_KIND = request.kind(),
            OSTEWARD_UID = caller.uid,
            OSTEWARD_REASON = caller.reason,
            "{} asked for by uid {}",
            request.kind(),
            caller.uid
        );
        let publishing = tokio::spawn(job::publish(progress.clone(), view.clone()));
        let wish = request.clone();
        self.running.spawn(async move {
            // A panic in a job must not take the record of the job with it.
            let result = tokio::spawn(async move { job.run(&wish).await }).await;
            publishing.abort();
            (
                id,
                result.unwrap_or_else(|error| Err(Error::Internal(error.to_string()))),
            )
        });
        self.jobs
            .add(id, Known::new(view, request, progress, cancel));
        self.publish();
        id
    }

    fn cancel(&mut self, id: JobId) -> Result<(), Error> {
        let gone = || Error::UnknownObject(format!("{} is not known (any more)", id.path()));
        let job = self.jobs.get(id).ok_or_else(gone)?;
        job.cancel()?;
        tracing::info!(
            OSTEWARD_JOB = id.0,
            "{} is being cancelled",
            job.request.kind()
        );
        Ok(())
    }

    /// The job is done; a look at what it changed comes before the world is told.
    fn ended(&mut self, id: JobId, result: Result<Outcome, Error>) {
        let Some(job) = self.jobs.get(id) else {
            return;
        };
        if let Request::Check { .. } | Request::Download(_) | Request::Upgrade(_) = job.request {
            let is_check = job.request.is_read();
            self.remember_check(is_check, &result);
        }
        let look = self.look();
        self.ending.push((look, id, result));
    }

    fn remember_check(&mut self, is_check: bool, result: &Result<Outcome, Error>) {
        let error = match result {
            Err(error) if error.is_cancelled() => return,
            Err(error) if is_check || error.is_about_finding() => {
                let error = error.to_bus();
                Some((error.name().to_owned(), error.message()))
            }
            // The host's own trouble may have come before the registry was asked.
            Err(Error::Sysroot(_) | Error::NotBooted | Error::NotSupported(_)) => return,
            // What came after the image was found says nothing about the registry.
            Ok(_) | Err(_) => None,
        };
        let digest = self
            .found
            .borrow()
            .as_ref()
            .map(|found| found.image.digest.to_string());
        self.last_check = Some(LastCheck {
            time: now(),
            error,
            digest: digest.unwrap_or_default(),
        });
    }

    fn publish(&self) {
        let look = match &self.looked {
            None => Look::NotYet,
            Some(Ok(snapshot)) if snapshot.is_booted => Look::Seen(snapshot.clone()),
            Some(Ok(_)) | Some(Err(sysroot::Error::NotBooted)) => Look::NotBooted,
            Some(Err(error)) => Look::Broken(error.to_string()),
        };
        let status = Status {
            look,
            found: self.found.borrow().clone(),
            last_check: self.last_check.clone(),
            quarantined: self.quarantined(),
            jobs: self.jobs.views(),
            warnings: self.warnings(),
            os: self.parts.os.clone(),
        };
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
        warnings
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
