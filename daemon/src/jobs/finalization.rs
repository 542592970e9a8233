//! The finalization lock of what is staged: set, taken away, and turned by an upgrade that
//! finds its image staged already.
//!
//! Invariant: what is turned is the deployment that was meant, looked up again under the
//! sysroot lock.

use super::progress::Phase;
use super::{Fact, Job, Outcome, manage, reboot_required};
use crate::error::Error;
use crate::image::reference::Digest;
use crate::sysroot::{Deployment, Lock, Slot, Snapshot};

/// Locks or unlocks the finalization of the deployment `id`.
pub(super) async fn run(job: &Job, id: &str, locked: bool) -> Result<Outcome, Error> {
    job.progress
        .enter(Phase::Staging, "waiting for the sysroot lock");
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    let known = manage::named(&snapshot, id)?;
    if known.slot != Slot::Staged {
        return Err(Error::NotSupported(format!(
            "deployment {id} is not staged; only what waits for finalization can be locked or unlocked"
        )));
    }
    let changed = turn(job, &lock, known, locked).await?;
    let mut facts = vec![
        ("changed", Fact::Flag(changed)),
        ("deployment", Fact::Deployment(known.id.clone())),
        ("locked", Fact::Flag(locked)),
        ("reboot", super::staging::reboot_fact(!locked)),
    ];
    if let Some(digest) = known.digest() {
        facts.push(("digest", Fact::Text(digest.to_string())));
    }
    Ok(Outcome { facts })
}

/// As [`run`], for the staged deployment of an image that is staged already; returns whether
/// anything changed.
pub(super) async fn of_image(job: &Job, digest: &Digest, locked: bool) -> Result<bool, Error> {
    job.progress
        .enter(Phase::Staging, "waiting for the sysroot lock");
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    let staged = staged_image(&snapshot, digest).ok_or_else(|| {
        Error::DigestMismatch(format!(
            "{digest} is not staged any more; look at the status and ask again"
        ))
    })?;
    turn(job, &lock, staged, locked).await
}

fn staged_image<'a>(snapshot: &'a Snapshot, digest: &Digest) -> Option<&'a Deployment> {
    snapshot
        .staged()
        .filter(|staged| staged.digest() == Some(digest))
}

async fn turn(job: &Job, lock: &Lock, staged: &Deployment, locked: bool) -> Result<bool, Error> {
    if staged.locked == locked {
        return Ok(false);
    }
    job.progress.say(if locked {
        "locking the finalization"
    } else {
        "unlocking the finalization"
    });
    // In this order: whoever cancels after the check is told that it is too late.
    job.progress.point_of_no_return();
    job.check_cancelled()?;
    lock.set_finalization(staged.id.clone(), locked).await?;
    reboot_required::tell(job).await;
    Ok(true)
}
