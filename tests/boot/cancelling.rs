//! Cancelling an upgrade in each of its phases, from the first question to the clean-up.

use anyhow::{Context, Result, bail, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::relay::Relay;
use osteward_tests::suite::Case;
use serde_json::Value;

use crate::origin::Origin;
use crate::osteward::{Ended, apply, expect_status, hold, release};
use crate::update::sound;

/// How often a phase that nothing can hold up may be over before it is cancelled.
const ATTEMPTS: usize = 10;

/// Several kilobytes, and less than any layer that counts has.
const SOME_BYTES: u64 = 20_000;

/// Makes the disk slow: the import ends with a sync, which has to wait for all of this.
const BALLAST: &str = "dd if=/dev/zero of=/var/ballast bs=1M count=256 status=none";

/// Cancels an upgrade in its last phase; that it is in it is told at its end at the latest.
const CANCEL_LATE: &str = r#"
    job=$(osteward upgrade --no-wait)
    echo "$job" >/run/late-job
    while read -r line; do
        if [[ $line == *'"phase":"cleaning"'* ]]; then break; fi
    done < <(osteward watch --json "$job" 2>/dev/null)
    osteward --json --quiet cancel "$job""#;

/// The newest job of the machine.
fn newest_job(machine: &mut Machine) -> Result<Value> {
    let jobs = machine.json("osteward jobs --json")?;
    let newest = jobs.as_array().and_then(|jobs| jobs.last());
    newest.cloned().context("no job")
}

fn start(machine: &mut Machine) -> Result<()> {
    machine.ok("osteward upgrade --no-wait").map(drop)
}

/// Cancels the running upgrade, which stays in `phase`, and sees that nothing came of it.
fn cancel_in(machine: &mut Machine, phase: &str) -> Result<()> {
    let script = r#"grep --quiet --max-count 1 '"phase":"PHASE"' < <(osteward watch --json 2>&1)
        osteward cancel"#;
    machine.ok(&script.replace("PHASE", phase))?;
    let ended = newest_job(machine)?;
    ensure!(ended["state"] == "cancelled", "{ended:#}");
    ensure!(
        ended["error"][0] == "org.osteward1.Error.Cancelled",
        "{ended:#}"
    );
    expect_status(machine, "booted 1").map(drop)
}

/// Starts an upgrade and cancels it as soon as it says that it is in `phase`, in which nothing
/// holds it up. Says whether that was in time.
fn cancel_at_once(machine: &mut Machine, phase: &str) -> Result<bool> {
    let script = r#"
        osteward upgrade --no-wait >/dev/null
        osteward watch --json | while read -r line; do
            if [[ $line == *'"phase":"PHASE"'* ]]; then osteward cancel; break; fi
        done"#;
    machine.run(&script.replace("PHASE", phase))?;
    let ended = newest_job(machine)?;
    match ended["state"].as_str() {
        Some("cancelled") => Ok(ended["phase"] == phase),
        Some("succeeded") => Ok(false),
        _ => bail!("neither cancelled nor faster: {ended:#}"),
    }
}

/// An upgrade that somebody thinks better of, at every point.
pub(crate) fn every_phase(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let update = case.bootable.layout.find("v2")?;
    let base = case.bootable.layout.find("v1")?;
    let is_new = |layer: &&String| !base.layers.contains(layer);
    let layer = update.layers.iter().find(is_new);
    let layer = layer.context("version 2 has no layer of its own")?;
    let relay = case.step("the registry is slow", |machine| {
        origin.publish("v2")?;
        origin.through_relay(machine)
    })?;
    case.step(
        "resolving: cancelled while the registry does not answer",
        |machine| {
            stopped(machine, &relay, "/manifests/", 0)?;
            cancel_in(machine, "resolving")
        },
    )?;
    case.step(
        "downloading: cancelled in the middle of a layer",
        |machine| {
            stopped(machine, &relay, layer, SOME_BYTES)?;
            cancel_in(machine, "downloading")
        },
    )?;
    case.step("importing: cancelled while the disk is slow", |machine| {
        stopped(machine, &relay, layer, SOME_BYTES)?;
        machine.ok(BALLAST)?;
        relay.resume();
        cancel_in(machine, "importing")?;
        machine.ok("rm /var/ballast").map(drop)
    })?;
    case.step("merging: cancelled at once", |machine| {
        for _ in 0..ATTEMPTS {
            let is_cancelled = cancel_at_once(machine, "merging")?;
            machine.run("osteward discard staged")?;
            machine.ok("osteward discard cache unreferenced")?;
            if is_cancelled {
                return expect_status(machine, "booted 1").map(drop);
            }
        }
        bail!("it was over {ATTEMPTS} times before it could be cancelled")
    })?;
    case.step(
        "staging: cancelled while another tool holds the sysroot",
        |machine| {
            hold(machine, "/sysroot/ostree/lock")?;
            start(machine)?;
            let cancelled = cancel_in(machine, "staging");
            release(machine)?;
            cancelled
        },
    )?;
    case.step("nothing runs: there is nothing to cancel", |machine| {
        let answer = machine.run("osteward cancel")?;
        ensure!(answer.status == 1, "{}", answer.output);
        Ok(())
    })?;
    case.step("cleaning: it is too late, version 2 is staged", |machine| {
        let answer = machine.run(CANCEL_LATE)?;
        Ended::parse(answer.status, &answer.output)?.failed("TooLate")?;
        expect_status(machine, "staged 2, booted 1").map(drop)
    })?;
    case.step("nothing was fetched again for that", |machine| {
        // What could not be cancelled may still be at work.
        machine.ok("osteward watch --quiet $(cat /run/late-job)")?;
        let upgrade = newest_job(machine)?;
        ensure!(upgrade["result"]["fetched-bytes"] == 0, "{upgrade:#}");
        Ok(())
    })?;
    case.step("it boots after all of that", |machine| {
        apply(machine)?;
        expect_status(machine, "booted 2, rollback 1").map(drop)
    })?;
    case.step("the repository is sound", sound)
}

/// Starts an upgrade and waits until the relay has stopped the answer to what `text` names.
fn stopped(machine: &mut Machine, relay: &Relay, text: &str, bytes: u64) -> Result<()> {
    relay.stop(text, bytes);
    start(machine)?;
    relay.wait_until_stopped()
}
