//! Into the next deployment without the kernel: whether that can be, and its preparation.
//!
//! libostree mounts the next root for the whole host, which the daemon's sandbox cannot; its own
//! program does it, in a unit outside. Invariants: what is prepared is the deployment that was
//! meant; what is prepared and not used is taken back, because any later reboot may take it.

use super::Job;
use super::Reboot;
use crate::error::Error;
use crate::image::here::{OSTREE, is_installed};
use crate::observe::systemd::{Run, SOFT_REBOOT_SINCE};
use crate::sysroot::{Deployment, Snapshot};

/// Whether `target` is to be reached without the kernel.
pub(super) async fn is_way(
    job: &Job,
    snapshot: &Snapshot,
    target: &Deployment,
    mode: Reboot,
) -> Result<bool, Error> {
    match (mode, obstacle(job, snapshot, target).await) {
        (Reboot::Full, _) => Ok(false),
        (Reboot::Auto | Reboot::Soft, None) => Ok(true),
        (Reboot::Auto, Some(why)) => {
            job.progress.say(format!("no soft reboot: {why}"));
            Ok(false)
        }
        (Reboot::Soft, Some(why)) => Err(Error::NotSupported(format!(
            "a soft reboot is not possible: {why}; ask for a full one"
        ))),
    }
}

/// What is in the way; `None` if nothing.
pub(super) async fn obstacle(
    job: &Job,
    snapshot: &Snapshot,
    target: &Deployment,
) -> Option<String> {
    let host = obstacle_on_host(job, snapshot).await;
    host.or_else(|| {
        (!target.soft_reboot).then(|| {
            format!(
                "deployment {} has another kernel, other kernel arguments or another SELinux policy",
                target.id
            )
        })
    })
}

/// What is in the way of every soft reboot of this host.
pub(super) async fn obstacle_on_host(job: &Job, snapshot: &Snapshot) -> Option<String> {
    if !snapshot.features.contains(&"ostree-soft-reboot") {
        return Some("this host's libostree has none (2025.3 has)".into());
    }
    if !is_installed(OSTREE) {
        return Some(format!("{OSTREE} is not installed"));
    }
    match job.systemd.version().await {
        Some(version) if version >= SOFT_REBOOT_SINCE => None,
        Some(version) => Some(format!(
            "this host's systemd {version} has none ({SOFT_REBOOT_SINCE} has)"
        )),
        None => Some("systemd does not say its version".into()),
    }
}

/// Mounts the root of `target` for the soft reboot. Waits for the sysroot lock, which must not
/// be held.
pub(super) async fn prepare(
    job: &Job,
    snapshot: &Snapshot,
    target: &Deployment,
) -> Result<(), Error> {
    let place = |snapshot: &Snapshot| {
        let mut all = snapshot.deployments.iter();
        all.position(|deployment| deployment.id == target.id)
    };
    let index = place(snapshot);
    let number = index.unwrap_or_default().to_string();
    job.progress.say("preparing the soft reboot");
    run(job, &["prepare-soft-reboot", &number]).await?;
    // It was told a place in the boot order, which another tool may have changed just before.
    if index.is_none() || place(&job.sysroot.snapshot().await?) != index {
        take_back(job).await;
        return Err(Error::DigestMismatch(
            "another tool has changed the deployments; look at the status and ask again".into(),
        ));
    }
    Ok(())
}

/// Undoes [`prepare`].
pub(super) async fn take_back(job: &Job) {
    if let Err(error) = run(job, &["prepare-soft-reboot", "--reset"]).await {
        tracing::error!(%error, "the next reboot may be a soft one: umount -R /run/nextroot");
    }
}

async fn run(job: &Job, words: &[&str]) -> Result<(), Error> {
    let command = [OSTREE, "admin"].iter().chain(words);
    let run = Run {
        name: "soft-reboot",
        description: "Preparing a soft reboot".into(),
        command: command.map(|&word| word.to_owned()).collect(),
        environment: Vec::new(),
        output: None,
        in_host_mounts: true,
    };
    match job.systemd.run(run).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::NotSupported(format!(
            "the soft reboot cannot be prepared: {error}; ask for a full one"
        ))),
    }
}
