//! One header block of a tar, and the extensions that come before it. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use tar::Header;

use super::Xattrs;
use super::tar_headers::BLOCK;

/// PAX records with this prefix are extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// PAX records with this prefix describe holes.
const SPARSE: &[u8] = b"GNU.sparse.";
/// PAX records that say of which encoding the names are.
const CHARSET: &[u8] = b"hdrcharset";
/// Where the archiver star marks headers whose prefix is shorter than that of others.
const STAR_MARK: std::ops::Range<usize> = 508..512;
/// Where GNU tar has two more times, and all others the beginning of the prefix.
const GNU_TIMES: [std::ops::Range<usize>; 2] = [345..357, 357..369];

/// A header block whose checksum is right.
pub(super) struct Member<'b>(&'b Header);

impl<'b> Member<'b> {
    /// # Errors
    /// Why a reader could not read it, or could read it in two ways.
    pub(super) fn new(block: &'b [u8]) -> Result<Self, &'static str> {
        if block.len() != BLOCK {
            return Err("a header is cut off");
        }
        let header = Header::from_byte_slice(block);
        let others = block[..148].iter().chain(&block[156..]);
        let sum: u32 = others.map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(sum) {
            return Err("the checksum of a header is wrong");
        }
        if let Some(gnu) = header.as_gnu() {
            // What is no number here was a prefix for some writers.
            let is_time = |at: &std::ops::Range<usize>| {
                let field = &block[at.clone()];
                field
                    .iter()
                    .all(|byte| matches!(byte, 0 | b' ' | b'0'..=b'7'))
                    || field[0] & 0x80 != 0
            };
            if gnu.isextended[0] != 0 || !GNU_TIMES.iter().all(is_time) {
                return Err("a header is of an uncommon format");
            }
        } else if header.as_ustar().is_none() || &block[STAR_MARK] == b"tar\0" {
            return Err("a header is of an uncommon format");
        }
        Ok(Self(header))
    }

    pub(super) fn kind(&self) -> u8 {
        self.0.entry_type().as_byte()
    }

    /// The name without extensions, for messages.
    pub(super) fn own_name(&self) -> &[u8] {
        let name = &self.0.as_old().name;
        name.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    pub(super) fn size(&self) -> Result<u64, &'static str> {
        self.0.entry_size().map_err(|_| "a size is no number")
    }

    pub(super) fn mode(&self) -> Result<u32, &'static str> {
        self.0.mode().map_err(|_| "a mode is no number")
    }

    pub(super) fn device(&self) -> Result<(u32, u32), &'static str> {
        let number = |number: std::io::Result<Option<u32>>| number.ok().flatten();
        let device = number(self.0.device_major()).zip(number(self.0.device_minor()));
        device.ok_or("the number of a device is none")
    }
}

/// What extensions say of the next entry.
#[derive(Default)]
pub(super) struct Extensions {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    records: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Extensions {
    /// Whether a header of this type is about the next one. Those for all following ones are none: `g`
    /// is unknown to tables of contents.
    pub(super) fn is_one(kind: u8) -> bool {
        matches!(kind, b'L' | b'K' | b'x')
    }

    pub(super) fn is_empty(&self) -> bool {
        self.name.is_none() && self.target.is_none() && self.records.is_none()
    }

    /// Adds an extension of one of these types.
    ///
    /// # Errors
    /// Why it cannot be read, or could be read in two ways.
    pub(super) fn add(&mut self, kind: u8, data: &[u8]) -> Result<(), &'static str> {
        let is_new = match kind {
            b'L' => self.name.replace(text(data)?).is_none(),
            b'K' => self.target.replace(text(data)?).is_none(),
            _ => self.records.replace(records(data)?).is_none(),
        };
        if is_new {
            Ok(())
        } else {
            Err("an extension is repeated")
        }
    }

    fn record(&self, key: &str) -> Option<&[u8]> {
        let value = self.records.as_ref()?.get(key.as_bytes())?;
        Some(value)
    }

    pub(super) fn name<'e>(
        &'e self,
        member: &'e Member<'_>,
    ) -> Result<Cow<'e, [u8]>, &'static str> {
        one(&self.name, self.record("path"), || {
            Some(member.0.path_bytes())
        })
    }

    pub(super) fn target<'e>(
        &'e self,
        member: &'e Member<'_>,
    ) -> Result<Cow<'e, [u8]>, &'static str> {
        one(&self.target, self.record("linkpath"), || {
            member.0.link_name_bytes()
        })
    }

    pub(super) fn size(&self, member: &Member<'_>) -> Result<u64, &'static str> {
        match self.record("size") {
            Some(digits) => number(digits),
            None => member.size(),
        }
    }

    pub(super) fn owner(&self, member: &Member<'_>) -> Result<(u64, u64), &'static str> {
        let or_header = |key, own: fn(&Header) -> std::io::Result<u64>| match self.record(key) {
            Some(digits) => number(digits),
            None => own(member.0).map_err(|_| "an owner is no number"),
        };
        Ok((
            or_header("uid", Header::uid)?,
            or_header("gid", Header::gid)?,
        ))
    }

    /// Unix seconds, fractions dropped as of times before them: downwards.
    pub(super) fn modified(&self, member: &Member<'_>) -> Result<i64, &'static str> {
        const REASON: &str = "a time is no number";
        let Some(text) = self.record("mtime") else {
            let seconds = member.0.mtime().ok();
            return seconds
                .and_then(|time| i64::try_from(time).ok())
                .ok_or(REASON);
        };
        let text = std::str::from_utf8(text).map_err(|_| REASON)?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(REASON);
        }
        let seconds: i64 = whole.parse().map_err(|_| REASON)?;
        let is_lower = whole.starts_with('-') && fraction.bytes().any(|byte| byte != b'0');
        seconds.checked_sub(i64::from(is_lower)).ok_or(REASON)
    }

    /// Sorted by name.
    pub(super) fn xattrs(&self) -> Xattrs {
        let records = self.records.iter().flatten();
        records
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?.to_vec(), value.clone())))
            .collect()
    }
}

/// The one of three that is there; the header only counts without the others.
fn one<'e>(
    gnu: &'e Option<Vec<u8>>,
    pax: Option<&'e [u8]>,
    own: impl FnOnce() -> Option<Cow<'e, [u8]>>,
) -> Result<Cow<'e, [u8]>, &'static str> {
    match (gnu, pax) {
        (Some(_), Some(_)) => Err("an entry has two long names"),
        (Some(name), None) => Ok(Cow::Borrowed(name)),
        (None, Some(name)) => Ok(Cow::Borrowed(name)),
        (None, None) => own().ok_or("a link has no target"),
    }
}

/// A long name, which ends in a zero byte, or with the data.
fn text(data: &[u8]) -> Result<Vec<u8>, &'static str> {
    let text = data.strip_suffix(b"\0").unwrap_or(data);
    if text.is_empty() || text.contains(&0) {
        return Err("a long name has zero bytes");
    }
    Ok(text.to_vec())
}

fn number(digits: &[u8]) -> Result<u64, &'static str> {
    let is_plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_plain);
    text.and_then(|text| text.parse().ok())
        .ok_or("a number of an extension is none")
}

/// The records of a PAX extension: `LENGTH KEY=VALUE\n`, the length being that of all of it.
fn records(mut data: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, &'static str> {
    const REASON: &str = "a PAX record is malformed";
    let mut records = BTreeMap::new();
    while !data.is_empty() {
        let space = data.iter().position(|byte| *byte == b' ').ok_or(REASON)?;
        let length = number(&data[..space])
            .ok()
            .and_then(|length| usize::try_from(length).ok());
        let length = length
            .filter(|length| *length > space && *length <= data.len())
            .ok_or(REASON)?;
        let (record, rest) = data.split_at(length);
        data = rest;
        let record = record[space + 1..].strip_suffix(b"\n").ok_or(REASON)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(REASON)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.starts_with(SPARSE) || key == CHARSET {
            return Err("a PAX record is of a kind that is not supported");
        }
        let is_text = !key.starts_with(XATTR);
        // Empty values take a record of an earlier header back for some readers, and mean nothing for others.
        if key.is_empty() || key == XATTR || key.contains(&0) {
            return Err(REASON);
        }
        if is_text && (value.is_empty() || value.contains(&0)) {
            return Err("a PAX record is empty or has zero bytes");
        }
        if records.insert(key.to_vec(), value.to_vec()).is_some() {
            return Err("a PAX record is repeated");
        }
    }
    Ok(records)
}
