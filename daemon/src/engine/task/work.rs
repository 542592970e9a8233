//! The way of a job: let in, queued, at work, looked after, written down, told.
//!
//! Owns when a job may begin and when its end is told. Invariants: what was let in ends with
//! a final view whatever happens; a job that writes begins only when the slot is free and
//! the state, looked at after the one before it, allows it; its end is told after the look
//! that shows it, and after the history has it.

use std::sync::Arc;

use tokio::task::JoinError;

use super::Task;
use crate::engine::job::{self, JobId};
use crate::engine::known::Known;
use crate::engine::{Caller, Order, Terms, entry};
use crate::error::Error;
use crate::jobs::{Job, Outcome, Request, now};
use crate::record;
use crate::record::last_check::LastCheck;
use crate::state::{self, State};
use crate::sysroot::{self, Snapshot};

/// A job whose work is over, on its way to being told.
pub(super) struct Ending {
    job: JobId,
    result: Result<Outcome, Error>,
    /// The look that shows what it changed.
    look: u64,
    /// The page of the chronicle that has it, once there is one.
    page: Option<u64>,
}

impl Task {
    pub(super) fn submit(
        &mut self,
        request: Request,
        caller: Caller,
        terms: Terms,
    ) -> Result<JobId, Error> {
        if let Err(error) = &self.parts.config
            && request.uses_network()
        {
            return Err(Error::Config(error.clone()));
        }
        if let Some(id) = self.jobs.same(&request, terms.queue) {
            self.jobs.named(id)?.join(id, caller.uid, terms);
            self.jobs.make_way();
            self.go_on();
            return Ok(id);
        }
        if let Err(error) = self.let_in(&request, terms, caller.uid) {
            // Whatever kept the sysroot from being read may be over; the next call will see.
            if matches!(self.looked, Some(Err(_))) {
                self.look();
            }
            return Err(error);
        }
        let id = self.add(request, caller, terms);
        self.jobs.make_way();
        self.go_on();
        Ok(id)
    }

    /// Whether the job may begin now, or wait.
    fn let_in(&self, request: &Request, terms: Terms, uid: u32) -> Result<(), Error> {
        if request.is_read() {
            self.jobs.check_readers(uid)?;
        }
        match self.admit(request, self.state()) {
            Err(Error::Busy(_)) if !terms.background && self.jobs.would_make_way() => {
                // What only fetches changes no deployment: the state now is what it will be.
                self.admit(request, self.resting_state())?;
                self.jobs.check_room(uid)
            }
            // Whether it can be done shows when those before it have ended.
            Err(Error::Busy(_)) if terms.queue => self.jobs.check_room(uid),
            answer => answer,
        }
    }

    /// Asks the state table.
    fn admit(&self, request: &Request, state: State) -> Result<(), Error> {
        let snapshot = self.snapshot();
        let wish = request.wish(snapshot.rollback().is_some());
        match state::next(state, wish) {
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

    fn state(&self) -> State {
        match self.jobs.writer() {
            Some(_) => State::Working,
            None => self.resting_state(),
        }
    }

    /// The state without regard to what is being written.
    fn resting_state(&self) -> State {
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

    /// The deployments as of the last look, as far as they could be read.
    fn snapshot(&self) -> Arc<Snapshot> {
        match &self.looked {
            Some(Ok(snapshot)) => snapshot.clone(),
            Some(Err(_)) | None => Arc::default(),
        }
    }

    /// No number is given twice, also while the counter cannot be kept.
    fn next_number(&mut self) -> u64 {
        let number = record::next_job_number(&self.parts.runtime_directory, self.last_number);
        self.last_number = number;
        number
    }

    /// Makes the job, which waits.
    fn add(&mut self, request: Request, caller: Caller, terms: Terms) -> JobId {
        let id = JobId(self.next_number());
        tracing::info!(
            OSTEWARD_JOB = id.0,
            OSTEWARD_KIND = request.kind(),
            OSTEWARD_UID = caller.uid,
            OSTEWARD_REASON = caller.reason,
            "{} asked for by uid {}",
            request.kind(),
            caller.uid
        );
        let is_read = request.is_read();
        let job = Known::new(id, request, caller, terms);
        if !is_read {
            let entry = entry::begun(&job.view.borrow(), &job.request, &self.snapshot());
            self.chronicle.begun(entry.clone());
            self.entries.insert(id, entry);
        }
        self.jobs.add(id, job);
        if is_read {
            self.begin(id);
        }
        id
    }

    /// Puts the job to work.
    fn begin(&mut self, id: JobId) {
        let Some(cancel) = self.jobs.begin(id) else {
            return;
        };
        let Some(known) = self.jobs.get(id) else {
            return;
        };
        let job = Job {
            sysroot: self.parts.sysroot.clone(),
            config: self.config.clone(),
            quarantine: self.quarantine.clone(),
            logind: self.parts.logind.clone(),
            systemd: self.parts.systemd.clone(),
            inhibitors: self.inhibitors.clone(),
            background: known.terms.background,
            alone: known.terms.alone,
            progress: known.progress.clone(),
            cancel,
            last_check: self.chronicle.last_check().cloned(),
            registries: self.registries.clone(),
            found: self.found.clone(),
            packages: self.packages.clone(),
            download: self.downloads.of(id.0),
        };
        // While it waited, others may have changed it.
        let before = entry::next_boot(&self.snapshot());
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.from_digest = before;
        }
        let publishing = tokio::spawn(job::publish(known.progress.clone(), known.view.clone()));
        let wish = known.request.clone();
        self.running.spawn(async move {
            // A panic in a job must not take the record of the job with it.
            let result = tokio::spawn(async move { job.run(&wish).await }).await;
            publishing.abort();
            let broken = |error: JoinError| Err(Error::Internal(error.to_string()));
            (id, result.unwrap_or_else(broken))
        });
    }

    /// What somebody tells a job.
    pub(super) fn tell(&mut self, id: JobId, order: Order, uid: u32) -> Result<(), Error> {
        let job = self.jobs.named(id)?;
        match order {
            Order::Cancel => {
                let is_over = job.cancel(uid)?;
                tracing::info!(
                    OSTEWARD_JOB = id.0,
                    OSTEWARD_UID = uid,
                    "{} is being cancelled",
                    job.request.kind()
                );
                if is_over {
                    self.end(id, Err(Error::Cancelled), 0);
                }
            }
            Order::Pause => self.jobs.pause(id, uid)?,
            Order::Resume => job.resume(uid)?,
            Order::Adopt => job.adopt(uid)?,
            Order::Release => job.release(uid)?,
        }
        self.jobs.make_way();
        self.go_on();
        Ok(())
    }

    /// The work of a job is over, or interrupted.
    pub(super) fn stopped(&mut self, id: JobId, result: Result<Outcome, Error>) {
        if self.jobs.park(id, &result) {
            self.go_on();
            return;
        }
        // Whoever names a digest does not ask what the reference means now.
        let asked = match self.jobs.get(id).map(|job| &job.request) {
            Some(Request::Check { .. }) => true,
            Some(Request::Download(pull) | Request::Upgrade(pull)) => {
                pull.digest.is_none() && !pull.from_cache
            }
            _ => false,
        };
        if asked {
            self.remember_check(id, &result);
        }
        let look = self.look();
        self.end(id, result, look);
    }

    /// It is over for good; the world is told when `look` is done.
    fn end(&mut self, job: JobId, result: Result<Outcome, Error>, look: u64) {
        self.jobs.ending(job);
        self.downloads.ended(job.0);
        self.ending.push(Ending {
            job,
            result,
            look,
            page: None,
        });
    }

    /// Takes every job one step further for which the time has come, and tells.
    pub(super) fn go_on(&mut self) {
        loop {
            self.write_down();
            let told = self.tell_ends();
            let begun = self.begin_next();
            if !told && !begun {
                break;
            }
        }
        self.jobs.tell_order();
        self.publish();
    }

    /// Gives the chronicle those whose changes were looked at.
    fn write_down(&mut self) {
        let now = self.snapshot();
        for ending in &mut self.ending {
            if ending.page.is_some() || ending.look > self.looks_done {
                continue;
            }
            // Jobs that only read are in no history; what they found is on the page by now.
            ending.page = Some(match self.entries.remove(&ending.job) {
                Some(entry) => {
                    let entry = entry::ended(entry, &ending.result, &now);
                    self.chronicle.ended(entry)
                }
                None => self.chronicle.page(),
            });
        }
    }

    /// Tells the end of those that are written down.
    fn tell_ends(&mut self) -> bool {
        let written = self.chronicle.written();
        let ending = std::mem::take(&mut self.ending).into_iter();
        let is_ready = |ending: &Ending| ending.page.is_some_and(|page| page <= written);
        let (ready, waiting): (Vec<_>, Vec<_>) = ending.partition(is_ready);
        self.ending = waiting;
        for Ending { job, result, .. } in &ready {
            self.jobs.finish(*job, result);
        }
        !ready.is_empty()
    }

    /// Lets the first in the queue begin if the slot is free; it may be refused by now.
    fn begin_next(&mut self) -> bool {
        if self.jobs.writer().is_some() {
            return false;
        }
        let first = self.jobs.queue().first().copied();
        let Some((id, job)) = first.and_then(|id| Some((id, self.jobs.get(id)?))) else {
            return false;
        };
        match self.admit(&job.request, self.resting_state()) {
            Ok(()) => self.begin(id),
            Err(refused) => self.end(id, Err(refused), 0),
        }
        true
    }

    fn remember_check(&mut self, id: JobId, result: &Result<Outcome, Error>) {
        let is_check = self.jobs.get(id).is_some_and(|job| job.request.is_read());
        let error = match result {
            Err(error) if error.is_cancelled() => return,
            Err(error) if is_check || error.is_about_finding() => {
                let error = error.to_bus();
                Some((error.name().to_owned(), error.message()))
            }
            // The host's own trouble may have come before the registry was asked.
            Err(Error::Sysroot(_) | Error::NotBooted | Error::NotSupported(_)) => return,
            Ok(outcome) if outcome.is_cached() => return,
            // What came after the image was found says nothing about the registry.
            Ok(_) | Err(_) => None,
        };
        let last = match self.found.borrow().clone() {
            Some(found) => {
                let image = &found.image;
                let canonical = found.reference.canonical();
                LastCheck {
                    time: found.found_at,
                    error: None,
                    digest: image.digest.to_string(),
                    served: image.served().to_string(),
                    reference: found.reference.to_string(),
                    token_server: self.registries.token_server(&canonical),
                }
            }
            None => self.chronicle.last_check().cloned().unwrap_or_default(),
        };
        // What a job did after it had asked may have taken hours.
        let time = if error.is_none() { last.time } else { now() };
        self.chronicle.checked(LastCheck {
            time,
            error,
            ..last
        });
    }
}
