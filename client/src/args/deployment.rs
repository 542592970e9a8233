//! Arguments of the verbs that are about what is on the host already.

use clap::{Args, ValueEnum};

use super::Wait;

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
    /// With --apply: leave the kernel alone, see `osteward apply`
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "required",
        requires = "apply"
    )]
    pub(crate) soft_reboot: Option<SoftReboot>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// When to leave the kernel alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SoftReboot {
    /// Where that can be; else reboot with the kernel
    Auto,
    /// Or not at all
    Required,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Only if the next boot gives this manifest digest
    #[arg(long)]
    pub(crate) digest: Option<String>,
    /// Restart everything but the kernel, which takes seconds; with `auto` only where that can
    /// be: the kernel and its arguments stay the same, and libostree and systemd know how
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "required"
    )]
    pub(crate) soft_reboot: Option<SoftReboot>,
    /// Reboot although somebody inhibits it
    #[arg(long)]
    pub(crate) ignore_inhibitors: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `lock` and `unlock`.
#[derive(Debug, Args)]
pub(crate) struct LockArgs {
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `pin`, `unpin` and `remove`.
#[derive(Debug, Args)]
pub(crate) struct DeploymentArgs {
    /// `booted`, `rollback`, a number in the order of `status`, a version, or the beginning of
    /// a digest or commit
    pub(crate) deployment: String,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `discard`.
#[derive(Debug, Args)]
pub(crate) struct DiscardArgs {
    /// What to throw away
    #[arg(required = true, value_name = "WHAT")]
    pub(crate) what: Vec<Discardable>,
    /// Change nothing, only tell what would go and how much that would free
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
