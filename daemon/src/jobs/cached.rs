//! `from-cache`: an upgrade to what was downloaded before, without a question to anybody.
//!
//! Invariant: what is found is whole; an image of which a layer is missing is refused.

use std::sync::Arc;

use super::source::{self, Found};
use super::{Job, progress::Phase};
use crate::error::Error;
use crate::image::Source;
use crate::image::layout::host_architecture;
use crate::image::reference::{Digest, OriginReference};

/// The image that `origin` meant when it was pulled last, or the one with that digest.
pub(super) async fn find(
    job: &Job,
    origin: &OriginReference,
    digest: Option<&Digest>,
) -> Result<Found, Error> {
    source::refuse_signed(origin)?;
    job.progress
        .enter(Phase::Resolving, "looking at what was downloaded");
    let reference = origin.image.canonical();
    let stored = job
        .sysroot
        .stored_image(reference.clone(), digest.cloned())
        .await?;
    let image = stored.ok_or_else(|| {
        Error::NoUpdate(match digest {
            Some(digest) => format!("{digest} was not downloaded; ask for it without `from-cache`"),
            None => format!("nothing of {reference} was downloaded; ask without `from-cache`"),
        })
    })?;
    image
        .require_bootable(host_architecture())
        .map_err(crate::image::Error::from)?;
    let image = Arc::new(image);
    let plan = source::plan(job, image.clone()).await?;
    if !plan.missing.is_empty() {
        return Err(Error::NoUpdate(format!(
            "{} of {} layers of {} were not downloaded; ask without `from-cache` to go on with it",
            plan.missing.len(),
            image.layers.len(),
            image.digest
        )));
    }
    Ok(Found {
        // Never asked for anything: every layer is here.
        source: Source::open(&reference, &source::registry_config(job))?,
        image,
        origin: origin.clone(),
        deltas: Arc::default(),
        looked: 0,
    })
}
