//! Identities of objects, computed here, and writes that trust them.
//!
//! The identity of a content object is SHA-256 over a header (owner, mode, symlink target,
//! extended attributes) followed by the content. libostree would hash at a third of the
//! speed, so it is handed the finished identity. Invariant: every identity given to a
//! trusted write was computed from exactly the bytes that are written.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use ostree::prelude::*;
use ostree::{ObjectType, gio, glib};
use sha2::{Digest as _, Sha256};

use super::error::{During, Error};

/// The 32 bytes that name an object.
pub(crate) type Id = [u8; 32];

/// Extended attributes as libostree stores them: name with its NUL, value; sorted by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// File type bits of `st_mode`.
pub(crate) const S_IFMT: u32 = 0o170_000;
/// A directory.
pub(crate) const S_IFDIR: u32 = 0o040_000;
/// A regular file.
pub(crate) const S_IFREG: u32 = 0o100_000;
/// A symbolic link.
pub(crate) const S_IFLNK: u32 = 0o120_000;

/// Content above this many bytes goes through a file instead of memory.
pub(crate) const IN_MEMORY: u64 = 2 * 1024 * 1024;

/// Owner, mode with file type, and extended attributes of a file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attributes {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) xattrs: Xattrs,
}

impl Attributes {
    /// What directories get that no layer describes: `0755 root:root`.
    pub(crate) fn default_directory() -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode: S_IFDIR | 0o755,
            xattrs: Xattrs::new(),
        }
    }

    fn xattrs_variant(&self) -> glib::Variant {
        xattrs_variant(&self.xattrs)
    }
}

/// Sixty-four lowercase hexadecimal digits.
pub(crate) fn hex(id: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(id.len() * 2);
    for byte in id {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The reverse of [`hex()`]; uppercase is refused, as libostree does.
pub(crate) fn parse_hex(text: &str) -> Option<Id> {
    let digits = text.as_bytes();
    let mut id = [0u8; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
    }
    Some(id)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// SHA-256 of bytes in memory.
pub(crate) fn sha256(bytes: &[u8]) -> Id {
    Sha256::digest(bytes).into()
}

/// A byte string of a variant, without one small allocation a byte.
fn bytes_variant(bytes: &[u8]) -> glib::Variant {
    glib::Variant::array_from_fixed_array(bytes)
}

/// Extended attributes as `a(ayay)`.
pub(crate) fn xattrs_variant(xattrs: &Xattrs) -> glib::Variant {
    glib::Variant::array_from_iter::<(Vec<u8>, Vec<u8>)>(xattrs.iter().map(|(name, value)| {
        glib::Variant::tuple_from_iter([bytes_variant(name), bytes_variant(value)])
    }))
}

/// Reads `a(ayay)` and sorts it by name.
pub(crate) fn xattrs_from_variant(variant: &glib::Variant) -> Xattrs {
    let mut xattrs: Xattrs = (0..variant.n_children())
        .map(|index| {
            let pair = variant.child_value(index);
            (
                pair.child_value(0).data().to_vec(),
                pair.child_value(1).data().to_vec(),
            )
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// The bytes that precede the content of a content object.
///
/// Length of the variant as `u32` big-endian, four bytes of padding, then
/// `(uuuusa(ayay))`: owner, group and mode big-endian, device 0, symlink target.
pub(crate) fn file_header(attributes: &Attributes, symlink: &str) -> Vec<u8> {
    let variant = glib::Variant::tuple_from_iter([
        attributes.uid.to_be().to_variant(),
        attributes.gid.to_be().to_variant(),
        attributes.mode.to_be().to_variant(),
        0u32.to_variant(),
        symlink.to_variant(),
        attributes.xattrs_variant(),
    ]);
    let data = variant.data();
    let mut header = Vec::with_capacity(8 + data.len());
    header.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(data);
    header
}

/// A directory's metadata object, `(uuua(ayay))`, and its identity.
pub(crate) fn dirmeta(attributes: &Attributes) -> (Id, glib::Variant) {
    let variant = glib::Variant::tuple_from_iter([
        attributes.uid.to_be().to_variant(),
        attributes.gid.to_be().to_variant(),
        attributes.mode.to_be().to_variant(),
        attributes.xattrs_variant(),
    ]);
    (sha256(variant.data()), variant)
}

/// Attributes out of a directory's metadata object.
pub(crate) fn parse_dirmeta(variant: &glib::Variant) -> Result<Attributes, Error> {
    let number = |index| variant.child_value(index).get::<u32>().map(u32::from_be);
    match (number(0), number(1), number(2)) {
        (Some(uid), Some(gid), Some(mode)) => {
            let xattrs = xattrs_from_variant(&variant.child_value(3));
            Ok(Attributes {
                uid,
                gid,
                mode,
                xattrs,
            })
        }
        _ => Err(Error::Ostree {
            context: "reading a directory's metadata",
            text: "it has another shape than expected".into(),
        }),
    }
}

/// A directory object, `(a(say)a(sayay))`, and its identity. Both lists must be in byte order.
pub(crate) fn dirtree<'a>(
    files: impl Iterator<Item = (&'a str, &'a Id)>,
    dirs: impl Iterator<Item = (&'a str, Id, Id)>,
) -> (Id, glib::Variant) {
    let files =
        glib::Variant::array_from_iter::<(String, Vec<u8>)>(files.map(|(name, id)| {
            glib::Variant::tuple_from_iter([name.to_variant(), bytes_variant(id)])
        }));
    let dirs = glib::Variant::array_from_iter::<(String, Vec<u8>, Vec<u8>)>(dirs.map(
        |(name, tree, meta)| {
            let (tree, meta) = (bytes_variant(&tree), bytes_variant(&meta));
            glib::Variant::tuple_from_iter([name.to_variant(), tree, meta])
        },
    ));
    let variant = glib::Variant::tuple_from_iter([files, dirs]);
    (sha256(variant.data()), variant)
}

/// A whole content object (header and content) on its way into the repository.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Small enough for memory; not hashed yet.
    Memory(Vec<u8>),
    /// In a file of the repository's `tmp`; hashed while it was written.
    Spooled(Spool),
}

impl Payload {
    /// Takes header and exactly `length` bytes of `content`.
    pub(crate) fn read(
        header: Vec<u8>,
        length: u64,
        content: &mut impl Read,
        tmp: &Path,
    ) -> io::Result<Self> {
        if length > IN_MEMORY {
            return Spool::fill(&header, length, content, tmp).map(Self::Spooled);
        }
        let mut bytes = header;
        let start = bytes.len();
        // Bounded by IN_MEMORY, so the cast cannot lose anything.
        bytes.resize(start + length as usize, 0);
        content.read_exact(&mut bytes[start..])?;
        Ok(Self::Memory(bytes))
    }

    /// Bytes held in memory.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Spooled(_) => 0,
        }
    }

    /// Writes the object unless the repository has it, and tells its identity.
    pub(crate) fn write(
        self,
        repo: &ostree::Repo,
        cancellable: &gio::Cancellable,
    ) -> Result<Id, Error> {
        match self {
            Self::Memory(bytes) => {
                let id = sha256(&bytes);
                let length = bytes.len() as u64;
                let stream = gio::MemoryInputStream::from_bytes(&glib::Bytes::from_owned(bytes));
                repo.write_content_trusted(&hex(&id), &stream, length, Some(cancellable))
                    .during("writing a file object")?;
                Ok(id)
            }
            Self::Spooled(spool) => {
                let stream = spool.open(cancellable).during("reading a spooled file")?;
                repo.write_content_trusted(
                    &hex(&spool.id),
                    &stream,
                    spool.length,
                    Some(cancellable),
                )
                .during("writing a large file object")?;
                Ok(spool.id)
            }
        }
    }
}

/// Fails when `length` more bytes cannot fit into the file system of `tmp` whatever is done about
/// it: tar headers promise anything, and filling the disk of a running host helps nobody.
pub(crate) fn check_room(length: u64, tmp: &Path) -> Result<(), NoRoom> {
    // What cannot be asked is found out by writing.
    let Ok(room) = rustix::fs::statvfs(tmp) else {
        return Ok(());
    };
    let free = room.f_bfree.saturating_mul(room.f_frsize);
    if length > free {
        Err(NoRoom(length))
    } else {
        Ok(())
    }
}

/// A file of this many bytes cannot be stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoRoom(pub(crate) u64);

/// A file in the repository's `tmp` that has lost its name already, so that nothing of it is
/// left however the process ends.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    id: Id,
    length: u64,
}

impl Spool {
    fn fill(header: &[u8], length: u64, content: &mut impl Read, tmp: &Path) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(tmp)?;
        let mut hasher = Sha256::new();
        hasher.update(header);
        file.write_all(header)?;
        let mut buffer = vec![0; 256 * 1024];
        let mut rest = length;
        while rest > 0 {
            let wanted = buffer
                .len()
                .min(usize::try_from(rest).unwrap_or(usize::MAX));
            let count = content.read(&mut buffer[..wanted])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.update(&buffer[..count]);
            // Images of disks are mostly holes: those cost nothing here.
            if buffer[..count].iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(count as i64))?;
            } else {
                file.write_all(&buffer[..count])?;
            }
            rest -= count as u64;
        }
        let (id, length) = (hasher.finalize().into(), header.len() as u64 + length);
        file.set_len(length)?;
        Ok(Self { file, id, length })
    }

    /// The content from its first byte, as a file that libostree can copy inside the kernel.
    fn open(&self, cancellable: &gio::Cancellable) -> Result<gio::FileInputStream, glib::Error> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        gio::File::for_path(path).read(Some(cancellable))
    }
}

/// Writes a metadata object unless the repository has it.
pub(crate) fn write_metadata(
    repo: &ostree::Repo,
    kind: ObjectType,
    id: &Id,
    variant: &glib::Variant,
    cancellable: &gio::Cancellable,
) -> Result<(), Error> {
    repo.write_metadata_trusted(kind, &hex(id), variant, Some(cancellable))
        .during("writing a directory object")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> (tempfile::TempDir, ostree::Repo) {
        let dir = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(dir.path());
        repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE)
            .unwrap();
        (dir, repo)
    }

    fn attributes(mode: u32, xattrs: &[(&[u8], &[u8])]) -> Attributes {
        let xattrs = xattrs
            .iter()
            .map(|(n, v)| (n.to_vec(), v.to_vec()))
            .collect();
        Attributes {
            uid: 7,
            gid: 9,
            mode,
            xattrs,
        }
    }

    #[test]
    fn a_header_without_attributes_has_26_bytes() {
        let header = file_header(&attributes(S_IFREG | 0o644, &[]), "");
        assert_eq!(header.len(), 26);
        assert_eq!(&header[..8], [0, 0, 0, 18, 0, 0, 0, 0]);
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        let id = sha256(b"osteward");
        assert_eq!(parse_hex(&hex(&id)), Some(id));
        assert_eq!(parse_hex("12"), None);
        assert_eq!(parse_hex(&"A".repeat(64)), None);
    }

    #[test]
    fn identities_are_those_of_libostree() {
        let (dir, repo) = repository();
        let tmp = dir.path().join("tmp");
        let cancellable = gio::Cancellable::new();
        let xattrs: &[(&[u8], &[u8])] = &[
            (b"security.capability\0", b"\x01\0\0\x02"),
            (b"user.x\0", b"y"),
        ];
        let transaction = repo.auto_transaction(gio::Cancellable::NONE).unwrap();
        for (attributes, content) in [
            (attributes(S_IFREG | 0o4755, xattrs), b"hello".to_vec()),
            (attributes(S_IFREG | 0o600, &[]), Vec::new()),
            (
                attributes(S_IFREG | 0o644, xattrs),
                vec![42; IN_MEMORY as usize + 3],
            ),
        ] {
            let theirs = repo
                .write_regfile_inline(
                    None,
                    attributes.uid,
                    attributes.gid,
                    attributes.mode,
                    Some(&attributes.xattrs_variant()),
                    &content,
                    gio::Cancellable::NONE,
                )
                .unwrap();
            let header = file_header(&attributes, "");
            let length = content.len() as u64;
            let payload = Payload::read(header, length, &mut content.as_slice(), &tmp).unwrap();
            let ours = payload.write(&repo, &cancellable).unwrap();
            assert_eq!(hex(&ours), theirs.as_str());
        }
        let link = attributes(S_IFLNK | 0o777, &[]);
        let theirs = repo
            .write_symlink(
                None,
                link.uid,
                link.gid,
                Some(&link.xattrs_variant()),
                "../a b",
                gio::Cancellable::NONE,
            )
            .unwrap();
        assert_eq!(hex(&sha256(&file_header(&link, "../a b"))), theirs.as_str());
        transaction.commit(gio::Cancellable::NONE).unwrap();
    }

    #[test]
    fn a_trusted_write_passes_fsck_both_from_memory_and_from_a_spool() {
        let (dir, repo) = repository();
        let tmp = dir.path().join("tmp");
        let cancellable = gio::Cancellable::new();
        let transaction = repo.auto_transaction(gio::Cancellable::NONE).unwrap();
        let mut ids = Vec::new();
        for length in [0, 1, 70_000, IN_MEMORY + 1, 5 * IN_MEMORY + 17] {
            let header = file_header(&attributes(S_IFREG | 0o640, &[(b"user.k\0", b"v")]), "");
            // A hole in the middle, and another at the end.
            let byte = |at: u64| match at >> 20 {
                0 | 2..=3 => (at % 251) as u8,
                _ => 0,
            };
            let content: Vec<u8> = (0..length).map(byte).collect();
            let payload = Payload::read(header, length, &mut content.as_slice(), &tmp).unwrap();
            ids.push(payload.write(&repo, &cancellable).unwrap());
        }
        let link = Payload::Memory(file_header(&attributes(S_IFLNK | 0o777, &[]), "target"));
        ids.push(link.write(&repo, &cancellable).unwrap());
        transaction.commit(gio::Cancellable::NONE).unwrap();
        for id in ids {
            repo.fsck_object(ObjectType::File, &hex(&id), gio::Cancellable::NONE)
                .unwrap();
        }
        let spools = std::fs::read_dir(tmp).unwrap().filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains("spool")
        });
        assert_eq!(spools.count(), 0);
    }

    #[test]
    fn directory_metadata_is_that_of_libostree() {
        let info = gio::FileInfo::new();
        info.set_attribute_uint32("unix::uid", 0);
        info.set_attribute_uint32("unix::gid", 0);
        info.set_attribute_uint32("unix::mode", S_IFDIR | 0o755);
        let theirs = ostree::create_directory_metadata(&info, None);
        let (id, ours) = dirmeta(&Attributes::default_directory());
        assert_eq!(ours.data(), theirs.data());
        assert_eq!(id, sha256(theirs.data()));
        assert_eq!(
            parse_dirmeta(&ours).unwrap(),
            Attributes::default_directory()
        );
    }
}
