//! The one vocabulary of failures: every D-Bus error name that osteward uses.
//!
//! Owns the mapping between [`Error`] and D-Bus error names, in both directions, so
//! that a failure keeps its name from the daemon's engine to the client's exit code.
//! Invariant: a variant has exactly one name and no two share one; a name that is not
//! ours arrives as [`Error::Bus`] with nothing lost.

use zbus::names::ErrorName;

/// Prefix of the error names that are osteward's own.
pub const PREFIX: &str = "org.osteward1.Error";

macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal;)+) => {
        /// A failure as it travels over the bus and stands in `Job.Error`.
        ///
        /// The name is for programs, the text for people: it says what happened and
        /// what to do next. Never match on the text.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Error {
            $($(#[doc = $doc])+ $variant(String),)+
            /// Any other D-Bus failure: the bus itself, or a service that is not ours.
            Bus(zbus::Error),
        }

        impl Error {
            /// Every name in the vocabulary, in the order of the documentation.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The full D-Bus error name.
            pub fn name(&self) -> &str {
                match self {
                    $(Error::$variant(_) => $name,)+
                    Error::Bus(zbus::Error::MethodError(name, _, _)) => name.as_str(),
                    Error::Bus(zbus::Error::FDO(inner)) => standard_name(inner),
                    Error::Bus(_) => "org.freedesktop.DBus.Error.Failed",
                }
            }

            /// The sentence for people.
            pub fn message(&self) -> String {
                match self {
                    $(Error::$variant(text) => text.clone(),)+
                    Error::Bus(zbus::Error::MethodError(_, Some(text), _)) => text.clone(),
                    Error::Bus(zbus::Error::FDO(inner)) => text_of(inner),
                    Error::Bus(other) => other.to_string(),
                }
            }

            fn own_text(&self) -> Option<&str> {
                match self {
                    $(Error::$variant(text) => Some(text),)+
                    Error::Bus(_) => None,
                }
            }

            /// The error of that name, as found in `Job.Error` or a `Finished` signal.
            /// `None` when the name is not in the vocabulary.
            pub fn from_name(name: &str, message: &str) -> Option<Self> {
                match name {
                    $($name => Some(Error::$variant(message.to_owned())),)+
                    _ => None,
                }
            }
        }
    };
}

errors! {
    /// A write job is running and another was asked for; `Manager.ActiveJob` is the one.
    Busy = "org.osteward1.Error.Busy";
    /// The host was not booted by ostree.
    NotBooted = "org.osteward1.Error.NotBooted";
    /// `Apply` or `Download` with nothing to do.
    NoUpdate = "org.osteward1.Error.NoUpdate";
    /// The digest that was asked for is not the one found.
    DigestMismatch = "org.osteward1.Error.DigestMismatch";
    /// The registry no longer has the digest that was asked for.
    DigestGone = "org.osteward1.Error.DigestGone";
    /// The candidate is older than the booted image and `allow-downgrade` is not set.
    DowngradeRefused = "org.osteward1.Error.DowngradeRefused";
    /// The operation would throw a staged update away, or undo a queued rollback.
    StagedPending = "org.osteward1.Error.StagedPending";
    /// There is no deployment to go back to.
    NoRollback = "org.osteward1.Error.NoRollback";
    /// The digest was left behind by a rollback and is not staged again by itself.
    Quarantined = "org.osteward1.Error.Quarantined";
    /// The signature policy of the host or of the origin refuses the image.
    SignatureRejected = "org.osteward1.Error.SignatureRejected";
    /// The registry wants other credentials.
    RegistryAuth = "org.osteward1.Error.RegistryAuth";
    /// No connection to the registry, or it broke, or the registry is overloaded.
    RegistryUnreachable = "org.osteward1.Error.RegistryUnreachable";
    /// The registry answered with something that makes no sense.
    RegistryError = "org.osteward1.Error.RegistryError";
    /// No such repository, tag or layout.
    ImageNotFound = "org.osteward1.Error.ImageNotFound";
    /// Not a bootable image, another architecture, or a broken layer.
    ImageInvalid = "org.osteward1.Error.ImageInvalid";
    /// Not enough room; `Job.Result` has `need`, `have` (bytes) and `where`.
    NoSpace = "org.osteward1.Error.NoSpace";
    /// Another tool holds the ostree sysroot lock.
    SysrootLocked = "org.osteward1.Error.SysrootLocked";
    /// The sysroot cannot be made writable.
    SysrootReadOnly = "org.osteward1.Error.SysrootReadOnly";
    /// A logind inhibitor forbids the reboot; who and why are in the text.
    Inhibited = "org.osteward1.Error.Inhibited";
    /// The job was cancelled.
    Cancelled = "org.osteward1.Error.Cancelled";
    /// The job cannot be cancelled any more.
    TooLate = "org.osteward1.Error.TooLate";
    /// A configuration file is wrong; file, line and key are in the text.
    ConfigInvalid = "org.osteward1.Error.ConfigInvalid";
    /// This host or this version cannot do it.
    NotSupported = "org.osteward1.Error.NotSupported";
    /// The last resort. A bug if it is ever seen.
    Failed = "org.osteward1.Error.Failed";
    /// Unknown option, bad reference, bad digest.
    InvalidArgs = "org.freedesktop.DBus.Error.InvalidArgs";
    /// polkit said no, or nobody is there to ask it.
    AccessDenied = "org.freedesktop.DBus.Error.AccessDenied";
    /// polkit would ask for a password, but the call did not allow interaction.
    InteractiveAuthorizationRequired = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";
    /// The object is not there (any more), such as a job that was forgotten.
    UnknownObject = "org.freedesktop.DBus.Error.UnknownObject";
    /// There are as many queued jobs, inhibitors or streams as there can be.
    LimitsExceeded = "org.freedesktop.DBus.Error.LimitsExceeded";
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Bus(inner) => Some(inner),
            _ => None,
        }
    }
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        let ours = match &error {
            zbus::Error::MethodError(name, text, _) => {
                Error::from_name(name.as_str(), text.as_deref().unwrap_or_default())
            }
            // zbus keeps the standard names apart, some of which are in our vocabulary.
            zbus::Error::FDO(inner) => Error::from_name(standard_name(inner), &text_of(inner)),
            _ => None,
        };
        ours.unwrap_or(Error::Bus(error))
    }
}

impl From<zbus::fdo::Error> for Error {
    fn from(error: zbus::fdo::Error) -> Self {
        Error::from(match error {
            zbus::fdo::Error::ZBus(inner) => inner,
            other => zbus::Error::from(other),
        })
    }
}

/// The standard names that [`zbus::fdo::Error`] knows, below `org.freedesktop.DBus.Error`.
const STANDARD_NAMES: &[&str] = &[
    "org.freedesktop.DBus.Error.Failed",
    "org.freedesktop.DBus.Error.NoMemory",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.IOError",
    "org.freedesktop.DBus.Error.BadAddress",
    "org.freedesktop.DBus.Error.NotSupported",
    "org.freedesktop.DBus.Error.LimitsExceeded",
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.AuthFailed",
    "org.freedesktop.DBus.Error.NoServer",
    "org.freedesktop.DBus.Error.Timeout",
    "org.freedesktop.DBus.Error.NoNetwork",
    "org.freedesktop.DBus.Error.AddressInUse",
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.InvalidArgs",
    "org.freedesktop.DBus.Error.FileNotFound",
    "org.freedesktop.DBus.Error.FileExists",
    "org.freedesktop.DBus.Error.UnknownMethod",
    "org.freedesktop.DBus.Error.UnknownObject",
    "org.freedesktop.DBus.Error.UnknownInterface",
    "org.freedesktop.DBus.Error.UnknownProperty",
    "org.freedesktop.DBus.Error.PropertyReadOnly",
    "org.freedesktop.DBus.Error.TimedOut",
    "org.freedesktop.DBus.Error.MatchRuleNotFound",
    "org.freedesktop.DBus.Error.MatchRuleInvalid",
    "org.freedesktop.DBus.Error.SpawnExecFailed",
    "org.freedesktop.DBus.Error.SpawnForkFailed",
    "org.freedesktop.DBus.Error.SpawnChildExited",
    "org.freedesktop.DBus.Error.SpawnChildSignaled",
    "org.freedesktop.DBus.Error.SpawnFailed",
    "org.freedesktop.DBus.Error.SpawnFailedToSetup",
    "org.freedesktop.DBus.Error.SpawnConfigInvalid",
    "org.freedesktop.DBus.Error.SpawnServiceNotValid",
    "org.freedesktop.DBus.Error.SpawnServiceNotFound",
    "org.freedesktop.DBus.Error.SpawnPermissionsInvalid",
    "org.freedesktop.DBus.Error.SpawnFileInvalid",
    "org.freedesktop.DBus.Error.SpawnNoMemory",
    "org.freedesktop.DBus.Error.UnixProcessIdUnknown",
    "org.freedesktop.DBus.Error.InvalidSignature",
    "org.freedesktop.DBus.Error.InvalidFileContent",
    "org.freedesktop.DBus.Error.SELinuxSecurityContextUnknown",
    "org.freedesktop.DBus.Error.AdtAuditDataUnknown",
    "org.freedesktop.DBus.Error.ObjectPathInUse",
    "org.freedesktop.DBus.Error.InconsistentMessage",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
    "org.freedesktop.DBus.Error.NotContainer",
];

fn standard_name(error: &zbus::fdo::Error) -> &'static str {
    let name = zbus::DBusError::name(error);
    STANDARD_NAMES
        .iter()
        .find(|known| **known == name.as_str())
        .copied()
        .unwrap_or("org.freedesktop.DBus.Error.Failed")
}

fn text_of(error: &zbus::fdo::Error) -> String {
    match zbus::DBusError::description(error) {
        Some(text) => text.to_owned(),
        None => error.to_string(),
    }
}

impl zbus::DBusError for Error {
    fn create_reply(
        &self,
        call: &zbus::message::Header<'_>,
    ) -> zbus::Result<zbus::message::Message> {
        zbus::message::Message::error(call, zbus::DBusError::name(self)).build(&(self.message(),))
    }

    fn name(&self) -> ErrorName<'_> {
        // Own names are valid by construction and foreign ones came from a message.
        ErrorName::from_str_unchecked(Error::name(self))
    }

    fn description(&self) -> Option<&str> {
        match self {
            Error::Bus(zbus::Error::MethodError(_, text, _)) => text.as_deref(),
            other => other.own_text(),
        }
    }
}
