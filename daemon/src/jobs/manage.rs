//! `SetPinned` and `Remove`: one deployment that the caller names.
//!
//! Invariant: what runs now, what is pinned and what a queued rollback leads to are never
//! removed; the deployment is looked up again under the sysroot lock.

use super::progress::Phase;
use super::{Fact, Job, Outcome, discard};
use crate::error::Error;
use crate::sysroot::{Deployment, ImageCleanup, Slot, Snapshot};

pub(super) async fn pin(job: &Job, id: &str, pinned: bool) -> Result<Outcome, Error> {
    job.progress
        .enter(Phase::Staging, "waiting for the sysroot lock");
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    let deployment = named(&snapshot, id)?;
    if deployment.slot == Slot::Staged {
        return Err(Error::NotSupported(format!(
            "deployment {id} is staged and cannot be pinned before it is booted"
        )));
    }
    let changed = deployment.pinned != pinned;
    if changed {
        job.progress.point_of_no_return();
        job.check_cancelled()?;
        lock.set_pinned(deployment.id.clone(), pinned).await?;
    }
    Ok(Outcome {
        facts: vec![
            ("changed", Fact::Flag(changed)),
            ("deployment", Fact::Deployment(deployment.id.clone())),
            ("pinned", Fact::Flag(pinned)),
        ],
    })
}

pub(super) async fn remove(job: &Job, id: &str) -> Result<Outcome, Error> {
    job.progress
        .enter(Phase::Cleaning, "waiting for the sysroot lock");
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    let deployment = named(&snapshot, id)?;
    discard::removable(&snapshot, deployment)?;
    let mut outcome =
        discard::remove(job, &lock, vec![id.to_owned()], ImageCleanup::Unreferenced).await?;
    if let Some(digest) = deployment.digest() {
        let digest = Fact::Text(digest.to_string());
        outcome.facts.push(("digest", digest));
    }
    Ok(outcome)
}

/// The deployment of that id, which may have gone since the caller saw it.
pub(super) fn named<'a>(snapshot: &'a Snapshot, id: &str) -> Result<&'a Deployment, Error> {
    snapshot.booted().ok_or(Error::NotBooted)?;
    let known = snapshot.deployments.iter().find(|known| known.id == id);
    known.ok_or_else(|| {
        Error::UnknownObject(format!("deployment {id} is gone; look at the status again"))
    })
}
