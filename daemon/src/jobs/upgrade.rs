//! `Download`, `Upgrade` and `Switch`: resolve → decide → fetch and import → stage.
//!
//! Owns the decision whether a found image is staged. Invariants: nothing is fetched
//! before the decision; the decision about what is staged is taken again under the
//! sysroot lock; an image on the quarantine list is staged only when its digest was
//! asked for by name.

use std::sync::Arc;

use super::progress::Phase;
use super::source::{self, Found};
use super::{Fact, Facts, Job, Outcome, apply, direction, finalization};
use crate::error::{Error, ROLLBACK_PENDING};
use crate::image::layout::Image;
use crate::image::reference::{Digest, OriginReference};
use crate::import::{self, ImportRequest};
use crate::sysroot::{ImageCleanup, Snapshot};

/// What a caller says about the image that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pull {
    /// Exactly this manifest.
    pub digest: Option<Digest>,
    /// Also an image that is older than the booted one.
    pub allow_downgrade: bool,
    /// Also if another update is staged already.
    pub replace_staged: bool,
    /// Whether it is kept from finalization; `None`: as what is staged already, if anything.
    pub lock: Option<bool>,
    /// Reboot when it is staged.
    pub apply: bool,
}

impl Pull {
    /// Whether the caller asked for exactly this image, by the digest of its manifest or
    /// of the index it was found through.
    fn names(&self, image: &Image) -> bool {
        let asked = self.digest.as_ref();
        asked.is_some_and(|asked| {
            *asked == image.digest || Some(asked) == image.index_digest.as_ref()
        })
    }
}

/// What follows from what was found.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// The host has it already; the sentence says where.
    Nothing(&'static str),
    /// Go on.
    Pull,
}

/// The rule, pure: what to do about `digest`, found as the target of `pull`.
fn decide(
    snapshot: &Snapshot,
    found: &Found,
    pull: &Pull,
    quarantined: bool,
) -> Result<Decision, Error> {
    let digest = &found.image.digest;
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    if let Some(staged) = snapshot.staged() {
        if staged.digest() == Some(digest) && staged.origin.as_ref() == Some(&found.origin) {
            return Ok(Decision::Nothing(
                "this image is already staged; reboot to get into it",
            ));
        }
        if !pull.replace_staged {
            return Err(Error::StagedPending(format!(
                "{} is staged and {digest} would replace it; apply or discard the staged update, \
                 or ask for its replacement",
                staged.digest().map_or("another deployment", Digest::as_str)
            )));
        }
    } else if booted.digest() == Some(digest)
        && booted.origin.as_ref() == Some(&found.origin)
        && !snapshot.rollback_queued
    {
        return Ok(Decision::Nothing("the booted image is the newest"));
    }
    if quarantined && !pull.names(&found.image) {
        return Err(Error::Quarantined(format!(
            "{digest} was left behind by a rollback and is not staged again by itself; wait for a \
             newer image, or ask for exactly this digest"
        )));
    }
    let booted_image = booted.image.as_ref();
    if direction(booted_image, &found.image) == "downgrade" && !pull.allow_downgrade {
        return Err(Error::DowngradeRefused(format!(
            "{digest} (version {}) is older than the booted image (version {}); allow the downgrade \
             if that is meant",
            found.image.version().unwrap_or("unknown"),
            booted_image
                .and_then(|image| image.version())
                .unwrap_or("unknown")
        )));
    }
    Ok(Decision::Pull)
}

pub(super) async fn upgrade(job: &Job, pull: &Pull) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    let origin = source::tracked(&snapshot)?;
    pull_and_stage(job, &snapshot, &origin, pull).await
}

pub(super) async fn switch(
    job: &Job,
    origin: &OriginReference,
    pull: &Pull,
) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    snapshot.booted().ok_or(Error::NotBooted)?;
    pull_and_stage(job, &snapshot, origin, pull).await
}

/// Pulls without staging: the image stays in the repository under a ref of ours, so
/// that neither bootc's nor libostree's clean-up takes it.
pub(super) async fn download(job: &Job, pull: &Pull) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    let origin = source::tracked(&snapshot)?;
    let found = source::resolve(job, &origin, pull.digest.as_ref()).await?;
    // A download stages nothing, so nothing that is staged can be lost by it.
    let pull = Pull {
        replace_staged: true,
        ..pull.clone()
    };
    match decide(&snapshot, &found, &pull, is_quarantined(job, &found)?)? {
        Decision::Nothing(_) => Err(Error::NoUpdate(
            "there is nothing to download: the newest image is booted or staged already".into(),
        )),
        Decision::Pull => {
            let imported = import(job, &found).await?;
            let mut facts = facts_of(job, &found, true);
            facts.push(("fetched-bytes", Fact::Number(imported.bytes_fetched)));
            Ok(Outcome { facts })
        }
    }
}

async fn pull_and_stage(
    job: &Job,
    snapshot: &Snapshot,
    origin: &OriginReference,
    pull: &Pull,
) -> Result<Outcome, Error> {
    refuse_beside_rollback(snapshot)?;
    let found = source::resolve(job, origin, pull.digest.as_ref()).await?;
    if let Decision::Nothing(why) = decide(snapshot, &found, pull, is_quarantined(job, &found)?)? {
        job.progress.say(why);
        return nothing_to_pull(job, snapshot, &found, pull).await;
    }
    let imported = import(job, &found).await?;
    let mut facts = facts_of(job, &found, true);
    facts.push(("fetched-bytes", Fact::Number(imported.bytes_fetched)));
    stage(job, &found, pull, imported.commit, &mut facts).await?;
    if pull.apply {
        apply::run(job, Some(&found.image.digest), false).await?;
    }
    Ok(Outcome { facts })
}

/// What is asked for is here: all that can be done is to turn its lock and to reboot.
async fn nothing_to_pull(
    job: &Job,
    snapshot: &Snapshot,
    found: &Found,
    pull: &Pull,
) -> Result<Outcome, Error> {
    let digest = &found.image.digest;
    let Some(staged) = snapshot.staged() else {
        let mut facts = facts_of(job, found, false);
        facts.push(("reboot", reboot_fact(false)));
        return Ok(Outcome { facts });
    };
    let locked = pull.lock.unwrap_or(staged.locked);
    let changed = locked != staged.locked && finalization::of_image(job, digest, locked).await?;
    let mut facts = facts_of(job, found, changed);
    facts.push(("deployment", Fact::Deployment(staged.id.clone())));
    facts.push(("locked", Fact::Flag(locked)));
    facts.push(("reboot", reboot_fact(!locked)));
    if pull.apply {
        apply::run(job, Some(digest), false).await?;
    }
    Ok(Outcome { facts })
}

/// A rollback that somebody queued is not undone by the next update.
fn refuse_beside_rollback(snapshot: &Snapshot) -> Result<(), Error> {
    if snapshot.rollback_queued {
        return Err(Error::StagedPending(ROLLBACK_PENDING.into()));
    }
    Ok(())
}

fn is_quarantined(job: &Job, found: &Found) -> Result<bool, Error> {
    Ok(job.quarantined(&found.image.digest)?.is_some())
}

fn facts_of(job: &Job, found: &Found, changed: bool) -> Facts {
    let digest = &found.image.digest;
    let mut facts = vec![
        ("digest", Fact::Text(digest.to_string())),
        ("changed", Fact::Flag(changed)),
    ];
    // Only the offer has an object; an image that was asked for by digest may be another.
    let offer = job.found.borrow();
    if offer
        .as_ref()
        .is_some_and(|offer| offer.image.digest == *digest)
    {
        facts.push(("update", Fact::Update(digest.clone())));
    }
    if let Some(version) = found.image.version() {
        facts.push(("version", Fact::Text(version.to_owned())));
    }
    facts
}

pub(super) fn reboot_fact(needed: bool) -> Fact {
    Fact::Text(if needed { "reboot" } else { "none" }.into())
}

async fn import(job: &Job, found: &Found) -> Result<import::Imported, Error> {
    job.check_cancelled()?;
    job.sysroot.ensure_writable().await?;
    let source = found.source.clone();
    let request = ImportRequest {
        repo_path: job.sysroot.repo_path(),
        image: found.image.clone(),
        imgref: found.origin.image.canonical(),
        fetch: Arc::new(move |layer: &_| {
            let (source, layer) = (source.clone(), Clone::clone(layer));
            Box::pin(async move { source.blob(&layer).await })
        }),
        observer: Arc::new(job.progress.clone()),
        cancel: job.cancel.clone(),
        parallel_layers: job.config.parallel_layers,
    };
    Ok(import::import(request).await?)
}

/// Makes the deployment, then removes what it made unnecessary. A failing clean-up does
/// not undo the staged update, which is what was asked for.
async fn stage(
    job: &Job,
    found: &Found,
    pull: &Pull,
    commit: String,
    facts: &mut Facts,
) -> Result<(), Error> {
    job.check_cancelled()?;
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
    let was_locked = snapshot.staged().is_some_and(|staged| staged.locked);
    let locked = pull.lock.unwrap_or(was_locked);
    if let Some(replaced) = snapshot.staged().and_then(|staged| staged.digest()) {
        job.progress.say(format!("replacing the staged {replaced}"));
        facts.push(("replaced", Fact::Text(replaced.to_string())));
    }
    job.progress.say("making the deployment");
    job.progress.part(0.3);
    let staged = lock
        .stage(commit, &found.origin, locked, &job.cancel)
        .await?;
    job.progress.point_of_no_return();
    if let Err(error) = job.systemd.arm_finalization().await {
        tracing::warn!(%error, "the image is staged; a reboot very soon may not switch to it");
    }
    if pull.digest.is_some() {
        let digest = found.image.digest.to_string();
        let lifted = job.change_quarantine(move |list| list.lift(&digest)).await;
        if let Err(error) = lifted {
            tracing::warn!(%error, "the image is staged, but stays on the quarantine list");
        }
    }
    job.progress
        .enter(Phase::Cleaning, "removing what is no longer needed");
    if let Err(error) = clean_up(job, &lock).await {
        tracing::warn!(%error, "clean-up after staging failed; osteward discard unreferenced tries again");
    }
    let id = format!(
        "d_{}_{}",
        &staged.checksum[..16.min(staged.checksum.len())],
        staged.serial
    );
    facts.push(("deployment", Fact::Deployment(id)));
    facts.push(("locked", Fact::Flag(staged.locked)));
    facts.push(("reboot", reboot_fact(!staged.locked)));
    Ok(())
}

async fn clean_up(job: &Job, lock: &crate::sysroot::Lock) -> Result<(), Error> {
    lock.release_download(&job.cancel).await?;
    lock.clean_up(ImageCleanup::Unreferenced, false, &job.cancel)
        .await?;
    Ok(())
}
