//! An image of the host that needs a container image beside it, which podman pulls.

use anyhow::{Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{apply, done, expect_status, refused};
use crate::update::sound;

/// What podman knows the bound image by, in the storage that such images are in.
fn stored(machine: &mut Machine) -> Result<String> {
    machine.ok("
        storage=/sysroot/ostree/bootc/storage
        [ -d $storage ] || exit 0
        unshare --mount sh -ec '
            mount -o remount,rw /sysroot
            mkdir -p /run/bootc/storage
            exec 3</run/bootc/storage
            mount --bind \"$1\" /run/bootc/storage
            podman --root /run/bootc/storage --runroot /proc/self/fd/3 \
                image list --noheading --format \"{{.Repository}}:{{.Tag}}\"' - $storage")
}

/// Refused without podman; there before the staging, and after the reboot.
pub(crate) fn images(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let app = case.bootable.suite.reference("app");
    case.step("without podman such an image is refused", |machine| {
        origin.publish("bound")?;
        let message = refused(machine, "upgrade", "NotSupported")?;
        ensure!(
            message.contains(&app) && message.contains("podman"),
            "{message}"
        );
        expect_status(machine, "booted 1").map(drop)
    })?;
    case.step("an image that has podman is booted", |machine| {
        origin.publish("podman")?;
        done(machine, "upgrade")?;
        apply(machine)?;
        expect_status(machine, "booted podman, rollback 1")?;
        ensure!(stored(machine)?.is_empty(), "a bound image too early");
        Ok(())
    })?;
    case.step(
        "what the next one is bound to is there when it is staged",
        |machine| {
            origin.publish("bound")?;
            done(machine, "upgrade")?;
            expect_status(machine, "staged bound, booted podman, rollback 1")?;
            let found = stored(machine)?;
            ensure!(found == app, "{found}");
            Ok(())
        },
    )?;
    case.step(
        "after the reboot it is there, without a network",
        |machine| {
            apply(machine)?;
            machine.ok("ip link set eth0 down")?;
            expect_status(machine, "booted bound, rollback podman")?;
            let found = stored(machine)?;
            ensure!(found == app, "{found}");
            Ok(())
        },
    )?;
    case.step("the repository is sound", sound)
}
