//! The command line.
//!
//! Owns verbs, options and the help that teaches them. Invariant: an option exists here
//! only if the daemon's option dictionaries (`osteward_dbus::options`) or this client's
//! own behaviour know it; nothing is parsed here that the daemon validates itself.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "\
Exit codes:
    0  done, or nothing to do
    1  it failed, or was cancelled; with --json the reason is in `error`
    2  the command line was wrong
   10  `check` and `status --exit-code`: an update is available, not staged yet
   11  `check` and `status --exit-code`: an update is staged and waits for a reboot
  130  Ctrl-C: waiting ended, the job goes on

Output:
  Results go to standard output, progress, notes and errors to standard error. With
  --json everything goes to standard output: one document for `status` and `jobs`
  (indented on a terminal, one line in a pipe); for a job one JSON line a change
  (`\"event\": \"progress\"`) and a last one (`\"event\": \"finished\"`). Whenever the command
  fails, the last document has `error` with `name` (a D-Bus error name), `message` and `hint`.

The work is done by ostewardd; a job goes on when this command ends. D-Bus interface:
org.osteward1, described in /usr/share/dbus-1/interfaces.";

/// Sees to an image-based host: updates, rollbacks and what boots next
#[derive(Debug, Parser)]
#[command(name = "osteward", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options that every verb takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "General options")]
pub(crate) struct Global {
    /// D-Bus address to talk to, instead of the system bus
    #[arg(long, global = true, value_name = "ADDRESS", env = "OSTEWARD_BUS")]
    pub(crate) bus: Option<String>,
    /// Print JSON on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print only results and errors, no progress and no notes
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// When to use colours (the environment's NO_COLOR counts as `never` for `auto`)
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: When,
    /// Fail rather than ask for a password
    #[arg(long, global = true)]
    pub(crate) no_ask_password: bool,
    /// Why this is done, for the journal and for polkit rules
    #[arg(long, global = true, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

/// When to do something that depends on the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal.
    Auto,
    /// Even in a pipe.
    Always,
    /// Not even on a terminal.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show what is booted, what boots next and what is going on
    ///
    /// Needs no privileges and answers at once, also while an upgrade runs.
    #[command(after_help = "\
Examples:
  osteward status
  osteward status --json | jq -r '.deployments[] | select(.booted) | .digest'")]
    Status(StatusArgs),
    /// Ask the registry for a newer image
    ///
    /// Reads the manifest only: nothing is downloaded. Exits with 10 when there is an
    /// update, with 11 when the newest image is staged already, else with 0.
    #[command(after_help = "\
Examples:
  osteward check
  osteward check --max-age 1h; [ $? -eq 10 ] && echo 'time to upgrade'")]
    Check(CheckArgs),
    /// Fetch the newest image without staging it
    ///
    /// A later `osteward upgrade` then needs no network for the layers.
    Download(DownloadArgs),
    /// Fetch the newest image and stage it for the next boot
    ///
    /// The running system does not change. An update that is staged already is replaced by
    /// a newer one, and a line says so. Succeeds without doing anything when the newest
    /// image is booted or staged.
    ///
    /// With --lock any reboot, also after a power cut, goes on with what runs now, until
    /// `osteward apply` reboots into the update or `osteward unlock` lets the next reboot do
    /// it. (This is what `bootc upgrade --download-only` does.) What is staged and locked is
    /// gone after a reboot, but not what was downloaded.
    #[command(after_help = "\
Examples:
  osteward upgrade
  osteward upgrade --apply                 reboot into it when it is staged
  osteward upgrade --lock                  stage it, and let only `osteward apply` reboot into it
  osteward upgrade --digest sha256:0123…   exactly this image, whatever the tag says")]
    Upgrade(UpgradeArgs),
    /// Stage another image, and track it from then on
    #[command(after_help = "\
Examples:
  osteward switch registry.example.org/os:next
  osteward switch oci:/run/media/usb/layout:next")]
    Switch(SwitchArgs),
    /// Make the next boot go back to the previous deployment
    ///
    /// The digest that is left behind is remembered and not staged again by itself.
    #[command(after_help = "\
Examples:
  osteward rollback --apply
  osteward rollback --cancel               boot the newer one after all")]
    Rollback(RollbackArgs),
    /// Reboot into what is staged or queued
    ///
    /// Goes through systemd-logind, so whoever inhibits a shutdown is respected. What is
    /// staged and locked is unlocked for this reboot only.
    Apply(ApplyArgs),
    /// Let no reboot switch to the staged update
    ///
    /// The host goes on with what runs now whenever it is rebooted, until `osteward apply` or
    /// `osteward unlock`. A reboot takes the update off the list; `osteward upgrade` stages it
    /// again without downloading it again.
    Lock(LockArgs),
    /// Let the next reboot switch to the staged update
    #[command(after_help = "\
Examples:
  osteward upgrade --lock                  on Monday: everything but the switch
  osteward unlock                          on Friday: whoever reboots next gets it")]
    Unlock(LockArgs),
    /// Throw things away: staged, rollback, cache, unreferenced
    #[command(after_help = "\
Examples:
  osteward discard staged                  forget the staged update
  osteward discard cache unreferenced --dry-run")]
    Discard(DiscardArgs),
    /// List the jobs that run or ended a while ago
    Jobs,
    /// Cancel a job
    ///
    /// Without JOB the one that runs. Your own jobs need no authorisation.
    Cancel(CancelArgs),
    /// Follow a job that somebody started
    ///
    /// Without JOB the one that runs, or else the next one. Ctrl-C ends the watching, never
    /// the job. Exits with 0 when the job succeeded.
    Watch(WatchArgs),
}

impl Verb {
    /// The name on the command line, which hints depend on.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Verb::Status(_) => "status",
            Verb::Check(_) => "check",
            Verb::Download(_) => "download",
            Verb::Upgrade(_) => "upgrade",
            Verb::Switch(_) => "switch",
            Verb::Rollback(_) => "rollback",
            Verb::Apply(_) => "apply",
            Verb::Lock(_) => "lock",
            Verb::Unlock(_) => "unlock",
            Verb::Discard(_) => "discard",
            Verb::Jobs => "jobs",
            Verb::Cancel(_) => "cancel",
            Verb::Watch(_) => "watch",
        }
    }
}

/// Waiting for the job, common to all verbs that start one.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Print the job's object path and do not wait for its end
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Show digests and checksums in full, and kernel arguments
    #[arg(long, short = 'l')]
    pub(crate) full: bool,
    /// Exit with 10 or 11 like `check`, from what is known already
    #[arg(long)]
    pub(crate) exit_code: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Take an answer that is not older than this, such as `30s`, `1h`, or seconds
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) max_age: Option<u64>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `download`.
#[derive(Debug, Args)]
pub(crate) struct DownloadArgs {
    /// Fetch exactly this manifest digest of the tracked repository
    #[arg(long)]
    pub(crate) digest: Option<String>,
    /// Accept an image that is older than the booted one
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `upgrade`.
#[derive(Debug, Args)]
pub(crate) struct UpgradeArgs {
    /// Stage exactly this manifest digest of the tracked repository
    #[arg(long)]
    pub(crate) digest: Option<String>,
    /// Accept an image that is older than the booted one
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
    /// Fail rather than replace another update that is staged
    #[arg(long)]
    pub(crate) keep_staged: bool,
    #[command(flatten)]
    pub(crate) finalization: Finalization,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// What becomes of the staged update, common to `upgrade` and `switch`. Without any of them
/// an update takes over the lock of the one that it replaces.
#[derive(Debug, Args)]
pub(crate) struct Finalization {
    /// Reboot when it is staged
    #[arg(long, conflicts_with = "lock")]
    pub(crate) apply: bool,
    /// Let no reboot but that of `osteward apply` switch to it
    #[arg(long, conflicts_with = "unlock")]
    pub(crate) lock: bool,
    /// Let the next reboot switch to it, even if what was staged before was locked
    #[arg(long)]
    pub(crate) unlock: bool,
}

/// Arguments of `lock` and `unlock`.
#[derive(Debug, Args)]
pub(crate) struct LockArgs {
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `switch`.
#[derive(Debug, Args)]
pub(crate) struct SwitchArgs {
    /// Image, such as `registry.example.org/os:tag` or `oci:DIRECTORY[:TAG]`
    pub(crate) image: String,
    /// Stage exactly this manifest digest of the image
    #[arg(long)]
    pub(crate) digest: Option<String>,
    /// Accept an image that is older than the booted one
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
    /// Replace an update that is staged
    #[arg(long)]
    pub(crate) replace_staged: bool,
    #[command(flatten)]
    pub(crate) finalization: Finalization,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Take a queued rollback back
    #[arg(long, conflicts_with_all = ["digest", "discard_staged", "no_quarantine", "apply"])]
    pub(crate) cancel: bool,
    /// Go back to the deployment with this manifest digest
    #[arg(long)]
    pub(crate) digest: Option<String>,
    /// Throw a staged update away
    #[arg(long)]
    pub(crate) discard_staged: bool,
    /// Do not remember the digest that is left behind: it may be staged again
    #[arg(long)]
    pub(crate) no_quarantine: bool,
    /// Reboot at once
    #[arg(long)]
    pub(crate) apply: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Only if the next boot gives this manifest digest
    #[arg(long)]
    pub(crate) digest: Option<String>,
    /// Reboot although somebody inhibits it
    #[arg(long)]
    pub(crate) ignore_inhibitors: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `discard`.
#[derive(Debug, Args)]
pub(crate) struct DiscardArgs {
    /// What to throw away
    #[arg(required = true, value_name = "WHAT")]
    pub(crate) what: Vec<Discardable>,
    /// Change nothing, only tell how much would be freed at least
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// What `discard` can throw away; the words are those of `Host.Discard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Discardable {
    /// The update that waits for the next boot
    Staged,
    /// The deployment to go back to
    Rollback,
    /// Layers that were downloaded and are not deployed
    Cache,
    /// Everything in the repository that nothing refers to
    Unreferenced,
}

/// Arguments of `cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Number or object path of the job
    pub(crate) job: Option<String>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Number or object path of the job
    pub(crate) job: Option<String>,
}

/// `90`, `90s` or `1h 30m` as seconds.
fn seconds(text: &str) -> Result<u64, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    humantime::parse_duration(text)
        .map(|time: Duration| time.as_secs())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn verbs_know_their_own_names() {
        let lines: [&[&str]; 13] = [
            &["status"],
            &["check"],
            &["download"],
            &["upgrade"],
            &["switch", "x"],
            &["rollback"],
            &["apply"],
            &["lock"],
            &["unlock"],
            &["discard", "cache"],
            &["jobs"],
            &["cancel"],
            &["watch"],
        ];
        for line in lines {
            let cli = Cli::try_parse_from(["osteward"].iter().chain(line)).unwrap();
            assert_eq!(cli.verb.name(), line[0]);
        }
        assert_eq!(Cli::command().get_subcommands().count(), lines.len());
    }

    #[test]
    fn wrong_lines_are_usage_errors() {
        let lines: [&[&str]; 7] = [
            &["upgrade", "--nonsense"],
            &["upgrade", "--lock", "--apply"],
            &["switch", "x", "--lock", "--unlock"],
            &["switch"],
            &["discard"],
            &["discard", "everything"],
            &["rollback", "--cancel", "--apply"],
        ];
        for line in lines {
            let error = Cli::try_parse_from(["osteward"].iter().chain(line)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }

    #[test]
    fn every_verb_has_help() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
            for argument in verb.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    verb.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn times() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("1h 30m"), Ok(5400));
        assert!(seconds("soon").is_err());
    }
}
