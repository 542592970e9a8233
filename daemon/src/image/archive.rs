//! The tar of an image layout, read where it lies: an index of its members, then ranges of the file.
//!
//! Invariants: only offsets are used, so a file that others read as well is not disturbed; a member lies
//! inside the file; the memory that an archive can take is bounded whatever its headers say. An archive
//! that is compressed cannot be read at any place, so it is unpacked into a nameless file first.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layout::LayoutError;
use super::{Error, spool};

/// Most members that are looked at; an image has a few hundred.
const MEMBERS: usize = 100_000;
/// Most bytes that the headers of one member may take (long names, PAX records).
const HEADER_BYTES: u64 = 1 << 20;
/// Most bytes of a name that can be one of a layout's.
const NAME_BYTES: usize = 256;

/// A tar and where its files are in it.
#[derive(Debug)]
pub(super) struct Archive {
    file: Arc<File>,
    /// Offset and length by name, without a leading `./`.
    members: HashMap<String, (u64, u64)>,
}

impl Archive {
    /// Reads the headers of `file`, unpacking it into `scratch` if it is compressed. Blocks. `shown` is
    /// what messages call it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no tar, or is cut short; [`Error::Io`] and those of unpacking.
    pub(super) fn read(
        file: File,
        shown: &Path,
        scratch: &Path,
        abandoned: &AtomicBool,
    ) -> Result<Archive, Error> {
        let mut magic = [0; 6];
        let count = file
            .read_at(&mut magic, 0)
            .map_err(|source| unreadable(shown, source))?;
        let file = match &magic[..count] {
            [0x1f, 0x8b, ..] => {
                let mut plain = flate2::bufread::MultiGzDecoder::new(buffered(file));
                spool::fill(&mut plain, scratch, shown, abandoned)?
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let plain = zstd::Decoder::with_buffer(buffered(file));
                let mut plain = plain.map_err(|error| broken(shown, &error))?;
                spool::fill(&mut plain, scratch, shown, abandoned)?
            }
            b"\xfd7zXZ\0" | [b'B', b'Z', b'h', ..] => {
                let advice =
                    "it is compressed in a way that is not read here; unpack it with xz or bzip2";
                return Err(invalid(shown, advice));
            }
            _ => file,
        };
        let file = Arc::new(file);
        let members = index(&file, shown, abandoned)?;
        Ok(Archive { file, members })
    }

    /// The file and the range of it that a member takes.
    pub(super) fn member(&self, name: &str) -> Option<(Arc<File>, u64, u64)> {
        let (offset, length) = self.members.get(name)?;
        Some((self.file.clone(), *offset, *length))
    }
}

/// An error of the content of `shown`.
pub(super) fn broken(shown: &Path, error: &io::Error) -> Error {
    invalid(shown, &format!("it cannot be read: {error}"))
}

fn invalid(shown: &Path, reason: &str) -> Error {
    Error::Invalid(LayoutError::Unreadable {
        what: "archive",
        reason: format!("{}: {reason}", shown.display()),
    })
}

fn unreadable(shown: &Path, source: io::Error) -> Error {
    Error::Io {
        path: PathBuf::from(shown),
        source,
    }
}

fn buffered(file: File) -> BufReader<Offset> {
    BufReader::with_capacity(256 << 10, Offset::new(Arc::new(file)))
}

/// Of members with the same name the last one counts, as if the archive were unpacked.
fn index(
    file: &Arc<File>,
    shown: &Path,
    abandoned: &AtomicBool,
) -> Result<HashMap<String, (u64, u64)>, Error> {
    let end = file
        .metadata()
        .map_err(|source| unreadable(shown, source))?
        .len();
    let reader = Offset::new(file.clone());
    let headers = reader.headers.clone();
    let mut archive = tar::Archive::new(reader);
    let mut entries = archive
        .entries_with_seek()
        .map_err(|error| broken(shown, &error))?;
    let mut members = HashMap::new();
    for _ in 0..MEMBERS {
        if abandoned.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        headers.set(Some(HEADER_BYTES));
        let Some(entry) = entries.next() else {
            return Ok(members);
        };
        let entry = entry.map_err(|error| broken(shown, &error))?;
        let kind = entry.header().entry_type();
        let (start, length) = (entry.raw_file_position(), entry.size());
        let fits = start.checked_add(length).is_some_and(|last| last <= end);
        let is_file = kind.is_file() || kind.is_contiguous();
        if is_file && !fits {
            return Err(invalid(shown, "it is cut short; copy it again"));
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        // Names of a layout are short; longer ones only take memory.
        if is_file && name.len() <= NAME_BYTES {
            let name = name.strip_prefix("./").unwrap_or(&name);
            members.insert(name.to_owned(), (start, length));
        }
    }
    Err(invalid(
        shown,
        &format!("it has more than {MEMBERS} members"),
    ))
}

/// Reads a file from a position of its own, within a budget for headers once that is set.
struct Offset {
    file: Arc<File>,
    position: u64,
    headers: Rc<Cell<Option<u64>>>,
}

impl Offset {
    fn new(file: Arc<File>) -> Offset {
        Offset {
            file,
            position: 0,
            headers: Rc::default(),
        }
    }
}

impl Read for Offset {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        if let Some(left) = self.headers.get() {
            let left = left
                .checked_sub(count as u64)
                .ok_or_else(|| io::Error::other("the headers of a member are too long"))?;
            self.headers.set(Some(left));
        }
        Ok(count)
    }
}

impl Seek for Offset {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(step) => self.position.checked_add_signed(step),
            SeekFrom::End(step) => self.file.metadata()?.len().checked_add_signed(step),
        };
        self.position = target.ok_or_else(|| io::Error::other("a member lies nowhere"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::spool::Abandon;
    use super::*;

    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Archive, Error> {
        let scratch = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let abandon = Abandon::default();
        Archive::read(file, Path::new("/x.tar"), scratch.path(), &abandon.flag())
    }

    fn content(archive: &Archive, name: &str) -> Option<Vec<u8>> {
        let (file, offset, length) = archive.member(name)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        Some(bytes)
    }

    #[test]
    fn members_are_found_where_they_lie() {
        let long = format!("blobs/{}", "n".repeat(150));
        let bytes = tar(&[
            ("index.json", b"old"),
            ("./blobs/sha256/a", b"alpha"),
            (&long, b"long"),
            ("index.json", b"new"),
        ]);
        let zstd = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        for bytes in [bytes, zstd, gzip.finish().unwrap()] {
            let archive = read(&bytes).unwrap();
            assert_eq!(content(&archive, "index.json").unwrap(), b"new");
            assert_eq!(content(&archive, "blobs/sha256/a").unwrap(), b"alpha");
            assert_eq!(content(&archive, &long).unwrap(), b"long");
            assert_eq!(content(&archive, "blobs/sha256"), None);
        }
    }

    #[test]
    fn the_position_of_a_shared_file_does_not_move() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&tar(&[("index.json", b"{}")])).unwrap();
        file.rewind().unwrap();
        let mut theirs = file.try_clone().unwrap();
        let abandon = Abandon::default();
        Archive::read(
            file,
            Path::new("/x"),
            Path::new("/nowhere"),
            &abandon.flag(),
        )
        .unwrap();
        assert_eq!(theirs.stream_position().unwrap(), 0);
    }

    fn refused(bytes: &[u8], words: &str) {
        let error = read(bytes).unwrap_err();
        assert!(
            matches!(&error, Error::Invalid(LayoutError::Unreadable { reason, .. })
                if reason.contains(words) && reason.contains("/x.tar")),
            "{error} lacks {words}"
        );
    }

    #[test]
    fn what_is_no_whole_tar_is_refused() {
        let whole = tar(&[("index.json", b"{}"), ("blobs/sha256/a", &[7; 4000])]);
        refused(&whole[..whole.len() - 3000], "cut short");
        refused(
            b"{\"not\": \"a tar\"}".repeat(99).as_slice(),
            "cannot be read",
        );
        refused(b"\xfd7zXZ\0\0\0", "unpack it with xz");
        let zstd = zstd::encode_all(whole.as_slice(), 1).unwrap();
        refused(&zstd[..zstd.len() / 2], "cannot be read");
        // A name of more than a mebibyte, which a tar parser would keep in memory.
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_pax_extensions([("path", vec![b'n'; 2 << 20].as_slice())])
            .unwrap();
        refused(&builder.into_inner().unwrap(), "too long");
    }

    #[test]
    fn a_member_beyond_the_end_of_all_numbers_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("index.json").unwrap();
        header.set_size(u64::MAX - 1024);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([0; 1024]);
        let error = read(&bytes).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }

    #[test]
    fn an_empty_file_has_no_members() {
        assert_eq!(content(&read(b"").unwrap(), "index.json"), None);
    }
}
