//! The jobs that are known: those that wait, those that run, those that ended not long ago.
//!
//! Owns the order of the queue, what a job may be told (cancel, pause, adopt, release), and
//! when an ended job is forgotten. Invariants: at most one job holds the write slot; a job
//! that has not ended is never forgotten; an ended one can be read for [`KEEP_FINISHED`],
//! unless more than [`KEEP_AT_MOST`] are, or all who asked for it have released it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::job::{self, JobId, JobView};
use super::known::{Known, Stage};
use crate::error::Error;
use crate::jobs::{Outcome, Request};

/// How long a finished job can still be read.
const KEEP_FINISHED: Duration = Duration::from_secs(300);
/// How long one that was released can be: its last signals must be out.
const KEEP_RELEASED: Duration = Duration::from_secs(2);
/// How many finished jobs are kept at most.
const KEEP_AT_MOST: usize = 32;
/// How many jobs can wait, paused ones included.
const WAIT_AT_MOST: usize = 64;
/// How many of them can be one user's, so that nobody takes all places.
const WAIT_EACH_USER: usize = 16;
/// How many jobs that only read can run side by side, and how many of them can be one user's:
/// each may have connections and files open.
const READ_AT_MOST: usize = 24;
const READ_EACH_USER: usize = 8;

/// All known jobs, in the order in which they were asked for.
#[derive(Default)]
pub(super) struct Roster(BTreeMap<JobId, Known>);

impl Roster {
    pub(super) fn add(&mut self, id: JobId, job: Known) {
        self.0.insert(id, job);
    }

    pub(super) fn get(&self, id: JobId) -> Option<&Known> {
        self.0.get(&id)
    }

    /// A job that somebody names.
    pub(super) fn named(&mut self, id: JobId) -> Result<&mut Known, Error> {
        self.0
            .get_mut(&id)
            .ok_or_else(|| Error::UnknownObject(format!("{} is not known (any more)", id.path())))
    }

    /// The job that holds the write slot.
    pub(super) fn writer(&self) -> Option<JobId> {
        let mut jobs = self.0.iter();
        jobs.find(|(_, job)| job.holds_slot()).map(|(id, _)| *id)
    }

    /// The job that does what is asked for: any check, or the very same request. One that
    /// somebody cancelled is none; one that waits is one only for those who would wait too; one that
    /// writes is none if another was asked for since.
    pub(super) fn same(&self, request: &Request, would_wait: bool) -> Option<JobId> {
        let is_same = |job: &Known| match request {
            Request::Check { .. } => matches!(job.request, Request::Check { .. }),
            other => job.request == *other,
        };
        let mut jobs = self.0.iter();
        let (id, _) = jobs.find(|(_, job)| job.can_be_joined(would_wait) && is_same(job))?;
        // What was asked for in between may undo it: only the last one leaves what is asked for.
        // What only removes undoes nothing of its kind.
        let removes = |request: &Request| matches!(request, Request::Discard { .. });
        let is_last = || {
            let mut later = self.0.range((Bound::Excluded(id), Bound::Unbounded));
            !later.any(|(_, job)| job.will_write() && !(removes(request) && removes(&job.request)))
        };
        (request.is_read() || is_last()).then_some(*id)
    }

    /// Those that may begin when the slot is free, the first one first: what somebody waits
    /// for before what happens in the background, then by priority, then by age.
    pub(super) fn queue(&self) -> Vec<JobId> {
        let waiting = self.0.iter().filter(|(_, job)| job.awaits_its_turn());
        let mut queue: Vec<_> = waiting
            .map(|(id, job)| (job.terms.background, Reverse(job.terms.priority), *id))
            .collect();
        queue.sort_unstable();
        queue.into_iter().map(|(.., id)| id).collect()
    }

    /// Whether one more job of that user may wait.
    pub(super) fn check_room(&self, uid: u32) -> Result<(), Error> {
        let waiting = self.0.values().filter(|job| job.is_waiting());
        let owners: Vec<u32> = waiting.map(Known::owner).collect();
        let own = owners.iter().filter(|owner| **owner == uid).count();
        let whose = match (own < WAIT_EACH_USER, owners.len() < WAIT_AT_MOST) {
            (true, true) => return Ok(()),
            (false, _) => format!("{own} jobs of uid {uid}"),
            (true, false) => format!("{} jobs", owners.len()),
        };
        Err(Error::LimitsExceeded(format!(
            "{whose} wait already, which is the most; wait for some to end, or cancel them"
        )))
    }

    /// Whether one more job of that user may run that only reads.
    pub(super) fn check_readers(&self, uid: u32) -> Result<(), Error> {
        let running = self.0.values().filter(|job| job.is_reading());
        let owners: Vec<u32> = running.map(Known::owner).collect();
        let own = owners.iter().filter(|owner| **owner == uid).count();
        let whose = match (own < READ_EACH_USER, owners.len() < READ_AT_MOST) {
            (true, true) => return Ok(()),
            (false, _) => format!("{own} jobs of uid {uid}"),
            (true, false) => format!("{} jobs", owners.len()),
        };
        Err(Error::LimitsExceeded(format!(
            "{whose} look at something already, which is the most; wait for some to end"
        )))
    }

    /// Stops a job until it is resumed. It takes a place among those that wait.
    pub(super) fn pause(&mut self, id: JobId, uid: u32) -> Result<(), Error> {
        let job = self.named(id)?;
        let is_new = !job.is_waiting() && !job.view.borrow().paused;
        let owner = job.owner();
        if is_new {
            self.check_room(owner)?;
        }
        self.named(id)?.pause(uid)
    }

    /// Whether a job that somebody waits for would be next, with what holds the slot making way.
    pub(super) fn would_make_way(&self) -> bool {
        let first = self.queue().first().and_then(|id| self.get(*id));
        let writer = self.writer().and_then(|id| self.get(id));
        first.is_none_or(|first| first.terms.background)
            && writer.is_some_and(Known::would_make_way)
    }

    /// Asks the job that holds the slot to make way if it only fetches in the background and
    /// somebody waits for the first in the queue.
    pub(super) fn make_way(&mut self) {
        let first = self.queue().first().and_then(|id| self.get(*id));
        if first.is_none_or(|first| first.terms.background) {
            return;
        }
        if let Some(writer) = self.writer().and_then(|id| self.0.get_mut(&id)) {
            writer.make_way();
        }
    }

    /// Tells every job in the queue which one is before it.
    pub(super) fn tell_order(&mut self) {
        let mut before = self.writer();
        for id in self.queue() {
            let ahead = before.and_then(|id| Some((id, self.get(id)?.request.kind())));
            if let Some(job) = self.0.get(&id) {
                job.tell_place(ahead);
            }
            before = Some(id);
        }
    }

    /// It is at work from now on; the token stops it.
    pub(super) fn begin(&mut self, id: JobId) -> Option<CancellationToken> {
        self.0.get_mut(&id).map(Known::begin)
    }

    /// It has stopped because it was asked to make way, and waits again; false if it did not
    /// stop for that.
    pub(super) fn park(&mut self, id: JobId, result: &Result<Outcome, Error>) -> bool {
        let was_stopped = result.as_ref().is_err_and(Error::is_cancelled);
        let job = self.0.get_mut(&id);
        was_stopped && job.is_some_and(Known::park)
    }

    /// Its work is over, and the world is still to be told.
    pub(super) fn ending(&mut self, id: JobId) {
        if let Some(job) = self.0.get_mut(&id) {
            job.ending();
        }
    }

    /// Gives a job its final state.
    pub(super) fn finish(&mut self, id: JobId, result: &Result<Outcome, Error>) {
        if let Some(job) = self.0.get_mut(&id) {
            job.finish(result);
            job::log_end(id, &job.request, result);
        }
    }

    /// When the next ended job is to be forgotten.
    pub(super) fn next_forget(&self) -> Option<Instant> {
        let (_, (at, _)) = self.next_to_go()?;
        Some(if self.ended().count() > KEEP_AT_MOST {
            Instant::now()
        } else {
            at
        })
    }

    /// Forgets the job whose time comes first.
    pub(super) fn forget(&mut self) {
        if let Some((id, _)) = self.next_to_go() {
            self.0.remove(&id);
        }
    }

    fn ended(&self) -> impl Iterator<Item = (JobId, Instant, &Known)> {
        let ended = |(id, job): (&JobId, &'_ Known)| match job.stage {
            Stage::Ended(at) => Some((*id, at)),
            Stage::Waiting | Stage::Running(_) | Stage::Ending { .. } => None,
        };
        let jobs = self.0.iter();
        jobs.filter_map(move |(id, job)| ended((id, job)).map(|(id, at)| (id, at, job)))
    }

    /// The ended job that is to be forgotten next, and when.
    fn next_to_go(&self) -> Option<(JobId, (Instant, JobId))> {
        let times = self.ended().map(|(id, ended, job)| {
            let keep = if job.is_released() {
                KEEP_RELEASED
            } else {
                KEEP_FINISHED
            };
            (id, (ended + keep, id))
        });
        times.min_by_key(|(_, time)| *time)
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
    use crate::engine::{Caller, RunState, Terms};
    use crate::jobs::{Discardable, Pull};

    const BACKGROUND: Terms = Terms {
        queue: true,
        background: true,
        priority: 0,
        alone: None,
    };

    fn add(roster: &mut Roster, id: u64, request: Request, terms: Terms) -> JobId {
        let id = JobId(id);
        roster.add(id, Known::new(id, request, Caller::default(), terms));
        id
    }

    fn discard(what: Discardable) -> Request {
        Request::Discard {
            what: vec![what],
            dry_run: false,
        }
    }

    fn ranked(priority: i32) -> Terms {
        Terms {
            queue: true,
            background: false,
            priority,
            alone: None,
        }
    }

    #[test]
    fn what_was_undone_since_is_not_joined() {
        let mut roster = Roster::default();
        let upgrade = Request::Upgrade(Pull::default());
        let first = add(&mut roster, 1, upgrade.clone(), ranked(0));
        assert_eq!(roster.same(&upgrade, true), Some(first));
        let second = add(&mut roster, 2, discard(Discardable::Staged), ranked(0));
        assert_eq!(roster.same(&upgrade, true), None);
        let undone = discard(Discardable::Staged);
        assert_eq!(roster.same(&undone, true), Some(second));
    }

    #[test]
    fn nobody_reads_with_all_descriptors() {
        let mut roster = Roster::default();
        for id in 1..=READ_EACH_USER as u64 {
            roster.check_readers(0).unwrap();
            let id = add(&mut roster, id, Request::Check { max_age: None }, ranked(0));
            roster.begin(id).unwrap();
        }
        let refused = roster.check_readers(0).unwrap_err();
        assert!(matches!(refused, Error::LimitsExceeded(_)), "{refused:?}");
        roster.check_readers(1).unwrap();
    }

    fn state(roster: &Roster, id: JobId) -> RunState {
        roster.get(id).unwrap().view.borrow().state
    }

    #[test]
    fn a_job_that_has_not_ended_is_never_forgotten_and_too_many_ended_ones_are() {
        let mut roster = Roster::default();
        let running = add(&mut roster, 0, Request::CancelRollback, Terms::default());
        roster.begin(running);
        add(&mut roster, 100, Request::CancelRollback, Terms::default());
        assert_eq!(roster.next_forget(), None);
        for id in 1..=33 {
            let id = add(&mut roster, id, Request::CancelRollback, Terms::default());
            roster.finish(id, &Err(Error::Cancelled));
        }
        assert!(roster.next_forget().unwrap() <= Instant::now());
        roster.forget();
        assert!(roster.get(JobId(1)).is_none() && roster.get(JobId(2)).is_some());
        assert!(roster.next_forget().unwrap() > Instant::now());
        assert_eq!(roster.writer(), Some(running));
        assert_eq!(roster.queue(), [JobId(100)]);
    }

    #[test]
    fn what_all_askers_released_goes_early() {
        let mut roster = Roster::default();
        let id = add(&mut roster, 1, Request::CancelRollback, Terms::default());
        roster
            .named(id)
            .unwrap()
            .join(JobId(1), 1000, Terms::default());
        let other = add(&mut roster, 2, Request::CancelRollback, Terms::default());
        let late = |roster: &Roster| roster.next_forget().unwrap() - Instant::now();
        roster.finish(other, &Err(Error::Cancelled));
        roster.finish(id, &Err(Error::Cancelled));
        roster.named(id).unwrap().release(0).unwrap();
        assert!(late(&roster) > KEEP_RELEASED, "another asked for it, too");
        let stranger = roster.named(id).unwrap().release(7);
        assert!(matches!(stranger, Err(Error::NotYours(_))));
        roster.named(id).unwrap().release(1000).unwrap();
        assert!(late(&roster) <= KEEP_RELEASED);
        roster.forget();
        assert!(roster.get(id).is_none() && roster.get(other).is_some());
    }

    #[test]
    fn only_a_job_that_goes_on_is_joined() {
        let mut roster = Roster::default();
        let id = add(&mut roster, 1, Request::CancelRollback, Terms::default());
        assert_eq!(roster.same(&Request::CancelRollback, true), Some(id));
        assert_eq!(roster.same(&Request::CancelRollback, false), None);
        roster.begin(id);
        assert_eq!(roster.same(&Request::CancelRollback, false), Some(id));
        assert_eq!(roster.same(&Request::Check { max_age: None }, true), None);
        assert!(!roster.named(id).unwrap().cancel(1000).unwrap());
        assert_eq!(state(&roster, id), RunState::Cancelling);
        assert_eq!(roster.same(&Request::CancelRollback, true), None);
        roster.finish(id, &Err(Error::Cancelled));
        assert!(matches!(
            roster.named(id).unwrap().cancel(1000),
            Err(Error::TooLate(_))
        ));
    }

    #[test]
    fn the_queue_has_an_order_and_tells_it() {
        let mut roster = Roster::default();
        let writer = add(&mut roster, 1, Request::CancelRollback, Terms::default());
        roster.begin(writer);
        add(&mut roster, 2, discard(Discardable::Cache), BACKGROUND);
        add(&mut roster, 3, discard(Discardable::Staged), ranked(0));
        add(&mut roster, 4, discard(Discardable::Rollback), ranked(5));
        add(
            &mut roster,
            5,
            discard(Discardable::Unreferenced),
            ranked(0),
        );
        assert_eq!(roster.queue(), [4, 3, 5, 2].map(JobId));
        roster.tell_order();
        let blocked = |id| roster.get(JobId(id)).unwrap().view.borrow().blocked_by;
        assert_eq!(
            [4, 3, 5, 2].map(blocked),
            [1, 4, 3, 5].map(|id| Some(JobId(id)))
        );
        let place = roster.get(JobId(3)).unwrap().view.borrow().clone();
        assert_eq!(place.reading.message, "waiting for job 4, discard");
        let told = place.sequence;
        roster.tell_order();
        let again = roster.get(JobId(3)).unwrap().view.borrow().sequence;
        assert_eq!(again, told, "nothing new, nothing told");
        // Adopting the last one makes it one of those somebody waits for; the oldest of them.
        roster.named(JobId(2)).unwrap().adopt(0).unwrap();
        assert_eq!(roster.queue(), [4, 2, 3, 5].map(JobId));
    }

    fn add_download(roster: &mut Roster, id: u64, uid: u32) -> JobId {
        let id = JobId(id);
        let caller = Caller {
            uid,
            ..Caller::default()
        };
        let request = Request::Download(Pull::default());
        roster.add(id, Known::new(id, request, caller, ranked(0)));
        id
    }

    #[test]
    fn the_queue_is_bounded_and_nobody_takes_all_of_it() {
        let mut roster = Roster::default();
        let is_full = |roster: &Roster, uid| match roster.check_room(uid) {
            Err(Error::LimitsExceeded(text)) => Some(text),
            Err(error) => panic!("{error:?}"),
            Ok(()) => None,
        };
        for id in 0..WAIT_AT_MOST as u64 {
            let uid = (id / WAIT_EACH_USER as u64) as u32;
            assert_eq!(is_full(&roster, uid), None);
            add_download(&mut roster, id, uid);
        }
        let text = is_full(&roster, 0).unwrap();
        assert!(text.contains("16 jobs of uid 0"), "{text}");
        let text = is_full(&roster, 1000).unwrap();
        assert!(text.contains("64 jobs wait"), "{text}");
        roster.begin(JobId(0));
        assert_eq!(is_full(&roster, 0), None);
        assert_eq!(is_full(&roster, 1000), None);
        assert!(is_full(&roster, 1).is_some());
    }

    #[test]
    fn pausing_is_no_way_around_the_bound() {
        let mut roster = Roster::default();
        let running = add_download(&mut roster, 0, 7);
        let token = roster.begin(running).unwrap();
        for id in 1..=WAIT_EACH_USER as u64 {
            add_download(&mut roster, id, 7);
        }
        let refused = roster.pause(running, 0);
        assert!(
            matches!(refused, Err(Error::LimitsExceeded(_))),
            "{refused:?}"
        );
        assert!(!token.is_cancelled());
        // What waits has its place.
        roster.pause(JobId(1), 7).unwrap();
        roster.finish(JobId(2), &Err(Error::Cancelled));
        roster.pause(running, 0).unwrap();
        assert!(token.is_cancelled());
        assert!(roster.pause(JobId(99), 0).is_err());
    }

    #[test]
    fn a_background_download_makes_way_and_nothing_else_does() {
        for (request, terms, makes_way) in [
            (Request::Download(Pull::default()), BACKGROUND, true),
            (Request::Download(Pull::default()), ranked(0), false),
            (discard(Discardable::Cache), BACKGROUND, false),
        ] {
            let mut roster = Roster::default();
            let writer = add(&mut roster, 1, request, terms);
            let token = roster.begin(writer).unwrap();
            add(&mut roster, 2, discard(Discardable::Staged), BACKGROUND);
            roster.make_way();
            assert!(!token.is_cancelled(), "nobody waits for the other one");
            assert_eq!(roster.would_make_way(), makes_way);
            let urgent = add(&mut roster, 3, discard(Discardable::Rollback), ranked(0));
            assert!(!roster.would_make_way(), "another one is before");
            roster.make_way();
            assert_eq!(token.is_cancelled(), makes_way);
            assert_eq!(state(&roster, writer), RunState::Running);
            assert_eq!(roster.park(writer, &Err(Error::Cancelled)), makes_way);
            if makes_way {
                assert_eq!(state(&roster, writer), RunState::Queued);
                assert_eq!(roster.writer(), None);
                assert_eq!(roster.queue(), [urgent, writer, JobId(2)]);
            }
        }
    }
}
