//! What others see of a job, and how often.
//!
//! Owns [`JobView`], the published copy of a job. Invariants: it changes at most five
//! times a second while the job runs; `sequence` grows with every change; after
//! [`JobView::finish`] it never changes again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::Caller;
use crate::error::Error;
use crate::jobs::progress::{Progress, Reading};
use crate::jobs::rate::Rate;
use crate::jobs::{Fact, Facts, Outcome, Request};

/// At most five publications a second.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);

/// The number of a job: unique for the uptime of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl JobId {
    /// The path of its object.
    pub fn path(self) -> String {
        format!("{}/{}", osteward_dbus::JOB_PREFIX, self.0)
    }
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Waiting for its turn, or paused.
    Queued,
    /// At work.
    Running,
    /// Somebody cancelled it; it is stopping.
    Cancelling,
    /// Done.
    Succeeded,
    /// Not done; the error says why.
    Failed,
    /// Stopped because somebody cancelled it.
    Cancelled,
}

impl RunState {
    /// The name in `Job.State`.
    pub fn name(self) -> &'static str {
        match self {
            RunState::Queued => "queued",
            RunState::Running => "running",
            RunState::Cancelling => "cancelling",
            RunState::Succeeded => "succeeded",
            RunState::Failed => "failed",
            RunState::Cancelled => "cancelled",
        }
    }

    /// Whether it is over.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            RunState::Succeeded | RunState::Failed | RunState::Cancelled
        )
    }
}

/// A published copy of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// The name in `Job.Kind`.
    pub kind: &'static str,
    /// Whether it needs the write slot.
    pub writes: bool,
    /// Where it is in its life.
    pub state: RunState,
    /// How far it is.
    pub reading: Reading,
    /// Bytes a second.
    pub rate: u64,
    /// D-Bus error name and message.
    pub error: Option<(String, String)>,
    /// What came out.
    pub facts: Facts,
    /// Somebody paused it: it stops, or has stopped, and waits for being resumed.
    pub paused: bool,
    /// It gives way to jobs that somebody waits for.
    pub background: bool,
    /// The job that must end before this one can begin.
    pub blocked_by: Option<JobId>,
    /// Microseconds since the epoch.
    pub created_at: u64,
    /// Microseconds since the epoch, once it has begun.
    pub started_at: Option<u64>,
    /// Microseconds since the epoch, once it is over.
    pub finished_at: Option<u64>,
    /// Who asked.
    pub caller: Caller,
    /// Counts the changes.
    pub sequence: u64,
}

impl JobView {
    /// A job that was just asked for.
    pub(super) fn new(
        id: JobId,
        request: &Request,
        caller: Caller,
        background: bool,
        reading: Reading,
    ) -> Self {
        Self {
            id,
            kind: request.kind(),
            writes: !request.is_read(),
            state: RunState::Queued,
            reading,
            rate: 0,
            error: None,
            facts: Facts::new(),
            paused: false,
            background,
            blocked_by: None,
            created_at: microseconds(),
            started_at: None,
            finished_at: None,
            caller,
            sequence: 1,
        }
    }

    /// It is at work from now on.
    pub(super) fn running(&mut self) {
        self.state = RunState::Running;
        self.started_at.get_or_insert_with(microseconds);
        self.blocked_by = None;
        self.sequence += 1;
    }

    /// It was stopped and waits, to begin anew.
    pub(super) fn parked(&mut self, reading: Reading) {
        self.state = RunState::Queued;
        self.reading = reading;
        self.rate = 0;
        self.sequence += 1;
    }

    /// What it waits for.
    pub(super) fn blocked(&mut self, by: Option<JobId>, message: String) {
        self.blocked_by = by;
        self.reading.message = message;
        self.sequence += 1;
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.sequence += 1;
    }

    /// Somebody waits for it now.
    pub(super) fn adopted(&mut self) {
        self.background = false;
        self.sequence += 1;
    }

    pub(super) fn cancelling(&mut self) {
        if !self.state.is_final() {
            self.state = RunState::Cancelling;
            self.reading.cancellable = false;
            self.sequence += 1;
        }
    }

    pub(super) fn finish(&mut self, reading: Reading, result: &Result<Outcome, Error>) {
        self.reading = reading;
        self.reading.cancellable = false;
        self.reading.active_layers.clear();
        self.rate = 0;
        self.paused = false;
        self.blocked_by = None;
        self.finished_at = Some(microseconds());
        self.sequence += 1;
        match result {
            Ok(outcome) => {
                self.state = RunState::Succeeded;
                self.facts.clone_from(&outcome.facts);
            }
            Err(error) => {
                let cancelled = error.is_cancelled();
                self.state = if cancelled {
                    RunState::Cancelled
                } else {
                    RunState::Failed
                };
                self.facts = error.facts();
                let error = error.to_bus();
                self.error = Some((error.name().to_owned(), error.message()));
            }
        }
    }

    /// Whether it is neither waiting nor over.
    pub fn is_at_work(&self) -> bool {
        matches!(self.state, RunState::Running | RunState::Cancelling)
    }

    /// Seconds left of the download, if that can be told.
    pub fn eta(&self) -> Option<u64> {
        let left = self
            .reading
            .bytes_total
            .checked_sub(self.reading.bytes_done)?;
        (self.rate > 0 && left > 0).then(|| left.div_ceil(self.rate))
    }
}

/// Publishes the progress of a running job until it is aborted.
pub(super) async fn publish(progress: Progress, view: watch::Sender<JobView>) {
    let mut ticks = tokio::time::interval(PUBLISH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rate = Rate::default();
    loop {
        ticks.tick().await;
        let Some(reading) = progress.take_changed() else {
            continue;
        };
        let rate = rate.update(Instant::now(), reading.bytes_done);
        view.send_if_modified(|view| {
            if view.state.is_final() {
                return false;
            }
            // A job that is being cancelled must not look cancellable again.
            let cancellable = reading.cancellable && view.state == RunState::Running;
            view.reading = Reading {
                cancellable,
                ..reading
            };
            view.rate = rate;
            view.sequence += 1;
            true
        });
    }
}

/// The line in the journal about the end of a job, with fields for programs.
pub(super) fn log_end(id: JobId, request: &Request, result: &Result<Outcome, Error>) {
    let kind = request.kind();
    match result {
        Ok(outcome) => {
            let digest = outcome.facts.iter().find_map(|(key, fact)| match fact {
                Fact::Text(text) if *key == "digest" => Some(text.as_str()),
                _ => None,
            });
            tracing::info!(
                OSTEWARD_JOB = id.0,
                OSTEWARD_KIND = kind,
                OSTEWARD_DIGEST = digest.unwrap_or_default(),
                "{kind} succeeded"
            );
        }
        Err(error) => tracing::error!(
            OSTEWARD_JOB = id.0,
            OSTEWARD_KIND = kind,
            OSTEWARD_ERROR = error.to_bus().name(),
            "{kind} failed: {error}"
        ),
    }
}

/// Microseconds since the epoch.
pub(super) fn microseconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_micros() as u64)
}
