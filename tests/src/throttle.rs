//! A slow way to the registry: a test decides how many bytes come through, and when.
//!
//! Invariants: bytes are delayed, never changed or lost; nothing passes that was not allowed;
//! dropping it breaks all connections and ends its threads.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::Host;

/// Longest stretch of bytes that passes at once.
const CHUNK: usize = 16 << 10;

/// How often a paced link lets some bytes pass.
const TICK: Duration = Duration::from_millis(20);

/// The link; it lets everything pass until it is told otherwise.
#[derive(Debug)]
pub struct Throttle {
    port: u16,
    gate: Arc<Gate>,
    accepting: Option<JoinHandle<()>>,
    pacing: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Bytes that may still pass towards the client; `None`: all of them.
    allowance: Option<u64>,
    over: bool,
    streams: Vec<TcpStream>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until some of `wanted` bytes may pass; `None` when the link is over.
    fn take(&self, wanted: usize) -> Option<usize> {
        let waiting = |state: &mut State| !state.over && state.allowance == Some(0);
        let state = self.lock();
        let mut state = self
            .changed
            .wait_while(state, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if state.over {
            return None;
        }
        let Some(left) = &mut state.allowance else {
            return Some(wanted);
        };
        let taken = usize::try_from(*left).unwrap_or(wanted).min(wanted);
        *left -= taken as u64;
        Some(taken)
    }
}

impl Throttle {
    /// A link to a port of loopback.
    ///
    /// # Errors
    /// When no port is free.
    pub fn to_port(upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("opening a port")?;
        let port = listener.local_addr()?.port();
        let state = State {
            allowance: None,
            over: false,
            streams: Vec::new(),
        };
        let gate = Arc::new(Gate {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let door = Arc::clone(&gate);
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if door.lock().over {
                    return;
                }
                // A registry that is down refuses; the client sees its connection broken.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)) {
                    carry(&client, &server, &door);
                }
            }
        });
        Ok(Self {
            port,
            gate,
            accepting: Some(accepting),
            pacing: None,
        })
    }

    /// Puts a link between a host and its registry: what the booted deployment tracks is
    /// reached through it from now on. The daemon is started anew.
    ///
    /// # Errors
    /// When the daemon does not end or start well, or the deployment has no origin file.
    pub fn between(host: &mut Host) -> Result<Self> {
        let direct = host.registry.name("os:latest");
        let (_, port) = host
            .registry
            .host()
            .rsplit_once(':')
            .map(|(ip, port)| (ip.to_owned(), port.to_owned()))
            .context("a registry without port")?;
        let throttle = Self::to_port(port.parse()?)?;
        if let Some(daemon) = host.daemon.take() {
            ensure!(daemon.stop()?.success(), "the daemon did not end well");
        }
        let booted = host.sandbox.booted()?;
        let origin = host.sandbox.sysroot().join(format!(
            "ostree/deploy/{}/deploy/{}.{}.origin",
            crate::sandbox::STATEROOT,
            booted.checksum,
            booted.serial
        ));
        let text = fs::read_to_string(&origin).context("reading the origin file")?;
        ensure!(text.contains(&direct), "{direct} is not in {text}");
        fs::write(
            &origin,
            text.replace(&direct, &throttle.registry_name("os:latest")),
        )?;
        host.start_daemon()?;
        Ok(throttle)
    }

    /// `127.0.0.1:PORT/name` on this side.
    pub fn registry_name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Lets nothing pass from now on.
    pub fn hold(&self) {
        self.allow(0);
    }

    /// Lets that many bytes pass from now on, then nothing.
    pub fn allow(&self, bytes: u64) {
        self.gate.set(|state| state.allowance = Some(bytes));
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.gate.set(|state| state.allowance = None);
    }

    /// Lets so many bytes a second pass, until [`Throttle::open`].
    pub fn pace(&mut self, bytes_a_second: u64) {
        self.hold();
        let gate = Arc::clone(&self.gate);
        let portion = bytes_a_second * u64::from(TICK.subsec_millis()) / 1000;
        self.pacing = Some(std::thread::spawn(move || {
            loop {
                std::thread::sleep(TICK);
                let mut state = gate.lock();
                if state.over {
                    return;
                }
                let Some(left) = &mut state.allowance else {
                    return;
                };
                // What nobody fetched is not saved up.
                *left = (*left + portion).min(2 * portion);
                drop(state);
                gate.changed.notify_all();
            }
        }));
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.gate.set(|state| {
            state.over = true;
            for stream in &state.streams {
                // It may be closed already.
                let _closed = stream.shutdown(Shutdown::Both);
            }
        });
        // Wakes the accepting thread, which sees that it is over.
        let _woken = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        for thread in [self.accepting.take(), self.pacing.take()]
            .into_iter()
            .flatten()
        {
            // Neither can panic.
            let _ended = thread.join();
        }
    }
}

/// Starts to carry one connection's bytes, both ways.
fn carry(client: &TcpStream, server: &TcpStream, gate: &Arc<Gate>) {
    let copies = || -> std::io::Result<_> {
        Ok([
            client.try_clone()?,
            client.try_clone()?,
            server.try_clone()?,
            server.try_clone()?,
        ])
    };
    let Ok([mut up_from, down_to, mut up_to, down_from]) = copies() else {
        return;
    };
    gate.lock().streams.extend(
        [client.try_clone(), server.try_clone()]
            .into_iter()
            .flatten(),
    );
    std::thread::spawn(move || {
        // Ends with either side.
        let _carried = std::io::copy(&mut up_from, &mut up_to);
        let _closed = up_to.shutdown(Shutdown::Write);
    });
    let gate = Arc::clone(gate);
    std::thread::spawn(move || carry_down(down_from, down_to, &gate));
}

fn carry_down(mut from: TcpStream, mut to: TcpStream, gate: &Gate) {
    let mut buffer = [0; CHUNK];
    'carrying: while let Ok(length) = from.read(&mut buffer)
        && length > 0
    {
        let mut sent = 0;
        while sent < length {
            let Some(taken) = gate.take(length - sent) else {
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
