//! One member of a layer's tar, written byte by byte.
//!
//! Not through a tar library, because those refuse to write what the tests need most: names
//! with `..`, members twice, links to nowhere.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

const BLOCK: usize = 512;

/// How names that do not fit the header's 100 bytes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LongNames {
    /// GNU `././@LongLink` members.
    #[default]
    Gnu,
    /// PAX `path` and `linkpath` records.
    Pax,
}

/// What a member is, with its own data.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A regular file with this content.
    File(Vec<u8>),
    /// A regular file with the content of a file on disk, read when the layer is written.
    FileFrom(PathBuf, u64),
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink(String),
    /// A hard link to a member named earlier.
    Hardlink(String),
    /// A character device.
    CharDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A member of a layer.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name as written, checked by nobody.
    pub path: String,
    /// Kind and content.
    pub kind: Kind,
    /// Permission bits, setuid and friends included.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Encoding of long names.
    pub long_names: LongNames,
}

impl Entry {
    /// A member owned by root, without extended attributes.
    pub fn new(path: impl Into<String>, kind: Kind, mode: u32) -> Self {
        Self {
            path: path.into(),
            kind,
            mode,
            owner: (0, 0),
            xattrs: Vec::new(),
            long_names: LongNames::default(),
        }
    }

    /// Bytes of content that follow the header.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::File(data) => data.len() as u64,
            Kind::FileFrom(_, size) => *size,
            _ => 0,
        }
    }

    fn link(&self) -> &str {
        match &self.kind {
            Kind::Symlink(target) | Kind::Hardlink(target) => target,
            _ => "",
        }
    }

    fn type_flag(&self) -> u8 {
        match self.kind {
            Kind::File(_) | Kind::FileFrom(..) => b'0',
            Kind::Hardlink(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::CharDevice(..) => b'3',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        }
    }

    /// Writes header, extensions and content.
    ///
    /// # Errors
    /// When `out` fails, or a file on disk cannot be read or has changed its size.
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        let mut path = self.path.clone();
        if matches!(self.kind, Kind::Directory) && !path.ends_with('/') {
            path.push('/');
        }
        self.write_extensions(&path, out)?;
        let mut header = Header::new(&path, self.type_flag(), self.size());
        header.number(100..108, u64::from(self.mode));
        header.number(108..116, u64::from(self.owner.0));
        header.number(116..124, u64::from(self.owner.1));
        header.text(157..257, self.link());
        if let Kind::CharDevice(major, minor) = self.kind {
            header.number(329..337, u64::from(major));
            header.number(337..345, u64::from(minor));
        }
        header.write(out)?;
        match &self.kind {
            Kind::File(data) => write_padded(out, data),
            Kind::FileFrom(source, size) => {
                let file =
                    File::open(source).with_context(|| format!("opening {}", source.display()))?;
                let copied = io::copy(&mut file.take(*size), out)?;
                ensure!(copied == *size, "{} shrank while read", source.display());
                write_padding(out, *size)
            }
            _ => Ok(()),
        }
    }

    fn write_extensions(&self, path: &str, out: &mut impl Write) -> Result<()> {
        let mut records = Vec::new();
        for (key, pax, value) in [("L", "path", path), ("K", "linkpath", self.link())] {
            if value.len() <= 100 {
                continue;
            }
            match self.long_names {
                LongNames::Pax => records.extend(pax_record(pax, value.as_bytes())),
                LongNames::Gnu => {
                    let data = [value.as_bytes(), b"\0"].concat();
                    Header::new("././@LongLink", key.as_bytes()[0], data.len() as u64)
                        .write(out)?;
                    write_padded(out, &data)?;
                }
            }
        }
        for (name, value) in &self.xattrs {
            records.extend(pax_record(&format!("SCHILY.xattr.{name}"), value));
        }
        if !records.is_empty() {
            Header::new("./PaxHeaders/member", b'x', records.len() as u64).write(out)?;
            write_padded(out, &records)?;
        }
        Ok(())
    }
}

/// Two zero blocks: the end of the archive.
///
/// # Errors
/// When `out` fails.
pub(super) fn write_end(out: &mut impl Write) -> Result<()> {
    out.write_all(&[0; 2 * BLOCK])
        .context("writing the archive's end")
}

/// `"<length> <key>=<value>\n"`, where the length counts its own digits.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = 1 + key.len() + 1 + value.len() + 1;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn write_padded(out: &mut impl Write, data: &[u8]) -> Result<()> {
    out.write_all(data)?;
    write_padding(out, data.len() as u64)
}

fn write_padding(out: &mut impl Write, size: u64) -> Result<()> {
    let over = (size % BLOCK as u64) as usize;
    if over > 0 {
        out.write_all(&[0; BLOCK][over..])?;
    }
    Ok(())
}

/// A GNU-flavoured header block.
struct Header([u8; BLOCK]);

impl Header {
    fn new(path: &str, type_flag: u8, size: u64) -> Self {
        let mut header = Self([0; BLOCK]);
        header.text(0..100, path);
        header.number(100..108, 0o644);
        header.number(108..116, 0);
        header.number(116..124, 0);
        header.number(124..136, size);
        header.number(136..148, 0);
        header.0[156] = type_flag;
        header.0[257..265].copy_from_slice(b"ustar  \0");
        header
    }

    /// As much of `text` as fits; extensions carry the whole of it.
    fn text(&mut self, field: std::ops::Range<usize>, text: &str) {
        let room = &mut self.0[field];
        let length = text.len().min(room.len());
        room[..length].copy_from_slice(&text.as_bytes()[..length]);
    }

    fn number(&mut self, field: std::ops::Range<usize>, value: u64) {
        let width = field.len() - 1;
        self.text(field, &format!("{value:0width$o}"));
    }

    fn write(mut self, out: &mut impl Write) -> Result<()> {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.text(148..155, &format!("{sum:06o}\0"));
        out.write_all(&self.0).context("writing a tar header")
    }
}
