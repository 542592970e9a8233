//! Changes of the boot order: stage, roll back, undo it, drop what is staged.
//!
//! Owns the calls that change which deployment boots next. Invariants: all happen under
//! the sysroot lock; the booted deployment stays in every list that is written; the /etc of
//! a new deployment comes from libostree's own merge.

use std::path::Path;

use ostree::prelude::*;
use ostree::{gio, glib};
use tokio_util::sync::CancellationToken;

use super::finalization::Coming;
use super::{Error, Lock, Symbols, boot_keys, finalization, snapshot};
use crate::image::reference::OriginReference;
use crate::kargs::Arguments;

/// The origin key that names a container image (on-disk notes 1.6).
pub(super) const ORIGIN_KEY: &str = "container-image-reference";

/// A deployment that now waits for finalization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The commit.
    pub checksum: String,
    /// ostree's serial, one of its stateroot.
    pub serial: i32,
    /// Where it lives.
    pub stateroot: String,
    /// Whether it is kept from finalization.
    pub locked: bool,
}

impl Staged {
    /// As [`super::Deployment::id`].
    pub fn id(&self) -> String {
        id(&self.stateroot, &self.checksum, self.serial)
    }
}

/// The stateroot that hosts have who have one only.
const USUAL_STATEROOT: &str = "default";

/// Unique, stable, fit for an object path. ostree counts serials for each stateroot, so the
/// stateroot is a part of it, unless it is the usual one.
pub(super) fn id(stateroot: &str, checksum: &str, serial: i32) -> String {
    let short = &checksum[..16.min(checksum.len())];
    let mut id = format!("d_{short}_{serial}");
    if stateroot != USUAL_STATEROOT {
        id.push('_');
        for byte in stateroot.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => id.push(char::from(byte)),
                _ => id.push_str(&format!("_{byte:02x}")),
            }
        }
    }
    id
}

impl Lock {
    /// Stages `commit` with `origin` and those kernel arguments for the next boot, finalized
    /// by libostree's own unit at shutdown unless it is `locked`. Whatever was staged before is
    /// replaced (callers check first).
    pub async fn stage(
        &self,
        commit: String,
        origin: &OriginReference,
        arguments: Arguments,
        locked: bool,
        cancel: &CancellationToken,
    ) -> Result<Staged, Error> {
        let origin = origin.to_string();
        let (root, symbols) = (self.sysroot.root.clone(), self.sysroot.symbols);
        self.change(cancel, move |sysroot, cancellable| {
            let keyfile = glib::KeyFile::new();
            keyfile.set_string("origin", ORIGIN_KEY, &origin);
            let wanted = Wanted {
                commit,
                origin: keyfile,
                arguments,
                locked,
            };
            wanted.stage(sysroot, &root, &symbols, cancellable)
        })
        .await
    }

    /// Stages the deployment `id` once more, with other kernel arguments. Whatever was staged
    /// before is replaced (callers check first).
    pub async fn stage_again(
        &self,
        id: String,
        arguments: Arguments,
        locked: bool,
        cancel: &CancellationToken,
    ) -> Result<Staged, Error> {
        let (root, symbols) = (self.sysroot.root.clone(), self.sysroot.symbols);
        self.change(cancel, move |sysroot, cancellable| {
            let all = sysroot.deployments();
            let again = all
                .iter()
                .find(|d| matches(d, &id))
                .ok_or_else(|| gone(&id))?;
            // libostree's own copy stays as it is.
            let copy = ostree::Deployment::clone(again);
            let origin = copy.origin().unwrap_or_default();
            ostree::Deployment::origin_remove_transient_state(&origin);
            let wanted = Wanted {
                commit: again.csum().to_string(),
                origin,
                arguments,
                locked,
            };
            wanted.stage(sysroot, &root, &symbols, cancellable)
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
            let position = order.iter().position(|d| matches(d, &id));
            let position = position.ok_or_else(|| gone(&id))?;
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

    /// Pins the deployment `id`, which must not be staged, or unpins it: what is pinned is
    /// dropped by no tool. Cannot be cancelled.
    pub async fn set_pinned(&self, id: String, pinned: bool) -> Result<(), Error> {
        self.change(&CancellationToken::new(), move |sysroot, _| {
            let all = sysroot.deployments();
            let deployment = all
                .iter()
                .find(|d| matches(d, &id))
                .ok_or_else(|| gone(&id))?;
            sysroot.deployment_set_pinned(deployment, pinned)?;
            reload(sysroot);
            Ok(())
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

fn gone(id: &str) -> Error {
    Error::NoDeployment(format!(
        "deployment {id} is gone; look at the status and try again"
    ))
}

/// A deployment that is to be staged.
struct Wanted {
    commit: String,
    origin: glib::KeyFile,
    arguments: Arguments,
    locked: bool,
}

impl Wanted {
    fn stage(
        &self,
        sysroot: &ostree::Sysroot,
        root: &Path,
        symbols: &Symbols,
        cancellable: &gio::Cancellable,
    ) -> Result<Staged, Error> {
        let booted = sysroot.booted_deployment().ok_or(Error::NotBooted)?;
        let stateroot = booted.osname();
        let merge = sysroot.merge_deployment(Some(&stateroot));
        let keys = boot_keys::of_staged(root);
        let lock = Coming::prepare(root, symbols, self.locked)?;
        let arguments: Vec<&str> = self
            .arguments
            .as_slice()
            .iter()
            .map(String::as_str)
            .collect();
        // Versions that do not know the field `locked` have it among the unused ones.
        let options = ostree::SysrootDeployTreeOpts {
            locked: self.locked,
            override_kernel_argv: Some(&arguments),
            ..Default::default()
        };
        let staged = sysroot.stage_tree_with_options(
            Some(&stateroot),
            &self.commit,
            Some(&self.origin),
            merge.as_ref(),
            &options,
            Some(cancellable),
        );
        let deployment = match staged.or_else(|error| self.settle(sysroot).ok_or(error)) {
            Ok(deployment) => deployment,
            Err(error) => {
                lock.failed();
                return Err(error.into());
            }
        };
        lock.staged();
        if let Some(keys) = keys {
            boot_keys::hand_over(root, &keys);
            reload(sysroot);
        }
        Ok(Staged {
            locked: finalization::is_locked(root, symbols),
            checksum: deployment.csum().to_string(),
            serial: deployment.deployserial(),
            stateroot: deployment.osname().to_string(),
        })
    }

    /// What a failed or cancelled staging left behind. libostree writes down what is staged
    /// before it removes what was staged earlier; when that breaks off, the new deployment is
    /// the one that counts, and libostree's own copy of the list does not know it yet.
    fn settle(&self, sysroot: &ostree::Sysroot) -> Option<ostree::Deployment> {
        reload(sysroot);
        if let Err(error) = sysroot.prepare_cleanup(gio::Cancellable::NONE) {
            tracing::warn!(%error, "what a broken-off staging left could not be removed");
        }
        let image = |origin: &glib::KeyFile| origin.string("origin", ORIGIN_KEY).ok();
        sysroot.staged_deployment().filter(|staged| {
            staged.csum() == self.commit
                && staged.origin().as_ref().and_then(image) == image(&self.origin)
                && snapshot::kernel_arguments(staged)
                    .is_some_and(|all| Arguments::new(all) == self.arguments)
        })
    }
}

pub(super) fn matches(deployment: &ostree::Deployment, id: &str) -> bool {
    let (stateroot, checksum) = (deployment.osname(), deployment.csum());
    id == self::id(&stateroot, &checksum, deployment.deployserial())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_commit_in_two_stateroots_is_two_deployments() {
        let checksum = "0123456789abcdef0123";
        let ids = ["default", "fedora", "a-b", "a_b", "a_2db"].map(|root| id(root, checksum, 0));
        assert_eq!(ids[0], "d_0123456789abcdef_0");
        assert_eq!(ids[1], "d_0123456789abcdef_0_fedora");
        assert_eq!(ids[2], "d_0123456789abcdef_0_a_2db");
        for (index, id) in ids.iter().enumerate() {
            assert!(!ids[..index].contains(id), "{ids:?}");
            let fit = id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            assert!(fit, "{id}");
        }
    }
}
