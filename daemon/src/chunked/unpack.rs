//! The content of one file out of its part of a blob.

use std::io::{self, BufReader, Read};

use super::Content;
use super::toc::WINDOW_LOG;

/// Reads the content of a file, of exactly its size. Created by [`unpack`].
pub struct Unpack<R: Read> {
    /// `None`: an empty file has no part of the blob.
    decoder: Option<Box<zstd::Decoder<'static, BufReader<R>>>>,
    /// What is still to come.
    left: u64,
}

/// Decompresses what lies in the blob from `content.start` to `content.end`; `bytes` must end there, since more
/// is read at once than a frame has.
///
/// Its digest is for the caller to check; a length that is not `content.size` is an error of kind
/// `UnexpectedEof` or `InvalidData`. Read it to its end: only then it is known to be no longer. A frame that asks
/// for more memory than those of tables of contents may is an error, too.
///
/// # Errors
/// When there is no memory for the decoder.
pub fn unpack<R: Read>(bytes: R, content: &Content) -> io::Result<Unpack<R>> {
    let mut decoder = None;
    if content.size > 0 {
        let mut zstd = zstd::Decoder::new(bytes)?;
        zstd.window_log_max(WINDOW_LOG)?;
        decoder = Some(Box::new(zstd));
    }
    Ok(Unpack {
        decoder,
        left: content.size,
    })
}

impl<R: Read> Read for Unpack<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(decoder) = &mut self.decoder else {
            return Ok(0);
        };
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            if decoder.read(&mut [0])? != 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the file is longer than its table of contents says",
                ));
            }
            return Ok(0);
        }
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = decoder.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than its table of contents says",
            ));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

impl<R: Read> std::fmt::Debug for Unpack<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpack")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
