//! The proxy of `org.osteward1.Host`: the booted system and what changes it.

use zbus::{Fd, OwnedObjectPath};

use crate::{
    Error,
    options::{
        ApplyOptions, CancelRollbackOptions, CheckOptions, DiffEtcOptions, DiscardOptions,
        DownloadOptions, ImportArchiveOptions, NoOptions, RollbackOptions,
        SetKernelArgumentsOptions, SimulateOptions, UpgradeOptions, UsrOverlayOptions,
    },
    types::Dict,
};

/// The booted system; see [`crate::types::HostInfo`]. Methods return the job's path.
#[zbus::proxy(
    interface = "org.osteward1.Host",
    default_service = "org.osteward1",
    default_path = "/org/osteward1/Host"
)]
pub trait Host {
    /// The whole state, read at one moment; [`crate::types::Status::from_dict`] reads it.
    fn status(&self, options: &NoOptions) -> Result<Dict, Error>;

    /// Asks the registry which image the tracked reference means now.
    fn check(&self, options: &CheckOptions) -> Result<OwnedObjectPath, Error>;

    /// As `check`, and polkit may ask the user.
    #[zbus(name = "Check", allow_interactive_auth)]
    fn check_interactive(&self, options: &CheckOptions) -> Result<OwnedObjectPath, Error>;

    /// Pulls what is missing and writes the image, but stages nothing.
    fn download(&self, options: &DownloadOptions) -> Result<OwnedObjectPath, Error>;

    /// As `download`, and polkit may ask the user.
    #[zbus(name = "Download", allow_interactive_auth)]
    fn download_interactive(&self, options: &DownloadOptions) -> Result<OwnedObjectPath, Error>;

    /// Checks, downloads and stages the tracked image.
    fn upgrade(&self, options: &UpgradeOptions) -> Result<OwnedObjectPath, Error>;

    /// As `upgrade`, and polkit may ask the user.
    #[zbus(name = "Upgrade", allow_interactive_auth)]
    fn upgrade_interactive(&self, options: &UpgradeOptions) -> Result<OwnedObjectPath, Error>;

    /// Stages another image, to be tracked from then on.
    fn switch(&self, image: &str, options: &UpgradeOptions) -> Result<OwnedObjectPath, Error>;

    /// As `switch`, and polkit may ask the user.
    #[zbus(name = "Switch", allow_interactive_auth)]
    fn switch_interactive(
        &self,
        image: &str,
        options: &UpgradeOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// Imports and stages an image from an archive or layout directory that is open.
    fn import_archive(
        &self,
        archive: Fd<'_>,
        options: &ImportArchiveOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// As `import_archive`, and polkit may ask the user.
    #[zbus(name = "ImportArchive", allow_interactive_auth)]
    fn import_archive_interactive(
        &self,
        archive: Fd<'_>,
        options: &ImportArchiveOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// Makes the previous deployment the default of the next boot.
    fn rollback(&self, options: &RollbackOptions) -> Result<OwnedObjectPath, Error>;

    /// As `rollback`, and polkit may ask the user.
    #[zbus(name = "Rollback", allow_interactive_auth)]
    fn rollback_interactive(&self, options: &RollbackOptions) -> Result<OwnedObjectPath, Error>;

    /// Makes the booted deployment the default again.
    fn cancel_rollback(&self, options: &CancelRollbackOptions) -> Result<OwnedObjectPath, Error>;

    /// As `cancel_rollback`, and polkit may ask the user.
    #[zbus(name = "CancelRollback", allow_interactive_auth)]
    fn cancel_rollback_interactive(
        &self,
        options: &CancelRollbackOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// Reboots into what is staged or queued.
    fn apply(&self, options: &ApplyOptions) -> Result<OwnedObjectPath, Error>;

    /// As `apply`, and polkit may ask the user.
    #[zbus(name = "Apply", allow_interactive_auth)]
    fn apply_interactive(&self, options: &ApplyOptions) -> Result<OwnedObjectPath, Error>;

    /// Frees space: any of `staged`, `rollback`, `cache`, `unreferenced`.
    fn discard(&self, what: &[&str], options: &DiscardOptions) -> Result<OwnedObjectPath, Error>;

    /// As `discard`, and polkit may ask the user.
    #[zbus(name = "Discard", allow_interactive_auth)]
    fn discard_interactive(
        &self,
        what: &[&str],
        options: &DiscardOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// Stages what boots next once more, with other kernel arguments.
    fn set_kernel_arguments(
        &self,
        append: &[String],
        replace: &[String],
        delete: &[String],
        options: &SetKernelArgumentsOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// As `set_kernel_arguments`, and polkit may ask the user.
    #[zbus(name = "SetKernelArguments", allow_interactive_auth)]
    fn set_kernel_arguments_interactive(
        &self,
        append: &[String],
        replace: &[String],
        delete: &[String],
        options: &SetKernelArgumentsOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// Tells what an upgrade would lead to.
    fn simulate(&self, options: &SimulateOptions) -> Result<OwnedObjectPath, Error>;

    /// As `simulate`, and polkit may ask the user.
    #[zbus(name = "Simulate", allow_interactive_auth)]
    fn simulate_interactive(&self, options: &SimulateOptions) -> Result<OwnedObjectPath, Error>;

    /// Mounts an overlay over `/usr` until the next boot.
    fn usr_overlay(&self, options: &UsrOverlayOptions) -> Result<OwnedObjectPath, Error>;

    /// As `usr_overlay`, and polkit may ask the user.
    #[zbus(name = "UsrOverlay", allow_interactive_auth)]
    fn usr_overlay_interactive(
        &self,
        options: &UsrOverlayOptions,
    ) -> Result<OwnedObjectPath, Error>;

    /// What was changed in `/etc`: `added`, `removed` or `modified`, and the path below it.
    fn diff_etc(&self, options: &DiffEtcOptions) -> Result<Vec<(String, String)>, Error>;

    /// The running deployment; `/` = not booted by ostree.
    #[zbus(property)]
    fn booted_deployment(&self) -> Result<OwnedObjectPath, Error>;

    /// The deployment that waits for finalization; `/` = none.
    #[zbus(property)]
    fn staged_deployment(&self) -> Result<OwnedObjectPath, Error>;

    /// What the next boot gives.
    #[zbus(property)]
    fn default_deployment(&self) -> Result<OwnedObjectPath, Error>;

    /// What `Rollback` goes back to; `/` = none.
    #[zbus(property)]
    fn rollback_deployment(&self) -> Result<OwnedObjectPath, Error>;

    /// True when the next boot goes back and nothing is staged.
    #[zbus(property)]
    fn rollback_queued(&self) -> Result<bool, Error>;

    /// All deployments in boot order.
    #[zbus(property)]
    fn deployments(&self) -> Result<Vec<OwnedObjectPath>, Error>;

    /// The booted stateroot.
    #[zbus(property)]
    fn stateroot(&self) -> Result<String, Error>;

    /// `ID` of os-release.
    #[zbus(property)]
    fn os_name(&self) -> Result<String, Error>;

    /// `VERSION` of os-release, else `VERSION_ID`.
    #[zbus(property)]
    fn os_version(&self) -> Result<String, Error>;

    /// Manifest digest of the booted image; empty if it is not from one.
    #[zbus(property)]
    fn boot_digest(&self) -> Result<String, Error>;

    /// `image s`, `transport s`, `tag s`, `signature-policy s`, `insecure b`.
    #[zbus(property)]
    fn tracking(&self) -> Result<Dict, Error>;

    /// `unknown idle checking available downloading downloaded staging staged rollback-queued failed`.
    #[zbus(property)]
    fn update_state(&self) -> Result<String, Error>;

    /// The best candidate; `/` = none.
    #[zbus(property)]
    fn update(&self) -> Result<OwnedObjectPath, Error>;

    /// `time t`, `ok b`, `error-name s`, `error-message s`, `digest s`; empty before the first check.
    #[zbus(property)]
    fn last_check(&self) -> Result<Dict, Error>;

    /// `failed b`, `message s`, `time t`: whether the last finalization failed, and why.
    #[zbus(property)]
    fn last_finalize(&self) -> Result<Dict, Error>;

    /// `none`, `soft-reboot`, `reboot` or `unknown`: what gets the host into the default
    /// deployment.
    #[zbus(property)]
    fn reboot_required(&self) -> Result<String, Error>;

    /// The kernel command line of the booted deployment.
    #[zbus(property)]
    fn kernel_arguments(&self) -> Result<Vec<String>, Error>;
}
