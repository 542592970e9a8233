//! `osteward` in a machine, as a person or a script there calls it.
//!
//! Owns how its answers are read. Nothing here looks at files: what a scenario asserts about
//! osteward it has from osteward, and compares with what the system itself says.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use osteward_tests::machine::Machine;
use serde_json::Value;

/// How long a first look at the sysroot may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// `osteward status`, at one moment.
#[derive(Debug)]
pub(crate) struct Status(pub(crate) Value);

impl Status {
    /// Asks for it; again while the daemon, which has just been started, has not read the
    /// sysroot of a busy machine.
    pub(crate) fn read(machine: &mut Machine) -> Result<Self> {
        Self::told_by(machine, "osteward status --json")
    }

    /// As [`Status::read`], by a command of one's own.
    pub(crate) fn told_by(machine: &mut Machine, command: &str) -> Result<Self> {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = machine.json(command)?;
            if status["update-state"] != "unknown" || Instant::now() > until {
                return Ok(Self(status));
            }
        }
    }

    /// The deployment that is `booted`, `staged` or `rollback`, if there is one.
    pub(crate) fn deployment(&self, state: &str) -> Option<&Value> {
        let mut all = self.deployments();
        all.find(|deployment| deployment["state"] == state)
    }

    /// All deployments, in boot order.
    pub(crate) fn deployments(&self) -> impl Iterator<Item = &Value> {
        self.0["deployments"].as_array().into_iter().flatten()
    }

    /// State and version of all deployments, in boot order: `staged 2, booted 1`.
    pub(crate) fn summary(&self) -> String {
        let one = |deployment: &Value| {
            let word = |key: &str| deployment[key].as_str().unwrap_or("?").to_owned();
            format!("{} {}", word("state"), word("version"))
        };
        self.deployments().map(one).collect::<Vec<_>>().join(", ")
    }

    /// The manifest digest of that deployment.
    pub(crate) fn digest(&self, state: &str) -> Result<&str> {
        let deployment = self.deployment(state);
        let digest = deployment.and_then(|it| it["digest"].as_str());
        digest.with_context(|| format!("nothing {state} with a digest: {}", self.summary()))
    }
}

/// Fails unless `osteward status` lists exactly these deployments, as [`Status::summary`] has it.
pub(crate) fn expect_status(machine: &mut Machine, wanted: &str) -> Result<Status> {
    let status = Status::read(machine)?;
    ensure!(status.summary() == wanted, "not {wanted}: {:#}", status.0);
    Ok(status)
}

/// What a verb that starts a job ended with: exit code and last JSON document.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) document: Value,
}

impl Ended {
    /// Makes one out of the output of `osteward --json`, which others may share a pipe with.
    pub(crate) fn parse(code: i32, output: &str) -> Result<Self> {
        let line = output.lines().rfind(|line| line.starts_with('{'));
        let document = line.and_then(|line| serde_json::from_str(line).ok());
        let document = document.with_context(|| format!("exit {code}, no JSON: {output}"))?;
        Ok(Self { code, document })
    }

    /// The job's result; fails unless it succeeded with exit code 0, 10 or 11.
    pub(crate) fn succeeded(&self) -> Result<&Value> {
        let document = &self.document;
        ensure!(
            matches!(self.code, 0 | 10 | 11) && document["state"] == "succeeded",
            "exit {}: {document:#}",
            self.code
        );
        Ok(&document["result"])
    }

    /// Fails unless it ended with exit code 1 and the error of that name, which may lack its
    /// prefix `org.osteward1.Error.`; returns the message.
    pub(crate) fn failed(&self, name: &str) -> Result<&str> {
        let document = &self.document;
        let found = document["error"]["name"].as_str().unwrap_or_default();
        let short = found.strip_prefix("org.osteward1.Error.").unwrap_or(found);
        ensure!(
            self.code == 1 && (short == name || found == name),
            "exit {}, not {name}: {document:#}",
            self.code
        );
        let hint = document["error"]["hint"].as_str();
        ensure!(hint.is_some(), "no hint: {document:#}");
        document["error"]["message"]
            .as_str()
            .context("an error without words")
    }
}

/// Runs `osteward WORDS` to the end of its job.
pub(crate) fn osteward(machine: &mut Machine, words: &str) -> Result<Ended> {
    let answer = machine.run(&format!("osteward --json --quiet {words}"))?;
    Ended::parse(answer.status, &answer.output).with_context(|| format!("osteward {words}"))
}

/// Runs `osteward WORDS`, which has to do what it says; returns the job's result.
pub(crate) fn done(machine: &mut Machine, words: &str) -> Result<Value> {
    let ended = osteward(machine, words)?;
    let result = ended.succeeded();
    result.cloned().with_context(|| format!("osteward {words}"))
}

/// Runs `osteward WORDS`, which has to fail with the error of that name; returns the message.
pub(crate) fn refused(machine: &mut Machine, words: &str, name: &str) -> Result<String> {
    let ended = osteward(machine, words)?;
    let message = ended.failed(name);
    message
        .map(str::to_owned)
        .with_context(|| format!("osteward {words}"))
}

/// Reboots with `osteward apply`, which asks logind.
pub(crate) fn apply(machine: &mut Machine) -> Result<()> {
    // The machine may be down before the answer is here, but a refusal is.
    if let Ok(answer) = machine.run("osteward apply") {
        ensure!(answer.status == 0, "osteward apply: {}", answer.output);
    }
    machine.await_boot()
}

/// Makes another tool hold a lock of libostree's, as a long `ostree admin` or `ostree prune`
/// would, until [`release`]. Its locks are those of fcntl(2), which need the file writable.
pub(crate) fn hold(machine: &mut Machine, lock: &str) -> Result<()> {
    let script = r#"
        systemd-run --quiet --collect --unit lab-lock --service-type=notify \
            --property=NotifyAccess=all unshare --mount bash -c 'mount -o remount,rw /sysroot &&
                exec flock --fcntl LOCK bash -c "systemd-notify --ready; exec sleep infinity"'"#;
    machine.ok(&script.replace("LOCK", lock)).map(drop)
}

/// Ends what [`hold`] began.
pub(crate) fn release(machine: &mut Machine) -> Result<()> {
    machine.ok("systemctl stop lab-lock").map(drop)
}
