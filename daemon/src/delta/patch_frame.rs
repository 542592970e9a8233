//! One file as a Zstandard frame whose dictionary is the whole older file.
//!
//! Invariant: the dictionary and the window are within the memory that was set aside for them before either
//! was allocated.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};

use zstd::stream::raw::{DParameter, Decoder, Operation, Status};

use super::memory::{Memory, Share};
use super::tar_diff::{TarDiffError, cut};

/// What every frame begins with.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What dictionaries begin with that are more than bytes to refer to.
const DICTIONARY: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];
/// The longest header of a frame.
const HEADER_BYTES: usize = 18;
/// The largest window that can be allowed, as its logarithm.
const WINDOW_LOG_MAX: u32 = 30;

/// A frame on its way.
pub(super) struct PatchFrame {
    decoder: Decoder<'static>,
    /// Compressed bytes that were read to look at the header, and come first.
    ahead: Box<[u8]>,
    /// Compressed bytes that are not read yet, and belong to the operation.
    left: u64,
    ended: bool,
    _share: Share,
}

impl PatchFrame {
    /// Begins with a frame of `size` bytes, the next ones of `input`, against all of `file`; leaves the file at
    /// its end. Waits until there is memory for it.
    pub(super) fn begin(
        input: &mut impl BufRead,
        size: u64,
        file: &mut File,
        memory: &Memory,
    ) -> io::Result<PatchFrame> {
        let ahead = HEADER_BYTES.min(usize::try_from(size).unwrap_or(usize::MAX));
        let mut header = vec![0; ahead];
        input.read_exact(&mut header).map_err(cut)?;
        let window = window(&header).ok_or(TarDiffError::Frame)?;
        let length = file.metadata()?.len();
        // The library makes a copy of the dictionary before it makes the window. It could do without one only
        // if it had the file from somebody who lives longer than the decoder.
        let need = length.saturating_add(length.max(window));
        let share = memory.take(need).ok_or(TarDiffError::Memory {
            need,
            limit: memory.all(),
        })?;
        let mut decoder = Decoder::with_dictionary(&dictionary(file, length)?)?;
        let log = window
            .max(1)
            .checked_next_power_of_two()
            .map_or(WINDOW_LOG_MAX, u64::ilog2);
        decoder.set_parameter(DParameter::WindowLogMax(log.clamp(10, WINDOW_LOG_MAX)))?;
        Ok(PatchFrame {
            decoder,
            left: size - header.len() as u64,
            ahead: header.into(),
            ended: false,
            _share: share,
        })
    }

    /// The next bytes of the file; 0 when it is complete, and with it the frame. Asks `go_on` as often as it
    /// asks for input.
    pub(super) fn read(
        &mut self,
        input: &mut impl BufRead,
        buffer: &mut [u8],
        go_on: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<usize> {
        while !self.ended {
            go_on()?;
            let status = if self.ahead.is_empty() {
                let some = match usize::try_from(self.left).unwrap_or(usize::MAX) {
                    // Also without more input there can be more output.
                    0 => &[],
                    limit => {
                        let some = input.fill_buf().map_err(cut)?;
                        &some[..some.len().min(limit)]
                    }
                };
                let status = self.run(some, buffer)?;
                if status.bytes_read == 0 && status.bytes_written == 0 && !self.ended {
                    return Err(TarDiffError::Truncated.into());
                }
                input.consume(status.bytes_read);
                self.left -= status.bytes_read as u64;
                status
            } else {
                let ahead = std::mem::take(&mut self.ahead);
                let status = self.run(&ahead, buffer)?;
                self.ahead = ahead[status.bytes_read..].into();
                status
            };
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
        }
        if self.left > 0 || !self.ahead.is_empty() {
            return Err(TarDiffError::Frame.into());
        }
        Ok(0)
    }

    fn run(&mut self, input: &[u8], buffer: &mut [u8]) -> io::Result<Status> {
        let status = self.decoder.run_on_buffers(input, buffer);
        let status = status.map_err(|_| TarDiffError::Frame)?;
        self.ended = status.remaining == 0;
        Ok(status)
    }
}

/// The content of the file, which is nothing but bytes to refer to, whatever it looks like.
fn dictionary(file: &mut File, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(0))?;
    let mut content = Vec::new();
    let capacity = usize::try_from(length).unwrap_or(usize::MAX);
    content.try_reserve_exact(capacity.saturating_add(1))?;
    file.take(length).read_to_end(&mut content)?;
    if content.starts_with(&DICTIONARY) {
        // Frames refer to it from its end, so what is before its beginning changes nothing for them.
        content.insert(0, 0);
    }
    Ok(content)
}

/// How much of what it made the decoder of a frame keeps (RFC 8878, 3.1.1.1), from the beginning of the frame;
/// `None` for what is none.
fn window(header: &[u8]) -> Option<u64> {
    let rest = header.strip_prefix(&MAGIC)?;
    let (&descriptor, rest) = rest.split_first()?;
    if descriptor & 0b0010_0000 == 0 {
        let byte = *rest.first()?;
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    // A single segment: as much as the content.
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = rest.get(dictionary_id..dictionary_id + bytes)?;
    let size = field
        .iter()
        .rev()
        .fold(0, |size, byte| size << 8 | u64::from(*byte));
    Some(if bytes == 2 { size + 256 } else { size })
}

impl std::fmt::Debug for PatchFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PatchFrame")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_window_is_in_the_header() {
        for (header, expected) in [
            // A window of 2^10, then of 2^23 + 3/8 of it.
            (&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00][..], Some(1024)),
            (
                &[0x28, 0xb5, 0x2f, 0xfd, 0x04, (13 << 3) | 3],
                Some((8 << 20) + (3 << 20)),
            ),
            // Single segments: 7 bytes, 256 + 2 bytes after a dictionary ID, and many.
            (&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 7], Some(7)),
            (&[0x28, 0xb5, 0x2f, 0xfd, 0x61, 9, 2, 0], Some(258)),
            (
                &[
                    0x28, 0xb5, 0x2f, 0xfd, 0xe0, 255, 255, 255, 255, 255, 255, 255, 255,
                ],
                Some(u64::MAX),
            ),
            (&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0], None),
            (&[0x28, 0xb5, 0x2f, 0xfd], None),
            (&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], None),
            (&[], None),
        ] {
            assert_eq!(window(header), expected, "{header:x?}");
        }
    }

    /// The header of what the library writes, with and without the size of the content.
    #[test]
    fn the_window_of_real_frames_is_found() {
        for pledge in [None, Some(300_000u64)] {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(18).unwrap();
            encoder.set_pledged_src_size(pledge).unwrap();
            encoder.write_all(&[7; 300_000]).unwrap();
            let frame = encoder.finish().unwrap();
            assert_eq!(window(&frame), Some(1 << 18));
        }
        let frame = zstd::bulk::compress(&[7; 5000], 3).unwrap();
        assert_eq!(window(&frame), Some(5000));
    }
}
