//! The proxy of `org.osteward1.Deployment`: one bootable deployment.

use std::collections::HashMap;

use zbus::{ObjectPath, OwnedObjectPath};

use crate::{
    Error,
    options::{ManageOptions, NoOptions},
    types::PackageMove,
};

/// One bootable deployment of the host; see [`crate::types::DeploymentInfo`].
#[zbus::proxy(
    interface = "org.osteward1.Deployment",
    default_service = "org.osteward1"
)]
pub trait Deployment {
    /// Locks or unlocks the finalization of a staged deployment.
    fn set_locked(&self, locked: bool, options: &ManageOptions) -> Result<OwnedObjectPath, Error>;

    /// As `set_locked`, and polkit may ask the user.
    #[zbus(name = "SetLocked", allow_interactive_auth)]
    fn set_locked_interactive(
        &self,
        locked: bool,
        options: &ManageOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// Keeps the deployment from every clean-up, or no longer.
    fn set_pinned(&self, pinned: bool, options: &ManageOptions) -> Result<OwnedObjectPath, Error>;

    /// As `set_pinned`, and polkit may ask the user.
    #[zbus(name = "SetPinned", allow_interactive_auth)]
    fn set_pinned_interactive(
        &self,
        pinned: bool,
        options: &ManageOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// Removes the deployment and what only it needs.
    fn remove(&self, options: &ManageOptions) -> Result<OwnedObjectPath, Error>;

    /// As `remove`, and polkit may ask the user.
    #[zbus(name = "Remove", allow_interactive_auth)]
    fn remove_interactive(&self, options: &ManageOptions) -> Result<OwnedObjectPath, Error>;

    /// The packages that are not the same in another deployment as in this one.
    fn diff_packages(
        &self,
        other: &ObjectPath<'_>,
        options: &NoOptions,
    ) -> Result<Vec<PackageMove>, Error>;

    /// Stable for the life of the deployment; also the last path element.
    #[zbus(property)]
    fn id(&self) -> Result<String, Error>;

    /// The ostree commit that is deployed.
    #[zbus(property)]
    fn checksum(&self) -> Result<String, Error>;

    /// ostree's serial among deployments of one commit.
    #[zbus(property)]
    fn serial(&self) -> Result<i32, Error>;

    /// The stateroot (os name) it belongs to.
    #[zbus(property)]
    fn stateroot(&self) -> Result<String, Error>;

    /// `booted`, `staged`, `pending`, `rollback` or `other`.
    #[zbus(property)]
    fn state(&self) -> Result<String, Error>;

    /// Whether the running system is this one.
    #[zbus(property)]
    fn booted(&self) -> Result<bool, Error>;

    /// Whether it waits for finalization at shutdown.
    #[zbus(property)]
    fn staged(&self) -> Result<bool, Error>;

    /// Whether clean-up must leave it alone.
    #[zbus(property)]
    fn pinned(&self) -> Result<bool, Error>;

    /// Whether a staged deployment is kept from finalization.
    #[zbus(property)]
    fn locked(&self) -> Result<bool, Error>;

    /// The container image it came from, as in the origin file; empty if none.
    #[zbus(property)]
    fn image(&self) -> Result<String, Error>;

    /// Digest of the platform manifest; empty if it is not from a container image.
    #[zbus(property)]
    fn digest(&self) -> Result<String, Error>;

    /// The image's own version label; empty if none.
    #[zbus(property)]
    fn version(&self) -> Result<String, Error>;

    /// When the image was made; 0 if unknown.
    #[zbus(property)]
    fn timestamp(&self) -> Result<u64, Error>;

    /// The image's labels, capped at 256 entries and 64 KiB.
    #[zbus(property)]
    fn labels(&self) -> Result<HashMap<String, String>, Error>;

    /// Number of layers; 0 if it is not from a container image.
    #[zbus(property)]
    fn layers(&self) -> Result<u32, Error>;

    /// Compressed size of all layers.
    #[zbus(property)]
    fn size_bytes(&self) -> Result<u64, Error>;

    /// The directory name under `/usr/lib/modules`; empty if unknown.
    #[zbus(property)]
    fn kernel_version(&self) -> Result<String, Error>;

    /// The kernel command line of the boot entry.
    #[zbus(property)]
    fn kernel_arguments(&self) -> Result<Vec<String>, Error>;

    /// Whether it can be reached without the kernel: `yes`, `no` or `unknown`.
    #[zbus(property)]
    fn soft_reboot_capable(&self) -> Result<String, Error>;

    /// What makes its `/usr` writable: `none`, `development`, `hotfix` or `transient`.
    #[zbus(property)]
    fn unlocked(&self) -> Result<String, Error>;

    /// What keeps it from being upgraded, a sentence each.
    #[zbus(property)]
    fn warnings(&self) -> Result<Vec<String>, Error>;
}
