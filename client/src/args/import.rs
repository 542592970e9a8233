//! Arguments of `import`.

use std::path::PathBuf;

use clap::Args;

use super::{Finalization, Wait};

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The tar of an OCI image layout, also compressed with gzip or zstd, or the directory of one
    #[arg(value_name = "FILE")]
    pub(crate) path: PathBuf,
    /// Take the image of this name in FILE; needed only when there are several
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// Track this image from then on, instead of what is tracked now
    #[arg(long, value_name = "IMAGE")]
    pub(crate) track: Option<String>,
    /// Stage exactly this manifest digest
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
