//! The command line.
//!
//! Owns verbs, options and the help that teaches them. Invariant: an option exists here
//! only if the daemon's option dictionaries (`osteward_dbus::options`) or this client's
//! own behaviour know it; nothing is parsed here that the daemon validates itself.

use clap::{Args, Parser, Subcommand, ValueEnum};

mod daemon;
mod deployment;
mod import;
mod own;
mod pull;
mod system;

pub(crate) use daemon::{CancelArgs, HistoryArgs, InhibitArgs, JobArgs, JobsArgs, WatchArgs};
pub(crate) use deployment::{
    ApplyArgs, DeploymentArgs, DiscardArgs, Discardable, LockArgs, RollbackArgs, SoftReboot,
};
pub(crate) use import::ImportArgs;
pub(crate) use own::CompletionArgs;
pub(crate) use pull::{CheckArgs, DownloadArgs, Finalization, SwitchArgs, UpgradeArgs};
pub(crate) use system::{DiffArgs, DiffEtcArgs, DiffOf, KargsArgs, SimulateArgs, UsrOverlayArgs};

const EXIT_CODES: &str = "\
Exit status:
    0  done, or nothing to do
    1  it failed, or was cancelled; with --json the reason is in `error`
    1  `doctor`: something fails
    2  the command line was wrong
   10  `check` and `status --exit-code`: an update is available, not staged yet
   11  `check` and `status --exit-code`: an update is staged and waits for a reboot
   12  `simulate`: the update would be refused, or fail
  130  Ctrl-C: waiting ended, the job goes on
`inhibit` ends with what its command ends with.

Output:
  Results go to standard output, progress, notes and errors to standard error. With
  --json everything goes to standard output: one document of a verb that shows something
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
    /// Reads the manifest, tables of contents of layers that can come by parts, the list of deltas
    /// beside the image, and at most a small layer for `osteward diff`. Exits with 10 when there is
    /// an update, with 11 when the newest image is staged already, else with 0.
    #[command(after_help = "\
Examples:
  osteward check
  osteward check --max-age 1h; [ $? -eq 10 ] && echo 'time to upgrade'")]
    Check(CheckArgs),
    /// Fetch the newest image without staging it
    ///
    /// A later `osteward upgrade` then needs no network for the layers.
    #[command(after_help = "\
Examples:
  osteward download --background
  osteward upgrade --from-cache            later, and without a network")]
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
  osteward upgrade --digest sha256:0123…   exactly this image, whatever the tag says
  osteward download; osteward upgrade --from-cache   fetch now, stage later without network")]
    Upgrade(UpgradeArgs),
    /// Stage another image, and track it from then on
    ///
    /// The image is in a registry, in an OCI layout (oci:DIRECTORY), in the tar of one
    /// (oci-archive:FILE), or in the container storage of the host (containers-storage:NAME, with
    /// skopeo or podman). Layouts can be wherever you can read them, your home directory included.
    #[command(after_help = "\
Examples:
  osteward switch registry.example.org/os:next
  osteward switch oci-archive:os.tar
  osteward switch oci:/run/media/usb/layout:next
  osteward switch containers-storage:localhost/os:test   what podman built")]
    Switch(SwitchArgs),
    /// Stage an image from a file, without a network
    ///
    /// What is tracked stays as it is, so that a host without a network can be updated from a
    /// medium, and goes on with its registry when it has one. To track the file instead, use
    /// `osteward switch oci-archive:FILE`.
    #[command(after_help = "\
Examples:
  skopeo copy docker://registry.example.org/os:stable oci-archive:os.tar   elsewhere
  osteward import /run/media/usb/os.tar
  osteward import os.tar.zst --track registry.example.org/os:stable")]
    Import(ImportArgs),
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
    #[command(after_help = "\
Examples:
  osteward apply
  osteward apply --reason 'maintenance window'   for the journal, and for whoever is asked")]
    Apply(ApplyArgs),
    /// Let no reboot switch to the staged update
    ///
    /// The host goes on with what runs now whenever it is rebooted, until `osteward apply` or
    /// `osteward unlock`. A reboot takes the update off the list; `osteward upgrade` stages it
    /// again without downloading it again.
    #[command(after_help = "\
Examples:
  osteward lock                            not today: reboots keep what runs now
  osteward unlock                          from now on any reboot switches")]
    Lock(LockArgs),
    /// Let the next reboot switch to the staged update
    ///
    /// Takes back what `osteward lock` or `osteward upgrade --lock` did. Reboots nothing.
    #[command(after_help = "\
Examples:
  osteward upgrade --lock                  on Monday: everything but the switch
  osteward unlock                          on Friday: whoever reboots next gets it")]
    Unlock(LockArgs),
    /// Keep a deployment: no update and no clean-up removes it
    ///
    /// Otherwise a host keeps what it runs and what it ran before.
    #[command(after_help = "\
Examples:
  osteward pin booted                      a version to come back to at any time
  osteward rollback --digest sha256:0123…  and how to come back to it")]
    Pin(DeploymentArgs),
    /// Keep a deployment no longer
    ///
    /// It goes with the next update, or with `osteward remove`.
    #[command(after_help = "\
Examples:
  osteward unpin 41.20261120               by version
  osteward unpin 2                         by place in `osteward status`, from 0")]
    Unpin(DeploymentArgs),
    /// Remove a deployment that is neither running nor pinned
    ///
    /// Frees what only that deployment needed, in the repository and in /boot. What runs now
    /// and what the next boot gives cannot be removed.
    #[command(after_help = "\
Examples:
  osteward remove rollback
  osteward remove 41.20261120")]
    Remove(DeploymentArgs),
    /// Show or change the kernel arguments of the next boot
    ///
    /// Without options it prints them. With some it stages what boots next once more: the
    /// running system keeps its arguments, and `osteward rollback` leads back to them. Updates
    /// keep what was changed here. Deletes first, then replaces, then appends; every option can
    /// be given several times.
    #[command(after_help = "\
Examples:
  osteward kargs
  osteward kargs --append-if-missing mitigations=auto --delete-if-present quiet
  osteward kargs --replace console=tty0=ttyS0 --delete splash
  osteward kargs --append 'dyndbg=\"file drivers/usb/* +p\"'")]
    Kargs(KargsArgs),
    /// Tell what an upgrade would lead to, and do nothing
    ///
    /// Looks at what is staged, else at the update that is known, else asks the registry: files
    /// in /etc that were changed here and in the image, kernel arguments, room, and how the host
    /// would have to reboot. What can only be seen in the image itself is told once it was
    /// downloaded. Exits with 12 when the upgrade would be refused or fail.
    #[command(after_help = "\
Examples:
  osteward download; osteward simulate
  osteward simulate --json | jq -r 'select(.event == \"finished\") | .result.\"etc-conflicts\"[] | @tsv'")]
    Simulate(SimulateArgs),
    /// Make /usr of the running system changeable until the next boot
    ///
    /// Puts an overlay over it, to try something out or to debug. The next boot forgets what was
    /// changed; an update knows nothing of it.
    #[command(after_help = "\
Examples:
  osteward usr-overlay && cp my-build/daemon /usr/libexec/")]
    UsrOverlay(UsrOverlayArgs),
    /// Show which packages an update changes, or what differs between two deployments
    ///
    /// The packages are read from the databases of dpkg, rpm and apk in both images: after a
    /// check if the layer with the database is here or small, else after the download. On a
    /// terminal it is a table, in a pipe a line each: change, name, architecture, old and new
    /// version, with a hyphen for what is not there. Needs no privileges. Exits with 0 also
    /// when there is no update, or not known yet what is in it; `level` of --json tells.
    #[command(after_help = "\
Examples:
  osteward check; osteward diff
  osteward diff | awk '$1 == \"added\" { print $2 }'
  osteward diff rollback booted            what came with the last update
  osteward diff --json | jq -r '.kernel.new'
  osteward diff etc                        what was changed in /etc on this host")]
    Diff(DiffArgs),
    /// Throw things away: staged, rollback, cache, unreferenced
    ///
    /// Nothing of it is running or pinned: those stay, whatever is asked for. Tells how much
    /// space that gives back.
    #[command(after_help = "\
Examples:
  osteward discard staged                  forget the staged update
  osteward discard cache unreferenced --dry-run")]
    Discard(DiscardArgs),
    /// List the jobs that wait, run or ended a while ago
    ///
    /// A job stays listed for at least five minutes after its end; `osteward history` shows
    /// what was done before that.
    #[command(after_help = "\
Examples:
  osteward jobs --active
  osteward jobs --json | jq -r '.[] | .kind + \" \" + .state'")]
    Jobs(JobsArgs),
    /// Cancel a job
    ///
    /// Without JOB the one that runs. Your own jobs need no authorisation. What was downloaded
    /// is kept; a job that is past the point of no return goes on.
    #[command(after_help = "\
Examples:
  osteward cancel
  osteward cancel 7")]
    Cancel(CancelArgs),
    /// Follow a job that somebody started
    ///
    /// Without JOB the one that runs, or else the next one. Ctrl-C ends the watching, never
    /// the job. Exits with 0 when the job succeeded.
    #[command(after_help = "\
Examples:
  osteward watch
  osteward watch --adopt 7                 and nothing interrupts it any more
  osteward watch --events | jq -c 'select(.event == \"layer-done\")'")]
    Watch(WatchArgs),
    /// Stop a download until it is resumed
    ///
    /// Without JOB the one that runs. Other jobs can run meanwhile; what is complete is kept.
    #[command(after_help = "\
Examples:
  osteward pause
  osteward pause 7; osteward resume 7")]
    Pause(JobArgs),
    /// Let a paused job go on when it is its turn
    ///
    /// Without JOB the one that is paused.
    #[command(after_help = "\
Examples:
  osteward resume
  osteward resume 7")]
    Resume(JobArgs),
    /// Show what a job has said
    ///
    /// Without JOB the last one. `journalctl -u ostewardd` has what older ones said.
    #[command(after_help = "\
Examples:
  osteward log
  osteward log 7 --json")]
    Log(JobArgs),
    /// Show what was done on this host, the newest first
    ///
    /// One line for each operation that changed the host or tried to: when, by whom, what the
    /// next boot gave before and afterwards. It survives reboots and rollbacks.
    #[command(after_help = "\
Examples:
  osteward history
  osteward history -n 0 --json | jq -r '.[] | select(.changed) | .\"to-digest\"'")]
    History(HistoryArgs),
    /// Run a command, and let no job reboot the host meanwhile
    ///
    /// Jobs that would reboot fail, unless they ignore inhibitors. Others than osteward are
    /// kept from rebooting by systemd-inhibit(1). Exits with what the command exits with.
    #[command(after_help = "\
Examples:
  osteward inhibit --why 'nightly backup' backup --all
  osteward inhibit --list")]
    Inhibit(InhibitArgs),
    /// Make the daemon read its configuration again
    ///
    /// `ostewardd --check-config` tells before whether it can be used. Jobs that run keep what
    /// they began with.
    #[command(after_help = "\
Examples:
  osteward reload")]
    Reload,
    /// Look for what on this host would keep updates from working
    ///
    /// Looks at how the host was booted, at free space, mounts, the clock, configuration files,
    /// other updaters, and at what the daemon met last; changes nothing and needs no privileges.
    /// Root sees a little more. Whatever is not well comes with what to do next. Exits with 1
    /// when something fails; warnings are no failures.
    #[command(after_help = "\
Examples:
  osteward doctor
  osteward doctor --quiet                  only what is not well
  osteward doctor --json | jq -r '.findings[] | select(.level == \"fail\") | .next'")]
    Doctor,
    /// Print a script that makes a shell complete verbs and options
    ///
    /// Packages of osteward bring them for bash, zsh and fish. This is for other shells, and
    /// for osteward where it was not installed by a package.
    #[command(after_help = "\
Examples:
  osteward completion bash > ~/.local/share/bash-completion/completions/osteward
  osteward completion fish > ~/.config/fish/completions/osteward.fish")]
    Completion(CompletionArgs),
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
            Verb::Import(_) => "import",
            Verb::Rollback(_) => "rollback",
            Verb::Apply(_) => "apply",
            Verb::Lock(_) => "lock",
            Verb::Unlock(_) => "unlock",
            Verb::Pin(_) => "pin",
            Verb::Unpin(_) => "unpin",
            Verb::Remove(_) => "remove",
            Verb::Kargs(_) => "kargs",
            Verb::Simulate(_) => "simulate",
            Verb::UsrOverlay(_) => "usr-overlay",
            Verb::Diff(_) => "diff",
            Verb::Discard(_) => "discard",
            Verb::Jobs(_) => "jobs",
            Verb::Cancel(_) => "cancel",
            Verb::Watch(_) => "watch",
            Verb::Pause(_) => "pause",
            Verb::Resume(_) => "resume",
            Verb::Log(_) => "log",
            Verb::History(_) => "history",
            Verb::Inhibit(_) => "inhibit",
            Verb::Reload => "reload",
            Verb::Doctor => "doctor",
            Verb::Completion(_) => "completion",
        }
    }
}

/// How the job runs and whether to wait for it, common to all verbs that start one.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Print the job's object path and do not wait for its end
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Fail rather than wait while another job changes the host
    #[arg(long)]
    pub(crate) no_queue: bool,
    /// Take less of the host, and give way to jobs that somebody waits for
    #[arg(long)]
    pub(crate) background: bool,
    /// Place in the queue, -100 to 100: of the jobs that wait the higher one goes first
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
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
        let lines: [&[&str]; 29] = [
            &["status"],
            &["check"],
            &["download"],
            &["upgrade"],
            &["switch", "x"],
            &["import", "x"],
            &["rollback"],
            &["apply"],
            &["lock"],
            &["unlock"],
            &["pin", "booted"],
            &["unpin", "booted"],
            &["remove", "rollback"],
            &["discard", "cache"],
            &["kargs"],
            &["simulate"],
            &["usr-overlay"],
            &["diff", "etc"],
            &["jobs"],
            &["cancel"],
            &["watch"],
            &["pause"],
            &["resume"],
            &["log"],
            &["history"],
            &["inhibit", "true"],
            &["reload"],
            &["doctor"],
            &["completion", "bash"],
        ];
        for line in lines {
            let cli = Cli::try_parse_from(["osteward"].iter().chain(line)).unwrap();
            assert_eq!(cli.verb.name(), line[0]);
        }
        assert_eq!(Cli::command().get_subcommands().count(), lines.len());
    }

    #[test]
    fn wrong_lines_are_usage_errors() {
        let lines: [&[&str]; 17] = [
            &["upgrade", "--nonsense"],
            &["inhibit"],
            &["inhibit", "--list", "true"],
            &["inhibit", "--what", "sleep", "true"],
            &["upgrade", "--lock", "--apply"],
            &["upgrade", "--download-only", "--from-cache"],
            &["pin"],
            &["switch", "x", "--lock", "--unlock"],
            &["kargs", "quiet"],
            &["diff", "usr"],
            &["diff", "booted", "rollback", "0"],
            &["apply", "--soft-reboot=maybe"],
            &["upgrade", "--soft-reboot"],
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
}
