//! How long the daemon stays: idle exit, watchdog, orderly end of the jobs.
//!
//! Owns what counts as being needed: a job that runs or can still be read, or a message
//! within the idle time. Invariant: the watchdog is only fed while the engine answers.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use zbus::{Connection, MessageStream, message};

use crate::engine::Engine;

/// Whether there are jobs, running or still readable.
pub fn has_jobs(engine: &Engine) -> bool {
    !engine.status().jobs.is_empty()
}

/// Returns when there has been no job and no call for `timeout`; never if it is zero.
pub async fn until_idle(connection: &Connection, engine: &Engine, timeout: Duration) {
    if timeout.is_zero() {
        return std::future::pending().await;
    }
    let mut messages = MessageStream::from(connection);
    let mut status = engine.watch();
    let mut deadline = Instant::now() + timeout;
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(Ok(message)) if message.message_type() == message::Type::MethodCall => {
                    deadline = Instant::now() + timeout;
                }
                Some(_) => {}
                // The bus is gone, and with it everybody who could call.
                None => return,
            },
            changed = status.changed() => match changed {
                Ok(()) => deadline = Instant::now() + timeout,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(deadline) => {
                if !has_jobs(engine) {
                    return;
                }
                deadline = Instant::now() + timeout;
            }
        }
    }
}

/// Feeds systemd's watchdog at half its interval as long as the engine answers.
pub async fn feed_watchdog(engine: Engine) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        ticks.tick().await;
        if engine.answers().await {
            crate::report::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// Cancels what runs and waits until it has ended, so that transactions are closed.
pub async fn stop_jobs(engine: &Engine, patience: Duration) {
    let running: Vec<_> = engine
        .status()
        .jobs
        .iter()
        .filter(|(_, view)| !view.borrow().state.is_final())
        .map(|(id, view)| (*id, view.clone()))
        .collect();
    let ended = async {
        for (id, mut view) in running {
            if let Err(error) = engine.cancel(id).await {
                tracing::info!(%error, "a job is left to end by itself");
            }
            // An error means that the engine has forgotten it, which is an end too.
            let _ = view.wait_for(|view| view.state.is_final()).await;
        }
    };
    if tokio::time::timeout(patience, ended).await.is_err() {
        tracing::warn!("a job did not stop in time; what it wrote is found again by the next one");
    }
}
