//! What outlives updates because somebody said so, and what does not outlive a reboot: a pinned
//! deployment, an update that was only fetched, edits in `/etc`; and an overlay over `/usr`.

use anyhow::{Context, Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;
use serde_json::Value;

use crate::generations::on_disk;
use crate::origin::Origin;
use crate::osteward::{Status, apply, done, expect_status, refused};
use crate::update::sound;

/// Edits of every sort; none of these files changes in version 2.
const EDITS: &str = "set -e
    echo local >>/etc/lab/untouched.conf
    echo local >/etc/lab/local.conf
    rm /etc/issue.net";

/// Version 1 is pinned; versions 2, 3 and 4 come.
pub(crate) fn keep(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let first = case.step("what runs is pinned", |machine| {
        let result = done(machine, "pin booted")?;
        ensure!(result["pinned"] == true, "{result:#}");
        let status = expect_kept(machine, "booted 1")?;
        Ok(status.digest("booted")?.to_owned())
    })?;
    case.step("an overlay makes /usr writable", overlay)?;
    case.step("diff etc tells what was edited, to anybody", |machine| {
        machine.ok(EDITS)?;
        edits(machine)?;
        let told = machine.ok("runuser -u alice -- osteward diff etc")?;
        ensure!(told.contains("modified  /etc/lab/untouched.conf"), "{told}");
        Ok(())
    })?;
    case.step("version 2 is fetched, and nothing staged", |machine| {
        origin.publish("v2")?;
        let result = done(machine, "upgrade --download-only")?;
        ensure!(result["staged"] == false, "{result:#}");
        ensure!(result["fetched-bytes"].as_u64() > Some(0), "{result:#}");
        let status = expect_kept(machine, "booted 1")?;
        ensure!(status.0["update-state"] == "downloaded", "{:#}", status.0);
        machine
            .ok("test ! -e /run/ostree/staged-deployment")
            .map(drop)
    })?;
    case.step("a reboot takes the overlay away, no more", |machine| {
        machine.reboot()?;
        let status = expect_kept(machine, "booted 1")?;
        ensure!(unlocked(&status)? == "none", "{:#}", status.0);
        let probe = machine.run("test -e /usr/lab-probe || touch /usr/lab-probe")?;
        ensure!(probe.status == 1, "/usr is as it was left: {probe:?}");
        Ok(())
    })?;
    case.step("without a network it is staged", |machine| {
        machine.ok("ip link set eth0 down")?;
        let result = done(machine, "upgrade --from-cache")?;
        ensure!(result["fetched-bytes"] == 0, "{result:#}");
        expect_kept(machine, "staged 2, booted 1").map(drop)
    })?;
    case.step("version 2 runs, with the edits in /etc", |machine| {
        apply(machine)?;
        expect_kept(machine, "booted 2, rollback 1")?;
        edits(machine)
    })?;
    for (version, wanted) in [
        (3, "booted 3, rollback 2, other 1"),
        (4, "booted 4, rollback 3, other 1"),
    ] {
        let what = format!("version {version} runs, and version 1 is still there");
        case.step(&what, |machine| {
            origin.publish(&format!("v{version}"))?;
            done(machine, "upgrade")?;
            apply(machine)?;
            expect_kept(machine, wanted)?;
            let (deployments, _) = on_disk(machine)?;
            ensure!(deployments == 3, "{deployments} deployments on the disk");
            Ok(())
        })?;
    }
    case.step("it cannot be removed, but booted", |machine| {
        let message = refused(machine, &format!("remove {first}"), "NotSupported")?;
        ensure!(message.contains("unpin"), "{message}");
        done(machine, &format!("rollback --digest {first}"))?;
        apply(machine)?;
        expect_kept(machine, "booted 1, rollback 4, other 3")?;
        ensure!(machine.ok("cat /usr/lib/lab/version")? == "1");
        Ok(())
    })?;
    case.step("unpinned it goes like any other", |machine| {
        done(machine, "unpin booted")?;
        done(machine, "rollback")?;
        apply(machine)?;
        expect_status(machine, "booted 4, rollback 1, other 3")?;
        let result = done(machine, &format!("remove {first}"))?;
        ensure!(result["deployments"] == 1, "{result:#}");
        let (deployments, _) = on_disk(machine)?;
        ensure!(deployments == 2, "{deployments} deployments on the disk");
        Ok(())
    })?;
    case.step("the repository is sound", sound)
}

/// As [`expect_status`]; and version 1, nothing else, is pinned.
fn expect_kept(machine: &mut Machine, wanted: &str) -> Result<Status> {
    let status = expect_status(machine, wanted)?;
    for deployment in status.deployments() {
        let is_first = deployment["version"] == "1";
        ensure!(deployment["pinned"] == is_first, "{deployment:#}");
    }
    Ok(status)
}

/// How the booted deployment's `/usr` can be written to.
fn unlocked(status: &Status) -> Result<&str> {
    let booted = status.deployment("booted").context("nothing is booted")?;
    booted["unlocked"].as_str().context("no word for it")
}

fn overlay(machine: &mut Machine) -> Result<()> {
    ensure!(machine.run("touch /usr/lab-probe")?.status != 0);
    let result = done(machine, "usr-overlay")?;
    ensure!(result["unlocked"] == "development", "{result:#}");
    machine.ok("touch /usr/lab-probe")?;
    // Whoever else looks sees it too.
    machine.ok("systemd-run --quiet --wait test -e /usr/lab-probe")?;
    let status = Status::read(machine)?;
    ensure!(unlocked(&status)? == "development", "{:#}", status.0);
    Ok(())
}

/// Fails unless `osteward diff etc` tells [`EDITS`], and nothing of what images changed.
fn edits(machine: &mut Machine) -> Result<()> {
    let told = machine.json("osteward diff etc --json")?;
    let ours = |change: &&Value| {
        let path = change["path"].as_str().unwrap_or_default();
        path.starts_with("/etc/lab/") || path == "/etc/issue.net"
    };
    let line = |change: &Value| {
        let word = |key: &str| change[key].as_str().unwrap_or("?").to_owned();
        format!("{} {}", word("change"), word("path"))
    };
    let all = told.as_array().context("no list")?;
    let mut found: Vec<String> = all.iter().filter(ours).map(line).collect();
    found.sort();
    let wanted = [
        "added /etc/lab/local.conf",
        "modified /etc/lab/untouched.conf",
        "removed /etc/issue.net",
    ];
    ensure!(found == wanted, "{told:#}");
    Ok(())
}
