//! Arguments of the verbs that are about the running system: its kernel arguments, its `/usr`,
//! its `/etc`, and what an update would make of them.

use clap::{Args, Subcommand};

use super::Wait;

/// Arguments of `kargs`.
#[derive(Debug, Args)]
pub(crate) struct KargsArgs {
    /// Add an argument at the end, whether it is there already or not
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) append: Vec<String>,
    /// Add an argument at the end unless it is there already
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) append_if_missing: Vec<String>,
    /// Remove an argument; KEY alone will do if it has one value
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) delete: Vec<String>,
    /// Remove an argument if it is there
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) delete_if_present: Vec<String>,
    /// Give KEY another value; KEY=OLD=NEW says which one of several
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) replace: Vec<String>,
    /// Only if the next boot gives this manifest digest
    #[arg(long)]
    pub(crate) digest: Option<String>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

impl KargsArgs {
    /// Whether anything is to be changed.
    pub(crate) fn changes(&self) -> bool {
        let all = [
            &self.append,
            &self.append_if_missing,
            &self.delete,
            &self.delete_if_present,
            &self.replace,
        ];
        all.iter().any(|arguments| !arguments.is_empty())
    }
}

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// Look at exactly this manifest digest
    #[arg(long)]
    pub(crate) digest: Option<String>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `usr-overlay`.
#[derive(Debug, Args)]
pub(crate) struct UsrOverlayArgs {
    /// Mount it read-only; a program can make it writable for itself with
    /// `unshare --mount` and `mount -o remount,rw /usr`
    #[arg(long)]
    pub(crate) read_only: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DiffArgs {
    /// A deployment instead of the running one: `booted`, `staged`, `rollback`, a number in the
    /// order of `status`, a version, or the beginning of a digest or commit
    #[arg(requires = "new")]
    pub(crate) old: Option<String>,
    /// A deployment to compare that with, instead of the update
    pub(crate) new: Option<String>,
    #[command(subcommand)]
    pub(crate) of: Option<DiffOf>,
}

/// What `diff` compares besides packages.
#[derive(Debug, Subcommand)]
pub(crate) enum DiffOf {
    /// Show what was changed in /etc since the image
    ///
    /// These changes are what an update carries over to the next deployment. Kind, permissions,
    /// owner and content count, times do not. Needs no privileges, but only root sees what is in
    /// directories that not everyone may list.
    #[command(after_help = "\
Examples:
  osteward diff etc
  osteward diff etc rollback               what was changed there
  osteward diff etc --json | jq -r '.[] | select(.change == \"modified\") | .path'")]
    Etc(DiffEtcArgs),
}

/// Arguments of `diff etc`.
#[derive(Debug, Args)]
pub(crate) struct DiffEtcArgs {
    /// Look at this deployment: `booted`, `rollback`, a number in the order of `status`, a
    /// version, or the beginning of a digest or commit
    #[arg(default_value = "booted")]
    pub(crate) deployment: String,
}
