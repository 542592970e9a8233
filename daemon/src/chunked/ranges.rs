//! Which ranges of a blob to ask for, when only parts of it are wanted. Pure.
//!
//! A request costs a round trip, in which bytes could have come: a gap that takes less time than that is
//! cheaper to fetch than to leave out.

use std::time::Duration;

/// Smallest gap that is worth a request: what a request and its answer take in headers, and more.
const MIN_GAP: u64 = 4 * 1024;
/// Largest gap that is fetched, however slow the round trips are: bytes may cost money.
const MAX_GAP: u64 = 1024 * 1024;
/// The gap when nothing was measured.
const DEFAULT_GAP: u64 = 64 * 1024;

/// The ranges `(from, to)` of a blob that cover all `wanted` ones, sorted, without overlaps.
///
/// Wanted parts at most `gap` bytes apart come in one range. Empty and inverted parts are not wanted.
pub fn plan(wanted: &[(u64, u64)], gap: u64) -> Vec<(u64, u64)> {
    let mut wanted: Vec<(u64, u64)> = wanted
        .iter()
        .copied()
        .filter(|(from, to)| from < to)
        .collect();
    wanted.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (from, to) in wanted {
        match ranges.last_mut() {
            Some(last) if from.saturating_sub(last.1) <= gap => last.1 = last.1.max(to),
            _ => ranges.push((from, to)),
        }
    }
    ranges
}

/// The longest gap that is cheaper to fetch than to leave out.
///
/// `round_trip` and `bytes_per_second` are as measured, the latter of all `connections` together; with several
/// of them the others go on while one waits, so a round trip costs only its share.
pub fn gap(round_trip: Duration, bytes_per_second: f64, connections: usize) -> u64 {
    let cost = round_trip.as_secs_f64() * bytes_per_second / connections.max(1) as f64;
    if !cost.is_finite() || cost <= 0.0 {
        return DEFAULT_GAP;
    }
    // In range after the clamp, so nothing is lost but the fraction.
    cost.clamp(MIN_GAP as f64, MAX_GAP as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks all that the planner promises; gives the ranges back.
    fn planned(wanted: &[(u64, u64)], gap: u64) -> Vec<(u64, u64)> {
        let ranges = plan(wanted, gap);
        let shown = format!("{wanted:?} gap {gap} gave {ranges:?}");
        for (from, to) in &ranges {
            assert!(from < to, "{shown}");
        }
        for pair in ranges.windows(2) {
            assert!(pair[0].1 + gap < pair[1].0, "{shown}");
        }
        let is_wanted = |byte: u64| wanted.iter().any(|(from, to)| (*from..*to).contains(&byte));
        let end = wanted.iter().map(|(_, to)| *to).max().unwrap_or(0);
        let mut unwanted = 0;
        for byte in 0..=end + 1 {
            let is_planned = ranges.iter().any(|(from, to)| (*from..*to).contains(&byte));
            assert!(is_planned || !is_wanted(byte), "{byte} of {shown}");
            unwanted = if is_planned && !is_wanted(byte) {
                unwanted + 1
            } else {
                0
            };
            assert!(unwanted <= gap, "{shown}");
        }
        let is_covered = |byte: u64| is_wanted(byte);
        for (from, to) in &ranges {
            assert!(is_covered(*from) && is_covered(to - 1), "{shown}");
        }
        ranges
    }

    #[test]
    fn what_was_planned() {
        let wanted = [(10, 20), (24, 30), (100, 101)];
        for (gap, expected) in [
            (0, vec![(10, 20), (24, 30), (100, 101)]),
            (3, vec![(10, 20), (24, 30), (100, 101)]),
            (4, vec![(10, 30), (100, 101)]),
            (69, vec![(10, 30), (100, 101)]),
            (70, vec![(10, 101)]),
        ] {
            assert_eq!(planned(&wanted, gap), expected, "{gap}");
        }
        assert!(plan(&[], 1).is_empty() && plan(&[(5, 5), (9, 3)], 1).is_empty());
        assert_eq!(plan(&[(0, u64::MAX)], u64::MAX), [(0, u64::MAX)]);
        let all = [(0, u64::MAX - 1), (u64::MAX - 1, u64::MAX)];
        assert_eq!(plan(&all, 0), [(0, u64::MAX)]);
    }

    #[test]
    fn overlapping_and_unsorted_wishes_are_one() {
        assert_eq!(planned(&[(6, 9), (0, 5), (3, 7), (3, 4)], 0), [(0, 9)]);
        assert_eq!(planned(&[(0, 9), (2, 3)], 0), [(0, 9)]);
    }

    #[test]
    fn any_wish_is_planned_well() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..3000 {
            let wish = |random: &mut fastrand::Rng| {
                let from = random.u64(0..300);
                (from, from + random.u64(0..40))
            };
            let count = random.usize(0..12);
            let wanted: Vec<_> = (0..count).map(|_| wish(&mut random)).collect();
            planned(&wanted, random.u64(0..60));
        }
    }

    #[test]
    fn every_small_wish_is_planned_well() {
        for bits in 0..1u32 << 10 {
            let bytes = (0..10u64).filter(|byte| bits & (1 << byte) != 0);
            let wanted: Vec<_> = bytes.map(|byte| (byte, byte + 1)).collect();
            for gap in [0, 1, 2, 3, 10] {
                planned(&wanted, gap);
            }
        }
    }

    #[test]
    fn the_gap_is_what_a_round_trip_costs() {
        let ms = Duration::from_millis;
        for (round_trip, speed, connections, expected) in [
            (ms(50), 10e6, 8, 62_500),
            (ms(50), 10e6, 1, 500_000),
            (ms(1), 1e6, 8, MIN_GAP),
            (ms(500), 100e6, 4, MAX_GAP),
            (ms(0), 10e6, 8, DEFAULT_GAP),
            (ms(50), f64::NAN, 8, DEFAULT_GAP),
            (ms(50), f64::INFINITY, 8, DEFAULT_GAP),
            (ms(50), -1.0, 8, DEFAULT_GAP),
            (ms(50), 10e6, 0, 500_000),
        ] {
            assert_eq!(gap(round_trip, speed, connections), expected);
        }
    }
}
