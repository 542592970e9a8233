//! A reboot without the kernel: into an image that differs in nothing that the kernel is told.

use anyhow::{Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;

use crate::osteward::{done, expect_status, refused};
use crate::power::Pulses;
use crate::update::sound;

/// Where the numbers of the images begin: those of the power cuts are others.
const FIRST: u32 = 200_000;

/// What tells a reboot without the kernel from one with it.
fn kernel_boot(machine: &mut Machine) -> Result<String> {
    machine.ok("cat /proc/sys/kernel/random/boot_id")
}

/// Refused where the kernel would have to be told something else, done where not.
pub(crate) fn reboot(case: &mut Case<'_>) -> Result<()> {
    let mut pulses = Pulses::new(case, FIRST)?;
    case.step(
        "into other kernel arguments there is none, and nothing changes",
        |machine| {
            pulses.origin.publish("v2")?;
            done(machine, "upgrade")?;
            let message = refused(machine, "apply --soft-reboot", "NotSupported")?;
            ensure!(message.contains("other kernel arguments"), "{message}");
            let status = expect_status(machine, "staged 2, booted 1")?;
            ensure!(status.0["reboot-required"] == "reboot", "{:#}", status.0);
            machine.ok("test ! -e /run/nextroot")?;
            let said = machine.ok("cat /run/reboot-required")?;
            ensure!(said.contains("required for image: sha256:"), "{said}");
            done(machine, "discard staged")?;
            machine.ok("test ! -e /run/reboot-required").map(drop)
        },
    )?;
    let version = case.step("an image with the same ones needs no other", |machine| {
        let version = pulses.next()?;
        done(machine, "upgrade")?;
        let status = expect_status(machine, &format!("staged {version}, booted 1"))?;
        ensure!(
            status.0["reboot-required"] == "soft-reboot",
            "{:#}",
            status.0
        );
        Ok(version)
    })?;
    let kernel = kernel_boot(&mut case.machine)?;
    case.step("it runs after a reboot without the kernel", |machine| {
        machine.ok("echo local >/etc/lab/local.conf; echo data >/var/lib/lab-data")?;
        if let Ok(answer) = machine.run("osteward apply --soft-reboot") {
            ensure!(answer.status == 0, "osteward apply: {}", answer.output);
        }
        machine.await_boot()?;
        ensure!(kernel_boot(machine)? == kernel, "the kernel is a new one");
        ensure!(machine.ok("cat /usr/lib/lab/version")? == version);
        let kept = machine.ok("cat /etc/lab/local.conf /var/lib/lab-data")?;
        ensure!(kept == "local\ndata", "{kept}");
        // /run is what it was before.
        machine.ok("test ! -e /run/reboot-required").map(drop)
    })?;
    let wanted = format!("booted {version}, rollback 1");
    case.step("osteward says so, too", |machine| {
        let status = expect_status(machine, &wanted)?;
        ensure!(status.0["reboot-required"] == "none", "{:#}", status.0);
        Ok(())
    })?;
    case.step("a full reboot leads there as well", |machine| {
        machine.reboot()?;
        ensure!(kernel_boot(machine)? != kernel, "the kernel is the old one");
        expect_status(machine, &wanted).map(drop)
    })?;
    case.step("the repository is sound", sound)
}
