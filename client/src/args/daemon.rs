//! Arguments of the verbs that start no job: they are about the daemon and its jobs.

use clap::{Args, ValueEnum};

/// Arguments of `jobs`.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Leave out those that have ended
    #[arg(long)]
    pub(crate) active: bool,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Number or object path of the job
    pub(crate) job: Option<String>,
    /// Take the job out of the background first: somebody waits for it now
    #[arg(long)]
    pub(crate) adopt: bool,
    /// Print the job's events as they come, one JSON object a line, also of single layers
    #[arg(long)]
    pub(crate) events: bool,
}

/// Arguments of `cancel`.
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Number or object path of the job
    pub(crate) job: Option<String>,
    /// Print the job's object path and do not wait for its end
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// Arguments of the verbs that are about one job.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// Number or object path of the job
    pub(crate) job: Option<String>,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// How many operations to show; 0: all that are known
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 20)]
    pub(crate) lines: u32,
}

/// Arguments of `inhibit`.
#[derive(Debug, Args)]
pub(crate) struct InhibitArgs {
    /// Show who inhibits what, and run nothing
    #[arg(long, conflicts_with_all = ["what", "who", "why", "command"])]
    pub(crate) list: bool,
    /// What to keep from happening
    #[arg(long, default_value = "apply")]
    pub(crate) what: Inhibited,
    /// Who inhibits [default: the command's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) who: Option<String>,
    /// Why, for whoever wants to reboot
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) why: String,
    /// The command and its arguments
    #[arg(
        required_unless_present = "list",
        trailing_var_arg = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<String>,
}

/// What `inhibit` can keep from happening; the words are those of `Manager.Inhibit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Inhibited {
    /// The exit of the idle daemon
    Idle,
    /// That, and reboots by jobs of osteward
    Apply,
}

impl Inhibited {
    /// The word of `Manager.Inhibit`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Inhibited::Idle => "idle",
            Inhibited::Apply => "apply",
        }
    }
}
