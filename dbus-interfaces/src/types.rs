//! The records that travel: what `Host.Status` and the objects' properties say.
//!
//! Owns the shape of a deployment, an update, a job and the host as dictionaries. The
//! keys of each record are the property names of its interface in kebab-case (checked by
//! the contract tests), so one record feeds the properties, their change signals and the
//! `Status` document. Times are unix seconds unless a field says otherwise; sizes are
//! bytes; "not known" is the empty string, 0 or [`crate::UNKNOWN`] as the field says.

use std::collections::HashMap;

use serde::{Serialize, de::DeserializeOwned};

use zbus::{
    DeserializeDict, OwnedObjectPath, OwnedVariant, SerializeDict, Type, Variant,
    wire::{LE, serialized::Context, to_bytes},
};

/// An open dictionary, as results and property changes are.
pub type Dict = HashMap<String, OwnedVariant>;

macro_rules! record {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $fdoc:literal])+ $field:ident: $ty:ty,)* }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
        #[zbus(signature = "a{sv}", rename_all = "kebab-case")]
        pub struct $name {
            $($(#[doc = $fdoc])+ pub $field: $ty,)*
        }
    };
}

record! {
    /// A bootable deployment: the properties of `org.osteward1.Deployment`.
    DeploymentInfo {
        /// Stable for the life of the deployment; also the last path element.
        id: String,
        /// The ostree commit that is deployed.
        checksum: String,
        /// ostree's serial among deployments of one commit.
        serial: i32,
        /// The stateroot (os name) it belongs to.
        stateroot: String,
        /// `booted`, `staged`, `pending`, `rollback` or `other`.
        state: String,
        /// Whether the running system is this one.
        booted: bool,
        /// Whether it waits for finalization at shutdown.
        staged: bool,
        /// Whether clean-up must leave it alone.
        pinned: bool,
        /// Whether a staged deployment is kept from finalization.
        locked: bool,
        /// The container image it came from, as in the origin file, or the branch of an ostree
        /// remote; empty if none.
        image: String,
        /// Digest of the platform manifest; empty if it is not from a container image.
        digest: String,
        /// The image's own version label; empty if none.
        version: String,
        /// When the image was made; 0 if unknown.
        timestamp: u64,
        /// The image's labels, capped at 256 entries and 64 KiB.
        labels: HashMap<String, String>,
        /// Number of layers; 0 if it is not from a container image.
        layers: u32,
        /// Compressed size of all layers.
        size_bytes: u64,
        /// The directory name under `/usr/lib/modules`; empty if unknown.
        kernel_version: String,
        /// The kernel command line of the boot entry, or of the one that it will have.
        kernel_arguments: Vec<String>,
        /// Whether it can be reached without the kernel: `yes`, `no` or `unknown`.
        soft_reboot_capable: String,
        /// What makes its `/usr` writable: `none`, `development`, `hotfix` or `transient`.
        unlocked: String,
        /// What keeps it from being upgraded, a sentence each.
        warnings: Vec<String>,
    }
}

record! {
    /// A known candidate: the properties of `org.osteward1.Update`.
    UpdateInfo {
        /// Digest of the manifest of this architecture.
        digest: String,
        /// Digest of the index it was found in; empty if none.
        index_digest: String,
        /// The image reference it was found under.
        image: String,
        /// The image's own version label; empty if none.
        version: String,
        /// OCI architecture name, such as `amd64`.
        architecture: String,
        /// When the image was made; 0 if unknown.
        timestamp: u64,
        /// The image's labels, capped at 256 entries and 64 KiB. Untrusted text.
        labels: HashMap<String, String>,
        /// The manifest's annotations, capped alike. Untrusted text.
        annotations: HashMap<String, String>,
        /// `available`, `downloaded`, `staged` or `quarantined`.
        state: String,
        /// `upgrade`, `downgrade`, `same` or `unknown`, against the booted image.
        direction: String,
        /// Bytes to fetch, as found when the image was looked for last.
        download_size: u64,
        /// Compressed bytes of all layers.
        total_size: u64,
        /// Number of layers.
        layers_total: u32,
        /// Number of layers that are not in the repository.
        layers_missing: u32,
        /// The release of its kernel; empty if unknown.
        kernel_version: String,
        /// How much is known of what changes: `none`, `layers`, `metadata` or `full`.
        diff_level: String,
    }
}

/// A package that is not the same, as `Update.GetPackageDiff` returns it: name; what happens,
/// one of [`change`]; old version; new version; architecture; and `manager s`, `source s`,
/// `old-size t`, `new-size t` as far as they are known.
pub type PackageChange = (String, u32, String, String, String, Dict);

/// A package that is not the same, as `Deployment.DiffPackages` returns it: name; what happens,
/// in the words of [`change::name`]; old version; new version; architecture.
pub type PackageMove = (String, String, String, String, String);

/// What can happen to a package.
pub mod change {
    /// It is new.
    pub const ADDED: u32 = 0;
    /// It goes.
    pub const REMOVED: u32 = 1;
    /// Its version becomes higher.
    pub const UPGRADED: u32 = 2;
    /// Its version becomes lower.
    pub const DOWNGRADED: u32 = 3;
    /// It is another package of the same version.
    pub const REBUILT: u32 = 4;

    const NAMES: [&str; 5] = ["added", "removed", "upgraded", "downgraded", "rebuilt"];

    /// `added`, `removed`, `upgraded`, `downgraded` or `rebuilt`; `changed` for what a newer
    /// daemon may say.
    pub fn name(change: u32) -> &'static str {
        let index = usize::try_from(change).unwrap_or(usize::MAX);
        NAMES.get(index).copied().unwrap_or("changed")
    }
}

record! {
    /// A running or finished job: the properties of `org.osteward1.Job`.
    JobInfo {
        /// `check`, `download`, `upgrade`, `switch`, `rollback`, `cancel-rollback`, `apply`, `discard`, `kargs`, `simulate`, ….
        kind: String,
        /// `queued`, `running`, `cancelling`, `succeeded`, `failed` or `cancelled`.
        state: String,
        /// `resolving`, `downloading`, `importing`, `merging`, `staging`, `bootloader`, `cleaning`, `rebooting`; empty before the first.
        phase: String,
        /// Which phase of this job it is, from 1; 0 before the first.
        phase_index: u32,
        /// How many phases this job has.
        phase_count: u32,
        /// 0 to 1 over the whole job; never decreases; −1 when unknown.
        fraction: f64,
        /// Bytes of layers, tables of contents and deltas that were fetched.
        bytes_done: u64,
        /// What the bytes done will be at most; without what is here already.
        bytes_total: u64,
        /// Compressed bytes of the image that need not be fetched.
        bytes_cached: u64,
        /// Layers written to the repository by this job.
        layers_done: u32,
        /// Layers to write.
        layers_total: u32,
        /// Layers in flight (at most 8): digest, bytes done, bytes total.
        active_layers: Vec<(String, u64, u64)>,
        /// Bytes a second, smoothed; 0 when nothing moves.
        rate: u64,
        /// Seconds left of the download; `UNKNOWN` when it cannot be told.
        eta: u64,
        /// The last line for people.
        message: String,
        /// False from the point of no return on.
        cancellable: bool,
        /// Somebody paused it.
        paused: bool,
        /// It gives way to jobs that somebody waits for.
        background: bool,
        /// The job before a queued one; `/` if there is none.
        blocked_by: OwnedObjectPath,
        /// D-Bus error name and message; both empty unless the job failed.
        error: (String, String),
        /// What came out: `digest s`, `deployment o`, `changed b`, `reboot s`, `freed-bytes t`, …
        result: Dict,
        /// The Update or Deployment object it works on; `/` when not known yet.
        target: OwnedObjectPath,
        /// Microseconds since the epoch.
        created_at: u64,
        /// Microseconds since the epoch; 0 before it began.
        started_at: u64,
        /// Microseconds since the epoch; 0 while it has not ended.
        finished_at: u64,
        /// The user who asked.
        started_by_uid: u32,
        /// The name the client gave itself.
        started_by_label: String,
        /// Counts the changes; lets a client drop a stale read.
        sequence: u64,
    }
}

record! {
    /// A finished operation, as `Manager.GetHistory` returns it.
    HistoryEntry {
        /// The number of the job, the last element of its path; begins anew with each boot.
        job: u64,
        /// As `Job.Kind`.
        kind: String,
        /// `succeeded`, `failed`, `cancelled`, or `interrupted`: the daemon ended before the job.
        state: String,
        /// The image that was asked for, as in the origin file.
        image: String,
        /// The manifest digest that it was about; empty if it did not come to that.
        digest: String,
        /// The version that goes with it; empty if none.
        version: String,
        /// The digest that the next boot gave before; empty if that was no container image.
        from_digest: String,
        /// The digest that the next boot gave afterwards; empty alike, or if it was interrupted.
        to_digest: String,
        /// Whether anything was done.
        changed: bool,
        /// The user who asked.
        started_by_uid: u32,
        /// The name the client gave itself.
        started_by_label: String,
        /// The client's reason.
        reason: String,
        /// Microseconds since the epoch.
        created_at: u64,
        /// Microseconds since the epoch; of an interrupted one when that was found.
        finished_at: u64,
        /// D-Bus error name; empty unless it failed or was cancelled.
        error_name: String,
        /// The sentence for people.
        error_message: String,
    }
}

record! {
    /// One who keeps the daemon from something, as in `Manager.Inhibitors`.
    InhibitorInfo {
        /// `idle` or `apply`.
        what: String,
        /// The name it gave itself.
        who: String,
        /// Its reason.
        why: String,
        /// The user it runs as.
        uid: u32,
        /// Microseconds since the epoch.
        since: u64,
    }
}

record! {
    /// The host: the properties of `org.osteward1.Host`.
    HostInfo {
        /// The running deployment; `/` = not booted by ostree.
        booted_deployment: OwnedObjectPath,
        /// The deployment that waits for finalization; `/` = none.
        staged_deployment: OwnedObjectPath,
        /// What the next boot gives.
        default_deployment: OwnedObjectPath,
        /// What `Rollback` goes back to; `/` = none.
        rollback_deployment: OwnedObjectPath,
        /// True when the next boot goes back and nothing is staged.
        rollback_queued: bool,
        /// All deployments in boot order.
        deployments: Vec<OwnedObjectPath>,
        /// The booted stateroot.
        stateroot: String,
        /// `ID` of os-release.
        os_name: String,
        /// `VERSION` of os-release, else `VERSION_ID`.
        os_version: String,
        /// Manifest digest of the booted image; empty if it is not from one.
        boot_digest: String,
        /// `image s`, `transport s`, `tag s`, `signature-policy s`, `insecure b`.
        tracking: Dict,
        /// `unknown idle checking available downloading downloaded staging staged rollback-queued failed`.
        update_state: String,
        /// The best candidate; `/` = none.
        update: OwnedObjectPath,
        /// `time t`, `ok b`, `error-name s`, `error-message s`, `digest s`; empty before the first check.
        last_check: Dict,
        /// `failed b`, `message s`, `time t`: whether the last finalization failed, and why.
        last_finalize: Dict,
        /// `none`, `soft-reboot`, `reboot` or `unknown`: what gets the host into the default
        /// deployment.
        reboot_required: String,
        /// The kernel command line of the booted deployment.
        kernel_arguments: Vec<String>,
    }
}

/// The whole state in one answer: what `Host.Status` returns.
///
/// On the wire it is one dictionary: the keys of [`HostInfo`] (but `deployments` and
/// `update` are the records, whose paths are in them), plus `schema u`,
/// `daemon-version s`, `deployments aa{sv}`, `update a{sv}` (empty = none) and
/// `jobs aa{sv}`; each entry of the lists, and `update`, also has its object's `path o`.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Version of the daemon that answered.
    pub daemon_version: String,
    /// The host's properties.
    pub host: HostInfo,
    /// All deployments in boot order.
    pub deployments: Vec<DeploymentInfo>,
    /// The best candidate.
    pub update: Option<UpdateInfo>,
    /// Running and recently finished jobs with their paths.
    pub jobs: Vec<(OwnedObjectPath, JobInfo)>,
}

/// Version of the `Status` document; raised when a key changes its meaning.
pub const STATUS_SCHEMA: u32 = 1;

impl Status {
    /// The document as it travels.
    pub fn to_dict(&self) -> zbus::Result<Dict> {
        let mut document = to_dict(&self.host)?;
        let deployments = self
            .deployments
            .iter()
            .zip(&self.host.deployments)
            .map(|(info, path)| with_path(info, path))
            .collect::<zbus::Result<Vec<Dict>>>()?;
        let jobs = self
            .jobs
            .iter()
            .map(|(path, info)| with_path(info, path))
            .collect::<zbus::Result<Vec<Dict>>>()?;
        let update = match &self.update {
            Some(info) => with_path(info, &self.host.update)?,
            None => Dict::new(),
        };
        document.insert("schema".into(), STATUS_SCHEMA.into());
        document.insert(
            "daemon-version".into(),
            owned(self.daemon_version.as_str())?,
        );
        document.insert("deployments".into(), owned(deployments)?);
        document.insert("update".into(), owned(update)?);
        document.insert("jobs".into(), owned(jobs)?);
        Ok(document)
    }

    /// Reads a document; keys that are not known are ignored.
    pub fn from_dict(document: &Dict) -> zbus::Result<Self> {
        let list = |key: &str| -> zbus::Result<Vec<Dict>> {
            match document.get(key) {
                Some(value) => Ok(value.try_clone()?.try_into()?),
                None => Ok(Vec::new()),
            }
        };
        let deployments = list("deployments")?;
        let update: Dict = match document.get("update") {
            Some(value) => value.try_clone()?.try_into()?,
            None => Dict::new(),
        };
        let daemon_version = match document.get("daemon-version") {
            Some(value) => value.try_clone()?.try_into()?,
            None => String::new(),
        };
        Ok(Self {
            daemon_version,
            host: host_of(document, &deployments, &update)?,
            deployments: deployments
                .iter()
                .map(from_dict)
                .collect::<zbus::Result<_>>()?,
            update: if update.is_empty() {
                None
            } else {
                Some(from_dict(&update)?)
            },
            jobs: list("jobs")?
                .iter()
                .map(path_and_job)
                .collect::<zbus::Result<_>>()?,
        })
    }
}

/// The host's part of a document, where `deployments` and `update` are records instead
/// of paths.
fn host_of(document: &Dict, deployments: &[Dict], update: &Dict) -> zbus::Result<HostInfo> {
    let mut host = Dict::new();
    for (key, value) in document {
        if key != "deployments" && key != "update" {
            host.insert(key.clone(), value.try_clone()?);
        }
    }
    let paths = deployments
        .iter()
        .map(path_of)
        .collect::<zbus::Result<Vec<_>>>()?;
    let paths: Vec<_> = paths.iter().map(|path| path.as_ref()).collect();
    host.insert("deployments".into(), owned(paths)?);
    host.insert("update".into(), owned(path_of(update)?.as_ref())?);
    from_dict(&host)
}

/// The object of a record; `/` if it does not say.
fn path_of(entry: &Dict) -> zbus::Result<OwnedObjectPath> {
    match entry.get("path") {
        Some(value) => Ok(value.try_clone()?.try_into()?),
        None => Ok(OwnedObjectPath::default()),
    }
}

fn path_and_job(entry: &Dict) -> zbus::Result<(OwnedObjectPath, JobInfo)> {
    Ok((path_of(entry)?, from_dict(entry)?))
}

fn with_path<T: Serialize + Type>(info: &T, path: &OwnedObjectPath) -> zbus::Result<Dict> {
    let mut dict = to_dict(info)?;
    dict.insert("path".into(), owned(path.as_ref())?);
    Ok(dict)
}

fn owned<'a>(value: impl Into<Variant<'a>>) -> zbus::Result<OwnedVariant> {
    OwnedVariant::try_from(value.into())
}

/// Any record as an open dictionary.
pub fn to_dict<T: Serialize + Type>(record: &T) -> zbus::Result<Dict> {
    let context = Context::new(LE, 0);
    Ok(to_bytes(context, record)?.deserialize()?.0)
}

/// A record out of an open dictionary; keys that are not known are ignored.
pub fn from_dict<T: DeserializeOwned + Type>(dict: &Dict) -> zbus::Result<T> {
    let context = Context::new(LE, 0);
    Ok(to_bytes(context, dict)?.deserialize()?.0)
}

/// `booted-deployment` → `BootedDeployment`: a record's key as the property's name.
pub fn property_name(key: &str) -> String {
    key.split('-')
        .map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase())
                .into_iter()
                .chain(letters)
                .collect::<String>()
        })
        .collect()
}
