//! A crowd of clients of the daemon's, who do everything at once and at random.
//!
//! Owns what each may do, which refusals a crowd can cause, and what all of them share: the book
//! of the jobs that were given out, and how long was waited for what is answered from memory.

use osteward_dbus::Error;

mod book;
mod client;
mod waits;

pub use book::Book;
pub use client::Client;
pub use waits::Waits;

/// What the clients of a crowd share.
#[derive(Debug)]
pub struct Square {
    /// The jobs.
    pub book: std::sync::Arc<Book>,
    /// How long it took to read.
    pub waits: Waits,
    /// Another image than the one that is tracked, for `Host.Switch`.
    pub elsewhere: String,
}

/// Whether a crowd can cause that a call, or a job of that kind, ends with this error. All others
/// are nobody's in a crowd, or the daemon's own faults.
fn is_excuse(kind: &str, error: &Error) -> bool {
    match error {
        Error::Busy(_)
        | Error::Cancelled(_)
        | Error::LimitsExceeded(_)
        | Error::TooLate(_)
        | Error::NotSupported(_)
        | Error::UnknownObject(_)
        | Error::NoRollback(_)
        | Error::NoUpdate(_)
        | Error::Inhibited(_)
        | Error::StagedPending(_)
        | Error::AccessDenied(_)
        // Somebody else's rollback left it behind.
        | Error::Quarantined(_) => true,
        // Somebody else deleted the argument before.
        Error::InvalidArgs(_) => kind == "kargs",
        _ => false,
    }
}
