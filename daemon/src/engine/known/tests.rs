//! What a job may be told at each step of its life.

use super::*;
use crate::engine::RunState;
use crate::jobs::Pull;

fn download() -> Known {
    let request = Request::Download(Pull::default());
    Known::new(JobId(1), request, Caller::default(), Terms::default())
}

fn shown(job: &Known) -> (RunState, bool) {
    let view = job.view.borrow();
    (view.state, view.paused)
}

#[test]
fn a_paused_download_waits_until_it_is_resumed() {
    let mut job = download();
    let token = job.begin();
    job.progress.enter(Phase::Downloading, "fetching");
    job.pause(1000).unwrap();
    assert!(token.is_cancelled());
    assert_eq!(
        shown(&job),
        (RunState::Running, true),
        "it is still stopping"
    );
    assert!(job.holds_slot());
    assert!(job.park());
    assert_eq!(shown(&job), (RunState::Queued, true));
    assert!(!job.awaits_its_turn() && !job.holds_slot());
    assert_eq!(job.view.borrow().reading.message, "paused");
    job.pause(1000).unwrap();
    job.resume(1000).unwrap();
    assert!(job.awaits_its_turn());
    let begun = job.view.borrow().started_at;
    assert!(!job.begin().is_cancelled());
    assert_eq!(job.view.borrow().started_at, begun, "it began once");
    let lines = job.progress.log().lines().join("\n");
    for word in ["paused by uid 1000", "resumed by uid 1000"] {
        assert_eq!(lines.matches(word).count(), 1, "{lines}");
    }
}

#[test]
fn whoever_cancels_wins_over_whoever_pauses() {
    let mut job = download();
    job.begin();
    job.pause(1).unwrap();
    assert!(!job.cancel(1).unwrap());
    assert!(matches!(job.pause(1), Err(Error::TooLate(_))));
    job.resume(1).unwrap();
    assert!(!job.park(), "it does not begin anew");
    assert_eq!(shown(&job).0, RunState::Cancelling);
    let mut waiting = download();
    assert!(waiting.cancel(1).unwrap(), "over at once");
}

#[test]
fn resuming_before_it_stopped_is_in_time() {
    let mut job = download();
    job.begin();
    job.pause(1).unwrap();
    job.resume(1).unwrap();
    assert!(job.park() && job.awaits_its_turn());
}

#[test]
fn only_downloads_are_interrupted() {
    let mut other = Known::new(
        JobId(1),
        Request::CancelRollback,
        Caller::default(),
        Terms::default(),
    );
    other.begin();
    assert!(matches!(other.pause(1), Err(Error::NotSupported(_))));
    let mut job = download();
    job.terms.background = true;
    job.begin();
    job.progress.enter(Phase::Merging, "composing");
    assert!(matches!(job.pause(1), Err(Error::TooLate(_))));
    assert!(!job.would_make_way());
    job.ending();
    assert!(job.holds_slot(), "until everybody was told");
    assert!(matches!(job.resume(1), Err(Error::TooLate(_))));
    assert!(matches!(job.adopt(1), Err(Error::TooLate(_))));
    assert!(matches!(job.cancel(1), Err(Error::TooLate(_))));
}

#[test]
fn joining_adopts_and_resumes() {
    let mut job = download();
    job.terms.background = true;
    job.view.send_modify(|view| view.background = true);
    job.pause(1).unwrap();
    let higher = Terms {
        priority: 3,
        background: true,
        queue: true,
        alone: None,
    };
    job.join(JobId(1), 2, higher);
    assert!(!job.awaits_its_turn() && job.terms.background);
    job.join(JobId(1), 2, Terms::default());
    assert!(job.awaits_its_turn());
    assert_eq!(
        (
            job.terms.background,
            job.terms.priority,
            job.view.borrow().background
        ),
        (false, 3, false)
    );
}
