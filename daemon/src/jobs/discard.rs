//! `Discard`: remove what the caller names, and say how much that frees.

use super::progress::Phase;
use super::{Discardable, Fact, Job, Outcome};
use crate::error::Error;
use crate::sysroot::{Discarded, ImageCleanup, Snapshot};

pub(super) async fn run(job: &Job, what: &[Discardable], dry_run: bool) -> Result<Outcome, Error> {
    job.progress
        .enter(Phase::Cleaning, "waiting for the sysroot lock");
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    snapshot.booted().ok_or(Error::NotBooted)?;
    let doomed = doomed(&snapshot, what)?;
    let mut deployments = doomed.len();
    if !dry_run && !doomed.is_empty() {
        job.check_cancelled()?;
        job.progress.say("removing deployments");
        deployments = lock.undeploy(doomed).await?;
    }
    job.progress.part(0.3);
    job.progress.say("removing images and objects");
    let which = if what.contains(&Discardable::Cache) {
        ImageCleanup::Downloaded
    } else {
        ImageCleanup::Unreferenced
    };
    let Discarded {
        images,
        layers,
        bytes,
    } = lock.clean_up(which, dry_run, &job.cancel).await?;
    Ok(Outcome {
        facts: vec![
            (
                "changed",
                Fact::Flag(!dry_run && deployments + images + layers > 0),
            ),
            ("deployments", Fact::Number(deployments as u64)),
            ("images", Fact::Number(images as u64)),
            ("layers", Fact::Number(layers as u64)),
            ("freed-bytes", Fact::Number(bytes)),
        ],
    })
}

/// The deployments that `what` names; naming one that is not there is no error, a
/// pinned one is.
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
        if deployment.pinned {
            return Err(Error::NotSupported(format!(
                "deployment {} is pinned; unpin it with `ostree admin pin --unpin` first",
                deployment.id
            )));
        }
        doomed.push(deployment.id.clone());
    }
    Ok(doomed)
}
