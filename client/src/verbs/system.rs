//! The verbs that are about the running system: `kargs` and `diff etc`.
//!
//! Owns what "if missing" and "if present" mean: they are decided here, from what the daemon
//! says, and the daemon is told from what, so that nothing that came in between is lost.

use osteward_dbus::options::SetKernelArgumentsOptions;
use osteward_dbus::types::{DeploymentInfo, Status};
use serde_json::json;
use zbus::OwnedObjectPath;

use super::{announce, work};
use crate::args::{DiffEtcArgs, KargsArgs};
use crate::bus::Bus;
use crate::fail::{Exit, Failure};
use crate::manner::Manner;
use crate::output::outln;
use crate::request::Request;
use crate::text::plain;

/// What libostree adds to every boot entry, and nobody else changes.
const OURS: &str = "ostree=";

pub(super) async fn kargs(
    bus: &Bus,
    manner: Manner,
    args: &KargsArgs,
    reason: Option<&str>,
) -> Result<Exit, Failure> {
    let (_, status) = bus.status().await?;
    let (path, base) = base(&status).ok_or_else(|| {
        let text = "this host was not booted by ostree: it has no deployments";
        Failure::new("org.osteward1.Error.NotBooted", text)
    })?;
    let now = without_ours(base);
    if !args.changes() {
        if manner.json {
            manner.print_json(&json!({"deployment": path.as_str(), "kernel-arguments": now}));
        } else {
            outln!("{}", plain(&now.join(" ")));
        }
        return Ok(Exit::Done);
    }
    let Some(request) = request(args, &now) else {
        if manner.json {
            manner.print_json(
                &json!({"deployment": path.as_str(), "kernel-arguments": now, "changed": false}),
            );
        } else if !manner.quiet {
            outln!("Nothing to do: the kernel arguments are like that already.");
        }
        return Ok(Exit::Done);
    };
    let request = request.with_terms(&args.wait, reason);
    if args.wait.no_wait {
        announce(manner, &bus.start(&request).await?);
        return Ok(Exit::Done);
    }
    work(bus, manner, "kargs", &request).await
}

/// The deployment whose arguments are changed: what is staged, else what runs.
fn base(status: &Status) -> Option<(&OwnedObjectPath, &DeploymentInfo)> {
    let all = || status.host.deployments.iter().zip(&status.deployments);
    let booted = all().find(|(_, info)| info.booted)?;
    let staged = all().find(|(_, info)| info.staged && info.stateroot == booted.1.stateroot);
    Some(staged.unwrap_or(booted))
}

fn without_ours(info: &DeploymentInfo) -> Vec<String> {
    let all = info.kernel_arguments.iter();
    all.filter(|argument| !argument.starts_with(OURS))
        .cloned()
        .collect()
}

/// The call that makes `now` what is wanted; `None` if it is that already.
fn request(args: &KargsArgs, now: &[String]) -> Option<Request> {
    let mut append = args.append.clone();
    for argument in &args.append_if_missing {
        if !now.contains(argument) && !append.contains(argument) {
            append.push(argument.clone());
        }
    }
    let is_there = |wanted: &String| {
        now.iter().any(|argument| {
            let key = argument
                .split_once('=')
                .map_or(argument.as_str(), |(key, _)| key);
            argument == wanted || (!wanted.contains('=') && key == wanted)
        })
    };
    let mut delete = args.delete.clone();
    let present = args
        .delete_if_present
        .iter()
        .filter(|wanted| is_there(wanted));
    delete.extend(present.cloned());
    if append.is_empty() && delete.is_empty() && args.replace.is_empty() {
        return None;
    }
    let conditional = args.append_if_missing.len() + args.delete_if_present.len() > 0;
    let options = SetKernelArgumentsOptions {
        expect: conditional.then(|| now.to_vec()),
        digest: args.digest.clone(),
        ..Default::default()
    };
    Some(Request::Kargs {
        append,
        replace: args.replace.clone(),
        delete,
        options,
    })
}

pub(super) async fn diff_etc(
    bus: &Bus,
    manner: Manner,
    args: &DiffEtcArgs,
) -> Result<Exit, Failure> {
    let changes = bus.diff_etc(&args.deployment).await?;
    if manner.json {
        let changes = changes
            .iter()
            .map(|(change, path)| json!({"change": change, "path": format!("/etc/{path}")}));
        manner.print_json(&changes.collect());
    } else if changes.is_empty() && manner.stdout_terminal {
        manner.note("Nothing was changed in /etc.");
    } else {
        for (change, path) in &changes {
            outln!("{:<8}  /etc/{}", plain(change), plain(path));
        }
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use crate::sample;
    use clap::Parser as _;

    fn args(line: &[&str]) -> KargsArgs {
        let cli = Cli::try_parse_from(["osteward", "kargs"].iter().chain(line)).unwrap();
        match cli.verb {
            Verb::Kargs(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn asked(line: &[&str]) -> Option<(String, String, String, Option<String>)> {
        let now = ["root=x", "console=tty0", "console=ttyS0", "quiet"].map(str::to_owned);
        let request = request(&args(line), &now)?;
        let Request::Kargs {
            append,
            replace,
            delete,
            options,
        } = request
        else {
            panic!("{request:?}")
        };
        let expect = options.expect.map(|expect| expect.join(" "));
        Some((
            append.join(" "),
            replace.join(" "),
            delete.join(" "),
            expect,
        ))
    }

    #[test]
    fn conditions_are_decided_from_what_is_there() {
        let all = || Some("root=x console=tty0 console=ttyS0 quiet".to_owned());
        let none = String::new;
        assert!(!args(&[]).changes() && !args(&["--digest", "x"]).changes());
        assert_eq!(
            asked(&["--append", "quiet", "--replace=root=y", "--delete=a"]),
            Some(("quiet".into(), "root=y".into(), "a".into(), None))
        );
        assert_eq!(asked(&["--append-if-missing", "quiet"]), None);
        assert_eq!(asked(&["--delete-if-present=splash"]), None);
        assert_eq!(
            asked(&["--append-if-missing=splash", "--append-if-missing=splash"]),
            Some(("splash".into(), none(), none(), all()))
        );
        assert_eq!(
            asked(&[
                "--delete-if-present=console=tty0",
                "--delete-if-present=root"
            ]),
            Some((none(), none(), "console=tty0 root".into(), all()))
        );
    }

    #[test]
    fn what_is_staged_is_changed_and_else_what_runs() {
        let mut status = sample::staged();
        status.deployments[0].kernel_arguments = vec!["a".into(), "ostree=/x".into()];
        let (path, info) = base(&status).unwrap();
        assert_eq!(*path, status.host.staged_deployment);
        assert_eq!(without_ours(info), ["a"]);
        status.deployments[0].stateroot = "other".into();
        assert_eq!(*base(&status).unwrap().0, status.host.booted_deployment);
        let mut none = sample::status("idle");
        none.deployments.clear();
        assert!(base(&none).is_none());
    }
}
