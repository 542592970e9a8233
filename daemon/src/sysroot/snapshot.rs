//! Plain copies of what libostree knows about the deployments.
//!
//! Owns the translation from libostree's objects to owned structs, and the rules for
//! which deployment is the rollback (bootc's: the first of the same stateroot that is
//! neither booted nor staged). Invariant: what cannot be read of one deployment is left
//! empty with a warning; one odd deployment never hides the others.

use std::path::Path;

use ostree::{gio, glib};

use super::{Error, Symbols, finalization};
use crate::image::layout::Image;
use crate::image::reference::{Digest, OriginReference};

/// Where a deployment stands in the boot order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The running system.
    Booted,
    /// Waits for finalization at shutdown.
    Staged,
    /// What a rollback goes back to.
    Rollback,
    /// Before the booted one in the boot order, and not the rollback.
    Pending,
    /// None of these.
    Other,
}

/// One bootable deployment.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// `d_<16 hex of the commit>_<serial>`: unique, stable, fit for an object path.
    pub id: String,
    /// The commit that is deployed.
    pub checksum: String,
    /// ostree's serial among deployments of one commit.
    pub serial: i32,
    /// The stateroot it belongs to.
    pub stateroot: String,
    /// Where it stands.
    pub slot: Slot,
    /// Whether clean-up must leave it alone.
    pub pinned: bool,
    /// Whether a staged deployment is kept from finalization.
    pub locked: bool,
    /// `container-image-reference` of its origin, as written.
    pub origin_text: String,
    /// The same, understood.
    pub origin: Option<OriginReference>,
    /// Why it cannot be upgraded by us, such as rpm-ostree layering.
    pub incompatible: Option<String>,
    /// The image that the commit carries.
    pub image: Option<Image>,
    /// The commit's `version` metadata; the image's label wins over it.
    pub commit_version: String,
    /// The directory name under `/usr/lib/modules`.
    pub kernel_version: String,
    /// The kernel command line of the boot entry.
    pub kernel_arguments: Vec<String>,
}

impl Deployment {
    /// The manifest digest, if it came from a container image.
    pub fn digest(&self) -> Option<&Digest> {
        self.image.as_ref().map(|image| &image.digest)
    }
}

/// The deployments in boot order, and what is known about the next update.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All deployments; the first is what the next boot gives.
    pub deployments: Vec<Deployment>,
    /// Whether the running system is one of them.
    pub is_booted: bool,
    /// Whether the next boot goes back: the rollback is before the booted one and
    /// nothing is staged.
    pub rollback_queued: bool,
    /// A candidate that a check found, also one made by bootc.
    pub cached_update: Option<Image>,
    /// Images that are whole in the repository but not deployed: reference and digest.
    pub pulled: Vec<Digest>,
    /// Features of the running libostree.
    pub features: Vec<&'static str>,
}

impl Snapshot {
    fn in_slot(&self, slot: Slot) -> Option<&Deployment> {
        self.deployments
            .iter()
            .find(|deployment| deployment.slot == slot)
    }

    /// The running deployment.
    pub fn booted(&self) -> Option<&Deployment> {
        self.in_slot(Slot::Booted)
    }

    /// The deployment that waits for finalization.
    pub fn staged(&self) -> Option<&Deployment> {
        self.in_slot(Slot::Staged)
    }

    /// What a rollback goes back to.
    pub fn rollback(&self) -> Option<&Deployment> {
        self.in_slot(Slot::Rollback)
    }

    /// What the next boot gives. What is staged and locked is dropped by a reboot.
    pub fn next_boot(&self) -> Option<&Deployment> {
        self.deployments
            .iter()
            .find(|deployment| !deployment.locked)
    }

    /// The deployment whose image is upgraded: the staged one's, else the booted one's.
    pub fn tracking(&self) -> Option<&Deployment> {
        self.staged().or_else(|| self.booted())
    }
}

pub(super) fn take(
    sysroot: &ostree::Sysroot,
    root: &Path,
    symbols: &Symbols,
) -> Result<Snapshot, Error> {
    let repo = sysroot.repo();
    let booted = sysroot.booted_deployment();
    let mut snapshot = Snapshot {
        is_booted: booted.is_some(),
        features: symbols.features(),
        ..Snapshot::default()
    };
    let mut rollback_seen = false;
    let mut booted_seen = false;
    for deployment in sysroot.deployments() {
        let is_booted = booted
            .as_ref()
            .is_some_and(|booted| booted.equal(&deployment));
        let same_root = booted
            .as_ref()
            .is_none_or(|booted| booted.osname() == deployment.osname());
        let slot = if is_booted {
            Slot::Booted
        } else if deployment.is_staged() {
            Slot::Staged
        } else if same_root && booted.is_some() && !rollback_seen {
            Slot::Rollback
        } else if !booted_seen {
            Slot::Pending
        } else {
            Slot::Other
        };
        booted_seen |= is_booted;
        rollback_seen |= slot == Slot::Rollback;
        if slot == Slot::Rollback && booted.is_some() && !booted_seen {
            snapshot.rollback_queued = true;
        }
        snapshot
            .deployments
            .push(describe(sysroot, &repo, root, symbols, &deployment, slot));
    }
    snapshot.rollback_queued &= snapshot.staged().is_none();
    snapshot.cached_update = snapshot
        .tracking()
        .and_then(|tracking| super::cached_update::read(&repo, &tracking.checksum));
    snapshot.pulled = pulled(&repo);
    Ok(snapshot)
}

fn describe(
    sysroot: &ostree::Sysroot,
    repo: &ostree::Repo,
    root: &Path,
    symbols: &Symbols,
    deployment: &ostree::Deployment,
    slot: Slot,
) -> Deployment {
    let checksum = deployment.csum().to_string();
    let serial = deployment.deployserial();
    let origin = deployment.origin();
    let origin_text = origin
        .as_ref()
        .and_then(|origin| origin.string("origin", super::deploy::ORIGIN_KEY).ok())
        .map(String::from)
        .unwrap_or_default();
    let locked = deployment.is_staged() && finalization::is_locked(root, symbols);
    let directory = root.join(sysroot.deployment_dirpath(deployment).as_str());
    Deployment {
        id: format!("d_{}_{serial}", &checksum[..16.min(checksum.len())]),
        serial,
        stateroot: deployment.osname().to_string(),
        slot,
        pinned: deployment.is_pinned(),
        locked,
        origin: origin_text.parse().ok(),
        origin_text,
        incompatible: origin.as_ref().and_then(layered),
        image: image_of(repo, &checksum),
        commit_version: commit_string(repo, &checksum, "version").unwrap_or_default(),
        kernel_version: kernel_version(&directory),
        kernel_arguments: kernel_arguments(deployment),
        checksum,
    }
}

/// rpm-ostree's layering cannot be carried over to another image (on-disk notes 1.6).
fn layered(origin: &glib::KeyFile) -> Option<String> {
    let groups = ["rpmostree", "packages", "overrides", "modules"];
    groups
        .iter()
        .find(|group| origin.has_group(group))
        .map(|group| {
            format!("its origin has a [{group}] section: packages are layered by rpm-ostree")
        })
}

fn kernel_arguments(deployment: &ostree::Deployment) -> Vec<String> {
    let options = deployment
        .bootconfig()
        .and_then(|config| config.get("options"));
    options
        .map(|text| text.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// The kernel is where libostree looks for it: `/usr/lib/modules/<version>/vmlinuz`.
fn kernel_version(directory: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(directory.join("usr/lib/modules")) else {
        return String::new();
    };
    entries
        .flatten()
        .find(|entry| entry.path().join("vmlinuz").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn commit_string(repo: &ostree::Repo, checksum: &str, key: &str) -> Option<String> {
    let (commit, _) = repo.load_commit(checksum).ok()?;
    let metadata = glib::VariantDict::new(Some(&commit.child_value(0)));
    metadata.lookup::<String>(key).ok()?
}

/// The container image that a merge commit carries; `None` for any other commit.
pub(super) fn image_of(repo: &ostree::Repo, checksum: &str) -> Option<Image> {
    let digest = commit_string(repo, checksum, "ostree.manifest-digest")?;
    let manifest = commit_string(repo, checksum, "ostree.manifest")?;
    let config = commit_string(repo, checksum, "ostree.container.image-config")?;
    Image::from_commit_metadata(&digest, &manifest, &config)
        .inspect_err(
            |error| tracing::warn!(%checksum, %error, "a merge commit carries no usable image"),
        )
        .ok()
}

/// Digests of the images that are whole in the repository.
fn pulled(repo: &ostree::Repo) -> Vec<Digest> {
    let prefix = Some("ostree/container/image");
    let flags = ostree::RepoListRefsExtFlags::NONE;
    let Ok(refs) = repo.list_refs_ext(prefix, flags, gio::Cancellable::NONE) else {
        return Vec::new();
    };
    let kept = repo
        .list_refs_ext(
            Some(crate::image::reference::BASEIMAGE_PREFIX),
            flags,
            gio::Cancellable::NONE,
        )
        .unwrap_or_default();
    refs.values()
        .chain(kept.values())
        .filter_map(|commit| image_of(repo, commit))
        .map(|image| image.digest)
        .collect()
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Slot::Booted => "booted",
            Slot::Staged => "staged",
            Slot::Rollback => "rollback",
            Slot::Pending => "pending",
            Slot::Other => "other",
        })
    }
}
