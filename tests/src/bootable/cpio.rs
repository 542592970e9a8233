//! The archive format of an initramfs: cpio's `newc`.
//!
//! Written here because it is a page: everything belongs to root, nothing has a time, so the
//! same members always give the same bytes.

use std::io::Write;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

/// An archive in the making.
#[derive(Debug)]
pub(super) struct Archive<W> {
    out: W,
    members: u32,
}

impl<W: Write> Archive<W> {
    /// An archive without members.
    pub(super) fn new(out: W) -> Self {
        Self { out, members: 0 }
    }

    /// Adds a directory; the ones above it come first.
    pub(super) fn directory(&mut self, path: &str) -> Result<()> {
        self.member(path, DIRECTORY, b"")
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.member(path, SYMLINK, target.as_bytes())
    }

    /// Adds a regular file with these permission bits.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.member(path, FILE | mode, content)
    }

    /// Ends the archive and returns what it was written to.
    pub(super) fn finish(mut self) -> Result<W> {
        self.member("TRAILER!!!", 0, b"")?;
        Ok(self.out)
    }

    fn member(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.members += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too big"))?;
        let name = u32::try_from(path.len() + 1)?;
        // inode, mode, uid, gid, links, time, size, device twice (major, minor), name, checksum
        let fields = [self.members, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend(path.as_bytes());
        header.push(0);
        for part in [&header, content] {
            self.out.write_all(part)?;
            self.out
                .write_all(&[0; 3][..part.len().next_multiple_of(4) - part.len()])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{command, run};

    #[test]
    fn cpio_unpacks_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.directory("a").unwrap();
        archive.file("a/five", 0o755, b"12345").unwrap();
        archive.file("a/empty", 0o600, b"").unwrap();
        archive.symlink("link", "a/five").unwrap();
        let bytes = archive.finish().unwrap();
        std::fs::write(dir.path().join("archive"), bytes).unwrap();
        let unpack = "cpio --quiet --extract --no-preserve-owner <archive && stat -c '%n %a %s' a a/* && cat link";
        let mut unpack = command(["sh", "-ec", unpack]);
        let listed = run(unpack.current_dir(dir.path())).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert!(lines[0].starts_with("a 755 "), "{listed}");
        assert_eq!(lines[1..], ["a/empty 600 0", "a/five 755 5", "12345"]);
    }
}
