//! Content objects as libostree names them and keeps them in a `bare` repository.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// File type bits of `st_mode`.
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Bytes that are hashed, and written, at a time: one more than the daemon holds of a file in memory, to
/// look whether it is there before it is written.
const CHUNK: usize = (2 << 20) + 1;

/// What a thread reads files into.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; CHUNK]
}

/// The directory of objects.
#[derive(Debug)]
pub(super) struct Objects {
    /// Opened once for each first byte of names.
    directories: Vec<OwnedFd>,
}

/// What an object has besides its content.
struct Attributes {
    uid: u32,
    gid: u32,
    mode: u32,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    symlink: Vec<u8>,
}

impl Attributes {
    fn of<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Self> {
        let symlink = match entry.header().entry_type() {
            tar::EntryType::Symlink => entry
                .link_name_bytes()
                .context("a link to nothing")?
                .to_vec(),
            _ => Vec::new(),
        };
        let header = entry.header();
        let (uid, gid) = (u32::try_from(header.uid()?)?, u32::try_from(header.gid()?)?);
        let mode = match symlink.is_empty() {
            true => REGULAR | header.mode()? & 0o7777,
            false => SYMLINK | 0o777,
        };
        let mut xattrs = Vec::new();
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                xattrs.push(([name, b"\0"].concat(), extension.value_bytes().to_vec()));
            }
        }
        xattrs.sort();
        Ok(Self {
            uid,
            gid,
            mode,
            xattrs,
            symlink,
        })
    }

    /// What is hashed before the content: `(uuuusa(ayay))` behind its length.
    fn header(&self) -> Vec<u8> {
        let mut variant = Vec::new();
        for number in [self.uid, self.gid, self.mode, 0] {
            variant.extend(number.to_be_bytes());
        }
        variant.extend(&self.symlink);
        variant.push(0);
        let text_end = variant.len();
        let pairs = self.xattrs.iter().map(|(name, value)| {
            let body = [&name[..], &value[..]].concat();
            framed(body, &[name.len()])
        });
        let (mut array, mut ends) = (Vec::new(), Vec::new());
        for pair in pairs {
            array.extend(pair);
            ends.push(array.len());
        }
        variant.extend(framed(array, &ends));
        let variant = framed(variant, &[text_end]);
        // Far from overflowing: attributes have at most 64 KiB each.
        let length = variant.len() as u32;
        [&length.to_be_bytes()[..], &[0; 4], &variant].concat()
    }
}

/// A GVariant container: its body and, behind it, where its members end, in as few bytes as can be.
fn framed(mut body: Vec<u8>, ends: &[usize]) -> Vec<u8> {
    let fits = |width: usize| body.len() + width * ends.len() < 1 << (8 * width);
    let width = [1, 2, 4]
        .into_iter()
        .find(|width| fits(*width))
        .unwrap_or(8);
    for end in ends {
        body.extend(&end.to_le_bytes()[..width]);
    }
    body
}

impl Objects {
    /// Opens `path`, or makes it; it is the `objects` of a repository.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let directories = (0..=255_u8).map(|byte| {
            let path = path.join(format!("{byte:02x}"));
            std::fs::create_dir_all(&path)?;
            Ok(rustix::fs::open(
                &path,
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?)
        });
        Ok(Self {
            directories: directories.collect::<Result<_>>()?,
        })
    }

    /// Hashes a member of a layer, if it becomes an object, and writes it unless it is there.
    /// `buffer` is one that [`buffer`] has made.
    pub(super) fn add<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        writes: bool,
        buffer: &mut [u8],
    ) -> Result<()> {
        use tar::EntryType::{Continuous, Regular, Symlink};
        if !matches!(entry.header().entry_type(), Regular | Continuous | Symlink) {
            return Ok(());
        }
        let attributes = Attributes::of(entry)?;
        if attributes.symlink.is_empty() {
            return self.add_file(&attributes, entry, writes, buffer);
        }
        let id: [u8; 32] = Sha256::digest(attributes.header()).into();
        if writes && !self.has(&id) {
            let (directory, name) = self.place(&id);
            once(rustix::fs::symlinkat(
                &attributes.symlink[..],
                directory,
                &name,
            ))?;
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            rustix::fs::chownat(
                directory,
                &name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        Ok(())
    }

    /// What is small is hashed first, and written only if it is new.
    fn add_file(
        &self,
        attributes: &Attributes,
        content: &mut impl Read,
        writes: bool,
        buffer: &mut [u8],
    ) -> Result<()> {
        let mut hash = Sha256::new_with_prefix(attributes.header());
        let mut length = fill(content, buffer)?;
        hash.update(&buffer[..length]);
        if length < buffer.len() {
            let id: [u8; 32] = hash.finalize().into();
            if writes && !self.has(&id) {
                let mut file = self.create(&id)?;
                file.write_all(&buffer[..length])?;
                self.link(&file, attributes, &id)?;
            }
            return Ok(());
        }
        // In any of the directories: they are on one file system.
        let mut file = if writes {
            Some(self.create(&[0; 32])?)
        } else {
            None
        };
        while length > 0 {
            if let Some(file) = &mut file {
                file.write_all(&buffer[..length])?;
            }
            length = fill(content, buffer)?;
            hash.update(&buffer[..length]);
        }
        let id: [u8; 32] = hash.finalize().into();
        match file {
            Some(file) if !self.has(&id) => self.link(&file, attributes, &id),
            _ => Ok(()),
        }
    }

    fn place(&self, id: &[u8; 32]) -> (&OwnedFd, String) {
        (
            &self.directories[usize::from(id[0])],
            format!("{}.file", hex(&id[1..])),
        )
    }

    fn has(&self, id: &[u8; 32]) -> bool {
        let (directory, name) = self.place(id);
        rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// A file without a name, near where that of `id` will be.
    fn create(&self, id: &[u8; 32]) -> Result<File> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.place(id).0, ".", flags, Mode::from(0o600));
        Ok(file.context("creating an object")?.into())
    }

    fn link(&self, file: &File, attributes: &Attributes, id: &[u8; 32]) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        rustix::fs::fchown(file, Some(uid), Some(gid))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode & 0o7777))?;
        for (name, value) in &attributes.xattrs {
            let name = name.strip_suffix(b"\0").unwrap_or(name);
            rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())?;
        }
        let (directory, name) = self.place(id);
        let linked = rustix::fs::linkat(file.as_fd(), "", directory, &name, AtFlags::EMPTY_PATH);
        once(linked).context("naming an object")
    }

    /// Sees to it that all objects and their names are on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.directories[0]).context("writing objects to the disk")?;
        for directory in &self.directories {
            rustix::fs::fsync(directory)?;
        }
        Ok(())
    }
}

/// Another thread may have been quicker with the same object.
fn once(result: rustix::io::Result<()>) -> Result<()> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// As many bytes as there are, and as fit.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Layer;
    use crate::process::{command, run, target_dir};

    #[test]
    fn objects_have_the_names_that_ostree_gives_them() {
        // Not in /tmp, where there may be no attributes.
        let dir = tempfile::tempdir_in(target_dir().unwrap()).unwrap();
        let big: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
        let layer = Layer::new()
            .dir("usr")
            .file("usr/small", "small")
            .owner(1, 2)
            .file("usr/empty", "")
            .file("usr/big", big)
            .mode(0o4755)
            .file("usr/marked", "marked")
            .xattr("user.one", b"first")
            .xattr("user.two", &[7; 300])
            .file("usr/cut", vec![3; CHUNK])
            .symlink("usr/link", "small")
            .hardlink("usr/again", "usr/small");
        let mut tar = Vec::new();
        layer.write_tar(&mut tar).unwrap();
        for _twice in 0..2 {
            let objects = Objects::open(&dir.path().join("objects")).unwrap();
            let (mut archive, mut buffer) = (tar::Archive::new(&tar[..]), buffer());
            for entry in archive.entries().unwrap() {
                objects.add(&mut entry.unwrap(), true, &mut buffer).unwrap();
            }
            objects.sync().unwrap();
        }
        let found = crate::image::paths_below(&dir.path().join("objects"), |_| true).unwrap();
        let files: Vec<&String> = found
            .iter()
            .map(|(path, _)| path)
            .filter(|path| path.len() > 2)
            .collect();
        assert_eq!(files.len(), 6);
        for path in files {
            let name = path.trim_end_matches(".file").replace('/', "");
            let file = dir.path().join("objects").join(path);
            let checksum = run(command(["ostree", "checksum"]).arg(&file)).unwrap();
            assert_eq!(checksum.trim(), name);
        }
    }
}
