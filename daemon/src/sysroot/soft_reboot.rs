//! Whether a deployment can be reached from what runs now without the kernel: the part of the
//! answer that the deployments have.
//!
//! libostree compares kernels and kernel arguments. Invariant: with SELinux, only a deployment
//! with the same policy counts, because a soft reboot loads none.

use std::path::Path;

use ostree::gio;
use ostree::prelude::*;

use super::Symbols;
use super::snapshot::kernel_arguments;
use crate::image::here::{OSTREE, is_installed};

/// Where a host with SELinux has it.
const SELINUX: &str = "sys/fs/selinux/enforce";

/// Whether libostree could make `target` the root of a soft reboot.
pub(super) fn is_possible(
    sysroot: &ostree::Sysroot,
    root: &Path,
    symbols: &Symbols,
    (booted, target): (&ostree::Deployment, &ostree::Deployment),
) -> bool {
    // libostree takes it for granted that what runs was booted with some.
    let Some(arguments) = kernel_arguments(booted) else {
        return false;
    };
    // Older versions find their way only with it.
    let is_found = ostree::check_version(2025, 7)
        || arguments
            .iter()
            .any(|argument| argument.starts_with("ostree="));
    is_found
        && is_installed(OSTREE)
        && symbols.can_soft_reboot(sysroot, target)
        && (!root.join(SELINUX).exists()
            || policy(sysroot, &booted.csum()) == policy(sysroot, &target.csum()))
}

/// The checksum of the SELinux policy of a commit; `None` without one. libselinux is not asked:
/// it has one state for the whole process.
fn policy(sysroot: &ostree::Sysroot, commit: &str) -> Option<String> {
    let (root, _) = sysroot
        .repo()
        .read_commit(commit, gio::Cancellable::NONE)
        .ok()?;
    let policy = root.resolve_relative_path("usr/etc/selinux");
    let policy = policy.downcast_ref::<ostree::RepoFile>()?;
    policy.ensure_resolved().ok()?;
    let checksum = policy.tree_get_contents_checksum()?;
    Some(checksum.to_string())
}
