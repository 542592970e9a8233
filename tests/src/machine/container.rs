//! A machine without a kernel of its own: the disk's deployment as a container.
//!
//! Owns how a boot is imitated: the disk is mounted, the entry chosen and `ostree-prepare-root`
//! run as a boot loader and an initramfs would, and systemd-nspawn starts the guest's service
//! manager in what comes out. From there on all is the guest's own; a reboot inside does it all
//! again. Not real are the kernel, the boot loader and a power cut's lost writes: a kill is
//! sudden for the processes, but what they wrote is on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use anyhow::{Context, Result};

use super::hardware::{Console, Hardware, Plan, Process, ROOT_OFFSET, Stream};
use super::network::{BRIDGE, CGROUPS};
use crate::process::command;

const POWER_ON: &str = include_str!("container.sh");

/// How the names of machines' control groups begin; then come the harness's process and the
/// machine.
const GROUP: &str = "osteward-";

/// A container machine.
#[derive(Debug)]
pub(super) struct Container {
    plan: Plan,
    group: PathBuf,
}

impl Container {
    pub(super) fn new(plan: Plan) -> Result<Self> {
        let own = own_group().context("the harness is in no control group of version 2")?;
        let own = Path::new(CGROUPS).join(own);
        remove_orphans(&own)?;
        // The id is only unique among the machines of this process.
        let name = format!("{GROUP}{}-{}", process::id(), plan.id);
        Ok(Self {
            group: own.join(name),
            plan,
        })
    }
}

impl Hardware for Container {
    fn power_on(&mut self, console: Console) -> Result<(Process, Stream)> {
        let plan = &self.plan;
        let stream = Stream::fifos(&plan.dir.join("agent"))?;
        let mut machine = command(["bash", "-c", POWER_ON, "container"]);
        machine
            .arg(&plan.disk)
            .arg(ROOT_OFFSET.to_string())
            .args([&plan.tree, &plan.dir])
            .args([&plan.id, BRIDGE, &format!("{}/24", plan.address)])
            .arg(&self.group)
            .arg(match console {
                Console::Log => "read-only",
                Console::Terminal => "interactive",
            })
            .arg(plan.kernel_arguments(console));
        let process = Process::start(&machine, console, &plan.console_log())?;
        Ok((process, stream))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(180)
    }

    fn clean_up(&mut self) -> Result<()> {
        remove_group(&self.group)
    }
}

/// The control group that this process is in, below the root of version 2's hierarchy.
fn own_group() -> Result<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    own.map(PathBuf::from)
        .context("no line for it in /proc/self/cgroup")
}

/// Removes the control groups of machines whose harness was killed, which nobody else does.
fn remove_orphans(own: &Path) -> Result<()> {
    for entry in fs::read_dir(own)? {
        let entry = entry?;
        let name = entry.file_name();
        let harness = name.to_str().and_then(|name| name.strip_prefix(GROUP));
        let Some((harness, _)) = harness.and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        if !Path::new("/proc").join(harness).exists()
            && let Err(error) = remove_group(&entry.path())
        {
            // Another harness may be removing it as well, or its processes still be ending.
            eprintln!("left behind: {error:#}");
        }
    }
    Ok(())
}

/// Removes a control group without processes, and those below it.
fn remove_group(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("removing {}", group.display()))
}
