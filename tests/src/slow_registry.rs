//! A registry that stalls where a test wants it to: a relay in front of a real one.
//!
//! Owns the rule that says which answers stop, and after how many bytes. Invariants: bytes are
//! delayed or their connection is broken, never changed; what a rule does not name passes;
//! dropping the relay breaks all connections and ends its threads.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::sandbox::STATEROOT;

/// Longest time until an answer that a rule stops is asked for.
const PATIENCE: Duration = Duration::from_secs(120);

/// The relay; everything passes until it is told otherwise.
#[derive(Debug)]
pub struct SlowRegistry {
    address: SocketAddrV4,
    line: Arc<Line>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Answers to requests that contain the text stop after so many bytes.
    rule: Option<(String, u64)>,
    /// New connections are closed at once.
    is_cut: bool,
    over: bool,
    next: u64,
    requests: Vec<String>,
    connections: HashMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// The head of the request that is being answered.
    request: String,
    /// Bytes of that answer that have passed.
    passed: u64,
    waits: bool,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until some of `wanted` bytes may pass on a connection; `None` when it is broken.
    fn take(&self, id: u64, wanted: usize) -> Option<usize> {
        let mut state = self.lock();
        loop {
            let State {
                rule, connections, ..
            } = &mut *state;
            let connection = connections.get_mut(&id)?;
            let left = match rule {
                Some((text, bytes)) if connection.request.contains(text.as_str()) => {
                    bytes.saturating_sub(connection.passed)
                }
                _ => u64::MAX,
            };
            if left > 0 {
                connection.waits = false;
                let taken = usize::try_from(left).unwrap_or(wanted).min(wanted);
                connection.passed += taken as u64;
                return Some(taken);
            }
            connection.waits = true;
            self.changed.notify_all();
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn break_all(&mut self) {
        for (_, connection) in self.connections.drain() {
            // Either may be closed already.
            let _closed = connection.client.shutdown(Shutdown::Both);
            let _closed = connection.server.shutdown(Shutdown::Both);
        }
    }
}

impl SlowRegistry {
    /// Puts the relay between a host and its registry: the booted deployment tracks the image
    /// through it from now on. The daemon is started anew.
    ///
    /// # Errors
    /// When the daemon does not end or start well, or the deployment has no origin file.
    pub fn before(host: &mut Host) -> Result<Self> {
        let direct = host.registry.name("os:latest");
        let upstream = host.registry.host();
        let port = upstream.rsplit_once(':').context("no port")?.1.parse()?;
        let relay = Self::to_port(port)?;
        if let Some(daemon) = host.daemon.take() {
            ensure!(daemon.stop()?.success(), "the daemon did not end well");
        }
        let booted = host.sandbox.booted()?;
        let name = format!("{}.{}.origin", booted.checksum, booted.serial);
        let deployments = format!("ostree/deploy/{STATEROOT}/deploy");
        let origin = host.sandbox.sysroot().join(deployments).join(name);
        let text = fs::read_to_string(&origin).context("reading the origin file")?;
        ensure!(text.contains(&direct), "{direct} is not in {text}");
        fs::write(&origin, text.replace(&direct, &relay.name("os:latest")))?;
        host.start_daemon()?;
        Ok(relay)
    }

    /// A relay to a port of loopback, on loopback.
    ///
    /// # Errors
    /// When no port is free.
    pub fn to_port(upstream: u16) -> Result<Self> {
        Self::listening(Ipv4Addr::LOCALHOST, upstream)
    }

    /// A relay to a port of loopback, on another of the own addresses.
    ///
    /// # Errors
    /// When no port is free.
    pub fn listening(on: Ipv4Addr, upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind((on, 0)).context("opening a port")?;
        let address = SocketAddrV4::new(on, listener.local_addr()?.port());
        let line = Arc::new(Line::default());
        let door = Arc::clone(&line);
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if door.lock().over {
                    return;
                }
                // Whatever does not connect is dropped: the client sees a broken connection.
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream));
                let _carried = server.and_then(|server| carry(client, server, &door));
            }
        });
        Ok(Self {
            address,
            line,
            accepting: Some(accepting),
        })
    }

    /// `ADDRESS:PORT` on this side.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `ADDRESS:PORT/name` on this side.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Stops answers to requests whose head contains `text` (such as `/manifests/`, or the
    /// digest of a blob) after `bytes` bytes, headers included.
    pub fn stop(&self, text: &str, bytes: u64) {
        let rule = Some((text.to_owned(), bytes));
        self.line.set(|state| state.rule = rule);
    }

    /// Waits until an answer has been stopped by the rule.
    ///
    /// # Errors
    /// When none is within two minutes.
    pub fn wait_until_stopped(&self) -> Result<()> {
        let none = |state: &mut State| !state.connections.values().any(|one| one.waits);
        let state = self.line.lock();
        let (_state, waited) = self
            .line
            .changed
            .wait_timeout_while(state, PATIENCE, none)
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(
            !waited.timed_out(),
            "nothing was stopped within {PATIENCE:?}"
        );
        Ok(())
    }

    /// The first line of every request so far, such as `GET /v2/os/blobs/sha256:… HTTP/1.1`.
    pub fn requests(&self) -> Vec<String> {
        self.line.lock().requests.clone()
    }

    /// Breaks all connections, and new ones at once, until [`SlowRegistry::resume`].
    pub fn cut(&self) {
        self.line.set(|state| {
            state.is_cut = true;
            state.break_all();
        });
    }

    /// Lets everything pass again.
    pub fn resume(&self) {
        self.line.set(|state| {
            state.is_cut = false;
            state.rule = None;
        });
    }
}

impl Drop for SlowRegistry {
    fn drop(&mut self) {
        self.line.set(|state| {
            state.over = true;
            state.break_all();
        });
        // Wakes the accepting thread, which sees that it is over.
        let _woken = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            // It cannot panic.
            let _ended = thread.join();
        }
    }
}

/// Starts to carry a connection's bytes, both ways.
fn carry(client: TcpStream, server: TcpStream, line: &Arc<Line>) -> std::io::Result<()> {
    let (up, down) = (
        (client.try_clone()?, server.try_clone()?),
        (server.try_clone()?, client.try_clone()?),
    );
    let mut state = line.lock();
    if state.is_cut {
        return Ok(());
    }
    let id = state.next;
    state.next += 1;
    let connection = Connection {
        client,
        server,
        request: String::new(),
        passed: 0,
        waits: false,
    };
    state.connections.insert(id, connection);
    drop(state);
    let (upward, downward) = (Arc::clone(line), Arc::clone(line));
    std::thread::spawn(move || carry_up(up.0, up.1, id, &upward));
    std::thread::spawn(move || carry_down(down.0, down.1, id, &downward));
    Ok(())
}

/// Requests are small and come one after the other: each arrives at one stroke.
fn carry_up(mut from: TcpStream, mut to: TcpStream, id: u64, line: &Line) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length) = from.read(&mut buffer)
        && length > 0
    {
        let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
        line.set(|state| {
            let first = request.lines().next().unwrap_or_default();
            state.requests.push(first.to_owned());
            if let Some(connection) = state.connections.get_mut(&id) {
                connection.request = request;
                connection.passed = 0;
            }
        });
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // The client is gone, and nobody waits for the rest of the answer.
    let _closed = to.shutdown(Shutdown::Both);
    line.set(|state| drop(state.connections.remove(&id)));
}

fn carry_down(mut from: TcpStream, mut to: TcpStream, id: u64, line: &Line) {
    let mut buffer = [0; 16 << 10];
    'carrying: while let Ok(length) = from.read(&mut buffer)
        && length > 0
    {
        let mut sent = 0;
        while sent < length {
            let Some(taken) = line.take(id, length - sent) else {
                break 'carrying;
            };
            if to.write_all(&buffer[sent..sent + taken]).is_err() {
                break 'carrying;
            }
            sent += taken;
        }
    }
    let _closed = to.shutdown(Shutdown::Both);
    let _closed = from.shutdown(Shutdown::Both);
}
