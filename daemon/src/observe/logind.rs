//! systemd-logind: who forbids a reboot, who is logged in, and the reboot itself.
//!
//! Owns the proxy for the members of `org.freedesktop.login1.Manager` that are used
//! (org.freedesktop.login1(5)). Invariant: an answer that cannot be had is an error and
//! never "nobody".

use zbus::OwnedObjectPath;

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
    pub async fn reboot(&self) -> Result<(), Error> {
        Ok(self.manager().await?.reboot(false).await?)
    }
}
