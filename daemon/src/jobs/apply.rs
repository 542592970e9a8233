//! `Apply`: reboot into what waits for the next boot, if nobody objects.
//!
//! Owns the checks before the reboot is asked for. logind does not ask for us (the call
//! comes from root), so block inhibitors are read here; an inhibitor list that cannot be
//! read counts as an objection: any doubt means "do not reboot". Other jobs that end in a
//! reboot come through [`run`] too: another tool may have changed what boots next.

use super::progress::Phase;
use super::{Fact, Job, Outcome};
use crate::error::Error;
use crate::image::reference::Digest;
use crate::observe::logind;

pub(super) async fn run(
    job: &Job,
    digest: Option<&Digest>,
    ignore_inhibitors: bool,
) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    let next = snapshot.next_boot().ok_or(Error::NotBooted)?;
    if let Some(staged) = snapshot.staged().filter(|staged| staged.locked) {
        return Err(Error::NoUpdate(format!(
            "{} is staged, but its finalization is locked: a reboot would drop it",
            staged.id
        )));
    }
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
    reboot(job, ignore_inhibitors).await?;
    Ok(Outcome {
        facts: vec![("deployment", Fact::Deployment(next.id.clone()))],
    })
}

/// Asks logind for the reboot unless somebody inhibits it.
async fn reboot(job: &Job, ignore_inhibitors: bool) -> Result<(), Error> {
    job.check_cancelled()?;
    job.progress
        .enter(Phase::Rebooting, "asking logind for the reboot");
    let objections = job.logind.shutdown_inhibitors().await?;
    if !ignore_inhibitors && let Some(logind::Inhibitor { who, why, .. }) = objections.first() {
        return Err(Error::Inhibited(format!(
            "{who} forbids the reboot: {why}; what is staged stays staged"
        )));
    }
    job.progress.point_of_no_return();
    job.check_cancelled()?;
    Ok(job.logind.reboot().await?)
}
