//! How long calls took that no job and no lock may hold up.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long each call took, by what was called.
#[derive(Debug, Default)]
pub struct Waits(Mutex<BTreeMap<&'static str, Vec<Duration>>>);

impl Waits {
    /// Waits for the answer to a call, and notes how long.
    pub async fn of<T>(&self, what: &'static str, call: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let answer = call.await;
        let took = asked.elapsed();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(what).or_default().push(took);
        answer
    }

    fn sorted(&self) -> BTreeMap<&'static str, Vec<Duration>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values_mut().for_each(|times| times.sort());
        all.clone()
    }

    /// Fails unless half of the calls were answered within `median`, and all within `longest`.
    ///
    /// # Errors
    /// With what was slower, and when nothing was called.
    pub fn check(&self, median: Duration, longest: Duration) -> Result<()> {
        let mut all: Vec<Duration> = self.sorted().into_values().flatten().collect();
        all.sort();
        let last = all.last().context("nobody read anything")?;
        let middle = all[all.len() / 2];
        ensure!(middle < median, "half of the reads took {middle:?}: {self}");
        ensure!(*last < longest, "a read took {last:?}: {self}");
        Ok(())
    }
}

/// Count, median and maximum of each.
impl Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (what, times)) in self.sorted().into_iter().enumerate() {
            let (middle, last) = (times[times.len() / 2], times[times.len() - 1]);
            let comma = if at == 0 { "" } else { "; " };
            let count = times.len();
            write!(
                f,
                "{comma}{what} {count} times, median {middle:.1?}, slowest {last:.1?}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_slow_call_is_found_among_quick_ones() {
        let waits = Waits::default();
        let second = Duration::from_secs(1);
        assert!(waits.check(second, second).is_err(), "nothing was called");
        for _ in 0..3 {
            assert_eq!(waits.of("quick", async { 7 }).await, 7);
        }
        waits.check(second, second).unwrap();
        let pause = Duration::from_millis(20);
        waits.of("slow", tokio::time::sleep(pause)).await;
        waits.check(second, second).unwrap();
        let error = waits.check(second, pause).unwrap_err().to_string();
        assert!(
            error.contains("slow 1 times") && error.contains("quick 3 times"),
            "{error}"
        );
        assert!(waits.check(Duration::ZERO, second).is_err());
    }
}
