//! What a job has said: the last lines, and what happens now for those who listen.
//!
//! Owns the lines of `Job.GetLog` and the events of `Job.StreamEvents`. Invariant: saying
//! something never waits, neither for readers nor for listeners; who listens too slowly
//! misses events, and is told how many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast;

/// How many lines are kept.
const LINES: usize = 200;
/// How many events a listener may be behind.
const BEHIND: usize = 64;

/// Something that happened in a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A phase began, by its name in `Job.Phase`.
    Phase(&'static str),
    /// A line for people.
    Message(String),
    /// A layer is being fetched.
    LayerStarted {
        /// The digest of the blob.
        digest: String,
        /// Its compressed size in bytes.
        size: u64,
    },
    /// A layer is written.
    LayerDone {
        /// The digest of the blob.
        digest: String,
    },
}

/// The log of one job; cheap to clone.
#[derive(Debug, Clone)]
pub struct Log {
    lines: Arc<Mutex<VecDeque<String>>>,
    events: broadcast::Sender<Event>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            lines: Arc::default(),
            events: broadcast::Sender::new(BEHIND),
        }
    }
}

impl Log {
    /// Keeps a line, with the time before it, and tells listeners.
    pub fn line(&self, text: &str) {
        let time = humantime::format_rfc3339_seconds(SystemTime::now());
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(format!("{time} {text}"));
        drop(lines);
        self.event(|| Event::Message(text.to_owned()));
    }

    /// Tells listeners, if there are any.
    pub fn event(&self, event: impl FnOnce() -> Event) {
        if self.events.receiver_count() > 0 {
            // The last listener may have left just now.
            let _ = self.events.send(event());
        }
    }

    /// The last lines, the oldest first.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }

    /// Hears everything that happens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.events.receiver_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_with_their_time() {
        let log = Log::default();
        for number in 0..LINES + 3 {
            log.line(&format!("line {number}"));
        }
        let lines = log.lines();
        assert_eq!(lines.len(), LINES);
        assert!(lines[0].ends_with("Z line 3"), "{}", lines[0]);
        assert!(lines[LINES - 1].ends_with(" line 202"));
    }

    #[test]
    fn a_slow_listener_misses_events_and_hears_how_many() {
        let log = Log::default();
        log.line("before anybody listened");
        let mut listener = log.listen();
        for number in 0..BEHIND + 10 {
            log.line(&number.to_string());
        }
        let missed = listener.try_recv();
        assert!(
            matches!(missed, Err(broadcast::error::TryRecvError::Lagged(10))),
            "{missed:?}"
        );
        assert_eq!(listener.try_recv(), Ok(Event::Message("10".into())));
    }
}
