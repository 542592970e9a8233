//! The proxy of `org.osteward1.Manager`: what the daemon is and which jobs there are.

use zbus::{ObjectPath, OwnedObjectPath};

use crate::options::{InhibitOptions, ListJobsOptions, NoOptions};
use crate::{Error, types::Dict};

/// The daemon: what it is, what it can do, which jobs there are.
#[zbus::proxy(
    interface = "org.osteward1.Manager",
    default_service = "org.osteward1",
    default_path = "/org/osteward1/Manager"
)]
pub trait Manager {
    /// The waiting and running jobs and the recently finished ones, oldest first.
    fn list_jobs(&self, options: &ListJobsOptions) -> Result<Vec<OwnedObjectPath>, Error>;

    /// The last `max` finished operations (0: all that are known), the newest first; see
    /// [`crate::types::HistoryEntry`].
    fn get_history(&self, max: u32, options: &NoOptions) -> Result<Vec<Dict>, Error>;

    /// Keeps the daemon from something for as long as the descriptor is open.
    fn inhibit(
        &self,
        who: &str,
        why: &str,
        options: &InhibitOptions,
    ) -> Result<zbus::OwnedFd, Error>;

    /// As `inhibit`, and polkit may ask the user.
    #[zbus(name = "Inhibit", allow_interactive_auth)]
    fn inhibit_interactive(
        &self,
        who: &str,
        why: &str,
        options: &InhibitOptions,
    ) -> Result<zbus::OwnedFd, Error>;

    /// Reads the configuration files again.
    fn reload_config(&self) -> Result<(), Error>;

    /// As `reload_config`, and polkit may ask the user.
    #[zbus(name = "ReloadConfig", allow_interactive_auth)]
    fn reload_config_interactive(&self) -> Result<(), Error>;

    /// A job was created.
    #[zbus(signal)]
    fn job_added(&self, job: ObjectPath<'_>, kind: &str) -> Result<(), Error>;

    /// A finished job was forgotten.
    #[zbus(signal)]
    fn job_removed(
        &self,
        job: ObjectPath<'_>,
        kind: &str,
        state: &str,
        error_name: &str,
    ) -> Result<(), Error>;

    /// The version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> Result<String, Error>;

    /// Counts the additions to the interfaces.
    #[zbus(property(emits_changed_signal = "const"))]
    fn api_version(&self) -> Result<u32, Error>;

    /// The optional abilities of this daemon on this host.
    #[zbus(property)]
    fn features(&self) -> Result<Vec<String>, Error>;

    /// Whether a job that writes is running.
    #[zbus(property)]
    fn busy(&self) -> Result<bool, Error>;

    /// The job that writes; `/` if none.
    #[zbus(property)]
    fn active_job(&self) -> Result<OwnedObjectPath, Error>;

    /// Who keeps the daemon from something; see [`crate::types::InhibitorInfo`].
    #[zbus(property)]
    fn inhibitors(&self) -> Result<Vec<Dict>, Error>;

    /// What is wrong with the configuration files, one sentence each.
    #[zbus(property)]
    fn config_warnings(&self) -> Result<Vec<String>, Error>;
}
