//! Changes of the boot order: stage, roll back, undo it, drop what is staged.
//!
//! Owns the calls that change which deployment boots next. Invariants: all happen under
//! the sysroot lock; the booted deployment stays in every list that is written; the
//! kernel arguments and /etc of a new deployment come from libostree's own merge.

use ostree::prelude::*;
use ostree::{gio, glib};
use tokio_util::sync::CancellationToken;

use super::finalization::Coming;
use super::{Error, Lock, finalization};
use crate::image::reference::OriginReference;

/// The origin key that names a container image (on-disk notes 1.6).
pub(super) const ORIGIN_KEY: &str = "container-image-reference";

/// A deployment that now waits for finalization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The commit.
    pub checksum: String,
    /// ostree's serial.
    pub serial: i32,
    /// Whether it is kept from finalization.
    pub locked: bool,
}

impl Lock {
    /// Stages `commit` with `origin` for the next boot, finalized by libostree's own
    /// unit at shutdown unless it is `locked`. Whatever was staged before is replaced
    /// (callers check first).
    pub async fn stage(
        &self,
        commit: String,
        origin: &OriginReference,
        locked: bool,
        cancel: &CancellationToken,
    ) -> Result<Staged, Error> {
        let origin = origin.to_string();
        let (root, symbols) = (self.sysroot.root.clone(), self.sysroot.symbols);
        self.change(cancel, move |sysroot, cancellable| {
            let booted = sysroot.booted_deployment().ok_or(Error::NotBooted)?;
            let stateroot = booted.osname();
            let keyfile = glib::KeyFile::new();
            keyfile.set_string("origin", ORIGIN_KEY, &origin);
            let merge = sysroot.merge_deployment(Some(&stateroot));
            let lock = Coming::prepare(&root, &symbols, locked)?;
            // Versions that do not know the field have it among the unused ones.
            let options = ostree::SysrootDeployTreeOpts {
                locked,
                ..Default::default()
            };
            let deployment = sysroot
                .stage_tree_with_options(
                    Some(&stateroot),
                    &commit,
                    Some(&keyfile),
                    merge.as_ref(),
                    &options,
                    Some(cancellable),
                )
                .or_else(|error| settle(sysroot, &commit, &origin).ok_or(error));
            let deployment = match deployment {
                Ok(deployment) => deployment,
                Err(error) => {
                    lock.failed();
                    return Err(error.into());
                }
            };
            lock.staged();
            Ok(Staged {
                locked: finalization::is_locked(&root, &symbols),
                checksum: deployment.csum().to_string(),
                serial: deployment.deployserial(),
            })
        })
        .await
    }

    /// Puts the deployment `id` first in the boot order, at once. A staged deployment is
    /// dropped (callers check first). Cannot be cancelled: half of it would lose what is
    /// staged and change nothing.
    pub async fn boot_next(&self, id: String) -> Result<(), Error> {
        self.change(&CancellationToken::new(), move |sysroot, cancellable| {
            let mut order: Vec<ostree::Deployment> = sysroot
                .deployments()
                .into_iter()
                .filter(|d| !d.is_staged())
                .collect();
            let position = order.iter().position(|d| matches(d, &id)).ok_or_else(|| {
                Error::NoDeployment(format!(
                    "deployment {id} is gone; look at the status and try again"
                ))
            })?;
            let first = order.remove(position);
            // Booted next after it, so that clean-up and a second rollback find it.
            if let Some(booted) = sysroot.booted_deployment()
                && let Some(at) = order.iter().position(|d| d.equal(&booted))
            {
                let booted = order.remove(at);
                order.insert(0, booted);
            }
            order.insert(0, first);
            write(sysroot, &order, cancellable)
        })
        .await
    }

    /// Writes the list without the deployments that `drop` names by id; the booted one
    /// and pinned ones always stay. Returns how many went. Cannot be cancelled.
    pub async fn undeploy(&self, drop: Vec<String>) -> Result<usize, Error> {
        self.change(&CancellationToken::new(), move |sysroot, cancellable| {
            let all = sysroot.deployments();
            let booted = sysroot.booted_deployment().ok_or(Error::NotBooted)?;
            let kept: Vec<ostree::Deployment> = all
                .iter()
                .filter(|d| {
                    let named = drop.iter().any(|id| matches(d, id));
                    d.equal(&booted) || d.is_pinned() || !named
                })
                .cloned()
                .collect();
            if kept.len() < all.len() {
                write(sysroot, &kept, cancellable)?;
            }
            Ok(all.len() - kept.len())
        })
        .await
    }
}

/// What a failed or cancelled staging left behind. libostree writes down what is staged
/// before it removes what was staged earlier; when that breaks off, the new deployment is
/// the one that counts, and libostree's own copy of the list does not know it yet.
fn settle(sysroot: &ostree::Sysroot, commit: &str, origin: &str) -> Option<ostree::Deployment> {
    reload(sysroot);
    if let Err(error) = sysroot.prepare_cleanup(gio::Cancellable::NONE) {
        tracing::warn!(%error, "what a broken-off staging left could not be removed");
    }
    sysroot.staged_deployment().filter(|staged| {
        let written = staged
            .origin()
            .and_then(|keys| keys.string("origin", ORIGIN_KEY).ok());
        staged.csum() == commit && written.is_some_and(|written| written == origin)
    })
}

pub(super) fn matches(deployment: &ostree::Deployment, id: &str) -> bool {
    let checksum = deployment.csum();
    id == format!(
        "d_{}_{}",
        &checksum[..16.min(checksum.len())],
        deployment.deployserial()
    )
}

/// Clean-up is a step of its own: it must not delay, or fail, the change of order.
fn write(
    sysroot: &ostree::Sysroot,
    order: &[ostree::Deployment],
    cancellable: &gio::Cancellable,
) -> Result<(), Error> {
    let options = ostree::SysrootWriteDeploymentsOpts {
        do_postclean: false,
    };
    let written = sysroot.write_deployments_with_options(order, &options, Some(cancellable));
    Ok(written.inspect_err(|_| reload(sysroot))?)
}

/// Reads the list from disk after a change that broke off. libostree itself looks only at
/// the time of a directory, which such a change has not touched yet.
pub(super) fn reload(sysroot: &ostree::Sysroot) {
    let directory = sysroot.path().path().unwrap_or_default();
    let reloaded = std::fs::File::open(directory.join("ostree/deploy"))
        .and_then(|directory| directory.set_modified(std::time::SystemTime::now()))
        .map_err(|error| error.to_string())
        .and_then(|()| {
            let loaded = sysroot.load(gio::Cancellable::NONE);
            loaded.map_err(|error| error.message().to_owned())
        });
    if let Err(error) = reloaded {
        tracing::warn!(error, "the deployments could not be read again");
    }
}
