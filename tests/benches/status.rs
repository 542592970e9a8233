//! How long it takes to be told the status while an upgrade runs, as a user without privileges.
//!
//! Prints and asserts nothing about time. Every number stands beside a floor that was measured
//! in the same run: what is left above it is osteward's own.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use osteward_dbus::HOST_PATH;
use osteward_dbus::options::{NoOptions, UpgradeOptions};
use osteward_tests::host::Host;
use osteward_tests::image::{Compression, Layer};
use osteward_tests::job::Listener;
use osteward_tests::peer::connect_as;
use osteward_tests::process::{binary_dir, run};
use osteward_tests::relay::Relay;
use osteward_tests::sandbox::UNPRIVILEGED_UID;
use zbus::fdo::{DBusProxy, PeerProxy, PropertiesProxy};
use zbus::names::InterfaceName;

/// Measurements of each kind.
const TIMES: usize = 50;

/// Layers of the image, each of 32 MiB.
const LAYERS: u8 = 8;

/// What comes through, so that the upgrade outlasts the measurements.
const BYTES_A_SECOND: u64 = 8 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let mut host = Host::boot()?;
    host.publish(&host.next_image("2", (0..LAYERS).map(heavy)))?;
    let mut throttle = Relay::before(&mut host)?;
    throttle.pace(BYTES_A_SECOND);
    let connection = host.connect().await?;
    let mut listener = Listener::new(&connection).await?;
    let proxy = Host::proxy(&connection).await?;
    let job = proxy.upgrade(&UpgradeOptions::default()).await?;
    listener.wait_for_phase(&job, "downloading").await?;

    println!("while an upgrade is downloaded at 8 MiB/s and written, in ms:");
    println!(
        "{:<44}{:>9}{:>9}{:>9}{:>11}",
        "", "min", "median", "max", "floors"
    );
    calls(&host).await?;
    processes(&host)?;
    let state = Host::job(&connection, &job).await?.state().await?;
    ensure!(state == "running", "the upgrade was over too early");
    throttle.resume();
    listener.end(&job).await?.succeeded()?;
    let daemon = host.daemon.as_ref().context("the daemon does not run")?;
    let peak = daemon.peak_rss_kib()?;
    println!(
        "peak memory of the daemon (VmHWM), after the upgrade: {} MiB",
        peak >> 10
    );
    Ok(())
}

fn heavy(seed: u8) -> Layer {
    let mut layer = Layer::new().dir("usr").compressed(Compression::Plain);
    for number in 0..512_u32 {
        let mut content = vec![seed; 64 << 10];
        content[..4].copy_from_slice(&number.to_le_bytes());
        layer = layer.file(&format!("usr/{seed}-{number}"), content);
    }
    layer
}

/// Prints one line; returns the median.
fn report(what: &str, mut times: Vec<Duration>, floor: Option<Duration>) -> Duration {
    times.sort_unstable();
    let median = times[times.len() / 2];
    let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1000.0);
    let (min, max) = (times[0], times[times.len() - 1]);
    let ratio = floor.map_or_else(
        || "(floor)".to_owned(),
        |floor| format!("{:.1}", median.as_secs_f64() / floor.as_secs_f64()),
    );
    println!(
        "{what:<44}{:>9}{:>9}{:>9}{ratio:>11}",
        ms(min),
        ms(median),
        ms(max)
    );
    median
}

/// Measures a call [`TIMES`] times.
async fn measure<T, E>(call: impl AsyncFn() -> std::result::Result<T, E>) -> Result<Vec<Duration>>
where
    anyhow::Error: From<E>,
{
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let begun = Instant::now();
        call().await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// Calls over a connection that is there.
async fn calls(host: &Host) -> Result<()> {
    let connection = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
    let bus = DBusProxy::new(&connection).await?;
    report(
        "GetId, answered by the bus",
        measure(async || bus.get_id().await).await?,
        None,
    );
    let peer = PeerProxy::builder(&connection)
        .destination("org.osteward1")
        .path(HOST_PATH)
        .build()
        .await?;
    let ping = measure(async || peer.ping().await).await?;
    let floor = report("Peer.Ping, answered by ostewardd", ping, None);
    let properties = PropertiesProxy::builder(&connection)
        .destination("org.osteward1")
        .path(HOST_PATH)
        .build()
        .await?;
    let interface = InterfaceName::try_from("org.osteward1.Host")?;
    let get = async || properties.get(interface.as_ref(), "UpdateState").await;
    report(
        "Properties.Get Host.UpdateState",
        measure(get).await?,
        Some(floor),
    );
    let all = async || properties.get_all(interface.as_ref()).await;
    report(
        "Properties.GetAll of Host",
        measure(all).await?,
        Some(floor),
    );
    let proxy = Host::proxy(&connection).await?;
    let status = async || proxy.status(&NoOptions {}).await;
    report("Host.Status", measure(status).await?, Some(floor));
    Ok(())
}

/// Whole programs, from start to end.
fn processes(host: &Host) -> Result<()> {
    let address = host.bus.address();
    let osteward = binary_dir()?.join("osteward");
    let as_user = |command: &mut Command| -> Result<Vec<Duration>> {
        command.uid(UNPRIVILEGED_UID).gid(UNPRIVILEGED_UID);
        (0..TIMES)
            .map(|_| {
                let begun = Instant::now();
                run(command)?;
                Ok(begun.elapsed())
            })
            .collect()
    };
    let mut busctl = Command::new("busctl");
    busctl.arg(format!("--address={address}")).args([
        "call",
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
        "GetId",
    ]);
    let floor = report(
        "the program busctl, calling GetId",
        as_user(&mut busctl)?,
        None,
    );
    let mut status = Command::new(osteward);
    status.args(["--bus", &address, "status"]);
    report(
        "the program `osteward status`",
        as_user(&mut status)?,
        Some(floor),
    );
    Ok(())
}
