//! Images that cannot work here are refused before anything is staged.

use anyhow::{Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;

use crate::osteward::{Ended, expect_status, osteward};
use crate::update::sound;

/// Fails unless switching to the image `tag` fails so, and leaves the machine as it was.
fn refuses(machine: &mut Machine, image: &str, name: &str, words: &str) -> Result<Ended> {
    let ended = osteward(machine, &format!("switch {image}"))?;
    let message = ended.failed(name)?;
    ensure!(message.contains(words), "{message}");
    expect_status(machine, "booted 1")?;
    let staged = machine.run("test -e /run/ostree/staged-deployment")?;
    ensure!(staged.status == 1, "something is staged");
    Ok(ended)
}

/// No kernel, another architecture, no room.
pub(crate) fn unfit(case: &mut Case<'_>) -> Result<()> {
    let suite = case.bootable.suite;
    let free = case.step("the room on the disk", |machine| {
        machine.ok("echo $(($(stat --file-system --format '%a * %S' /sysroot)))")
    })?;
    case.step("an image without a kernel is ImageInvalid", |machine| {
        refuses(
            machine,
            &suite.reference("no-kernel"),
            "ImageInvalid",
            "kernel",
        )
        .map(drop)
    })?;
    case.step(
        "an image for another architecture is ImageInvalid",
        |machine| refuses(machine, &suite.reference("arm64"), "ImageInvalid", "arm64").map(drop),
    )?;
    case.step(
        "an image that does not fit is NoSpace, with need, have and where",
        |machine| {
            let ended = refuses(machine, &suite.reference("big"), "NoSpace", "")?;
            let result = &ended.document["result"];
            let (need, have) = (result["need"].as_u64(), result["have"].as_u64());
            ensure!(need > have && have.is_some(), "{result:#}");
            ensure!(
                result["where"]
                    .as_str()
                    .is_some_and(|it| it.starts_with('/')),
                "{result:#}"
            );
            Ok(())
        },
    )?;
    case.step(
        "what was tried takes no room that clean-up does not give back",
        |machine| {
            machine.ok("osteward discard cache unreferenced")?;
            let now = machine.ok("echo $(($(stat --file-system --format '%a * %S' /sysroot)))")?;
            let (free, now): (u64, u64) = (free.parse()?, now.parse()?);
            // The journal grows meanwhile.
            ensure!(now + (16 << 20) > free, "{free} bytes were free, now {now}");
            Ok(())
        },
    )?;
    case.step("the repository is sound", sound)
}
