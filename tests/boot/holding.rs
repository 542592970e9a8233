//! An update that is staged and locked: a reboot from outside does not switch to it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use osteward_tests::bootable::Suite;
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{Status, apply, done, expect_status};
use crate::update::sound;

/// How long the daemon may believe what was true before another tool changed it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Locked, a reboot from outside; unlocked, the same.
pub(crate) fn locked(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    case.step("version 2 is staged and locked", |machine| {
        origin.publish("v2")?;
        let result = done(machine, "upgrade --lock")?;
        ensure!(result["locked"] == true, "{result:#}");
        is_locked(machine, true)
    })?;
    case.step("a reboot from outside does not switch", |machine| {
        machine.reboot()?;
        is_still_on_version_1(machine)
    })?;
    case.step("upgrade stages it again and fetches nothing", |machine| {
        let result = done(machine, "upgrade")?;
        ensure!(result["fetched-bytes"] == 0, "{result:#}");
        is_locked(machine, false)
    })?;
    case.step("locked afterwards, it does not switch either", |machine| {
        done(machine, "lock")?;
        is_locked(machine, true)?;
        machine.reboot()?;
        is_still_on_version_1(machine)
    })?;
    case.step("unlocked, the same reboot switches", |machine| {
        done(machine, "upgrade --lock")?;
        done(machine, "unlock")?;
        is_locked(machine, false)?;
        machine.reboot()?;
        expect_status(machine, "booted 2, rollback 1").map(drop)
    })?;
    let suite = case.bootable.suite;
    case.step("a lock of another tool is seen, and held to", |machine| {
        origin.publish("v3")?;
        done(machine, "upgrade")?;
        machine.ok(match suite {
            // libostree 2022.7 knows no more than this file.
            Suite::Bookworm => "touch /run/ostree/staged-deployment-locked",
            Suite::Forky | Suite::Trixie => "ostree admin lock-finalization",
        })?;
        is_locked(machine, true)
    })?;
    case.step("osteward apply boots it all the same", |machine| {
        apply(machine)?;
        expect_status(machine, "booted 3, rollback 2").map(drop)
    })?;
    case.step("the repository is sound", sound)
}

fn is_still_on_version_1(machine: &mut Machine) -> Result<()> {
    expect_status(machine, "booted 1")?;
    ensure!(machine.ok("cat /usr/lib/lab/version")? == "1");
    Ok(())
}

/// Waits for the daemon to see what another tool did to the lock: the kernel tells it, and
/// nothing tells when it has heard.
fn is_locked(machine: &mut Machine, wanted: bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = Status::read(machine)?;
        let staged = status.deployment("staged");
        if staged.is_some_and(|staged| staged["locked"] == wanted) {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "locked is not {wanted}: {:#}",
            status.0
        );
    }
}
