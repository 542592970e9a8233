//! `inhibit`: a command that runs while the daemon is kept from something.
//!
//! Owns the life of the command. Invariants: the inhibitor is held before the command
//! starts and until it has ended, also when the daemon ends earlier and is started again; what the terminal sends (Ctrl-C) is for the command, and
//! this process ends after it, with its exit code.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;

use futures_util::StreamExt as _;
use osteward_dbus::types::{InhibitorInfo, from_dict};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;
use zbus::fdo::DBusProxy;

use crate::args::InhibitArgs;
use crate::attend::Interrupts;
use crate::bus::Bus;
use crate::fail::{Exit, Failure};
use crate::manner::Manner;
use crate::output::out;
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
    let who = args.who.as_deref().unwrap_or(program);
    let inhibit = || bus.inhibit(who, &args.why, args.what.word());
    let bus_driver = DBusProxy::new(&bus.connection).await?;
    let mut owners = bus_driver
        .receive_name_owner_changed_with_args(&[(0, osteward_dbus::BUS_NAME)])
        .await?;
    let mut held = Held::new(inhibit().await?)?;
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
            () = held.ended() => held = again(inhibit().await, program, manner),
            Some(change) = owners.next() => {
                let there = change.args().is_ok_and(|change| change.new_owner().is_some());
                if there && held.is_lost() {
                    held = again(inhibit().await, program, manner);
                }
            }
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

/// What became of holding it again. If that failed, the command goes on without: it matters more
/// than what it is protected from.
fn again(held: Result<OwnedFd, Failure>, program: &str, manner: Manner) -> Held {
    held.and_then(Held::new).unwrap_or_else(|failure| {
        manner.note(&format!(
            "The daemon went away, and {program} is not protected until it is back: {}",
            failure.render("inhibit", false)
        ));
        Held(None)
    })
}

/// An inhibitor, for as long as the daemon that gave it lives.
struct Held(Option<Receiver>);

impl Held {
    fn new(held: OwnedFd) -> Result<Self, Failure> {
        Receiver::from_owned_fd(held)
            .map(Some)
            .map(Self)
            .map_err(|error| {
                Failure::new(
                    "org.freedesktop.DBus.Error.IOError",
                    format!("the inhibitor cannot be watched: {error}"),
                )
            })
    }

    fn is_lost(&self) -> bool {
        self.0.is_none()
    }

    /// Returns when the daemon has ended, or was killed: nothing is ever sent, so only the end of
    /// the file can be read. Safe to drop and call again.
    async fn ended(&mut self) {
        let Some(held) = &mut self.0 else {
            return std::future::pending().await;
        };
        let mut nothing = [0; 1];
        // An error is no better than an end.
        let _ = held.read(&mut nothing).await;
    }
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
        out!(
            "{}",
            show::history::inhibitors(&list, super::now(), manner.look)
        );
    }
    Ok(Exit::Done)
}
