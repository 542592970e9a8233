//! The daemon under test, in a sandbox, as systemd would run it.
//!
//! The harness plays the service manager: it owns the notification socket, sets the watchdog's
//! interval and keeps the log, which is shown when a test fails.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bus::Bus;
use crate::process::{build_binaries, innermost, signal};
use crate::sandbox::Sandbox;

/// How long the daemon may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a daemon is started.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Variables of its environment, besides those systemd sets.
    pub environment: Vec<(String, String)>,
    /// More command-line arguments.
    pub arguments: Vec<String>,
    /// `WATCHDOG_USEC`, in microseconds.
    pub watchdog_usec: Option<u64>,
}

/// A running `ostewardd`.
#[derive(Debug)]
pub struct Daemon {
    nsenter: Child,
    pid: u32,
    notify: UnixDatagram,
    socket: PathBuf,
    heard: Vec<String>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Starts the daemon on `bus` and waits for `READY=1`.
    ///
    /// # Errors
    /// When it ends before that or is not ready in time; its log is in the error.
    pub fn start(sandbox: &Sandbox, bus: &Bus) -> Result<Self> {
        Self::start_with(sandbox, bus, &Settings::default())
    }

    /// As [`Daemon::start`], with settings.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with(sandbox: &Sandbox, bus: &Bus, settings: &Settings) -> Result<Self> {
        let mut daemon = Self::spawn(sandbox, bus, settings)?;
        daemon.wait_for("READY=1")?;
        // nsenter, which enters a PID namespace only with a child, and below it the daemon.
        daemon.pid = innermost(daemon.nsenter.id())?;
        Ok(daemon)
    }

    /// Starts the daemon and waits for nothing.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn spawn(sandbox: &Sandbox, bus: &Bus, settings: &Settings) -> Result<Self> {
        build_binaries()?;
        let socket = sandbox.meet().join("notify");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let notify = UnixDatagram::bind(&socket).context("creating the notification socket")?;
        // As the unit does: a mount namespace of its own, so that libostree may remount /sysroot.
        let words = ["unshare", "--mount", "--propagation", "slave", "env"];
        let mut command = sandbox.command(words)?;
        command.arg(format!("NOTIFY_SOCKET={}", socket.display()));
        if let Some(usec) = settings.watchdog_usec {
            command.arg(format!("WATCHDOG_USEC={usec}"));
        }
        let filter =
            std::env::var("OSTEWARD_LOG").unwrap_or_else(|_| "info,ostewardd=debug".into());
        command.arg(format!("OSTEWARD_LOG={filter}"));
        command.args(
            settings
                .environment
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        command
            .args(["ostewardd", "--bus", &bus.address()])
            .args(&settings.arguments);
        let mut nsenter = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting nsenter")?;
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = nsenter.stderr.take().context("no standard error")?;
        let sink = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Ok(mut log) = sink.lock() {
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        let (pid, heard, reader) = (0, Vec::new(), Some(reader));
        Ok(Self {
            nsenter,
            pid,
            notify,
            socket,
            heard,
            log,
            reader,
        })
    }

    /// Waits for a notification that has this line or, with a trailing `=`, one that begins so.
    /// What came since the last wait counts.
    ///
    /// # Errors
    /// When the daemon ends meanwhile, or it takes longer than 30 s.
    pub fn wait_for(&mut self, wanted: &str) -> Result<String> {
        let start = Instant::now();
        // Short, only so that the daemon's end is noticed; a datagram wakes it at once.
        self.notify
            .set_read_timeout(Some(Duration::from_millis(200)))?;
        loop {
            let fits = |line: &String| {
                line == wanted || (wanted.ends_with('=') && line.starts_with(wanted))
            };
            if let Some(at) = self.heard.iter().position(fits) {
                let line = self.heard[at].clone();
                self.heard.drain(..=at);
                return Ok(line);
            }
            let mut buffer = [0; 4096];
            match self.notify.recv(&mut buffer) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    self.heard.extend(text.lines().map(str::to_owned));
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if let Some(status) = self.nsenter.try_wait()? {
                        bail!(
                            "the daemon ended ({status}) before {wanted}:\n{}",
                            self.log()
                        );
                    }
                    let waited = start.elapsed();
                    ensure!(
                        waited < PATIENCE,
                        "no {wanted} after {waited:?}:\n{}",
                        self.log()
                    );
                }
                Err(e) => return Err(e).context("reading notifications"),
            }
        }
    }

    /// Whether a notification with this line has come already; as [`Daemon::wait_for`], but
    /// without waiting for it.
    ///
    /// # Errors
    /// When the notifications cannot be read.
    pub fn has_said(&mut self, wanted: &str) -> Result<bool> {
        self.notify.set_nonblocking(true)?;
        let mut buffer = [0; 4096];
        while let Ok(length) = self.notify.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            self.heard.extend(text.lines().map(str::to_owned));
        }
        self.notify.set_nonblocking(false)?;
        Ok(self.heard.iter().any(|line| line == wanted))
    }

    /// The daemon's process id, as the host sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        self.log.lock().map(|log| log.clone()).unwrap_or_default()
    }

    /// The most memory it ever had resident, in KiB.
    ///
    /// # Errors
    /// When it no longer runs.
    pub fn peak_rss_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .context("no VmHWM in the process's status")
    }

    /// Ends it at once, giving it no chance to tidy up; returns all that it has written.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn kill(mut self) -> Result<String> {
        signal(self.pid, "KILL")?;
        self.nsenter.wait()?;
        self.finish_reading();
        Ok(self.log())
    }

    /// Waits for the end of what it writes, which is its own.
    fn finish_reading(&mut self) {
        if let Some(reader) = self.reader.take() {
            // The reader ends with the daemon's last file descriptor and cannot panic.
            let _read = reader.join();
        }
    }

    /// Asks it to end (SIGTERM, as systemd does) and waits; returns how it ended.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn stop(mut self) -> Result<ExitStatus> {
        signal(self.pid, "TERM")?;
        self.ended()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        self.nsenter.wait().context("waiting for the daemon")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.nsenter.try_wait(), Ok(None)) {
            // Below a daemon that is ready there can be children of its own.
            let pid = match self.pid {
                0 => innermost(self.nsenter.id()).unwrap_or(0),
                ready => ready,
            };
            // Either may fail only because it has just ended.
            let _killed = signal(pid, "KILL");
            let _ended = self.nsenter.wait();
        }
        self.finish_reading();
        if std::thread::panicking() || std::env::var_os("OSTEWARD_TEST_LOG").is_some() {
            eprintln!("--- log of ostewardd ---\n{}---", self.log());
        }
        let _removed = fs::remove_file(&self.socket);
    }
}
