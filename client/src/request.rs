//! What a verb asks of the daemon.
//!
//! Owns the translation of the command line into the options of `org.osteward1.Host`.
//! Invariant: an option that was not given is not sent, so that the daemon's defaults
//! hold; the exceptions are `replace-staged`, which `osteward upgrade` sets, and `on-busy`:
//! this client waits.

use std::path::PathBuf;

use osteward_dbus::options::{
    ApplyOptions, CancelRollbackOptions, CheckOptions, Common, DiscardOptions, DownloadOptions,
    ImportArchiveOptions, ManageOptions, RollbackOptions, SetKernelArgumentsOptions,
    SimulateOptions, UpgradeOptions, UsrOverlayOptions,
};

use crate::args::{
    ApplyArgs, CheckArgs, DiscardArgs, Discardable, DownloadArgs, Finalization, ImportArgs,
    RollbackArgs, SimulateArgs, SoftReboot, SwitchArgs, UpgradeArgs, UsrOverlayArgs, Verb, Wait,
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
    /// `Host.ImportArchive`
    Import(PathBuf, ImportArchiveOptions),
    /// `Host.Rollback`
    Rollback(RollbackOptions),
    /// `Host.CancelRollback`
    CancelRollback(CancelRollbackOptions),
    /// `Host.Apply`
    Apply(ApplyOptions),
    /// A method of the deployment that a word names
    Manage(String, Change, ManageOptions),
    /// `Host.Discard`
    Discard(Vec<&'static str>, DiscardOptions),
    /// `Host.SetKernelArguments`
    Kargs {
        /// These come last.
        append: Vec<String>,
        /// `KEY=NEW`, or `KEY=OLD=NEW`.
        replace: Vec<String>,
        /// These go.
        delete: Vec<String>,
        /// The rest.
        options: SetKernelArgumentsOptions,
    },
    /// `Host.Simulate`
    Simulate(SimulateOptions),
    /// `Host.UsrOverlay`
    UsrOverlay(UsrOverlayOptions),
}

/// What to do with one deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// `Deployment.SetLocked`
    Lock(bool),
    /// `Deployment.SetPinned`
    Pin(bool),
    /// `Deployment.Remove`
    Remove,
}

fn manage(which: &str, change: Change) -> Request {
    Request::Manage(which.to_owned(), change, ManageOptions::default())
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

/// The option `apply`, and `mode` of `Host.Apply`.
fn reboot(apply: bool, soft: Option<SoftReboot>) -> Option<String> {
    let how = match soft {
        None => "reboot",
        Some(SoftReboot::Auto) => "auto",
        Some(SoftReboot::Required) => "soft-reboot",
    };
    apply.then(|| how.to_owned())
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
            Verb::Import(args) => (import(args), &args.wait),
            Verb::Rollback(args) if args.cancel => {
                (Self::CancelRollback(Default::default()), &args.wait)
            }
            Verb::Rollback(args) => (rollback(args), &args.wait),
            Verb::Apply(args) => (apply(args), &args.wait),
            Verb::Lock(args) => (manage("staged", Change::Lock(true)), &args.wait),
            Verb::Unlock(args) => (manage("staged", Change::Lock(false)), &args.wait),
            Verb::Pin(args) => (manage(&args.deployment, Change::Pin(true)), &args.wait),
            Verb::Unpin(args) => (manage(&args.deployment, Change::Pin(false)), &args.wait),
            Verb::Remove(args) => (manage(&args.deployment, Change::Remove), &args.wait),
            Verb::Discard(args) => (discard(args), &args.wait),
            Verb::Simulate(args) => (simulate(args), &args.wait),
            Verb::UsrOverlay(args) => (usr_overlay(args), &args.wait),
            Verb::Status(_)
            | Verb::Jobs(_)
            | Verb::Cancel(_)
            | Verb::Watch(_)
            | Verb::Pause(_)
            | Verb::Resume(_)
            | Verb::Log(_)
            | Verb::History(_)
            | Verb::Inhibit(_)
            | Verb::Kargs(_)
            | Verb::Diff(_)
            | Verb::Reload
            | Verb::Doctor
            | Verb::Completion(_) => return None,
        };
        Some((request.with_terms(wait, reason), !wait.no_wait))
    }

    /// The request with the terms on which it runs, and who asks.
    pub(crate) fn with_terms(self, wait: &Wait, reason: Option<&str>) -> Self {
        let on_busy = if wait.no_queue { "fail" } else { "queue" };
        self.signed(Common {
            client_label: Some(LABEL.to_owned()),
            reason: reason.map(str::to_owned),
            on_busy: Some(on_busy.to_owned()),
            background: given(wait.background),
            priority: wait.priority,
        })
    }

    /// Whether the host goes down for it when all goes well.
    pub(crate) fn reboots(&self) -> bool {
        let apply = match self {
            Self::Apply(_) => return true,
            Self::Upgrade(options) | Self::Switch(_, options) => &options.apply,
            Self::Import(_, options) => &options.apply,
            Self::Rollback(options) => &options.apply,
            _ => return false,
        };
        apply.as_deref().is_some_and(|apply| apply != "none")
    }

    /// The request with the options that every method takes.
    fn signed(self, common: Common) -> Self {
        match self {
            Self::Check(options) => Self::Check(options.with_common(common)),
            Self::Download(options) => Self::Download(options.with_common(common)),
            Self::Upgrade(options) => Self::Upgrade(options.with_common(common)),
            Self::Switch(image, options) => Self::Switch(image, options.with_common(common)),
            Self::Import(path, options) => Self::Import(path, options.with_common(common)),
            Self::Rollback(options) => Self::Rollback(options.with_common(common)),
            Self::CancelRollback(options) => Self::CancelRollback(options.with_common(common)),
            Self::Apply(options) => Self::Apply(options.with_common(common)),
            Self::Manage(which, change, options) => {
                Self::Manage(which, change, options.with_common(common))
            }
            Self::Discard(what, options) => Self::Discard(what, options.with_common(common)),
            Self::Kargs {
                append,
                replace,
                delete,
                options,
            } => Self::Kargs {
                append,
                replace,
                delete,
                options: options.with_common(common),
            },
            Self::Simulate(options) => Self::Simulate(options.with_common(common)),
            Self::UsrOverlay(options) => Self::UsrOverlay(options.with_common(common)),
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
        download_only: given(args.from.download_only),
        from_cache: given(args.from.from_cache),
        lock: args.finalization.locked(),
        apply: reboot(args.finalization.apply, args.finalization.soft_reboot),
        ..Default::default()
    })
}

fn switch(args: &SwitchArgs) -> Request {
    let options = UpgradeOptions {
        digest: args.digest.clone(),
        allow_downgrade: given(args.allow_downgrade),
        replace_staged: given(args.replace_staged),
        download_only: given(args.from.download_only),
        from_cache: given(args.from.from_cache),
        lock: args.finalization.locked(),
        apply: reboot(args.finalization.apply, args.finalization.soft_reboot),
        ..Default::default()
    };
    Request::Switch(args.image.clone(), options)
}

fn import(args: &ImportArgs) -> Request {
    let options = ImportArchiveOptions {
        image: args.track.clone(),
        tag: args.tag.clone(),
        digest: args.digest.clone(),
        allow_downgrade: given(args.allow_downgrade),
        replace_staged: given(args.replace_staged),
        lock: args.finalization.locked(),
        apply: reboot(args.finalization.apply, args.finalization.soft_reboot),
        ..Default::default()
    };
    Request::Import(args.path.clone(), options)
}

fn rollback(args: &RollbackArgs) -> Request {
    Request::Rollback(RollbackOptions {
        digest: args.digest.clone(),
        discard_staged: given(args.discard_staged),
        quarantine: args.no_quarantine.then_some(false),
        apply: reboot(args.apply, args.soft_reboot),
        ..Default::default()
    })
}

fn apply(args: &ApplyArgs) -> Request {
    Request::Apply(ApplyOptions {
        digest: args.digest.clone(),
        mode: args.soft_reboot.and_then(|soft| reboot(true, Some(soft))),
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

fn simulate(args: &SimulateArgs) -> Request {
    Request::Simulate(SimulateOptions {
        digest: args.digest.clone(),
        ..Default::default()
    })
}

fn usr_overlay(args: &UsrOverlayArgs) -> Request {
    Request::UsrOverlay(UsrOverlayOptions {
        read_only: given(args.read_only),
        ..Default::default()
    })
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
        for (line, reboots) in [
            (["upgrade", "--apply"].as_slice(), true),
            (&["switch", "quay.io/x/y", "--apply"], true),
            (&["import", "os.tar", "--apply"], true),
            (&["rollback", "--apply"], true),
            (&["apply"], true),
            (&["upgrade"], false),
            (&["rollback", "--cancel"], false),
        ] {
            let (request, _) = request(line).unwrap();
            assert_eq!(request.reboots(), reboots, "{line:?}");
        }
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
    fn import_keeps_what_is_tracked_unless_told_otherwise() {
        let Some((Request::Import(path, options), true)) = request(&["import", "os.tar"]) else {
            panic!()
        };
        assert_eq!(path.to_str(), Some("os.tar"));
        assert_eq!(
            (options.image, options.tag, options.replace_staged),
            (None, None, None)
        );
        let line = ["import", "os.tar", "--tag", "1", "--track", "quay.io/x/y"];
        let Some((Request::Import(_, options), _)) = request(&line) else {
            panic!()
        };
        assert_eq!(options.image.as_deref(), Some("quay.io/x/y"));
        assert_eq!(options.tag.as_deref(), Some("1"));
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
    fn the_terms_travel() {
        let Some((Request::Check(options), _)) = request(&["check"]) else {
            panic!()
        };
        let common = options.common();
        assert_eq!(common.on_busy.as_deref(), Some("queue"));
        assert_eq!((common.background, common.priority), (None, None));
        let line = ["check", "--no-queue", "--background", "--priority", "-3"];
        let Some((Request::Check(options), _)) = request(&line) else {
            panic!()
        };
        let common = options.common();
        assert_eq!(common.on_busy.as_deref(), Some("fail"));
        assert_eq!((common.background, common.priority), (Some(true), Some(-3)));
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
        let Some((Request::Manage(which, change, _), true)) = request(&["unpin", "rollback"])
        else {
            panic!()
        };
        assert_eq!((which.as_str(), change), ("rollback", Change::Pin(false)));
        assert_eq!(request(&["jobs"]), None);
    }
}
