//! What a program uses: time, processor time, memory, and bytes written to disk, out of `/proc`.
//!
//! Invariant: children that were waited for count as their parent does; processor time is the
//! kernel's, of the whole process, in ticks of 10 ms.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// How often the memory of a program and its children is looked at: nothing tells of its peak.
const GLANCE: Duration = Duration::from_millis(50);

/// What was used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// From the beginning to the end.
    pub wall: Duration,
    /// Processor time.
    pub cpu: Duration,
    /// Most bytes resident at once: by the kernel's own mark for a process that runs on (`VmHWM`),
    /// else the most that was seen of a program and its children together.
    pub peak: u64,
    /// Bytes that are, or are to be, written to disk.
    pub written: u64,
}

/// Watches a process that runs on.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    begun: Instant,
    before: Counters,
}

#[derive(Clone, Copy, Debug)]
struct Counters {
    cpu: Duration,
    written: u64,
}

impl Counters {
    fn of(pid: u32) -> Result<Self> {
        let stat =
            fs::read_to_string(format!("/proc/{pid}/stat")).context("reading processor times")?;
        let ticks = ticks_in(&stat).context("an odd /proc/PID/stat")?;
        let io = fs::read_to_string(format!("/proc/{pid}/io")).context("reading bytes written")?;
        let field = |name: &str| -> Result<u64> {
            let line = io.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.context("an odd /proc/PID/io")?.trim().parse()?)
        };
        let hertz = rustix::param::clock_ticks_per_second();
        let written = field("write_bytes:")?.saturating_sub(field("cancelled_write_bytes:")?);
        Ok(Self {
            cpu: Duration::from_millis(ticks * 1000 / hertz),
            written,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            written: self.written.saturating_sub(before.written),
        }
    }
}

/// Ticks in user and system mode, own ones and those of children that were waited for.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields = after_name.split_whitespace().skip(11).take(4);
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    (ticks.len() == 4).then(|| ticks.iter().sum())
}

/// A line of `/proc/PID/status`, in bytes.
fn status(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

impl Meter {
    /// Begins to watch a process; forgets how much memory it has had.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn start(pid: u32) -> Result<Self> {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("forgetting a peak of memory")?;
        let before = Counters::of(pid)?;
        Ok(Self {
            pid,
            begun: Instant::now(),
            before,
        })
    }

    /// What the process has used since the start.
    ///
    /// # Errors
    /// When it has ended.
    pub fn stop(&self) -> Result<Usage> {
        let wall = self.begun.elapsed();
        let used = Counters::of(self.pid)?.since(self.before);
        let peak = status(self.pid, "VmHWM:").context("no VmHWM")?;
        Ok(Usage {
            wall,
            cpu: used.cpu,
            peak,
            written: used.written,
        })
    }
}

/// Processor time that a process has used so far.
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    Ok(Counters::of(pid)?.cpu)
}

/// Runs a program to its end; returns what it wrote to standard output, and what it used.
///
/// # Errors
/// When it cannot be started or fails, with what it wrote.
pub fn measure(command: &mut Command) -> Result<(String, Usage)> {
    let (mut output, mut errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command
        .stdout(output.try_clone()?)
        .stderr(errors.try_clone()?)
        .stdin(Stdio::null());
    let begun = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let pid = child.id();
    let id = Pid::from_child(&child);
    let (ended, end) = channel();
    let (wall, peak) = std::thread::scope(|scope| {
        scope.spawn(move || {
            // It stays to be looked at until it is waited for in earnest.
            let waited = waitid(
                WaitId::Pid(id),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            );
            // Nobody listens only if the other side has panicked.
            let _told = ended.send(waited.map(|_| begun.elapsed()));
        });
        let mut peak = resident(pid);
        loop {
            match end.recv_timeout(GLANCE) {
                Ok(wall) => return Ok((wall?, peak)),
                Err(RecvTimeoutError::Timeout) => peak = peak.max(resident(pid)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(anyhow!("nobody waits for {command:?}"));
                }
            }
        }
    })?;
    let used = Counters::of(pid);
    let status = child.wait()?;
    let (output, errors) = (text(&mut output)?, text(&mut errors)?);
    ensure!(
        status.success(),
        "{command:?} failed ({status})\n{output}{errors}"
    );
    let used = used?;
    Ok((
        output,
        Usage {
            wall,
            cpu: used.cpu,
            peak,
            written: used.written,
        },
    ))
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Bytes that a process and those it started have resident now.
fn resident(pid: u32) -> u64 {
    // Any of them may end while it is looked at.
    let own = status(pid, "VmRSS:").unwrap_or(0);
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let lists =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .filter_map(Result::ok)
        .collect();
    own + children.into_iter().map(resident).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::command;

    #[test]
    fn ticks_of_children_count() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 100 20 3 1 20 0 1 0 5";
        assert_eq!(ticks_in(stat), Some(124));
        assert_eq!(ticks_in("7 (a) S 1"), None);
    }

    #[test]
    fn a_program_is_measured_with_its_children() {
        let script = "sh -c 'i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done'; echo done";
        let (output, used) = measure(&mut command(["sh", "-c", script])).unwrap();
        assert_eq!(output, "done\n");
        assert!(
            used.cpu > Duration::from_millis(50) && used.cpu < 2 * used.wall,
            "{used:?}"
        );
        assert!(used.peak > 100 << 10, "{used:?}");
        assert!(
            measure(&mut command(["sh", "-c", "echo why >&2; false"]))
                .unwrap_err()
                .to_string()
                .contains("why")
        );
    }

    #[test]
    fn a_process_that_runs_on_is_measured() {
        let meter = Meter::start(std::process::id()).unwrap();
        let waste = vec![1_u8; 64 << 20];
        let used = meter.stop().unwrap();
        assert!(used.peak > waste.len() as u64, "{used:?}");
    }
}
