//! The last step of an upgrade: an image that is in the repository becomes the next boot.
//!
//! Invariants: what is decided is decided again under the sysroot lock, because other tools may
//! have staged something while layers were on their way; a clean-up that fails does not undo
//! what was staged.

use super::progress::Phase;
use super::source::Found;
use super::upgrade::{Decision, Pull, decide, is_quarantined, refuse_beside_rollback};
use super::{Fact, Facts, Job, bound, kargs, reboot_required, room};
use crate::error::Error;
use crate::import::Imported;
use crate::sysroot::{ImageCleanup, Lock, Prune};

/// What a caller has to do to get into what the job leaves.
pub(super) fn reboot_fact(needed: bool) -> Fact {
    Fact::Text(if needed { "reboot" } else { "none" }.into())
}

/// Makes the deployment, then removes what it made unnecessary. A failing clean-up does
/// not undo the staged update, which is what was asked for.
pub(super) async fn stage(
    job: &Job,
    found: &Found,
    pull: &Pull,
    imported: Imported,
    facts: &mut Facts,
) -> Result<(), Error> {
    job.check_cancelled()?;
    let (prune, commit) = (prune_after(&imported), imported.commit);
    job.progress
        .enter(Phase::Staging, "waiting for the sysroot lock");
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    // Another tool may have staged something while layers were on their way.
    let snapshot = job.sysroot.snapshot().await?;
    refuse_beside_rollback(&snapshot)?;
    if let Decision::Nothing(why) = decide(&snapshot, found, pull, is_quarantined(job, found)?)? {
        job.progress.say(why);
        let staged = snapshot.staged().filter(|staged| !staged.locked);
        facts.push(("reboot", reboot_fact(staged.is_some())));
        return Ok(());
    }
    room::before_staging(job, &commit).await?;
    // Another tool's clean-up may have taken what was pulled; nobody's can while the lock is held.
    bound::pull(job, &commit, Phase::Staging).await?;
    let was_locked = snapshot.staged().is_some_and(|staged| staged.locked);
    let locked = pull.lock.unwrap_or(was_locked);
    if let Some(replaced) = snapshot.staged().and_then(|staged| staged.digest()) {
        job.progress.say(format!("replacing the staged {replaced}"));
        facts.push(("replaced", Fact::Text(replaced.to_string())));
    }
    job.progress.say("making the deployment");
    job.progress.part(0.3);
    let arguments = kargs::for_image(job, &snapshot, &commit).await?;
    let staged = lock
        .stage(commit, &found.origin, arguments, locked, &job.cancel)
        .await?;
    staged_now(job).await;
    if pull.digest.is_some() {
        let digest = found.image.digest.to_string();
        let lifted = job.change_quarantine(move |list| list.lift(&digest)).await;
        if let Err(error) = lifted {
            tracing::warn!(%error, "the image is staged, but stays on the quarantine list");
        }
    }
    job.progress
        .enter(Phase::Cleaning, "removing what is no longer needed");
    if let Err(error) = clean_up(job, &lock, found, staged.locked, prune).await {
        tracing::warn!(%error, "clean-up after staging failed; osteward discard unreferenced tries again");
    }
    facts.push(("deployment", Fact::Deployment(staged.id())));
    facts.push(("staged", Fact::Flag(true)));
    facts.push(("locked", Fact::Flag(staged.locked)));
    facts.push(("reboot", reboot_fact(!staged.locked)));
    Ok(())
}

/// From here on a reboot switches to it, unless it is locked.
pub(super) async fn staged_now(job: &Job) {
    job.progress.point_of_no_return();
    if let Err(error) = job.systemd.arm_finalization().await {
        tracing::warn!(%error, "it is staged; a reboot very soon may not switch to it");
    }
    reboot_required::tell(job).await;
}

/// An image that was here has left no objects of attempts behind.
fn prune_after(imported: &Imported) -> Prune {
    if imported.bytes_fetched == 0 && imported.layers_written == 0 {
        Prune::IfRefsWent
    } else {
        Prune::Always
    }
}

/// What is locked is off the list after any reboot; its download stays for the next try.
async fn clean_up(
    job: &Job,
    lock: &Lock,
    found: &Found,
    locked: bool,
    prune: Prune,
) -> Result<(), Error> {
    if !locked {
        let manifest = &found.image.digest;
        lock.release_download(manifest, &job.cancel).await?;
    }
    lock.clean_up(ImageCleanup::Unreferenced, prune, &job.cancel)
        .await?;
    bound::prune(job, &job.sysroot.snapshot().await?).await;
    Ok(())
}
