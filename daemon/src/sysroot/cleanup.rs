//! Removing what nothing needs: images, layers, deployment directories, objects.
//!
//! Owns the rule of what is kept (on-disk notes 1.11): every deployment and its image,
//! every image under a `baseimage` ref, whoever put it there, and all their layers.
//! Invariants: runs under the sysroot lock and never beside an import; a ref that cannot
//! be understood is kept; the booted, staged, pinned and rollback deployments are never
//! candidates, because only deployments that are off the list lose their files.

use std::collections::HashSet;

use ostree::{gio, glib};
use tokio_util::sync::CancellationToken;

use super::{Error, Lock, snapshot};
use crate::image::reference::{
    BASEIMAGE_PREFIX, BLOB_PREFIX, Digest, IMAGE_PREFIX, OriginReference, blob_ref, image_ref,
};

/// Refs that any tool may use to keep an image (ours are below this too).
const BASEIMAGES: &str = "ostree/container/baseimage";

/// Which undeployed images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageCleanup {
    /// What no deployment and no baseimage ref holds.
    Unreferenced,
    /// Also what osteward has downloaded but not staged.
    Downloaded,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Image refs.
    pub images: usize,
    /// Layer refs.
    pub layers: usize,
    /// Bytes of objects.
    pub bytes: u64,
}

impl Lock {
    /// Removes the images and layers that `which` says, then what only they held. With
    /// `dry_run` nothing is removed and `bytes` counts what is unreachable already.
    pub async fn clean_up(
        &self,
        which: ImageCleanup,
        dry_run: bool,
        cancel: &CancellationToken,
    ) -> Result<Discarded, Error> {
        self.change(cancel, move |sysroot, cancellable| {
            let repo = sysroot.repo();
            let doomed = doomed_refs(sysroot, &repo, which)?;
            let mut discarded = Discarded {
                images: doomed.images.len(),
                layers: doomed.layers.len(),
                bytes: 0,
            };
            if dry_run {
                let flags = ostree::RepoPruneFlags::REFS_ONLY | ostree::RepoPruneFlags::NO_PRUNE;
                discarded.bytes = repo.prune(flags, 0, Some(cancellable))?.2;
                return Ok(discarded);
            }
            let all = doomed
                .downloads
                .iter()
                .chain(&doomed.images)
                .chain(&doomed.layers);
            for name in all {
                repo.set_ref_immediate(None, name, None, Some(cancellable))?;
            }
            // Without the prune that sysroot.cleanup() would do: ours counts the bytes.
            sysroot.prepare_cleanup(Some(cancellable))?;
            let flags = ostree::RepoPruneFlags::REFS_ONLY;
            discarded.bytes = repo.prune(flags, 0, Some(cancellable))?.2;
            Ok(discarded)
        })
        .await
    }

    /// Lets go of the ref that kept a download alive until it was staged.
    pub async fn release_download(&self, cancel: &CancellationToken) -> Result<(), Error> {
        self.change(cancel, |sysroot, cancellable| {
            let repo = sysroot.repo();
            for name in refs_below(&repo, BASEIMAGE_PREFIX)?.keys() {
                repo.set_ref_immediate(None, name, None, Some(cancellable))?;
            }
            Ok(())
        })
        .await
    }
}

struct Doomed {
    /// Our own baseimage refs, when downloads go too.
    downloads: Vec<String>,
    images: Vec<String>,
    layers: Vec<String>,
}

type Refs = std::collections::HashMap<String, String>;

fn refs_below(repo: &ostree::Repo, prefix: &str) -> Result<Refs, Error> {
    let prefix = prefix.trim_end_matches('/');
    Ok(repo.list_refs_ext(
        Some(prefix),
        ostree::RepoListRefsExtFlags::NONE,
        gio::Cancellable::NONE,
    )?)
}

fn doomed_refs(
    sysroot: &ostree::Sysroot,
    repo: &ostree::Repo,
    which: ImageCleanup,
) -> Result<Doomed, Error> {
    let deployments = sysroot.deployments();
    let deployed_images: HashSet<String> =
        deployments.iter().filter_map(origin_image_ref).collect();
    let mut roots: Vec<String> = deployments.iter().map(|d| d.csum().to_string()).collect();
    let mut downloads = Vec::new();
    for (name, commit) in refs_below(repo, BASEIMAGES)? {
        if which == ImageCleanup::Downloaded && name.starts_with(BASEIMAGE_PREFIX) {
            downloads.push(name);
        } else {
            roots.push(commit);
        }
    }
    roots.extend(refs_below(repo, "rpmostree/base")?.into_values());
    let mut images = Vec::new();
    for (name, commit) in refs_below(repo, IMAGE_PREFIX)? {
        let held = deployed_images.contains(&name) || roots.contains(&commit);
        if held {
            roots.push(commit)
        } else {
            images.push(name)
        }
    }
    let needed: HashSet<String> = roots
        .iter()
        .flat_map(|commit| layer_refs(repo, commit))
        .collect();
    let layers = refs_below(repo, BLOB_PREFIX)?
        .into_keys()
        .filter(|name| !needed.contains(name))
        .collect();
    Ok(Doomed {
        downloads,
        images,
        layers,
    })
}

fn origin_image_ref(deployment: &ostree::Deployment) -> Option<String> {
    let origin = deployment.origin()?;
    let text = origin.string("origin", super::deploy::ORIGIN_KEY).ok()?;
    let origin: OriginReference = text.parse().ok()?;
    Some(image_ref(&origin.image.canonical()))
}

/// The layer refs of the manifest that a commit carries; a placeholder of a download
/// carries only a manifest, without a configuration.
fn layer_refs(repo: &ostree::Repo, commit: &str) -> Vec<String> {
    if let Some(image) = snapshot::image_of(repo, commit) {
        return image
            .layers
            .iter()
            .map(|layer| blob_ref(&layer.digest))
            .collect();
    }
    let Ok((variant, _)) = repo.load_commit(commit) else {
        return Vec::new();
    };
    let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
    let Ok(Some(manifest)) = metadata.lookup::<String>("ostree.manifest") else {
        return Vec::new();
    };
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap_or_default();
    let layers = manifest["layers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    layers
        .iter()
        .filter_map(|layer| layer["digest"].as_str()?.parse::<Digest>().ok())
        .map(|digest| blob_ref(&digest))
        .collect()
}
