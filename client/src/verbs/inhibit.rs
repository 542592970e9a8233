//! `inhibit`: a command that runs while the daemon is kept from something.
//!
//! Owns the life of the command. Invariants: the inhibitor is held before the command
//! starts and until it has ended; what the terminal sends (Ctrl-C) is for the command, and
//! this process ends after it, with its exit code.

use std::os::unix::process::ExitStatusExt as _;

use osteward_dbus::types::{InhibitorInfo, from_dict};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::args::InhibitArgs;
use crate::attend::Interrupts;
use crate::bus::Bus;
use crate::fail::{Exit, Failure};
use crate::manner::Manner;
use crate::{json as dbus_json, show};

/// What shells end with when a command is not found, or cannot be run.
const NOT_FOUND: u8 = 127;
const CANNOT_RUN: u8 = 126;

pub(super) async fn inhibit(
    bus: &Bus,
    manner: Manner,
    args: &InhibitArgs,
) -> Result<Exit, Failure> {
    // Without a command it is the list that is wanted: the command line sees to that.
    let Some((program, arguments)) = args.command.split_first() else {
        return list(bus, manner).await;
    };
    let _held = bus
        .inhibit(
            args.who.as_deref().unwrap_or(program),
            &args.why,
            args.what.word(),
        )
        .await?;
    let mut interrupts = Interrupts::take()?;
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("osteward: {program}: {error}");
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(Exit::OfCommand(if missing {
                NOT_FOUND
            } else {
                CANNOT_RUN
            }));
        }
    };
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended,
            () = interrupts.next() => {}
        }
    };
    let status = ended.map_err(|error| {
        Failure::new(
            "org.freedesktop.DBus.Error.IOError",
            format!("{program} cannot be waited for: {error}"),
        )
    })?;
    // As shells have it for a command that a signal ended.
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(Exit::OfCommand(u8::try_from(code).unwrap_or(u8::MAX)))
}

async fn list(bus: &Bus, manner: Manner) -> Result<Exit, Failure> {
    let records = bus.inhibitors().await?;
    if manner.json {
        let list = records
            .iter()
            .map(|one| Value::Object(dbus_json::object(one)));
        manner.print_json(&json!(list.collect::<Vec<_>>()));
    } else {
        let list = records.iter().map(from_dict::<InhibitorInfo>);
        let list = list.collect::<zbus::Result<Vec<_>>>()?;
        print!(
            "{}",
            show::history::inhibitors(&list, super::now(), manner.look)
        );
    }
    Ok(Exit::Done)
}
