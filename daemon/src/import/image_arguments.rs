//! The kernel arguments that an image of a host brings along (on-disk notes 1.9).
//!
//! `/usr/lib/bootc/kargs.d` has TOML files, read in the order of their names. Invariant: what
//! other tools on the host would refuse is refused here, and before anything is staged.

use std::path::Path;

use ostree::gio;
use serde::Deserialize;

use super::commit_files::{CommitFiles, LARGEST};
use super::error::Error;
use super::transaction::open;
use crate::kargs;

const DIRECTORY: &str = "usr/lib/bootc/kargs.d";
/// More files than any image has; each of them is read.
const MOST_FILES: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Fragment {
    kargs: Vec<String>,
    /// In Rust's names, such as `x86_64` and `aarch64`; without it all.
    match_architectures: Option<Vec<String>>,
}

/// The arguments that `commit` brings along for this machine; each once, in order. Blocks.
///
/// # Errors
/// [`Error::Image`] for a file that makes no sense; [`Error::Ostree`] when the repository cannot
/// be read.
pub fn image_arguments(repo_path: &Path, commit: &str) -> Result<Vec<String>, Error> {
    let cancellable = gio::Cancellable::new();
    let repo = open(repo_path, &cancellable)?;
    let files = CommitFiles::as_host(&repo, commit, &cancellable)?;
    let mut names = files.names(DIRECTORY)?.unwrap_or_default();
    names.retain(|(name, _)| name.ends_with(".toml"));
    if names.len() > MOST_FILES {
        let count = names.len();
        return Err(Error::Image(format!("/{DIRECTORY} has {count} files")));
    }
    let mut all = Vec::new();
    for (name, _) in names {
        let refuse = |reason: String| Error::Image(format!("/{DIRECTORY}/{name} {reason}"));
        let text = files.text(&format!("{DIRECTORY}/{name}"))?;
        let text = text.ok_or_else(|| refuse("is no file and leads to none".to_owned()))?;
        for argument in arguments_of(&text, std::env::consts::ARCH).map_err(refuse)? {
            if !all.contains(&argument) {
                all.push(argument);
            }
        }
    }
    Ok(all)
}

/// What one file brings to machines of that architecture.
fn arguments_of(text: &str, architecture: &str) -> Result<Vec<String>, String> {
    if text.len() > LARGEST {
        return Err(format!("has more than {LARGEST} bytes"));
    }
    let fragment: Fragment =
        toml::from_str(text).map_err(|error| format!("is not understood: {}", error.message()))?;
    let matches = fragment
        .match_architectures
        .is_none_or(|architectures| architectures.iter().any(|one| one == architecture));
    if !matches {
        return Ok(Vec::new());
    }
    // One string may have several.
    let arguments: Vec<String> = fragment
        .kargs
        .iter()
        .flat_map(|line| kargs::split(line))
        .collect();
    for argument in &arguments {
        kargs::check(argument).map_err(|refused| format!("has a bad argument: {refused}"))?;
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_decide() {
        let all = "kargs = [\"a\", \"b=c d\"]\n";
        assert_eq!(arguments_of(all, "x86_64").unwrap(), ["a", "b=c", "d"]);
        let some = "kargs = [\"a\"]\nmatch-architectures = [\"aarch64\", \"x86_64\"]";
        assert_eq!(arguments_of(some, "x86_64").unwrap(), ["a"]);
        assert_eq!(arguments_of(some, "riscv64").unwrap(), [""; 0]);
        let none = "kargs = [\"a\"]\nmatch-architectures = []";
        assert_eq!(arguments_of(none, "x86_64").unwrap(), [""; 0]);
        assert_eq!(arguments_of("kargs = []", "x86_64").unwrap(), [""; 0]);
    }

    #[test]
    fn what_other_tools_refuse_is_refused() {
        for (text, words) in [
            ("", "missing field"),
            ("kargs = \"a\"", "not understood"),
            ("kargs = [1]", "not understood"),
            ("kargs = [\"a\"]\nmatch_architectures = []", "unknown field"),
            ("kargs = [\"a\"", "not understood"),
            ("kargs = [\"ostree=/x\"]", "libostree"),
            ("kargs = [\"a\\u0000b\"]", "no boot entry"),
            ("kargs = ['a=\"b']", "not closed"),
        ] {
            let reason = arguments_of(text, "x86_64").unwrap_err();
            assert!(reason.contains(words), "{text:?}: {reason}");
        }
        let long = format!("kargs = []\n#{}", "x".repeat(LARGEST));
        assert!(arguments_of(&long, "x86_64").is_err());
    }
}
