//! `Check`: is there something new? Writes nothing but the cached update, and what it learned: of packages, of
//! what layers have in them, and of what is here already.

use std::sync::Arc;

use super::{Fact, Job, Outcome, now, packages, source};
use crate::error::Error;
use crate::image::layout::Image;
use crate::image::reference::ImageReference;
use crate::sysroot::{self, Snapshot};

/// In the result: it is what an earlier check found.
pub(super) const CACHED: &str = "cached";

pub(super) async fn run(job: &Job, max_age: Option<u64>) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    let origin = source::tracked(&snapshot)?;
    if let Some(max_age) = max_age
        && let Some(image) = recent(job, &snapshot, &origin.image, max_age)
    {
        return Ok(outcome(&snapshot, &image, true));
    }
    let found = source::resolve(job, &snapshot, &origin, None).await?;
    let digest = &found.image.digest;
    let is_here = |deployment: Option<&sysroot::Deployment>| {
        deployment.and_then(|deployment| deployment.digest()) == Some(digest)
    };
    if !is_here(snapshot.booted()) {
        packages::look_ahead(job, &snapshot, &found).await;
    }
    if let Some(tracking) = snapshot.tracking() {
        // It is where bootc and the next start of the daemon find it; without it the
        // answer is still right.
        let is_news = !is_here(snapshot.booted()) && !is_here(snapshot.staged());
        let update = is_news.then_some(&*found.image);
        let written = sysroot::cache_update(&job.sysroot, tracking.checksum.clone(), update).await;
        if let Err(error) = written {
            tracing::warn!(%error, "the found update is not remembered on disk");
        }
    }
    Ok(outcome(&snapshot, &found.image, false))
}

/// What the last check found, if it was about this reference and is less than `max_age` seconds
/// old: with 0 the registry is always asked. Also a check of an earlier process counts: what it found is on disk.
fn recent(
    job: &Job,
    snapshot: &Snapshot,
    reference: &ImageReference,
    max_age: u64,
) -> Option<Arc<Image>> {
    let check = job.last_check.as_ref()?;
    // A check in the future was made by another clock.
    let age = now().checked_sub(check.time)?;
    if check.error.is_some() || check.reference != reference.to_string() || age >= max_age {
        return None;
    }
    let is_it = |image: &Image| image.digest.as_str() == check.digest;
    let found = job.found.borrow().clone().map(|found| found.image);
    if let Some(image) = found.filter(|image| is_it(image)) {
        return Some(image);
    }
    let deployed = snapshot.deployments.iter();
    let mut known = deployed
        .filter_map(|deployment| deployment.image.as_ref())
        .chain(&snapshot.cached_update);
    known.find(|image| is_it(image)).cloned().map(Arc::new)
}

/// `cached`: nobody was asked.
fn outcome(snapshot: &Snapshot, image: &Image, cached: bool) -> Outcome {
    let is = |deployment: Option<&sysroot::Deployment>| {
        deployment.and_then(|deployment| deployment.digest()) == Some(&image.digest)
    };
    let available = !is(snapshot.booted()) && !is(snapshot.staged());
    let mut facts = vec![
        ("digest", Fact::Text(image.digest.to_string())),
        ("changed", Fact::Flag(available)),
        ("staged", Fact::Flag(is(snapshot.staged()))),
        (CACHED, Fact::Flag(cached)),
    ];
    if let Some(version) = image.version() {
        facts.push(("version", Fact::Text(version.to_owned())));
    }
    if !is(snapshot.booted()) {
        facts.push(("update", Fact::Update(image.digest.clone())));
    }
    Outcome { facts }
}
