//! The harness's end of the channel to the guest's agent (`tests/guest/agent` is the other).
//!
//! Owns the protocol, which is the same over any byte stream; one line a message:
//!
//! - to the guest: `RUN id script`, the script in base64;
//! - from it: `HELLO boot-id deployment` when the agent starts, `OUT id chunk` for what a script
//!   writes, chunks in base64, and `RC id status` when it has ended.
//!
//! Invariants: scripts run one after the other; an answer never mixes with that of an earlier
//! script, nor a boot with the one before it.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::hardware::{Process, Stream, wait_readable};

/// What a script did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Exit status, as the shell has it: 128 and more for a signal.
    pub status: i32,
    /// Standard output and standard error, as they came.
    pub output: String,
}

/// A boot of the guest, as its agent introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    /// The kernel's random name for it, and how many reboots without the kernel came since.
    pub(super) id: String,
    /// `ostree=` on the kernel's command line.
    pub(super) deployment: String,
}

/// One line from the guest.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    Hello(Boot),
    Output { id: u64, chunk: Vec<u8> },
    Ended { id: u64, status: i32 },
}

/// The channel, for as long as the machine is on.
#[derive(Debug)]
pub(super) struct Agent {
    stream: Stream,
    received: VecDeque<u8>,
    boot: Option<Boot>,
    arrived: Option<Boot>,
    last_id: u64,
}

impl Agent {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            received: VecDeque::new(),
            boot: None,
            arrived: None,
            last_id: 0,
        }
    }

    /// Waits until the agent of another boot than the last one says hello.
    pub(super) fn await_boot(&mut self, process: &Process, patience: Duration) -> Result<Boot> {
        let until = Instant::now() + patience;
        let boot = loop {
            if let Some(boot) = self.arrived.take() {
                break boot;
            }
            if let Message::Hello(boot) = self.receive(process, until)?
                && self.boot.as_ref() != Some(&boot)
            {
                break boot;
            }
        };
        self.boot = Some(boot.clone());
        Ok(boot)
    }

    /// Runs a script in the guest with `bash -c`, as root.
    ///
    /// # Errors
    /// When there is no answer: the machine went off, booted again or is silent for too long.
    pub(super) fn run(
        &mut self,
        process: &Process,
        script: &str,
        patience: Duration,
    ) -> Result<Answer> {
        self.last_id += 1;
        let line = format!("RUN {} {}\n", self.last_id, BASE64.encode(script));
        let mut to_guest = &self.stream.to_guest;
        to_guest
            .write_all(line.as_bytes())
            .context("asking the agent")?;
        let until = Instant::now() + patience;
        let mut output = Vec::new();
        loop {
            match self.receive(process, until)? {
                Message::Hello(boot) => {
                    if self.boot.as_ref() != Some(&boot) {
                        self.arrived = Some(boot);
                        bail!("the machine booted again while a script was running");
                    }
                    bail!("the agent was started again while a script was running");
                }
                Message::Output { id, chunk } if id == self.last_id => output.extend(chunk),
                Message::Ended { id, status } if id == self.last_id => {
                    let output = String::from_utf8_lossy(&output).into_owned();
                    return Ok(Answer { status, output });
                }
                // Of a script whose answer nobody waited for to its end.
                Message::Output { .. } | Message::Ended { .. } => {}
            }
        }
    }

    fn receive(&mut self, process: &Process, until: Instant) -> Result<Message> {
        loop {
            while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                // A serial line may carry noise of its own before the agent has it.
                if let Some(message) = parse(&String::from_utf8_lossy(&line)) {
                    return Ok(message);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let ready = wait_readable(&[&self.stream.from_guest, process.ended()], left)?;
            match ready[..] {
                [true, _] => self.fill()?,
                [false, true] => bail!("the machine is off"),
                _ => bail!("the agent does not answer"),
            }
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut chunk = [0; 65_536];
        let mut from_guest = &self.stream.from_guest;
        let read = from_guest.read(&mut chunk).context("hearing the agent")?;
        ensure!(read > 0, "the machine is off");
        self.received.extend(&chunk[..read]);
        Ok(())
    }
}

fn parse(line: &str) -> Option<Message> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["HELLO", id, deployment] => Some(Message::Hello(Boot {
            id: id.to_owned(),
            deployment: deployment.to_owned(),
        })),
        ["OUT", id, chunk] => Some(Message::Output {
            id: id.parse().ok()?,
            chunk: BASE64.decode(chunk).ok()?,
        }),
        ["RC", id, status] => Some(Message::Ended {
            id: id.parse().ok()?,
            status: status.parse().ok()?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_noise() {
        let boot = Boot {
            id: "1-2".into(),
            deployment: "/ostree/boot.0/os/x/0".into(),
        };
        let hello = "HELLO 1-2 /ostree/boot.0/os/x/0\r\n";
        assert_eq!(parse(hello), Some(Message::Hello(boot)));
        let output = Message::Output {
            id: 7,
            chunk: b"hi\n".to_vec(),
        };
        assert_eq!(parse("OUT 7 aGkK\n"), Some(output));
        let ended = Message::Ended { id: 7, status: 137 };
        assert_eq!(parse("RC 7 137\n"), Some(ended));
        for noise in ["", "login:", "RC 7", "RC x 0", "OUT 7 *", "HELLO 1-2"] {
            assert_eq!(parse(noise), None, "{noise:?}");
        }
    }
}
