//! An emulated computer: firmware, boot loader, the image's own kernel.
//!
//! Owns QEMU's command line, tuned for emulation without help from the processor: the firmware
//! and the kernel find no device that nobody needs. The guest reaches the harness through QEMU's
//! own network, in which the harness has the same address as elsewhere, and the guest the one that
//! it takes without being told: the boot entries are the boot loader's, nothing is added to them.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::hardware::{Console, Hardware, Plan, Process, Stream, wait_readable};
use crate::bootable::Suite;
use crate::bootable::disk::tool;
use crate::process::command;

/// The port's name by which the guest's agent knows it.
const AGENT_PORT: &str = "osteward";
/// The socket of the agent's channel, in the machine's directory.
const AGENT_SOCKET: &str = "agent";
/// How long QEMU may take to begin with a machine.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A machine that QEMU emulates.
#[derive(Debug)]
pub(super) struct Qemu {
    plan: Plan,
}

impl Qemu {
    /// The machine, unless the boot loader would not find the suite's kernel.
    pub(super) fn new(plan: Plan, suite: Suite) -> Result<Self> {
        ensure!(
            suite != Suite::Bookworm,
            "Debian 12's libostree writes boot entries for a /boot that is a file system of its \
             own, and this disk has none: take uml or container"
        );
        Ok(Self { plan })
    }

    /// QEMU's words; its working directory is to be the machine's.
    fn words(&self, console: Console) -> Vec<String> {
        let Plan { id, tools, .. } = &self.plan;
        let firmware = |dir: &str| tools.join("usr/share").join(dir).display().to_string();
        let accelerator = if processor_helps() {
            "kvm"
        } else {
            "tcg,thread=multi,tb-size=512"
        };
        let serial = match console {
            Console::Log => {
                format!(
                    "file,id=console,path={},append=on",
                    escaped(&self.plan.console_log())
                )
            }
            // Sharing it makes QEMU listen to Ctrl-A x as well, the way out of a guest that hangs.
            Console::Terminal => "stdio,id=console,mux=on,signal=off".into(),
        };
        // What the guest wrote outlives a killed QEMU in the host's memory: it need not wait until
        // the host's disk has it.
        let disk = format!(
            "if=none,id=disk,file={},format=raw,cache=unsafe,discard=unmap",
            escaped(&self.plan.disk)
        );
        let agent = format!("socket,id=agent,path={AGENT_SOCKET}");
        let port = format!("virtserialport,chardev=agent,name={AGENT_PORT}");
        let mut words: Vec<String> = Vec::new();
        let mut add = |more: &[&str]| words.extend(more.iter().map(|word| (*word).to_owned()));
        add(&["-name", id, "-no-user-config", "-nodefaults"]);
        add(&["-L", &firmware("seabios"), "-L", &firmware("qemu")]);
        add(&["-machine", "q35,sata=off,smbus=off,usb=off,hpet=off"]);
        add(&["-accel", accelerator, "-cpu", "max", "-smp", "2"]);
        add(&["-m", "1024", "-display", "none"]);
        add(&["-chardev", &serial, "-serial", "chardev:console"]);
        if console == Console::Terminal {
            // The image's console has a root shell then.
            add(&[
                "-smbios",
                "type=11,value=io.systemd.credential:lab.console=1",
            ]);
        }
        add(&[
            "-drive",
            &disk,
            "-device",
            "virtio-blk-pci,drive=disk,bootindex=0",
        ]);
        add(&["-netdev", "user,id=net"]);
        add(&["-device", "virtio-net-pci,netdev=net,romfile="]);
        add(&["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        add(&["-chardev", &agent, "-device", &port]);
        words
    }
}

impl Hardware for Qemu {
    fn power_on(&mut self, console: Console) -> Result<(Process, Stream)> {
        let plan = &self.plan;
        let listener = listen(&plan.dir)?;
        // It starts in the machine's directory: a socket's name has little room for a path.
        let mut machine = command(["sh", "-c", r#"cd "$1" && shift && exec "$@""#, "qemu"]);
        let qemu = tool(&plan.tools, "usr/bin/qemu-system-x86_64");
        machine
            .arg(&plan.dir)
            .arg(qemu.get_program())
            .args(qemu.get_args())
            .args(self.words(console));
        let process = Process::start(&machine, console, &plan.console_log())?;
        let ready = wait_readable(&[&listener, process.ended()], START_PATIENCE)?;
        ensure!(
            ready == [true, false],
            "QEMU does not start: see {}",
            plan.console_log().display()
        );
        let (socket, _) = listener.accept().context("meeting QEMU")?;
        Ok((process, Stream::socket(socket)?))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(15 * 60)
    }
}

/// Listens on the agent's socket in `dir`, by a name that is short wherever that is.
fn listen(dir: &Path) -> Result<UnixListener> {
    let path = dir.join(AGENT_SOCKET);
    if path.exists() {
        fs::remove_file(&path)?;
    }
    let dir = File::open(dir)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(AGENT_SOCKET);
    UnixListener::bind(short).context("making the agent's socket")
}

/// A path as a value in QEMU's lists, where a comma is written twice.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Whether the processor can run guests itself, and not only some `/dev/kvm` is there.
fn processor_helps() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| {
        let flags = processors.lines().find(|line| line.starts_with("flags"));
        flags.is_some_and(|line| line.split_whitespace().any(|word| word == flag))
    };
    (has("vmx") || has("svm")) && File::options().write(true).open("/dev/kvm").is_ok()
}
