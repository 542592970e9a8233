//! One known job: where it is in its life, and what it may be told there.
//!
//! Owns the steps waiting → running → ending → ended, and back from running to waiting for
//! a job that is paused or makes way. Invariants: whoever cancels wins over whoever pauses;
//! a job past its download is never stopped to begin anew; every step is visible in the
//! job's view before anything else happens.

use std::collections::BTreeMap;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::job::{JobId, JobView};
use super::{Caller, Terms};
use crate::error::Error;
use crate::jobs::progress::{Phase, Progress};
use crate::jobs::{Outcome, Request};

/// Where a job is in its life.
#[derive(Debug)]
pub(super) enum Stage {
    /// It has not begun, or begins anew.
    Waiting,
    /// At work; the token stops it.
    Running(CancellationToken),
    /// Its work is over, and what it changed is looked at and written down.
    Ending {
        /// Nobody else may write yet.
        holds_slot: bool,
    },
    /// Everybody was told.
    Ended(Instant),
}

/// Why the work is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It is not.
    No,
    /// To begin anew later.
    Park,
    /// For good.
    Cancel,
}

/// One known job.
pub(super) struct Known {
    pub(super) view: watch::Sender<JobView>,
    pub(super) request: Request,
    pub(super) terms: Terms,
    pub(super) progress: Progress,
    pub(super) stage: Stage,
    stop: Stop,
    paused: bool,
    /// How often which user asked for it and has not released it.
    askers: BTreeMap<u32, usize>,
}

impl Known {
    /// A job that waits.
    pub(super) fn new(id: JobId, request: Request, caller: Caller, terms: Terms) -> Self {
        let progress = Progress::new(request.phases());
        let askers = BTreeMap::from([(caller.uid, 1)]);
        let view = JobView::new(id, &request, caller, terms.background, progress.read());
        Self {
            view: watch::Sender::new(view),
            request,
            terms,
            progress,
            stage: Stage::Waiting,
            stop: Stop::No,
            paused: false,
            askers,
        }
    }

    /// The user who asked for it first.
    pub(super) fn owner(&self) -> u32 {
        self.view.borrow().caller.uid
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    /// Whether it is at work, and writes nothing.
    pub(super) fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Running(_)) && self.request.is_read()
    }

    /// Whether it has yet to write what it was asked to.
    pub(super) fn will_write(&self) -> bool {
        matches!(self.stage, Stage::Waiting | Stage::Running(_)) && !self.request.is_read()
    }

    /// Whether it begins as soon as the slot is free and nobody is before it.
    pub(super) fn awaits_its_turn(&self) -> bool {
        self.is_waiting() && !self.paused && !self.request.is_read()
    }

    pub(super) fn holds_slot(&self) -> bool {
        let holds = match self.stage {
            Stage::Running(_) => true,
            Stage::Ending { holds_slot } => holds_slot,
            Stage::Waiting | Stage::Ended(_) => false,
        };
        holds && !self.request.is_read()
    }

    pub(super) fn can_be_joined(&self, would_wait: bool) -> bool {
        match self.stage {
            Stage::Running(_) => match self.stop {
                Stop::No => true,
                Stop::Park => would_wait,
                Stop::Cancel => false,
            },
            Stage::Waiting => would_wait,
            Stage::Ending { .. } => self.stop != Stop::Cancel,
            Stage::Ended(_) => false,
        }
    }

    /// One more asks for it.
    pub(super) fn join(&mut self, id: JobId, uid: u32, terms: Terms) {
        *self.askers.entry(uid).or_default() += 1;
        self.terms.priority = self.terms.priority.max(terms.priority);
        if !terms.background {
            // Whoever asks for it waits for it, also if it was paused.
            self.raise(uid);
            self.set_paused(false);
        }
        tracing::debug!(OSTEWARD_JOB = id.0, uid, "joined");
    }

    /// It is at work from now on.
    pub(super) fn begin(&mut self) -> CancellationToken {
        let token = CancellationToken::new();
        self.stage = Stage::Running(token.clone());
        self.stop = Stop::No;
        self.view.send_modify(JobView::running);
        token
    }

    /// Stops for good. True if it has not begun, so that it is over at once.
    pub(super) fn cancel(&mut self, uid: u32) -> Result<bool, Error> {
        match &self.stage {
            Stage::Waiting => {}
            Stage::Running(_) if !self.progress.read().cancellable => {
                return Err(Error::TooLate(
                    "the job is past the point where it can be stopped; roll back when it is done"
                        .into(),
                ));
            }
            Stage::Running(token) => token.cancel(),
            Stage::Ending { .. } | Stage::Ended(_) => return Err(over()),
        }
        self.stop = Stop::Cancel;
        self.note(&format!("cancelled by uid {uid}"));
        if !self.is_waiting() {
            self.view.send_modify(JobView::cancelling);
        }
        Ok(self.is_waiting())
    }

    /// Stops until it is resumed.
    pub(super) fn pause(&mut self, uid: u32) -> Result<(), Error> {
        if !self.fetches() {
            return Err(Error::NotSupported(format!(
                "a job of the kind {:?} downloads nothing, so it cannot be paused; it can be cancelled",
                self.request.kind()
            )));
        }
        match &self.stage {
            Stage::Waiting => {}
            Stage::Running(_) if self.stop == Stop::Cancel => {
                return Err(Error::TooLate("the job is being cancelled".into()));
            }
            Stage::Running(token) => {
                if self.stop == Stop::No && !self.can_be_parked() {
                    return Err(Error::TooLate(
                        "the download is over, and the rest is not interrupted".into(),
                    ));
                }
                token.cancel();
                self.stop = Stop::Park;
            }
            Stage::Ending { .. } | Stage::Ended(_) => return Err(over()),
        }
        if !self.paused {
            self.note(&format!("paused by uid {uid}"));
        }
        self.set_paused(true);
        Ok(())
    }

    /// Goes on when it is its turn.
    pub(super) fn resume(&mut self, uid: u32) -> Result<(), Error> {
        if matches!(self.stage, Stage::Ending { .. } | Stage::Ended(_)) {
            return Err(over());
        }
        if self.paused {
            self.note(&format!("resumed by uid {uid}"));
        }
        self.set_paused(false);
        Ok(())
    }

    /// Somebody waits for it from now on.
    pub(super) fn adopt(&mut self, uid: u32) -> Result<(), Error> {
        if matches!(self.stage, Stage::Ending { .. } | Stage::Ended(_)) {
            return Err(over());
        }
        self.raise(uid);
        Ok(())
    }

    fn raise(&mut self, uid: u32) {
        if std::mem::take(&mut self.terms.background) {
            self.note(&format!("taken out of the background by uid {uid}"));
            self.view.send_modify(JobView::adopted);
        }
    }

    /// One of those who asked for it has read what there is to read.
    pub(super) fn release(&mut self, uid: u32) -> Result<(), Error> {
        let Some(count) = self.askers.get_mut(&uid) else {
            return Err(Error::NotYours(format!(
                "uid {uid} did not ask for this job, or has released it already"
            )));
        };
        *count -= 1;
        if *count == 0 {
            self.askers.remove(&uid);
        }
        Ok(())
    }

    pub(super) fn is_released(&self) -> bool {
        self.askers.is_empty()
    }

    /// Whether jobs of its kind download something.
    fn fetches(&self) -> bool {
        let mut phases = self.request.phases().iter();
        phases.any(|(phase, _)| *phase == Phase::Downloading)
    }

    /// Whether it can be stopped now, to begin anew later.
    fn can_be_parked(&self) -> bool {
        self.fetches() && self.progress.read().is_before_the_merge()
    }

    /// Whether it stops, or could, for a job that somebody waits for: it only fetches, and
    /// in the background.
    pub(super) fn would_make_way(&self) -> bool {
        match (&self.stage, self.stop) {
            (Stage::Running(_), Stop::Park) => true,
            (Stage::Running(_), Stop::No) => self.terms.background && self.can_be_parked(),
            _ => false,
        }
    }

    /// Stops to begin anew later, if it would.
    pub(super) fn make_way(&mut self) {
        if let Stage::Running(token) = &self.stage
            && self.stop == Stop::No
            && self.would_make_way()
        {
            token.cancel();
            self.stop = Stop::Park;
            self.note("interrupted for a job that somebody waits for");
        }
    }

    /// It has stopped, and waits again if that is why.
    pub(super) fn park(&mut self) -> bool {
        if self.stop != Stop::Park {
            return false;
        }
        self.stop = Stop::No;
        self.stage = Stage::Waiting;
        self.progress.park();
        let reading = self.progress.read();
        self.view.send_modify(|view| view.parked(reading));
        if self.paused {
            self.tell_place(None);
        }
        true
    }

    /// Its work is over.
    pub(super) fn ending(&mut self) {
        self.stage = Stage::Ending {
            holds_slot: self.holds_slot(),
        };
    }

    /// Gives it its final state.
    pub(super) fn finish(&mut self, result: &Result<Outcome, Error>) {
        self.stage = Stage::Ended(Instant::now());
        match result {
            Ok(_) => self.progress.complete(),
            Err(error) => self.note(&error.to_string()),
        }
        let reading = self.progress.read();
        self.view.send_modify(|view| view.finish(reading, result));
    }

    /// Says which job is before it, with its kind, or that none is.
    pub(super) fn tell_place(&self, ahead: Option<(JobId, &str)>) {
        let message = match ahead {
            _ if self.paused => "paused".to_owned(),
            Some((id, kind)) => format!("waiting for job {}, {kind}", id.0),
            None => "waiting".to_owned(),
        };
        let blocked_by = ahead.map(|(id, _)| id);
        let is_news = {
            let view = self.view.borrow();
            (view.blocked_by, view.reading.message.as_str()) != (blocked_by, message.as_str())
        };
        if is_news {
            self.note(&message);
            self.view
                .send_modify(|view| view.blocked(blocked_by, message));
        }
    }

    fn set_paused(&mut self, paused: bool) {
        if std::mem::replace(&mut self.paused, paused) != paused {
            self.view.send_modify(|view| view.set_paused(paused));
            if paused && self.is_waiting() {
                self.tell_place(None);
            }
        }
    }

    fn note(&self, line: &str) {
        self.progress.log().line(line);
    }
}

fn over() -> Error {
    Error::TooLate("the job has ended already".into())
}

#[cfg(test)]
mod tests;
