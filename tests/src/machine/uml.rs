//! A machine whose kernel is user-mode Linux: an ordinary process, with a disk and a network.
//!
//! Owns how such a machine is switched on; `uml.sh` says how it boots. Its own are the kernel, the
//! file system's journal and the reboots, and all of it ends with a SIGKILL as with a power cut:
//! what the guest did not write is not on the disk. Not real is the boot loader, which is a reader
//! of the boot entries, and the kernel is not the one in the image.

use std::time::Duration;

use anyhow::Result;

use super::hardware::{Console, Hardware, Plan, Process, ROOT_OFFSET, Stream};
use super::network::Tap;
use crate::process::command;

const POWER_ON: &str = include_str!("uml.sh");

/// A user-mode Linux machine.
#[derive(Debug)]
pub(super) struct Uml {
    plan: Plan,
    tap: Tap,
}

impl Uml {
    pub(super) fn new(plan: Plan) -> Result<Self> {
        let tap = Tap::new(format!("tap-{}", plan.id))?;
        Ok(Self { plan, tap })
    }
}

impl Hardware for Uml {
    fn power_on(&mut self, console: Console) -> Result<(Process, Stream)> {
        let plan = &self.plan;
        let stream = Stream::fifos(&plan.dir.join("agent"))?;
        let mut machine = command(["bash", "-c", POWER_ON, "uml"]);
        machine
            .args([&plan.tools, &plan.dir, &plan.uml_initramfs])
            .arg(ROOT_OFFSET.to_string())
            .arg(self.tap.name())
            .arg(match console {
                Console::Log => "null,fd:1",
                Console::Terminal => "fd:0,fd:1",
            })
            .arg(plan.kernel_arguments(console));
        let process = Process::start(&machine, console, &plan.console_log())?;
        Ok((process, stream))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5 * 60)
    }
}
