//! Everything that the daemon says to all, as one of its listeners hears it.
//!
//! Owns the rules for what is told of one job, and checks them on whoever follows one:
//! numbers do not fall, `Progress` is a copy of `PropertiesChanged`, and what was told in the
//! end is what can be read then. [`crate::job`] is for tests that only wait for a job.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{FutureExt, StreamExt};
use osteward_dbus::ROOT_PATH;
use osteward_dbus::types::Dict;
use zbus::fdo::PropertiesProxy;
use zbus::message::Type;
use zbus::names::InterfaceName;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant};

/// The interface of jobs.
pub const JOB: &str = "org.osteward1.Job";

/// Longer than any daemon of a test may be silent while a job runs.
const PATIENCE: Duration = Duration::from_secs(300);

/// Hears every signal of the daemon from its making on.
#[derive(Debug)]
pub struct Witness {
    /// How it hears.
    pub connection: Connection,
    signals: MessageStream,
}

/// What a witness knows of a job when it is over.
#[derive(Debug)]
pub struct Story {
    /// All properties of the job, as far as they were told.
    pub properties: Dict,
    /// What `Finished` said: state, error name, error message, result.
    pub finished: (String, String, String, Dict),
    /// How many `Progress` signals there were.
    pub progress_signals: usize,
}

impl Witness {
    /// Subscribes to all signals of the daemon.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn new(connection: Connection) -> Result<Self> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender("org.osteward1")
            .build()?;
        let room = NonZeroUsize::new(10_000);
        let signals = MessageStream::for_match_rule(rule, &connection, room).await?;
        Ok(Self {
            connection,
            signals,
        })
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    /// When the bus is gone, or nothing comes for five minutes.
    pub async fn next(&mut self) -> Result<Message> {
        let next = tokio::time::timeout(PATIENCE, self.signals.next()).await;
        let next = next.with_context(|| format!("nothing was heard for {PATIENCE:?}"))?;
        Ok(next.context("the bus went away")??)
    }

    /// What came and was not looked at yet; a call before makes sure that all is here.
    pub fn rest(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(Some(Ok(message))) = self.signals.next().now_or_never() {
            messages.push(message);
        }
        messages
    }

    /// Waits until the job has received bytes; returns what is known of it then.
    ///
    /// # Errors
    /// When it ends before.
    pub async fn wait_for_bytes(&mut self, job: &OwnedObjectPath) -> Result<Dict> {
        let mut known = Dict::new();
        loop {
            let message = self.next().await?;
            ensure!(
                !is(&message, job, "Finished"),
                "over too early: {message:?}"
            );
            if let Some(initial) = added(&message, job)? {
                known.extend(initial);
            } else if is(&message, job, "PropertiesChanged") {
                known.extend(changed(&message)?);
                if number(&known, "BytesDone")?.is_some_and(|bytes| bytes > 0) {
                    return Ok(known);
                }
            }
        }
    }

    /// Follows a job to its end, of which `known` is known.
    ///
    /// # Errors
    /// When it breaks a rule of this module, or the daemon goes away.
    pub async fn follow(&mut self, job: &OwnedObjectPath, known: Dict) -> Result<Story> {
        let mut properties = known;
        let mut progress_signals = 0;
        loop {
            let message = self.next().await?;
            if let Some(initial) = added(&message, job)? {
                properties.extend(initial);
            } else if is(&message, job, "Progress") {
                progress_signals += 1;
                let copy: Dict = message.body().deserialize()?;
                for (name, value) in &copy {
                    ensure!(
                        properties.get(name) == Some(value),
                        "Progress says {name} = {value:?}, PropertiesChanged did not"
                    );
                }
            } else if is(&message, job, "PropertiesChanged") {
                grows(&properties, &changed(&message)?)?;
                properties.extend(changed(&message)?);
            } else if is(&message, job, "Finished") {
                let finished = message.body().deserialize()?;
                let read = all(&self.connection, job, JOB).await?;
                ensure!(read == properties, "told {properties:?}, but is {read:?}");
                let late = self.rest();
                let late = late.iter().find(|late| on(late, job));
                ensure!(late.is_none(), "after Finished: {late:?}");
                return Ok(Story {
                    properties,
                    finished,
                    progress_signals,
                });
            }
        }
    }
}

fn on(message: &Message, path: &str) -> bool {
    message
        .header()
        .path()
        .is_some_and(|it| it.as_str() == path)
}

/// Whether it is the signal `member` of the object at `path`.
pub fn is(message: &Message, path: &str, member: &str) -> bool {
    let header = message.header();
    on(message, path) && header.member().is_some_and(|it| it.as_str() == member)
}

fn changed(message: &Message) -> Result<Dict> {
    let (_, changed, _): (String, Dict, Vec<String>) = message.body().deserialize()?;
    Ok(changed)
}

/// The properties of a job whose object has just been added.
fn added(message: &Message, job: &OwnedObjectPath) -> Result<Option<Dict>> {
    if !is(message, ROOT_PATH, "InterfacesAdded") {
        return Ok(None);
    }
    let (path, mut interfaces): (OwnedObjectPath, HashMap<String, Dict>) =
        message.body().deserialize()?;
    Ok((path == *job).then(|| interfaces.remove(JOB).unwrap_or_default()))
}

fn number(known: &Dict, name: &str) -> Result<Option<u64>> {
    let value = known.get(name).map(|value| value.try_clone());
    Ok(value.transpose()?.map(u64::try_from).transpose()?)
}

/// A property that is text.
///
/// # Errors
/// When there is none, or it is something else.
pub fn word(known: &Dict, name: &str) -> Result<String> {
    let value = known.get(name).with_context(|| format!("no {name}"))?;
    Ok(String::try_from(value.try_clone()?)?)
}

/// Fails unless what is told `now` goes on from `before`.
fn grows(before: &Dict, now: &Dict) -> Result<()> {
    for name in ["BytesDone", "Sequence"] {
        let (was, is) = (number(before, name)?, number(now, name)?);
        ensure!(
            is.is_none() || was <= is,
            "{name} went from {was:?} to {is:?}"
        );
    }
    if let (Some(was), Some(is)) = (before.get("Fraction"), now.get("Fraction")) {
        let (was, is) = (
            f64::try_from(was.try_clone()?)?,
            f64::try_from(is.try_clone()?)?,
        );
        ensure!(was <= is && is <= 1.0, "Fraction went from {was} to {is}");
    }
    ensure!(
        now.contains_key("Sequence"),
        "a change without Sequence: {now:?}"
    );
    Ok(())
}

/// Reads all properties of an object.
///
/// # Errors
/// The daemon's.
pub async fn all(connection: &Connection, path: &str, interface: &str) -> Result<Dict> {
    let properties = PropertiesProxy::builder(connection)
        .destination("org.osteward1")
        .path(path.to_owned())
        .build()
        .await?;
    Ok(properties
        .get_all(InterfaceName::try_from(interface)?)
        .await?)
}

/// Reads one property, which is named with its interface.
///
/// # Errors
/// The daemon's.
pub async fn get(connection: &Connection, path: &str, name: (&str, &str)) -> Result<OwnedVariant> {
    let properties = PropertiesProxy::builder(connection)
        .destination("org.osteward1")
        .path(path.to_owned())
        .build()
        .await?;
    Ok(properties
        .get(InterfaceName::try_from(name.0)?, name.1)
        .await?)
}
