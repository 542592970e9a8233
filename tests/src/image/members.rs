//! Reads a tar without losing a byte: the members, and the raw blocks around their content.
//!
//! Invariant: `raw` of all members, the content that follows each, [`Members::take_end`] and then the padding
//! are the tar, in this order.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

const BLOCK: usize = 512;

/// Longest extension (a long name, or PAX records) that is believed.
const EXTENSION: u64 = 8 << 20;

/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;

/// A time of the header, or of a PAX record.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Time {
    /// Since 1970.
    pub(super) seconds: u64,
    pub(super) nanoseconds: u32,
}

/// What the headers of a member say.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// The padding of the member before, and all headers of this one.
    pub(super) raw: Vec<u8>,
    pub(super) name: String,
    pub(super) link: String,
    /// `b'0'` also for the oldest form of a regular file.
    pub(super) type_flag: u8,
    pub(super) mode: u64,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) user: String,
    pub(super) group: String,
    pub(super) size: u64,
    pub(super) modified: Time,
    pub(super) accessed: Option<Time>,
    pub(super) changed: Option<Time>,
    pub(super) device: (u64, u64),
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
}

/// The members of a tar.
pub(super) struct Members<R> {
    tar: R,
    buffer: Vec<u8>,
    /// Content of the present member that was not read.
    left: u64,
    /// Bytes after it, up to a whole block.
    padding: usize,
    /// Blocks since the last content.
    raw: Vec<u8>,
}

impl<R: Read> Members<R> {
    pub(super) fn new(tar: R) -> Self {
        Self {
            tar,
            buffer: vec![0; BUFFER],
            left: 0,
            padding: 0,
            raw: Vec::new(),
        }
    }

    /// The next member; the content of the one before must have been read.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        let padding = std::mem::take(&mut self.padding);
        self.raw_bytes(padding)?;
        let mut records = BTreeMap::new();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            match header.0[156] {
                b'x' => records = pax_records(&self.extension(&header)?)?,
                b'L' => long_name = Some(text(&self.extension(&header)?)?),
                b'K' => long_link = Some(text(&self.extension(&header)?)?),
                b'g' | b'S' => bail!("the tar has global records or sparse files"),
                _ => {
                    let mut member = header.member()?;
                    member.take_records(&records)?;
                    member.name = long_name.unwrap_or(member.name);
                    member.link = long_link.unwrap_or(member.link);
                    if member.type_flag == 0 {
                        let is_dir = member.name.ends_with('/');
                        member.type_flag = if is_dir { b'5' } else { b'0' };
                    }
                    if member.type_flag == b'0' {
                        self.left = member.size;
                        self.padding = padding_of(member.size);
                    }
                    member.raw = std::mem::take(&mut self.raw);
                    return Ok(Some(member));
                }
            }
        }
    }

    /// More of the present member's content; `None` at its end.
    pub(super) fn content(&mut self) -> Result<Option<&[u8]>> {
        if self.left == 0 {
            return Ok(None);
        }
        let length = self.left.min(self.buffer.len() as u64) as usize;
        let buffer = &mut self.buffer[..length];
        self.tar
            .read_exact(buffer)
            .context("reading a member of a tar")?;
        self.left -= length as u64;
        Ok(Some(buffer))
    }

    /// After the last member: its padding and the zero blocks that end the tar.
    pub(super) fn take_end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.raw)
    }

    /// What follows the end, part by part.
    pub(super) fn padding(&mut self) -> Result<Option<Vec<u8>>> {
        let mut part = Vec::new();
        let mut limited = (&mut self.tar).take(BUFFER as u64);
        limited
            .read_to_end(&mut part)
            .context("reading a tar's end")?;
        Ok((!part.is_empty()).then_some(part))
    }

    fn raw_bytes(&mut self, length: usize) -> Result<Range<usize>> {
        let start = self.raw.len();
        self.raw.resize(start + length, 0);
        self.tar
            .read_exact(&mut self.raw[start..])
            .context("reading a header of a tar")?;
        Ok(start..start + length)
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = Vec::new();
        let mut limited = (&mut self.tar).take(BLOCK as u64);
        limited
            .read_to_end(&mut block)
            .context("reading a header of a tar")?;
        // Some tars just stop.
        if block.is_empty() {
            return Ok(None);
        }
        self.raw.extend_from_slice(&block);
        let block: [u8; BLOCK] = block.try_into().ok().context("half a header in a tar")?;
        if block != [0; BLOCK] {
            return Ok(Some(Header(block)));
        }
        let second = self.raw_bytes(BLOCK)?;
        ensure!(
            self.raw[second].iter().all(|byte| *byte == 0),
            "the tar goes on after a zero block"
        );
        Ok(None)
    }

    /// The content of a member that says something about the next one.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.number(124..136)?;
        ensure!(size <= EXTENSION, "an extension of {size} bytes");
        let content = self.raw_bytes(size as usize)?;
        let content = self.raw[content].to_vec();
        self.raw_bytes(padding_of(size))?;
        Ok(content)
    }
}

/// Bytes from the end of content to a whole block.
fn padding_of(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> Result<String> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = &bytes[..end.unwrap_or(bytes.len())];
    String::from_utf8(text.to_vec()).context("a text that is not UTF-8")
}

/// `LENGTH KEY=VALUE\n`, one after the other.
fn pax_records(mut bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ');
        let space = space.context("a PAX record without length")?;
        let length: usize = std::str::from_utf8(&bytes[..space])?.parse()?;
        let record = bytes.get(space + 1..length.saturating_sub(1));
        let record = record.context("a PAX record of a wrong length")?;
        let equals = record.iter().position(|byte| *byte == b'=');
        let (key, value) = record.split_at(equals.context("a PAX record without value")?);
        records.insert(String::from_utf8(key.to_vec())?, value[1..].to_vec());
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// A header block.
struct Header([u8; BLOCK]);

impl Header {
    fn number(&self, field: Range<usize>) -> Result<u64> {
        let bytes = &self.0[field];
        if bytes[0] == 0x80 {
            let (high, low) = bytes[1..].split_at(bytes.len() - 9);
            ensure!(high.iter().all(|byte| *byte == 0), "a number is too large");
            let low = low.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            return Ok(low);
        }
        let digits = std::str::from_utf8(bytes)?.trim_matches([' ', '\0']);
        match digits {
            "" => Ok(0),
            _ => u64::from_str_radix(digits, 8).with_context(|| format!("{digits} is no number")),
        }
    }

    fn text(&self, field: Range<usize>) -> Result<String> {
        text(&self.0[field])
    }

    fn member(&self) -> Result<Member> {
        let (is_ustar, is_gnu) = (
            self.0[257..263] == *b"ustar\0",
            self.0[257..265] == *b"ustar  \0",
        );
        let mut member = Member {
            name: self.text(0..100)?,
            mode: self.number(100..108)?,
            uid: self.number(108..116)?,
            gid: self.number(116..124)?,
            size: self.number(124..136)?,
            modified: self.time(136..148)?,
            type_flag: self.0[156],
            link: self.text(157..257)?,
            ..Member::default()
        };
        if is_ustar || is_gnu {
            member.user = self.text(265..297)?;
            member.group = self.text(297..329)?;
            member.device = (self.number(329..337)?, self.number(337..345)?);
        }
        if is_ustar {
            let prefix = self.text(345..500)?;
            if !prefix.is_empty() {
                member.name = format!("{prefix}/{}", member.name);
            }
        }
        if is_gnu {
            for (field, time) in [
                (345..357, &mut member.accessed),
                (357..369, &mut member.changed),
            ] {
                if self.0[field.start] != 0 {
                    *time = Some(self.time(field)?);
                }
            }
        }
        Ok(member)
    }

    fn time(&self, field: Range<usize>) -> Result<Time> {
        Ok(Time {
            seconds: self.number(field)?,
            nanoseconds: 0,
        })
    }
}

impl Member {
    fn take_records(&mut self, records: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        for (key, value) in records {
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                self.xattrs.insert(name.to_owned(), value.clone());
                continue;
            }
            ensure!(!key.starts_with("GNU.sparse."), "a sparse file");
            let value = std::str::from_utf8(value)?;
            match key.as_str() {
                "path" => self.name = value.to_owned(),
                "linkpath" => self.link = value.to_owned(),
                "uname" => self.user = value.to_owned(),
                "gname" => self.group = value.to_owned(),
                "uid" => self.uid = value.parse()?,
                "gid" => self.gid = value.parse()?,
                "size" => self.size = value.parse()?,
                "mtime" => self.modified = time(value)?,
                "atime" => self.accessed = Some(time(value)?),
                "ctime" => self.changed = Some(time(value)?),
                _ => {}
            }
        }
        Ok(())
    }
}

/// `SECONDS` or `SECONDS.FRACTION`.
fn time(value: &str) -> Result<Time> {
    let (seconds, fraction) = value.split_once('.').unwrap_or((value, ""));
    let fraction = fraction.get(..9).unwrap_or(fraction);
    Ok(Time {
        seconds: seconds.parse()?,
        nanoseconds: format!("{fraction:0<9}").parse()?,
    })
}
