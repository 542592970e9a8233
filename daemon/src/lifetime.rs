//! How long the daemon stays: idle exit, watchdog, orderly end of the jobs.
//!
//! Owns what counts as being needed: a job that waits, runs or can still be read, a call that
//! waits for its authorisation, an inhibitor, or a message within the idle time. Invariant:
//! the watchdog is only fed while the engine answers.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use zbus::{Connection, MessageStream, message};

use crate::engine::{Engine, Look, Order};

/// The daemon itself, as one who cancels.
const OWN_UID: u32 = 0;
/// How much time is asked for at once when the end is put off.
const EXTENSION: Duration = Duration::from_secs(120);

/// Waits until the deployments were looked at once, whatever came out, or for `patience`.
pub async fn first_look(engine: &Engine, patience: Duration) {
    let mut status = engine.watch();
    let looked = status.wait_for(|status| !matches!(status.look, Look::NotYet));
    if tokio::time::timeout(patience, looked).await.is_err() {
        tracing::warn!("the sysroot is slow to read; the status is unknown until it is");
    }
}

/// Returns when there has been no job, no inhibitor and no call for the configured time;
/// never while that is zero.
pub async fn until_idle(connection: &Connection, engine: &Engine) {
    let mut messages = MessageStream::from(connection);
    let mut status = engine.watch();
    let later = || {
        let timeout = engine.status().idle_timeout;
        (!timeout.is_zero()).then(|| Instant::now() + timeout)
    };
    let mut deadline = later();
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(Ok(message)) if message.message_type() == message::Type::MethodCall => {
                    deadline = later();
                }
                Some(_) => {}
                // The bus is gone, and with it everybody who could call.
                None => return,
            },
            changed = status.changed() => match changed {
                Ok(()) => deadline = later(),
                Err(_) => return,
            },
            () = sleep_until(deadline) => {
                if !engine.is_needed() {
                    return;
                }
                deadline = later();
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
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

/// For a job that came when systemd had been told of the end already: it takes nothing back, and
/// kills what does not end in time (`TimeoutStopSec=`), unless that is put off again and again.
pub async fn put_off_kill() {
    let room = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
    let mut ticks = tokio::time::interval(EXTENSION / 2);
    loop {
        ticks.tick().await;
        crate::report::notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(room)]).await;
    }
}

/// Cancels what waits and what runs, and waits until it has ended, so that transactions are
/// closed.
pub async fn stop_jobs(engine: &Engine, patience: Duration) {
    let mut jobs: Vec<_> = engine
        .status()
        .jobs
        .iter()
        .filter(|(_, view)| !view.borrow().state.is_final())
        .map(|(id, view)| (*id, view.clone()))
        .collect();
    // Those that wait go first: they would begin when those before them end.
    jobs.sort_by_key(|(_, view)| view.borrow().is_at_work());
    let ended = async {
        for (id, _) in &jobs {
            if let Err(error) = engine.tell(*id, Order::Cancel, OWN_UID).await {
                tracing::info!(%error, "a job is left to end by itself");
            }
        }
        for (_, mut view) in jobs {
            // An error means that the engine has forgotten it, which is an end too.
            let _ = view.wait_for(|view| view.state.is_final()).await;
        }
    };
    if tokio::time::timeout(patience, ended).await.is_err() {
        tracing::warn!("a job did not stop in time; what it wrote is found again by the next one");
    }
}
