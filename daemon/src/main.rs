//! `ostewardd`: the steward of an image-based Linux host, on the system bus.
//!
//! Owns the wiring and the life of the process: log, configuration, connection, parts,
//! objects, name; then idle exit or a signal, and the same in reverse. Invariant: once
//! the name is given up, what was asked before is still answered, and a job that was
//! started meanwhile keeps the process alive.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use zbus::Connection;

use ostewardd::engine::{Engine, OsRelease, Parts};
use ostewardd::observe::logind::Logind;
use ostewardd::observe::systemd::Systemd;
use ostewardd::sysroot::{self, Sysroot};
use ostewardd::{config, lifetime, report, service};

/// How long the name waits for the first look at the sysroot, so that the call that started
/// the daemon finds something. Below the 25 s that an activation may take; a look takes
/// milliseconds, unless the host is busy with its start.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// Before the end: how long a call that was under way may still become a job, and whoever was
/// told of a job may still read it.
const LAST_CALLS: Duration = Duration::from_millis(200);
/// At a shutdown: how long the bus may take to hear of the end of the jobs.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long running jobs may take to stop at a shutdown.
const STOP_JOBS: Duration = Duration::from_secs(60);

/// The steward of an image-based Linux host: pulls, stages and rolls back OCI images with
/// ostree, and answers on D-Bus as org.osteward1. Started by systemd when a client calls.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// D-Bus address to serve on instead of the system bus
    #[arg(long, value_name = "ADDRESS")]
    bus: Option<String>,
    /// Only check the configuration: print what is wrong and exit with 1, or exit with 0
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.check_config {
        return check_config();
    }
    report::start_log();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("ostewardd cannot go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check_config() -> ExitCode {
    match config::load(Path::new("/")) {
        Ok((_, warnings)) => {
            warnings
                .iter()
                .for_each(|warning| eprintln!("warning: {warning}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (config, warnings) = match config::load(Path::new("/")) {
        Ok((config, warnings)) => (Ok(config), warnings),
        Err(error) => {
            tracing::error!(%error, "the configuration cannot be used; nothing will be fetched");
            (Err(error.to_string()), Vec::new())
        }
    };
    let connection = connect(arguments.bus.as_deref()).await?;
    let sysroot = Sysroot::spawn(Path::new("/")).context("cannot start the sysroot thread")?;
    let (notices, changes) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = sysroot::watch(PathBuf::from("/"), notices).await {
            tracing::warn!(%error, "changes by other tools will not be noticed");
        }
    });
    let logind = Logind::new(connection.clone());
    let systemd = Systemd::new(connection.clone());
    // Asked once; it is there before anything else.
    if tokio::time::timeout(LAST_CALLS, systemd.version())
        .await
        .is_err()
    {
        tracing::debug!("systemd does not say its version");
    }
    let parts = Parts {
        sysroot,
        root: PathBuf::from("/"),
        config,
        warnings,
        os: os_release(),
        logind: logind.clone(),
        systemd,
        state_directory: directory("STATE_DIRECTORY", "/var/lib/osteward"),
        runtime_directory: directory("RUNTIME_DIRECTORY", "/run/osteward"),
    };
    let engine = Engine::spawn(parts, changes);
    lifetime::first_look(&engine, FIRST_LOOK).await;
    let publisher = service::serve(&connection, engine.clone(), logind)
        .await
        .context("cannot serve the objects")?;
    let mut signals = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ];
    tokio::spawn(lifetime::feed_watchdog(engine.clone()));
    tokio::spawn(report::follow(engine.clone()));
    let mut late = None;
    loop {
        connection
            .request_name(osteward_dbus::BUS_NAME)
            .await
            .context("cannot own the bus name")?;
        if late.is_none() {
            report::notify(&[sd_notify::NotifyState::Ready]).await;
        }
        let stop = serve_until_idle(&connection, &engine, &mut signals).await;
        report::notify(&[sd_notify::NotifyState::Stopping]).await;
        if stop {
            lifetime::stop_jobs(&engine, STOP_JOBS).await;
            // Under the name: who listens to the name hears nothing after it is released.
            let told = tokio::time::timeout(LAST_WORDS, publisher.last_words()).await;
            if told.is_err() {
                tracing::warn!("clients may not have heard of the end of a job");
            }
            // A reboot begins so soon after the call for it that the caller, who knows the
            // job's path and nothing else yet, would find nobody to ask.
            if engine.is_needed() {
                tokio::time::sleep(LAST_CALLS).await;
            }
        }
        connection.release_name(osteward_dbus::BUS_NAME).await?;
        if stop {
            break;
        }
        // The bus has queued everything that was meant for the name before the release
        // was answered; give it the time to become a job.
        tokio::time::sleep(LAST_CALLS).await;
        if !engine.is_needed() {
            tracing::info!("nothing to do, exiting; the next call starts the daemon again");
            break;
        }
        late.get_or_insert_with(|| tokio::spawn(lifetime::put_off_kill()));
    }
    connection
        .close()
        .await
        .context("cannot close the connection")
}

/// Returns true when a signal asks to stop, false when nobody needs the daemon.
async fn serve_until_idle(
    connection: &Connection,
    engine: &Engine,
    signals: &mut [Signal; 2],
) -> bool {
    let [terminate, interrupt] = signals;
    tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
        () = lifetime::until_idle(connection, engine) => false,
    }
}

async fn connect(address: Option<&str>) -> anyhow::Result<Connection> {
    let (builder, what) = match address {
        Some(address) => (zbus::connection::Builder::address(address), address),
        None => (zbus::connection::Builder::system(), "the system bus"),
    };
    builder
        .build()
        .await
        .with_context(|| format!("cannot connect to {what}"))
}

/// systemd tells where the unit's directories are (systemd.exec(5)).
fn directory(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| default.into(), PathBuf::from)
}

/// os-release(5): `/etc` wins over `/usr/lib`.
fn os_release() -> OsRelease {
    let text = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    OsRelease::parse(&text)
}
