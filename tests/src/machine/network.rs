//! Where machines live: a network, mounts and control groups that are the harness's own.
//!
//! Owns the addresses. Invariants: nothing of it is seen outside, and all of it goes with the
//! harness's last process, because the kernel takes empty namespaces down.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::bootable::{self, Bootable, REGISTRY};
use crate::process::{command, require_root, run};
use crate::registry::Registry;

/// The network's bridge, with the harness at [`HOST`].
pub(super) const BRIDGE: &str = "br0";

/// The harness, as machines see it.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// Where control groups of version 2 are mounted.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// Names the network that we started in, so that we notice having left it.
const OUTSIDE: &str = "OSTEWARD_TESTS_OUTSIDE";

/// Makes the rest of the program run in namespaces of its own, by starting it again there: what
/// `main` did before this, it does twice, and nothing of the first time is left.
///
/// # Errors
/// When not root, or the host has no `unshare`, `ip` or version 2 of control groups.
pub fn enter() -> Result<()> {
    require_root()?;
    let here = fs::read_link("/proc/self/ns/net").context("looking for the network namespace")?;
    if env::var_os(OUTSIDE).is_some_and(|outside| outside != here.as_os_str()) {
        return furnish();
    }
    let unshare = ["unshare", "--net", "--mount", "--propagation", "private"];
    let error = command(unshare)
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(OUTSIDE, here)
        .stdin(std::process::Stdio::inherit())
        .exec();
    bail!("starting again in other namespaces: {error}")
}

fn furnish() -> Result<()> {
    // What hosts have there may be version 1, or read-only in a container; and a container's
    // /dev misses the loop devices to come.
    const MOUNTS: &str = r#"
        set -eu
        if [ "$(findmnt -n -o FSTYPE "$1" | tail -n 1)" = cgroup2 ]; then
            mount -o remount,bind,rw "$1"
        else
            mount -t cgroup2 cgroup2 "$1"
        fi
        if [ "$(findmnt -n -o FSTYPE /dev | tail -n 1)" != devtmpfs ]; then
            mount -t devtmpfs devtmpfs /dev
            mkdir -p /dev/pts /dev/shm
            mount -t devpts devpts /dev/pts
            mount -t tmpfs tmpfs /dev/shm
        fi"#;
    run(&mut command(["sh", "-c", MOUNTS, "furnish", CGROUPS]))?;
    let host = format!("{HOST}/24");
    ip(["link", "set", "lo", "up"])?;
    // A bridge without an address of its own takes that of one of its ports, and another one
    // when that port goes: machines would lose sight of us for as long as they remember it.
    let bridge = ["link", "add", BRIDGE, "address", "02:00:0a:00:02:02"];
    ip(bridge.into_iter().chain(["type", "bridge"]))?;
    ip(["address", "add", &host, "dev", BRIDGE])?;
    ip(["link", "set", BRIDGE, "up"])
}

fn ip<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<()> {
    run(command(["ip"]).args(words)).map(drop)
}

/// An address that no other machine of this process has, unless it has had more than 200, and a
/// name made of it.
pub(super) fn next_address() -> (Ipv4Addr, String) {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let number = 16 + NEXT.fetch_add(1, Ordering::Relaxed) % 200;
    let [a, b, c, _] = HOST.octets();
    (Ipv4Addr::new(a, b, c, number), format!("m{number}"))
}

/// A network interface for a machine that is a process here; goes when dropped.
#[derive(Debug)]
pub(crate) struct Tap {
    name: String,
}

impl Tap {
    /// Makes the interface and joins it to the network.
    ///
    /// # Errors
    /// When there is one of that name.
    pub(crate) fn new(name: String) -> Result<Self> {
        ip(["tuntap", "add", "dev", &name, "mode", "tap"])?;
        let tap = Self { name };
        ip(["link", "set", &tap.name, "master", BRIDGE, "up"])?;
        Ok(tap)
    }

    /// Its name: at most 15 characters.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(error) = ip(["link", "delete", &self.name]) {
            eprintln!("left behind: {}: {error:#}", self.name);
        }
    }
}

/// Starts the registry that machines reach as [`REGISTRY`], with all images of `bootables`.
///
/// # Errors
/// As [`Registry::start`].
pub fn serve(bootables: &[&Bootable]) -> Result<Registry> {
    let port = REGISTRY
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok());
    let port: u16 = port.context("the registry has no port")?;
    // On all addresses, because QEMU's guests come in over loopback, and the others do not.
    let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    Registry::start_with(listen, REGISTRY, |data| bootable::stock(data, bootables))
}
