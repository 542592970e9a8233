//! A logind that only takes notes: its part of the bus, played by the harness.
//!
//! Invariant: nothing reboots; every call of `RebootWithFlags` that is not refused is remembered.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath};

use crate::bus::Bus;

/// Who holds an inhibitor, as `org.freedesktop.login1(5)` lists it: what, who, why, mode,
/// user and process id.
pub type Inhibitor = (String, String, String, String, u32, u32);

/// A session: its id, user id, user name, seat and object.
pub type Session = (String, u32, String, String, OwnedObjectPath);

/// Whether a logind that goes away without an answer says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcing {
    /// It has announced the shutdown, and goes down with the host.
    Shutdown,
    /// It has not: it crashed.
    Nothing,
}

/// The one flag that is played.
const RESPECT_INHIBITORS: u64 = 1;

#[derive(Debug, Default)]
struct Notes {
    inhibitors: Vec<Inhibitor>,
    sessions: Vec<Session>,
    refuses: bool,
    vanishes: Option<Announcing>,
    reboots: usize,
}

/// The service; it leaves the bus when it is dropped.
#[derive(Debug)]
pub struct Logind {
    notes: Arc<Mutex<Notes>>,
    #[expect(dead_code, reason = "held for its end")]
    connection: Connection,
}

struct Manager {
    notes: Arc<Mutex<Notes>>,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn list_inhibitors(&self) -> Vec<Inhibitor> {
        lock(&self.notes).inhibitors.clone()
    }

    fn list_sessions(&self) -> Vec<Session> {
        lock(&self.notes).sessions.clone()
    }

    async fn reboot_with_flags(
        &self,
        flags: u64,
        #[zbus(connection)] connection: &Connection,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> zbus::fdo::Result<()> {
        let vanishes = {
            let mut notes = lock(&self.notes);
            let mut inhibitors = notes.inhibitors.iter();
            // As systemd before 257, which overrules them for root unless asked not to.
            let is_forbidden =
                inhibitors.any(|(what, .., mode, _, _)| what == "shutdown" && mode == "block");
            if flags == RESPECT_INHIBITORS && is_forbidden {
                return Err(zbus::fdo::Error::AccessDenied("an inhibitor".into()));
            }
            if flags & !RESPECT_INHIBITORS != 0 {
                return Err(zbus::fdo::Error::InvalidArgs(format!("flags {flags}")));
            }
            if notes.refuses {
                return Err(zbus::fdo::Error::Failed("not now".into()));
            }
            notes.reboots += 1;
            notes.vanishes
        };
        if let Some(announcing) = vanishes {
            if announcing == Announcing::Shutdown {
                Self::prepare_for_shutdown(&emitter, true).await?;
            }
            // The bus answers in our place.
            connection.clone().close().await?;
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

fn lock(notes: &Mutex<Notes>) -> std::sync::MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Logind {
    /// Takes logind's name on the bus; nobody is logged in and nothing is inhibited.
    ///
    /// # Errors
    /// When somebody has the name.
    pub async fn start(bus: &Bus) -> Result<Self> {
        let connection = bus.connect().await?;
        let notes = Arc::new(Mutex::new(Notes::default()));
        let manager = Manager {
            notes: Arc::clone(&notes),
        };
        let server = connection.object_server();
        server.at("/org/freedesktop/login1", manager).await?;
        connection
            .request_name("org.freedesktop.login1")
            .await
            .context("taking logind's name")?;
        Ok(Self { notes, connection })
    }

    /// From now on `who` holds one inhibitor, of `mode` (`block`, `delay`), and nobody else.
    pub fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) {
        let words = [what, who, why, mode].map(str::to_owned);
        let [what, who, why, mode] = words;
        lock(&self.notes).inhibitors = vec![(what, who, why, mode, 1000, 4242)];
    }

    /// From now on these users have one session each.
    pub fn log_in(&self, users: &[u32]) {
        let session = |uid: &u32| {
            let id = format!("c{uid}");
            (
                id,
                *uid,
                format!("u{uid}"),
                String::new(),
                OwnedObjectPath::default(),
            )
        };
        lock(&self.notes).sessions = users.iter().map(session).collect();
    }

    /// From now on every call of `RebootWithFlags` fails, or none.
    pub fn refuse_reboots(&self, refuses: bool) {
        lock(&self.notes).refuses = refuses;
    }

    /// The next call of `RebootWithFlags` gets no answer: it takes the service off the bus.
    pub fn vanish_at_reboot(&self, announcing: Announcing) {
        lock(&self.notes).vanishes = Some(announcing);
    }

    /// How often a reboot was asked for and not refused.
    pub fn reboots(&self) -> usize {
        lock(&self.notes).reboots
    }
}
