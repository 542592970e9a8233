//! The book of the jobs that were given out.
//!
//! Owns the rule that no job is lost: whoever got a path hears how it ended, once.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use osteward_dbus::types::Dict;
use osteward_dbus::{Error, JOB_PREFIX};
use tokio::sync::Notify;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath};

use super::is_excuse;
use crate::chance::Dice;

/// The last part of a job's path.
fn last(job: &str) -> Option<u64> {
    let number = job.strip_prefix(JOB_PREFIX)?.strip_prefix('/')?;
    number.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a job ended: state, and name and text of the error.
type End = (String, String, String);

/// The jobs that calls returned, and how often each was told to be over, by number.
#[derive(Debug, Default)]
pub struct Book {
    given: Mutex<BTreeMap<u64, &'static str>>,
    finished: Mutex<BTreeMap<u64, Vec<End>>>,
    changed: Notify,
}

impl Book {
    /// A book that notes the end of every job from now on.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn open(connection: Connection) -> Result<Arc<Self>> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender("org.osteward1")
            .interface("org.osteward1.Job")
            .member("Finished")
            .build()?;
        let room = NonZeroUsize::new(10_000);
        let mut signals = MessageStream::for_match_rule(rule, &connection, room).await?;
        let book = Arc::new(Self::default());
        let notes = book.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = signals.next().await {
                let header = message.header();
                let job = header.path().and_then(|path| last(path.as_str()));
                let body = message.body();
                let told = body.deserialize::<(String, String, String, Dict)>();
                if let (Some(job), Ok((state, error, text, _))) = (job, told) {
                    let end = (state, error, text);
                    lock(&notes.finished).entry(job).or_default().push(end);
                    notes.changed.notify_one();
                }
            }
        });
        Ok(book)
    }

    /// A call of the method `by` returned this job.
    pub fn give(&self, job: &str, by: &'static str) {
        lock(&self.given).extend(last(job).map(|job| (job, by)));
    }

    /// One of the jobs that were given out last, which are the likeliest to be there still.
    pub fn any(&self, dice: &mut Dice) -> Option<OwnedObjectPath> {
        let back = dice.roll(8) as usize;
        let job = lock(&self.given).keys().rev().nth(back).copied()?;
        OwnedObjectPath::try_from(format!("{JOB_PREFIX}/{job}")).ok()
    }

    /// Those that were given out and are not over.
    pub fn missing(&self) -> Vec<(u64, &'static str)> {
        let finished = lock(&self.finished);
        let given = lock(&self.given);
        let missing = given.iter().filter(|(job, _)| !finished.contains_key(*job));
        missing.map(|(job, by)| (*job, *by)).collect()
    }

    /// Returns when one more job has ended since the last call.
    pub async fn one_more(&self) {
        self.changed.notified().await;
    }

    /// How many different jobs each method gave out, and how many of those succeeded.
    pub fn kinds(&self) -> BTreeMap<&'static str, (usize, usize)> {
        let finished = lock(&self.finished);
        let mut kinds = BTreeMap::<_, (usize, usize)>::new();
        for (job, kind) in lock(&self.given).iter() {
            let (given, succeeded) = kinds.entry(*kind).or_default();
            let ends = finished.get(job).into_iter().flatten();
            *given += 1;
            *succeeded += ends.filter(|(state, ..)| state == "succeeded").count();
        }
        kinds
    }

    /// Fails unless every job that was told of ended once, and well or for a reason that a crowd
    /// can give it.
    ///
    /// # Errors
    /// With the first that did not.
    pub fn check(&self) -> Result<()> {
        let given = lock(&self.given);
        for (job, ends) in lock(&self.finished).iter() {
            let kind = given.get(job).copied().unwrap_or("of nobody");
            let [end] = &ends[..] else {
                anyhow::bail!("{kind} {job} ended more than once: {ends:?}");
            };
            checked(kind, end).with_context(|| format!("{kind} {job}: {end:?}"))?;
        }
        Ok(())
    }
}

fn checked(kind: &str, (state, name, text): &End) -> Result<()> {
    let error = Error::from_name(name, text);
    match state.as_str() {
        "succeeded" => ensure!(name.is_empty(), "with an error"),
        "failed" => {
            let error = error.context("not in the vocabulary")?;
            ensure!(is_excuse(kind, &error), "for no reason of a crowd's");
            ensure!(text.contains(' '), "without a sentence");
        }
        "cancelled" => ensure!(matches!(error, Some(Error::Cancelled(_)))),
        _ => anyhow::bail!("an unknown state"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(ends: &[(&str, &str)]) -> Book {
        let book = Book::default();
        book.give(&format!("{JOB_PREFIX}/1"), "upgrade");
        let end = |(state, name): &(&str, &str)| {
            let name = if name.is_empty() {
                String::new()
            } else {
                format!("org.osteward1.Error.{name}")
            };
            ((*state).to_owned(), name, "It is so.".to_owned())
        };
        let ends: Vec<End> = ends.iter().map(end).collect();
        if !ends.is_empty() {
            lock(&book.finished).insert(1, ends);
        }
        book
    }

    #[test]
    fn a_job_ends_once_and_for_a_reason() {
        for ends in [
            ("succeeded", ""),
            ("failed", "StagedPending"),
            ("cancelled", "Cancelled"),
        ] {
            let book = book(&[ends]);
            book.check().unwrap();
            assert!(book.missing().is_empty());
        }
        for ends in [
            &[("succeeded", ""), ("succeeded", "")][..],
            &[("failed", "Failed")],
            &[("failed", "ImageInvalid")],
            &[("failed", "Unheard")],
            &[("failed", "")],
            &[("cancelled", "")],
            &[("succeeded", "Busy")],
            &[("lost", "")],
        ] {
            assert!(book(ends).check().is_err(), "{ends:?}");
        }
    }

    #[test]
    fn what_has_not_ended_is_missing() {
        let none = book(&[]);
        assert_eq!(none.missing(), [(1, "upgrade")]);
        assert_eq!(none.kinds()["upgrade"], (1, 0));
        assert_eq!(book(&[("succeeded", "")]).kinds()["upgrade"], (1, 1));
    }
}
