//! A new file system for each round.
//!
//! ext4 passes over the inodes of files that were removed in the last minutes, one by one, whenever it
//! makes a file: a third of an import's processor time after a repository as large was removed. So
//! nothing is measured where something was removed before. Invariant: it is mounted in a mount namespace
//! of this program only, and its file and loop device go with it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use osteward_tests::process::{command, run};
use osteward_tests::sandbox;

/// Tells the program that nobody else sees its mounts.
const MARK: &str = "OSTEWARD_BENCH_MOUNTS";
/// More than all repositories of a round take; holes until then.
const BYTES: u64 = 40 << 30;
/// Files of all repositories of a round, and more.
const INODES: &str = "1500000";

/// Runs this program once more with mounts of its own; returns whether that has happened.
pub(crate) fn leave_mounts() -> Result<bool> {
    if std::env::var_os(MARK).is_some() {
        return Ok(false);
    }
    let mut again = std::process::Command::new("unshare");
    again.args(["--mount", "--propagation", "private"]);
    again.arg(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1)).env(MARK, "1");
    let status = again.status().context("unshare")?;
    ensure!(status.success(), "the measurements ended with {status}");
    Ok(true)
}

/// Where in the directory of work it is mounted.
pub(crate) fn mount_point(work: &Path) -> PathBuf {
    work.join("disk")
}

/// An empty file system, where sandboxes are made.
pub(crate) struct Disk {
    mount_point: PathBuf,
    #[expect(dead_code, reason = "held for its end")]
    file: tempfile::NamedTempFile,
}

impl Disk {
    pub(crate) fn new(work: &Path) -> Result<Self> {
        let file = tempfile::NamedTempFile::new_in(work)?;
        file.as_file().set_len(BYTES)?;
        // Nothing is left to be made in the background, where it would be in somebody's way.
        let words = ["mkfs.ext4", "-q", "-m", "0", "-N", INODES, "-E"];
        let eager = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        run(command(words).arg(eager).arg(file.path()))?;
        let mount_point = mount_point(work);
        std::fs::create_dir_all(&mount_point)?;
        sandbox::make_in(&mount_point)?;
        run(command(["mount", "-o", "loop"])
            .arg(file.path())
            .arg(&mount_point))?;
        Ok(Self { mount_point, file })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run(command(["umount", "--lazy"]).arg(&self.mount_point)) {
            eprintln!("left behind: {}: {error:#}", self.mount_point.display());
        }
    }
}
