//! Kernel arguments: those of a new image, and `SetKernelArguments`.
//!
//! Invariants: what the host has for itself survives every update; what is changed is what the
//! caller has seen, if it said so; the deployment that runs keeps its arguments, so that a
//! rollback leads back to them.

use super::progress::Phase;
use super::staging::{reboot_fact, staged_now};
use super::upgrade::refuse_beside_rollback;
use super::{Fact, Job, Outcome, room};
use crate::error::Error;
use crate::image::reference::Digest;
use crate::import;
use crate::kargs::{Arguments, Edit};
use crate::sysroot::{Deployment, ImageCleanup, Prune, Snapshot};

/// A change of the kernel arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// What is to be done.
    pub edit: Edit,
    /// Only if they are these now.
    pub expect: Option<Arguments>,
    /// Only of this image.
    pub digest: Option<Digest>,
}

/// The deployment whose arguments the next one takes over: what is staged, because that is
/// replaced, else what runs now.
pub(super) fn base(snapshot: &Snapshot) -> Result<&Deployment, Error> {
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    let staged = snapshot.staged();
    Ok(staged
        .filter(|staged| staged.stateroot == booted.stateroot)
        .unwrap_or(booted))
}

/// The arguments for the image in `commit`: those of the [`base`] with what the new image brings
/// along instead of what the old one brought.
pub(super) async fn for_image(
    job: &Job,
    snapshot: &Snapshot,
    commit: &str,
) -> Result<Arguments, Error> {
    let base = base(snapshot)?;
    let after = brought_along(job, commit).await?;
    let before = brought_along(job, &base.checksum).await;
    // Whatever is wrong with the old image must not keep a better one away.
    let before = before.unwrap_or_else(|error| {
        tracing::warn!(%error, "kernel arguments of the old image are not taken away");
        Vec::new()
    });
    Ok(Arguments::new(&base.kernel_arguments).updated(&before, &after))
}

async fn brought_along(job: &Job, commit: &str) -> Result<Vec<String>, Error> {
    let (path, commit) = (job.sysroot.repo_path(), commit.to_owned());
    let read = tokio::task::spawn_blocking(move || import::image_arguments(&path, &commit)).await;
    Ok(read.map_err(|error| Error::Internal(error.to_string()))??)
}

pub(super) async fn run(job: &Job, change: &Change) -> Result<Outcome, Error> {
    job.progress
        .enter(Phase::Staging, "waiting for the sysroot lock");
    let lock = job.sysroot.lock(job.config.lock_wait, &job.cancel).await?;
    let snapshot = job.sysroot.snapshot().await?;
    refuse_beside_rollback(&snapshot)?;
    let base = base(&snapshot)?;
    refuse_other_stateroot(&snapshot, base)?;
    let before = Arguments::new(&base.kernel_arguments);
    compare(change, base, &before)?;
    let after = change
        .edit
        .apply(&before)
        .map_err(|refused| Error::InvalidArgs(refused.to_string()))?;
    let mut facts = vec![("kernel-arguments", Fact::Texts(after.as_slice().to_vec()))];
    if let Some(digest) = base.digest() {
        facts.push(("digest", Fact::Text(digest.to_string())));
    }
    if after == before {
        let staged = snapshot.staged().filter(|staged| !staged.locked);
        facts.extend([
            ("changed", Fact::Flag(false)),
            ("deployment", Fact::Deployment(base.id.clone())),
            ("locked", Fact::Flag(base.locked)),
            ("reboot", reboot_fact(staged.is_some())),
        ]);
        return Ok(Outcome { facts });
    }
    room::before_staging(job, &base.checksum).await?;
    job.check_cancelled()?;
    job.progress.say("making the deployment");
    let staged = lock
        .stage_again(base.id.clone(), after, base.locked, &job.cancel)
        .await?;
    staged_now(job).await;
    job.progress
        .enter(Phase::Cleaning, "removing what is no longer needed");
    let cleaned = lock
        .clean_up(ImageCleanup::Unreferenced, Prune::IfRefsWent, &job.cancel)
        .await;
    if let Err(error) = cleaned {
        tracing::warn!(%error, "clean-up after staging failed; osteward discard unreferenced tries again");
    }
    facts.extend([
        ("changed", Fact::Flag(true)),
        ("deployment", Fact::Deployment(staged.id())),
        ("locked", Fact::Flag(staged.locked)),
        ("reboot", reboot_fact(!staged.locked)),
    ]);
    Ok(Outcome { facts })
}

/// What is staged is replaced; that of another stateroot would be lost by it.
fn refuse_other_stateroot(snapshot: &Snapshot, base: &Deployment) -> Result<(), Error> {
    match snapshot.staged() {
        Some(staged) if staged.id != base.id => Err(Error::StagedPending(format!(
            "deployment {} of another stateroot is staged and would be lost; apply or discard it first",
            staged.id
        ))),
        _ => Ok(()),
    }
}

/// Whether it is still what the caller has seen.
fn compare(change: &Change, base: &Deployment, now: &Arguments) -> Result<(), Error> {
    if let Some(wanted) = &change.digest
        && base.digest() != Some(wanted)
    {
        return Err(Error::DigestMismatch(format!(
            "the next boot gives {}, not {wanted}; look at the status and ask again",
            base.digest()
                .map_or("a deployment that is no container image", Digest::as_str)
        )));
    }
    if change
        .expect
        .as_ref()
        .is_some_and(|expected| expected != now)
    {
        return Err(Error::DigestMismatch(format!(
            "the kernel arguments are others by now: {}; look at them and ask again",
            now.as_slice().join(" ")
        )));
    }
    Ok(())
}
