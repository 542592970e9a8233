//! How fast a source is: what a request takes, and how fast bytes come.
//!
//! Pure but for the clock that callers hand in. Invariant: what is told is measured, or the default until
//! enough was seen to tell.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes after which the rate is believed.
const ENOUGH: u64 = 1 << 20;

/// Time at work after which what was seen earlier counts half.
const MEMORY: Duration = Duration::from_secs(4);

/// Part of a slower answer that is believed; a faster one is believed at once, because what makes answers
/// slow, such as a new connection, passes.
const SLOWER: u32 = 8;

/// What a round trip takes and how fast bytes come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// From a request to the beginning of its answer.
    pub round_trip: Duration,
    /// Over all transfers together.
    pub bytes_per_second: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            round_trip: Duration::from_millis(50),
            bytes_per_second: 10e6,
        }
    }
}

impl Pace {
    /// That of files on this host.
    pub(super) const HERE: Pace = Pace {
        round_trip: Duration::from_micros(100),
        bytes_per_second: 1e9,
    };
}

#[derive(Debug, Default)]
struct Seen {
    round_trip: Option<Duration>,
    /// Transfers that are open.
    open: usize,
    /// Until when `busy` is counted, while any is open.
    counted: Option<Instant>,
    /// Time in which at least one was open.
    busy: Duration,
    bytes: u64,
}

/// Measures the pace of one host over all its transfers.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Seen>);

impl Meter {
    /// A request was answered after this long.
    pub(super) fn answered(&self, after: Duration) {
        let mut seen = self.seen();
        seen.round_trip = Some(match seen.round_trip {
            Some(known) if after > known => known + (after - known) / SLOWER,
            _ => after,
        });
    }

    /// A transfer begins.
    pub(super) fn opened(&self, now: Instant) {
        let mut seen = self.seen();
        if seen.open == 0 {
            seen.counted = Some(now);
        }
        seen.open += 1;
    }

    /// Bytes arrived.
    pub(super) fn arrived(&self, now: Instant, bytes: u64) {
        let mut seen = self.seen();
        seen.bytes += bytes;
        seen.count(now);
    }

    /// A transfer is over.
    pub(super) fn closed(&self, now: Instant) {
        let mut seen = self.seen();
        seen.count(now);
        seen.open = seen.open.saturating_sub(1);
    }

    pub(super) fn pace(&self) -> Pace {
        let (seen, default) = (self.seen(), Pace::default());
        let seconds = seen.busy.as_secs_f64();
        Pace {
            round_trip: seen.round_trip.unwrap_or(default.round_trip),
            bytes_per_second: match seen.bytes {
                bytes if bytes >= ENOUGH && seconds > 0.0 => bytes as f64 / seconds,
                _ => default.bytes_per_second,
            },
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn count(&mut self, now: Instant) {
        if let Some(counted) = self.counted.replace(now) {
            self.busy += now.saturating_duration_since(counted);
        }
        if self.busy >= MEMORY && self.bytes >= 2 * ENOUGH {
            self.busy /= 2;
            self.bytes /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_before_it_is_known() {
        let (meter, start) = (Meter::default(), Instant::now());
        assert_eq!(meter.pace(), Pace::default());
        meter.opened(start);
        meter.arrived(start + Duration::from_secs(1), ENOUGH - 1);
        assert_eq!(meter.pace(), Pace::default());
        meter.arrived(start + Duration::from_secs(2), 1);
        assert_eq!(meter.pace().bytes_per_second, ENOUGH as f64 / 2.0);
    }

    #[test]
    fn a_new_connection_does_not_count_as_distance_for_long() {
        let meter = Meter::default();
        let (slow, fast) = (Duration::from_millis(90), Duration::from_millis(10));
        meter.answered(slow);
        assert_eq!(meter.pace().round_trip, slow);
        meter.answered(fast);
        assert_eq!(meter.pace().round_trip, fast);
        meter.answered(slow);
        assert_eq!(meter.pace().round_trip, Duration::from_millis(20));
    }

    #[test]
    fn transfers_side_by_side_add_up_and_pauses_between_them_do_not_count() {
        let (meter, start) = (Meter::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        meter.opened(at(0));
        meter.opened(at(0));
        meter.arrived(at(1), ENOUGH / 2);
        meter.arrived(at(1), ENOUGH / 2);
        meter.closed(at(1));
        meter.closed(at(1));
        assert_eq!(meter.pace().bytes_per_second, ENOUGH as f64);
        meter.opened(at(100));
        meter.arrived(at(101), ENOUGH);
        assert_eq!(meter.pace().bytes_per_second, ENOUGH as f64);
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let (meter, start) = (Meter::default(), Instant::now());
        meter.opened(start);
        for second in 1..=60 {
            let bytes = if second <= 30 { ENOUGH } else { 8 * ENOUGH };
            meter.arrived(start + Duration::from_secs(second), bytes);
        }
        let rate = meter.pace().bytes_per_second / ENOUGH as f64;
        assert!((7.0..=8.0).contains(&rate), "{rate}");
    }
}
