//! Machines: the same disk, run in three ways, and talked to in one.
//!
//! Owns a machine's life: its directory with a disk of its own, power, boots, and the agent in
//! the guest. What the kinds differ in is behind [`hardware::Hardware`]. Invariants: a pristine
//! disk is never written to; a machine that is dropped is off, and leaves nothing but, if it was
//! kept or its owner panicked, its directory; waits end with an event, bounds are for what hangs.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

mod agent;
mod container;
pub(crate) mod hardware;
pub mod network;
mod place;
mod qemu;
mod uml;

pub use agent::Answer;

use crate::bootable::{Bootable, work_dir};
use crate::process::{command, finish, run};
use agent::{Agent, Boot};
use hardware::{Console, Hardware, Plan, Process};

/// How long a script may take: a bound for what hangs, on a busy host and an emulated guest.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// How long a shutdown may take; osteward's own jobs may take two minutes of it.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How long somebody may play with a machine.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How a machine is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A container of the deployment: boots in a second; the kernel is the host's.
    Container,
    /// User-mode Linux: a kernel of its own, which can be cut off from its power.
    Uml,
    /// An emulated computer: all is real, boot loader and all, and slow.
    Qemu,
}

impl Kind {
    /// The kind's name: `container`, `uml` or `qemu`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Uml => "uml",
            Self::Qemu => "qemu",
        }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// When there is none; the text has the names.
    pub fn from_name(name: &str) -> Result<Self> {
        [Self::Container, Self::Uml, Self::Qemu]
            .into_iter()
            .find(|kind| kind.name() == name)
            .with_context(|| format!("no machine {name:?}: take container, uml or qemu"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A test machine, on or off.
#[derive(Debug)]
pub struct Machine {
    // In the order of dropping: what runs, then what it runs on.
    power: Option<Power>,
    hardware: Box<dyn Hardware>,
    plan: Plan,
    boot: Option<Boot>,
    kept: bool,
    _in_use: File,
}

/// What there is while a machine is on.
#[derive(Debug)]
struct Power {
    process: Process,
    agent: Agent,
}

impl Machine {
    /// Makes a machine with a copy of the pristine disk, and boots it: to the end of its boot,
    /// whatever systemd says of that. `name` is that of its directory, in `runs` of
    /// [`work_dir`]. To be called in the namespaces of [`network::enter`].
    ///
    /// # Errors
    /// When a machine of that name is in use, or it does not boot; the text has the end of what
    /// was on its console.
    pub fn start(kind: Kind, bootable: &Bootable, name: &str) -> Result<Self> {
        let mut machine = Self::assemble(kind, bootable, name)?;
        if let Err(error) = machine.power_on() {
            let dir = machine.keep()?;
            return Err(error.context(format!("its console and journal: {}", dir.display())));
        }
        Ok(machine)
    }

    /// Makes a machine and gives it the terminal as its console, until it is powered off.
    ///
    /// # Errors
    /// When a machine of that name is in use, or it cannot be switched on.
    pub fn attend(kind: Kind, bootable: &Bootable, name: &str) -> Result<()> {
        let mut machine = Self::assemble(kind, bootable, name)?;
        let (process, stream) = machine.hardware.power_on(Console::Terminal)?;
        let power = machine.power.insert(Power {
            process,
            agent: Agent::new(stream),
        });
        power.process.wait(FOR_EVER)?;
        machine.switched_off()
    }

    fn assemble(kind: Kind, bootable: &Bootable, name: &str) -> Result<Self> {
        let dir = work_dir()?.join("runs").join(name);
        let in_use = place::renew(&dir)?;
        let disk = dir.join("disk.raw");
        let mut copy = command(["cp", "--sparse=always", "--reflink=auto", "--"]);
        run(copy.args([&bootable.disk, &disk])).context("copying the disk")?;
        let (address, id) = network::next_address();
        let plan = Plan {
            id,
            dir,
            disk,
            tree: bootable.tree.clone(),
            tools: bootable.tools.clone(),
            uml_initramfs: bootable.uml_initramfs.clone(),
            address,
        };
        let hardware: Box<dyn Hardware> = match kind {
            Kind::Container => Box::new(container::Container::new(plan.clone())?),
            Kind::Uml => Box::new(uml::Uml::new(plan.clone())?),
            Kind::Qemu => Box::new(qemu::Qemu::new(plan.clone(), bootable.suite)?),
        };
        Ok(Self {
            power: None,
            hardware,
            plan,
            boot: None,
            kept: false,
            _in_use: in_use,
        })
    }

    /// Switches a machine on that is off, and waits for the end of its boot.
    ///
    /// # Errors
    /// When it is on, or does not boot.
    pub fn power_on(&mut self) -> Result<()> {
        ensure!(self.power.is_none(), "the machine is on");
        let (process, stream) = self.hardware.power_on(Console::Log)?;
        self.power = Some(Power {
            process,
            agent: Agent::new(stream),
        });
        self.await_boot()
    }

    /// Waits for the end of another boot than the last one: for when a reboot was asked for.
    ///
    /// # Errors
    /// When none comes; the text has the end of what was on the console.
    pub fn await_boot(&mut self) -> Result<()> {
        let patience = self.hardware.patience();
        let power = self.power.as_mut().context("the machine is off")?;
        let boot = power.agent.await_boot(&power.process, patience);
        match boot {
            Ok(boot) => self.boot = Some(boot),
            Err(error) => {
                let console = self.console_end();
                return Err(error.context(format!("waiting for a boot\n{console}")));
            }
        }
        // A degraded system has booted too: judging that is the caller's.
        self.run("systemctl is-system-running --wait").map(drop)
    }

    /// Runs a script in the guest with `bash -c`, as root, with nothing on standard input.
    ///
    /// # Errors
    /// When there is no answer to it, because the machine is or goes off, or boots again.
    pub fn run(&mut self, script: &str) -> Result<Answer> {
        let power = self.power.as_mut().context("the machine is off")?;
        let answer = power.agent.run(&power.process, script, SCRIPT_PATIENCE);
        answer.with_context(|| format!("running in the guest: {script}"))
    }

    /// Runs a script that is to succeed; returns what it wrote, without white space around.
    ///
    /// # Errors
    /// As [`Machine::run`], and when its status is not 0, with what it wrote.
    pub fn ok(&mut self, script: &str) -> Result<String> {
        let Answer { status, output } = self.run(script)?;
        ensure!(
            status == 0,
            "in the guest, status {status}: {script}\n{output}"
        );
        Ok(output.trim().to_owned())
    }

    /// Runs a script that is to succeed and to write JSON to standard output.
    ///
    /// # Errors
    /// As [`Machine::ok`], and when it is no JSON.
    pub fn json(&mut self, script: &str) -> Result<serde_json::Value> {
        const APART: &str = "/run/osteward-agent.stderr";
        let Answer { status, output } = self.run(&format!("exec 2>{APART}\n{script}"))?;
        if status != 0 {
            let said = self.ok(&format!("cat {APART}"))?;
            bail!("in the guest, status {status}: {script}\n{output}{said}");
        }
        serde_json::from_str(&output)
            .with_context(|| format!("in the guest: {script}\nno JSON: {output}"))
    }

    /// A name that only the last boot has, with or without the kernel; empty before the first.
    pub fn boot_id(&self) -> &str {
        self.boot.as_ref().map_or("", |boot| &boot.id)
    }

    /// `ostree=` of the last boot: the path of its deployment, or, after reboots without the
    /// kernel, of the one that the kernel started with; empty before the first.
    pub fn deployment(&self) -> &str {
        self.boot.as_ref().map_or("", |boot| &boot.deployment)
    }

    /// Asks for a reboot and waits for the end of the next boot.
    ///
    /// # Errors
    /// When the guest refuses, or does not come back.
    pub fn reboot(&mut self) -> Result<()> {
        self.ok("systemctl reboot --no-block")?;
        self.await_boot()
    }

    /// Asks for an orderly end and waits for it.
    ///
    /// # Errors
    /// When the guest refuses, or stays on.
    pub fn power_off(&mut self) -> Result<()> {
        self.ok("systemctl poweroff --no-block")?;
        if let Some(power) = self.power.as_mut() {
            power.process.wait(SHUTDOWN_PATIENCE)?;
        }
        self.switched_off()
    }

    /// Cuts the power: everything that makes the machine run is killed at once.
    ///
    /// # Errors
    /// When the processes do not end.
    pub fn power_cut(&mut self) -> Result<()> {
        if let Some(power) = self.power.as_mut() {
            power.process.kill()?;
        }
        self.switched_off()
    }

    fn switched_off(&mut self) -> Result<()> {
        self.power = None;
        self.hardware.clean_up()?;
        place::await_disk(&self.plan.disk)
    }

    /// Calls `with` with the mounted root file system of a machine that is off.
    ///
    /// # Errors
    /// When it is on, or the disk does not mount; and those of `with`.
    pub fn with_disk<T>(&mut self, with: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        ensure!(self.power.is_none(), "the machine is on");
        place::with_mounted(&self.plan.disk, &self.plan.dir.join("root"), with)
    }

    /// All that the machine said on its console, over all its boots.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn console(&self) -> Result<String> {
        self.console_since(0)
    }

    /// How many bytes the machine has said on its console so far.
    ///
    /// # Errors
    /// When the log cannot be examined.
    pub fn console_length(&self) -> Result<u64> {
        let log = fs::metadata(self.plan.console_log());
        Ok(log.context("examining the console's log")?.len())
    }

    /// What the machine said on its console after so many bytes.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn console_since(&self, length: u64) -> Result<String> {
        let mut said = Vec::new();
        let mut log = File::open(self.plan.console_log()).context("opening the console's log")?;
        log.seek(SeekFrom::Start(length))?;
        log.read_to_end(&mut said)
            .context("reading the console's log")?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    fn console_end(&self) -> String {
        let console = self.console().unwrap_or_default();
        let lines: Vec<&str> = console.lines().collect();
        let end = lines.len().saturating_sub(40);
        lines[end..].join("\n")
    }

    /// Keeps the machine's directory, with the journal of its boots as text, and cuts its power.
    /// Returns the directory.
    ///
    /// # Errors
    /// When the journal cannot be read; the directory is kept all the same.
    pub fn keep(&mut self) -> Result<PathBuf> {
        self.kept = true;
        if let Some(power) = self.power.as_mut() {
            let patience = Duration::from_secs(10);
            // The machine may well be out of order: then the journal has what was written.
            drop(
                power
                    .agent
                    .run(&power.process, "journalctl --sync", patience),
            );
        }
        self.power_cut()?;
        let text = File::create(self.plan.dir.join("journal.txt"))?;
        self.with_disk(|root| {
            let mut export = command(["journalctl", "--no-pager", "--merge", "--output"]);
            export.args(["short-precise", "--directory"]);
            export.arg(root.join("ostree/deploy/default/var/log/journal"));
            let written = finish(export.stdout(text))?;
            ensure!(
                written.status.success(),
                "reading the journal: {}",
                String::from_utf8_lossy(&written.stderr)
            );
            Ok(())
        })?;
        Ok(self.plan.dir.clone())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let end = if self.kept {
            self.power_cut()
        } else if thread::panicking() {
            self.keep().map(|dir| eprintln!("kept: {}", dir.display()))
        } else {
            self.power_cut()
                .and_then(|()| fs::remove_dir_all(&self.plan.dir).context("removing the machine"))
        };
        if let Err(error) = end {
            eprintln!("{}: {error:#}", self.plan.dir.display());
        }
    }
}
