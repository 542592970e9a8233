//! Version after version: what is not needed any more goes, what is needed stays.

use anyhow::{Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{Status, apply, done, expect_status};
use crate::update::sound;

/// How many directories of deployments, and references to whole images, there are on the disk.
pub(crate) fn on_disk(machine: &mut Machine) -> Result<(usize, usize)> {
    let deployments = machine.ok("ls -d /sysroot/ostree/deploy/default/deploy/*.[0-9] | wc -l")?;
    let images = machine
        .ok("ostree refs --repo=/sysroot/ostree/repo --list ostree/container/image | wc -l")?;
    Ok((deployments.parse()?, images.parse()?))
}

/// Versions 2, 3 and 4, each booted.
pub(crate) fn cleanup(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let mut before = 1;
    for version in 2..=4 {
        case.step(&format!("version {version} is staged"), |machine| {
            origin.publish(&format!("v{version}"))?;
            done(machine, "upgrade").map(drop)
        })?;
        let what =
            format!("version {version} runs, {before} is the rollback, and no other is left");
        case.step(&what, |machine| {
            apply(machine)?;
            expect_status(machine, &format!("booted {version}, rollback {before}"))?;
            let (deployments, images) = on_disk(machine)?;
            ensure!(deployments == 2, "{deployments} deployments on the disk");
            ensure!(images <= 2, "{images} images kept");
            Ok(())
        })?;
        before = version;
    }
    case.step("nothing is left to discard", |machine| {
        let result = done(machine, "discard cache unreferenced --dry-run")?;
        ensure!(
            result["images"] == 0 && result["deployments"] == 0,
            "{result:#}"
        );
        Ok(())
    })?;
    case.step("booted and rollback are whole", sound)?;
    case.step("a pinned deployment outlives the next update", |machine| {
        machine.ok("ostree admin pin 1")?;
        origin.publish("v2")?;
        done(machine, "upgrade --allow-downgrade")?;
        apply(machine)?;
        let status = Status::read(machine)?;
        let pinned = |version: &str| {
            let is_it = |it: &&serde_json::Value| it["version"] == version && it["pinned"] == true;
            status.deployments().any(|it| is_it(&it))
        };
        ensure!(
            pinned("3") && status.deployments().count() == 3,
            "{}",
            status.summary()
        );
        Ok(())
    })?;
    // Until now libostree's own unit removed them at shutdown, outside our sandbox.
    case.step("the rollback is discarded, and its directory", |machine| {
        let result = done(machine, "discard rollback")?;
        ensure!(result["deployments"] == 1, "{result:#}");
        let (deployments, _) = on_disk(machine)?;
        ensure!(deployments == 2, "{deployments} deployments on the disk");
        Ok(())
    })
}
