//! What the daemon tells systemd and the journal about itself.
//!
//! Owns the log's destination (journal fields under systemd, readable lines on a
//! terminal) and `sd_notify(3)` messages. Invariant: a report that cannot be delivered
//! never stops the work.

use std::io::IsTerminal;

use sd_notify::NotifyState;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::engine::Engine;

/// Starts logging. `OSTEWARD_LOG` filters as `RUST_LOG` does elsewhere; default: info.
pub fn start_log() {
    let filter = EnvFilter::try_from_env("OSTEWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let journal = libsystemd::logging::connected_to_journal().then(tracing_journald::layer);
    if let Some(Ok(journal)) = journal {
        // Fields keep their names: OSTEWARD_JOB=, OSTEWARD_ERROR=, …
        registry.with(journal.with_field_prefix(None)).init();
    } else {
        let lines = tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        registry.with(lines).init();
    }
}

/// Tells systemd, if it listens.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Mirrors what the daemon is doing in `systemctl status`.
pub async fn follow(engine: Engine) {
    let mut status = engine.watch();
    let mut told = String::new();
    loop {
        let job = {
            let status = status.borrow_and_update();
            let running = status
                .jobs
                .iter()
                .find(|(_, view)| !view.borrow().state.is_final());
            running.map(|(_, view)| view.clone())
        };
        let line = match &job {
            None => "idle".to_owned(),
            Some(view) => {
                let view = view.borrow();
                let phase = view.reading.phase.map_or("starting", |phase| phase.name());
                format!("{}: {phase}", view.kind)
            }
        };
        if line != told {
            notify(&[NotifyState::Status(&line)]);
            told = line;
        }
        let job_changed = async {
            match job {
                Some(mut view) => view.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            _ = job_changed => {}
        }
    }
}
