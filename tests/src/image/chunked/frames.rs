//! The frames of a zstd stream, and where in the blob each begins.

use std::io::Write;

use anyhow::{Context, Result, bail};
use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation, OutBuffer};

/// What begins a frame that readers of zstd skip; four bytes with its length follow.
const SKIPPABLE: [u8; 4] = 0x184d_2a50_u32.to_le_bytes();

/// A frame of up to so many bytes is compressed at once, with its size known beforehand: the compressor then
/// needs smaller tables, and most frames are much smaller.
const WHOLE: usize = 1 << 20;

/// Writes a stream frame by frame. Invariant: there are no empty frames.
pub(super) struct Frames<W> {
    out: W,
    encoder: Encoder<'static>,
    /// Content of the present frame that the encoder has not seen.
    pending: Vec<u8>,
    /// The encoder has seen a part of the present frame.
    is_begun: bool,
    compressed: Vec<u8>,
    /// Bytes of content of all frames.
    taken: u64,
    /// Bytes of the blob.
    written: u64,
}

impl<W: Write> Frames<W> {
    pub(super) fn new(out: W, level: i32) -> Result<Self> {
        let mut encoder = Encoder::new(level).context("starting a compressor")?;
        encoder.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(Self {
            out,
            encoder,
            pending: Vec::new(),
            is_begun: false,
            compressed: vec![0; 128 << 10],
            taken: 0,
            written: 0,
        })
    }

    /// Adds to the present frame.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.taken += bytes.len() as u64;
        self.pending.extend_from_slice(bytes);
        if self.pending.len() > WHOLE {
            self.is_begun = true;
            self.compress()?;
        }
        Ok(())
    }

    /// Ends the present frame; returns where in the blob the next one begins.
    pub(super) fn end(&mut self) -> Result<u64> {
        if self.pending.is_empty() && !self.is_begun {
            return Ok(self.written);
        }
        if !self.is_begun {
            self.encoder
                .set_pledged_src_size(Some(self.pending.len() as u64))?;
        }
        self.compress()?;
        loop {
            let mut out = OutBuffer::around(&mut self.compressed);
            let left = self.encoder.finish(&mut out, true)?;
            let length = out.pos();
            self.put(length)?;
            if left == 0 {
                break;
            }
        }
        self.encoder.reinit()?;
        self.is_begun = false;
        Ok(self.written)
    }

    /// Hands what is pending to the encoder.
    fn compress(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let mut input = InBuffer::around(&pending);
        while input.pos() < pending.len() {
            let mut out = OutBuffer::around(&mut self.compressed);
            self.encoder.run(&mut input, &mut out)?;
            let length = out.pos();
            self.put(length)?;
        }
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    fn put(&mut self, length: usize) -> Result<()> {
        self.out
            .write_all(&self.compressed[..length])
            .context("writing a blob")?;
        self.written += length as u64;
        Ok(())
    }

    /// Adds a frame that readers skip; returns where its content begins. The frame before must have ended.
    pub(super) fn skippable(&mut self, content: &[u8]) -> Result<u64> {
        let Ok(length) = u32::try_from(content.len()) else {
            bail!("{} bytes do not fit into a skippable frame", content.len());
        };
        let head = [SKIPPABLE, length.to_le_bytes()].concat();
        for bytes in [head.as_slice(), content] {
            self.out.write_all(bytes).context("writing a blob")?;
            self.written += bytes.len() as u64;
        }
        Ok(self.written - u64::from(length))
    }

    pub(super) fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Something that was compressed to one frame.
pub(super) struct Packed {
    pub(super) compressed: Vec<u8>,
    /// Bytes that it was before.
    pub(super) unpacked: u64,
}

impl Frames<Vec<u8>> {
    pub(super) fn pack(mut self) -> Result<Packed> {
        self.end()?;
        Ok(Packed {
            compressed: self.out,
            unpacked: self.taken,
        })
    }
}
