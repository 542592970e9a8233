//! The proxy of `org.osteward1.Host`: the booted system and what changes it.

use zbus::OwnedObjectPath;

use crate::{
    Error,
    options::{
        ApplyOptions, CancelRollbackOptions, CheckOptions, DiscardOptions, DownloadOptions,
        NoOptions, RollbackOptions, UpgradeOptions,
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

    /// `none`, `reboot` or `unknown`: what gets the host into the default deployment.
    #[zbus(property)]
    fn reboot_required(&self) -> Result<String, Error>;
}
