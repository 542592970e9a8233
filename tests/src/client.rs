//! The client under test: `osteward` in a sandbox, on the sandbox's bus.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bus::Bus;
use crate::process::{build_binaries, finish};
use crate::sandbox::Sandbox;

/// What an `osteward` that ended has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Exit code; -1 when killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// The standard output as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {self:?}"))
    }

    /// Fails unless the exit code is one of `codes`.
    ///
    /// # Errors
    /// With all that was said.
    pub fn expect(self, codes: &[i32]) -> Result<Self> {
        ensure!(
            codes.contains(&self.code),
            "unexpected end of osteward: {self:#?}"
        );
        Ok(self)
    }
}

/// `osteward --bus ADDRESS …` as a command inside, for root (`None`) or another user.
///
/// # Errors
/// When the sandbox is not running or the client does not build.
pub fn osteward(sandbox: &Sandbox, bus: &Bus, uid: Option<u32>, words: &[&str]) -> Result<Command> {
    build_binaries()?;
    let address = bus.address();
    let all = ["osteward", "--bus", &address]
        .into_iter()
        .chain(words.iter().copied());
    match uid {
        None => sandbox.command(all),
        Some(uid) => sandbox.command_as(uid, all),
    }
}

/// Runs `osteward` to its end as root.
///
/// # Errors
/// When it cannot be started; its failing is an answer.
pub fn ask(sandbox: &Sandbox, bus: &Bus, words: &[&str]) -> Result<Answer> {
    ask_as(sandbox, bus, None, words)
}

/// Runs `osteward` to its end as some user.
///
/// # Errors
/// As [`ask`].
pub fn ask_as(sandbox: &Sandbox, bus: &Bus, uid: Option<u32>, words: &[&str]) -> Result<Answer> {
    let output = finish(&mut osteward(sandbox, bus, uid, words)?)?;
    Ok(Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
