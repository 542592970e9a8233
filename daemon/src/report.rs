//! What the daemon tells systemd and the journal about itself.
//!
//! Owns the log's destination (journal fields under systemd, readable lines on a
//! terminal) and `sd_notify(3)` messages. Invariant: a report that cannot be delivered
//! never stops the work, and no thread waits for systemd to read.

use std::io::{self, IsTerminal};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

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

/// How long a message waits for room in the queue of a systemd that is busy.
const ROOM: Duration = Duration::from_secs(5);

/// Tells systemd, if it listens. The crate's own function would block: the queue of a
/// datagram socket is short, and systemd does not read it while it reloads.
pub async fn notify(states: &[NotifyState<'_>]) {
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    let sent = async {
        match listener()? {
            Some(socket) => socket.send(text.as_bytes()).await.map(drop),
            None => Ok(()),
        }
    };
    let sent = tokio::time::timeout(ROOM, sent).await;
    if let Err(error) = sent.map_err(io::Error::from).flatten() {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// A socket towards `$NOTIFY_SOCKET` (sd_notify(3)), which is a path or an abstract name.
fn listener() -> io::Result<Option<tokio::net::UnixDatagram>> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(None);
    };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    tokio::net::UnixDatagram::from_std(socket).map(Some)
}

/// Mirrors what the daemon is doing in `systemctl status`.
pub async fn follow(engine: Engine) {
    let mut status = engine.watch();
    let mut told = String::new();
    loop {
        let mut job = {
            let status = status.borrow_and_update();
            let running = status
                .jobs
                .iter()
                .find(|(_, view)| view.borrow().is_at_work());
            running.map(|(_, view)| view.clone())
        };
        let line = match &mut job {
            None => "idle".to_owned(),
            Some(view) => {
                // Marks it as seen: a clone is as far behind as what it was made from, and
                // would report the same change for ever.
                let view = view.borrow_and_update();
                let phase = view.reading.phase.map_or("starting", |phase| phase.name());
                format!("{}: {phase}", view.kind)
            }
        };
        if line != told {
            notify(&[NotifyState::Status(&line)]).await;
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
