//! systemd's service manager: the unit that makes what is staged the next boot.
//!
//! Owns the proxy for the members of `org.freedesktop.systemd1.Manager` that are used
//! (org.freedesktop.systemd1(5)). Invariant: a start whose end cannot be learned has failed.

use std::time::Duration;

use futures_util::StreamExt as _;
use zbus::OwnedObjectPath;

/// Its stop, at shutdown, is what finalizes. It starts nothing, so it starts at once.
const FINALIZATION: &str = "ostree-finalize-staged.service";
const PATIENCE: Duration = Duration::from_secs(30);

/// The unit was not started.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "systemd does not start {FINALIZATION}, without which no reboot leads into what is staged: {0}"
)]
pub struct Error(String);

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        Self(error.to_string())
    }
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

/// A handle; every request is a bus call.
#[derive(Debug, Clone)]
pub struct Systemd {
    connection: zbus::Connection,
}

impl Systemd {
    /// The service manager on that bus.
    pub fn new(connection: zbus::Connection) -> Self {
        Self { connection }
    }

    /// Sees to it that what is staged is finalized at shutdown, and returns when that is so.
    ///
    /// Newer libostree starts the unit itself. With 2022.7 a path unit does when it sees the
    /// staged deployment, and a reboot can be quicker. A bus without a service manager is no
    /// host's, and has nothing to start.
    pub async fn arm_finalization(&self) -> Result<(), Error> {
        let manager = ManagerProxy::new(&self.connection).await?;
        // Without a subscriber it emits no signals; that there is one already is no error for us.
        match manager.subscribe().await {
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => tracing::debug!(%error, "subscribing to the service manager"),
            Ok(()) => {}
        }
        // Listen first: the job is over before the reply is read.
        let mut removed = manager.receive_job_removed().await?;
        let job = manager.start_unit(FINALIZATION, "replace").await?;
        let ended = async {
            while let Some(signal) = removed.next().await {
                let arguments = signal.args()?;
                if *arguments.job() == job {
                    return Ok(arguments.result().clone());
                }
            }
            Err(Error("the bus went away".into()))
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        match ended.unwrap_or_else(|_| Err(Error("it takes too long".into())))? {
            result if result == "done" => Ok(()),
            result => Err(Error(format!("its job ended as {result:?}"))),
        }
    }
}

fn is_absent(error: &zbus::Error) -> bool {
    use zbus::fdo::Error::{NameHasNoOwner, ServiceUnknown};
    matches!(
        error,
        zbus::Error::FDO(error) if matches!(**error, ServiceUnknown(_) | NameHasNoOwner(_))
    )
}
