//! Arguments of the verbs that look for an image, fetch and stage it.

use std::time::Duration;

use clap::Args;

use super::{SoftReboot, Wait};

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
    pub(crate) from: From,
    #[command(flatten)]
    pub(crate) finalization: Finalization,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Arguments of `switch`.
#[derive(Debug, Args)]
pub(crate) struct SwitchArgs {
    /// Image, such as `registry.example.org/os:tag` or `oci-archive:FILE[:TAG]`
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
    pub(crate) from: From,
    #[command(flatten)]
    pub(crate) finalization: Finalization,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Half of the work, common to `upgrade` and `switch`.
#[derive(Debug, Args)]
pub(crate) struct From {
    /// Fetch it and stage nothing
    #[arg(long, conflicts_with_all = ["from_cache", "lock", "unlock", "apply"])]
    pub(crate) download_only: bool,
    /// Stage what was fetched before, without asking the registry
    #[arg(long)]
    pub(crate) from_cache: bool,
}

/// What becomes of the staged update, common to `upgrade` and `switch`. Without any of them
/// an update takes over the lock of the one that it replaces.
#[derive(Debug, Args)]
pub(crate) struct Finalization {
    /// Reboot when it is staged
    #[arg(long, conflicts_with = "lock")]
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
    /// Let no reboot but that of `osteward apply` switch to it
    #[arg(long, conflicts_with = "unlock")]
    pub(crate) lock: bool,
    /// Let the next reboot switch to it, even if what was staged before was locked
    #[arg(long)]
    pub(crate) unlock: bool,
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
    use super::*;

    #[test]
    fn times() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("1h 30m"), Ok(5400));
        assert!(seconds("soon").is_err());
    }
}
