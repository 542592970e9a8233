//! `Apply`: reboot into what waits for the next boot, if nobody objects.
//!
//! Owns the checks before the reboot is asked for, and the unlocking of what is staged and
//! locked: asking for the reboot into it is what its lock waits for. logind does not ask for us
//! (the call comes from root), so block inhibitors are read here; an inhibitor list that cannot
//! be read counts as an objection: any doubt means "do not reboot". Invariant: a reboot that
//! does not come leaves a lock as it was. Other jobs that end in a reboot come through [`run`]
//! too: another tool may have changed what boots next.

use super::progress::Phase;
use super::{Fact, Job, Outcome, Reboot, reboot_required, soft_reboot};
use crate::error::Error;
use crate::image::reference::Digest;
use crate::observe::logind;
use crate::sysroot::{Deployment, Slot, Snapshot};

pub(super) async fn run(
    job: &Job,
    digest: Option<&Digest>,
    mode: Reboot,
    ignore_inhibitors: bool,
) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    let next = target(&snapshot, digest)?;
    let soft = soft_reboot::is_way(job, &snapshot, next, mode).await?;
    if next.slot == Slot::Staged {
        job.systemd.arm_finalization().await?;
    }
    ask_inhibitors(job, ignore_inhibitors).await?;
    if soft {
        job.check_cancelled()?;
        soft_reboot::prepare(job, &snapshot, next).await?;
        // That may have waited for the sysroot lock.
        if let Err(error) = ask_inhibitors(job, ignore_inhibitors).await {
            soft_reboot::take_back(job).await;
            return Err(error);
        }
        reboot_required::withdraw(job).await;
    }
    let way = Way {
        soft,
        ignore_inhibitors,
    };
    let asked = if next.locked {
        unlock_and_reboot(job, next, way).await
    } else {
        reboot(job, way).await
    };
    if asked.is_err() && soft {
        soft_reboot::take_back(job).await;
        reboot_required::tell(job).await;
    }
    asked?;
    let reboot = if soft { "soft-reboot" } else { "reboot" };
    Ok(Outcome {
        facts: vec![
            ("deployment", Fact::Deployment(next.id.clone())),
            ("reboot", Fact::Text(reboot.into())),
        ],
    })
}

/// How the host goes down.
#[derive(Clone, Copy)]
struct Way {
    soft: bool,
    ignore_inhibitors: bool,
}

/// What the reboot leads into: what is staged, locked or not, else the first of the boot order.
fn target<'a>(snapshot: &'a Snapshot, digest: Option<&Digest>) -> Result<&'a Deployment, Error> {
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    let staged = snapshot.staged();
    let next = staged
        .or_else(|| snapshot.next_boot())
        .ok_or(Error::NotBooted)?;
    if next.id == booted.id {
        return Err(Error::NoUpdate(
            "nothing waits for the next boot; stage an update or roll back first".into(),
        ));
    }
    if let Some(wanted) = digest
        && next.digest() != Some(wanted)
    {
        return Err(Error::DigestMismatch(format!(
            "the next boot gives {}, not {wanted}; look at the status and ask again",
            next.digest()
                .map_or("a deployment that is no container image", Digest::as_str)
        )));
    }
    Ok(next)
}

/// Unlocks `staged` for this reboot only. The sysroot lock is held until logind has answered,
/// so that nobody puts another deployment in its place meanwhile.
async fn unlock_and_reboot(job: &Job, staged: &Deployment, way: Way) -> Result<(), Error> {
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    // It may have taken a while to get it.
    ask_inhibitors(job, way.ignore_inhibitors).await?;
    job.progress.say("unlocking the finalization");
    lock.set_finalization(staged.id.clone(), false).await?;
    let asked = reboot(job, way).await;
    if asked.is_err()
        && let Err(error) = lock.set_finalization(staged.id.clone(), true).await
    {
        tracing::error!(%error, "what is staged stays unlocked: any reboot switches to it");
    }
    asked
}

async fn ask_inhibitors(job: &Job, ignore_inhibitors: bool) -> Result<(), Error> {
    job.check_cancelled()?;
    job.progress
        .enter(Phase::Rebooting, "asking logind for the reboot");
    if !ignore_inhibitors && let Some(holder) = job.inhibitors.against_reboot() {
        return Err(Error::Inhibited(format!(
            "{} keeps osteward from rebooting: {}; what is staged stays staged",
            holder.who, holder.why
        )));
    }
    // When the job was asked for, nobody else was; whoever came since was not considered.
    if let Some(uid) = job.alone
        && job.logind.others_are_logged_in(uid).await?
    {
        return Err(Error::Inhibited(
            "others have logged in since this was asked for; what is staged stays staged, and \
             an administrator can apply it nevertheless"
                .into(),
        ));
    }
    let objections = job.logind.shutdown_inhibitors().await?;
    if !ignore_inhibitors && let Some(logind::Inhibitor { who, why, .. }) = objections.first() {
        return Err(Error::Inhibited(format!(
            "{who} forbids the reboot: {why}; what is staged stays staged"
        )));
    }
    Ok(())
}

async fn reboot(job: &Job, way: Way) -> Result<(), Error> {
    job.progress.point_of_no_return();
    job.check_cancelled()?;
    let how = logind::Reboot {
        soft: way.soft,
        ignore_inhibitors: way.ignore_inhibitors,
        systemd: job.systemd.version().await,
    };
    Ok(job.logind.reboot(how).await?)
}
