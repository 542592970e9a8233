//! How fast blobs may come, over all transfers of a process together.
//!
//! Each piece that arrived takes its time on a line that all transfers share, and its reader goes on when
//! that time is over; the next piece begins where the line ends. Invariants: over more than [`CREDIT`] no more
//! comes than is allowed; what nobody waits for gets half of that; nobody is woken before it may go on.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// For how much of a time without traffic the line makes up: late wake-ups cost nothing, and a pause does not
/// turn into a burst.
const CREDIT: Duration = Duration::from_millis(100);

/// What part of the rate the background gets.
const BACKGROUND: f64 = 0.5;

/// Until when the line is taken.
#[derive(Debug, Default)]
struct Line(Option<Instant>);

impl Line {
    /// Takes the line for so long, and tells when that is over.
    fn take(&mut self, now: Instant, duration: Duration) -> Instant {
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let start = self.0.map_or(earliest, |taken| taken.max(earliest));
        // What does not fit is longer than any process lives.
        let end = start.checked_add(duration).unwrap_or(start);
        self.0 = Some(end);
        end
    }
}

#[derive(Debug, Default)]
struct Lines {
    all: Line,
    background: Line,
}

/// The lines of one process.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Lines>);

impl Throttle {
    /// Returns when so many bytes that have arrived may be passed on, at most `rate` a second; at zero at once.
    pub(super) async fn pass(&self, bytes: u64, rate: u64, background: bool) {
        if rate > 0 {
            let when = self.when(Instant::now(), bytes, rate, background);
            if when > Instant::now() {
                tokio::time::sleep_until(when).await;
            }
        }
    }

    fn when(&self, now: Instant, bytes: u64, rate: u64, background: bool) -> Instant {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = bytes as f64 / rate as f64;
        let time = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let mut when = lines.all.take(now, time(seconds));
        if background {
            let own = lines.background.take(now, time(seconds / BACKGROUND));
            when = when.max(own);
        }
        when
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1000;

    /// When the last of `pieces` of 100 bytes each may be passed on if each is read as soon as it may be.
    fn spent(throttle: &Throttle, mut now: Instant, pieces: u32, background: bool) -> Duration {
        let start = now;
        for _ in 0..pieces {
            now = now.max(throttle.when(now, 100, RATE, background));
        }
        now - start
    }

    #[test]
    fn no_more_comes_than_is_allowed_and_no_less() {
        let (throttle, start) = (Throttle::default(), Instant::now() + CREDIT);
        let whole = Duration::from_secs(10);
        assert_eq!(spent(&throttle, start, 100, false), whole - CREDIT);
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let (throttle, start) = (Throttle::default(), Instant::now() + CREDIT);
        spent(&throttle, start, 10, false);
        let later = start + Duration::from_secs(3600);
        assert_eq!(
            spent(&throttle, later, 100, false),
            Duration::from_secs(10) - CREDIT
        );
    }

    #[test]
    fn the_background_leaves_half_to_others() {
        let (throttle, start) = (Throttle::default(), Instant::now() + CREDIT);
        let alone = spent(&throttle, start, 50, true);
        assert_eq!(alone, Duration::from_secs(10) - CREDIT);
    }

    #[test]
    fn who_waits_and_the_background_get_half_each() {
        let (throttle, start) = (Throttle::default(), Instant::now() + CREDIT);
        let end = start + Duration::from_secs(20);
        // When each of the two may go on, and what it has got.
        let mut readers = [(start, 0), (start, 0)];
        while readers.iter().any(|(now, _)| *now < end) {
            let background = usize::from(readers[1].0 < readers[0].0);
            let (now, bytes) = &mut readers[background];
            *now = throttle.when(*now, 100, RATE, background == 1).max(*now);
            *bytes += 100;
        }
        for (_, bytes) in readers {
            assert!((9_500..=10_500).contains(&bytes), "{readers:?}");
        }
    }

    #[test]
    fn transfers_side_by_side_share_the_rate() {
        let (throttle, start) = (Throttle::default(), Instant::now() + CREDIT);
        let last = (0..100).map(|_| throttle.when(start, 100, RATE, false));
        let last = last.max().unwrap();
        assert_eq!(last - start, Duration::from_secs(10) - CREDIT);
    }

    #[tokio::test]
    async fn without_a_limit_nobody_waits() {
        let throttle = Throttle::default();
        throttle.pass(u64::MAX, 0, true).await;
        let start = Instant::now();
        throttle.pass(300, RATE, false).await;
        assert!(start.elapsed() >= Duration::from_millis(200));
    }
}
