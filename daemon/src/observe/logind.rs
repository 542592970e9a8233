//! systemd-logind: who forbids a reboot, who is logged in, and the reboot itself.
//!
//! Owns the proxy for the members of `org.freedesktop.login1.Manager` that are used
//! (org.freedesktop.login1(5)). Invariant: an answer that cannot be had is an error and
//! never "nobody".

use std::time::Duration;

use futures_util::StreamExt as _;
use zbus::OwnedObjectPath;

/// How long an announcement of the shutdown may take to reach us after the error that it
/// explains: it was sent before, and only has to be handed over.
const ANNOUNCEMENT: Duration = Duration::from_secs(1);

/// Flags of `RebootWithFlags`: respect inhibitors although root asks; leave the kernel alone.
const ROOT_CHECK_INHIBITORS: u64 = 1;
const SOFT_REBOOT: u64 = 4;

/// logind did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("systemd-logind does not answer, so the host is not rebooted: {0}")]
pub struct Error(String);

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        Self(error.to_string())
    }
}

/// Who forbids what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibitor {
    /// The program that holds it.
    pub who: String,
    /// Its reason.
    pub why: String,
    /// The user it runs as.
    pub uid: u32,
}

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn list_inhibitors(&self) -> zbus::Result<Vec<(String, String, String, String, u32, u32)>>;
    fn list_sessions(&self) -> zbus::Result<Vec<(String, u32, String, String, OwnedObjectPath)>>;
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
    fn reboot_with_flags(&self, flags: u64) -> zbus::Result<()>;
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

/// A handle; every question is a bus call.
#[derive(Debug, Clone)]
pub struct Logind {
    connection: zbus::Connection,
}

impl Logind {
    /// logind on that bus.
    pub fn new(connection: zbus::Connection) -> Self {
        Self { connection }
    }

    async fn manager(&self) -> Result<ManagerProxy<'_>, Error> {
        Ok(ManagerProxy::new(&self.connection).await?)
    }

    /// Who blocks a shutdown now (delay inhibitors do not count: logind waits for them).
    pub async fn shutdown_inhibitors(&self) -> Result<Vec<Inhibitor>, Error> {
        let inhibitors = self.manager().await?.list_inhibitors().await?;
        Ok(inhibitors
            .into_iter()
            .filter(|(what, _, _, mode, ..)| {
                mode.starts_with("block") && what.split(':').any(|what| what == "shutdown")
            })
            .map(|(_, who, why, _, uid, _)| Inhibitor { who, why, uid })
            .collect())
    }

    /// Whether somebody other than `uid` has a session.
    pub async fn others_are_logged_in(&self, uid: u32) -> Result<bool, Error> {
        let sessions = self.manager().await?.list_sessions().await?;
        Ok(sessions.iter().any(|(_, owner, ..)| *owner != uid))
    }

    /// Reboots, without asking anybody.
    ///
    /// logind goes down with the host, now and then before it has answered; by then it has
    /// announced the shutdown, and that counts as its answer.
    pub async fn reboot(&self) -> Result<(), Error> {
        let manager = self.manager().await?;
        going_down(&manager, manager.reboot(false)).await
    }

    /// As [`Logind::reboot`], into the root that is prepared and without the kernel. Needs a
    /// systemd that knows it.
    pub async fn soft_reboot(&self, ignore_inhibitors: bool) -> Result<(), Error> {
        let manager = self.manager().await?;
        let flags = match ignore_inhibitors {
            true => SOFT_REBOOT,
            false => SOFT_REBOOT | ROOT_CHECK_INHIBITORS,
        };
        going_down(&manager, manager.reboot_with_flags(flags)).await
    }
}

/// The answer to a call that takes the host down.
async fn going_down(
    manager: &ManagerProxy<'_>,
    call: impl Future<Output = zbus::Result<()>>,
) -> Result<(), Error> {
    let mut announced = manager.receive_prepare_for_shutdown().await?;
    let Err(error) = call.await else {
        return Ok(());
    };
    let went_away = matches!(
        &error,
        zbus::Error::FDO(fdo) if matches!(**fdo, zbus::fdo::Error::NoReply(_))
    );
    if went_away
        && let Ok(Some(signal)) = tokio::time::timeout(ANNOUNCEMENT, announced.next()).await
        && signal.args().is_ok_and(|it| it.start)
    {
        return Ok(());
    }
    Err(error.into())
}
