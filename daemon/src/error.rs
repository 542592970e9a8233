//! Every failure of the daemon, and the one mapping to D-Bus error names.
//!
//! Owns [`Error`], the sum of the areas' errors, and [`Error::to_bus`]. Invariant: the
//! mapping has no catch-all, so a new variant does not compile until it has a name.

use osteward_dbus::Error as Bus;

use crate::jobs::{Fact, Facts};
use crate::state::Refused;
use crate::sysroot::Snapshot;
use crate::{image, import, observe, packages, record, sysroot};

/// What whoever asks for an update while a rollback is queued is told.
pub(crate) const ROLLBACK_PENDING: &str = "a rollback is queued and an update would take its place; \
     reboot to get into it, or cancel the rollback first";

/// Why a command was refused or a job failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sysroot.
    #[error(transparent)]
    Sysroot(#[from] sysroot::Error),
    /// Finding or fetching an image.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// Writing an image into the repository.
    #[error(transparent)]
    Import(#[from] import::Error),
    /// A file in the state directory.
    #[error("{0}; until it is readable nothing is staged")]
    Record(#[from] record::Error),
    /// The host's session manager.
    #[error(transparent)]
    Logind(#[from] observe::logind::Error),
    /// The host's service manager.
    #[error(transparent)]
    Systemd(#[from] observe::systemd::NotArmed),
    /// Not booted by ostree.
    #[error("this host was not booted by ostree; osteward only works on an image-based host")]
    NotBooted,
    /// Another write job runs; the text is its object path.
    #[error("{0} is running; wait for it, watch it or cancel it")]
    Busy(String),
    /// Nothing to do for a verb that must have something to do.
    #[error("{0}")]
    NoUpdate(String),
    /// Not the digest that was asked for.
    #[error("{0}")]
    DigestMismatch(String),
    /// Older than the booted image.
    #[error("{0}")]
    DowngradeRefused(String),
    /// Would lose a staged update.
    #[error("{0}")]
    StagedPending(String),
    /// Nothing to go back to.
    #[error("{0}")]
    NoRollback(String),
    /// On the quarantine list.
    #[error("{0}")]
    Quarantined(String),
    /// A container image that the host's image is bound to.
    #[error("bound image {image}: {reason}")]
    BoundImage {
        /// Its name.
        image: String,
        /// podman's words.
        reason: String,
    },
    /// The signature cannot be accepted.
    #[error("{0}")]
    SignatureRejected(String),
    /// Somebody forbids the reboot.
    #[error("{0}")]
    Inhibited(String),
    /// The host or this version cannot do it.
    #[error("{0}")]
    NotSupported(String),
    /// The configuration cannot be used.
    #[error("{0}; correct the file, nothing is fetched until then")]
    Config(String),
    /// A bad argument.
    #[error("{0}")]
    InvalidArgs(String),
    /// Cancelled by somebody.
    #[error("the job was cancelled")]
    Cancelled,
    /// Past the point of no return, or over.
    #[error("{0}")]
    TooLate(String),
    /// No such object.
    #[error("{0}")]
    UnknownObject(String),
    /// There are as many as there can be.
    #[error("{0}")]
    LimitsExceeded(String),
    /// The caller has nothing to do with it.
    #[error("{0}")]
    NotYours(String),
    /// A part of the daemon broke.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// The error for a refusal by the state table.
    pub fn refused(refused: Refused, snapshot: &Snapshot) -> Self {
        match refused {
            Refused::Busy => Error::Busy("another job".into()),
            Refused::NotBooted => Error::NotBooted,
            Refused::Broken => Error::NotSupported("the sysroot cannot be read".into()),
            Refused::NothingToApply => Error::NoUpdate(
                "nothing waits for the next boot; stage an update or roll back first".into(),
            ),
            Refused::StagedPending => {
                let digest = snapshot.staged().and_then(|staged| staged.digest());
                Error::StagedPending(format!(
                    "{} is staged and a rollback would discard it; ask for that explicitly, or apply it",
                    digest.map_or("a deployment".into(), ToString::to_string)
                ))
            }
            Refused::NoRollback => Error::NoRollback(
                "there is no previous deployment to go back to; one appears after the next update"
                    .into(),
            ),
            Refused::AlreadyQueued => Error::NoRollback(
                "the rollback is queued already; reboot to get into it, or cancel it".into(),
            ),
            Refused::RollbackPending => Error::StagedPending(ROLLBACK_PENDING.into()),
            Refused::NotQueued => {
                Error::NoRollback("no rollback is queued, so there is none to cancel".into())
            }
        }
    }

    /// Whether it is the end that somebody asked for.
    pub fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Error::Cancelled
                | Error::Sysroot(sysroot::Error::Cancelled)
                | Error::Image(image::Error::Cancelled)
                | Error::Import(
                    import::Error::Cancelled | import::Error::Fetch(image::Error::Cancelled)
                )
        )
    }

    /// Whether finding the image failed, and not what was done with it then.
    pub fn is_about_finding(&self) -> bool {
        matches!(
            self,
            Error::Image(_) | Error::SignatureRejected(_) | Error::Config(_)
        )
    }

    /// What `Job.Result` says beside the error: how much room was missing, and where.
    pub fn facts(&self) -> Facts {
        let (need, have, place) = match self {
            Error::Import(import::Error::NoSpace { need, have, where_ }) => (need, have, where_),
            Error::Sysroot(sysroot::Error::NoSpace {
                need, have, place, ..
            }) => (need, have, place),
            _ => return Facts::new(),
        };
        vec![
            ("need", Fact::Number(*need)),
            ("have", Fact::Number(*have)),
            ("where", Fact::Text(place.clone())),
        ]
    }

    /// The same failure as it travels over the bus.
    pub fn to_bus(&self) -> Bus {
        // A bus takes no zero in a text, whoever wrote it, and no message that has one.
        let text = self.to_string().replace('\0', "");
        match self {
            Error::Sysroot(error) => sysroot_to_bus(error, text),
            Error::Image(error) => image_to_bus(error, text),
            Error::Import(error) => import_to_bus(error, text),
            Error::Record(_) | Error::Config(_) => Bus::ConfigInvalid(text),
            Error::Logind(observe::logind::Error::Inhibited(_)) => Bus::Inhibited(text),
            Error::Logind(_) | Error::Systemd(_) | Error::NotSupported(_) => {
                Bus::NotSupported(text)
            }
            Error::NotBooted => Bus::NotBooted(text),
            Error::Busy(_) => Bus::Busy(text),
            Error::NoUpdate(_) => Bus::NoUpdate(text),
            Error::DigestMismatch(_) => Bus::DigestMismatch(text),
            Error::DowngradeRefused(_) => Bus::DowngradeRefused(text),
            Error::StagedPending(_) => Bus::StagedPending(text),
            Error::NoRollback(_) => Bus::NoRollback(text),
            Error::Quarantined(_) => Bus::Quarantined(text),
            Error::BoundImage { .. } => Bus::RegistryError(text),
            Error::SignatureRejected(_) => Bus::SignatureRejected(text),
            Error::Inhibited(_) => Bus::Inhibited(text),
            Error::InvalidArgs(_) => Bus::InvalidArgs(text),
            Error::Cancelled => Bus::Cancelled(text),
            Error::TooLate(_) => Bus::TooLate(text),
            Error::UnknownObject(_) => Bus::UnknownObject(text),
            Error::LimitsExceeded(_) => Bus::LimitsExceeded(text),
            Error::NotYours(_) => Bus::AccessDenied(text),
            Error::Internal(_) => Bus::Failed(text),
        }
    }
}

fn sysroot_to_bus(error: &sysroot::Error, text: String) -> Bus {
    match error {
        sysroot::Error::NotBooted => Bus::NotBooted(text),
        sysroot::Error::Locked(_) | sysroot::Error::Importing(_) => Bus::SysrootLocked(text),
        sysroot::Error::ReadOnly(_) => Bus::SysrootReadOnly(text),
        sysroot::Error::NoDeployment(_) => Bus::NoRollback(text),
        sysroot::Error::NoSpace { .. } => Bus::NoSpace(text),
        sysroot::Error::Image(_) => Bus::ImageInvalid(text),
        sysroot::Error::CannotLock(_) => Bus::NotSupported(text),
        sysroot::Error::Cancelled => Bus::Cancelled(text),
        sysroot::Error::Ostree(_) => Bus::Failed(text),
    }
}

fn image_to_bus(error: &image::Error, text: String) -> Bus {
    match error {
        image::Error::Auth { .. } => Bus::RegistryAuth(text),
        image::Error::Unreachable { .. } | image::Error::Unavailable { .. } => {
            Bus::RegistryUnreachable(text)
        }
        image::Error::Untrusted { .. } => Bus::RegistryError(text),
        image::Error::Proxy { .. } => Bus::ConfigInvalid(text),
        image::Error::NotFound { .. } => Bus::ImageNotFound(text),
        image::Error::DigestGone { .. } => Bus::DigestGone(text),
        image::Error::DigestMismatch { .. } => Bus::DigestMismatch(text),
        image::Error::Protocol { .. } | image::Error::NoRanges => Bus::RegistryError(text),
        image::Error::Invalid { .. } => Bus::ImageInvalid(text),
        image::Error::Reference { .. } => Bus::InvalidArgs(text),
        image::Error::Io { .. } => Bus::ImageNotFound(text),
        image::Error::NotSupported { .. } => Bus::NotSupported(text),
        image::Error::NoSpace { .. } => Bus::NoSpace(text),
        image::Error::Tool { .. } => Bus::RegistryError(text),
        image::Error::Cancelled => Bus::Cancelled(text),
    }
}

fn import_to_bus(error: &import::Error, text: String) -> Bus {
    match error {
        import::Error::Layer { .. }
        | import::Error::Image(_)
        | import::Error::DigestMismatch { .. }
        | import::Error::DiffIdMismatch { .. } => Bus::ImageInvalid(text),
        import::Error::NoSpace { .. } => Bus::NoSpace(text),
        import::Error::Packages(error) => match error {
            packages::Error::Malformed { .. } | packages::Error::TooLarge { .. } => {
                Bus::ImageInvalid(text)
            }
            packages::Error::Unsupported { .. } => Bus::NotSupported(text),
            packages::Error::Io { .. } => Bus::Failed(text),
        },
        import::Error::Raced(_) => Bus::SysrootLocked(text),
        import::Error::Fetch(error) => image_to_bus(error, text),
        import::Error::Cancelled => Bus::Cancelled(text),
        import::Error::Ostree { .. } | import::Error::Io { .. } => Bus::Failed(text),
    }
}
