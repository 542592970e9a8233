//! A finalization that fails: the host boots what it had, and the next attempt works.

use anyhow::{Context, Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{Status, apply, done, expect_status};
use crate::update::sound;

/// In one piece as far as it goes, then block by block, until there is no room for one.
const FILL: &str = "
    free=$(($(stat --file-system --format '%f * %S' /boot)))
    fallocate --length $((free - 1048576)) /var/filler
    dd if=/dev/zero of=/var/filler.end bs=4096 status=none
    sync";

/// Reboots with `osteward apply` into what cannot be finalized: version 1 comes back.
fn comes_back(machine: &mut Machine) -> Result<()> {
    apply(machine)?;
    let status = Status::read(machine)?;
    ensure!(machine.ok("cat /usr/lib/lab/version")? == "1");
    let booted = status.deployment("booted").context("nothing is booted")?;
    ensure!(booted["version"] == "1", "{:#}", status.0);
    let log =
        machine.ok("journalctl --boot=-1 --unit ostree-finalize-staged --output cat --no-pager")?;
    ensure!(log.contains("Failed with result 'exit-code'"), "{log}");
    Ok(())
}

/// The disk, and with it /boot, is full at shutdown.
pub(crate) fn full_boot(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    case.step(
        "version 2 is staged, then something fills /boot's disk",
        |machine| {
            origin.publish("v2")?;
            done(machine, "upgrade")?;
            machine.run(FILL)?;
            let free = machine.ok("stat --file-system --format %a /boot")?;
            ensure!(free == "0", "{free} blocks free");
            Ok(())
        },
    )?;
    case.step("the reboot gives version 1", comes_back)?;
    case.step(
        "with room again the upgrade works, and fetches nothing",
        |machine| {
            machine.ok("rm /var/filler /var/filler.end")?;
            let result = done(machine, "upgrade")?;
            ensure!(result["fetched-bytes"] == 0, "{result:#}");
            apply(machine)?;
            expect_status(machine, "booted 2, rollback 1").map(drop)
        },
    )?;
    case.step("the repository is sound", sound)
}

fn immutable(machine: &mut Machine, how: &str) -> Result<()> {
    let change = format!("mount -o remount,rw /boot && chattr {how} /boot /boot/ostree");
    let script = format!("unshare --mount sh -c '{change}'");
    machine.ok(&script).map(drop)
}

/// /boot cannot be written at shutdown, although there is room.
pub(crate) fn stuck_boot(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    case.step(
        "version 2 is staged, then /boot is made immutable",
        |machine| {
            origin.publish("v2")?;
            done(machine, "upgrade")?;
            immutable(machine, "+i")
        },
    )?;
    case.step("the reboot gives version 1", comes_back)?;
    case.step("once /boot can be written the upgrade works", |machine| {
        immutable(machine, "-i")?;
        done(machine, "upgrade")?;
        apply(machine)?;
        expect_status(machine, "booted 2, rollback 1").map(drop)
    })?;
    case.step("the repository is sound", sound)
}
