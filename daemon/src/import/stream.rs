//! The uncompressed tar of one layer: decompressed, hashed, and read to its very end.
//!
//! Invariant: a layer counts as read only after [`TarStream::finish`] compared the tar with
//! its `diff_id` and the blob with its digest.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::error::{During, Error};
use super::feed::{Feed, Received};
use super::objects::hex;
use super::older_image::OlderFiles;
use crate::delta::TarDiff;
use crate::image::layer::{Compression, Layer};
use crate::image::reference::Digest;

/// Most bytes that headers may take between two entries (long names, PAX records).
const HEADER_BYTES: u64 = 2 * 1024 * 1024;
/// Tar is padded in steps of this many bytes …
const BLOCK: usize = 512;
/// … and some writers leave out up to this many blocks at its end.
const MISSING_BLOCKS: usize = 20;

enum Decoder {
    Plain(Box<Feed>),
    Gzip(Box<MultiGzDecoder<Feed>>),
    Zstd(Box<zstd::Decoder<'static, Feed>>),
    Patched(Box<TarDiff<Feed, OlderFiles>>),
}

impl Decoder {
    fn feed(&mut self) -> &mut Feed {
        match self {
            Self::Plain(feed) => feed,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
            Self::Patched(patched) => patched.get_mut(),
        }
    }

    fn into_feed(self) -> Feed {
        match self {
            Self::Plain(feed) => *feed,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
            Self::Patched(patched) => patched.into_inner(),
        }
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(feed) => feed.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
            Self::Patched(patched) => patched.read(buffer),
        }
    }
}

/// How many bytes may still be read while the tar parser looks for the next entry.
///
/// The parser keeps long names in memory, and what it reads is not known to be genuine yet;
/// without a limit a few kilobytes of compressed zeros could fill the memory.
#[derive(Clone, Debug)]
pub(crate) struct HeaderBudget(Rc<Cell<Option<u64>>>);

impl HeaderBudget {
    /// Call before the parser is asked for the next entry.
    pub(crate) fn headers(&self) {
        self.0.set(Some(HEADER_BYTES));
    }

    /// Call before the content of an entry is read.
    pub(crate) fn content(&self) {
        self.0.set(None);
    }

    fn spend(&self, count: usize) -> io::Result<()> {
        let Some(left) = self.0.get() else {
            return Ok(());
        };
        let left = left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the headers of an entry are too long",
            )
        })?;
        self.0.set(Some(left));
        Ok(())
    }
}

/// The tar of one layer.
pub(crate) struct TarStream {
    decoder: Decoder,
    hasher: Sha256,
    budget: HeaderBudget,
}

impl TarStream {
    /// Decompresses what `feed` brings.
    pub(crate) fn new(feed: Feed, compression: Compression) -> Result<Self, Error> {
        let decoder = match compression {
            Compression::Plain => Decoder::Plain(Box::new(feed)),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(feed))),
            Compression::Zstd => {
                let decoder =
                    zstd::Decoder::with_buffer(feed).during("starting the zstd decoder")?;
                Decoder::Zstd(Box::new(decoder))
            }
        };
        Ok(Self::of(decoder))
    }

    /// What a delta makes.
    pub(crate) fn patched(patched: TarDiff<Feed, OlderFiles>) -> Self {
        Self::of(Decoder::Patched(Box::new(patched)))
    }

    fn of(decoder: Decoder) -> Self {
        let budget = HeaderBudget(Rc::new(Cell::new(None)));
        Self {
            decoder,
            hasher: Sha256::new(),
            budget,
        }
    }

    /// Shared with whoever parses the entries.
    pub(crate) fn budget(&self) -> HeaderBudget {
        self.budget.clone()
    }

    /// Why reading failed, when it failed because of the source and not of the content.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.decoder.feed().take_failure()
    }

    /// Reads the rest of the blob, whatever it means, and compares its digest.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], and whatever the source failed with.
    pub(crate) fn finish_blob(self) -> Result<Received, Error> {
        self.decoder.into_feed().finish()
    }

    /// Reads to the real end and compares both digests.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] and [`Error::DiffIdMismatch`]; [`Error::Layer`] when what
    /// follows the last entry cannot be decompressed.
    pub(crate) fn finish(mut self, layer: &Layer) -> Result<Received, Error> {
        self.budget.content();
        let rest = io::copy(&mut self, &mut io::sink());
        if let Err(error) = rest {
            if let Some(failure) = self.take_failure() {
                return Err(failure);
            }
            self.finish_blob()?;
            return Err(Error::Layer {
                digest: layer.digest.clone(),
                reason: format!("its end cannot be read: {error}"),
            });
        }
        let hasher = self.hasher;
        // The blob first: a damaged transfer is a better explanation than a lying image.
        let received = self.decoder.into_feed().finish()?;
        check_diff_id(&hasher, layer)?;
        Ok(received)
    }
}

impl Read for TarStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.budget.spend(count)?;
        Ok(count)
    }
}

/// Writers of chunked blobs used to drop the zero blocks that end a tar, but named the
/// digest of the complete one: both are the layer.
fn check_diff_id(hasher: &Sha256, layer: &Layer) -> Result<(), Error> {
    let matches = |hasher: Sha256| Digest::from_sha256(&hasher.finalize().into()) == layer.diff_id;
    if matches(hasher.clone()) {
        return Ok(());
    }
    let mut padded = hasher.clone();
    for _ in 0..MISSING_BLOCKS {
        padded.update([0; BLOCK]);
        if matches(padded.clone()) {
            return Ok(());
        }
    }
    Err(Error::DiffIdMismatch {
        digest: layer.digest.clone(),
        expected: layer.diff_id.clone(),
        found: hex(&hasher.clone().finalize()),
    })
}
