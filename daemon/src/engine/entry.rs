//! What the history says about a job.
//!
//! Owns the translation of a job and the look before and after it into an [`Entry`]. Pure.

use super::job::{JobView, microseconds};
use crate::error::Error;
use crate::image::reference::Digest;
use crate::jobs::{Archive, Fact, Outcome, Request};
use crate::record::history::Entry;
use crate::sysroot::Snapshot;

/// The entry of a job that was just asked for.
pub(super) fn begun(view: &JobView, request: &Request, now: &Snapshot) -> Entry {
    let tracked = now.tracking().map(|tracking| tracking.origin_text.clone());
    let image = match request {
        Request::Switch(origin, _) => origin.to_string(),
        Request::Import(
            Archive {
                origin: Some(origin),
                ..
            },
            _,
        ) => origin.to_string(),
        _ => tracked.unwrap_or_default(),
    };
    Entry {
        job: view.id.0,
        kind: view.kind.to_owned(),
        image,
        from_digest: next_boot(now),
        uid: view.caller.uid,
        label: view.caller.label.clone(),
        reason: view.caller.reason.clone(),
        created_at: view.created_at,
        ..Entry::default()
    }
}

/// The digest that the next boot gives; empty if that is no container image.
pub(super) fn next_boot(now: &Snapshot) -> String {
    let digest = now.next_boot().and_then(|next| next.digest());
    digest.map(Digest::to_string).unwrap_or_default()
}

/// The entry of a job that ended, with what the look after it showed.
pub(super) fn ended(entry: Entry, result: &Result<Outcome, Error>, now: &Snapshot) -> Entry {
    let to_digest = next_boot(now);
    let switched = entry.from_digest != to_digest;
    let entry = Entry {
        to_digest,
        changed: switched,
        finished_at: microseconds(),
        ..entry
    };
    match result {
        Ok(outcome) => Entry {
            state: "succeeded".into(),
            digest: text(outcome, "digest"),
            version: text(outcome, "version"),
            changed: switched || flag(outcome, "changed"),
            ..entry
        },
        Err(error) => {
            let state = if error.is_cancelled() {
                "cancelled"
            } else {
                "failed"
            };
            let error = error.to_bus();
            Entry {
                state: state.into(),
                error_name: error.name().to_owned(),
                error_message: error.message(),
                ..entry
            }
        }
    }
}

fn text(outcome: &Outcome, wanted: &str) -> String {
    let mut facts = outcome.facts.iter();
    let found = facts.find_map(|(key, fact)| match fact {
        Fact::Text(text) if *key == wanted => Some(text.clone()),
        _ => None,
    });
    found.unwrap_or_default()
}

/// Whether the job says so; one that does not say has done something.
fn flag(outcome: &Outcome, wanted: &str) -> bool {
    let mut facts = outcome.facts.iter();
    let found = facts.find_map(|(key, fact)| match fact {
        Fact::Flag(flag) if *key == wanted => Some(*flag),
        _ => None,
    });
    found.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::known::Known;
    use crate::engine::{Caller, JobId, Terms};

    fn entry() -> Entry {
        let caller = Caller {
            uid: 7,
            label: "tray".into(),
            reason: "noon".into(),
        };
        let request = Request::CancelRollback;
        let job = Known::new(JobId(3), request.clone(), caller, Terms::default());
        begun(&job.view.borrow(), &request, &Snapshot::default())
    }

    #[test]
    fn an_entry_says_who_asked_for_what() {
        let entry = entry();
        assert_eq!(
            (entry.job, entry.kind.as_str(), entry.uid),
            (3, "cancel-rollback", 7)
        );
        assert_eq!(
            (entry.label.as_str(), entry.reason.as_str()),
            ("tray", "noon")
        );
        assert!(entry.created_at > 0 && entry.finished_at == 0);
    }

    #[test]
    fn an_entry_says_what_came_of_it() {
        let facts = vec![
            ("digest", Fact::Text("sha256:a".into())),
            ("version", Fact::Text("42".into())),
            ("changed", Fact::Flag(false)),
        ];
        let nothing = ended(entry(), &Ok(Outcome { facts }), &Snapshot::default());
        assert_eq!(
            (nothing.state.as_str(), nothing.changed),
            ("succeeded", false)
        );
        assert_eq!(
            (nothing.digest.as_str(), nothing.version.as_str()),
            ("sha256:a", "42")
        );
        assert!(ended(entry(), &Ok(Outcome::default()), &Snapshot::default()).changed);

        let from = Entry {
            from_digest: "sha256:before".into(),
            ..entry()
        };
        let failed = ended(from, &Err(Error::NotBooted), &Snapshot::default());
        assert_eq!((failed.state.as_str(), failed.changed), ("failed", true));
        assert_eq!(failed.error_name, "org.osteward1.Error.NotBooted");
        let cancelled = ended(entry(), &Err(Error::Cancelled), &Snapshot::default());
        assert_eq!(
            (cancelled.state.as_str(), cancelled.changed),
            ("cancelled", false)
        );
    }
}
