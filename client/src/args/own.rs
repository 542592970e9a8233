//! Arguments of the verbs that work without the daemon.

use clap::Args;
use clap_complete::Shell;

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell to write the script for
    pub(crate) shell: Shell,
}
