//! The way there and back: version 1, version 2, version 1.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::packages::{self, Installed};
use osteward_tests::suite::Case;

use crate::arguments::{running, updated};
use crate::origin::Origin;
use crate::osteward::{Status, apply, done, expect_status, osteward, refused};

/// Upgrades to version 2 and boots it.
pub(crate) fn to_version_2(case: &mut Case<'_>, origin: &Origin) -> Result<()> {
    case.step("version 2 is staged", |machine| {
        origin.publish("v2")?;
        done(machine, "upgrade")?;
        expect_status(machine, "staged 2, booted 1").map(drop)
    })?;
    case.step("osteward apply boots it", apply)?;
    case.step("version 2 runs, version 1 is the rollback", |machine| {
        expect_status(machine, "booted 2, rollback 1").map(drop)
    })
}

/// What the files of the image say about its version, whatever osteward says.
fn version_of_files(machine: &mut Machine) -> Result<String> {
    machine.ok("cat /usr/lib/lab/version")
}

/// The repository and what is booted are sound, by ostree's own word.
pub(crate) fn sound(machine: &mut Machine) -> Result<()> {
    let fsck = machine.run("ostree fsck --quiet --repo=/sysroot/ostree/repo")?;
    ensure!(fsck.status == 0, "ostree fsck: {}", fsck.output);
    machine.ok("ostree admin status").map(drop)
}

/// An upgrade as a host does it every week.
pub(crate) fn upgrade(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    case.step("version 1 is booted and nothing waits", |machine| {
        let status = expect_status(machine, "booted 1")?;
        ensure!(status.0["reboot-required"] == "none");
        ensure!(version_of_files(machine)? == "1");
        ensure!(osteward(machine, "check")?.code == 0);
        Ok(())
    })?;
    case.step("somebody works on the host", local_work)?;
    case.step("check finds version 2", |machine| {
        origin.publish("v2")?;
        let ended = osteward(machine, "check")?;
        ensure!(ended.code == 10 && ended.document["update"]["version"] == "2");
        Ok(())
    })?;
    let (packages, told) = case.step("diff tells which packages differ", |machine| {
        Ok((installed(machine)?, told(machine, "")?))
    })?;
    case.step("upgrade stages it; what runs stays as it is", |machine| {
        // Where libostree has it, it may be slower than a reboot: osteward must not rely on it.
        machine.ok(
            "! systemctl cat ostree-finalize-staged.path || systemctl stop ostree-finalize-staged.path",
        )?;
        let result = done(machine, "upgrade")?;
        machine.ok("systemctl is-active ostree-finalize-staged.service")?;
        ensure!(result["reboot"] == "reboot" && result["changed"] == true);
        let status = expect_status(machine, "staged 2, booted 1")?;
        ensure!(status.0["reboot-required"] == "reboot");
        ensure!(version_of_files(machine)? == "1");
        ensure!(osteward(machine, "check")?.code == 11);
        Ok(())
    })?;
    let digest = case.step("the same upgrade again has nothing to do", |machine| {
        let result = done(machine, "upgrade")?;
        ensure!(result["changed"] == false);
        Ok(Status::read(machine)?.digest("staged")?.to_owned())
    })?;
    let before = case.machine.deployment().to_owned();
    let arguments = updated(&running(&mut case.machine)?, 1, 2);
    case.step("apply reboots through logind", apply)?;
    case.step("it was finalized at shutdown", |machine| {
        let log = machine
            .ok("journalctl --boot=-1 --unit ostree-finalize-staged --output cat --no-pager")?;
        ensure!(log.contains("Bootloader updated"), "{log}");
        Ok(())
    })?;
    case.step("version 2 is booted, by its own boot entry", |machine| {
        ensure!(machine.deployment() != before);
        let status = expect_status(machine, "booted 2, rollback 1")?;
        ensure!(status.digest("booted")? == digest);
        ensure!(version_of_files(machine)? == "2");
        let now = running(machine)?;
        ensure!(now == arguments, "{now:?} is not {arguments:?}");
        Ok(())
    })?;
    case.step("dpkg lists what diff told", |machine| {
        let differ = differences(&packages, &installed(machine)?);
        ensure!(differ == ["lab-greeting all 1.0 2.0"], "{differ:?}");
        ensure!(told == differ, "told: {told:?}, dpkg's: {differ:?}");
        let told = self::told(machine, "rollback booted")?;
        ensure!(told == differ, "told afterwards: {told:?}");
        Ok(())
    })?;
    case.step(
        "local edits in /etc are merged with the image's",
        merged_etc,
    )?;
    case.step("/var is kept", |machine| {
        ensure!(machine.ok("cat /var/lib/lab-data /var/home/carol/letter")? == "data\ndear all");
        Ok(())
    })?;
    mounts(case)?;
    case.step("the repository is sound", sound)
}

/// What is installed, by dpkg's own word.
fn installed(machine: &mut Machine) -> Result<Installed> {
    let format = "${Package} ${Architecture} ${Version} ${db:Status-Status}\\n";
    let list = format!("dpkg-query --show --showformat '{format}' | sed -n 's/ installed$//p'");
    packages::installed(&machine.ok(&list)?)
}

/// Name, architecture, old and new version of each package that is not the same.
fn differences(old: &Installed, new: &Installed) -> Vec<String> {
    let both: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let differ = both.into_iter().filter(|key| old.get(key) != new.get(key));
    let line = |key: &(String, String)| {
        let version = |of: &Installed| of.get(key).cloned().unwrap_or_default();
        format!("{} {} {} {}", key.0, key.1, version(old), version(new))
    };
    differ.map(line).collect()
}

/// The same, as `osteward diff WORDS` tells it.
fn told(machine: &mut Machine, words: &str) -> Result<Vec<String>> {
    let document = machine.json(&format!("osteward diff --json {words}"))?;
    ensure!(document["level"] == "full", "{document:#}");
    let packages = document["packages"].as_array().into_iter().flatten();
    let words = ["name", "architecture", "old", "new"];
    let line = |package: &serde_json::Value| {
        words
            .map(|word| package[word].as_str().unwrap_or("?").to_owned())
            .join(" ")
    };
    Ok(packages.map(line).collect())
}

/// Edits of every sort, for the merge to keep.
fn local_work(machine: &mut Machine) -> Result<()> {
    machine
        .ok("set -e
        echo local >>/etc/lab/untouched.conf
        echo local >/etc/lab/local.conf
        rm /etc/issue.net
        useradd --create-home --home-dir /var/home/carol carol
        echo 'dear all' >/var/home/carol/letter
        echo data >/var/lib/lab-data")
        .map(drop)
}

/// What became of [`local_work`], and of what the image changed beside it.
fn merged_etc(machine: &mut Machine) -> Result<()> {
    let local = machine.ok("tail -n 1 /etc/lab/untouched.conf; cat /etc/lab/local.conf")?;
    ensure!(local == "local\nlocal", "local edits: {local}");
    ensure!(
        machine.run("test -e /etc/issue.net")?.status == 1,
        "it was deleted here"
    );
    let images = machine.ok("cat /etc/lab/changed.conf /etc/lab/added.conf")?;
    ensure!(images == "from=2\nfrom=2", "the image's edits: {images}");
    ensure!(
        machine.run("test -e /etc/lab/removed.conf")?.status == 1,
        "it was deleted there"
    );
    let users = machine.ok("id --name --user carol; id --name --user lab-user")?;
    ensure!(users == "carol\nlab-user", "users of both: {users}");
    Ok(())
}

/// How the deployment is mounted.
fn mounts(case: &mut Case<'_>) -> Result<()> {
    let name = "findmnt --noheadings --output SOURCE,FSTYPE,OPTIONS /";
    if !case.bootable.suite.composefs() {
        return case.step("the root is the deployment, read-only in /usr", |machine| {
            ensure!(machine.run("touch /usr/lab-probe")?.status != 0);
            Ok(())
        });
    }
    case.step(
        "ComposeFS is mounted, from the deployment's own image",
        |machine| {
            let root = machine.ok(name)?;
            ensure!(
                root.starts_with("composefs") && root.contains("overlay"),
                "{root}"
            );
            ensure!(machine.run("touch /usr/lab-probe")?.status != 0);
            let image = format!("test -s {}/.ostree.cfs", machine.deployment());
            machine.ok(&image).map(drop)
        },
    )
}

/// The way that the boot loader has a part in, and no more: for machines that are slow.
pub(crate) fn there_and_back(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let first = case.machine.deployment().to_owned();
    to_version_2(case, &origin)?;
    case.step(
        "what booted is version 2, whatever osteward says",
        |machine| {
            ensure!(version_of_files(machine)? == "2");
            ensure!(machine.deployment() != first);
            Ok(())
        },
    )?;
    case.step("rollback queues version 1, apply boots it", |machine| {
        done(machine, "rollback")?;
        apply(machine)
    })?;
    case.step("version 1 is booted", |machine| {
        expect_status(machine, "booted 1, rollback 2")?;
        ensure!(version_of_files(machine)? == "1");
        Ok(())
    })
}

/// Going back, and what is remembered of it.
pub(crate) fn rollback(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    to_version_2(case, &origin)?;
    let digest = case.step("rollback queues version 1", |machine| {
        let digest = Status::read(machine)?.digest("booted")?.to_owned();
        let result = done(machine, "rollback")?;
        ensure!(result["left"] == digest.as_str(), "{result:#}");
        let status = expect_status(machine, "rollback 1, booted 2")?;
        ensure!(status.0["rollback-queued"] == true, "{:#}", status.0);
        Ok(digest)
    })?;
    case.step("it can be taken back, and asked for again", |machine| {
        done(machine, "rollback --cancel")?;
        expect_status(machine, "booted 2, rollback 1")?;
        done(machine, "rollback")?;
        refused(machine, "rollback", "NoRollback")?;
        refused(machine, "upgrade", "StagedPending").map(drop)
    })?;
    case.step("apply reboots through logind", apply)?;
    case.step("version 1 is booted", |machine| {
        expect_status(machine, "booted 1, rollback 2")?;
        ensure!(version_of_files(machine)? == "1");
        Ok(())
    })?;
    case.step(
        "what was left behind is not staged again by itself",
        |machine| {
            let message = refused(machine, "upgrade", "Quarantined")?;
            ensure!(message.contains(&digest), "{message}");
            expect_status(machine, "booted 1, rollback 2").map(drop)
        },
    )?;
    case.step("nor after another boot", |machine| {
        machine.reboot()?;
        refused(machine, "upgrade", "Quarantined")?;
        expect_status(machine, "booted 1, rollback 2").map(drop)
    })?;
    case.step("asked for by its digest it is", |machine| {
        done(machine, &format!("upgrade --digest {digest}"))?;
        let status = Status::read(machine)?;
        ensure!(status.digest("staged")? == digest);
        Ok(())
    })?;
    case.step("and it boots", |machine| {
        apply(machine)?;
        expect_status(machine, "booted 2, rollback 1")?;
        ensure!(version_of_files(machine)? == "2");
        Ok(())
    })?;
    case.step("a newer image is welcome all the time", |machine| {
        origin.publish("v3")?;
        done(machine, "upgrade")?;
        let staged = Status::read(machine)?;
        ensure!(
            staged
                .deployment("staged")
                .is_some_and(|it| it["version"] == "3")
        );
        Ok(())
    })?;
    case.step("the repository is sound", sound)
}
