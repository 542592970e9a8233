//! How long the daemon stays: idle exit, watchdog, orderly end of the jobs.
//!
//! Owns what counts as being needed: a job that runs or can still be read, a call that
//! waits for its authorisation, or a message within the idle time. Invariant: the watchdog
//! is only fed while the engine answers.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use zbus::{Connection, MessageStream, message};

use crate::engine::{Engine, Look};

/// Waits until the deployments were looked at once, whatever came out, or for `patience`.
pub async fn first_look(engine: &Engine, patience: Duration) {
    let mut status = engine.watch();
    let looked = status.wait_for(|status| !matches!(status.look, Look::NotYet));
    if tokio::time::timeout(patience, looked).await.is_err() {
        tracing::warn!("the sysroot is slow to read; the status is unknown until it is");
    }
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
                if !engine.is_needed() {
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
            crate::report::notify(&[sd_notify::NotifyState::Watchdog]).await;
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
