//! systemd: the unit that finalizes what is staged, and programs of the host.
//!
//! The daemon's sandbox is not made for other programs, and what it forbids itself it must not do
//! through a child. So it asks the service manager (org.freedesktop.systemd1(5)), which starts them
//! outside, in the host's own mounts, each in a transient unit of its own. Invariants: a unit has no
//! name that was used before by this process; it is gone when its run is; a start or a run whose
//! end cannot be learned has failed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use zbus::proxy::CacheProperties;
use zbus::{Fd, OwnedObjectPath, Variant};

use super::subscribed;

/// Its stop, at shutdown, is what finalizes. It starts nothing, so it starts at once.
const FINALIZATION: &str = "ostree-finalize-staged.service";
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a unit is looked at while it runs: its end is told by a signal, which is lost only when the
/// service manager itself is started anew meanwhile.
const LOOK: Duration = Duration::from_secs(10);
/// How many signals are kept that came before the job was known whose end they may tell.
const HEARD: usize = 256;
/// How much of a program's last words is kept, in bytes.
const LAST_WORDS: u64 = 2048;
/// Share of processor and disk: that of the daemon's own unit.
const WEIGHT: u64 = 20;

/// Why a run came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The program failed; these were its last words.
    #[error("{0}")]
    Failed(String),
    /// The service manager did not start it.
    #[error("systemd does not start it: {0}")]
    NotStarted(String),
}

/// The unit that finalizes was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "systemd does not start {FINALIZATION}, without which no reboot leads into what is staged: {0}"
)]
pub struct NotArmed(String);

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        Self::NotStarted(error.to_string())
    }
}

/// One run of a program.
#[derive(Debug)]
pub struct Run {
    /// The middle of the unit's name: letters and dashes.
    pub name: &'static str,
    /// What `systemctl status` shows.
    pub description: String,
    /// The program, by its absolute path, and its arguments.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
    /// Where its standard output goes; `None` gives it back, so it must be little then.
    pub output: Option<File>,
    /// What it mounts is mounted for the whole host.
    pub in_host_mounts: bool,
}

/// The first systemd that can boot anew without the kernel.
pub const SOFT_REBOOT_SINCE: u32 = 254;

type Properties<'a> = Vec<(&'a str, Variant<'a>)>;
type Auxiliary<'a> = Vec<(&'a str, Properties<'a>)>;

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: Properties<'_>,
        auxiliary: Auxiliary<'_>,
    ) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn subscribe(&self) -> zbus::Result<()>;
    #[zbus(property)]
    fn version(&self) -> zbus::Result<String>;
    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

/// A handle; every run is a conversation of its own.
#[derive(Debug, Clone)]
pub struct Systemd {
    connection: zbus::Connection,
    version: Arc<OnceLock<u32>>,
}

impl Systemd {
    /// The service manager on that bus.
    pub fn new(connection: zbus::Connection) -> Self {
        Self {
            connection,
            version: Arc::default(),
        }
    }

    /// Its version, such as 254; `None` if it does not say.
    pub async fn version(&self) -> Option<u32> {
        if let Some(known) = self.version.get() {
            return Some(*known);
        }
        let builder = ManagerProxy::builder(&self.connection);
        let builder = builder.cache_properties(CacheProperties::No);
        let text = builder.build().await.ok()?.version().await.ok()?;
        let version = number(&text)?;
        Some(*self.version.get_or_init(|| version))
    }

    /// Whether it has soft reboots, from memory; `None` if it was never asked.
    pub fn has_soft_reboot(&self) -> Option<bool> {
        let version = self.version.get()?;
        Some(*version >= SOFT_REBOOT_SINCE)
    }

    /// Sees to it that what is staged is finalized at shutdown, and returns when that is so.
    ///
    /// Newer libostree starts the unit itself. With 2022.7 a path unit does when it sees the
    /// staged deployment, and a reboot can be quicker. A bus without a service manager is no
    /// host's, and has nothing to start.
    ///
    /// # Errors
    /// When the unit is not started within 30 seconds.
    pub async fn arm_finalization(&self) -> Result<(), NotArmed> {
        let started = tokio::time::timeout(PATIENCE, self.start(FINALIZATION)).await;
        match started {
            Ok(Ok(result)) if result == "done" => Ok(()),
            Ok(Ok(result)) => Err(NotArmed(format!("its job ended as {result:?}"))),
            Ok(Err(error)) if is_absent(&error) => Ok(()),
            Ok(Err(error)) => Err(NotArmed(error.to_string())),
            Err(_) => Err(NotArmed("it takes too long".into())),
        }
    }

    /// Starts a unit and tells how its job ended, in the service manager's word.
    async fn start(&self, unit: &str) -> zbus::Result<String> {
        let manager = ManagerProxy::new(&self.connection).await?;
        subscribe(&manager).await?;
        // Listen first: the job is over before the reply is read.
        let mut removed = removed_jobs(&manager).await?;
        let job = manager.start_unit(unit, "replace").await?;
        end_of(&job, &mut removed).await
    }

    /// Runs a program to its end, and gives its output back if it went nowhere. Dropping the future stops the
    /// program.
    ///
    /// # Errors
    /// When it fails, or its end cannot be learned.
    pub async fn run(&self, run: Run) -> Result<Vec<u8>, Error> {
        let name = unit_name(run.name);
        let (words, answer) = (memory_file()?, memory_file()?);
        let manager = ManagerProxy::new(&self.connection).await?;
        subscribe(&manager).await?;
        // Listen first: a short program ends before the reply is read.
        let mut removed = removed_jobs(&manager).await?;
        let stop = StopOnDrop::new(&manager, &name);
        let output = run.output.as_ref().unwrap_or(&answer);
        let properties = properties(&run, output, &words);
        let started = manager.start_transient_unit(&name, "fail", properties, Auxiliary::new());
        let (started, ended) = while_listening(started, &mut removed).await;
        let job = started?;
        tracing::debug!(unit = name, "{}", run.description);
        let result = loop {
            if let Some(result) = result_of(&job, &ended)? {
                break result;
            }
            match tokio::time::timeout(LOOK, end_of(&job, &mut removed)).await {
                Ok(result) => break result?,
                Err(_) if manager.get_unit(&name).await.is_err() => {
                    break "its end was missed".to_owned();
                }
                Err(_) => {}
            }
        };
        stop.disarm();
        match result.as_str() {
            "done" => read(answer, 0).map_err(|error| Error::Failed(error.to_string())),
            result => Err(Error::Failed(last_words(words, result))),
        }
    }
}

/// Without a subscriber it emits no signals; that there is one already is no error for us.
async fn subscribe(manager: &ManagerProxy<'_>) -> zbus::Result<()> {
    match manager.subscribe().await {
        Err(error) if is_absent(&error) => return Err(error),
        Err(error) => tracing::debug!(%error, "subscribing to the service manager"),
        Ok(()) => {}
    }
    Ok(())
}

/// The ends of the service manager's jobs, from now on.
async fn removed_jobs(manager: &ManagerProxy<'static>) -> zbus::Result<JobRemovedStream> {
    let manager = manager.clone();
    subscribed(async move { manager.receive_job_removed().await }).await
}

/// Waits for `call` while the queue of signals is kept empty: a full one holds up every message
/// of the connection, the reply too. Also gives the signals that came meanwhile.
async fn while_listening<T>(
    call: impl Future<Output = T>,
    removed: &mut JobRemovedStream,
) -> (T, VecDeque<JobRemoved>) {
    let mut call = std::pin::pin!(call);
    let mut heard = VecDeque::new();
    loop {
        tokio::select! {
            biased;
            output = &mut call => return (output, heard),
            Some(signal) = removed.next() => {
                heard.push_back(signal);
                if heard.len() > HEARD {
                    heard.pop_front();
                }
            }
        }
    }
}

/// How the job ended, if one of these signals says so.
fn result_of(job: &OwnedObjectPath, heard: &VecDeque<JobRemoved>) -> zbus::Result<Option<String>> {
    for signal in heard {
        let arguments = signal.args()?;
        if arguments.job() == job {
            return Ok(Some(arguments.result().clone()));
        }
    }
    Ok(None)
}

/// Waits for the end of a job; dropping the future loses no signal.
async fn end_of(job: &OwnedObjectPath, removed: &mut JobRemovedStream) -> zbus::Result<String> {
    while let Some(signal) = removed.next().await {
        let arguments = signal.args()?;
        if arguments.job() == job {
            return Ok(arguments.result().clone());
        }
    }
    Ok("the bus went away".to_owned())
}

fn is_absent(error: &zbus::Error) -> bool {
    use zbus::fdo::Error::{NameHasNoOwner, ServiceUnknown};
    matches!(
        error,
        zbus::Error::FDO(error) if matches!(**error, ServiceUnknown(_) | NameHasNoOwner(_))
    )
}

/// The number at the beginning of a version: "254.5-1~bpo12", "257~rc2", "v260".
fn number(version: &str) -> Option<u32> {
    let version = version.trim_start_matches('v');
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// A oneshot: its start is over when the program is.
fn properties<'a>(run: &'a Run, output: &'a File, words: &'a File) -> Properties<'a> {
    let program = run.command.first().map(String::as_str).unwrap_or_default();
    let command = vec![(program, run.command.clone(), false)];
    let mut properties = vec![
        ("Description", Variant::from(run.description.as_str())),
        ("Type", Variant::from("oneshot")),
        ("CollectMode", Variant::from("inactive-or-failed")),
        ("CPUWeight", Variant::from(WEIGHT)),
        ("IOWeight", Variant::from(WEIGHT)),
        ("StandardInput", Variant::from("null")),
        ("ExecStart", Variant::from(command)),
        ("StandardOutputFileDescriptor", descriptor(output)),
        ("StandardErrorFileDescriptor", descriptor(words)),
    ];
    if !run.in_host_mounts {
        // Tools keep large temporary files there, which must not outlive them.
        properties.push(("PrivateTmp", Variant::from(true)));
    }
    if !run.environment.is_empty() {
        properties.push(("Environment", Variant::from(run.environment.clone())));
    }
    properties
}

fn descriptor(file: &File) -> Variant<'_> {
    Variant::from(Fd::from(file.as_fd()))
}

fn unit_name(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("osteward-{name}-{}-{number}.service", std::process::id())
}

fn memory_file() -> Result<File, Error> {
    let created = rustix::fs::memfd_create("osteward-output", rustix::fs::MemfdFlags::CLOEXEC);
    created
        .map(File::from)
        .map_err(|error| Error::NotStarted(error.to_string()))
}

/// What is in the file from `start` on.
fn read(mut file: File, start: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last lines of standard error on one line, else how the service manager calls the end.
fn last_words(words: File, result: &str) -> String {
    let end = words.metadata().map_or(0, |file| file.len());
    let text = read(words, end.saturating_sub(LAST_WORDS)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let last: Vec<&str> = lines.iter().rev().take(3).rev().copied().collect();
    match last.join("; ").trim() {
        "" => format!("it ended with {result:?} and said nothing"),
        text => text.chars().filter(|c| !c.is_control()).collect(),
    }
}

/// Stops the unit of a run that nobody waits for any more.
struct StopOnDrop<'a> {
    manager: &'a ManagerProxy<'a>,
    name: Option<&'a str>,
}

impl<'a> StopOnDrop<'a> {
    fn new(manager: &'a ManagerProxy<'a>, name: &'a str) -> Self {
        let name = Some(name);
        Self { manager, name }
    }

    fn disarm(mut self) {
        self.name = None;
    }
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        let Some(name) = self.name else { return };
        let (connection, name) = (self.manager.inner().connection().clone(), name.to_owned());
        tokio::spawn(async move {
            let stopped = async {
                let manager = ManagerProxy::new(&connection).await?;
                manager.stop_unit(&name, "replace").await
            };
            if let Err(error) = stopped.await {
                tracing::debug!(%error, unit = name, "a unit could not be stopped");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn words(text: &[u8]) -> String {
        let mut file = memory_file().unwrap();
        file.write_all(text).unwrap();
        last_words(file, "failed")
    }

    #[test]
    fn the_last_words_are_short_and_printable() {
        assert_eq!(words(b"1\n2\n3\n4\x1b[0m\n"), "2; 3; 4[0m");
        assert_eq!(words(b"\n"), "it ended with \"failed\" and said nothing");
        let long = words(&b"x".repeat(5000));
        assert_eq!(long.len() as u64, LAST_WORDS);
    }

    #[test]
    fn versions_of_all_kinds_have_a_number() {
        for (text, expected) in [
            ("252.39-1~deb12u2", Some(252)),
            ("257~rc2", Some(257)),
            ("v260", Some(260)),
            ("254", Some(254)),
            ("", None),
            ("unknown", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }

    #[test]
    fn every_unit_has_a_name_of_its_own() {
        assert_ne!(unit_name("a"), unit_name("a"));
        assert!(unit_name("pull").starts_with("osteward-pull-"));
    }
}
