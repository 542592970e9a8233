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

use ostree::glib;
use ostree::glib::translate::{ToGlibPtr, from_glib_full};

type ChangeFinalization = unsafe extern "C" fn(
    *mut ostree::ffi::OstreeSysroot,
    *mut ostree::ffi::OstreeDeployment,
    *mut *mut glib::ffi::GError,
) -> c_int;

type CanSoftReboot = unsafe extern "C" fn(
    *mut ostree::ffi::OstreeSysroot,
    *mut ostree::ffi::OstreeDeployment,
) -> c_int;

/// What the running libostree can do beyond 2022.7.
#[derive(Debug, Clone, Copy)]
pub struct Symbols {
    change_finalization: Option<ChangeFinalization>,
    can_soft_reboot: Option<CanSoftReboot>,
}

fn exported(name: &CStr) -> *mut c_void {
    // SAFETY: dlsym with RTLD_DEFAULT and a valid C string has no other precondition;
    // libostree is linked, so it is among the objects that are searched.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

impl Symbols {
    /// Looks the functions up.
    pub fn resolve() -> Self {
        let change = exported(c"ostree_sysroot_change_finalization");
        let can = exported(c"ostree_sysroot_deployment_can_soft_reboot");
        Self {
            // SAFETY: a non-null address of this name is libostree's function (since 2023.8),
            // whose header declares `gboolean (OstreeSysroot *, OstreeDeployment *, GError **)`.
            change_finalization: (!change.is_null())
                .then(|| unsafe { std::mem::transmute::<*mut c_void, ChangeFinalization>(change) }),
            // SAFETY: likewise (since 2025.3); the header declares
            // `gboolean (OstreeSysroot *, OstreeDeployment *)`.
            can_soft_reboot: (!can.is_null())
                .then(|| unsafe { std::mem::transmute::<*mut c_void, CanSoftReboot>(can) }),
        }
    }

    /// Whether this libostree reads and writes the finalization lock in the record of the
    /// staged deployment (2023.8); older ones know only the file.
    pub fn knows_finalization_key(&self) -> bool {
        self.change_finalization.is_some()
    }

    /// Turns the finalization lock of `staged`, which must be the staged deployment as
    /// `sysroot` has just loaded it. Does nothing where [`Symbols::knows_finalization_key`]
    /// is false.
    pub fn change_finalization(
        &self,
        sysroot: &ostree::Sysroot,
        staged: &ostree::Deployment,
    ) -> Result<(), glib::Error> {
        let Some(function) = self.change_finalization else {
            return Ok(());
        };
        let mut error = std::ptr::null_mut();
        // SAFETY: both pointers come from live GObjects of the right types, which the
        // references keep alive during the call; `error` starts as null, as GError wants it.
        unsafe {
            function(
                sysroot.to_glib_none().0,
                staged.to_glib_none().0,
                &mut error,
            )
        };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: a GError that a function sets belongs to its caller, who gets it once.
        Err(unsafe { from_glib_full(error) })
    }

    /// Whether libostree could get from what runs now into `deployment`, one of those that
    /// `sysroot` has loaded, without the kernel. What runs now must have kernel arguments.
    pub fn can_soft_reboot(
        &self,
        sysroot: &ostree::Sysroot,
        deployment: &ostree::Deployment,
    ) -> bool {
        let Some(function) = self.can_soft_reboot else {
            return false;
        };
        // SAFETY: both pointers come from live GObjects of the right types, which the
        // references keep alive during the call.
        unsafe { function(sysroot.to_glib_none().0, deployment.to_glib_none().0) != 0 }
    }

    /// The names that `Manager.Features` lists for libostree.
    pub fn features(&self) -> Vec<&'static str> {
        [
            ("change-finalization", self.knows_finalization_key()),
            ("ostree-soft-reboot", self.can_soft_reboot.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
    }
}

#[cfg(test)]
impl Symbols {
    /// As of the oldest libostree that is supported.
    pub(super) fn of_2022_7() -> Self {
        Self {
            change_finalization: None,
            can_soft_reboot: None,
        }
    }

    /// As of the first libostree with the finalization lock in its record. Not to be called.
    pub(super) fn of_2023_8() -> Self {
        unsafe extern "C" fn never(
            _: *mut ostree::ffi::OstreeSysroot,
            _: *mut ostree::ffi::OstreeDeployment,
            _: *mut *mut glib::ffi::GError,
        ) -> c_int {
            unreachable!("only a newer libostree has it")
        }
        Self {
            change_finalization: Some(never),
            can_soft_reboot: None,
        }
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
        assert_eq!(
            features.contains(&"ostree-soft-reboot"),
            ostree::check_version(2025, 3)
        );
    }
}
