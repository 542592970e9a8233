//! Where a file is cut into chunks: by a rolling checksum, and around long runs of zeros.
//!
//! The rule of the writers in containers/storage. Invariants: every maximal run of at least [`HOLE`] zeros is a
//! chunk of its own; the checksum sees all bytes, but never cuts inside of such a run; no chunk is empty.

use anyhow::Result;

/// A run of so many zeros is a chunk of its own.
const HOLE: u64 = 1024;

/// Longest piece of a chunk that is held back.
const PIECE: usize = 64 << 10;

/// The checksum cuts where this many of its low bits are set: after 64 KiB on average.
const BITS: u32 = 16;

/// Bytes that the checksum is of.
const WINDOW: usize = 64;

/// Added to each byte, so that zeros count.
const OFFSET: u32 = 31;

const ZEROS: [u8; 4096] = [0; 4096];

/// A part of a file.
pub(super) enum Piece<'a> {
    /// Bytes of a chunk, and whether they are its last.
    Data(&'a [u8], bool),
    /// So many zeros: a whole chunk.
    Zeros(u64),
}

impl Piece<'_> {
    pub(super) fn ends_chunk(&self) -> bool {
        matches!(self, Self::Data(_, true) | Self::Zeros(_))
    }

    /// Calls `take` with the bytes, one stretch after the other.
    pub(super) fn each_run(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match *self {
            Self::Data(bytes, _) => take(bytes),
            Self::Zeros(mut left) => {
                while left > 0 {
                    let length = left.min(ZEROS.len() as u64);
                    take(&ZEROS[..length as usize])?;
                    left -= length;
                }
                Ok(())
            }
        }
    }
}

/// The checksum of bup, over the last [`WINDOW`] bytes.
struct RollingSum {
    low: u32,
    high: u32,
    window: [u8; WINDOW],
    at: usize,
}

impl Default for RollingSum {
    fn default() -> Self {
        let window = WINDOW as u32;
        Self {
            low: window * OFFSET,
            high: window * (window - 1) * OFFSET,
            window: [0; WINDOW],
            at: 0,
        }
    }
}

impl RollingSum {
    fn roll(&mut self, byte: u8) {
        let gone = u32::from(std::mem::replace(&mut self.window[self.at], byte));
        self.at = (self.at + 1) % WINDOW;
        self.low = self.low.wrapping_add(u32::from(byte)).wrapping_sub(gone);
        let left = (WINDOW as u32).wrapping_mul(gone + OFFSET);
        self.high = self.high.wrapping_add(self.low).wrapping_sub(left);
    }

    fn cuts(&self) -> bool {
        let mask = (1 << BITS) - 1;
        self.high & mask == mask
    }
}

/// Cuts one file.
#[derive(Default)]
pub(super) struct Splitter {
    sum: RollingSum,
    /// Of the present chunk, not passed on yet.
    pending: Vec<u8>,
    /// Some of the present chunk was passed on.
    is_begun: bool,
    /// Zeros after what is pending that may become a run.
    zeros: u64,
}

impl Splitter {
    /// Takes the next bytes of the file.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        pass: &mut impl FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        for byte in bytes {
            if *byte == 0 {
                self.zeros += 1;
                continue;
            }
            if self.zeros > 0 {
                self.settle(pass)?;
            }
            self.push(*byte, pass)?;
        }
        Ok(())
    }

    /// Passes on what is left at the end of the file.
    pub(super) fn finish(&mut self, pass: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        self.settle(pass)?;
        self.end_chunk(pass)
    }

    /// Decides what the zeros are that came last.
    fn settle(&mut self, pass: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros < HOLE {
            return (0..zeros).try_for_each(|_| self.push(0, pass));
        }
        self.end_chunk(pass)?;
        // Further zeros leave the checksum of zeros as it is.
        (0..WINDOW).for_each(|_| self.sum.roll(0));
        pass(Piece::Zeros(zeros))
    }

    fn push(&mut self, byte: u8, pass: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        self.pending.push(byte);
        self.sum.roll(byte);
        if self.sum.cuts() {
            return self.end_chunk(pass);
        }
        if self.pending.len() == PIECE {
            self.is_begun = true;
            pass(Piece::Data(&self.pending, false))?;
            self.pending.clear();
        }
        Ok(())
    }

    fn end_chunk(&mut self, pass: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        if self.pending.is_empty() && !self.is_begun {
            return Ok(());
        }
        pass(Piece::Data(&self.pending, true))?;
        self.pending.clear();
        self.is_begun = false;
        Ok(())
    }
}
