//! Records for the tests of this crate: one host with everything, and jobs.

use std::collections::HashMap;

use osteward_dbus::types::{DeploymentInfo, Dict, HostInfo, JobInfo, Status, UpdateInfo};
use osteward_dbus::{NO_OBJECT, UNKNOWN};
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

pub(crate) const NOW: u64 = 1_795_312_380;

pub(crate) fn path(text: &str) -> OwnedObjectPath {
    OwnedObjectPath::try_from(text.to_owned()).unwrap()
}

pub(crate) fn text(value: &str) -> OwnedVariant {
    OwnedVariant::try_from(Variant::from(value)).unwrap()
}

pub(crate) fn job(kind: &str, state: &str) -> JobInfo {
    JobInfo {
        kind: kind.into(),
        state: state.into(),
        phase: String::new(),
        phase_index: 0,
        phase_count: 5,
        fraction: -1.0,
        bytes_done: 0,
        bytes_total: 0,
        bytes_cached: 0,
        layers_done: 0,
        layers_total: 0,
        active_layers: Vec::new(),
        rate: 0,
        eta: UNKNOWN,
        message: String::new(),
        cancellable: true,
        paused: false,
        background: false,
        blocked_by: path(NO_OBJECT),
        error: Default::default(),
        result: Dict::new(),
        target: path(NO_OBJECT),
        created_at: (NOW - 60) * 1_000_000,
        started_at: (NOW - 60) * 1_000_000,
        finished_at: 0,
        started_by_uid: 1000,
        started_by_label: "osteward".into(),
        sequence: 1,
    }
}

pub(crate) fn downloading() -> JobInfo {
    JobInfo {
        phase: "downloading".into(),
        phase_index: 2,
        fraction: 0.45,
        bytes_done: 512 << 20,
        bytes_total: 1 << 30,
        bytes_cached: 256 << 20,
        layers_done: 12,
        layers_total: 60,
        rate: 12 << 20,
        eta: 43,
        ..job("upgrade", "running")
    }
}

pub(crate) fn deployment(state: &str, version: &str, digest: char) -> DeploymentInfo {
    DeploymentInfo {
        id: format!("d_{state}"),
        checksum: digest.to_string().repeat(64),
        serial: 0,
        stateroot: "default".into(),
        state: state.into(),
        booted: state == "booted",
        staged: state == "staged",
        pinned: false,
        locked: false,
        image: "ostree-unverified-registry:registry.example.org/os:stable".into(),
        digest: format!("sha256:{}", digest.to_string().repeat(64)),
        version: version.into(),
        timestamp: NOW - 86_400 * 2,
        labels: HashMap::new(),
        layers: 60,
        size_bytes: 1 << 30,
        kernel_version: "6.12.1".into(),
        kernel_arguments: vec!["root=UUID=1".into(), "rw".into()],
        soft_reboot_capable: "no".into(),
        unlocked: "none".into(),
        warnings: vec![],
    }
}

pub(crate) fn update(state: &str, digest: char) -> UpdateInfo {
    UpdateInfo {
        digest: format!("sha256:{}", digest.to_string().repeat(64)),
        index_digest: String::new(),
        image: "registry.example.org/os:stable".into(),
        version: "43".into(),
        architecture: "amd64".into(),
        timestamp: NOW - 3600,
        labels: HashMap::new(),
        annotations: HashMap::new(),
        state: state.into(),
        direction: "upgrade".into(),
        download_size: 120 << 20,
        total_size: 1 << 30,
        layers_total: 60,
        layers_missing: 7,
        kernel_version: "6.12.1".into(),
        diff_level: "metadata".into(),
    }
}

/// Booted 42, 41 to go back to, 43 known as `update_state` says.
pub(crate) fn status(update_state: &str) -> Status {
    let none = path(NO_OBJECT);
    let booted = path("/org/osteward1/deployment/d_booted");
    let mut tracking = Dict::new();
    tracking.insert(
        "image".into(),
        text("docker://registry.example.org/os:stable"),
    );
    tracking.insert("transport".into(), text("docker://"));
    let mut last_check = Dict::new();
    last_check.insert("time".into(), OwnedVariant::from(NOW - 300));
    last_check.insert("ok".into(), OwnedVariant::from(true));
    let update = match update_state {
        "idle" => None,
        state => Some(update(state, 'c')),
    };
    Status {
        daemon_version: "0.1.0".into(),
        host: HostInfo {
            booted_deployment: booted.clone(),
            staged_deployment: none.clone(),
            default_deployment: booted.clone(),
            rollback_deployment: path("/org/osteward1/deployment/d_rollback"),
            rollback_queued: false,
            deployments: vec![booted, path("/org/osteward1/deployment/d_rollback")],
            stateroot: "default".into(),
            os_name: "example".into(),
            os_version: "42".into(),
            boot_digest: format!("sha256:{}", "a".repeat(64)),
            tracking,
            update_state: update_state.into(),
            update: if update.is_some() {
                path("/org/osteward1/update/sha256_c")
            } else {
                none
            },
            last_check,
            last_finalize: Dict::new(),
            reboot_required: "none".into(),
            kernel_arguments: vec!["root=UUID=1".into(), "rw".into()],
        },
        deployments: vec![
            deployment("booted", "42", 'a'),
            deployment("rollback", "41", 'b'),
        ],
        update,
        jobs: Vec::new(),
    }
}

/// As [`status`], with 43 staged in front.
pub(crate) fn staged() -> Status {
    let mut status = status("staged");
    let staged = path("/org/osteward1/deployment/d_staged");
    status.host.staged_deployment = staged.clone();
    status.host.default_deployment = staged.clone();
    status.host.deployments.insert(0, staged);
    status.host.reboot_required = "reboot".into();
    status
        .deployments
        .insert(0, deployment("staged", "43", 'c'));
    status
}
