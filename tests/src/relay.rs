//! A way to the registry that a test can trouble: a relay in front of a real one.
//!
//! Owns what becomes of each request (a rule), and how many bytes pass, on one connection and on
//! all together. Invariants: what comes from the registry is delayed or broken off, never changed;
//! what no rule names passes; dropping the relay breaks all connections and ends its threads.

mod pace;
mod request;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use self::request::{Request, Way, answer};

use crate::host::Host;

/// Longest time until an answer that a rule stops is asked for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest stretch of bytes that passes at once.
const CHUNK: usize = 16 << 10;

/// The relay; everything passes until it is told otherwise.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddrV4,
    line: Arc<Line>,
    accepting: Option<JoinHandle<()>>,
    pacing: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Line {
    state: Mutex<State>,
    changed: Condvar,
}

type Rule = Box<dyn FnMut(&Request) -> Way + Send>;

#[derive(Default)]
struct State {
    rule: Option<Rule>,
    requests: Vec<Request>,
    /// Bytes that may still pass towards clients; `None`: all of them.
    allowance: Option<u64>,
    /// Somebody waits for that.
    is_held: bool,
    /// Bytes that have passed, both ways.
    carried: u64,
    /// Bytes after which a connection breaks, of all its answers together.
    each: Option<u64>,
    /// How many broke by that.
    cuts: usize,
    /// How long a request is on its way.
    delay: Duration,
    /// New connections are closed at once.
    is_cut: bool,
    over: bool,
    next: u64,
    connections: HashMap<u64, Connection>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("requests", &self.requests.len())
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// Bytes of the present answer after which it stops or breaks.
    limit: Option<u64>,
    breaks: bool,
    /// Bytes of the present answer that have passed.
    passed: u64,
    /// Those of all answers.
    total: u64,
    /// It has come to the limit.
    waits: bool,
}

impl Connection {
    fn close(&self) {
        // Either may be closed already.
        let _closed = self.client.shutdown(Shutdown::Both);
        let _closed = self.server.shutdown(Shutdown::Both);
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Decides what becomes of a request on a connection.
    fn decide(&self, id: u64, request: Request) -> Way {
        let mut state = self.lock();
        let way = match &mut state.rule {
            Some(rule) => rule(&request),
            None => Way::Pass,
        };
        state.requests.push(request);
        if let Some(connection) = state.connections.get_mut(&id) {
            connection.passed = 0;
            connection.breaks = matches!(way, Way::Break(_));
            connection.limit = match way {
                Way::Stop(bytes) | Way::Break(bytes) => Some(bytes),
                Way::Pass | Way::Whole | Way::Answer(_) => None,
            };
        }
        drop(state);
        self.changed.notify_all();
        way
    }

    /// Waits until some of `wanted` bytes may pass on a connection; `None` when it is broken.
    fn take(&self, id: u64, wanted: usize) -> Option<usize> {
        let mut state = self.lock();
        loop {
            let State {
                allowance,
                is_held,
                carried,
                each,
                cuts,
                connections,
                ..
            } = &mut *state;
            let connection = connections.get_mut(&id)?;
            let limit = connection.limit.unwrap_or(u64::MAX);
            let left = limit.saturating_sub(connection.passed);
            let room = each.map_or(u64::MAX, |most| most.saturating_sub(connection.total));
            if room == 0 || (left == 0 && connection.breaks) {
                *cuts += usize::from(room == 0);
                connection.close();
                connections.remove(&id);
                return None;
            }
            let allowed = left.min(room).min(allowance.unwrap_or(u64::MAX));
            if allowed > 0 {
                connection.waits = false;
                let taken = usize::try_from(allowed).unwrap_or(wanted).min(wanted);
                connection.passed += taken as u64;
                connection.total += taken as u64;
                *carried += taken as u64;
                if let Some(bytes) = allowance {
                    *bytes -= taken as u64;
                }
                return Some(taken);
            }
            connection.waits = left == 0;
            *is_held = left > 0;
            self.changed.notify_all();
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Relay {
    /// Puts the relay between a host and its registry: the booted deployment tracks the image
    /// through it from now on. The daemon is started anew.
    ///
    /// # Errors
    /// When the daemon does not end or start well, or the deployment has no origin file.
    pub fn before(host: &mut Host) -> Result<Self> {
        let relay = Self::to_port(host.registry.port())?;
        host.track(&relay.name("os:latest"))?;
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
            pacing: None,
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

    /// Decides about all further requests, one at a time.
    pub fn rule(&self, rule: impl FnMut(&Request) -> Way + Send + 'static) {
        self.line.set(|state| state.rule = Some(Box::new(rule)));
    }

    /// Stops answers to requests whose path contains `text` (such as `/manifests/`, or the
    /// digest of a blob) after `bytes` bytes, headers included.
    pub fn stop(&self, text: &str, bytes: u64) {
        let text = text.to_owned();
        self.rule(move |request| match request.path.contains(&text) {
            true => Way::Stop(bytes),
            false => Way::Pass,
        });
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

    /// Breaks all connections, and new ones at once, until [`Relay::resume`].
    pub fn cut(&self) {
        self.line.set(|state| {
            state.is_cut = true;
            for (_, connection) in state.connections.drain() {
                connection.close();
            }
        });
    }

    /// Lets everything pass again.
    pub fn resume(&self) {
        self.line.set(|state| {
            state.is_cut = false;
            state.rule = None;
            state.allowance = None;
            state.each = None;
            for connection in state.connections.values_mut() {
                connection.limit = None;
            }
        });
    }

    /// Lets nothing pass from now on.
    pub fn hold(&self) {
        self.allow(0);
    }

    /// Lets that many bytes pass from now on, then nothing.
    pub fn allow(&self, bytes: u64) {
        self.line.set(|state| {
            state.allowance = Some(bytes);
            state.is_held = false;
        });
    }

    /// What was asked for so far.
    pub fn requests(&self) -> Vec<Request> {
        self.line.lock().requests.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.line.set(|state| state.over = true);
        self.cut();
        // Wakes the accepting thread, which sees that it is over.
        let _woken = TcpStream::connect(self.address);
        for thread in [self.accepting.take(), self.pacing.take()]
            .into_iter()
            .flatten()
        {
            // Neither can panic.
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
        limit: None,
        breaks: false,
        passed: 0,
        total: 0,
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
    let mut buffer = [0; CHUNK];
    let mut is_new = true;
    while let Ok(length) = from.read(&mut buffer)
        && length > 0
    {
        let bytes = &buffer[..length];
        line.let_travel(bytes, std::mem::take(&mut is_new));
        let carried = match Request::parse(bytes) {
            // What goes through a tunnel, for example.
            None => to.write_all(bytes),
            Some(request) => match line.decide(id, request.clone()) {
                Way::Answer(answer) => from.write_all(&answer),
                Way::Whole => to.write_all(&request.without_range()),
                Way::Pass | Way::Stop(_) | Way::Break(_) => to.write_all(bytes),
            },
        };
        if carried.is_err() {
            break;
        }
    }
    // The client is gone, and nobody waits for the rest of the answer.
    let _closed = to.shutdown(Shutdown::Both);
    line.set(|state| drop(state.connections.remove(&id)));
}

fn carry_down(mut from: TcpStream, mut to: TcpStream, id: u64, line: &Line) {
    let mut buffer = [0; CHUNK];
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
