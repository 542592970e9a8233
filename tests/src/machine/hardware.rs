//! What a kind of machine gives, and what it gets: the seam between [`super::Machine`], which
//! knows guests, and one module a kind, which knows how to switch them on.
//!
//! Invariants: a machine is one [`Process`] from power-on to power-off, through all of the
//! guest's own reboots; everything it started is in a PID namespace of its own and everything it
//! mounted in a mount namespace of its own, so that no end of it, nor of the harness, leaves
//! anything running or mounted.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::PipeWriter;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, mknodat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub(crate) use crate::bootable::disk::ROOT_OFFSET;
use crate::process::{children_of, command, signal};

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Unique among the machines of this machine's namespaces; at most 11 characters, which
    /// leaves room for a prefix in the name of a network interface.
    pub(crate) id: String,
    /// Its directory: nothing of it is anywhere else.
    pub(crate) dir: PathBuf,
    /// Its own raw disk, in [`Plan::dir`]; the root partition starts at
    /// [`ROOT_OFFSET`].
    pub(crate) disk: PathBuf,
    /// The root tree of version 1, from which the container kind takes `ostree-prepare-root`.
    pub(crate) tree: PathBuf,
    /// Unpacked programs that the host need not have.
    pub(crate) tools: PathBuf,
    /// User-mode Linux's initial file system.
    pub(crate) uml_initramfs: PathBuf,
    /// The guest's address in [`super::network`]'s network, given to it as `osteward.address=`.
    pub(crate) address: Ipv4Addr,
}

impl Plan {
    /// Words for the guest's kernel command line that are this machine's and not its image's.
    pub(crate) fn kernel_arguments(&self, console: Console) -> String {
        let address = format!("osteward.address={}/24", self.address);
        match console {
            Console::Log => address,
            // The image's console has a root shell then, which is all that there is to see.
            Console::Terminal => address + " lab.console quiet systemd.show_status=false",
        }
    }

    /// The file that collects what the machine says on its console, over all its boots.
    pub(crate) fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }
}

/// Who sees the machine's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// [`Plan::console_log`], appended to.
    Log,
    /// The harness's terminal, which also types.
    Terminal,
}

/// A kind of machine.
pub(crate) trait Hardware: Debug + Send {
    /// Switches the machine on. The process lives through reboots of the guest, which boot what
    /// the disk's boot entries say *then*, and ends when the guest powers off. The stream is open
    /// before the guest starts, and lives as long as the process.
    ///
    /// # Errors
    /// When it does not even start; what goes wrong later is on the console.
    fn power_on(&mut self, console: Console) -> Result<(Process, Stream)>;

    /// Releases what the end of the process did not. Called when the machine is off.
    ///
    /// # Errors
    /// With what is left behind.
    fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }

    /// How long a boot may take on a busy host: a bound for what has hung, not a wait.
    fn patience(&self) -> Duration;
}

/// The two directions of the channel to the agent.
#[derive(Debug)]
pub(crate) struct Stream {
    /// What the guest says.
    pub(crate) from_guest: File,
    /// What it is told.
    pub(crate) to_guest: File,
}

impl Stream {
    /// Makes the FIFOs `in` (to the guest) and `out` in `dir`, which is made too, unless they
    /// are there. Opened for both directions, so that neither ends while the guest is between
    /// two boots.
    ///
    /// # Errors
    /// When they cannot be made or opened.
    pub(crate) fn fifos(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let open = |name: &str| -> Result<File> {
            let path = dir.join(name);
            match mknodat(
                rustix::fs::CWD,
                &path,
                FileType::Fifo,
                Mode::RUSR | Mode::WUSR,
                0,
            ) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).context("making a FIFO"),
            }
            File::options()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()))
        };
        Ok(Self {
            from_guest: open("out")?,
            to_guest: open("in")?,
        })
    }

    /// A connected socket as a stream.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub(crate) fn socket(socket: UnixStream) -> Result<Self> {
        let from_guest = File::from(OwnedFd::from(socket));
        Ok(Self {
            to_guest: from_guest.try_clone().context("sharing a socket")?,
            from_guest,
        })
    }
}

/// A machine that is on: the first process of its PID and mount namespaces.
///
/// Dropping it is a power cut.
#[derive(Debug)]
pub(crate) struct Process {
    unshare: Child,
    ended: OwnedFd,
    // The kernel closes it if we are killed, and the machine goes down.
    _lifeline: PipeWriter,
}

impl Process {
    /// Starts `command` in new PID and mount namespaces, with `/proc` of those. When it ends,
    /// or the harness does, everything in them is killed.
    ///
    /// # Errors
    /// When the log cannot be written, or `unshare` is not there.
    pub(crate) fn start(command: &Command, console: Console, log: &Path) -> Result<Self> {
        // The end of a PID namespace's first process is, by SIGKILL, that of all of them.
        const FIRST: &str = r#"
            lifeline=$1; shift
            "$@" <&0 {lifeline}<&- &
            read -r -u "$lifeline" &
            wait -n"#;
        let (lifeline, held) = std::io::pipe().context("making a pipe")?;
        fcntl_setfd(&lifeline, FdFlags::empty()).context("passing a pipe on")?;
        let mut unshare = self::command(["unshare", "--mount", "--propagation", "private"]);
        unshare
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["bash", "-c", FIRST, "machine"])
            .arg(lifeline.as_raw_fd().to_string())
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => unshare.env(name, value),
                None => unshare.env_remove(name),
            };
        }
        match console {
            Console::Log => {
                let log = File::options().create(true).append(true).open(log);
                let log = log.context("opening the console's log")?;
                // Out of reach of a Ctrl-C, which the harness answers by dropping machines.
                unshare
                    .stderr(log.try_clone()?)
                    .stdout(log)
                    .process_group(0)
            }
            Console::Terminal => unshare.stdin(Stdio::inherit()),
        };
        let unshare = unshare.spawn().context("starting unshare")?;
        let pid = i32::try_from(unshare.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a process id out of range")?;
        Ok(Self {
            ended: pidfd_open(pid, PidfdFlags::empty()).context("watching a process")?,
            unshare,
            _lifeline: held,
        })
    }

    /// Readable when the machine is off: for waiting for it and other things.
    pub(crate) fn ended(&self) -> &OwnedFd {
        &self.ended
    }

    /// The id, here, of the machine's first process; `None` when it is off.
    ///
    /// # Errors
    /// When `/proc` cannot be listed.
    fn first(&self) -> Result<Option<u32>> {
        Ok(children_of(self.unshare.id())?.first().copied())
    }

    /// Waits until the machine is off.
    ///
    /// # Errors
    /// When it is still on after `patience`.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let ended = wait_readable(&[&self.ended], patience)?;
        ensure!(
            ended == [true],
            "the machine is still on after {patience:?}"
        );
        self.unshare.wait().context("waiting for a machine's end")
    }

    /// Kills everything in the machine at once, as a power cut would, and waits for the end.
    ///
    /// # Errors
    /// When `/proc` cannot be listed, or the kernel cannot end the processes.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if self.unshare.try_wait()?.is_some() {
            return Ok(());
        }
        match self.first()? {
            // Already gone is what is wanted.
            Some(first) => drop(signal(first, "KILL")),
            None => self.unshare.kill().context("killing unshare")?,
        }
        self.wait(Duration::from_secs(60)).map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("a machine does not end: {error:#}");
        }
    }
}

/// Waits until one of the files can be read, or has ended; says which. None after `patience`.
///
/// # Errors
/// When the kernel cannot wait.
pub(crate) fn wait_readable(files: &[&dyn AsFd], patience: Duration) -> Result<Vec<bool>> {
    let until = Instant::now() + patience;
    let mut polled: Vec<PollFd<'_>> = files
        .iter()
        .map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN))
        .collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("waiting too long")?;
        match poll(&mut polled, Some(&timeout)) {
            Err(Errno::INTR) => {}
            result => {
                result.context("waiting for a machine")?;
                return Ok(polled.iter().map(|p| !p.revents().is_empty()).collect());
            }
        }
    }
}
