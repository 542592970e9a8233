//! The bytes of a tar that are not content of files: compared with a table of contents, and made a tar again.
//!
//! Invariants: a tar-split is read as a stream, one line at a time, and only after its digest was compared with
//! the one in the table. What [`matches`] accepts is read by every reader of tars as the table says.
//!
//! The format is that of vbatts/tar-split, `tar/storage`: lines of JSON, each with raw bytes or with the name and
//! the length of a file whose content belongs there. The CRC-64 of the content that it also has is not looked at:
//! sha256 decides, of each file and of the whole tar.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read, Take};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};

use super::Toc;
pub use super::error::TarSplitError;
use super::error::shown;
use super::tar_headers::Headers;
use super::toc::WINDOW_LOG;

/// Longest line: writers cut the end of a tar into pieces of 1 MiB, which base64 makes 4/3 of.
const LINE: u64 = 4 * 1024 * 1024;
/// What is read of a file at once.
const BUFFER: usize = 128 * 1024;

/// A piece of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes: headers, padding.
    Bytes(Vec<u8>),
    /// The content of an entry. Those that are no files, and empty files, have one of 0 bytes.
    File {
        /// The name of the entry as in the tar.
        name: Box<str>,
        /// Bytes of the content.
        size: u64,
    },
}

/// The pieces of a tar, in order; ends after the first error. Created by [`read`].
pub struct Pieces<'a> {
    lines: Lines<'a>,
    line: Vec<u8>,
    number: u64,
    length: u64,
    ended: bool,
}

type Lines<'a> = BufReader<Take<zstd::Decoder<'static, &'a [u8]>>>;

/// Reads the tar-split that lies in `raw` and is `unpacked` bytes long when decompressed.
///
/// `digest` is [`Toc::tar_split_digest`], without which a tar-split is of no use.
///
/// # Errors
/// [`TarSplitError::Digest`], and `Packed` when there is no memory for the decoder. The pieces give
/// `Packed`, `Length` and `Line`.
pub fn read<'a>(
    raw: &'a [u8],
    digest: &[u8; 32],
    unpacked: u64,
) -> Result<Pieces<'a>, TarSplitError> {
    if Sha256::digest(raw).as_slice() != digest {
        return Err(TarSplitError::Digest);
    }
    let decoder = zstd::Decoder::with_buffer(raw).map_err(TarSplitError::Packed)?;
    let mut decoder = decoder.single_frame();
    decoder
        .window_log_max(WINDOW_LOG)
        .map_err(TarSplitError::Packed)?;
    // One byte more, to see that there is none.
    let limited = decoder.take(unpacked.saturating_add(1));
    Ok(Pieces {
        lines: BufReader::with_capacity(BUFFER, limited),
        line: Vec::new(),
        number: 0,
        length: unpacked,
        ended: false,
    })
}

/// A line as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u64,
    #[serde(borrow, default)]
    name: Text<'a>,
    /// Of a name that is not UTF-8: no table of contents can have it.
    name_raw: Option<IgnoredAny>,
    #[serde(default)]
    size: u64,
    #[serde(borrow)]
    payload: Option<Text<'a>>,
    #[serde(rename = "position")]
    _position: Option<u64>,
}

/// A text that is copied only where it has escapes.
#[derive(Default, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Pieces<'_> {
    fn next_piece(&mut self) -> Result<Option<Piece>, TarSplitError> {
        self.line.clear();
        let mut line = self.lines.by_ref().take(LINE);
        let count = line
            .read_until(b'\n', &mut self.line)
            .map_err(TarSplitError::Packed)?;
        if count == 0 {
            return self.end().map(|()| None);
        }
        self.number += 1;
        if self.line.last() != Some(&b'\n') {
            // Cut off by a limit, or at the end of the data, where it would be no line either.
            let whole = self.lines.get_ref().limit() > 0;
            let reason = "it is too long or cut off".to_owned();
            return Err(if whole {
                self.refuse(reason)
            } else {
                TarSplitError::Length(self.length)
            });
        }
        piece(&self.line)
            .map(Some)
            .map_err(|reason| self.refuse(reason))
    }

    fn refuse(&self, reason: String) -> TarSplitError {
        TarSplitError::Line {
            line: self.number,
            reason,
        }
    }

    /// Exactly the announced bytes were there, and nothing after them.
    fn end(&self) -> Result<(), TarSplitError> {
        let limited = self.lines.get_ref();
        if limited.limit() != 1 || !limited.get_ref().get_ref().is_empty() {
            return Err(TarSplitError::Length(self.length));
        }
        Ok(())
    }
}

fn piece(line: &[u8]) -> Result<Piece, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match line.kind {
        1 if line.name_raw.is_some() => Err("a name is not UTF-8".to_owned()),
        1 => Ok(Piece::File {
            name: line.name.0.into(),
            size: line.size,
        }),
        2 if line.size != 0 || !line.name.0.is_empty() || line.name_raw.is_some() => {
            Err("bytes have a name or a size".to_owned())
        }
        2 => {
            let Some(Text(payload)) = line.payload else {
                return Err("the bytes are missing".to_owned());
            };
            let bytes = STANDARD.decode(payload.as_bytes());
            bytes.map(Piece::Bytes).map_err(|error| error.to_string())
        }
        other => Err(format!("its type {other} is unknown")),
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece, TarSplitError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_piece().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

impl std::fmt::Debug for Pieces<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces")
            .field("lines", &self.number)
            .finish_non_exhaustive()
    }
}

/// Compares a table of contents with the headers of the tar: the same entries in the same order, with the same
/// names, types, sizes, modes, owners, times in seconds, targets, attributes and devices, and nothing else.
///
/// # Errors
/// Whatever `pieces` give; [`TarSplitError::Tar`] for a tar that readers could take for different things,
/// [`TarSplitError::Differs`].
pub fn matches(
    toc: &Toc,
    pieces: impl Iterator<Item = Result<Piece, TarSplitError>>,
) -> Result<(), TarSplitError> {
    let mut headers = Headers::new(&toc.entries);
    for piece in pieces {
        match piece? {
            Piece::Bytes(bytes) => headers.bytes(&bytes)?,
            Piece::File { name, size } => headers.content(&name, size)?,
        }
    }
    headers.finish()
}

/// Makes the tar again, piece by piece, only to hash it.
pub struct Rebuild {
    hasher: Sha256,
    buffer: Box<[u8]>,
}

impl Default for Rebuild {
    fn default() -> Self {
        Self {
            hasher: Sha256::new(),
            buffer: vec![0; BUFFER].into(),
        }
    }
}

impl Rebuild {
    /// Adds a piece. `content` opens the file with this name, and is asked only for files that are not empty.
    ///
    /// # Errors
    /// [`TarSplitError::Content`] when the content cannot be had, or is not of the size that belongs here.
    pub fn add<R: Read>(
        &mut self,
        piece: &Piece,
        content: impl FnOnce(&str) -> io::Result<R>,
    ) -> Result<(), TarSplitError> {
        match piece {
            Piece::Bytes(bytes) => {
                self.hasher.update(bytes);
                Ok(())
            }
            Piece::File { size: 0, .. } => Ok(()),
            Piece::File { name, size } => content(name)
                .and_then(|content| self.content(content, *size))
                .map_err(|source| TarSplitError::Content {
                    name: shown(name),
                    source,
                }),
        }
    }

    fn content(&mut self, mut content: impl Read, size: u64) -> io::Result<()> {
        let mut left = size;
        loop {
            let count = match content.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if count == 0 {
                break;
            }
            let error = || io::Error::new(io::ErrorKind::InvalidData, "the file is too long");
            left = left.checked_sub(count as u64).ok_or_else(error)?;
            self.hasher.update(&self.buffer[..count]);
        }
        if left > 0 {
            let reason = "the file is too short";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
        }
        Ok(())
    }

    /// sha256 of the tar: its diff_id.
    pub fn finish(self) -> [u8; 32] {
        self.hasher.finalize().into()
    }
}

impl std::fmt::Debug for Rebuild {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rebuild").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
