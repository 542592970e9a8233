//! What a verb asks of the daemon.
//!
//! Owns the translation of the command line into the options of `org.osteward1.Host`.
//! Invariant: an option that was not given is not sent, so that the daemon's defaults
//! hold; the one exception is `replace-staged`, which `osteward upgrade` sets.

use osteward_dbus::options::{
    ApplyOptions, CancelRollbackOptions, CheckOptions, Common, DiscardOptions, DownloadOptions,
    ManageOptions, RollbackOptions, UpgradeOptions,
};

use crate::args::{
    ApplyArgs, CheckArgs, DiscardArgs, Discardable, DownloadArgs, Finalization, RollbackArgs,
    SwitchArgs, UpgradeArgs, Verb,
};

/// What this client calls itself in `Job.StartedByLabel`.
const LABEL: &str = "osteward";

/// One call of a job-making method.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Request {
    /// `Host.Check`
    Check(CheckOptions),
    /// `Host.Download`
    Download(DownloadOptions),
    /// `Host.Upgrade`
    Upgrade(UpgradeOptions),
    /// `Host.Switch`
    Switch(String, UpgradeOptions),
    /// `Host.Rollback`
    Rollback(RollbackOptions),
    /// `Host.CancelRollback`
    CancelRollback(CancelRollbackOptions),
    /// `Host.Apply`
    Apply(ApplyOptions),
    /// `Deployment.SetLocked` of what is staged
    SetLocked(bool, ManageOptions),
    /// `Host.Discard`
    Discard(Vec<&'static str>, DiscardOptions),
}

/// A switch that was not given is left to the daemon.
fn given(switch: bool) -> Option<bool> {
    switch.then_some(true)
}

impl Finalization {
    /// The option `lock`: on, off, or as it is.
    fn locked(&self) -> Option<bool> {
        (self.lock || self.unlock).then_some(self.lock)
    }
}

fn reboot(apply: bool) -> Option<String> {
    apply.then(|| "reboot".to_owned())
}

impl Request {
    /// The request of a verb and whether to wait for its end; `None` for the verbs that
    /// start no job.
    pub(crate) fn of(verb: &Verb, reason: Option<&str>) -> Option<(Self, bool)> {
        let (request, wait) = match verb {
            Verb::Check(args) => (check(args), &args.wait),
            Verb::Download(args) => (download(args), &args.wait),
            Verb::Upgrade(args) => (upgrade(args), &args.wait),
            Verb::Switch(args) => (switch(args), &args.wait),
            Verb::Rollback(args) if args.cancel => {
                (Self::CancelRollback(Default::default()), &args.wait)
            }
            Verb::Rollback(args) => (rollback(args), &args.wait),
            Verb::Apply(args) => (apply(args), &args.wait),
            Verb::Lock(args) => (Self::SetLocked(true, Default::default()), &args.wait),
            Verb::Unlock(args) => (Self::SetLocked(false, Default::default()), &args.wait),
            Verb::Discard(args) => (discard(args), &args.wait),
            Verb::Status(_) | Verb::Jobs | Verb::Cancel(_) | Verb::Watch(_) => return None,
        };
        let common = Common {
            client_label: Some(LABEL.to_owned()),
            reason: reason.map(str::to_owned),
        };
        Some((request.signed(common), !wait.no_wait))
    }

    /// The request with the options that every method takes.
    fn signed(self, common: Common) -> Self {
        match self {
            Self::Check(options) => Self::Check(options.with_common(common)),
            Self::Download(options) => Self::Download(options.with_common(common)),
            Self::Upgrade(options) => Self::Upgrade(options.with_common(common)),
            Self::Switch(image, options) => Self::Switch(image, options.with_common(common)),
            Self::Rollback(options) => Self::Rollback(options.with_common(common)),
            Self::CancelRollback(options) => Self::CancelRollback(options.with_common(common)),
            Self::Apply(options) => Self::Apply(options.with_common(common)),
            Self::SetLocked(locked, options) => {
                Self::SetLocked(locked, options.with_common(common))
            }
            Self::Discard(what, options) => Self::Discard(what, options.with_common(common)),
        }
    }
}

fn check(args: &CheckArgs) -> Request {
    Request::Check(CheckOptions {
        max_age: args.max_age,
        ..Default::default()
    })
}

fn download(args: &DownloadArgs) -> Request {
    Request::Download(DownloadOptions {
        digest: args.digest.clone(),
        allow_downgrade: given(args.allow_downgrade),
        ..Default::default()
    })
}

fn upgrade(args: &UpgradeArgs) -> Request {
    Request::Upgrade(UpgradeOptions {
        digest: args.digest.clone(),
        allow_downgrade: given(args.allow_downgrade),
        replace_staged: Some(!args.keep_staged),
        lock: args.finalization.locked(),
        apply: reboot(args.finalization.apply),
        ..Default::default()
    })
}

fn switch(args: &SwitchArgs) -> Request {
    let options = UpgradeOptions {
        digest: args.digest.clone(),
        allow_downgrade: given(args.allow_downgrade),
        replace_staged: given(args.replace_staged),
        lock: args.finalization.locked(),
        apply: reboot(args.finalization.apply),
        ..Default::default()
    };
    Request::Switch(args.image.clone(), options)
}

fn rollback(args: &RollbackArgs) -> Request {
    Request::Rollback(RollbackOptions {
        digest: args.digest.clone(),
        discard_staged: given(args.discard_staged),
        quarantine: args.no_quarantine.then_some(false),
        apply: reboot(args.apply),
        ..Default::default()
    })
}

fn apply(args: &ApplyArgs) -> Request {
    Request::Apply(ApplyOptions {
        digest: args.digest.clone(),
        ignore_inhibitors: given(args.ignore_inhibitors),
        ..Default::default()
    })
}

fn discard(args: &DiscardArgs) -> Request {
    let what = args.what.iter().copied().map(word).collect();
    let options = DiscardOptions {
        dry_run: given(args.dry_run),
        ..Default::default()
    };
    Request::Discard(what, options)
}

/// The word of `Host.Discard`.
fn word(what: Discardable) -> &'static str {
    match what {
        Discardable::Staged => "staged",
        Discardable::Rollback => "rollback",
        Discardable::Cache => "cache",
        Discardable::Unreferenced => "unreferenced",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn request(line: &[&str]) -> Option<(Request, bool)> {
        let cli = Cli::try_parse_from(["osteward"].iter().chain(line)).unwrap();
        Request::of(&cli.verb, cli.global.reason.as_deref())
    }

    #[test]
    fn upgrade_replaces_what_is_staged_unless_told_otherwise() {
        let Some((Request::Upgrade(options), true)) = request(&["upgrade"]) else {
            panic!()
        };
        assert_eq!(options.replace_staged, Some(true));
        assert_eq!(
            (options.digest, options.apply, options.allow_downgrade),
            (None, None, None)
        );
        let Some((Request::Upgrade(options), false)) =
            request(&["upgrade", "--keep-staged", "--apply", "--no-wait"])
        else {
            panic!()
        };
        assert_eq!(options.replace_staged, Some(false));
        assert_eq!(options.apply.as_deref(), Some("reboot"));
    }

    #[test]
    fn switch_and_rollback_leave_the_staged_update_alone() {
        let Some((Request::Switch(image, options), _)) = request(&["switch", "oci:/a:b"]) else {
            panic!()
        };
        assert_eq!((image.as_str(), options.replace_staged), ("oci:/a:b", None));
        let Some((Request::Rollback(options), _)) = request(&["rollback", "--no-quarantine"])
        else {
            panic!()
        };
        assert_eq!(
            (options.discard_staged, options.quarantine),
            (None, Some(false))
        );
        assert!(matches!(
            request(&["rollback", "--cancel"]),
            Some((Request::CancelRollback(_), true))
        ));
    }

    #[test]
    fn label_and_reason_travel() {
        let Some((Request::Check(options), _)) =
            request(&["check", "--max-age", "1h", "--reason", "why not"])
        else {
            panic!()
        };
        assert_eq!(options.max_age, Some(3600));
        assert_eq!(options.client_label.as_deref(), Some("osteward"));
        assert_eq!(options.reason.as_deref(), Some("why not"));
    }

    #[test]
    fn discard_speaks_the_words_of_the_interface() {
        let Some((Request::Discard(what, options), _)) = request(&[
            "discard",
            "staged",
            "rollback",
            "cache",
            "unreferenced",
            "--dry-run",
        ]) else {
            panic!()
        };
        assert_eq!(what, ["staged", "rollback", "cache", "unreferenced"]);
        assert_eq!(options.dry_run, Some(true));
        assert_eq!(request(&["jobs"]), None);
    }
}
