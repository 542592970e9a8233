//! The verbs that tell a job or the daemon something, and those that read what a job says.
//!
//! Owns which job is meant when none is named: the one that the word fits.

use osteward_dbus::types::{JobInfo, Status};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe::Receiver;
use zbus::OwnedObjectPath;

use super::{UNKNOWN_OBJECT, job_path, running};
use crate::args::JobArgs;
use crate::attend::Interrupts;
use crate::bus::{Bus, Order};
use crate::fail::{DISCONNECTED, Exit, Failure};
use crate::follow::is_end;
use crate::manner::Manner;
use crate::output::outln;

fn none(text: &str) -> Failure {
    Failure::new(UNKNOWN_OBJECT, text)
}

/// The job that is named, else the one that `choose` takes out of the status.
async fn meant(
    bus: &Bus,
    args: &JobArgs,
    choose: impl FnOnce(&Status) -> Option<OwnedObjectPath>,
    otherwise: &str,
) -> Result<OwnedObjectPath, Failure> {
    match &args.job {
        Some(job) => job_path(job),
        None => choose(&bus.status().await?.1).ok_or_else(|| none(otherwise)),
    }
}

fn first(status: &Status, fits: impl Fn(&JobInfo) -> bool) -> Option<OwnedObjectPath> {
    let mut jobs = status.jobs.iter();
    let found = jobs.find(|(_, job)| fits(job));
    found.map(|(path, _)| path.clone())
}

fn done(manner: Manner, path: &OwnedObjectPath, text: &str) -> Exit {
    if manner.json {
        manner.print_json(&json!({"job": path.as_str()}));
    } else if !manner.quiet {
        let number = path.rsplit('/').next().unwrap_or_default();
        outln!("{}", text.replace("{}", number));
    }
    Exit::Done
}

pub(super) async fn pause(bus: &Bus, manner: Manner, args: &JobArgs) -> Result<Exit, Failure> {
    let path = meant(
        bus,
        args,
        running,
        "no job is running: there is nothing to pause",
    )
    .await?;
    bus.tell(&path, Order::Pause).await?;
    Ok(done(
        manner,
        &path,
        "Job {} is paused. `osteward resume {}` lets it go on.",
    ))
}

pub(super) async fn resume(bus: &Bus, manner: Manner, args: &JobArgs) -> Result<Exit, Failure> {
    let paused = |status: &Status| first(status, |job| job.paused && !is_end(&job.state));
    let path = meant(
        bus,
        args,
        paused,
        "no job is paused: there is nothing to resume",
    )
    .await?;
    bus.tell(&path, Order::Resume).await?;
    Ok(done(
        manner,
        &path,
        "Job {} goes on when it is its turn. `osteward watch {}` follows it.",
    ))
}

pub(super) async fn log(bus: &Bus, manner: Manner, args: &JobArgs) -> Result<Exit, Failure> {
    let last = |status: &Status| {
        let last = status.jobs.last().map(|(path, _)| path.clone());
        running(status).or(last)
    };
    let path = meant(bus, args, last, "no job is known: there is nothing to show").await?;
    let lines = bus.log(&path).await?;
    if manner.json {
        manner.print_json(&json!(lines));
    } else {
        lines
            .iter()
            .for_each(|line| outln!("{}", crate::text::plain(line)));
    }
    Ok(Exit::Done)
}

pub(super) async fn reload(bus: &Bus, manner: Manner) -> Result<Exit, Failure> {
    bus.reload().await?;
    if manner.json {
        manner.print_json(&json!({"reloaded": true}));
    } else if !manner.quiet {
        outln!("The configuration was read again.");
    }
    Ok(Exit::Done)
}

/// Passes the events of a job on, until it ends or Ctrl-C.
pub(super) async fn events(bus: &Bus, path: &OwnedObjectPath) -> Result<Exit, Failure> {
    let broken = |error: std::io::Error| {
        Failure::new(DISCONNECTED, format!("the stream of events broke: {error}"))
    };
    let mut interrupts = Interrupts::take()?;
    let pipe = Receiver::from_owned_fd(bus.events(path).await?).map_err(broken)?;
    let mut lines = BufReader::new(pipe).lines();
    let mut state = None;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line.map_err(broken)?,
            () = interrupts.next() => return Ok(Exit::Interrupted),
        };
        let Some(line) = line else { break };
        outln!("{}", crate::json::harmless(&line));
        let event: Option<Value> = serde_json::from_str(&line).ok();
        state = event.filter(|event| event["event"] == "finished").or(state);
    }
    match state {
        Some(end) if end["state"] == "succeeded" => Ok(Exit::Done),
        Some(_) => Ok(Exit::Failed),
        None => Err(crate::follow::vanished()),
    }
}
