//! What can go wrong with an image before it is here, in the words that reach people.
//!
//! Invariants: nothing in here is a credential; every variant tells one thing that a caller does
//! differently.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::layout::LayoutError;
use super::reference::{Digest, ReferenceError};

/// Why an image, or a part of it, could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry wants other credentials than it was given.
    #[error("no access to {host}: {reason}")]
    Auth {
        /// The registry.
        host: String,
        /// What it said, and where credentials were looked for.
        reason: String,
    },
    /// No connection, or one that broke or stalled. Worth another try.
    #[error("{host} cannot be reached: {reason}; check the network and try again")]
    Unreachable {
        /// The registry.
        host: String,
        /// What went wrong on the way.
        reason: String,
    },
    /// A registry that is overloaded or broken for the moment. Worth another try.
    #[error("{host} cannot serve this now: {reason}; try again later")]
    Unavailable {
        /// The registry.
        host: String,
        /// What it answered.
        reason: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The registry cannot prove that it is the one that was asked for.
    #[error("{host} is not trusted: {reason}")]
    Untrusted {
        /// The registry.
        host: String,
        /// What is wrong with its certificate, and what to do about it.
        reason: String,
    },
    /// The environment names a proxy that makes no sense, or that lets nothing through.
    #[error("the environment variable {variable} of the service {problem}")]
    Proxy {
        /// Its name; the value can hold a password.
        variable: &'static str,
        /// What is wrong with it, and what to do about it.
        problem: &'static str,
    },
    /// There is no image, or no blob, of this name.
    #[error("{what} does not exist; check the name")]
    NotFound {
        /// Its name.
        what: String,
    },
    /// The image of this digest was there once, or never.
    #[error(
        "{image} has no manifest {digest} (any more); ask for another digest, or for none at all"
    )]
    DigestGone {
        /// Where it was looked for.
        image: String,
        /// What was looked for.
        digest: Digest,
    },
    /// Other bytes than those asked for.
    #[error("the {what} has the digest {actual} instead of {expected}")]
    DigestMismatch {
        /// Manifest or configuration.
        what: &'static str,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The registry answered with something that makes no sense.
    #[error("{host} does not behave like a registry: {reason}")]
    Protocol {
        /// The registry.
        host: String,
        /// What it answered.
        reason: String,
    },
    /// The source gives blobs as a whole only.
    #[error("parts of a layer are not to be had there; fetch all of it")]
    NoRanges,
    /// What was found is not an image that can be imported here.
    #[error(transparent)]
    Invalid(LayoutError),
    /// The name of the image makes no sense.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A file on this host cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something that would be needed and does not exist here.
    #[error("{0}")]
    NotSupported(String),
    /// Not enough room to unpack something.
    #[error(
        "{where_} has only {have} bytes left, too few to unpack {what}; free some space, or unpack it \
         elsewhere first"
    )]
    NoSpace {
        /// What.
        what: String,
        /// Bytes that are free.
        have: u64,
        /// Where it would be unpacked.
        where_: String,
    },
    /// A tool of the host failed.
    #[error("{program} failed: {reason}")]
    Tool {
        /// The tool.
        program: &'static str,
        /// Its last words.
        reason: String,
    },
    /// Someone changed their mind.
    #[error("the transfer was cancelled")]
    Cancelled,
}

impl Error {
    /// Whether the same request can succeed a little later without anyone doing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Unavailable { .. })
    }

    /// What happened, without the advice that only the last of several tries needs.
    pub(super) fn symptom(&self) -> String {
        match self {
            Error::Unreachable { host, reason } => format!("{host} cannot be reached: {reason}"),
            Error::Unavailable { host, reason, .. } => {
                format!("{host} cannot serve this now: {reason}")
            }
            other => other.to_string(),
        }
    }

    /// How long the registry wants to be left alone before that.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<LayoutError> for Error {
    fn from(error: LayoutError) -> Error {
        match error {
            LayoutError::DigestMismatch {
                what,
                expected,
                actual,
            } => Error::DigestMismatch {
                what,
                expected,
                actual,
            },
            other => Error::Invalid(other),
        }
    }
}
