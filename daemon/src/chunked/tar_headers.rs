//! The headers of a tar, read without the content between them, and compared with a table of contents.
//!
//! Invariant: whatever readers of tars understand differently is refused: two long names of one entry, records
//! that are repeated or empty, links with content, sparse files, headers for all entries, anything after the
//! end. An image has none of it, and if it had, its layer could still be fetched whole.

use super::error::{TarSplitError, shown};
use super::tar_member::{Extensions, Member};
use super::{Entry, Kind};

/// Tar is padded in steps of this many bytes.
pub(super) const BLOCK: usize = 512;
/// Longest extension header, in bytes; Go's reader has the same limit.
const EXTENSION: u64 = 1024 * 1024;

/// What comes next.
enum Next {
    Header,
    /// The content of an extension of this type; `left` with its padding.
    Extension {
        kind: u8,
        size: usize,
        left: usize,
    },
    /// The content of an entry, which is not among the bytes.
    Content {
        size: u64,
    },
    /// What fills up the last block of a content.
    Padding(usize),
    /// Nothing but zeros.
    End,
}

/// Reads headers and compares each with the next entry.
pub(super) struct Headers<'a> {
    entries: &'a [Entry],
    /// How many of them were compared.
    done: usize,
    next: Next,
    /// A header that is not whole yet, or the content of an extension.
    buffer: Vec<u8>,
    extensions: Extensions,
}

impl<'a> Headers<'a> {
    pub(super) fn new(entries: &'a [Entry]) -> Self {
        Self {
            entries,
            done: 0,
            next: Next::Header,
            buffer: Vec::new(),
            extensions: Extensions::default(),
        }
    }

    /// Bytes of the tar.
    ///
    /// # Errors
    /// [`TarSplitError::Tar`] and [`TarSplitError::Differs`].
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) -> Result<(), TarSplitError> {
        while !bytes.is_empty() {
            bytes = match &mut self.next {
                Next::Header => {
                    let rest = fill(&mut self.buffer, BLOCK, bytes);
                    if self.buffer.len() == BLOCK {
                        let block = std::mem::take(&mut self.buffer);
                        self.header(&block)?;
                        self.buffer = block;
                        self.buffer.clear();
                    }
                    rest
                }
                Next::Extension { kind, size, left } => {
                    let rest = fill(&mut self.buffer, *left, bytes);
                    if self.buffer.len() == *left {
                        let (kind, size) = (*kind, *size);
                        let data = std::mem::take(&mut self.buffer);
                        let added = self.extensions.add(kind, &data[..size]);
                        added.map_err(|reason| self.broken(reason))?;
                        self.next = Next::Header;
                    }
                    rest
                }
                Next::Padding(left) => {
                    let count = bytes.len().min(*left);
                    *left -= count;
                    if *left == 0 {
                        self.next = Next::Header;
                    }
                    &bytes[count..]
                }
                Next::Content { .. } => {
                    return Err(self.broken("bytes are where a content should be"));
                }
                Next::End if bytes.iter().any(|byte| *byte != 0) => {
                    return Err(self.broken("something follows its end"));
                }
                Next::End => &[],
            };
        }
        Ok(())
    }

    /// The content of the entry whose header was read last.
    ///
    /// # Errors
    /// [`TarSplitError::Tar`] when no content, or another one, belongs here.
    pub(super) fn content(&mut self, name: &str, size: u64) -> Result<(), TarSplitError> {
        let expected = self.done.checked_sub(1).map(|at| &*self.entries[at].name);
        match self.next {
            Next::Content { size: wanted } if wanted == size && expected == Some(name) => {}
            _ => return Err(self.broken("a content is out of place")),
        }
        let past = (size % BLOCK as u64) as usize;
        self.next = match past {
            0 => Next::Header,
            past => Next::Padding(BLOCK - past),
        };
        Ok(())
    }

    /// The tar ended.
    ///
    /// # Errors
    /// [`TarSplitError::Tar`] when it ended within an entry, [`TarSplitError::Differs`] when entries are missing.
    pub(super) fn finish(&self) -> Result<(), TarSplitError> {
        let is_over = match self.next {
            // Some writers leave out the blocks of zeros.
            Next::Header => self.buffer.is_empty() && self.extensions.is_empty(),
            Next::End => true,
            _ => false,
        };
        if !is_over {
            return Err(self.broken("it is cut off"));
        }
        match self.entries.get(self.done) {
            None => Ok(()),
            Some(entry) => Err(differs(&entry.name, "it is not in the tar")),
        }
    }

    fn header(&mut self, block: &[u8]) -> Result<(), TarSplitError> {
        if block.iter().all(|byte| *byte == 0) {
            self.next = Next::End;
            return if self.extensions.is_empty() {
                Ok(())
            } else {
                Err(self.broken("an extension is followed by no entry"))
            };
        }
        let member = Member::new(block).map_err(|reason| self.broken(reason))?;
        let kind = member.kind();
        if Extensions::is_one(kind) {
            let size = member.size().map_err(|reason| self.broken(reason))?;
            let refused = || self.broken("an extension is too long");
            let size = usize::try_from(size)
                .ok()
                .filter(|size| *size as u64 <= EXTENSION);
            let size = size.filter(|size| *size > 0).ok_or_else(refused)?;
            self.next = Next::Extension {
                kind,
                size,
                left: size.next_multiple_of(BLOCK),
            };
            return Ok(());
        }
        let Some(entry) = self.entries.get(self.done) else {
            let name = String::from_utf8_lossy(member.own_name()).into_owned();
            return Err(differs(&name, "it is only in the tar"));
        };
        let extensions = std::mem::take(&mut self.extensions);
        let size = compare(entry, &member, &extensions).map_err(|why| match why {
            Why::Broken(reason) => self.broken(reason),
            Why::Differs(what) => differs(&entry.name, what),
        })?;
        self.done += 1;
        self.next = Next::Content { size };
        Ok(())
    }

    fn broken(&self, reason: &'static str) -> TarSplitError {
        let after = self.done.checked_sub(1).map(|at| &*self.entries[at].name);
        TarSplitError::Tar {
            after: shown(after.unwrap_or_default()),
            reason,
        }
    }
}

/// Moves bytes into the buffer until it has `length` of them; the rest of the bytes.
fn fill<'b>(buffer: &mut Vec<u8>, length: usize, bytes: &'b [u8]) -> &'b [u8] {
    let count = bytes.len().min(length - buffer.len());
    let (now, rest) = bytes.split_at(count);
    buffer.extend_from_slice(now);
    rest
}

fn differs(name: &str, what: &'static str) -> TarSplitError {
    TarSplitError::Differs {
        name: shown(name),
        what,
    }
}

/// Why an entry is not what the table says.
enum Why {
    Broken(&'static str),
    Differs(&'static str),
}

impl From<&'static str> for Why {
    fn from(reason: &'static str) -> Self {
        Self::Broken(reason)
    }
}

/// Compares all that both say; the bytes of content that follow.
fn compare(entry: &Entry, member: &Member<'_>, extensions: &Extensions) -> Result<u64, Why> {
    let same = |is_same, what| {
        if is_same {
            Ok(())
        } else {
            Err(Why::Differs(what))
        }
    };
    let name = extensions.name(member)?;
    same(*name == *entry.name.as_bytes(), "the name")?;
    let kind = match (member.kind(), &entry.kind) {
        (b'0' | 0, Kind::File(_)) => !name.ends_with(b"/"),
        (b'1', Kind::HardLink(target)) | (b'2', Kind::Symlink(target)) => {
            let is_same = *extensions.target(member)? == *target.as_bytes();
            same(is_same, "the target")?;
            true
        }
        (b'3', Kind::Char) | (b'4', Kind::Block) => {
            same(member.device()? == entry.device, "the device")?;
            true
        }
        (b'5', Kind::Directory) | (b'6', Kind::Fifo) => true,
        _ => false,
    };
    same(kind, "the type")?;
    let size = extensions.size(member)?;
    let expected = match &entry.kind {
        Kind::File(content) => content.size,
        _ => 0,
    };
    same(size == expected, "the size")?;
    same(member.mode()? == entry.mode, "the mode")?;
    let owner = (u64::from(entry.uid), u64::from(entry.gid));
    same(extensions.owner(member)? == owner, "the owner or the group")?;
    // Readers and writers of Go take the first second of 1970 for no time.
    let modified = entry.modified.unwrap_or(0);
    same(extensions.modified(member)? == modified, "the time")?;
    same(
        extensions.xattrs() == entry.xattrs,
        "the extended attributes",
    )?;
    Ok(size)
}

#[cfg(test)]
mod tests;
