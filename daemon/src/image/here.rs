//! What sources on this host need of it: room for what must be unpacked, and its own tools.
//!
//! Invariant: nothing is started from here. The daemon's sandbox is not made for other programs, so
//! whoever makes a [`Here`] says how one is run outside of it.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;

/// Where tools of the host are; nothing else is ever run.
pub const SKOPEO: &str = "/usr/bin/skopeo";
/// As [`SKOPEO`].
pub const PODMAN: &str = "/usr/bin/podman";
/// As [`SKOPEO`].
pub const OSTREE: &str = "/usr/bin/ostree";

/// One run of a program.
#[derive(Debug)]
pub struct Invocation {
    /// What it is for, a few words for people.
    pub purpose: String,
    /// Absolute path of the program.
    pub program: &'static str,
    /// Its arguments, without the program itself.
    pub arguments: Vec<String>,
    /// Where its standard output goes; `None` gives it back.
    pub output: Option<File>,
}

/// Why a run came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// The program failed; these were its last words.
    #[error("{0}")]
    Failed(String),
    /// It could not be started.
    #[error("it could not be started: {0}")]
    NotStarted(String),
}

/// Runs a program to its end, and gives its output back if it went nowhere. Dropping the future stops the
/// program.
pub type RunTool =
    Arc<dyn Fn(Invocation) -> BoxFuture<'static, Result<Vec<u8>, ToolError>> + Send + Sync>;

/// What sources on this host work with.
#[derive(Clone)]
pub struct Here {
    /// A directory for nameless files of any size.
    pub scratch: PathBuf,
    /// How tools of the host are run; `None` where they cannot be.
    pub run: Option<RunTool>,
}

impl Default for Here {
    fn default() -> Self {
        Here {
            scratch: PathBuf::from("/var/tmp"),
            run: None,
        }
    }
}

impl fmt::Debug for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Here")
            .field("scratch", &self.scratch)
            .field("run", &self.run.is_some())
            .finish()
    }
}

/// What the tools that are installed make possible, as `Manager.Features` calls it.
pub fn features() -> impl Iterator<Item = &'static str> {
    let podman = is_installed(PODMAN);
    let words = [
        ("containers-storage", podman || is_installed(SKOPEO)),
        ("bound-images", podman),
        ("usr-overlay", is_installed(OSTREE)),
    ];
    words
        .into_iter()
        .filter_map(|(word, present)| present.then_some(word))
}

/// Whether the program is there and may be executed.
pub fn is_installed(program: &str) -> bool {
    let metadata = Path::new(program).metadata();
    metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_executed_is_installed() {
        assert!(is_installed("/bin/sh"));
        assert!(!is_installed("/etc/passwd"));
        assert!(!is_installed("/usr"));
        assert!(!is_installed("/nonexistent"));
    }
}
