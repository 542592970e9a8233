//! A file system of a test's own, small enough to be filled.
//!
//! Invariants: it is mounted in a mount namespace of the test's process and its children only,
//! and its file and loop device go with them; what a test fills, it fills by one file.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{command, run, target_dir};

/// Tells a test that it runs on a disk of its own.
const MARK: &str = "OSTEWARD_TEST_SMALL_DISK";

/// Runs `test`, the full name of a test of this program, once more with everything that
/// sandboxes are made of on a disk of `bytes`. Returns whether that has happened: then the
/// caller is the outer one, and done.
///
/// # Errors
/// When the inner test fails, with all that it said.
pub fn outside(test: &str, bytes: u64) -> Result<bool> {
    const SCRIPT: &str = r#"mount -o loop "$1" "$2" && shift 2 && exec "$@""#;
    if std::env::var_os(MARK).is_some() {
        return Ok(false);
    }
    let place = target_dir()?.join("sandbox");
    fs::create_dir_all(&place)?;
    let image = image(bytes)?;
    let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
    let mut again = command(words);
    again.args([SCRIPT, "small-disk"]).arg(image.path());
    again.arg(place).arg(std::env::current_exe()?);
    again.args(["--exact", test, "--nocapture"]);
    println!("{}", run(again.env(MARK, "1"))?);
    Ok(true)
}

fn image(bytes: u64) -> Result<tempfile::NamedTempFile> {
    let image = tempfile::NamedTempFile::new_in(target_dir()?)?;
    image.as_file().set_len(bytes)?;
    // Without a journal: of a small file system it is most.
    let words = ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal"];
    run(command(words).arg(image.path()))?;
    Ok(image)
}

/// A small file system over a directory, with what was in it.
#[derive(Debug)]
pub struct SmallDisk {
    directory: PathBuf,
    #[expect(dead_code, reason = "held for its end")]
    image: tempfile::NamedTempFile,
}

impl SmallDisk {
    /// Mounts one of `bytes` over `directory`; only for tests that are not [`outside`], whose
    /// mounts nobody else sees.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn over(directory: &Path, bytes: u64) -> Result<Self> {
        anyhow::ensure!(
            std::env::var_os(MARK).is_some(),
            "in the machine's own mounts"
        );
        let image = image(bytes)?;
        let copy = tempfile::tempdir_in(target_dir()?)?;
        let mut from = OsString::from(directory);
        from.push("/.");
        run(command(["cp", "-a"]).arg(&from).arg(copy.path()))?;
        run(command(["mount", "-o", "loop"])
            .arg(image.path())
            .arg(directory))?;
        let mut back = OsString::from(copy.path());
        back.push("/.");
        run(command(["cp", "-a"]).arg(&back).arg(directory))?;
        Ok(Self {
            directory: directory.to_owned(),
            image,
        })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = run(command(["umount", "--lazy"]).arg(&self.directory)) {
            eprintln!("left behind: {}: {error:#}", self.directory.display());
        }
    }
}

/// What fills a file system.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Ballast {
    /// Fills the file system of `directory` but for `left` bytes, more or less: the last block
    /// of any file is used only in part.
    ///
    /// # Errors
    /// When it has less than that.
    pub fn leaving(directory: &Path, left: u64) -> Result<Self> {
        let ballast = Self(directory.join("ballast"));
        let file = fs::File::create(&ballast.0)?;
        let block = rustix::fs::statvfs(directory)?.f_frsize;
        let mut size = 0;
        // What a large file takes besides its content is not known before, and what was removed
        // is free for good only when that is on the disk.
        loop {
            rustix::fs::syncfs(&file)?;
            let excess = free(directory)?.saturating_sub(left);
            if excess < block {
                return Ok(ballast);
            }
            let step = excess.min((excess / 2).max(64 << 10));
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), size, step) {
                Ok(()) => size += step,
                // The last block may be needed to note where the others are.
                Err(rustix::io::Errno::NOSPC) if excess < 8 * block => return Ok(ballast),
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("left behind: {}: {error}", self.0.display());
        }
    }
}

/// Free bytes of the file system of a directory.
///
/// # Errors
/// When there is no such directory.
pub fn free(directory: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(directory)?;
    Ok(found.f_bavail * found.f_frsize)
}
