//! Asking again: what for, how long to wait before it, and when to give up.
//!
//! Invariants: only what [`Error::is_retryable`] says is asked for again; a request that was told when to
//! come back is not made earlier (others to the same registry find out for themselves); every wait is
//! announced when it begins and over as soon as its future is dropped; a row of failures without
//! progress ends after the configured time.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Error;

/// How failures that may pass are waited out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Wait after the first failure; it doubles with each further one.
    pub first: Duration,
    /// Longest of these waits. One that the registry asks for may be longer.
    pub longest: Duration,
    /// How long after the first failure of a row the last wait may end. Zero: nothing is tried again.
    pub give_up: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(30),
            give_up: Duration::from_secs(120),
        }
    }
}

impl Backoff {
    /// The wait after so many failures in a row, somewhere between the half and the whole of what the
    /// number asks for: `chance`, 0 to 1, keeps many hosts from coming back in the same moment.
    fn delay(&self, failures: u32, chance: f64) -> Duration {
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
        let whole = self.first.saturating_mul(doubled).min(self.longest);
        whole.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }
}

/// What whoever follows a transfer should know; `Display` is a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A request failed and is made again after a while.
    Waiting {
        /// What failed.
        reason: String,
        /// How long it is waited.
        delay: Duration,
    },
    /// A request that had failed succeeded.
    Recovered {
        /// The registry.
        host: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Waiting { reason, delay } => {
                let seconds = delay.as_secs_f64().ceil().max(1.0);
                write!(f, "{reason}; trying again in {seconds} s")
            }
            Notice::Recovered { host } => write!(f, "{host} answers again"),
        }
    }
}

type Hear = dyn Fn(&Notice) + Send + Sync;

/// Is told of every [`Notice`]; must not block.
#[derive(Clone, Default)]
pub struct Listener(Option<Arc<Hear>>);

impl Listener {
    /// A listener that calls `hear`.
    pub fn new(hear: impl Fn(&Notice) + Send + Sync + 'static) -> Listener {
        Listener(Some(Arc::new(hear)))
    }

    fn tell(&self, notice: Notice) {
        if let Some(hear) = &self.0 {
            hear(&notice);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// What is left of the patience with one request.
#[derive(Debug)]
pub(super) struct Patience {
    backoff: Backoff,
    listener: Listener,
    failures: u32,
    /// When the first failure of the present row was.
    since: Option<Instant>,
}

impl Patience {
    pub(super) fn new(backoff: Backoff, listener: Listener) -> Patience {
        Patience {
            backoff,
            listener,
            failures: 0,
            since: None,
        }
    }

    /// Waits until the request that failed may be made again.
    ///
    /// # Errors
    /// The failure itself when it is not worth another try, or when patience is at its end.
    pub(super) async fn wait(&mut self, failure: Error) -> Result<(), Error> {
        if !failure.is_retryable() {
            return Err(failure);
        }
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        self.failures = self.failures.saturating_add(1);
        let own = self.backoff.delay(self.failures, fastrand::f64());
        let delay = own.max(failure.retry_after().unwrap_or_default());
        if now.duration_since(since).saturating_add(delay) > self.backoff.give_up {
            return Err(failure);
        }
        self.listener.tell(Notice::Waiting {
            reason: failure.symptom(),
            delay,
        });
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// The request made progress: the next failure is the first of a new row.
    pub(super) fn progressed(&mut self, host: &str) {
        self.since = None;
        if std::mem::take(&mut self.failures) > 0 {
            self.listener.tell(Notice::Recovered {
                host: host.to_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn refused() -> Error {
        Error::Unreachable {
            host: "registry.example".into(),
            reason: "refused".into(),
        }
    }

    fn busy(retry_after: Duration) -> Error {
        Error::Unavailable {
            host: "registry.example".into(),
            reason: "busy".into(),
            retry_after: Some(retry_after),
        }
    }

    fn patience(give_up: Duration) -> (Patience, Arc<Mutex<Vec<Notice>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let backoff = Backoff {
            first: Duration::from_millis(2),
            longest: Duration::from_millis(8),
            give_up,
        };
        let sink = heard.clone();
        let listener = Listener::new(move |notice| sink.lock().unwrap().push(notice.clone()));
        (Patience::new(backoff, listener), heard)
    }

    #[test]
    fn waits_double_up_to_the_longest_and_chance_shortens_them_by_half_at_most() {
        let backoff = Backoff::default();
        for (failures, least, most) in [(1, 500, 1000), (2, 1000, 2000), (5, 8000, 16_000)] {
            assert_eq!(backoff.delay(failures, 0.0).as_millis(), least);
            assert_eq!(backoff.delay(failures, 1.0).as_millis(), most);
        }
        for failures in [6, 40, u32::MAX] {
            assert_eq!(backoff.delay(failures, 1.0), backoff.longest);
        }
    }

    #[tokio::test]
    async fn only_what_may_pass_is_waited_for() {
        let (mut patience, heard) = patience(Duration::from_secs(60));
        let missing = Error::NotFound { what: "it".into() };
        assert!(patience.wait(missing).await.is_err());
        assert!(heard.lock().unwrap().is_empty());
        assert!(patience.wait(refused()).await.is_ok());
        patience.progressed("registry.example");
        patience.progressed("registry.example");
        let heard = heard.lock().unwrap();
        let [Notice::Waiting { reason, delay }, Notice::Recovered { .. }] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert!(reason.contains("refused"), "{reason}");
        assert!((1..=2).contains(&delay.as_millis()), "{delay:?}");
        let text = heard[0].to_string();
        let expected = "registry.example cannot be reached: refused; trying again in 1 s";
        assert_eq!(text, expected);
    }

    #[tokio::test]
    async fn the_registry_says_how_long_but_not_for_ever() {
        let (mut patience, heard) = patience(Duration::from_secs(60));
        let wanted = Duration::from_millis(30);
        let start = Instant::now();
        assert!(patience.wait(busy(wanted)).await.is_ok());
        assert!(start.elapsed() >= wanted);
        for too_long in [Duration::from_secs(61), Duration::MAX] {
            let error = patience.wait(busy(too_long)).await.unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        }
        assert_eq!(heard.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn patience_ends_and_progress_renews_it() {
        let (mut patience, _) = patience(Duration::from_millis(40));
        let start = Instant::now();
        while patience.wait(refused()).await.is_ok() {
            assert!(start.elapsed() < Duration::from_secs(30));
        }
        patience.progressed("registry.example");
        assert!(patience.wait(refused()).await.is_ok());
        let (mut none, _) = self::patience(Duration::ZERO);
        assert!(none.wait(refused()).await.is_err());
    }

    #[tokio::test]
    async fn a_wait_that_nobody_wants_any_more_is_over_at_once() {
        let (mut patience, heard) = patience(Duration::from_secs(3600));
        let long = busy(Duration::from_secs(3000));
        let start = Instant::now();
        tokio::select! {
            biased;
            _ = patience.wait(long) => panic!("it cannot be over"),
            () = std::future::ready(()) => {}
        }
        assert!(start.elapsed() < Duration::from_secs(60));
        assert_eq!(heard.lock().unwrap().len(), 1);
    }
}
