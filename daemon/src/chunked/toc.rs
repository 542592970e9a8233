//! From the bytes of a table of contents to checked entries.

use std::io::Read;

use super::entries::Builder;
use super::error::TocError;
use super::{Chunked, Toc, json};
use crate::image::chunked::{MAX_TOC, SKIPPABLE_HEADER};
use crate::image::reference::Digest;

/// Largest window of a frame, as a power of 2: more than writers ask for, and far less than the memory.
pub(super) const WINDOW_LOG: u32 = 25;

/// Reads the table of contents out of the bytes of `chunked.toc`, and proves it.
///
/// # Errors
/// Any [`TocError`]: then the layer is to be fetched whole.
pub fn parse_toc(raw: &[u8], chunked: &Chunked) -> Result<Toc, TocError> {
    prove(raw, &chunked.toc_digest)?;
    let json = unpack_frame(raw, chunked.toc.unpacked)?;
    let split = chunked.tar_split.map_or(u64::MAX, |split| split.offset);
    let data_end = split
        .min(chunked.toc.offset)
        .saturating_sub(SKIPPABLE_HEADER);
    let mut builder = Builder::new(data_end, json.len());
    let rest = json::read(&json, &mut |entry| builder.add(entry))?;
    if rest.version != 1 {
        return Err(TocError::Version(rest.version));
    }
    let entries = builder.finish()?;
    let digest = rest.tar_split_digest.as_deref();
    let tar_split_digest = digest
        .map(|text| sha256(text).ok_or(TocError::TarSplitDigest))
        .transpose()?;
    Ok(Toc {
        entries,
        tar_split_digest,
    })
}

fn prove(bytes: &[u8], expected: &Digest) -> Result<(), TocError> {
    let found = Digest::of(bytes);
    if found == *expected {
        return Ok(());
    }
    Err(TocError::Digest {
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

/// What is in exactly one zstd frame, which must have exactly this length.
fn unpack_frame(raw: &[u8], length: u64) -> Result<Vec<u8>, TocError> {
    let packed = |error: std::io::Error| TocError::Packed(error.to_string());
    let decoder = zstd::Decoder::with_buffer(raw).map_err(packed)?;
    let mut decoder = decoder.single_frame();
    decoder.window_log_max(WINDOW_LOG).map_err(packed)?;
    let wrong = || TocError::Length(length);
    let capacity = usize::try_from(length.min(MAX_TOC)).map_err(|_| wrong())?;
    let mut json = Vec::with_capacity(capacity);
    // One byte more, to see that there is none.
    let limited = decoder.by_ref().take(length.min(MAX_TOC).saturating_add(1));
    { limited }.read_to_end(&mut json).map_err(packed)?;
    if json.len() as u64 != length {
        return Err(wrong());
    }
    if !decoder.get_ref().is_empty() {
        return Err(TocError::Packed("something follows it".to_owned()));
    }
    Ok(json)
}

/// What lowercase hexadecimal digits are worth, and 255 for all else.
const DIGITS: [u8; 256] = {
    let mut digits = [255; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value as usize] as usize] = value;
        value += 1;
    }
    digits
};

/// The 32 bytes of `sha256:` and 64 lowercase hexadecimal digits.
pub(super) fn sha256(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix("sha256:")?.as_bytes();
    let mut hash = [0; 32];
    if hex.len() != 2 * hash.len() {
        return None;
    }
    // A table has more of them than of anything else; what is no digit sets the upper bits.
    let mut wrong = 0;
    for (byte, pair) in hash.iter_mut().zip(hex.chunks_exact(2)) {
        let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
        *byte = high << 4 | low;
        wrong |= high | low;
    }
    if wrong > 0xf {
        return None;
    }
    Some(hash)
}

#[cfg(test)]
mod tests;
