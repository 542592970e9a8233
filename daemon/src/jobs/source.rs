//! From a reference to an image: the step that check, download, upgrade and switch share.
//!
//! Owns which reference is asked, what is refused before any network traffic, and the
//! comparison of a candidate with what is booted. Invariant: an origin that demands a
//! verified signature is refused, because nothing here verifies one yet.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::{Job, candidate, deltas, now, progress::Phase, unchanged};
use crate::delta::Artifact;
use crate::error::Error;
use crate::image::here::{Here, Invocation, RunTool, ToolError};
use crate::image::layer::Layer;
use crate::image::layout::{Image, host_architecture};
use crate::image::reference::{Digest, OriginReference, SignatureSource, Transport};
use crate::image::{Backoff, Handed, Listener, Proxies, RegistryConfig, Source};
use crate::import::{self, PlanRequest};
use crate::observe::systemd::{self, Run};
use crate::sysroot::{Deployment, Snapshot};

/// An image that the caller handed over instead of saying where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Archive {
    /// The archive or the layout directory.
    pub handed: Handed,
    /// Which image of several in it.
    pub tag: Option<String>,
    /// What is tracked from then on; `None`: what is tracked now.
    pub origin: Option<OriginReference>,
}

/// An image that was found, and where its layers come from.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) image: Arc<Image>,
    pub(super) source: Source,
    pub(super) origin: OriginReference,
    /// Deltas that lead to it.
    pub(super) deltas: Arc<[Artifact]>,
    /// Bytes of its layers that were fetched to see how much there is to fetch.
    pub(super) looked: u64,
}

/// The origin that is upgraded.
pub(super) fn tracked(snapshot: &Snapshot) -> Result<OriginReference, Error> {
    snapshot.booted().ok_or(Error::NotBooted)?;
    refuse_layered(snapshot)?;
    let tracking = snapshot.tracking().ok_or(Error::NotBooted)?;
    tracking
        .origin
        .clone()
        .ok_or_else(|| not_an_image(tracking))
}

/// Packages that rpm-ostree layered on the host would silently be gone from another image.
pub(super) fn refuse_layered(snapshot: &Snapshot) -> Result<(), Error> {
    let tracking = snapshot.tracking().ok_or(Error::NotBooted)?;
    let Some(why) = &tracking.incompatible else {
        return Ok(());
    };
    Err(Error::NotSupported(format!(
        "deployment {} cannot be upgraded: {why}; remove the layering with rpm-ostree reset first",
        tracking.id
    )))
}

fn not_an_image(deployment: &Deployment) -> Error {
    let what = if let Some(refspec) = &deployment.refspec {
        format!("follows {refspec} of an ostree remote and no container image")
    } else if deployment.origin_text.is_empty() {
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
/// exactly `digest`; and finds out how it is best fetched.
pub(super) async fn resolve(
    job: &Job,
    snapshot: &Snapshot,
    origin: &OriginReference,
    digest: Option<&Digest>,
) -> Result<Found, Error> {
    let (image, source) = ask(job, snapshot, origin, digest).await?;
    let plan = plan(job, image.clone()).await?;
    let deltas = if plan.missing.is_empty() {
        Arc::default()
    } else {
        deltas::find(job, snapshot, &source, &image).await
    };
    let (plan, looked) = plan_by_parts(job, plan, &image, &source, &deltas).await?;
    if digest.is_none() {
        let size = (plan.missing.len() as u32, plan.download_size());
        candidate::planned(&job.found, &image, &origin.image, size);
    }
    Ok(Found {
        image,
        source,
        origin: origin.clone(),
        deltas,
        looked,
    })
}

/// As [`resolve`], without anything about how it would be fetched: for a registry nothing is written.
pub(super) async fn resolve_image(
    job: &Job,
    snapshot: &Snapshot,
    origin: &OriginReference,
    digest: Option<&Digest>,
) -> Result<Arc<Image>, Error> {
    let (image, _) = ask(job, snapshot, origin, digest).await?;
    Ok(image)
}

async fn ask(
    job: &Job,
    snapshot: &Snapshot,
    origin: &OriginReference,
    digest: Option<&Digest>,
) -> Result<(Arc<Image>, Source), Error> {
    refuse_signed(origin)?;
    job.progress
        .enter(Phase::Resolving, format!("asking for {}", origin.image));
    let reference = origin.image.canonical();
    if matches!(
        reference.transport(),
        Transport::OciArchive | Transport::ContainersStorage
    ) {
        make_scratch(job).await;
    }
    let source = Source::open(&reference, &registry_config(job))?;
    let unchanged = match digest {
        None => unchanged::look(job, snapshot, &source, &origin.image).await?,
        Some(_) => None,
    };
    let image = match unchanged {
        Some(image) => image,
        None => find(job, &source, digest).await?,
    };
    // What was asked for by digest may be old; only what the reference means is an offer.
    if digest.is_none() {
        candidate::found(&job.found, &image, &origin.image, now());
    }
    Ok((image, source))
}

/// How much is to be fetched of what is missing in `plan`; also the bytes that it took to find out. What the
/// reference means is known by then, so only cancelling is a failure.
async fn plan_by_parts(
    job: &Job,
    plan: import::Plan,
    image: &Arc<Image>,
    source: &Source,
    deltas: &Arc<[Artifact]>,
) -> Result<(import::Plan, u64), Error> {
    let has_parts = |layer: &Layer| layer.chunked.is_some();
    if deltas.is_empty() && !plan.missing.iter().any(has_parts) {
        return Ok((plan, 0));
    }
    // What is found out is kept there for the download.
    make_scratch(job).await;
    let request = PlanRequest {
        repo_path: job.sysroot.repo_path(),
        image: image.clone(),
        fetch: Arc::new(source.clone()),
        deltas: deltas.clone(),
        observer: Arc::new(job.progress.clone()),
        cancel: job.cancel.clone(),
    };
    match import::plan_by_parts(request).await {
        Ok(planned) => Ok(planned),
        Err(_) if job.cancel.is_cancelled() => Err(Error::Cancelled),
        Err(error) => {
            tracing::warn!(%error, "how little of the image has to be fetched is not known");
            Ok((plan, 0))
        }
    }
}

/// As [`resolve`], in what the caller handed over. What is found is no offer: nothing but this call leads
/// to it.
pub(super) async fn resolve_handed(
    job: &Job,
    archive: &Archive,
    origin: OriginReference,
    digest: Option<&Digest>,
) -> Result<Found, Error> {
    refuse_signed(&origin)?;
    let shown = archive.handed.shown().display();
    job.progress
        .enter(Phase::Resolving, format!("reading {shown}"));
    make_scratch(job).await;
    let source = Source::handed(
        &archive.handed,
        archive.tag.as_deref(),
        &registry_config(job),
    );
    let image = find(job, &source, digest).await?;
    Ok(Found {
        image,
        source,
        origin,
        deltas: Arc::default(),
        looked: 0,
    })
}

async fn find(job: &Job, source: &Source, digest: Option<&Digest>) -> Result<Arc<Image>, Error> {
    let image = tokio::select! {
        image = source.resolve(digest) => image?,
        () = job.cancel.cancelled() => return Err(Error::Cancelled),
    };
    image
        .require_bootable(host_architecture())
        .map_err(crate::image::Error::from)?;
    Ok(Arc::new(image))
}

/// Makes the layers of the image ready to be imported.
pub(super) async fn bring_out(job: &Job, found: &Found) -> Result<Arc<Image>, Error> {
    let image = Image::clone(&found.image);
    tokio::select! {
        image = found.source.bring_out(image) => Ok(Arc::new(image?)),
        () = job.cancel.cancelled() => Err(Error::Cancelled),
    }
}

/// Sources on this host may need room in the repository, which can be read-only until somebody writes. If
/// it stays so, those that do need it say so.
async fn make_scratch(job: &Job) {
    if let Err(error) = job.sysroot.ensure_writable().await {
        tracing::debug!(%error, "there is no room for what would have to be unpacked");
    }
}

/// Which layers are missing, looked up by a handle of its own off the executor.
pub(super) async fn plan(job: &Job, image: Arc<Image>) -> Result<import::Plan, Error> {
    let path = job.sysroot.repo_path();
    let look = move || import::plan_at(&path, &image);
    let plan = tokio::task::spawn_blocking(look).await;
    Ok(plan.map_err(|error| Error::Internal(error.to_string()))??)
}

pub(super) fn refuse_signed(origin: &OriginReference) -> Result<(), Error> {
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

pub(super) fn registry_config(job: &Job) -> RegistryConfig {
    let progress = job.progress.clone();
    RegistryConfig {
        insecure: job.config.insecure.clone(),
        connect_timeout: job.config.connect_timeout,
        response_timeout: job.config.response_timeout,
        read_timeout: job.config.read_timeout,
        backoff: Backoff {
            give_up: job.config.retry_time,
            ..Backoff::default()
        },
        max_manifest_bytes: job.config.max_manifest_size,
        max_layer_bytes: job.config.max_layer_size,
        max_rate: job.config.max_rate,
        background: job.background,
        remembered: job.registries.clone(),
        proxies: Proxies::from_env(),
        listener: Listener::new(move |notice| progress.say(notice.to_string())),
        here: Here {
            scratch: job.sysroot.repo_path().join("tmp"),
            run: Some(run_tool(job)),
        },
        ..RegistryConfig::default()
    }
}

/// Runs the host's tools in units of their own, and says which.
fn run_tool(job: &Job) -> RunTool {
    let (systemd, progress) = (job.systemd.clone(), job.progress.clone());
    Arc::new(move |invocation: Invocation| {
        let (systemd, progress) = (systemd.clone(), progress.clone());
        async move {
            progress.say(invocation.purpose.clone());
            let program = invocation.program.to_owned();
            let run = Run {
                name: "tool",
                description: invocation.purpose,
                command: std::iter::once(program)
                    .chain(invocation.arguments)
                    .collect(),
                environment: Vec::new(),
                output: invocation.output,
                in_host_mounts: false,
            };
            systemd.run(run).await.map_err(|error| match error {
                systemd::Error::Failed(words) => ToolError::Failed(words),
                systemd::Error::NotStarted(why) => ToolError::NotStarted(why),
            })
        }
        .boxed()
    })
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
