//! The engine's plain structs as the records of the API.
//!
//! Owns paths of objects and the words of the API. Invariant: pure; everything comes
//! from one [`Status`], so a document never mixes two moments.

use std::collections::HashMap;

use osteward_dbus::types::{
    self, DeploymentInfo, Dict, HistoryEntry, HostInfo, InhibitorInfo, JobInfo, UpdateInfo,
};
use osteward_dbus::{DEPLOYMENT_PREFIX, NO_OBJECT, UNKNOWN, UPDATE_PREFIX};
use zbus::{ObjectPath, OwnedObjectPath, OwnedVariant, Variant};

use crate::engine::{Entry, JobId, JobView, Look, Status};
use crate::image::layout::Image;
use crate::image::reference::{Digest, OriginReference, SignatureSource};
use crate::jobs::{Fact, direction};
use crate::sysroot::{self, Snapshot};

/// Caps for text that an image brings along (`Update.Labels`).
const LABEL_ENTRIES: usize = 256;
const LABEL_BYTES: usize = 64 << 10;

/// A path out of parts that are valid by construction; `/` should that ever be untrue.
fn path(text: String) -> OwnedObjectPath {
    ObjectPath::try_from(text)
        .map(Into::into)
        .unwrap_or_else(|error| {
            tracing::error!(%error, "an object path is not valid");
            no_object()
        })
}

/// "No object" in a property of type `o`.
pub(super) fn no_object() -> OwnedObjectPath {
    ObjectPath::from_static_str_unchecked(NO_OBJECT).into()
}

/// The object of a deployment.
pub(super) fn deployment_path(id: &str) -> OwnedObjectPath {
    path(format!("{DEPLOYMENT_PREFIX}/{id}"))
}

/// The object of a candidate.
pub(super) fn update_path(digest: &Digest) -> OwnedObjectPath {
    path(format!("{UPDATE_PREFIX}/sha256_{}", digest.hex()))
}

/// The object of a job.
pub(super) fn job_path(id: JobId) -> OwnedObjectPath {
    path(id.path())
}

fn variant<'a>(value: impl Into<Variant<'a>>) -> OwnedVariant {
    // Only file descriptors can fail to be owned, and none are in these records.
    OwnedVariant::try_from(value.into()).unwrap_or_else(|_| OwnedVariant::from(false))
}

fn capped<'a>(entries: impl Iterator<Item = (&'a String, &'a String)>) -> HashMap<String, String> {
    let mut room = LABEL_BYTES;
    let mut kept = HashMap::new();
    for (key, value) in entries.take(LABEL_ENTRIES) {
        let size = key.len() + value.len();
        if size <= room {
            room -= size;
            kept.insert(key.clone(), value.clone());
        }
    }
    kept
}

/// Whether a soft reboot leads into it.
fn soft_reboot_capable(status: &Status, deployment: &sysroot::Deployment) -> &'static str {
    match (deployment.soft_reboot, status.soft_reboots) {
        (true, Some(true)) => "yes",
        (true, None) => "unknown",
        (false, _) | (true, Some(false)) => "no",
    }
}

/// The properties of a deployment.
pub(super) fn deployment(status: &Status, deployment: &sysroot::Deployment) -> DeploymentInfo {
    let image = deployment.image.as_ref();
    let version = image
        .and_then(|image| image.version())
        .unwrap_or(&deployment.commit_version);
    DeploymentInfo {
        id: deployment.id.clone(),
        checksum: deployment.checksum.clone(),
        serial: deployment.serial,
        stateroot: deployment.stateroot.clone(),
        state: deployment.slot.to_string(),
        booted: deployment.slot == sysroot::Slot::Booted,
        staged: deployment.slot == sysroot::Slot::Staged,
        pinned: deployment.pinned,
        locked: deployment.locked,
        image: match &deployment.refspec {
            Some(refspec) if deployment.origin_text.is_empty() => refspec.clone(),
            _ => deployment.origin_text.clone(),
        },
        digest: deployment
            .digest()
            .map(Digest::to_string)
            .unwrap_or_default(),
        version: version.to_owned(),
        timestamp: image.and_then(Image::timestamp).unwrap_or(0),
        labels: image
            .map(|image| capped(image.labels.iter()))
            .unwrap_or_default(),
        layers: image.map_or(0, |image| image.layers.len() as u32),
        size_bytes: image.map_or(0, Image::total_size),
        kernel_version: deployment.kernel_version.clone(),
        kernel_arguments: deployment.kernel_arguments.clone(),
        soft_reboot_capable: soft_reboot_capable(status, deployment).to_owned(),
        unlocked: deployment.unlocked.clone(),
        warnings: deployment.incompatible.iter().cloned().collect(),
    }
}

/// The properties of the best candidate, and its path.
pub(super) fn update(status: &Status) -> Option<(OwnedObjectPath, UpdateInfo)> {
    let offer = status.offer()?;
    let booted = status.snapshot().and_then(Snapshot::booted);
    let image = &offer.image;
    let info = UpdateInfo {
        digest: image.digest.to_string(),
        index_digest: image
            .index_digest
            .as_ref()
            .map(Digest::to_string)
            .unwrap_or_default(),
        image: offer.reference,
        version: image.version().unwrap_or_default().to_owned(),
        architecture: image.architecture.clone(),
        timestamp: image.timestamp().unwrap_or(0),
        labels: capped(image.labels.iter()),
        annotations: capped(image.annotations.iter()),
        state: offer.state.to_owned(),
        direction: direction(booted.and_then(|booted| booted.image.as_ref()), image).to_owned(),
        download_size: offer.download_size.unwrap_or(UNKNOWN),
        total_size: image.total_size(),
        layers_total: image.layers.len() as u32,
        layers_missing: offer.layers_missing.unwrap_or(u32::MAX),
        kernel_version: status.kernel_of_offer(),
        diff_level: status.diff_level().to_owned(),
    };
    Some((update_path(&image.digest), info))
}

/// The properties of a job.
pub(super) fn job(view: &JobView) -> JobInfo {
    let reading = &view.reading;
    JobInfo {
        kind: view.kind.to_owned(),
        state: view.state.name().to_owned(),
        phase: reading
            .phase
            .map(|phase| phase.name().to_owned())
            .unwrap_or_default(),
        phase_index: reading.phase_index,
        phase_count: reading.phase_count,
        fraction: reading.fraction,
        bytes_done: reading.bytes_done,
        bytes_total: reading.bytes_total,
        bytes_cached: reading.bytes_cached,
        layers_done: reading.layers_done,
        layers_total: reading.layers_total,
        active_layers: reading.active_layers.clone(),
        rate: view.rate,
        eta: view.eta().unwrap_or(UNKNOWN),
        message: reading.message.clone(),
        cancellable: reading.cancellable,
        paused: view.paused,
        background: view.background,
        blocked_by: view.blocked_by.map_or_else(no_object, job_path),
        error: view.error.clone().unwrap_or_default(),
        result: result(view),
        target: target(view),
        created_at: view.created_at,
        started_at: view.started_at.unwrap_or(0),
        finished_at: view.finished_at.unwrap_or(0),
        started_by_uid: view.caller.uid,
        started_by_label: view.caller.label.clone(),
        sequence: view.sequence,
    }
}

/// What came out of a job, as `Job.Result` and the `Finished` signal have it.
pub(super) fn result(view: &JobView) -> Dict {
    let fact = |fact: &Fact| match fact {
        Fact::Text(text) => variant(text.as_str()),
        Fact::Texts(texts) => variant(texts.clone()),
        Fact::Pairs(pairs) => variant(pairs.clone()),
        Fact::Flag(flag) => variant(*flag),
        Fact::Number(number) => variant(*number),
        Fact::Deployment(id) => variant(deployment_path(id).into_inner()),
        Fact::Update(digest) => variant(update_path(digest).into_inner()),
    };
    view.facts
        .iter()
        .map(|(key, value)| ((*key).to_owned(), fact(value)))
        .collect()
}

fn target(view: &JobView) -> OwnedObjectPath {
    let deployment = view.facts.iter().find_map(|(_, fact)| match fact {
        Fact::Deployment(id) => Some(deployment_path(id)),
        _ => None,
    });
    let update = view.facts.iter().find_map(|(_, fact)| match fact {
        Fact::Update(digest) => Some(update_path(digest)),
        _ => None,
    });
    deployment.or(update).unwrap_or_else(no_object)
}

/// One entry of the history.
pub(super) fn history_entry(entry: &Entry) -> HistoryEntry {
    let entry = entry.clone();
    HistoryEntry {
        job: entry.job,
        kind: entry.kind,
        state: entry.state,
        image: entry.image,
        digest: entry.digest,
        version: entry.version,
        from_digest: entry.from_digest,
        to_digest: entry.to_digest,
        changed: entry.changed,
        started_by_uid: entry.uid,
        started_by_label: entry.label,
        reason: entry.reason,
        created_at: entry.created_at,
        finished_at: entry.finished_at,
        error_name: entry.error_name,
        error_message: entry.error_message,
    }
}

/// `Manager.Inhibitors`.
pub(super) fn inhibitors(status: &Status) -> zbus::Result<Vec<Dict>> {
    let records = status.inhibitors.iter().map(|one| {
        types::to_dict(&InhibitorInfo {
            what: one.what.name().to_owned(),
            who: one.who.clone(),
            why: one.why.clone(),
            uid: one.uid,
            since: one.since,
        })
    });
    records.collect()
}

/// The properties of the host.
pub(super) fn host(status: &Status) -> HostInfo {
    let empty = Snapshot::default();
    let snapshot = status.snapshot().unwrap_or(&empty);
    let path_of = |deployment: Option<&sysroot::Deployment>| {
        deployment.map_or_else(no_object, |deployment| deployment_path(&deployment.id))
    };
    let booted = snapshot.booted();
    HostInfo {
        booted_deployment: path_of(booted),
        staged_deployment: path_of(snapshot.staged()),
        default_deployment: path_of(snapshot.next_boot()),
        rollback_deployment: path_of(snapshot.rollback()),
        rollback_queued: snapshot.rollback_queued,
        deployments: snapshot
            .deployments
            .iter()
            .map(|d| deployment_path(&d.id))
            .collect(),
        stateroot: booted
            .map(|booted| booted.stateroot.clone())
            .unwrap_or_default(),
        os_name: status.os.name.clone(),
        os_version: status.os.version.clone(),
        boot_digest: booted
            .and_then(|b| b.digest())
            .map(Digest::to_string)
            .unwrap_or_default(),
        tracking: tracking(snapshot),
        update_state: status.update_state().to_owned(),
        update: update(status).map_or_else(no_object, |(path, _)| path),
        last_check: last_check(status),
        last_finalize: last_finalize(snapshot),
        reboot_required: reboot_required(status, snapshot).to_owned(),
        kernel_arguments: booted
            .map(|booted| booted.kernel_arguments.clone())
            .unwrap_or_default(),
    }
}

fn reboot_required(status: &Status, snapshot: &Snapshot) -> &'static str {
    match (&status.look, snapshot.next_boot(), snapshot.booted()) {
        (Look::Seen(_), Some(next), Some(booted)) if next.id == booted.id => "none",
        (Look::Seen(_), Some(next), Some(_)) => match soft_reboot_capable(status, next) {
            "yes" => "soft-reboot",
            _ => "reboot",
        },
        _ => "unknown",
    }
}

fn tracking(snapshot: &Snapshot) -> Dict {
    let deployment = snapshot.tracking();
    let Some(OriginReference { signature, image }) =
        deployment.and_then(|tracking| tracking.origin.clone())
    else {
        let refspec = deployment.and_then(|tracking| tracking.refspec.as_deref());
        return refspec.map(ostree_tracking).unwrap_or_default();
    };
    let policy = match signature {
        SignatureSource::Insecure => "none",
        SignatureSource::ContainerPolicy | SignatureSource::OstreeRemote(_) => "required",
    };
    Dict::from([
        ("image".to_owned(), variant(image.to_string())),
        (
            "transport".to_owned(),
            variant(image.transport().to_string()),
        ),
        ("tag".to_owned(), variant(image.tag().unwrap_or_default())),
        ("signature-policy".to_owned(), variant(policy)),
        ("insecure".to_owned(), variant(policy == "none")),
    ])
}

/// What a host tracks that follows the branch of an ostree remote.
fn ostree_tracking(refspec: &str) -> Dict {
    Dict::from([
        ("image".to_owned(), variant(refspec)),
        ("transport".to_owned(), variant("ostree")),
        ("tag".to_owned(), variant("")),
        ("signature-policy".to_owned(), variant("unknown")),
        ("insecure".to_owned(), variant(false)),
    ])
}

fn last_check(status: &Status) -> Dict {
    let Some(check) = &status.last_check else {
        return Dict::new();
    };
    let (name, message) = check.error.clone().unwrap_or_default();
    Dict::from([
        ("time".to_owned(), variant(check.time)),
        ("ok".to_owned(), variant(check.error.is_none())),
        ("error-name".to_owned(), variant(name)),
        ("error-message".to_owned(), variant(message)),
        ("digest".to_owned(), variant(check.digest.as_str())),
    ])
}

fn last_finalize(snapshot: &Snapshot) -> Dict {
    let failure = snapshot.finalize_failure.as_ref();
    let message = failure.map_or("", |failure| failure.message.as_str());
    let time = failure.map_or(0, |failure| failure.time);
    Dict::from([
        ("failed".to_owned(), variant(failure.is_some())),
        ("message".to_owned(), variant(message)),
        ("time".to_owned(), variant(time)),
    ])
}

/// The whole state in one document.
pub(super) fn status(status: &Status) -> types::Status {
    let deployments = status
        .snapshot()
        .map(|s| s.deployments.as_slice())
        .unwrap_or_default();
    types::Status {
        daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host(status),
        deployments: deployments
            .iter()
            .map(|known| deployment(status, known))
            .collect(),
        update: update(status).map(|(_, info)| info),
        jobs: status
            .jobs
            .iter()
            .map(|(id, view)| (job_path(*id), job(&view.borrow())))
            .collect(),
    }
}
