//! From a reference to an image: the step that check, download, upgrade and switch share.
//!
//! Owns which reference is asked, what is refused before any network traffic, and the
//! comparison of a candidate with what is booted. Invariant: an origin that demands a
//! verified signature is refused, because nothing here verifies one yet.

use std::sync::Arc;

use super::{Candidate, Job, progress::Phase};
use crate::error::Error;
use crate::image::layout::{Image, host_architecture};
use crate::image::reference::{Digest, OriginReference, SignatureSource};
use crate::image::{RegistryConfig, Source};
use crate::import;
use crate::sysroot::{Deployment, Snapshot};

/// An image that was found, and where its layers come from.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) image: Arc<Image>,
    pub(super) source: Source,
    pub(super) origin: OriginReference,
}

/// The origin that is upgraded.
pub(super) fn tracked(snapshot: &Snapshot) -> Result<OriginReference, Error> {
    snapshot.booted().ok_or(Error::NotBooted)?;
    let tracking = snapshot.tracking().ok_or(Error::NotBooted)?;
    if let Some(why) = &tracking.incompatible {
        return Err(Error::NotSupported(format!(
            "deployment {} cannot be upgraded: {why}; remove the layering with rpm-ostree reset first",
            tracking.id
        )));
    }
    tracking
        .origin
        .clone()
        .ok_or_else(|| not_an_image(tracking))
}

fn not_an_image(deployment: &Deployment) -> Error {
    let what = if deployment.origin_text.is_empty() {
        "does not come from a container image".to_owned()
    } else {
        format!(
            "has the origin {:?}, which is not understood",
            deployment.origin_text
        )
    };
    Error::NotSupported(format!(
        "deployment {} {what}; choose an image with `osteward switch IMAGE`",
        deployment.id
    ))
}

/// Asks the source what the reference means now, which the engine is told of, or for
/// exactly `digest`.
pub(super) async fn resolve(
    job: &Job,
    origin: &OriginReference,
    digest: Option<&Digest>,
) -> Result<Found, Error> {
    refuse_signed(origin)?;
    job.progress
        .enter(Phase::Resolving, format!("asking for {}", origin.image));
    let reference = origin.image.canonical();
    let source = Source::open(&reference, &registry_config(job))?;
    let image = tokio::select! {
        image = source.resolve(digest) => image?,
        () = job.cancel.cancelled() => return Err(Error::Cancelled),
    };
    image
        .require_bootable(host_architecture())
        .map_err(crate::image::Error::from)?;
    let image = Arc::new(image);
    let plan = plan(job, image.clone()).await?;
    // What was asked for by digest may be old; only what the reference means is an offer.
    if digest.is_none() {
        job.found.send_replace(Some(Candidate {
            image: image.clone(),
            reference: origin.image.clone(),
            layers_missing: Some(plan.missing.len() as u32),
            download_size: Some(plan.download_size()),
        }));
    }
    Ok(Found {
        image,
        source,
        origin: origin.clone(),
    })
}

/// Which layers are missing, looked up by a handle of its own off the executor.
async fn plan(job: &Job, image: Arc<Image>) -> Result<import::Plan, Error> {
    let path = job.sysroot.repo_path();
    let look = move || import::plan_at(&path, &image);
    let plan = tokio::task::spawn_blocking(look).await;
    Ok(plan.map_err(|error| Error::Internal(error.to_string()))??)
}

fn refuse_signed(origin: &OriginReference) -> Result<(), Error> {
    match &origin.signature {
        SignatureSource::Insecure => Ok(()),
        SignatureSource::ContainerPolicy | SignatureSource::OstreeRemote(_) => {
            Err(Error::SignatureRejected(format!(
                "{origin} demands a verified signature, which this version of osteward cannot check; \
                 use bootc for this image, or switch to it without signature"
            )))
        }
    }
}

fn registry_config(job: &Job) -> RegistryConfig {
    RegistryConfig {
        insecure: job.config.insecure.clone(),
        connect_timeout: job.config.connect_timeout,
        read_timeout: job.config.read_timeout,
        max_manifest_bytes: job.config.max_manifest_size,
        ..RegistryConfig::default()
    }
}

/// `upgrade`, `downgrade`, `same` or `unknown`: the candidate against what is booted, by
/// the time the image was made (on-disk notes 1.2).
pub fn direction(booted: Option<&Image>, candidate: &Image) -> &'static str {
    let Some(booted) = booted else {
        return "unknown";
    };
    if booted.digest == candidate.digest {
        return "same";
    }
    match (booted.created, candidate.created) {
        (Some(old), Some(new)) if new < old => "downgrade",
        (Some(old), Some(new)) if new > old => "upgrade",
        _ => "unknown",
    }
}
