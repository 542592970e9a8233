//! The proxy of `org.osteward1.Manager`: what the daemon is and which jobs there are.

use zbus::{ObjectPath, OwnedObjectPath};

use crate::{Error, options::NoOptions};

/// The daemon: what it is, what it can do, which jobs there are.
#[zbus::proxy(
    interface = "org.osteward1.Manager",
    default_service = "org.osteward1",
    default_path = "/org/osteward1/Manager"
)]
pub trait Manager {
    /// The running jobs and the recently finished ones, oldest first.
    fn list_jobs(&self, options: &NoOptions) -> Result<Vec<OwnedObjectPath>, Error>;

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

    /// What is wrong with the configuration files, one sentence each.
    #[zbus(property)]
    fn config_warnings(&self) -> Result<Vec<String>, Error>;
}
