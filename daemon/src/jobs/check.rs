//! `Check`: is there something new? Writes nothing but the cached update.

use super::{Fact, Job, Outcome, now, source};
use crate::error::Error;
use crate::sysroot;

pub(super) async fn run(job: &Job, max_age: Option<u64>) -> Result<Outcome, Error> {
    let snapshot = job.sysroot.snapshot().await?;
    let origin = source::tracked(&snapshot)?;
    let fresh = match (max_age, job.last_check) {
        (Some(max_age), Some(last)) => now().saturating_sub(last) <= max_age,
        _ => false,
    };
    let known = job.found.borrow().clone();
    // What a job found under another reference says nothing about the tracked one.
    if fresh && let Some(known) = known.filter(|known| known.reference == origin.image) {
        return Ok(outcome(&snapshot, &known.image));
    }
    let found = source::resolve(job, &origin, None).await?;
    let digest = &found.image.digest;
    let is_here = |deployment: Option<&sysroot::Deployment>| {
        deployment.and_then(|deployment| deployment.digest()) == Some(digest)
    };
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
    Ok(outcome(&snapshot, &found.image))
}

fn outcome(snapshot: &sysroot::Snapshot, image: &crate::image::layout::Image) -> Outcome {
    let is = |deployment: Option<&sysroot::Deployment>| {
        deployment.and_then(|deployment| deployment.digest()) == Some(&image.digest)
    };
    let available = !is(snapshot.booted()) && !is(snapshot.staged());
    let mut facts = vec![
        ("digest", Fact::Text(image.digest.to_string())),
        ("changed", Fact::Flag(available)),
        ("staged", Fact::Flag(is(snapshot.staged()))),
    ];
    if let Some(version) = image.version() {
        facts.push(("version", Fact::Text(version.to_owned())));
    }
    if !is(snapshot.booted()) {
        facts.push(("update", Fact::Update(image.digest.clone())));
    }
    Outcome { facts }
}
