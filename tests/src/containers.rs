//! What podman and skopeo need of a sandbox, and what a test takes away from the daemon.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::process::{command, run};

/// Makes the sandbox a host that podman and skopeo work on until it is rebooted: their configuration, which
/// trusts everybody and speaks plain HTTP with the test's registry, a storage driver that needs no kernel
/// support, and `/sys`.
///
/// # Errors
/// When something cannot be written or mounted.
pub fn configure(host: &Host) -> Result<()> {
    let etc = host.sandbox.inside("/etc/containers")?;
    fs::create_dir_all(&etc)?;
    fs::write(
        etc.join("policy.json"),
        r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
    )?;
    fs::write(
        etc.join("storage.conf"),
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"/var/lib/containers/storage\"\n\
         runroot = \"/run/containers/storage\"\n",
    )?;
    let registry = host.registry.name("");
    let registry = registry.trim_end_matches('/');
    fs::write(
        etc.join("registries.conf"),
        format!("[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n"),
    )?;
    fs::create_dir_all(host.sandbox.inside("/var/tmp")?)?;
    let sysfs = ["mount", "-t", "sysfs", "sysfs", "/sys"];
    host.sandbox.run(sysfs).map(drop)
}

/// Lets the daemon, and nobody else, see something that cannot be executed instead of a tool.
///
/// # Errors
/// When the tool is not there to begin with.
pub fn hide(host: &Host, tool: &str) -> Result<()> {
    let daemon = host.daemon.as_ref().context("the daemon does not run")?;
    let pid = daemon.pid().to_string();
    ensure!(
        host.sandbox.exists(&format!("/usr/bin/{tool}")),
        "{tool} is not installed"
    );
    let target = format!("/proc/{pid}/root/usr/bin/{tool}");
    let mut enter = command(["nsenter", "--mount", "--target", &pid]);
    run(enter.args(["mount", "--bind", "/dev/null", &target])).map(drop)
}
