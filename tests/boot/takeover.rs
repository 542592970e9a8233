//! Hosts that others made are taken over, and handed back.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use osteward_tests::image::Written;
use osteward_tests::machine::Machine;
use osteward_tests::oracle;
use osteward_tests::relay::Relay;
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{Status, apply, done, expect_status, refused};
use crate::update::sound;

/// Fails unless exactly the layers `wanted` were fetched through the relay, each from its beginning, and none
/// twice from the same byte. Long ones come in parts, each with a request of its own; whether parts overlap is
/// not looked at.
fn fetched(relay: &Relay, image: &Written, wanted: &[&String]) -> Result<()> {
    let mut parts: BTreeMap<&String, BTreeMap<u64, usize>> = BTreeMap::new();
    for request in relay.requests() {
        let named = |layer: &&String| request.path.contains(layer.as_str());
        if let Some(layer) = image.layers.iter().find(named)
            && request.method == "GET"
        {
            let from = request.range().0;
            *parts.entry(layer).or_default().entry(from).or_default() += 1;
        }
    }
    let found: BTreeSet<&String> = parts.keys().copied().collect();
    let wanted: BTreeSet<&String> = wanted.iter().copied().collect();
    ensure!(found == wanted, "fetched {found:#?}, not {wanted:#?}");
    let once = |parts: &BTreeMap<u64, usize>| {
        parts.contains_key(&0) && parts.values().all(|times| *times == 1)
    };
    ensure!(parts.values().all(once), "not once: {parts:#?}");
    Ok(())
}

/// A host whose image ostree-ext wrote, as bootc does: the disk that all machines start with.
pub(crate) fn ostree_ext(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let layout = case.bootable.layout.clone();
    let (first, second) = (layout.find("v1")?, layout.find("v2")?);
    case.step(
        "the status knows the image that ostree-ext wrote",
        |machine| {
            let status = expect_status(machine, "booted 1")?;
            let booted = status.deployment("booted").context("nothing is booted")?;
            ensure!(booted["digest"] == first.digest.as_str(), "{booted:#}");
            ensure!(booted["layers"] == first.layers.len(), "{booted:#}");
            ensure!(booted["size-bytes"] == first.size, "{booted:#}");
            Ok(())
        },
    )?;
    case.step("an upgrade fetches what is new, once", |machine| {
        origin.publish("v2")?;
        let relay = origin.through_relay(machine)?;
        done(machine, "upgrade")?;
        let new = second.layers.iter().filter(|it| !first.layers.contains(it));
        fetched(&relay, &second, &new.collect::<Vec<_>>())?;
        expect_status(machine, "staged 2, booted 1").map(drop)
    })?;
    let image = case.step("version 2 runs", |machine| {
        apply(machine)?;
        let status = expect_status(machine, "booted 2, rollback 1")?;
        let booted = status.deployment("booted").context("nothing is booted")?;
        let image = booted["image"].as_str().context("no image")?;
        let name = image.trim_start_matches("ostree-unverified-registry:");
        Ok(format!("docker://{name}"))
    })?;
    case.step(
        "handed back: ostree-ext reads what osteward wrote",
        |machine| {
            let commit =
                machine.ok("ostree admin status | grep -m1 '^\\*' | sed 's/.* //; s/[.].*//'")?;
            machine.power_off()?;
            machine.with_disk(|root| {
                let repo = root.join("ostree/repo");
                let stored = oracle::query(&repo, &image)?;
                let stored = stored.with_context(|| format!("no {image} for ostree-ext"))?;
                ensure!(stored.manifest_digest == second.digest, "{stored:?}");
                ensure!(stored.merge_commit == commit, "{stored:?} is not {commit}");
                Ok(())
            })
        },
    )?;
    case.step(
        "ostree-ext goes on: it cleans up, and brings version 3",
        |machine| {
            machine.with_disk(|root| {
                oracle::prune(root)?;
                let source = format!("oci:{}:v3", layout.path.display());
                let third = oracle::import_as(&root.join("ostree/repo"), &source, &image)?;
                ensure!(third.version.as_deref() == Some("3"), "{third:?}");
                Ok(())
            })
        },
    )?;
    case.step(
        "taken over again, nothing of version 3 is fetched",
        |machine| {
            machine.power_on()?;
            expect_status(machine, "booted 2, rollback 1")?;
            origin.publish("v3")?;
            done(machine, &format!("switch {}", origin.image()))?;
            Ok(())
        },
    )?;
    case.step("it boots, and the repository is sound", |machine| {
        apply(machine)?;
        expect_status(machine, "booted 3, rollback 2")?;
        sound(machine)
    })
}

/// The branch that a host of plain ostree follows.
const BRANCH: &str = "lab/plain";

const DEPLOY_PLAIN: &str = r#"unshare --mount sh -ec '
    mount -o remount,rw /sysroot
    booted=$(ostree admin status | sed -n "s/^\* default \([0-9a-f]*\).*/\1/p")
    ostree commit --repo=/sysroot/ostree/repo --branch=lab/plain --subject=plain \
        --tree=ref="$booted" >/dev/null
    ostree admin deploy --os=default lab/plain'"#;

const FORGET: &str = r#"unshare --mount sh -ec '
    mount -o remount,rw /sysroot
    ostree admin undeploy 1
    repo=--repo=/sysroot/ostree/repo
    for ref in $(ostree refs $repo --list ostree/container); do
        ostree refs $repo --delete $ref
    done
    ostree prune $repo --refs-only'"#;

/// Makes the machine one that never heard of containers: the booted tree as a branch of plain
/// ostree, deployed, and nothing of the image left.
fn forget_containers(machine: &mut Machine) -> Result<()> {
    machine.ok(DEPLOY_PLAIN)?;
    machine.reboot()?;
    machine.ok(FORGET).map(drop)
}

/// A host that was made, and kept, by `ostree admin`.
pub(crate) fn plain_ostree(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    let image = case.bootable.layout.find("v2")?;
    case.step("a host of plain ostree", forget_containers)?;
    case.step("the status is right: booted, of a branch", |machine| {
        let status = Status::read(machine)?;
        let booted = status.deployment("booted").context("nothing is booted")?;
        ensure!(status.deployments().count() == 1, "{}", status.summary());
        ensure!(
            booted["image"] == BRANCH && booted["digest"] == "",
            "{booted:#}"
        );
        let tracking = &status.0["tracking"];
        ensure!(tracking["transport"] == "ostree", "{tracking:#}");
        ensure!(status.0["boot-digest"] == "", "{:#}", status.0);
        Ok(())
    })?;
    case.step(
        "there is nothing to follow, and osteward says what to do",
        |machine| {
            let message = refused(machine, "upgrade", "NotSupported")?;
            ensure!(message.contains("osteward switch"), "{message}");
            Ok(())
        },
    )?;
    let relay = case.step(
        "switch takes it over; each layer is fetched once",
        |machine| {
            origin.publish("v2")?;
            let relay = Origin::relay(machine)?;
            done(machine, &format!("switch {}", origin.through(&relay)))?;
            fetched(&relay, &image, &image.layers.iter().collect::<Vec<_>>())?;
            Ok(relay)
        },
    )?;
    case.step(
        "version 2 runs, the plain deployment is the rollback",
        |machine| {
            apply(machine)?;
            let status = Status::read(machine)?;
            ensure!(status.digest("booted")? == image.digest);
            let rollback = status.deployment("rollback").context("no rollback")?;
            ensure!(rollback["image"] == BRANCH, "{rollback:#}");
            Ok(())
        },
    )?;
    case.step("and the plain one still boots", |machine| {
        done(machine, "rollback")?;
        apply(machine)?;
        let status = Status::read(machine)?;
        let booted = status.deployment("booted").context("nothing is booted")?;
        ensure!(booted["image"] == BRANCH, "{booted:#}");
        ensure!(machine.ok("cat /usr/lib/lab/version")? == "1");
        Ok(())
    })?;
    case.step("going forward again fetches nothing", |machine| {
        let words = format!(
            "switch {} --digest {}",
            origin.through(&relay),
            image.digest
        );
        let result = done(machine, &words)?;
        ensure!(result["fetched-bytes"] == 0, "{result:#}");
        fetched(&relay, &image, &image.layers.iter().collect::<Vec<_>>())
    })?;
    case.step("the repository is sound", sound)
}
