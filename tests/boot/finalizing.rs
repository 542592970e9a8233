//! A finalization that fails: the host boots what it had, and the next attempt works.

use anyhow::{Context, Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;
use serde_json::Value;

use crate::origin::Origin;
use crate::osteward::{Ended, Status, apply, done, expect_status, osteward};
use crate::update::sound;

/// Makes /boot a file system of its own without room for a byte, until it is unmounted.
const SMALL: &str = "set -e
    cp -a /boot /run/lab-boot
    mount -t tmpfs -o size=64M lab /boot
    cp -a /run/lab-boot/. /boot
    rm -r /run/lab-boot
    dd if=/dev/zero of=/boot/filler bs=4096 status=none || :
    systemctl stop ostewardd";

/// In one piece as far as it goes, then block by block, until there is no room for one.
const FILL: &str = "
    free=$(($(stat --file-system --format '%f * %S' /boot)))
    fallocate --length $((free - 1048576)) /var/filler
    dd if=/dev/zero of=/var/filler.end bs=4096 status=none
    sync";

/// What a person works on meanwhile.
fn local_work(machine: &mut Machine) -> Result<()> {
    let script = "echo local >/etc/lab/local.conf; echo data >/var/lib/lab-data";
    machine.ok(script).map(drop)
}

/// Reboots with `osteward apply` into what cannot be finalized: version 1 comes back, with all
/// that was in `/etc` and `/var`.
fn comes_back(machine: &mut Machine) -> Result<()> {
    apply(machine)?;
    let status = Status::read(machine)?;
    ensure!(machine.ok("cat /usr/lib/lab/version")? == "1");
    let booted = status.deployment("booted").context("nothing is booted")?;
    ensure!(booted["version"] == "1", "{:#}", status.0);
    let work = machine.ok("cat /etc/lab/local.conf /var/lib/lab-data")?;
    ensure!(work == "local\ndata", "{work}");
    let log =
        machine.ok("journalctl --boot=-1 --unit ostree-finalize-staged --output cat --no-pager")?;
    ensure!(log.contains("Failed with result 'exit-code'"), "{log}");
    Ok(())
}

/// The disk, and with it /boot, is full: before the download, and at shutdown.
pub(crate) fn full_boot(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    case.step(
        "with a full /boot nothing is fetched, and NoSpace says where",
        |machine| {
            origin.publish("v2")?;
            machine.ok(SMALL)?;
            refused_for_boot(&osteward(machine, "upgrade")?)?;
            let status = expect_status(machine, "booted 1")?;
            ensure!(status.0["update-state"] == "available", "{:#}", status.0);
            machine
                .ok("systemctl stop ostewardd && umount /boot")
                .map(drop)
        },
    )?;
    case.step(
        "version 2 is staged, then something fills /boot's disk",
        |machine| {
            local_work(machine)?;
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

/// Fails unless /boot was too small.
fn refused_for_boot(ended: &Ended) -> Result<()> {
    ended.failed("NoSpace")?;
    let result = &ended.document["result"];
    let (need, have) = (result["need"].as_u64(), result["have"].as_u64());
    ensure!(
        result["where"] == "/boot" && have.is_some() && need > have,
        "{result:#}"
    );
    Ok(())
}

/// Makes /boot such that the boot loader's entries cannot be replaced, or undoes that. The
/// directory in it where libostree notes what went wrong stays as it is.
fn immutable(machine: &mut Machine, how: &str) -> Result<()> {
    let change = format!("mount -o remount,rw /boot && chattr {how} /boot");
    let script = format!("unshare --mount sh -c '{change}'");
    machine.ok(&script).map(drop)
}

/// /boot cannot be written at shutdown, although there is room.
pub(crate) fn stuck_boot(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    case.step(
        "version 2 is staged, then /boot is made immutable",
        |machine| {
            local_work(machine)?;
            origin.publish("v2")?;
            done(machine, "upgrade")?;
            ensure!(last_finalize(machine)?["failed"] == false);
            immutable(machine, "+i")
        },
    )?;
    case.step("the reboot gives version 1", comes_back)?;
    case.step("the status says that it failed, and why", |machine| {
        let last = last_finalize(machine)?;
        let message = last["message"].as_str().unwrap_or_default();
        ensure!(last["failed"] == true, "{last:#}");
        ensure!(message.contains("Operation not permitted"), "{message}");
        ensure!(last["time"].as_u64() > Some(0), "{last:#}");
        let told = machine.ok("osteward status")?;
        ensure!(told.contains("Finalize: failed "), "{told}");
        Ok(())
    })?;
    case.step("once /boot can be written the upgrade works", |machine| {
        immutable(machine, "-i")?;
        done(machine, "upgrade")?;
        apply(machine)?;
        expect_status(machine, "booted 2, rollback 1")?;
        let last = last_finalize(machine)?;
        ensure!(last["failed"] == false, "{last:#}");
        Ok(())
    })?;
    case.step("the repository is sound", sound)
}

/// How the last finalization ended.
fn last_finalize(machine: &mut Machine) -> Result<Value> {
    Ok(Status::read(machine)?.0["last-finalize"].take())
}
