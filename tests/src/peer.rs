//! Connections to the bus as other users, and users' rights on it.
//!
//! Invariant: the process stays root; only a thread that lives for one `connect(2)` is
//! somebody else, which is when the kernel notes who the peer is.

use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use zbus::Connection;

use crate::bus::Bus;

/// A new connection of the user `uid`, whose group has the same number.
///
/// # Errors
/// When the bus is gone or refuses the user.
pub async fn connect_as(bus: &Bus, uid: u32) -> Result<Connection> {
    let address = bus.address();
    let path = address
        .strip_prefix("unix:path=")
        .context("not a socket with a path")?
        .to_owned();
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    let connecting = std::thread::spawn(move || -> std::io::Result<UnixStream> {
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        UnixStream::connect(path)
    });
    let stream = connecting
        .join()
        .map_err(|_| anyhow!("the connecting thread panicked"))??;
    zbus::connection::Builder::unix_stream(stream)
        .user_id(uid)
        .build()
        .await
        .with_context(|| format!("connecting to the private bus as uid {uid}"))
}
