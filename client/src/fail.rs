//! Failures as the user sees them, and exit codes.
//!
//! Owns the way from a D-Bus error name to a sentence, a hint and an exit code.
//! Invariant: every failure that is shown has a D-Bus error name, and every name of
//! osteward's vocabulary has a hint that says what to do.

use std::fmt::Write as _;
use std::process::ExitCode;

use osteward_dbus::Error;
use serde_json::{Value, json};

use crate::text::plain;

/// What the process ends with; the list in `osteward --help` is this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for is done, or there was nothing to do.
    Done,
    /// It failed, or was cancelled.
    Failed,
    /// `check`, `status --exit-code`: there is an update that is not staged yet.
    UpdateAvailable,
    /// `check`, `status --exit-code`: an update is staged and waits for a reboot.
    Staged,
    /// `simulate`: the update would be refused, or fail.
    Blocked,
    /// Ctrl-C ended the waiting; the job goes on.
    Interrupted,
    /// What the command of `inhibit` ended with.
    OfCommand(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::UpdateAvailable => 10,
            Exit::Staged => 11,
            Exit::Blocked => 12,
            Exit::Interrupted => 130,
            Exit::OfCommand(code) => code,
        })
    }
}

/// A failure: its D-Bus name for programs, a sentence and a hint for people.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    /// A D-Bus error name, also for failures that never were on the bus.
    pub(crate) name: String,
    /// What happened.
    pub(crate) message: String,
    /// It stood in the last JSON line of a job already.
    pub(crate) told: bool,
}

/// The connection or the daemon went away.
pub(crate) const DISCONNECTED: &str = "org.freedesktop.DBus.Error.Disconnected";
/// There is no bus at the address.
const NO_SERVER: &str = "org.freedesktop.DBus.Error.NoServer";
const CANCELLED: &str = "org.osteward1.Error.Cancelled";

impl Failure {
    /// A failure of that name.
    pub(crate) fn new(name: &str, message: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            message: message.into(),
            told: false,
        }
    }

    /// No bus could be reached; `which` names it.
    pub(crate) fn no_bus(which: &str, cause: &zbus::Error) -> Self {
        Self::new(NO_SERVER, format!("cannot connect to {which}: {cause}"))
    }

    /// How a job ended, when it did not succeed: `state` and `error` as in `org.osteward1.Job`.
    pub(crate) fn of_job(state: &str, error: &(String, String)) -> Option<Self> {
        let (name, message) = error;
        match state {
            "succeeded" => None,
            "cancelled" if message.is_empty() => {
                Some(Self::new(CANCELLED, "the job was cancelled"))
            }
            "cancelled" if name.is_empty() => Some(Self::new(CANCELLED, message)),
            _ if name.is_empty() => Some(Self::new(
                "org.osteward1.Error.Failed",
                "the job failed without saying why",
            )),
            _ => Some(Self::new(name, message)),
        }
    }

    /// What to do about it, for the verb that was running.
    pub(crate) fn hint(&self, verb: &str) -> Option<&'static str> {
        match self.name.strip_prefix("org.osteward1.Error.") {
            Some(own) => own_hint(own, verb),
            None => bus_hint(self.name.strip_prefix("org.freedesktop.DBus.Error.")?),
        }
    }

    /// The value of `error` in JSON output: `name`, `message` and `hint` (may be null).
    pub(crate) fn to_json(&self, verb: &str) -> Value {
        json!({"name": self.name, "message": self.message, "hint": self.hint(verb)})
    }

    /// The lines for people, without a newline at the end.
    pub(crate) fn render(&self, verb: &str, color: bool) -> String {
        let error = console::style("error:").red().bold().force_styling(color);
        let mut lines = format!("{error} {}", plain(&self.message));
        // Writing to a String cannot fail.
        let _ = write!(lines, "\n  D-Bus error: {}", plain(&self.name));
        if let Some(hint) = self.hint(verb) {
            let label = console::style("hint:").cyan().force_styling(color);
            let _ = write!(lines, "\n  {label} {hint}");
        }
        lines
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Bus(zbus::Error::InputOutput(cause)) => Self::new(
                DISCONNECTED,
                format!("the connection to the bus broke: {cause}"),
            ),
            other => Self::new(other.name(), other.message()),
        }
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        Error::from(error).into()
    }
}

/// Hints for `org.osteward1.Error.*`.
fn own_hint(name: &str, verb: &str) -> Option<&'static str> {
    Some(match name {
        "Busy" => {
            "`osteward watch` follows the running job, `osteward cancel` stops it; without --no-queue this one waits."
        }
        "NotBooted" => {
            "osteward works on hosts that were booted by ostree, not in containers or on package-based hosts."
        }
        "NoUpdate" if verb == "apply" => "`osteward upgrade` looks for an update and stages it.",
        "NoUpdate" => "`osteward check` looks for an update, `osteward status` shows what is here.",
        "StagedPending" if verb == "rollback" => {
            "--discard-staged throws the staged update away; `osteward apply` boots into it instead."
        }
        "StagedPending" if verb == "upgrade" => {
            "`osteward apply` boots into what waits. Without --keep-staged a staged update is replaced; \
             `osteward rollback --cancel` takes a queued rollback back."
        }
        "StagedPending" if verb == "kargs" => {
            "`osteward apply` boots into what waits, `osteward rollback --cancel` takes a queued rollback back."
        }
        "StagedPending" => {
            "`osteward apply` boots into what waits. --replace-staged replaces a staged update; \
             `osteward rollback --cancel` takes a queued rollback back."
        }
        "NoRollback" => "`osteward status` lists the deployments that this host can boot.",
        "NoSpace" => {
            "`osteward discard cache unreferenced --dry-run` tells how much that frees; without --dry-run it does. \
             If /boot is full, `osteward status` shows what can go: unpin it, and `osteward remove` it."
        }
        "SysrootLocked" => {
            "Another tool (bootc, rpm-ostree, ostree admin) is at work; wait for it and try again."
        }
        "SysrootReadOnly" => {
            "Is /sysroot a read-only medium? `findmnt /sysroot` shows how it is mounted."
        }
        "Inhibited" => {
            "`systemd-inhibit --list` and `osteward inhibit --list` show who; wait, or reboot all the same with --ignore-inhibitors."
        }
        "Cancelled" => "What was downloaded is kept; the same command goes on from there.",
        "TooLate" => {
            "The job is past the point of no return; `osteward watch` follows it to its end."
        }
        "ConfigInvalid" => "Correct the file, then `osteward reload`.",
        "NotSupported" => "This host or this version cannot do it.",
        "Failed" => "This is a bug in osteward; please report it with `journalctl -u ostewardd`.",
        _ => return image_hint(name, verb),
    })
}

/// Those that are about an image and where it comes from.
fn image_hint(name: &str, verb: &str) -> Option<&'static str> {
    Some(match name {
        "DigestMismatch" if verb == "kargs" => {
            "`osteward kargs` shows the kernel arguments that the next boot has now."
        }
        "DigestMismatch" => {
            "`osteward status` shows the digests that are here, `osteward check` the one in the registry."
        }
        "DigestGone" => {
            "`osteward check` shows what the registry has now; leave --digest out to take that."
        }
        "DowngradeRefused" => "--allow-downgrade accepts the older image.",
        "SignatureRejected" => {
            "Ask the publisher for a signed image, or see the signature policy (containers-policy.json(5))."
        }
        "RegistryAuth" => {
            "Put the registry's credentials into /etc/ostree/auth.json (format: containers-auth.json(5))."
        }
        "RegistryUnreachable" => {
            "Check the network and the registry's name, then try again; what was downloaded is kept."
        }
        "RegistryError" => {
            "If nothing above says what to do, try again later; `journalctl -u ostewardd` has what the registry said."
        }
        "ImageNotFound" => {
            "Check the image's name; `osteward status` shows what is tracked, `osteward switch IMAGE` changes it."
        }
        "ImageInvalid" => {
            "The image cannot be booted here; tell its publisher. Nothing on this host was changed."
        }
        "Quarantined" => {
            "A rollback left this image behind. To stage it all the same, name it: `osteward upgrade --digest DIGEST`."
        }
        _ => return None,
    })
}

/// Hints for `org.freedesktop.DBus.Error.*`.
fn bus_hint(name: &str) -> Option<&'static str> {
    Some(match name {
        "InvalidArgs" => "`osteward help VERB` explains what it takes.",
        "AccessDenied" | "AuthFailed" => {
            "Run it as an administrator (sudo), or in a session where a polkit agent can ask for a password."
        }
        "InteractiveAuthorizationRequired" => {
            "Run it on a terminal without --no-ask-password, or as an administrator (sudo)."
        }
        "UnknownObject" => "`osteward jobs` lists the jobs that are still known.",
        "LimitsExceeded" => {
            "`osteward jobs` and `osteward inhibit --list` show what is there already."
        }
        "UnknownMethod" | "UnknownInterface" | "UnknownProperty" => {
            "Daemon and client are of different versions; `systemctl restart ostewardd` after an update."
        }
        "ServiceUnknown" | "NameHasNoOwner" => {
            "The daemon is not there: is it installed? `systemctl status ostewardd`"
        }
        "NoReply" | "TimedOut" | "Timeout" => {
            "The daemon does not answer: `systemctl status ostewardd`, `journalctl -u ostewardd`"
        }
        "Disconnected" => {
            "`journalctl -u ostewardd` tells what happened; `osteward status` what came of it."
        }
        "NoServer" | "FileNotFound" | "BadAddress" => {
            "Is D-Bus running? In a container, mount /run/dbus; --bus ADDRESS names another bus."
        }
        _ if name.starts_with("Spawn.") => {
            "The daemon could not be started: `systemctl status ostewardd`, `journalctl -u ostewardd`"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_vocabulary_has_a_hint() {
        for name in Error::NAMES {
            assert!(Failure::new(name, "x").hint("upgrade").is_some(), "{name}");
        }
    }

    #[test]
    fn staged_pending_names_the_option_of_the_verb() {
        let pending = Failure::new("org.osteward1.Error.StagedPending", "x");
        for (verb, option) in [
            ("rollback", "--discard-staged"),
            ("switch", "--replace-staged"),
            ("upgrade", "--keep-staged"),
        ] {
            assert!(pending.hint(verb).unwrap().contains(option), "{verb}");
        }
    }

    #[test]
    fn names_known_to_zbus_keep_their_name() {
        let denied = zbus::fdo::Error::AccessDenied("no".into());
        let failure = Failure::from(zbus::Error::FDO(Box::new(denied)));
        assert_eq!(failure.name, "org.freedesktop.DBus.Error.AccessDenied");
        assert_eq!(failure.message, "no");
        let unknown = zbus::fdo::Error::ServiceUnknown("gone".into());
        let failure = Failure::from(zbus::Error::FDO(Box::new(unknown)));
        assert_eq!(failure.name, "org.freedesktop.DBus.Error.ServiceUnknown");
        assert!(
            failure
                .hint("status")
                .unwrap()
                .contains("systemctl status ostewardd")
        );
    }

    #[test]
    fn a_failure_is_three_lines() {
        let failure = Failure::new("org.osteward1.Error.Busy", "an upgrade is\u{1b}[2J running");
        assert_eq!(
            failure.render("upgrade", false),
            "error: an upgrade is\u{fffd}[2J running\n  D-Bus error: org.osteward1.Error.Busy\n  \
             hint: `osteward watch` follows the running job, `osteward cancel` stops it; without --no-queue this one waits."
        );
    }

    #[test]
    fn job_states_become_failures() {
        let none = (String::new(), String::new());
        let full = ("org.osteward1.Error.NoSpace".to_owned(), "full".to_owned());
        assert_eq!(Failure::of_job("succeeded", &none), None);
        assert_eq!(Failure::of_job("cancelled", &none).unwrap().name, CANCELLED);
        assert_eq!(
            Failure::of_job("failed", &full),
            Some(Failure::new(&full.0, "full"))
        );
        assert_eq!(
            Failure::of_job("failed", &none).unwrap().name,
            "org.osteward1.Error.Failed"
        );
    }

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        let codes = [
            (Exit::Done, 0),
            (Exit::Failed, 1),
            (Exit::UpdateAvailable, 10),
            (Exit::Staged, 11),
            (Exit::Blocked, 12),
            (Exit::Interrupted, 130),
            (Exit::OfCommand(7), 7),
        ];
        for (exit, code) in codes {
            assert_eq!(ExitCode::from(exit), ExitCode::from(code));
        }
    }
}
