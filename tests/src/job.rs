//! Following a job over the bus, as any client may.
//!
//! Owns what every job has to keep to, and checks it on all jobs that tests follow: progress
//! does not go back, phases only advance, and the end is told exactly once.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use osteward_dbus::types::Dict;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath};

/// What the bus names in phase order; a job skips those it has no use for.
pub const PHASES: [&str; 8] = [
    "resolving",
    "downloading",
    "importing",
    "merging",
    "staging",
    "bootloader",
    "cleaning",
    "rebooting",
];

/// Longer than any job of a test may take to show the next sign of life.
const PATIENCE: Duration = Duration::from_secs(600);

/// Hears of all jobs from its making on.
#[derive(Debug)]
pub struct Listener {
    signals: MessageStream,
}

/// The end of a job, and what was heard before it.
#[derive(Debug)]
pub struct Ended {
    /// `succeeded`, `failed` or `cancelled`.
    pub state: String,
    /// Full D-Bus error name; empty unless it failed.
    pub error_name: String,
    /// The sentence for people.
    pub error_message: String,
    /// What came out of it.
    pub result: Dict,
    /// The phases seen, in order.
    pub phases: Vec<String>,
    /// When each of them was heard of.
    pub entered: Vec<Instant>,
    /// When each `Progress` signal came.
    pub updates: Vec<Instant>,
}

impl Ended {
    /// A value of the result.
    ///
    /// # Errors
    /// When there is no such key, or it is of another type.
    pub fn value<T>(&self, key: &str) -> Result<T>
    where
        T: TryFrom<zbus::OwnedVariant>,
        T::Error: Into<zbus::Error>,
    {
        let value = self
            .result
            .get(key)
            .with_context(|| format!("no {key} in {self:?}"))?;
        let value = T::try_from(value.try_clone()?);
        value.map_err(|error| anyhow::Error::from(error.into()))
    }

    /// Fails unless the job succeeded.
    ///
    /// # Errors
    /// With how it ended.
    pub fn succeeded(self) -> Result<Self> {
        ensure!(
            self.state == "succeeded",
            "the job did not succeed: {self:?}"
        );
        Ok(self)
    }

    /// Fails unless the job failed with `org.osteward1.Error.{name}` and a sentence.
    ///
    /// # Errors
    /// With how it ended.
    pub fn failed(self, name: &str) -> Result<Self> {
        let full = format!("{}.{name}", osteward_dbus::error::PREFIX);
        ensure!(
            self.state == "failed" && self.error_name == full,
            "not {name}: {self:?}"
        );
        ensure!(self.error_message.contains(' '), "no sentence: {self:?}");
        Ok(self)
    }
}

impl Listener {
    /// Subscribes to the signals of all jobs: do it before the job is started.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn new(connection: &Connection) -> Result<Self> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender("org.osteward1")
            .interface("org.osteward1.Job")
            .build()?;
        let room = NonZeroUsize::new(10_000);
        let signals = MessageStream::for_match_rule(rule, connection, room).await?;
        Ok(Self { signals })
    }

    async fn next(&mut self, job: &OwnedObjectPath) -> Result<zbus::Message> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.signals.next())
                .await
                .with_context(|| format!("{job} gave no sign of life for {PATIENCE:?}"))?
                .context("the bus went away")??;
            if message.header().path().map(|path| path.as_str()) == Some(job.as_str()) {
                return Ok(message);
            }
        }
    }

    /// What the job says now: one can be so quick that it is what its object begins with, of which
    /// no signal tells. `None` when the job is gone.
    async fn said(&self, job: &OwnedObjectPath) -> Option<String> {
        let connection = Connection::from(&self.signals);
        let interface = Some("org.freedesktop.DBus.Properties");
        let body = ("org.osteward1.Job", "Message");
        let reply = connection
            .call_method(Some("org.osteward1"), job, interface, "Get", &body)
            .await
            .ok()?;
        let value: zbus::OwnedVariant = reply.body().deserialize().ok()?;
        String::try_from(value).ok()
    }

    /// Waits until the job is in `phase`.
    ///
    /// # Errors
    /// When it ends before.
    pub async fn wait_for_phase(&mut self, job: &OwnedObjectPath, phase: &str) -> Result<()> {
        loop {
            let message = self.next(job).await?;
            match message.header().member().map(|member| member.as_str()) {
                Some("Finished") => bail!("{job} ended before {phase}: {:?}", message.body()),
                Some("Progress") => {
                    let changed: Dict = message.body().deserialize()?;
                    if text(&changed, "Phase")?.as_deref() == Some(phase) {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }

    /// Waits until the job says something that contains `words`; returns all of it.
    ///
    /// # Errors
    /// When it ends before.
    pub async fn wait_for_message(&mut self, job: &OwnedObjectPath, words: &str) -> Result<String> {
        if let Some(said) = self.said(job).await.filter(|said| said.contains(words)) {
            return Ok(said);
        }
        loop {
            let message = self.next(job).await?;
            match message.header().member().map(|member| member.as_str()) {
                Some("Finished") => bail!("{job} ended before {words:?}: {:?}", message.body()),
                Some("Progress") => {
                    let changed: Dict = message.body().deserialize()?;
                    let said = text(&changed, "Message")?;
                    if let Some(said) = said.filter(|said| said.contains(words)) {
                        return Ok(said);
                    }
                }
                _ => {}
            }
        }
    }

    /// Waits for the end of a job.
    ///
    /// # Errors
    /// When it breaks a rule of this module, or the daemon goes away.
    pub async fn end(&mut self, job: &OwnedObjectPath) -> Result<Ended> {
        let (mut phases, mut entered, mut updates) = (Vec::new(), Vec::new(), Vec::new());
        let (mut fraction, mut bytes) = (-1.0_f64, 0_u64);
        loop {
            let message = self.next(job).await?;
            match message.header().member().map(|member| member.as_str()) {
                Some("Progress") => {
                    let changed: Dict = message.body().deserialize()?;
                    updates.push(Instant::now());
                    advance(&changed, &mut phases)?;
                    entered.resize(phases.len(), Instant::now());
                    if let Some(value) = changed.get("Fraction") {
                        let now = f64::try_from(value.try_clone()?)?;
                        ensure!(now >= fraction, "fraction fell from {fraction} to {now}");
                        fraction = now;
                    }
                    if let Some(value) = changed.get("BytesDone") {
                        let now = u64::try_from(value.try_clone()?)?;
                        ensure!(now >= bytes, "bytes-done fell from {bytes} to {now}");
                        bytes = now;
                    }
                }
                Some("Finished") => {
                    let (state, error_name, error_message, result): (String, String, String, Dict) =
                        message.body().deserialize()?;
                    ensure!(
                        !error_name.ends_with(".Failed"),
                        "{error_name}: {error_message}"
                    );
                    return Ok(Ended {
                        state,
                        error_name,
                        error_message,
                        result,
                        phases,
                        entered,
                        updates,
                    });
                }
                _ => {}
            }
        }
    }
}

fn text(changed: &Dict, key: &str) -> Result<Option<String>> {
    match changed.get(key) {
        Some(value) => Ok(Some(String::try_from(value.try_clone()?)?)),
        None => Ok(None),
    }
}

fn advance(changed: &Dict, phases: &mut Vec<String>) -> Result<()> {
    let Some(phase) = text(changed, "Phase")? else {
        return Ok(());
    };
    if phase.is_empty() {
        // It was paused, or made way, and begins anew.
        phases.clear();
        return Ok(());
    }
    if phases.last() == Some(&phase) {
        return Ok(());
    }
    let rank = |name: &str| PHASES.iter().position(|known| *known == name);
    let now = rank(&phase).with_context(|| format!("unknown phase {phase}"))?;
    if let Some(before) = phases.last() {
        ensure!(rank(before) < Some(now), "phase {phase} after {before}");
    }
    phases.push(phase);
    Ok(())
}
