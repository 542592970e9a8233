//! `Discard`: remove what the caller names, and say how much that frees.

use super::progress::Phase;
use super::{Discardable, Fact, Facts, Job, Outcome, bound, reboot_required};
use crate::error::Error;
use crate::import::{self, Wanted};
use crate::sysroot::{Deployment, Discarded, ImageCleanup, Lock, Prune, Slot, Snapshot};

pub(super) async fn run(job: &Job, what: &[Discardable], dry_run: bool) -> Result<Outcome, Error> {
    job.progress
        .enter(Phase::Cleaning, "waiting for the sysroot lock");
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    snapshot.booted().ok_or(Error::NotBooted)?;
    let doomed = doomed(&snapshot, what)?;
    let which = if what.contains(&Discardable::Cache) {
        ImageCleanup::Downloaded
    } else {
        ImageCleanup::Unreferenced
    };
    if dry_run {
        job.progress.say("counting");
        let deployments = doomed.len();
        let mut counted = lock.preview_clean_up(which, doomed, &job.cancel).await?;
        counted.bytes += half_fetched(job, which, true).await?;
        return Ok(Outcome {
            facts: facts(false, deployments, &counted),
        });
    }
    remove(job, &lock, doomed, which).await
}

/// Takes deployments off the list, then removes what only they held.
pub(super) async fn remove(
    job: &Job,
    lock: &Lock,
    doomed: Vec<String>,
    which: ImageCleanup,
) -> Result<Outcome, Error> {
    let mut deployments = 0;
    if !doomed.is_empty() {
        job.check_cancelled()?;
        job.progress.say("removing deployments");
        deployments = lock.undeploy(doomed).await?;
        reboot_required::tell(job).await;
    }
    job.progress.part(0.3);
    job.progress.say("removing images and objects");
    // First: what guards the images that these are of may go with the rest.
    let half_fetched = half_fetched(job, which, false).await?;
    let mut removed = lock.clean_up(which, Prune::Always, &job.cancel).await?;
    removed.bytes += half_fetched;
    remove_indexes(job).await;
    bound::prune(job, &job.sysroot.snapshot().await?).await;
    let changed = deployments + removed.images + removed.layers > 0 || half_fetched > 0;
    Ok(Outcome {
        facts: facts(changed, deployments, &removed),
    })
}

/// Removes layers that did not come whole, unless a job comes back to them or what they are of is to
/// stay; returns their bytes.
async fn half_fetched(job: &Job, which: ImageCleanup, dry_run: bool) -> Result<u64, Error> {
    let wanted = match which {
        ImageCleanup::Unreferenced => Wanted::Guarded,
        ImageCleanup::Downloaded => Wanted::Only(job.download.others()),
    };
    let path = job.sysroot.repo_path();
    let discard = move || import::discard_half_fetched(&path, &wanted, dry_run);
    let freed = tokio::task::spawn_blocking(discard).await;
    Ok(freed.map_err(|error| Error::Internal(error.to_string()))??)
}

/// What is known of images that are gone is of no use to anybody.
async fn remove_indexes(job: &Job) {
    let path = job.sysroot.repo_path();
    let removed = tokio::task::spawn_blocking(move || import::discard_indexes(&path)).await;
    match removed {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "old content indexes stay"),
        Err(error) => tracing::warn!(%error, "old content indexes stay"),
    }
}

fn facts(changed: bool, deployments: usize, discarded: &Discarded) -> Facts {
    vec![
        ("changed", Fact::Flag(changed)),
        ("deployments", Fact::Number(deployments as u64)),
        ("images", Fact::Number(discarded.images as u64)),
        ("layers", Fact::Number(discarded.layers as u64)),
        ("freed-bytes", Fact::Number(discarded.bytes)),
    ]
}

/// Whether the deployment may be taken off the list by whoever names it.
pub(super) fn removable(snapshot: &Snapshot, deployment: &Deployment) -> Result<(), Error> {
    let id = &deployment.id;
    if deployment.slot == Slot::Booted {
        return Err(Error::NotSupported(format!(
            "deployment {id} is what runs now; boot another one to remove it"
        )));
    }
    if deployment.pinned {
        return Err(Error::NotSupported(format!(
            "deployment {id} is pinned; unpin it first, with `osteward unpin`"
        )));
    }
    if snapshot.rollback_queued && deployment.slot == Slot::Rollback {
        return Err(Error::StagedPending(format!(
            "a rollback to deployment {id} is queued; cancel the rollback first"
        )));
    }
    Ok(())
}

/// The deployments that `what` names; naming one that is not there is no error, one that
/// must stay is.
fn doomed(snapshot: &Snapshot, what: &[Discardable]) -> Result<Vec<String>, Error> {
    let mut doomed = Vec::new();
    for what in what {
        let deployment = match what {
            Discardable::Staged => snapshot.staged(),
            Discardable::Rollback => snapshot.rollback(),
            Discardable::Cache | Discardable::Unreferenced => None,
        };
        let Some(deployment) = deployment else {
            continue;
        };
        removable(snapshot, deployment)?;
        doomed.push(deployment.id.clone());
    }
    Ok(doomed)
}
