//! A polkit agent on the terminal, for sessions that have none.
//!
//! Owns the child process `pkttyagent`, which asks for the password where no desktop
//! does. Invariants: it is only there where a person is, on the system bus and not for
//! root, who is never asked; it ends with this value; where it is not installed polkit
//! still finds the desktop's agent.

use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

/// How long the agent may take to register; a call made too early only asks in vain.
const PATIENCE: Duration = Duration::from_secs(3);

/// The agent; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    _child: Child,
}

impl Agent {
    /// Starts the agent and waits until polkit knows it. `None` where it is of no use.
    pub(crate) async fn start() -> Option<Self> {
        if is_root() {
            return None;
        }
        // It closes the descriptor that is named once it is registered.
        let mut child = Command::new("pkttyagent")
            .args(["--notify-fd", "1", "--fallback"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let mut registered = child.stdout.take()?;
        let mut nothing = Vec::new();
        // An agent that is late is as good as one that is not there.
        let _ = tokio::time::timeout(PATIENCE, registered.read_to_end(&mut nothing)).await;
        Some(Self { _child: child })
    }
}

/// The owner of a process's directory is its effective user.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
