//! Functions of a newer libostree than the one the daemon is built against (2022.7).
//!
//! Owns the lookup by `dlsym` and the calls through it; the only `unsafe` in the tree.
//! Invariant: a function is called only if the running libostree exports it, with the
//! signature of its public header.

#![expect(
    unsafe_code,
    reason = "functions found at run time can only be called unsafely"
)]

use std::ffi::{CStr, c_int, c_void};

use ostree::glib::translate::ToGlibPtr;

type IsFinalizationLocked = unsafe extern "C" fn(*mut ostree::ffi::OstreeDeployment) -> c_int;

/// What the running libostree can do beyond 2022.7.
#[derive(Debug, Clone, Copy)]
pub struct Symbols {
    is_finalization_locked: Option<IsFinalizationLocked>,
    change_finalization: bool,
    soft_reboot: bool,
}

fn exported(name: &CStr) -> *mut c_void {
    // SAFETY: dlsym with RTLD_DEFAULT and a valid C string has no other precondition;
    // libostree is linked, so it is among the objects that are searched.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

impl Symbols {
    /// Looks the functions up.
    pub fn resolve() -> Self {
        let locked = exported(c"ostree_deployment_is_finalization_locked");
        Self {
            // SAFETY: a non-null address of this name is libostree's function (since
            // 2023.8), whose header declares `gboolean (OstreeDeployment *)`.
            is_finalization_locked: (!locked.is_null()).then(|| unsafe {
                std::mem::transmute::<*mut c_void, IsFinalizationLocked>(locked)
            }),
            change_finalization: !exported(c"ostree_sysroot_change_finalization").is_null(),
            soft_reboot: !exported(c"ostree_sysroot_deployment_set_soft_reboot").is_null(),
        }
    }

    /// Whether a staged deployment is kept from finalization; `None` if this libostree
    /// cannot tell (then the legacy file does, see the snapshot).
    pub fn is_finalization_locked(&self, deployment: &ostree::Deployment) -> Option<bool> {
        let function = self.is_finalization_locked?;
        // SAFETY: the pointer comes from a live GObject of the right type, which the
        // reference keeps alive during the call; the function only reads it.
        Some(unsafe { function(deployment.to_glib_none().0) } != 0)
    }

    /// The names that `Manager.Features` lists for libostree.
    pub fn features(&self) -> Vec<&'static str> {
        [
            ("change-finalization", self.change_finalization),
            ("ostree-soft-reboot", self.soft_reboot),
        ]
        .into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there_and_only_that() {
        assert!(!exported(c"ostree_sysroot_new_default").is_null());
        assert!(exported(c"ostree_sysroot_that_never_was").is_null());
    }

    #[test]
    fn features_agree_with_the_version_that_runs() {
        let features = Symbols::resolve().features();
        assert_eq!(
            features.contains(&"change-finalization"),
            ostree::check_version(2023, 8)
        );
    }
}
