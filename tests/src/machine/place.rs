//! Where a machine is kept: its directory, which one process has at a time, and its disk, which
//! one device has at a time.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::hardware::ROOT_OFFSET;
use crate::process::{command, run};

/// Makes a directory, or empties it, and marks it as in use for as long as the file is open.
pub(super) fn renew(dir: &Path) -> Result<File> {
    let in_use = loop {
        fs::create_dir_all(dir)?;
        let opened = File::open(dir)?;
        opened
            .try_lock()
            .with_context(|| format!("{} is in use by another run", dir.display()))?;
        // Whoever had it may have removed it while we opened it.
        let named = dir.metadata().map(|now| now.ino());
        if named.is_ok_and(|now| opened.metadata().is_ok_and(|ours| ours.ino() == now)) {
            break opened;
        }
    };
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let removed = if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())
        } else {
            fs::remove_file(entry.path())
        };
        removed.with_context(|| format!("removing {}", entry.path().display()))?;
    }
    Ok(in_use)
}

/// Calls `with` with the root file system of a disk that nobody uses, mounted at `root`.
pub(super) fn with_mounted<T>(
    disk: &Path,
    root: &Path,
    with: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    fs::create_dir_all(root)?;
    let options = format!("loop,offset={ROOT_OFFSET}");
    run(command(["mount", "-o", &options]).args([disk, root])).context("mounting a disk")?;
    let result = with(root);
    run(command(["umount"]).arg(root)).context("unmounting a disk")?;
    await_disk(disk)?;
    result
}

/// Waits until no loop device has the disk: the kernel lets go of mounts a moment after the last
/// process that had them, and two devices of one file would each have their own truth.
pub(super) fn await_disk(disk: &Path) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    while in_loop_device(disk)? {
        ensure!(Instant::now() < until, "the kernel keeps the disk");
        // Nothing tells about the end of a loop device.
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether a loop device is backed by the file, whatever it is mounted as.
fn in_loop_device(disk: &Path) -> Result<bool> {
    for device in fs::read_dir("/sys/block").context("listing block devices")? {
        let backing = device?.path().join("loop/backing_file");
        // Devices come and go, and most have no such file.
        if fs::read_to_string(backing).is_ok_and(|file| Path::new(file.trim_end()) == disk) {
            return Ok(true);
        }
    }
    Ok(false)
}
