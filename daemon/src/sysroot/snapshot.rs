//! Plain copies of what libostree knows about the deployments.
//!
//! Owns the translation from libostree's objects to owned structs, and the rules for
//! which deployment is the rollback (bootc's: the first of the same stateroot that is
//! neither booted nor staged). Invariant: what cannot be read of one deployment is left
//! empty with a warning; one odd deployment never hides the others.

use std::path::{Path, PathBuf};

use ostree::{gio, glib};

use super::{Error, FinalizeFailure, Symbols, finalization, last_finalize, soft_reboot};
use crate::image::layout::Image;
use crate::image::reference::{
    BASEIMAGE_PREFIX, Digest, IMAGE_PREFIX, ImageReference, OriginReference, image_ref,
};
use crate::kargs;

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
    /// `refspec` of its origin: the branch of an ostree remote that it came from instead.
    pub refspec: Option<String>,
    /// Why it cannot be upgraded by us, such as rpm-ostree layering.
    pub incompatible: Option<String>,
    /// The image that the commit carries.
    pub image: Option<Image>,
    /// The commit's `version` metadata; the image's label wins over it.
    pub commit_version: String,
    /// The directory name under `/usr/lib/modules`.
    pub kernel_version: String,
    /// The kernel command line of the boot entry, or of the one that it will have.
    pub kernel_arguments: Vec<String>,
    /// Its files.
    pub directory: PathBuf,
    /// What makes its `/usr` writable, in libostree's words; `none` if nothing.
    pub unlocked: String,
    /// Whether libostree can get into it from what runs now without the kernel.
    pub soft_reboot: bool,
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
    /// Why the last finalization failed, if it did.
    pub finalize_failure: Option<FinalizeFailure>,
    /// Features of the running libostree, and whether a finalization lock can be made.
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
        finalize_failure: last_finalize::failure(root),
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
        let (sight, booted) = ((sysroot, &repo, root, symbols), booted.as_ref());
        snapshot
            .deployments
            .push(describe(sight, booted, &deployment, slot));
    }
    snapshot.rollback_queued &= snapshot.staged().is_none();
    snapshot.cached_update = snapshot
        .tracking()
        .and_then(|tracking| super::cached_update::read(&repo, &tracking.checksum));
    snapshot.pulled = pulled(&repo);
    let can_lock = finalization::can_be_made(root, symbols);
    snapshot
        .features
        .extend(can_lock.then_some("finalization-lock"));
    Ok(snapshot)
}

fn describe(
    (sysroot, repo, root, symbols): (&ostree::Sysroot, &ostree::Repo, &Path, &Symbols),
    booted: Option<&ostree::Deployment>,
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
    let own_arguments = kernel_arguments(deployment);
    let unlocked = ostree::Deployment::unlocked_state_to_string(deployment.unlocked());
    Deployment {
        id: super::deploy::id(&deployment.osname(), &checksum, serial),
        serial,
        stateroot: deployment.osname().to_string(),
        slot,
        pinned: deployment.is_pinned(),
        locked,
        origin: origin_text.parse().ok(),
        origin_text,
        refspec: origin.as_ref().and_then(refspec),
        incompatible: origin.as_ref().and_then(layered),
        image: image_of(repo, &checksum),
        commit_version: commit_string(repo, &checksum, "version").unwrap_or_default(),
        kernel_version: kernel_version(&directory),
        kernel_arguments: own_arguments
            .or_else(|| inherited_arguments(slot, booted?))
            .unwrap_or_default(),
        unlocked: unlocked.to_string(),
        soft_reboot: booted
            .filter(|_| slot != Slot::Booted)
            .is_some_and(|booted| {
                soft_reboot::is_possible(sysroot, root, symbols, (booted, deployment))
            }),
        directory,
        checksum,
    }
}

/// Hosts from before container images follow a branch; rpm-ostree has a key of its own for it.
fn refspec(origin: &glib::KeyFile) -> Option<String> {
    let keys = ["refspec", "baserefspec"];
    let mut found = keys.iter().flat_map(|key| origin.string("origin", key));
    found.next().map(String::from)
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

/// `None` for what was staged without any.
pub(super) fn kernel_arguments(deployment: &ostree::Deployment) -> Option<Vec<String>> {
    let options = deployment.bootconfig()?.get("options")?;
    Some(kargs::split(&options))
}

/// What is staged without any will have those of what runs now.
fn inherited_arguments(slot: Slot, booted: &ostree::Deployment) -> Option<Vec<String>> {
    let arguments = kernel_arguments(booted).filter(|_| slot == Slot::Staged)?;
    Some(kargs::Arguments::new(arguments).as_slice().to_vec())
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
    pulled_commits(repo)
        .filter_map(|commit| image_of(repo, &commit))
        .map(|image| image.digest)
        .collect()
}

/// The merge commits of all images, also of those that only we keep.
fn pulled_commits(repo: &ostree::Repo) -> impl Iterator<Item = String> {
    let below = |prefix| {
        let flags = ostree::RepoListRefsExtFlags::NONE;
        let refs = repo.list_refs_ext(Some(prefix), flags, gio::Cancellable::NONE);
        refs.unwrap_or_default().into_values()
    };
    below(IMAGE_PREFIX).chain(below(BASEIMAGE_PREFIX))
}

/// What was pulled last as `reference`, or what has that digest, deployed or not.
pub(super) fn stored_image(
    sysroot: &ostree::Sysroot,
    reference: &ImageReference,
    digest: Option<&Digest>,
) -> Option<Image> {
    let repo = sysroot.repo();
    let Some(digest) = digest else {
        let commit = repo.resolve_rev(&image_ref(reference), true).ok()??;
        return image_of(&repo, &commit);
    };
    let deployed = sysroot.deployments().into_iter();
    let deployed = deployed.map(|deployment| deployment.csum().to_string());
    let mut images = pulled_commits(&repo)
        .chain(deployed)
        .filter_map(|commit| image_of(&repo, &commit));
    images.find(|image| image.digest == *digest)
}

/// The merge commit of the image with that digest, pulled or deployed.
pub(super) fn merge_commit(sysroot: &ostree::Sysroot, digest: &Digest) -> Option<String> {
    let repo = sysroot.repo();
    let deployed = sysroot.deployments().into_iter();
    let deployed = deployed.map(|deployment| deployment.csum().to_string());
    let has_digest =
        |commit: &String| image_of(&repo, commit).is_some_and(|image| image.digest == *digest);
    pulled_commits(&repo).chain(deployed).find(has_digest)
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
