//! Following a job from wherever it is to its end.
//!
//! Owns the subscription to the daemon's jobs and the picture of one job that is kept up
//! to date from it. Invariants: listening starts before the call that makes the job, so
//! its end cannot be missed; a job that ended before it was looked at is read from its
//! properties; only messages of the daemon that answered are believed, because anybody
//! on the bus can send signals; messages that are older than the picture are dropped;
//! the queues of the connection are drained while a call is pending, because a full one
//! would hold up the reply.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use osteward_dbus::types::{Dict, JobInfo, from_dict};
use osteward_dbus::{BUS_NAME, JOB_PREFIX};
use serde_json::{Map, Value};
use zbus::message::Type;
use zbus::names::OwnedUniqueName;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath};

use crate::fail::{DISCONNECTED, Failure};
use crate::json;

const JOB: &str = "org.osteward1.Job";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// How long to wait for `Finished` after the state said that the job ended.
const GRACE: Duration = Duration::from_secs(2);
/// Messages to keep while a reply is pending; a job changes at most five times a second.
const BACKLOG: usize = 256;

/// Something that was heard.
#[derive(Debug)]
enum Heard {
    Signal(Message),
    /// The daemon's name has another owner, or none, or the connection is gone.
    OwnerChanged(Option<OwnedUniqueName>),
}

/// An ear on all jobs of the daemon, and on the daemon itself.
#[derive(Debug)]
pub(crate) struct Listener {
    connection: Connection,
    jobs: MessageStream,
    owners: MessageStream,
}

impl Listener {
    /// Starts to listen. Does not start the daemon.
    pub(crate) async fn subscribe(connection: &Connection) -> Result<Self, Failure> {
        let jobs = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(BUS_NAME)
            .path_namespace(JOB_PREFIX)
            .build()?;
        let owners = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .member("NameOwnerChanged")
            .arg(0, BUS_NAME)
            .build()?;
        Ok(Self {
            connection: connection.clone(),
            jobs: MessageStream::for_match_rule(jobs, connection, None).await?,
            owners: MessageStream::for_match_rule(owners, connection, None).await?,
        })
    }

    /// The next thing that is heard; safe to drop and call again. What the daemon said
    /// before it went away comes first.
    async fn hear(&mut self) -> Heard {
        loop {
            tokio::select! {
                biased;
                message = self.jobs.next() => match message {
                    Some(Ok(message)) => return Heard::Signal(message),
                    Some(Err(_)) | None => return Heard::OwnerChanged(None),
                },
                message = self.owners.next() => match message {
                    Some(Ok(message)) => if let Some(owner) = new_owner(&message) {
                        return Heard::OwnerChanged(owner);
                    },
                    Some(Err(_)) | None => return Heard::OwnerChanged(None),
                },
            }
        }
    }

    /// Waits for `call` while keeping the queues empty; also gives what was heard of jobs
    /// meanwhile, as far as it is recent.
    pub(crate) async fn meanwhile<T>(
        &mut self,
        call: impl Future<Output = T>,
    ) -> (T, VecDeque<Message>) {
        let mut call = std::pin::pin!(call);
        let mut heard = VecDeque::new();
        loop {
            tokio::select! {
                biased;
                output = &mut call => return (output, heard),
                Some(Ok(message)) = self.jobs.next() => {
                    heard.push_back(message);
                    if heard.len() > BACKLOG {
                        heard.pop_front();
                    }
                }
            }
        }
    }

    /// Waits until any job says anything, and gives its path.
    pub(crate) async fn any_job(&mut self) -> Result<OwnedObjectPath, Failure> {
        loop {
            match self.hear().await {
                Heard::Signal(message) => {
                    if let Some(path) = message.header().path() {
                        return Ok(path.to_owned().into());
                    }
                }
                // It is started again by whoever wants something of it.
                Heard::OwnerChanged(_) if !self.connection.is_closed() => {}
                Heard::OwnerChanged(None) => return Err(vanished()),
                Heard::OwnerChanged(Some(_)) => {}
            }
        }
    }

    /// Turns to one job: reads it, and keeps to what is said of it from now on.
    pub(crate) async fn follow(mut self, path: OwnedObjectPath) -> Result<Follower, Failure> {
        let connection = self.connection.clone();
        let body = (JOB,);
        let read = connection.call_method(Some(BUS_NAME), &path, Some(PROPERTIES), "GetAll", &body);
        let (reply, backlog) = self.meanwhile(read).await;
        let reply = reply?;
        let mut known = Dict::new();
        for (name, value) in reply.body().deserialize::<Dict>()? {
            known.insert(key(&name), value);
        }
        let info: JobInfo = from_dict(&known)?;
        let ended = is_end(&info.state);
        let owner = reply.header().sender().map(|name| name.to_owned().into());
        Ok(Follower {
            listener: self,
            path,
            owner,
            known,
            info,
            backlog,
            ended,
        })
    }
}

/// What became of the job since the last event.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// These properties changed, by their keys in the `Status` document.
    Changed(Map<String, Value>),
    /// It ended; [`Follower::info`] says how.
    Finished,
    /// The daemon or the bus is gone; how the job ended is not known.
    Vanished,
}

/// One job under observation.
#[derive(Debug)]
pub(crate) struct Follower {
    listener: Listener,
    path: OwnedObjectPath,
    /// Who answered; `None` only without a bus in between.
    owner: Option<OwnedUniqueName>,
    known: Dict,
    info: JobInfo,
    backlog: VecDeque<Message>,
    ended: bool,
}

impl Follower {
    /// The job's object path.
    pub(crate) fn path(&self) -> &OwnedObjectPath {
        &self.path
    }

    /// The job as far as it is known.
    pub(crate) fn info(&self) -> &JobInfo {
        &self.info
    }

    /// The job as JSON, by the keys of the `Status` document.
    pub(crate) fn snapshot(&self) -> Map<String, Value> {
        json::object(&self.known)
    }

    /// Waits for `call`, however long somebody takes to be asked for a password on its way, while
    /// the queues are kept empty; what is heard of the job meanwhile comes with [`Self::next`].
    pub(crate) async fn meanwhile<T>(&mut self, call: impl Future<Output = T>) -> T {
        let (output, heard) = self.listener.meanwhile(call).await;
        self.backlog.extend(heard);
        output
    }

    /// The next event; safe to drop and call again. After the end it is always `Finished`.
    pub(crate) async fn next(&mut self) -> Result<Event, Failure> {
        while !self.ended {
            let heard = match self.backlog.pop_front() {
                Some(message) => Heard::Signal(message),
                None if is_end(&self.info.state) => {
                    match tokio::time::timeout(GRACE, self.listener.hear()).await {
                        Ok(heard) => heard,
                        Err(_) => break,
                    }
                }
                None => self.listener.hear().await,
            };
            match heard {
                Heard::Signal(message) => {
                    if let Some(event) = self.take(&message)? {
                        return Ok(event);
                    }
                }
                Heard::OwnerChanged(now) if now.is_some() && now == self.owner => {}
                // It told how it ended, only not by the signal.
                Heard::OwnerChanged(_) if is_end(&self.info.state) => break,
                Heard::OwnerChanged(_) => return Ok(Event::Vanished),
            }
        }
        self.ended = true;
        Ok(Event::Finished)
    }

    /// Applies one signal; `None` if it says nothing new of this job.
    fn take(&mut self, message: &Message) -> Result<Option<Event>, Failure> {
        let header = message.header();
        let ours = header
            .path()
            .is_some_and(|path| *path == self.path.as_ref());
        let trusted = match &self.owner {
            Some(owner) => header.sender().is_some_and(|sender| sender == owner),
            None => true,
        };
        if !ours || !trusted {
            return Ok(None);
        }
        let interface = header.interface().map(|name| name.as_str());
        match (interface, header.member().map(|name| name.as_str())) {
            (Some(JOB), Some("Finished")) => {
                let (state, name, text, result): (String, String, String, Dict) =
                    message.body().deserialize()?;
                self.info.state = state;
                self.info.error = (name, text);
                self.info.result = result;
                self.ended = true;
                Ok(Some(Event::Finished))
            }
            (Some(PROPERTIES), Some("PropertiesChanged")) => {
                let (interface, changed, _gone): (String, Dict, Vec<String>) =
                    message.body().deserialize()?;
                if interface == JOB {
                    self.merge(changed)
                } else {
                    Ok(None)
                }
            }
            _ => Ok(None),
        }
    }

    fn merge(&mut self, changed: Dict) -> Result<Option<Event>, Failure> {
        let sequence = changed
            .get("Sequence")
            .and_then(|value| u64::try_from(value).ok());
        if sequence.is_some_and(|sequence| sequence <= self.info.sequence) {
            return Ok(None);
        }
        let mut event = Map::new();
        for (name, value) in changed {
            let key = key(&name);
            event.insert(key.clone(), json::value(&value));
            self.known.insert(key, value);
        }
        self.info = from_dict(&self.known)?;
        Ok(Some(Event::Changed(event)))
    }
}

/// The failure that goes with [`Event::Vanished`].
pub(crate) fn vanished() -> Failure {
    Failure::new(DISCONNECTED, "the daemon went away before the job ended")
}

/// Whether `Job.State` says that the job is over.
pub(crate) fn is_end(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled")
}

/// The new owner in a `NameOwnerChanged`; the inner `None` is "nobody". The match rule has
/// seen to the name, this sees to the bus driver as sender.
fn new_owner(message: &Message) -> Option<Option<OwnedUniqueName>> {
    let header = message.header();
    if header
        .sender()
        .is_some_and(|sender| sender.as_str() != "org.freedesktop.DBus")
    {
        return None;
    }
    let (name, _old, new): (String, String, String) = message.body().deserialize().ok()?;
    (name == BUS_NAME).then(|| OwnedUniqueName::try_from(new).ok())
}

/// `PhaseIndex` → `phase-index`: a property's name as the key of the records.
fn key(property: &str) -> String {
    let mut key = String::with_capacity(property.len() + 4);
    for letter in property.chars() {
        if letter.is_ascii_uppercase() && !key.is_empty() {
            key.push('-');
        }
        key.push(letter.to_ascii_lowercase());
    }
    key
}
