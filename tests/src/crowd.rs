//! What a crowd of clients shares: a book of the jobs that were given out.
//!
//! Owns the rule that no job is lost: whoever got a path hears how it ended, once.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use futures_util::StreamExt;
use osteward_dbus::JOB_PREFIX;
use osteward_dbus::types::Dict;
use tokio::sync::Notify;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath};

use crate::chance::Dice;

/// The last part of a job's path.
fn last(job: &str) -> Option<u64> {
    let number = job.strip_prefix(JOB_PREFIX)?.strip_prefix('/')?;
    number.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The jobs that calls returned, and how often each was told to be over, by number.
#[derive(Debug, Default)]
pub struct Book {
    given: Mutex<BTreeMap<u64, &'static str>>,
    /// How each ended: its state, or the error that no job may end with.
    finished: Mutex<BTreeMap<u64, Vec<String>>>,
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
                    let is_bug = error.ends_with(".Failed");
                    let end = if is_bug { text } else { state };
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

    /// How many different jobs each method gave out.
    pub fn kinds(&self) -> BTreeMap<&'static str, usize> {
        let mut kinds = BTreeMap::new();
        for kind in lock(&self.given).values() {
            *kinds.entry(*kind).or_default() += 1;
        }
        kinds
    }

    /// Fails unless every job that was told of ended once, and well or for a reason.
    ///
    /// # Errors
    /// With the first that did not.
    pub fn check(&self) -> Result<()> {
        for (job, ends) in lock(&self.finished).iter() {
            let known = ["succeeded", "failed", "cancelled"];
            let is_end = |end: &String| known.contains(&end.as_str());
            ensure!(
                ends.len() == 1 && ends.iter().all(is_end),
                "{job}: {ends:?}"
            );
        }
        Ok(())
    }
}
