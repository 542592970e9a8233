//! `Rollback` and `CancelRollback`: the boot order, changed at once and for good.
//!
//! Owns the rule that a rollback sticks: the digest left behind is on the quarantine
//! list, on disk, before the boot order changes. A power cut between the two leaves the
//! host on the newer image with the older one not offered, never the other way round.

use super::progress::Phase;
use super::{Fact, Job, Outcome, Reboot, apply, now, reboot_required};
use crate::error::Error;
use crate::image::reference::Digest;
use crate::record::Reason;
use crate::state::{self, Command, State};
use crate::sysroot::{Deployment, Snapshot};

/// How to go back.
pub(super) struct Back<'a> {
    pub(super) digest: Option<&'a Digest>,
    pub(super) discard_staged: bool,
    pub(super) quarantine: bool,
}

fn state_of(snapshot: &Snapshot) -> State {
    match (
        snapshot.is_booted,
        snapshot.staged(),
        snapshot.rollback_queued,
    ) {
        (false, _, _) => State::NotBooted,
        (true, Some(_), _) => State::Staged,
        (true, None, true) => State::RollbackQueued,
        (true, None, false) => State::Idle,
    }
}

/// The deployment to go back to.
fn target<'a>(snapshot: &'a Snapshot, digest: Option<&Digest>) -> Result<&'a Deployment, Error> {
    let none = || {
        Error::NoRollback(
            "there is no previous deployment to go back to; one appears after the next update"
                .into(),
        )
    };
    let Some(digest) = digest else {
        return snapshot.rollback().ok_or_else(none);
    };
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    snapshot
        .deployments
        .iter()
        .find(|d| {
            d.digest() == Some(digest) && d.id != booted.id && d.stateroot == booted.stateroot
        })
        .ok_or_else(|| {
            Error::NoRollback(format!(
                "no deployment has the digest {digest}; see the status"
            ))
        })
}

pub(super) async fn run(
    job: &Job,
    back: &Back<'_>,
    reboot: Option<Reboot>,
) -> Result<Outcome, Error> {
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    let target = match target(&snapshot, back.digest) {
        // In its own words: there may well be another deployment to go back to.
        Err(error) if back.digest.is_some() => return Err(error),
        other => other,
    };
    let command = Command::Rollback {
        possible: target.is_ok(),
        discard_staged: back.discard_staged,
    };
    state::next(state_of(&snapshot), command)
        .map_err(|refused| Error::refused(refused, &snapshot))?;
    let target = target?;
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    job.progress
        .enter(Phase::Bootloader, format!("ordering {} first", target.id));
    // In this order: whoever cancels after the check is told that it is too late.
    job.progress.point_of_no_return();
    job.check_cancelled()?;
    if back.quarantine {
        remember(job, &snapshot, target).await?;
    }
    if let Err(error) = lock.boot_next(target.id.clone()).await {
        // The host stays where it is, so nothing was left behind.
        let stays = booted.digest().map(Digest::to_string).unwrap_or_default();
        forget(job, stays).await;
        return Err(error.into());
    }
    drop(lock);
    reboot_required::tell(job).await;
    let mut facts = vec![
        ("changed", Fact::Flag(true)),
        ("deployment", Fact::Deployment(target.id.clone())),
        ("reboot", Fact::Text("reboot".into())),
    ];
    if let Some(digest) = target.digest() {
        facts.push(("digest", Fact::Text(digest.to_string())));
    }
    if let Some(left) = booted.digest() {
        facts.push(("left", Fact::Text(left.to_string())));
    }
    if let Some(mode) = reboot {
        apply::run(job, target.digest(), mode, false).await?;
    }
    Ok(Outcome { facts })
}

/// Puts what is left behind on the list: the booted image, and a staged one that goes.
async fn remember(job: &Job, snapshot: &Snapshot, target: &Deployment) -> Result<(), Error> {
    let to_digest = target.digest().map(Digest::to_string).unwrap_or_default();
    let left: Vec<String> = [snapshot.booted(), snapshot.staged()]
        .into_iter()
        .flatten()
        .filter_map(|deployment| deployment.digest())
        .map(Digest::to_string)
        .filter(|digest| *digest != to_digest)
        .collect();
    let written = job.change_quarantine(move |list| {
        // The same for all, so that undoing the rollback finds them.
        let reason = Reason {
            reason: "user-rollback".into(),
            since: now(),
            to_digest: to_digest.clone(),
        };
        for digest in &left {
            list.add(digest, reason.clone())?;
        }
        list.lift(&to_digest)
    });
    match written.await {
        // A list that cannot be read keeps everything from being staged, so this rollback
        // sticks too; going back must not depend on it.
        Err(Error::Record(error)) => tracing::warn!(%error, "the rollback is not remembered"),
        other => drop(other?),
    }
    Ok(())
}

/// Takes back what the rollback away from `digest` put on the list. The boot order is what
/// was asked for, and it stands whatever becomes of the list.
async fn forget(job: &Job, digest: String) {
    let written = job.change_quarantine(move |list| list.lift_rollback(&digest));
    if let Err(error) = written.await {
        tracing::warn!(%error, "the quarantine list still has what the rollback left behind");
    }
}

pub(super) async fn cancel(job: &Job) -> Result<Outcome, Error> {
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    state::next(state_of(&snapshot), Command::CancelRollback)
        .map_err(|refused| Error::refused(refused, &snapshot))?;
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    job.progress.enter(
        Phase::Bootloader,
        format!("ordering {} first again", booted.id),
    );
    job.progress.point_of_no_return();
    job.check_cancelled()?;
    lock.boot_next(booted.id.clone()).await?;
    reboot_required::tell(job).await;
    if let Some(digest) = booted.digest() {
        forget(job, digest.to_string()).await;
    }
    Ok(Outcome {
        facts: vec![
            ("changed", Fact::Flag(true)),
            ("deployment", Fact::Deployment(booted.id.clone())),
            ("reboot", Fact::Text("none".into())),
        ],
    })
}
