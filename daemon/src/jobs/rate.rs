//! How fast bytes come in.

use std::time::Instant;

/// Bytes a second, smoothed over the publications.
#[derive(Debug, Default)]
pub struct Rate {
    last: Option<(Instant, u64)>,
    smoothed: f64,
}

impl Rate {
    /// The rate after `bytes` have been received at `now`.
    pub fn update(&mut self, now: Instant, bytes: u64) -> u64 {
        if let Some((before, had)) = self.last {
            let seconds = now.duration_since(before).as_secs_f64();
            if seconds > 0.0 {
                let current = bytes.saturating_sub(had) as f64 / seconds;
                // Half-life of about a second at five updates a second.
                let weight = 1.0 - 0.5f64.powf(seconds);
                self.smoothed += (current - self.smoothed) * weight;
            }
        }
        self.last = Some((now, bytes));
        self.smoothed as u64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_rate_follows_the_bytes() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let mut seen = 0;
        for second in 0..10 {
            seen = rate.update(start + Duration::from_secs(second), second * 1000);
        }
        assert!((900..=1000).contains(&seen), "{seen}");
    }
}
