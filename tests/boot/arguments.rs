//! The kernel's arguments: each image brings some along, the host has some for itself, and what
//! a machine boots with is both.

use anyhow::{Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{apply, done, expect_status};
use crate::update::sound;

/// What the image of each version brings, with its number at the end.
const BROUGHT: &str = "lab.version=";

/// libostree's record of what is staged.
const STAGED: &str = "/run/ostree/staged-deployment";

/// What libostree and the machines themselves add.
const NOT_OF_ENTRY: [&str; 3] = ["ostree=", "osteward.", "systemd.show_status="];

/// The arguments of the boot entry that the kernel was booted with, in their order, but for the
/// one that names the deployment.
pub(crate) fn running(machine: &mut Machine) -> Result<Vec<String>> {
    let line = machine.ok("cat /proc/cmdline")?;
    let is_entrys = |word: &&str| !NOT_OF_ENTRY.iter().any(|other| word.starts_with(other));
    let words = line.split_whitespace().filter(is_entrys);
    Ok(words.map(str::to_owned).collect())
}

/// What becomes of `arguments` in an image that brings `version` instead of `before`.
pub(crate) fn updated(arguments: &[String], before: u32, version: u32) -> Vec<String> {
    let dropped = format!("{BROUGHT}{before}");
    let mut updated = arguments.to_vec();
    updated.retain(|one| *one != dropped);
    updated.push(format!("{BROUGHT}{version}"));
    updated
}

/// An argument of the host's comes, one of the installation goes, and version 2 has another one
/// than version 1.
pub(crate) fn merged(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let installed = running(&mut case.machine)?;
    case.step("changes are for the next boot", |machine| {
        let result = done(
            machine,
            "kargs --append lab.mine=1 --delete mitigations=off",
        )?;
        ensure!(result["reboot"] == "reboot", "{result:#}");
        expect_status(machine, "staged 1, booted 1")?;
        ensure!(running(machine)? == installed);
        Ok(())
    })?;
    let own = case.step("the kernel boots with them", |machine| {
        apply(machine)?;
        expect_status(machine, "booted 1, rollback 1")?;
        let own = running(machine)?;
        let has = |argument: &str| own.iter().any(|one| one == argument);
        ensure!(has("lab.mine=1") && !has("mitigations=off"), "{own:?}");
        let mut others = own.clone();
        others.retain(|one| one != "lab.mine=1");
        let mut before = installed.clone();
        before.retain(|one| one != "mitigations=off");
        ensure!(others == before, "{others:?} is not {before:?}");
        Ok(own)
    })?;
    case.step("version 2 adds its own and drops version 1's", |machine| {
        origin.publish("v2")?;
        done(machine, "upgrade")?;
        apply(machine)?;
        expect_status(machine, "booted 2, rollback 1")?;
        let (now, wanted) = (running(machine)?, updated(&own, 1, 2));
        ensure!(now == wanted, "{now:?} is not {wanted:?}");
        let shown = machine.ok("osteward kargs")?;
        ensure!(shown == now.join(" "), "osteward says {shown}");
        Ok(())
    })?;
    case.step("going back goes back to the old ones", |machine| {
        done(machine, "rollback")?;
        apply(machine)?;
        expect_status(machine, "booted 1, rollback 2")?;
        let now = running(machine)?;
        ensure!(now == own, "{now:?} is not {own:?}");
        Ok(())
    })?;
    case.step("the repository is sound", sound)
}

/// Another tool's note in a boot entry, of which arguments are its own.
const FOREIGN: &str = "x-options-source-lab lab.owned=1";

/// Changes all boot entries, behind the daemon's back. libostree reads them when it is loaded.
fn change_entries(machine: &mut Machine, script: &str) -> Result<()> {
    let script = format!(
        "set -e; mount -o remount,rw /boot; {script} /boot/loader/entries/*.conf
        systemctl stop ostewardd"
    );
    machine.ok(&script).map(drop)
}

/// What other tools note in boot entries goes from deployment to deployment: libostree takes it
/// over from the entry of what runs, osteward from what is staged to what is staged in its place.
/// That holds since libostree 2026.1; older ones forget such keys at each finalization.
pub(crate) fn foreign_keys(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let staged = format!("grep --text --quiet 'x-options-source-lab' {STAGED}");
    case.step("what runs has one, and so has what is staged", |machine| {
        change_entries(machine, &format!("sed -i '$a{FOREIGN}'"))?;
        origin.publish("v2")?;
        done(machine, "upgrade")?;
        machine.ok(&staged).map(drop)
    })?;
    case.step(
        "it is still there when that is staged once more",
        |machine| {
            // Now what is staged is the only one that has it.
            change_entries(machine, "sed -i '/^x-options-source-lab/d'")?;
            done(machine, "kargs --append lab.mine=1")?;
            expect_status(machine, "staged 2, booted 1")?;
            machine.ok(&staged).map(drop)
        },
    )?;
    case.step("the entry that boots has it", |machine| {
        apply(machine)?;
        expect_status(machine, "booted 2, rollback 1")?;
        let entries = |text| format!("cd /boot/loader/entries; grep -lF '{text}' *.conf");
        let booted = machine.ok(&entries(" lab.mine=1"))?;
        let marked = machine.ok(&entries(FOREIGN))?;
        ensure!(marked == booted, "in {marked}, not in {booted}");
        Ok(())
    })
}
