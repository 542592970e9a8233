//! Other places that images come from: another tag, a directory on a disk, none at all.

use anyhow::{Context, Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::process::{command, run};
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{Status, apply, done, expect_status, refused};
use crate::update::sound;

/// Where the machine mounts the disk with the image directory.
const MOUNT: &str = "/run/media/lab";

/// The deployment's image, as `osteward status` names what updates come from.
fn tracked(machine: &mut Machine) -> Result<String> {
    let status = Status::read(machine)?;
    let image = status.0["tracking"]["image"].as_str();
    let image = image.with_context(|| format!("tracks nothing: {:#}", status.0))?;
    Ok(image.to_owned())
}

/// Another tag of the same repository.
pub(crate) fn switch(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let elsewhere = case.bootable.suite.reference("v3");
    case.step("switch stages the other tag", |machine| {
        done(machine, &format!("switch {elsewhere}"))?;
        expect_status(machine, "staged 3, booted 1").map(drop)
    })?;
    case.step("a plain upgrade does not undo that", |machine| {
        origin.publish("v2")?;
        done(machine, "upgrade")?;
        expect_status(machine, "staged 3, booted 1").map(drop)
    })?;
    case.step("it boots and is what is tracked now", |machine| {
        apply(machine)?;
        expect_status(machine, "booted 3, rollback 1")?;
        let tracked = tracked(machine)?;
        ensure!(tracked.ends_with(&elsewhere), "{tracked}");
        Ok(())
    })?;
    case.step("an upgrade stays on that tag", |machine| {
        let result = done(machine, "upgrade")?;
        ensure!(result["changed"] == false, "{result:#}");
        Ok(())
    })?;
    case.step(
        "back to the first tag is a downgrade, and has to be meant",
        |machine| {
            let back = format!("switch {}", origin.image());
            let message = refused(machine, &back, "DowngradeRefused")?;
            ensure!(message.contains("version 2"), "{message}");
            done(machine, &format!("{back} --allow-downgrade"))?;
            expect_status(machine, "staged 2, booted 3, rollback 1").map(drop)
        },
    )?;
    case.step("it boots, too", |machine| {
        apply(machine)?;
        expect_status(machine, "booted 2, rollback 3").map(drop)
    })?;
    case.step("the repository is sound", sound)
}

/// An image directory on a disk that is mounted while the machine runs, without a network.
pub(crate) fn offline(case: &mut Case<'_>) -> Result<()> {
    Origin::of(case)?;
    let layout = case.bootable.layout.path.clone();
    case.step("somebody brings version 2 on a disk", |machine| {
        machine.power_off()?;
        machine.with_disk(|root| {
            let carried = root.join("ostree/deploy/default/var/lab-disk");
            let words = ["skopeo", "--insecure-policy", "copy", "--quiet"];
            let mut copy = command(words);
            copy.args(["--all", "--preserve-digests"]);
            copy.arg(format!("oci:{}:v2", layout.display()));
            copy.arg(format!("oci:{}:v2", carried.display()));
            run(&mut copy).map(drop)
        })?;
        machine.power_on()
    })?;
    case.step(
        "without a network, check says so by name, and status answers",
        |machine| {
            // It would try again for minutes.
            machine.ok(r#"mkdir -p /etc/osteward/config.d
                echo '[registry]
                retry_time = "0s"' >/etc/osteward/config.d/20-hasty.toml
                systemctl stop ostewardd
                ip link set eth0 down"#)?;
            refused(machine, "check", "RegistryUnreachable")?;
            refused(machine, "upgrade", "RegistryUnreachable")?;
            expect_status(machine, "booted 1").map(drop)
        },
    )?;
    case.step(
        "a directory that is not mounted yet is ImageNotFound",
        |machine| refused(machine, &format!("switch oci:{MOUNT}:v2"), "ImageNotFound").map(drop),
    )?;
    case.step(
        "the disk is mounted and version 2 staged from it",
        |machine| {
            machine.ok(&format!(
                "mkdir -p {MOUNT} && mount -t tmpfs lab {MOUNT} && cp -r /var/lab-disk/. {MOUNT}
            mount -o remount,ro {MOUNT}"
            ))?;
            done(machine, &format!("switch oci:{MOUNT}:v2"))?;
            expect_status(machine, "staged 2, booted 1").map(drop)
        },
    )?;
    case.step(
        "the disk is not needed any more, and version 2 boots",
        |machine| {
            machine.ok(&format!("umount {MOUNT}; rm -r /var/lab-disk"))?;
            apply(machine)?;
            expect_status(machine, "booted 2, rollback 1")?;
            let tracked = tracked(machine)?;
            ensure!(tracked.ends_with(&format!("oci:{MOUNT}:v2")), "{tracked}");
            Ok(())
        },
    )?;
    case.step(
        "an upgrade without the disk says what is missing",
        |machine| refused(machine, "upgrade", "ImageNotFound").map(drop),
    )?;
    case.step("the repository is sound", sound)
}
