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

/// Flags of `RebootWithFlags`: respect inhibitors although root asks; leave the kernel alone;
/// overrule inhibitors, which since [`ROOT_IS_ASKED_SINCE`] root has to say.
const ROOT_CHECK_INHIBITORS: u64 = 1;
const SOFT_REBOOT: u64 = 4;
const SKIP_INHIBITORS: u64 = 16;
const ROOT_IS_ASKED_SINCE: u32 = 257;

/// The host is not rebooted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// logind did not answer.
    #[error("systemd-logind does not answer, so the host is not rebooted: {0}")]
    Silent(String),
    /// Somebody forbade it after we had looked who does.
    #[error("somebody forbids the reboot: {0}; what is staged stays staged")]
    Inhibited(String),
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        let text = error.to_string();
        let is_forbidden = match &error {
            zbus::Error::FDO(fdo) => matches!(**fdo, zbus::fdo::Error::AccessDenied(_)),
            zbus::Error::MethodError(name, ..) => {
                name.as_str() == "org.freedesktop.login1.BlockedByInhibitorLock"
            }
            _ => false,
        };
        match is_forbidden {
            true => Self::Inhibited(text),
            false => Self::Silent(text),
        }
    }
}

/// How to go down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reboot {
    /// Into the root that is prepared, and without the kernel; needs a systemd that knows it.
    pub soft: bool,
    /// Whatever inhibitors say.
    pub ignore_inhibitors: bool,
    /// The version of systemd; `None` if it is not known.
    pub systemd: Option<u32>,
}

impl Reboot {
    fn flags(self) -> u64 {
        let soft = if self.soft { SOFT_REBOOT } else { 0 };
        let is_asked = self.systemd.is_some_and(|it| it >= ROOT_IS_ASKED_SINCE);
        soft | match (self.ignore_inhibitors, is_asked) {
            (false, _) => ROOT_CHECK_INHIBITORS,
            (true, true) => SKIP_INHIBITORS,
            (true, false) => 0,
        }
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

    async fn manager(&self) -> Result<ManagerProxy<'static>, Error> {
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

    /// Reboots. logind looks at the inhibitors once more, so that none is overlooked that
    /// came after we did.
    ///
    /// logind goes down with the host, now and then before it has answered; by then it has
    /// announced the shutdown, and that counts as its answer.
    ///
    /// # Errors
    /// When somebody forbids it, or logind does not answer.
    pub async fn reboot(&self, how: Reboot) -> Result<(), Error> {
        let manager = self.manager().await?;
        going_down(&manager, manager.reboot_with_flags(how.flags())).await
    }
}

/// The answer to a call that takes the host down.
async fn going_down(
    manager: &ManagerProxy<'static>,
    call: impl Future<Output = zbus::Result<()>>,
) -> Result<(), Error> {
    let listener = manager.clone();
    let announced = async move { listener.receive_prepare_for_shutdown().await };
    let mut announced = super::subscribed(announced).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inhibitors_are_overruled_only_by_who_says_so() {
        let flags = |soft, ignore_inhibitors, systemd| {
            let how = Reboot {
                soft,
                ignore_inhibitors,
                systemd,
            };
            how.flags()
        };
        assert_eq!(flags(false, false, Some(257)), 1);
        assert_eq!(flags(true, false, None), 5);
        assert_eq!(flags(false, true, Some(256)), 0);
        assert_eq!(flags(false, true, None), 0);
        assert_eq!(flags(false, true, Some(257)), 16);
        assert_eq!(flags(true, true, Some(258)), 20);
    }
}
