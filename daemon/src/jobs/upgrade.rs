//! `Download`, `Upgrade` and `Switch`: resolve → decide → fetch and import → stage.
//!
//! Owns the decision whether a found image is staged. Invariants: nothing is fetched
//! before the decision but what says how much there is to fetch; the decision about what is
//! staged is taken again under the sysroot lock; an image on the quarantine list is staged
//! only when its digest was asked for by name.

use std::sync::Arc;

use super::progress::Phase;
use super::source::{self, Archive, Found};
use super::{
    Fact, Facts, Job, Outcome, Reboot, apply, bound, cached, direction, finalization, packages,
    reboot_required, room, staging,
};
use crate::error::{Error, ROLLBACK_PENDING};
use crate::image::layout::Image;
use crate::image::reference::{Digest, OriginReference};
use crate::import::{self, ImportRequest};
use crate::sysroot::Snapshot;

/// What a caller says about the image that is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pull {
    /// Exactly this manifest.
    pub digest: Option<Digest>,
    /// Also an image that is older than the booted one.
    pub allow_downgrade: bool,
    /// Also if another update is staged already.
    pub replace_staged: bool,
    /// Pull without staging.
    pub download_only: bool,
    /// Only what was pulled before: nobody is asked.
    pub from_cache: bool,
    /// Whether it is kept from finalization; `None`: as what is staged already, if anything.
    pub lock: Option<bool>,
    /// Reboot when it is staged.
    pub apply: Option<Reboot>,
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
pub(super) enum Decision {
    /// The host has it already; the sentence says where.
    Nothing(&'static str),
    /// Go on.
    Pull,
}

/// The rule, pure: what to do about `digest`, found as the target of `pull`.
pub(super) fn decide(
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
    let found = find(job, &snapshot, &origin, pull).await?;
    pull_and_stage(job, &snapshot, &found, pull).await
}

pub(super) async fn switch(
    job: &Job,
    origin: &OriginReference,
    pull: &Pull,
) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    snapshot.booted().ok_or(Error::NotBooted)?;
    source::refuse_layered(&snapshot)?;
    let found = find(job, &snapshot, origin, pull).await?;
    pull_and_stage(job, &snapshot, &found, pull).await
}

/// The image that is asked for, in the registry or among what was downloaded.
async fn find(
    job: &Job,
    snapshot: &Snapshot,
    origin: &OriginReference,
    pull: &Pull,
) -> Result<Found, Error> {
    if !pull.download_only {
        refuse_beside_rollback(snapshot)?;
    }
    if pull.from_cache {
        cached::find(job, origin, pull.digest.as_ref()).await
    } else {
        source::resolve(job, snapshot, origin, pull.digest.as_ref()).await
    }
}

pub(super) async fn import_archive(
    job: &Job,
    archive: &Archive,
    pull: &Pull,
) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    snapshot.booted().ok_or(Error::NotBooted)?;
    source::refuse_layered(&snapshot)?;
    refuse_beside_rollback(&snapshot)?;
    let origin = match &archive.origin {
        Some(origin) => origin.clone(),
        None => source::tracked(&snapshot)?,
    };
    let found = source::resolve_handed(job, archive, origin, pull.digest.as_ref()).await?;
    pull_and_stage(job, &snapshot, &found, pull).await
}

/// Pulls without staging: the image stays in the repository under a ref of ours, so
/// that neither bootc's nor libostree's clean-up takes it.
pub(super) async fn download(job: &Job, pull: &Pull) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    let origin = source::tracked(&snapshot)?;
    let found = source::resolve(job, &snapshot, &origin, pull.digest.as_ref()).await?;
    let pulled = only_pull(job, &snapshot, &found, pull).await?;
    pulled.ok_or_else(|| {
        Error::NoUpdate(
            "there is nothing to download: the newest image is booted or staged already".into(),
        )
    })
}

/// Pulls without staging; `None` if there is nothing to pull.
async fn only_pull(
    job: &Job,
    snapshot: &Snapshot,
    found: &Found,
    pull: &Pull,
) -> Result<Option<Outcome>, Error> {
    // Nothing is staged, so nothing that is staged can be lost by it.
    let pull = Pull {
        replace_staged: true,
        ..pull.clone()
    };
    let decision = decide(snapshot, found, &pull, is_quarantined(job, found)?)?;
    if let Decision::Nothing(why) = decision {
        job.progress.say(why);
        return Ok(None);
    }
    room::before_download(job, snapshot, found).await?;
    let imported = import(job, found, pull.from_cache).await?;
    packages::look_at_pulled(job, snapshot, &found.image.digest, &imported.commit).await;
    // So that staging it later asks nobody for anything.
    bound::pull(job, &imported.commit, Phase::Merging).await?;
    let mut facts = facts_of(job, found, true);
    let fetched = imported.bytes_fetched.saturating_add(found.looked);
    facts.push(("fetched-bytes", Fact::Number(fetched)));
    facts.push(("staged", Fact::Flag(false)));
    Ok(Some(Outcome { facts }))
}

async fn pull_and_stage(
    job: &Job,
    snapshot: &Snapshot,
    found: &Found,
    pull: &Pull,
) -> Result<Outcome, Error> {
    if pull.download_only {
        let facts = || facts_of(job, found, false);
        let pulled = only_pull(job, snapshot, found, pull).await?;
        return Ok(pulled.unwrap_or_else(|| Outcome { facts: facts() }));
    }
    if let Decision::Nothing(why) = decide(snapshot, found, pull, is_quarantined(job, found)?)? {
        job.progress.say(why);
        return nothing_to_pull(job, snapshot, found, pull).await;
    }
    room::before_download(job, snapshot, found).await?;
    let imported = import(job, found, pull.from_cache).await?;
    packages::look_at_pulled(job, snapshot, &found.image.digest, &imported.commit).await;
    let mut facts = facts_of(job, found, true);
    let fetched = imported.bytes_fetched.saturating_add(found.looked);
    facts.push(("fetched-bytes", Fact::Number(fetched)));
    bound::pull(job, &imported.commit, Phase::Staging).await?;
    staging::stage(job, found, pull, imported, &mut facts).await?;
    if let Some(mode) = pull.apply {
        apply::run(job, Some(&found.image.digest), mode, false).await?;
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
        facts.push(("reboot", staging::reboot_fact(false)));
        return Ok(Outcome { facts });
    };
    let locked = pull.lock.unwrap_or(staged.locked);
    let changed = locked != staged.locked && finalization::of_image(job, digest, locked).await?;
    // Whoever staged it may not have got so far.
    reboot_required::tell(job).await;
    let mut facts = facts_of(job, found, changed);
    facts.push(("deployment", Fact::Deployment(staged.id.clone())));
    facts.push(("locked", Fact::Flag(locked)));
    facts.push(("reboot", staging::reboot_fact(!locked)));
    if let Some(mode) = pull.apply {
        apply::run(job, Some(digest), mode, false).await?;
    }
    Ok(Outcome { facts })
}

/// A rollback that somebody queued is not undone by the next update.
pub(super) fn refuse_beside_rollback(snapshot: &Snapshot) -> Result<(), Error> {
    if snapshot.rollback_queued {
        return Err(Error::StagedPending(ROLLBACK_PENDING.into()));
    }
    Ok(())
}

pub(super) fn is_quarantined(job: &Job, found: &Found) -> Result<bool, Error> {
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

/// `is_here`: it was pulled before, so where it came from is not asked for anything.
async fn import(job: &Job, found: &Found, is_here: bool) -> Result<import::Imported, Error> {
    job.check_cancelled()?;
    job.sysroot.ensure_writable().await?;
    let request = ImportRequest {
        repo_path: job.sysroot.repo_path(),
        image: if is_here {
            found.image.clone()
        } else {
            source::bring_out(job, found).await?
        },
        needed: job.download.begin(&found.image.digest),
        imgref: found.origin.image.canonical(),
        fetch: Arc::new(found.source.clone()),
        deltas: found.deltas.clone(),
        observer: Arc::new(job.progress.clone()),
        cancel: job.cancel.clone(),
        // What nobody waits for takes one lane only.
        parallel_layers: if job.background {
            1
        } else {
            job.config.parallel_layers
        },
    };
    Ok(import::import(request).await?)
}
