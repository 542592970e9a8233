//! How fast the line is: bytes a second, and the time that a request takes.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Line, PATIENCE, Relay};

/// How often a paced relay lets some bytes pass.
const TICK: Duration = Duration::from_millis(20);

impl Line {
    /// Takes the time that a request is on its way; the first one of a connection has to wait for
    /// that as well. This is a distance, so nothing happens meanwhile that could be waited for.
    pub(super) fn let_travel(&self, request: &[u8], is_new: bool) {
        let mut state = self.lock();
        state.carried += request.len() as u64;
        let delay = state.delay;
        drop(state);
        if !delay.is_zero() {
            std::thread::sleep(if is_new { delay * 2 } else { delay });
        }
    }
}

impl Relay {
    /// Lets so many bytes a second pass, until [`Relay::resume`].
    pub fn pace(&mut self, bytes_a_second: u64) {
        self.hold();
        let line = Arc::clone(&self.line);
        let portion = bytes_a_second * u64::from(TICK.subsec_millis()) / 1000;
        self.pacing = Some(std::thread::spawn(move || {
            loop {
                std::thread::sleep(TICK);
                let mut state = line.lock();
                if state.over {
                    return;
                }
                let Some(left) = &mut state.allowance else {
                    return;
                };
                // What nobody fetched is not saved up.
                *left = (*left + portion).min(2 * portion);
                drop(state);
                line.changed.notify_all();
            }
        }));
    }

    /// Breaks each connection as soon as so many bytes have passed on it towards the client, until
    /// [`Relay::resume`].
    pub fn cut_each_after(&self, bytes: u64) {
        self.line.set(|state| state.each = Some(bytes));
    }

    /// How many connections broke by that so far.
    pub fn cuts(&self) -> usize {
        self.line.lock().cuts
    }

    /// Makes the way there and back that much longer, for requests and for new connections.
    pub fn delay(&self, round_trip: Duration) {
        self.line.set(|state| state.delay = round_trip);
    }

    /// Bytes that have passed so far, both ways.
    pub fn carried(&self) -> u64 {
        self.line.lock().carried
    }

    /// Waits until as many bytes have passed as [`Relay::allow`] lets, and more are there.
    ///
    /// # Errors
    /// When that is not so within two minutes.
    pub fn wait_until_held(&self) -> Result<()> {
        let state = self.line.lock();
        let (_state, waited) = self
            .line
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !state.is_held)
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(!waited.timed_out(), "nothing was held within {PATIENCE:?}");
        Ok(())
    }
}
