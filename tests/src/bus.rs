//! A message bus like the system's, for one sandbox.
//!
//! Real `dbus-daemon`, our real policy file, EXTERNAL authentication. It runs among the host's
//! processes, so the process ids it names are the host's. With it, if wanted, a real polkitd
//! that sees our actions and the rules a test adds, or a logind that only takes notes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;

use crate::process::{Tethered, command, workspace};
use crate::sandbox::Sandbox;

/// Longer than polkitd takes to start on the busiest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The name of the real authority.
pub const POLKIT: &str = "org.freedesktop.PolicyKit1";

/// A running private bus.
#[derive(Debug)]
pub struct Bus {
    /// Ends the bus with this handle.
    _process: Tethered,
    socket: PathBuf,
}

impl Bus {
    /// Starts the bus of `sandbox`, with a socket that has one path inside and outside.
    ///
    /// # Errors
    /// When `dbus-daemon` is not installed, or refuses the configuration, which holds our policy.
    pub fn start(sandbox: &Sandbox) -> Result<Self> {
        Self::start_in(sandbox.meet())
    }

    /// Starts a bus whose files are in `dir`.
    ///
    /// # Errors
    /// As [`Bus::start`].
    pub fn start_in(dir: &Path) -> Result<Self> {
        let socket = dir.join("bus");
        let config = dir.join("bus.conf");
        fs::write(&config, configuration(&socket))?;
        let log = dir.join("bus.log");
        let arguments = [
            "dbus-daemon",
            "--nofork",
            "--nopidfile",
            "--nosyslog",
            "--print-address",
        ];
        let config_file = format!("--config-file={}", config.display());
        let mut process = Tethered::start(command(arguments).arg(config_file), &log)?;
        // The address is printed once the bus listens.
        let address = process.next_line()?;
        let log = fs::read_to_string(log).unwrap_or_default();
        ensure!(address.is_some(), "dbus-daemon did not start:\n{log}");
        Ok(Self {
            _process: process,
            socket,
        })
    }

    /// The address, good inside the sandbox and outside.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// A new connection of the harness, as root.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn connect(&self) -> Result<zbus::Connection> {
        let address = self.address();
        let builder = zbus::connection::Builder::address(address.as_str());
        builder
            .build()
            .await
            .context("connecting to the private bus")
    }

    /// Waits until `name` has an owner (or, with `owned` false, until it has none).
    ///
    /// # Errors
    /// When the bus goes away meanwhile.
    pub async fn wait_for_name(&self, name: &str, owned: bool) -> Result<()> {
        let connection = self.connect().await?;
        let bus = DBusProxy::new(&connection).await?;
        // Listen first, look then: no change can fall between.
        let mut changes = bus
            .receive_name_owner_changed_with_args(&[(0, name)])
            .await?;
        let name = BusName::try_from(name)?;
        if bus.name_has_owner(name).await? == owned {
            return Ok(());
        }
        while let Some(change) = changes.next().await {
            if change.args()?.new_owner.is_some() == owned {
                return Ok(());
            }
        }
        anyhow::bail!("the private bus went away")
    }

    /// Starts the real polkitd of the host on this bus, in the root of `sandbox`, and waits for
    /// its name. It ends with the returned handle, and must not outlive a reboot.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub async fn start_polkit(&self, sandbox: &Sandbox) -> Result<Polkit> {
        let address = format!("DBUS_SYSTEM_BUS_ADDRESS={}", self.address());
        let words = ["env", &address, "/usr/lib/polkit-1/polkitd", "--no-debug"];
        let log = sandbox.meet().join("polkit.log");
        let command = sandbox.command_among_host_processes(words)?;
        let mut process = Tethered::start(&command, &log)?;
        process.drain();
        let named = tokio::time::timeout(PATIENCE, self.wait_for_name(POLKIT, true));
        match named.await {
            Ok(named) => named?,
            Err(_) => {
                let log = fs::read_to_string(&log).unwrap_or_default();
                anyhow::bail!("polkitd did not take its name in {PATIENCE:?}:\n{log}");
            }
        }
        Ok(Polkit { process })
    }
}

/// A running polkitd.
#[derive(Debug)]
pub struct Polkit {
    #[expect(dead_code, reason = "held for its end")]
    process: Tethered,
}

/// Adds a polkit rule file, in polkit's JavaScript, to a sandbox: before [`Bus::start_polkit`].
///
/// # Errors
/// When it cannot be written.
pub fn add_polkit_rule(sandbox: &Sandbox, name: &str, script: &str) -> Result<()> {
    let path = sandbox
        .meet()
        .join("polkit/rules.d")
        .join(format!("{name}.rules"));
    fs::write(path, script).context("writing a polkit rule")
}

/// The system bus's configuration in short, with the same defaults: nobody owns names and
/// nobody calls methods unless a service's policy file says so.
fn configuration(socket: &Path) -> String {
    let ours = workspace().join("systemd-units/org.osteward1.conf");
    let polkit = Path::new("/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf");
    let includes: String = [ours.as_path(), polkit]
        .iter()
        .map(|file| {
            format!(
                "  <include ignore_missing=\"yes\">{}</include>\n",
                file.display()
            )
        })
        .collect();
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Properties"/>
    <deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"
          send_member="UpdateActivationEnvironment"/>
  </policy>
  <!-- These parts are played by the harness, or by nobody. -->
  <policy user="root">
    <allow own="org.freedesktop.login1"/>
    <allow own="org.freedesktop.systemd1"/>
  </policy>
  <policy context="default">
    <allow send_destination="org.freedesktop.login1"/>
    <allow send_destination="org.freedesktop.systemd1"/>
  </policy>
{includes}</busconfig>
"#,
        socket = socket.display()
    )
}
