//! The rules for entries of a table of contents.
//!
//! Invariants: what is added is checked against everything before it; the content of files is in the order of
//! the entries, as it is in the tar, so overlaps show without sorting.

use std::borrow::Cow;
use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::{Flaw, TocError, shown};
use super::json::RawEntry;
use super::names::{is_inside, is_text, normal};
use super::toc::sha256;
use super::{Content, Entry, Kind, Xattrs};
use crate::image::rfc3339;

/// Most entries that are read, chunks included.
const MAX_ENTRIES: usize = 2_000_000;
/// Largest sum of extended attributes of one entry, in bytes; no file system takes more.
const XATTR_BYTES: usize = 1024 * 1024;
/// What an entry takes in JSON, roughly, with its chunks.
const ENTRY_BYTES: usize = 320;
/// Most memory that the entries of one table may take, roughly, in bytes: those of 44,000 files take 15 MB.
const MAX_KEPT: usize = 96 * 1024 * 1024;
/// What an entry takes besides itself and its texts, as its path in a set …
const PATH_BYTES: usize = 64;
/// … and each of its attributes.
const XATTR_KEPT: usize = 96;
/// Files may be unpacked to so many bytes, and …
const UNPACKED: u64 = 64 * 1024 * 1024;
/// … to so many times what the blob has for all of them. A tar needs bytes for each time that it has a content,
/// a table of contents could name one that is here again and again.
const RATIO: u64 = 64;
/// How Go writes that there is no time, in Unix seconds: the first day of the year 1.
const NO_TIME: i64 = -62_135_596_800;
/// sha256 of nothing.
const EMPTY: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// Checks one entry after the other.
pub(super) struct Builder<'a> {
    /// How many entries may come, chunks included.
    most: usize,
    /// How much memory they may take …
    most_kept: usize,
    /// … and take.
    kept: usize,
    /// Where the content of files ends in the blob.
    data_end: u64,
    /// With chunks.
    count: usize,
    entries: Vec<Entry>,
    paths: HashSet<Cow<'a, str>>,
    /// Of all files together.
    total: u64,
    /// Where the next content may begin.
    free: u64,
    open: Option<OpenFile>,
}

/// A file whose chunks may follow.
struct OpenFile {
    /// In the entries.
    at: usize,
    size: u64,
    /// Where the next chunk begins in the file; `None` when no further one may come.
    next_chunk: Option<u64>,
    /// Where the last chunk begins in the blob.
    last_start: u64,
}

impl<'a> Builder<'a> {
    /// For a blob whose files end at `data_end`, and a table of `json` bytes.
    pub(super) fn new(data_end: u64, json: usize) -> Self {
        // Few too many cost less than to move them all when there is no more room.
        let likely = json / ENTRY_BYTES;
        Self {
            most: MAX_ENTRIES,
            most_kept: MAX_KEPT,
            kept: 0,
            data_end,
            count: 0,
            entries: Vec::with_capacity(likely),
            paths: HashSet::with_capacity(likely),
            total: 0,
            // Before the first content there is the first header of the tar.
            free: 1,
            open: None,
        }
    }

    /// # Errors
    /// [`TocError::TooMany`], [`TocError::TooLarge`] and [`TocError::Entry`].
    pub(super) fn add(&mut self, raw: RawEntry<'a>) -> Result<(), TocError> {
        self.count += 1;
        if self.count > self.most {
            return Err(TocError::TooMany(self.most));
        }
        let name = raw.name.clone();
        let added = if raw.kind == "chunk" {
            self.chunk(&raw)
        } else {
            self.close()?;
            self.kept = self.kept.saturating_add(memory(&raw));
            if self.kept > self.most_kept {
                return Err(TocError::TooLarge(self.most_kept));
            }
            self.entry(raw)
        };
        added.map_err(|flaw| TocError::Entry {
            name: shown(&name),
            flaw,
        })
    }

    fn entry(&mut self, raw: RawEntry<'a>) -> Result<(), Flaw> {
        let kind = self.kind(&raw)?;
        let path = path_of(&raw.name);
        // Only a directory can be the root, or have a slash at its end.
        let is_file_name = !path.is_empty() && !raw.name.ends_with('/');
        if !is_inside(&raw.name) || !(is_file_name || kind == Kind::Directory) {
            return Err(Flaw::Name);
        }
        if !self.paths.insert(path) {
            return Err(Flaw::Duplicate);
        }
        let small = |number: u64, flaw| u32::try_from(number).map_err(|_| flaw);
        let mode = small(raw.mode, Flaw::Mode)?;
        if mode > 0o7777 {
            return Err(Flaw::Mode);
        }
        self.entries.push(Entry {
            name: raw.name.into(),
            kind,
            uid: small(raw.uid, Flaw::Owner)?,
            gid: small(raw.gid, Flaw::Owner)?,
            mode,
            xattrs: xattrs(&raw.xattrs)?,
            modified: time(&raw.modified)?,
            device: (
                small(raw.dev_major, Flaw::Device)?,
                small(raw.dev_minor, Flaw::Device)?,
            ),
        });
        Ok(())
    }

    fn kind(&mut self, raw: &RawEntry<'_>) -> Result<Kind, Flaw> {
        let kind = match &*raw.kind {
            "reg" => return self.file(raw).map(Kind::File),
            "dir" => Kind::Directory,
            "symlink" if is_text(&raw.link) => Kind::Symlink(raw.link.as_ref().into()),
            "hardlink" if is_inside(&raw.link) => Kind::HardLink(raw.link.as_ref().into()),
            "symlink" | "hardlink" => return Err(Flaw::Link),
            "char" => Kind::Char,
            "block" => Kind::Block,
            "fifo" => Kind::Fifo,
            _ => return Err(Flaw::Type),
        };
        let is_link = matches!(kind, Kind::Symlink(_) | Kind::HardLink(_));
        if !is_link && !raw.link.is_empty() {
            return Err(Flaw::Link);
        }
        if raw.size != 0 || !raw.digest.is_empty() || has_place(raw) {
            return Err(Flaw::NoContent);
        }
        Ok(kind)
    }

    fn file(&mut self, raw: &RawEntry<'_>) -> Result<Content, Flaw> {
        if !raw.link.is_empty() {
            return Err(Flaw::Link);
        }
        let digest = match &*raw.digest {
            "" => None,
            text => Some(sha256(text).ok_or(Flaw::Digest)?),
        };
        if raw.size == 0 {
            if digest.is_some_and(|digest| digest != EMPTY) {
                return Err(Flaw::Digest);
            }
            return if has_place(raw) {
                Err(Flaw::Place)
            } else {
                Ok(Content::EMPTY)
            };
        }
        if digest.is_none() {
            return Err(Flaw::Digest);
        }
        let most = UNPACKED.saturating_add(self.data_end.saturating_mul(RATIO));
        let total = self.total.checked_add(raw.size);
        self.total = total.filter(|total| *total <= most).ok_or(Flaw::Size)?;
        let end = raw.end_offset;
        if raw.inner_offset != 0 {
            return Err(Flaw::Inner);
        }
        if raw.offset < self.free || raw.offset >= end || end > self.data_end {
            return Err(Flaw::Place);
        }
        if !is_chunk(raw) || raw.chunk_offset != 0 || raw.chunk_size > raw.size {
            return Err(Flaw::Chunk);
        }
        self.free = end;
        self.open = Some(OpenFile {
            at: self.entries.len(),
            size: raw.size,
            next_chunk: (raw.chunk_size != 0).then_some(raw.chunk_size),
            last_start: raw.offset,
        });
        Ok(Content {
            size: raw.size,
            digest,
            start: raw.offset,
            end,
        })
    }

    /// A further chunk of the file before it. Only where it begins is of interest: files are fetched whole.
    fn chunk(&mut self, raw: &RawEntry<'_>) -> Result<(), Flaw> {
        let Some(open) = &mut self.open else {
            return Err(Flaw::Chunk);
        };
        let entry = &mut self.entries[open.at];
        let Kind::File(content) = &mut entry.kind else {
            return Err(Flaw::Chunk);
        };
        if *raw.name != *entry.name || !is_chunk(raw) || open.next_chunk != Some(raw.chunk_offset) {
            return Err(Flaw::Chunk);
        }
        let has_metadata = !raw.link.is_empty() || !raw.xattrs.is_empty() || !raw.digest.is_empty();
        if has_metadata || raw.size != 0 || raw.end_offset != 0 {
            return Err(Flaw::Chunk);
        }
        if raw.inner_offset != 0 {
            return Err(Flaw::Inner);
        }
        if raw.offset <= open.last_start || raw.offset >= content.end {
            return Err(Flaw::Place);
        }
        let end = raw.chunk_offset.checked_add(raw.chunk_size);
        if raw.chunk_size == 0 {
            return Err(Flaw::Chunk);
        }
        open.next_chunk = Some(end.filter(|end| *end <= open.size).ok_or(Flaw::Chunk)?);
        open.last_start = raw.offset;
        Ok(())
    }

    /// No more chunks come for the file that was read last.
    fn close(&mut self) -> Result<(), TocError> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        if open.next_chunk.is_none_or(|next| next == open.size) {
            return Ok(());
        }
        Err(TocError::Entry {
            name: shown(&self.entries[open.at].name),
            flaw: Flaw::Chunk,
        })
    }

    /// The entries.
    ///
    /// # Errors
    /// [`TocError::Entry`] when the chunks of the last file do not add up.
    pub(super) fn finish(mut self) -> Result<Vec<Entry>, TocError> {
        self.close()?;
        Ok(self.entries)
    }
}

impl Content {
    const EMPTY: Content = Content {
        size: 0,
        digest: None,
        start: 0,
        end: 0,
    };
}

/// What an entry takes in memory, roughly.
fn memory(raw: &RawEntry<'_>) -> usize {
    let xattrs = raw.xattrs.iter();
    let xattrs = xattrs.map(|(name, value)| XATTR_KEPT + name.len() + value.len());
    let texts = 2 * raw.name.len() + raw.link.len();
    size_of::<Entry>() + PATH_BYTES + texts + xattrs.sum::<usize>()
}

fn path_of<'a>(name: &Cow<'a, str>) -> Cow<'a, str> {
    match name {
        Cow::Borrowed(name) => normal(name),
        Cow::Owned(name) => Cow::Owned(normal(name).into_owned()),
    }
}

/// Whether an entry says where content of it is.
fn has_place(raw: &RawEntry<'_>) -> bool {
    let numbers = [
        raw.offset,
        raw.end_offset,
        raw.inner_offset,
        raw.chunk_size,
        raw.chunk_offset,
    ];
    numbers.iter().any(|number| *number != 0)
        || !raw.chunk_digest.is_empty()
        || !raw.chunk_type.is_empty()
}

/// Whether what is said of the first, or only, or a further chunk can be.
fn is_chunk(raw: &RawEntry<'_>) -> bool {
    let digest = &*raw.chunk_digest;
    (digest.is_empty() || sha256(digest).is_some()) && matches!(&*raw.chunk_type, "" | "zeros")
}

fn time(text: &str) -> Result<Option<i64>, Flaw> {
    if text.is_empty() {
        return Ok(None);
    }
    let seconds = rfc3339::seconds(text).ok_or(Flaw::Time)?;
    Ok(Some(seconds).filter(|seconds| *seconds != NO_TIME))
}

fn xattrs(raw: &[(Cow<'_, str>, Cow<'_, str>)]) -> Result<Xattrs, Flaw> {
    let mut xattrs = Vec::with_capacity(raw.len());
    let mut total = 0usize;
    for (name, value) in raw {
        if !is_text(name) {
            return Err(Flaw::Xattrs);
        }
        total = total.saturating_add(name.len() + value.len() / 4 * 3);
        // The last two bytes may be padding.
        if total > XATTR_BYTES + 2 * raw.len() {
            return Err(Flaw::Xattrs);
        }
        let value = STANDARD
            .decode(value.as_bytes())
            .map_err(|_| Flaw::Xattrs)?;
        xattrs.push((name.as_bytes().to_vec(), value));
    }
    xattrs.sort_unstable();
    let repeats = xattrs.windows(2).any(|pair| pair[0].0 == pair[1].0);
    let total: usize = xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if repeats || total > XATTR_BYTES {
        return Err(Flaw::Xattrs);
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests;
