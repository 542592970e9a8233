//! A service manager that runs transient units in the sandbox: systemd's part of the bus, as far as the daemon
//! knows it, played by the harness.
//!
//! Invariants: programs run outside of the daemon's mount namespace, as those of real units do; what a unit is
//! not given (its own /tmp, a share of the processor) makes no difference to what the tests look at.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use zbus::fdo::Error;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};

use crate::bus::Bus;
use crate::process::{innermost, signal};
use crate::sandbox::Sandbox;

const PATH: &str = "/org/freedesktop/systemd1";

#[derive(Debug, Default)]
struct Notes {
    /// Descriptions of all units that were started.
    descriptions: Vec<String>,
    /// The outermost process of each unit that runs.
    running: HashMap<String, u32>,
    most: usize,
    jobs: u32,
}

/// The service; it leaves the bus when it is dropped.
#[derive(Debug)]
pub struct Systemd {
    notes: Arc<Mutex<Notes>>,
    #[expect(dead_code, reason = "held for its end")]
    connection: Connection,
}

struct Manager {
    notes: Arc<Mutex<Notes>>,
    /// The words that come before those of a program, to run it in the sandbox.
    enter: Vec<std::ffi::OsString>,
}

type Properties = Vec<(String, OwnedVariant)>;
type Auxiliary = Vec<(String, Properties)>;

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a transient unit is asked to be.
#[derive(Debug, Default)]
struct Unit {
    description: String,
    words: Vec<String>,
    output: Option<File>,
    errors: Option<File>,
}

impl Unit {
    fn read(properties: &Properties) -> Result<Self> {
        let mut unit = Self::default();
        let mut environment = Vec::new();
        for (name, value) in properties {
            match name.as_str() {
                "Description" => unit.description = String::try_from(value.try_clone()?)?,
                "Environment" => environment = Vec::<String>::try_from(value.try_clone()?)?,
                "StandardOutputFileDescriptor" => unit.output = Some(file(value)?),
                "StandardErrorFileDescriptor" => unit.errors = Some(file(value)?),
                "ExecStart" => {
                    let lines: Vec<(String, Vec<String>, bool)> = value.try_clone()?.try_into()?;
                    let (_, words, _) = lines.into_iter().next().context("nothing to run")?;
                    unit.words = words;
                }
                _ => {}
            }
        }
        if !environment.is_empty() {
            environment.insert(0, "env".into());
            unit.words.splice(0..0, environment);
        }
        Ok(unit)
    }
}

fn file(value: &OwnedVariant) -> Result<File> {
    match &**value {
        Variant::Fd(descriptor) => Ok(descriptor.as_fd().try_clone_to_owned()?.into()),
        other => anyhow::bail!("no descriptor: {other:?}"),
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {}

    /// The unit that finalizes what is staged, which the sandbox's reboot plays.
    async fn start_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> zbus::fdo::Result<OwnedObjectPath> {
        if (name, mode) != ("ostree-finalize-staged.service", "replace") {
            return Err(Error::Failed(format!("Unit {name} not found.")));
        }
        let (id, job) = self.next_job()?;
        let told = Self::job_removed(&emitter, id, job.clone(), name, "done").await;
        told.map_err(|error| Error::Failed(error.to_string()))?;
        Ok(job)
    }

    fn get_unit(&self, name: &str) -> zbus::fdo::Result<OwnedObjectPath> {
        match lock(&self.notes).running.contains_key(name) {
            true => Ok(OwnedObjectPath::default()),
            false => Err(Error::Failed(format!("Unit {name} not loaded."))),
        }
    }

    fn stop_unit(&self, name: &str, mode: &str) -> zbus::fdo::Result<OwnedObjectPath> {
        let pid = lock(&self.notes).running.get(name).copied();
        let stopped = pid.map(|pid| signal(innermost(pid)?, "KILL"));
        match stopped {
            Some(Ok(())) => Ok(OwnedObjectPath::default()),
            other => Err(Error::Failed(format!("{name} ({mode}): {other:?}"))),
        }
    }

    async fn start_transient_unit(
        &self,
        name: String,
        mode: &str,
        properties: Properties,
        auxiliary: Auxiliary,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> zbus::fdo::Result<OwnedObjectPath> {
        if mode != "fail" || !auxiliary.is_empty() {
            return Err(Error::InvalidArgs("only plain units are played".into()));
        }
        let failed = |error: anyhow::Error| Error::Failed(format!("{error:#}"));
        let unit = Unit::read(&properties).map_err(failed)?;
        let mut command = Command::new(&self.enter[0]);
        command.args(&self.enter[1..]).args(&unit.words);
        let stdio = |file: Option<File>| file.map_or_else(Stdio::null, Stdio::from);
        command
            .stdin(Stdio::null())
            .stdout(stdio(unit.output))
            .stderr(stdio(unit.errors));
        let mut child = tokio::process::Command::from(command)
            .spawn()
            .map_err(|error| failed(error.into()))?;
        {
            let mut notes = lock(&self.notes);
            notes.descriptions.push(unit.description);
            notes
                .running
                .insert(name.clone(), child.id().unwrap_or_default());
            notes.most = notes.most.max(notes.running.len());
        }
        let (id, job) = self.next_job()?;
        let (notes, emitter, path) = (self.notes.clone(), emitter.to_owned(), job.clone());
        tokio::spawn(async move {
            let succeeded = child.wait().await.is_ok_and(|status| status.success());
            lock(&notes).running.remove(&name);
            let result = if succeeded { "done" } else { "failed" };
            let told = Self::job_removed(&emitter, id, path, &name, result).await;
            // The bus being gone means that the test is over.
            drop(told);
        });
        Ok(job)
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

impl Manager {
    fn next_job(&self) -> zbus::fdo::Result<(u32, OwnedObjectPath)> {
        let mut notes = lock(&self.notes);
        notes.jobs += 1;
        let path = OwnedObjectPath::try_from(format!("{PATH}/job/{}", notes.jobs));
        let path = path.map_err(|error| Error::Failed(error.to_string()))?;
        Ok((notes.jobs, path))
    }
}

impl Systemd {
    /// Takes systemd's name on the bus; its programs run in `sandbox` until that reboots.
    ///
    /// # Errors
    /// When somebody has the name.
    pub async fn start(bus: &Bus, sandbox: &Sandbox) -> Result<Self> {
        let connection = bus.connect().await?;
        let notes = Arc::new(Mutex::new(Notes::default()));
        let enter = sandbox.command(std::iter::empty::<&str>())?;
        let words = std::iter::once(enter.get_program()).chain(enter.get_args());
        let manager = Manager {
            notes: Arc::clone(&notes),
            enter: words.map(ToOwned::to_owned).collect(),
        };
        connection.object_server().at(PATH, manager).await?;
        connection
            .request_name("org.freedesktop.systemd1")
            .await
            .context("taking systemd's name")?;
        Ok(Self { notes, connection })
    }

    /// The descriptions of all units that were started, in order.
    pub fn started(&self) -> Vec<String> {
        lock(&self.notes).descriptions.clone()
    }

    /// How many units ran at a time, at most.
    pub fn most_at_a_time(&self) -> usize {
        lock(&self.notes).most
    }

    /// Whether nothing runs.
    pub fn is_idle(&self) -> bool {
        lock(&self.notes).running.is_empty()
    }
}
