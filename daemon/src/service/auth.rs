//! Who may do what: polkit, asked before a job exists.
//!
//! Owns the actions, which of them a call needs (from its options and local policy
//! only, never after network traffic), and the question to polkit. Invariants: uid 0
//! and the daemon's own user need no polkitd; a question that cannot be asked is a
//! refusal; a caller that vanishes while its password dialog is open leaves nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use osteward_dbus::Error;
use zbus::Connection;
use zbus::fdo::DBusProxy;
use zbus::message::{Flags, Header};
use zbus::names::UniqueName;
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use crate::observe::subscribed;

/// The polkit actions (`org.osteward1.policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Ask the registry.
    Check,
    /// Fetch without staging.
    Download,
    /// Stage an image whose signature nothing demands.
    UpgradeUnverified,
    /// Stage something that may be older.
    Downgrade,
    /// Track another image: root on the next boot.
    Switch,
    /// Go back.
    Rollback,
    /// Reboot.
    Apply,
    /// Reboot while others are logged in.
    ApplyMultipleSessions,
    /// Reboot although somebody forbids it.
    IgnoreInhibit,
    /// Remove deployments and downloads.
    Manage,
    /// Stop somebody else's job.
    Cancel,
    /// Keep jobs from rebooting the host.
    Inhibit,
    /// Read the configuration again.
    Reload,
    /// Change the kernel arguments: root on the next boot.
    Kargs,
    /// Put an overlay over `/usr`.
    UsrOverlay,
}

impl Action {
    /// The id that polkit knows.
    fn id(self) -> &'static str {
        match self {
            Action::Check => "org.osteward1.check",
            Action::Download => "org.osteward1.download",
            Action::UpgradeUnverified => "org.osteward1.upgrade-unverified",
            Action::Downgrade => "org.osteward1.downgrade",
            Action::Switch => "org.osteward1.switch",
            Action::Rollback => "org.osteward1.rollback",
            Action::Apply => "org.osteward1.apply",
            Action::ApplyMultipleSessions => "org.osteward1.apply-multiple-sessions",
            Action::IgnoreInhibit => "org.osteward1.ignore-inhibit",
            Action::Manage => "org.osteward1.manage",
            Action::Cancel => "org.osteward1.cancel",
            Action::Inhibit => "org.osteward1.inhibit",
            Action::Reload => "org.osteward1.reload",
            Action::Kargs => "org.osteward1.kargs",
            Action::UsrOverlay => "org.osteward1.usr-overlay",
        }
    }
}

/// What rules may look at (`action.lookup()` in polkit rules).
#[derive(Debug, Clone, Default)]
pub(super) struct Details<'a> {
    /// The kind of job.
    pub kind: &'a str,
    /// The image reference.
    pub image: &'a str,
    /// The manifest digest that is asked for.
    pub digest: &'a str,
    /// The caller's reason.
    pub reason: &'a str,
}

impl Details<'_> {
    fn to_map(&self) -> HashMap<&str, &str> {
        let all = [
            ("kind", self.kind),
            ("image", self.image),
            ("digest", self.digest),
            ("reason", self.reason),
        ];
        // The signature policy of the image: nothing is verified yet.
        all.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .chain([("verified", "false")])
            .collect()
    }
}

static QUESTIONS: AtomicU64 = AtomicU64::new(0);

/// The user who sent a message.
pub(super) async fn uid(connection: &Connection, header: &Header<'_>) -> Result<u32, Error> {
    let denied = |error: &dyn std::fmt::Display| {
        Error::AccessDenied(format!("the caller cannot be identified: {error}"))
    };
    let Some(sender) = header.sender() else {
        // Without a bus there is one peer, and the socket knows it.
        let peer = connection
            .peer_creds()
            .await
            .map_err(|error| denied(&error))?;
        return peer
            .unix_user_id()
            .ok_or_else(|| denied(&"no user id on the socket"));
    };
    let bus = zbus::fdo::DBusProxy::new(connection).await?;
    let name = zbus::names::BusName::Unique(sender.clone());
    bus.get_connection_unix_user(name)
        .await
        .map_err(|error| denied(&error))
}

/// Returns the caller's uid if it may do all of `actions`.
pub(super) async fn require(
    connection: &Connection,
    header: &Header<'_>,
    actions: &[Action],
    details: &Details<'_>,
) -> Result<u32, Error> {
    let caller = uid(connection, header).await?;
    if caller == 0 || caller == own_uid() {
        return Ok(caller);
    }
    let Some(sender) = header.sender() else {
        return Err(Error::AccessDenied(format!(
            "uid {caller} cannot be authorised without a message bus"
        )));
    };
    for action in actions {
        ask(connection, header, sender, *action, details).await?;
    }
    Ok(caller)
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

async fn ask(
    connection: &Connection,
    header: &Header<'_>,
    sender: &UniqueName<'_>,
    action: Action,
    details: &Details<'_>,
) -> Result<(), Error> {
    let interactive = header
        .primary()
        .flags()
        .contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let id = action.id();
    let unreachable = |error: zbus::Error| {
        Error::AccessDenied(format!(
            "{id} cannot be authorised because polkit does not answer ({error}); run it as root"
        ))
    };
    let authority = AuthorityProxy::new(connection).await.map_err(unreachable)?;
    // The bus name is the one subject that a caller cannot exchange under our feet.
    let subject = Subject::new_for_message_header(header)
        .map_err(|error| Error::AccessDenied(format!("the caller cannot be named: {error}")))?;
    let question = format!("osteward-{}", QUESTIONS.fetch_add(1, Ordering::Relaxed));
    let flags = if interactive {
        CheckAuthorizationFlags::ALLOW_USER_INTERACTION
    } else {
        CheckAuthorizationFlags::empty()
    };
    let details = details.to_map();
    let answer = authority.check_authorization(&subject, id, &details, flags, &question);
    let answer = tokio::select! {
        answer = answer => answer.map_err(unreachable)?,
        () = vanished(connection, sender) => {
            if let Err(error) = authority.cancel_check_authorization(&question).await {
                tracing::debug!(%error, "cannot take the question back");
            }
            return Err(Error::AccessDenied("the caller left before it was authorised".into()));
        }
    };
    match (answer.is_authorized, answer.is_challenge, interactive) {
        (true, ..) => Ok(()),
        (false, true, false) => Err(Error::InteractiveAuthorizationRequired(format!(
            "{id} needs a password; ask again with interactive authorisation allowed, or as root"
        ))),
        (false, ..) => Err(Error::AccessDenied(format!(
            "polkit does not allow {id} for this user"
        ))),
    }
}

/// Returns when the caller has left the bus, and never when that cannot be told: a stream that ends says
/// nothing about anybody.
pub(super) async fn vanished(connection: &Connection, sender: &UniqueName<'_>) {
    let (connection, sender) = (connection.clone(), sender.to_owned());
    let watch = subscribed(async move {
        let bus = DBusProxy::new(&connection).await?;
        let of_sender = [(0, sender.as_str())];
        let changes = bus.receive_name_owner_changed_with_args(&of_sender).await?;
        // It may have left before the match was there.
        let is_here = bus.name_has_owner(sender.into()).await?;
        Ok((changes, is_here))
    });
    match watch.await {
        Ok((_, false)) => return,
        Ok((mut changes, true)) => {
            while let Some(change) = changes.next().await {
                if change
                    .args()
                    .is_ok_and(|change| change.new_owner().is_none())
                {
                    return;
                }
            }
            tracing::debug!("the caller cannot be watched any more");
        }
        Err(error) => tracing::debug!(%error, "cannot watch the caller"),
    }
    std::future::pending().await
}
