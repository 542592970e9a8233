//! What each verb does, from the call to the last line.
//!
//! Owns the order of steps: listen, look, call, follow, tell. Invariant: a verb either
//! returns an exit code and has said all there is to say, or a [`Failure`] that `main`
//! prints; JSON and text for people never mix.

pub(crate) mod completion;
mod diff;
mod inhibit;
mod orders;
mod reboot;
mod system;

use std::time::{SystemTime, UNIX_EPOCH};

use osteward_dbus::JOB_PREFIX;
use osteward_dbus::types::{JobInfo, Status, from_dict};
use serde_json::{Map, Value, json};
use zbus::OwnedObjectPath;

use crate::args::{CancelArgs, Cli, DiffOf, HistoryArgs, JobsArgs, StatusArgs, Verb, WatchArgs};
use crate::attend::{Ended, OnInterrupt, attend};
use crate::bus::{Bus, Order};
use crate::fail::{Exit, Failure};
use crate::follow::{Follower, Listener, is_end, vanished};
use crate::manner::Manner;
use crate::output::{out, outln};
use crate::request::Request;
use crate::{json as dbus_json, show, summary};

const UNKNOWN_OBJECT: &str = "org.freedesktop.DBus.Error.UnknownObject";

/// Runs the verb of the command line.
pub(crate) async fn run(cli: &Cli, bus: &Bus, manner: Manner) -> Result<Exit, Failure> {
    match &cli.verb {
        Verb::Status(args) => status(bus, manner, args).await,
        Verb::Jobs(args) => jobs(bus, manner, args).await,
        Verb::Cancel(args) => cancel(bus, manner, args).await,
        Verb::Watch(args) => watch(bus, manner, args).await,
        Verb::Pause(args) => orders::pause(bus, manner, args).await,
        Verb::Resume(args) => orders::resume(bus, manner, args).await,
        Verb::Log(args) => orders::log(bus, manner, args).await,
        Verb::History(args) => history(bus, manner, args).await,
        Verb::Inhibit(args) => inhibit::inhibit(bus, manner, args).await,
        Verb::Reload => orders::reload(bus, manner).await,
        Verb::Kargs(args) => system::kargs(bus, manner, args, cli.global.reason.as_deref()).await,
        Verb::Diff(args) => match &args.of {
            Some(DiffOf::Etc(args)) => system::diff_etc(bus, manner, args).await,
            None => diff::packages(bus, manner, args).await,
        },
        verb => match Request::of(verb, cli.global.reason.as_deref()) {
            Some((request, true)) => work(bus, manner, verb.name(), &request).await,
            Some((request, false)) => {
                let path = bus.start(&request).await?;
                announce(manner, &path);
                Ok(Exit::Done)
            }
            // Every verb without a request has an arm above.
            None => Ok(Exit::Done),
        },
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|since| since.as_secs())
        .unwrap_or_default()
}

async fn status(bus: &Bus, manner: Manner, args: &StatusArgs) -> Result<Exit, Failure> {
    let (document, status) = bus.status().await?;
    if manner.json {
        manner.print_json(&Value::Object(dbus_json::object(&document)));
    } else {
        out!("{}", show::status(&status, now(), manner.look, args.full));
    }
    Ok(if args.exit_code {
        show::exit_code(&status)
    } else {
        Exit::Done
    })
}

async fn jobs(bus: &Bus, manner: Manner, args: &JobsArgs) -> Result<Exit, Failure> {
    let (document, mut status) = bus.status().await?;
    if manner.json {
        let mut jobs = document
            .get("jobs")
            .map_or_else(|| json!([]), |jobs| dbus_json::value(jobs));
        if args.active
            && let Some(jobs) = jobs.as_array_mut()
        {
            jobs.retain(|job| job["state"].as_str().is_none_or(|state| !is_end(state)));
        }
        manner.print_json(&jobs);
    } else {
        status
            .jobs
            .retain(|(_, job)| !args.active || !is_end(&job.state));
        out!("{}", show::jobs(&status.jobs, now(), manner.look));
    }
    Ok(Exit::Done)
}

async fn history(bus: &Bus, manner: Manner, args: &HistoryArgs) -> Result<Exit, Failure> {
    let entries = bus.history(args.lines).await?;
    if manner.json {
        let entries = entries
            .iter()
            .map(|entry| Value::Object(dbus_json::object(entry)));
        manner.print_json(&json!(entries.collect::<Vec<_>>()));
    } else {
        let entries = entries.iter().map(from_dict);
        let entries = entries.collect::<zbus::Result<Vec<_>>>()?;
        out!("{}", show::history::history(&entries, manner.look));
    }
    Ok(Exit::Done)
}

/// Starts a job and stays until it ends.
async fn work(bus: &Bus, manner: Manner, verb: &str, request: &Request) -> Result<Exit, Failure> {
    let mut listener = Listener::subscribe(&bus.connection).await?;
    // Only for the summary; if it fails, so will the call, and say why.
    let before = bus.status().await.ok().map(|(_, status)| status);
    // What is said before the reply is about the past: the job is read afterwards.
    let path = listener.meanwhile(bus.start(request)).await.0?;
    let mut follower = match listener.follow(path.clone()).await {
        Err(lost) if reboot::ends_in_it(bus, request, &lost).await => {
            return Ok(reboot::say(manner, &path, None));
        }
        read => read?,
    };
    let mut display = manner.display();
    let on_interrupt = if manner.attended {
        OnInterrupt::Ask
    } else {
        OnInterrupt::Leave
    };
    let ended = match attend(bus, &mut follower, &mut display, on_interrupt).await {
        Err(lost) if reboot::ends_in_it(bus, request, &lost).await => {
            return Ok(reboot::say(manner, &path, Some(follower.info())));
        }
        ended => ended?,
    };
    match ended {
        Ended::Left => Ok(left(manner, &follower)),
        Ended::Rebooting => rebooting(bus, manner, &follower).await,
        Ended::Finished => {
            let after = bus.status().await.ok().map(|(_, status)| status);
            let told = Told {
                before: before.as_ref(),
                after: after.as_ref(),
                request: Some(request),
            };
            tell(manner, verb, &follower, told)?;
            Ok(match (verb, &after) {
                ("check", Some(after)) => show::exit_code(after),
                ("simulate", _) => summary::simulated_exit(follower.info()),
                _ => Exit::Done,
            })
        }
    }
}

async fn cancel(bus: &Bus, manner: Manner, args: &CancelArgs) -> Result<Exit, Failure> {
    let mut listener = Listener::subscribe(&bus.connection).await?;
    let path = match &args.job {
        Some(job) => job_path(job)?,
        None => running(&bus.status().await?.1).ok_or_else(|| {
            Failure::new(
                UNKNOWN_OBJECT,
                "no job is running: there is nothing to cancel",
            )
        })?,
    };
    listener.meanwhile(bus.tell(&path, Order::Cancel)).await.0?;
    if args.no_wait {
        announce(manner, &path);
        return Ok(Exit::Done);
    }
    let mut follower = listener.follow(path).await?;
    let mut display = manner.display();
    match attend(bus, &mut follower, &mut display, OnInterrupt::Leave).await? {
        Ended::Left => return Ok(left(manner, &follower)),
        Ended::Rebooting => return rebooting(bus, manner, &follower).await,
        Ended::Finished => {}
    }
    tell_cancelled(manner, &follower)
}

/// Says whether the job was cancelled, or was faster, or failed for a reason of its own.
fn tell_cancelled(manner: Manner, follower: &Follower) -> Result<Exit, Failure> {
    let info = follower.info();
    if info.state != "cancelled" {
        let failure = Failure::of_job(&info.state, &info.error).unwrap_or_else(|| {
            let text = "the job ended before it could be cancelled";
            Failure::new("org.osteward1.Error.TooLate", text)
        });
        print_end(manner, "cancel", follower, None, Some(&failure));
        return Err(Failure {
            told: true,
            ..failure
        });
    }
    print_end(manner, "cancel", follower, None, None);
    if !manner.json && !manner.quiet {
        outln!(
            "Cancelled the {}. What was downloaded is kept.",
            crate::text::plain(&info.kind)
        );
    }
    Ok(Exit::Done)
}

async fn watch(bus: &Bus, manner: Manner, args: &WatchArgs) -> Result<Exit, Failure> {
    let mut follower = match &args.job {
        Some(job) => {
            Listener::subscribe(&bus.connection)
                .await?
                .follow(job_path(job)?)
                .await?
        }
        None => match running_or_next(bus, manner).await? {
            Some(follower) => follower,
            None => return Ok(Exit::Interrupted),
        },
    };
    if args.adopt {
        let path = follower.path().clone();
        follower.meanwhile(bus.tell(&path, Order::Adopt)).await?;
    }
    if args.events {
        let path = follower.path().clone();
        // Nobody reads what it hears while the events are read.
        drop(follower);
        return orders::events(bus, &path).await;
    }
    let mut display = manner.display();
    match attend(bus, &mut follower, &mut display, OnInterrupt::Leave).await? {
        Ended::Left => Ok(left(manner, &follower)),
        Ended::Rebooting => rebooting(bus, manner, &follower).await,
        Ended::Finished => {
            let after = bus.status().await.ok().map(|(_, status)| status);
            tell(
                manner,
                "watch",
                &follower,
                Told {
                    before: None,
                    after: after.as_ref(),
                    request: None,
                },
            )?;
            Ok(Exit::Done)
        }
    }
}

/// The job that runs, else the next one that anybody starts; `None` after Ctrl-C.
async fn running_or_next(bus: &Bus, manner: Manner) -> Result<Option<Follower>, Failure> {
    let mut listener = Listener::subscribe(&bus.connection).await?;
    let (read, _) = listener.meanwhile(bus.status()).await;
    let mut path = running(&read?.1);
    if path.is_none() {
        manner.note("No job is running; waiting for the next one.");
    }
    loop {
        let path = match path.take() {
            Some(path) => path,
            None => tokio::select! {
                path = listener.any_job() => path?,
                _ = tokio::signal::ctrl_c() => return Ok(None),
            },
        };
        match listener.follow(path).await {
            // Forgotten in the meantime, or somebody else pretended that there was one.
            Err(gone) if gone.name == UNKNOWN_OBJECT => {
                listener = Listener::subscribe(&bus.connection).await?;
            }
            result => return result.map(Some),
        }
    }
}

/// The job that runs; of several the one that changes the host.
fn running(status: &Status) -> Option<OwnedObjectPath> {
    let running = |writes: bool| {
        let runs = |job: &JobInfo| {
            matches!(job.state.as_str(), "running" | "cancelling")
                && ["check", "simulate"].contains(&job.kind.as_str()) != writes
        };
        status
            .jobs
            .iter()
            .find(|(_, job)| runs(job))
            .map(|(path, _)| path.clone())
    };
    running(true).or_else(|| running(false))
}

/// A job as a person names it: its number or its object path.
fn job_path(job: &str) -> Result<OwnedObjectPath, Failure> {
    let path = if job.starts_with('/') {
        job.to_owned()
    } else {
        format!("{JOB_PREFIX}/{job}")
    };
    OwnedObjectPath::try_from(path).map_err(|_| {
        let text = format!("'{job}' is neither the number of a job nor an object path");
        Failure::new("org.freedesktop.DBus.Error.InvalidArgs", text)
    })
}

/// `--no-wait`: where to find the job.
fn announce(manner: Manner, path: &OwnedObjectPath) {
    if manner.json {
        manner.print_json(&json!({"job": path.as_str()}));
    } else {
        outln!("{path}");
    }
}

fn left(manner: Manner, follower: &Follower) -> Exit {
    let number = follower.path().rsplit('/').next().unwrap_or_default();
    if manner.json {
        outln!(
            "{}",
            crate::json::line(&json!({"event": "left", "job": follower.path().as_str()}))
        );
    }
    manner.note(&format!(
        "Job {number} goes on: `osteward watch {number}` follows it, `osteward cancel {number}` stops it."
    ));
    Exit::Interrupted
}

/// A daemon that went away when all was ready for the reboot may have crashed.
async fn rebooting(bus: &Bus, manner: Manner, follower: &Follower) -> Result<Exit, Failure> {
    if reboot::is_down(bus).await {
        Ok(reboot::say(manner, follower.path(), Some(follower.info())))
    } else {
        Err(vanished())
    }
}

/// What is known around a job that ended.
#[derive(Debug, Clone, Copy)]
struct Told<'a> {
    before: Option<&'a Status>,
    after: Option<&'a Status>,
    request: Option<&'a Request>,
}

/// Says how the job ended; the failure of the job is the failure of the verb.
fn tell(manner: Manner, verb: &str, follower: &Follower, told: Told<'_>) -> Result<(), Failure> {
    let info = follower.info();
    let failure = Failure::of_job(&info.state, &info.error);
    print_end(manner, verb, follower, told.after, failure.as_ref());
    if let Some(failure) = failure {
        return Err(Failure {
            told: true,
            ..failure
        });
    }
    if !manner.json && !manner.quiet {
        let dry = matches!(told.request, Some(Request::Discard(_, options)) if options.dry_run == Some(true));
        for line in summary::lines(info, told.before, told.after, dry) {
            outln!("{line}");
        }
    }
    Ok(())
}

fn print_end(
    manner: Manner,
    verb: &str,
    follower: &Follower,
    after: Option<&Status>,
    failure: Option<&Failure>,
) {
    if manner.json {
        let update = after.filter(|_| follower.info().kind == "check");
        outln!(
            "{}",
            crate::json::line(&end_event(
                follower.path().as_str(),
                follower.info(),
                update,
                failure,
                verb
            ))
        );
    }
}

/// The last JSON line of a job. A check also has the `update` that is known now, or null.
fn end_event(
    path: &str,
    info: &JobInfo,
    checked: Option<&Status>,
    failure: Option<&Failure>,
    verb: &str,
) -> Value {
    let mut event = json!({
        "event": "finished",
        "job": path,
        "kind": info.kind,
        "state": info.state,
        "error": failure.map(|failure| failure.to_json(verb)),
        "result": dbus_json::object(&info.result),
    });
    if let Some(status) = checked {
        let record = status
            .update
            .as_ref()
            .and_then(|update| osteward_dbus::types::to_dict(update).ok());
        event["update"] = record.map_or(Value::Null, |record| {
            Value::Object(Map::from_iter(dbus_json::object(&record)))
        });
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn jobs_are_named_by_number_or_path() {
        assert_eq!(job_path("7").unwrap().as_str(), "/org/osteward1/job/7");
        assert_eq!(
            job_path("/org/osteward1/job/7").unwrap().as_str(),
            "/org/osteward1/job/7"
        );
        for wrong in ["a b", "/org/", "7/", ""] {
            assert_eq!(
                job_path(wrong).unwrap_err().name,
                "org.freedesktop.DBus.Error.InvalidArgs"
            );
        }
    }

    #[test]
    fn the_job_that_writes_goes_first() {
        let mut status = sample::status("idle");
        assert_eq!(running(&status), None);
        status.jobs.push((
            sample::path("/org/osteward1/job/1"),
            sample::job("upgrade", "succeeded"),
        ));
        status.jobs.push((
            sample::path("/org/osteward1/job/2"),
            sample::job("check", "running"),
        ));
        assert_eq!(running(&status), Some(sample::path("/org/osteward1/job/2")));
        status.jobs.push((
            sample::path("/org/osteward1/job/3"),
            sample::job("upgrade", "cancelling"),
        ));
        assert_eq!(running(&status), Some(sample::path("/org/osteward1/job/3")));
    }

    #[test]
    fn the_last_line_of_a_job() {
        let mut info = sample::job("check", "succeeded");
        info.result.insert("changed".into(), true.into());
        let status = sample::status("available");
        let event = end_event("/org/osteward1/job/7", &info, Some(&status), None, "check");
        assert_eq!(event["event"], "finished");
        assert_eq!(event["error"], Value::Null);
        assert_eq!(event["result"]["changed"], true);
        assert_eq!(event["update"]["version"], "43");
        let busy = Failure::new("org.osteward1.Error.Busy", "busy");
        let event = end_event("/org/osteward1/job/7", &info, None, Some(&busy), "check");
        assert_eq!(event["error"]["name"], "org.osteward1.Error.Busy");
        assert_eq!(event.get("update"), None);
    }
}
