//! What can go wrong while layers become a commit, by what the caller can do about it.
//!
//! Invariant: whichever error leaves this area, no ref in the repository points at
//! anything that was not checked against its digests.

use std::io;

use ostree::{gio, glib};

use crate::image::reference::Digest;
use crate::{image, packages};

/// Why an import did not finish.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layer breaks a rule of the format; fetching it again gives the same result.
    #[error("layer {digest} cannot be imported: {reason}")]
    Layer {
        /// The compressed blob.
        digest: Digest,
        /// Which entry broke which rule.
        reason: String,
    },
    /// The image as a whole breaks a rule of the format.
    #[error("the image cannot be imported: {0}")]
    Image(String),
    /// The bytes that arrived are not the blob that the manifest names.
    #[error("layer {digest} was damaged on the way: {found}")]
    DigestMismatch {
        /// The blob that was asked for.
        digest: Digest,
        /// What came instead: another digest or another length.
        found: String,
    },
    /// The blob is the one of the manifest, but its content is not the one of the configuration.
    #[error("layer {digest} unpacks to {found}, but the image promises {expected}")]
    DiffIdMismatch {
        /// The compressed blob.
        digest: Digest,
        /// `diff_ids` entry of the image configuration.
        expected: Digest,
        /// SHA-256 of the tar stream, 64 hexadecimal digits.
        found: String,
    },
    /// The file system of the repository is full, or would fall below the reserve of the repository.
    #[error(
        "not enough space in {where_}: {need} bytes needed, {have} available; free some, with \
         `osteward discard` for one, and try again"
    )]
    NoSpace {
        /// Bytes that are still to be written, at least.
        need: u64,
        /// Bytes that could be written.
        have: u64,
        /// Path of the repository.
        where_: String,
    },
    /// A blob could not be fetched.
    #[error("a layer could not be fetched: {0}")]
    Fetch(#[source] image::Error),
    /// A package database cannot be used.
    #[error(transparent)]
    Packages(#[from] packages::Error),
    /// Another program removed what the import relies on; doing it again fetches it again.
    #[error("{0}, try again")]
    Raced(String),
    /// The caller asked to stop, or went away.
    #[error("the import was cancelled")]
    Cancelled,
    /// libostree refused.
    #[error("{context}: {text}")]
    Ostree {
        /// What was being done.
        context: &'static str,
        /// libostree's words.
        text: String,
    },
    /// A file of our own could not be read or written.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// The system's words.
        source: io::Error,
    },
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        match error {
            image::Error::Cancelled => Self::Cancelled,
            other => Self::Fetch(other),
        }
    }
}

/// Turns results of libostree and of the system into [`enum@Error`], with what was being done.
pub(crate) trait During<T> {
    /// `context` completes the sentence "… failed while".
    fn during(self, context: &'static str) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, glib::Error> {
    fn during(self, context: &'static str) -> Result<T, Error> {
        self.map_err(|error| {
            if error.matches(gio::IOErrorEnum::Cancelled) {
                Error::Cancelled
            } else if is_out_of_space(&error) {
                // The caller that knows the repository fills the numbers in.
                no_space()
            } else {
                Error::Ostree {
                    context,
                    text: error.message().to_owned(),
                }
            }
        })
    }
}

impl<T> During<T> for Result<T, io::Error> {
    fn during(self, context: &'static str) -> Result<T, Error> {
        self.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => no_space(),
            _ => Error::Io { context, source },
        })
    }
}

fn no_space() -> Error {
    Error::NoSpace {
        need: 0,
        have: 0,
        where_: String::new(),
    }
}

/// libostree reports its reserve (`core.min-free-space-*`) only in words.
fn is_out_of_space(error: &glib::Error) -> bool {
    error.matches(gio::IOErrorEnum::NoSpace) || error.message().contains("min-free-space-")
}

impl Error {
    /// Completes a [`Error::NoSpace`] with what is known about the repository at `path`.
    pub(crate) fn with_space(self, repo: &ostree::Repo, still_needed: u64) -> Self {
        match self {
            Self::NoSpace { need, .. } => {
                let have = available(repo);
                Self::NoSpace {
                    // What was written in vain is gone, and was not enough.
                    need: need.max(still_needed).max(have.saturating_add(1)),
                    have,
                    where_: repository_path(repo),
                }
            }
            other => other,
        }
    }
}

/// Where the repository is, for messages.
pub(crate) fn repository_path(repo: &ostree::Repo) -> String {
    use ostree::prelude::FileExt;
    repo.path()
        .path()
        .map(|path| path.display().to_string())
        .unwrap_or_default()
}

/// Bytes that can be written before libostree's reserve is touched; 0 when unknown.
pub(crate) fn available(repo: &ostree::Repo) -> u64 {
    use ostree::prelude::FileExt;
    let free = repo
        .path()
        .query_filesystem_info("filesystem::free", gio::Cancellable::NONE)
        .map_or(0, |info| info.attribute_uint64("filesystem::free"));
    free.saturating_sub(repo.min_free_space_bytes().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_running_out_of_space_are_recognised() {
        let reserve = glib::Error::new(
            gio::IOErrorEnum::Failed,
            "min-free-space-percent '3%' would be exceeded, at least 1 MB requested",
        );
        let full = glib::Error::new(gio::IOErrorEnum::NoSpace, "write: No space left on device");
        for error in [reserve, full] {
            let mapped = Err::<(), _>(error).during("writing");
            assert!(matches!(mapped, Err(Error::NoSpace { .. })), "{mapped:?}");
        }
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(matches!(
            Err::<(), _>(full).during("x"),
            Err(Error::NoSpace { .. })
        ));
    }

    #[test]
    fn what_did_not_fit_needs_more_than_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(directory.path());
        repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE)
            .unwrap();
        let Error::NoSpace { need, have, .. } = no_space().with_space(&repo, 512) else {
            panic!("another error")
        };
        assert!(have > 0 && need > have, "{need} of {have}");
    }

    #[test]
    fn cancellation_keeps_its_own_name() {
        let stopped = glib::Error::new(gio::IOErrorEnum::Cancelled, "Operation was cancelled");
        assert!(matches!(
            Err::<(), _>(stopped).during("x"),
            Err(Error::Cancelled)
        ));
        assert!(matches!(
            Error::from(image::Error::Cancelled),
            Error::Cancelled
        ));
    }
}
