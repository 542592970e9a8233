//! The jobs that are known: those that run, and those that ended not long ago.
//!
//! Owns when an ended job is forgotten. Invariants: a job that runs is never forgotten;
//! an ended one can be read for [`KEEP_FINISHED`], unless more than [`KEEP_AT_MOST`] are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::job::{self, JobId, JobView};
use crate::error::Error;
use crate::jobs::{Outcome, Request, progress::Progress};

/// How long a finished job can still be read.
const KEEP_FINISHED: Duration = Duration::from_secs(300);
/// How many finished jobs are kept at most.
const KEEP_AT_MOST: usize = 32;

/// One known job.
pub(super) struct Known {
    view: watch::Sender<JobView>,
    pub(super) request: Request,
    progress: Progress,
    cancel: CancellationToken,
    ended: Option<Instant>,
}

impl Known {
    /// A job that begins now.
    pub(super) fn new(
        view: watch::Sender<JobView>,
        request: Request,
        progress: Progress,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            view,
            request,
            progress,
            cancel,
            ended: None,
        }
    }

    /// Asks it to stop, unless that has no effect any more.
    pub(super) fn cancel(&self) -> Result<(), Error> {
        if self.ended.is_some() {
            return Err(Error::TooLate("the job has ended already".into()));
        }
        if !self.progress.read().cancellable {
            return Err(Error::TooLate(
                "the job is past the point where it can be stopped; roll back when it is done"
                    .into(),
            ));
        }
        self.cancel.cancel();
        self.view.send_modify(JobView::cancelling);
        Ok(())
    }
}

/// All known jobs, in the order in which they began.
#[derive(Default)]
pub(super) struct Roster(BTreeMap<JobId, Known>);

impl Roster {
    pub(super) fn add(&mut self, id: JobId, job: Known) {
        self.0.insert(id, job);
    }

    pub(super) fn get(&self, id: JobId) -> Option<&Known> {
        self.0.get(&id)
    }

    /// The running job that holds the write slot.
    pub(super) fn writer(&self) -> Option<JobId> {
        let mut jobs = self.0.iter();
        jobs.find(|(_, job)| job.ended.is_none() && !job.request.is_read())
            .map(|(id, _)| *id)
    }

    /// The running job that does what is asked for: any check, or the very same request.
    /// One that somebody cancelled is none.
    pub(super) fn same(&self, request: &Request) -> Option<JobId> {
        let is_same = |job: &Known| match request {
            Request::Check { .. } => matches!(job.request, Request::Check { .. }),
            other => job.request == *other,
        };
        let mut jobs = self.0.iter();
        jobs.find(|(_, job)| job.ended.is_none() && !job.cancel.is_cancelled() && is_same(job))
            .map(|(id, _)| *id)
    }

    /// Gives a job its final state.
    pub(super) fn finish(&mut self, id: JobId, result: &Result<Outcome, Error>) {
        let Some(job) = self.0.get_mut(&id) else {
            return;
        };
        job.ended = Some(Instant::now());
        if result.is_ok() {
            job.progress.complete();
        }
        let reading = job.progress.read();
        job.view.send_modify(|view| view.finish(reading, result));
        job::log_end(id, &job.request, result);
    }

    /// When the next ended job is to be forgotten.
    pub(super) fn next_forget(&self) -> Option<Instant> {
        let ended: Vec<Instant> = self.0.values().filter_map(|job| job.ended).collect();
        let oldest = ended.iter().min().copied()?;
        Some(if ended.len() > KEEP_AT_MOST {
            Instant::now()
        } else {
            oldest + KEEP_FINISHED
        })
    }

    /// Forgets the job that ended first.
    pub(super) fn forget(&mut self) {
        let ended = |(id, job): (&JobId, &Known)| Some((job.ended?, *id));
        if let Some((_, oldest)) = self.0.iter().filter_map(ended).min() {
            self.0.remove(&oldest);
        }
    }

    /// What others may follow of each job.
    pub(super) fn views(&self) -> Vec<(JobId, watch::Receiver<JobView>)> {
        let jobs = self.0.iter();
        jobs.map(|(id, job)| (*id, job.view.subscribe())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Caller;

    fn job(id: u64) -> Known {
        let request = Request::CancelRollback;
        let progress = Progress::new(request.phases());
        let view = JobView::new(JobId(id), &request, &Caller::default(), progress.read());
        let view = watch::Sender::new(view);
        Known::new(view, request, progress, CancellationToken::new())
    }

    #[test]
    fn a_running_job_is_never_forgotten_and_too_many_ended_ones_are() {
        let mut roster = Roster::default();
        roster.add(JobId(0), job(0));
        assert_eq!(roster.next_forget(), None);
        for id in 1..=33 {
            roster.add(JobId(id), job(id));
            roster.finish(JobId(id), &Err(Error::Cancelled));
        }
        assert!(roster.next_forget().unwrap() <= Instant::now());
        roster.forget();
        assert!(roster.get(JobId(1)).is_none() && roster.get(JobId(2)).is_some());
        assert!(roster.next_forget().unwrap() > Instant::now());
        assert_eq!(roster.writer(), Some(JobId(0)));
    }

    #[test]
    fn only_a_job_that_goes_on_is_joined() {
        let mut roster = Roster::default();
        roster.add(JobId(1), job(1));
        assert_eq!(roster.same(&Request::CancelRollback), Some(JobId(1)));
        assert_eq!(roster.same(&Request::Check { max_age: None }), None);
        roster.get(JobId(1)).unwrap().cancel().unwrap();
        assert_eq!(roster.same(&Request::CancelRollback), None);
        roster.finish(JobId(1), &Err(Error::Cancelled));
        assert!(matches!(
            roster.get(JobId(1)).unwrap().cancel(),
            Err(Error::TooLate(_))
        ));
    }
}
