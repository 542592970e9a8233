//! Bytes of one layer by parts, for threads that block.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use tokio::runtime::Handle;
use tokio_util::bytes::{Buf as _, Bytes};
use tokio_util::sync::CancellationToken;

use super::Setback;
use crate::image::layer::Layer;
use crate::image::{self, ByteStream};
use crate::import::error::Error;
use crate::import::{Fetch, Observer};

/// Where the parts of a layer come from.
#[derive(Clone, Copy)]
pub(crate) struct Reach<'a> {
    /// Runs the transfers.
    pub(crate) runtime: &'a Handle,
    /// Gives the parts.
    pub(crate) fetch: &'a Arc<dyn Fetch>,
    /// The layer.
    pub(crate) layer: &'a Layer,
    /// Is told of bytes that arrive.
    pub(crate) observer: &'a Arc<dyn Observer>,
    /// Counts them, too.
    pub(crate) fetched: &'a AtomicU64,
    /// Bytes of the layer that the observer was told to expect.
    pub(crate) expected: &'a AtomicU64,
    /// Ends it.
    pub(crate) stop: &'a CancellationToken,
}

impl<'a> Reach<'a> {
    /// Asks for a part.
    pub(super) fn open(&self, range: Range<u64>) -> Result<Arriving<'a>, Setback> {
        let left = range.end - range.start;
        let part = self.fetch.part(self.layer, range);
        let stream = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(image::Error::Cancelled),
                stream = part => stream,
            }
        });
        Ok(Arriving {
            reach: *self,
            stream: stream.map_err(Setback::of_source)?,
            chunk: Bytes::new(),
            left,
            failure: None,
        })
    }

    /// Tells that after what was fetched by now `rest` bytes follow, if that is more than was told before.
    pub(crate) fn expect(&self, rest: u64) {
        let all = self.fetched.load(Ordering::Relaxed).saturating_add(rest);
        let told = self.expected.fetch_max(all, Ordering::Relaxed);
        if all > told {
            self.observer.more(all - told);
        }
    }

    /// A part that fits into memory.
    pub(super) fn bytes(&self, range: Range<u64>) -> Result<Vec<u8>, Setback> {
        let length = usize::try_from(range.end - range.start).unwrap_or(0);
        let mut arriving = self.open(range)?;
        let mut bytes = Vec::with_capacity(length);
        match arriving.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(arriving.explain(error)),
        }
    }
}

/// A part on its way in; ends after as many bytes as were asked for.
pub(super) struct Arriving<'a> {
    reach: Reach<'a>,
    stream: ByteStream,
    chunk: Bytes,
    /// Bytes that did not arrive yet.
    left: u64,
    failure: Option<image::Error>,
}

impl Arriving<'_> {
    /// What an error of reading it really was: the source's, or one of what was read.
    pub(super) fn explain(&mut self, error: io::Error) -> Setback {
        match self.failure.take() {
            Some(failure) => Setback::of_source(failure),
            None => Setback::of_io(&error, self.reach.layer),
        }
    }

    fn next(&mut self) -> io::Result<()> {
        let next = self.reach.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.reach.stop.cancelled() => Some(Err(image::Error::Cancelled)),
                next = self.stream.next() => next,
            }
        });
        match next {
            Some(Ok(chunk)) if chunk.len() as u64 <= self.left => {
                let count = chunk.len() as u64;
                self.left -= count;
                self.reach.fetched.fetch_add(count, Ordering::Relaxed);
                self.reach.observer.bytes(&self.reach.layer.digest, count);
                self.chunk = chunk;
                Ok(())
            }
            Some(Ok(_)) => Err(io::Error::other("more bytes came than were asked for")),
            Some(Err(error)) => {
                let text = error.to_string();
                self.failure = Some(error);
                Err(io::Error::other(text))
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for Arriving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && self.left > 0 {
            self.next()?;
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Setback {
    /// A source that has no parts, or other ones than it should, may have the whole.
    fn of_source(error: image::Error) -> Self {
        match error {
            image::Error::NoRanges => Self::Whole("its source gives no parts of it".to_owned()),
            image::Error::Protocol { .. } | image::Error::DigestMismatch { .. } => {
                tracing::warn!(%error, "a source gives no proper part of a layer");
                Self::Whole(format!("its source gives no proper part of it: {error}"))
            }
            error => Self::Failed(Error::from(error)),
        }
    }

    /// What was read is not what the manifest or the table of contents promise, or cannot be written down.
    fn of_io(error: &io::Error, layer: &Layer) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Failed(Error::NoSpace {
                    need: 0,
                    have: 0,
                    where_: String::new(),
                })
            }
            _ => {
                tracing::warn!(digest = %layer.digest, %error, "a part of a layer cannot be read");
                Self::Whole(format!("a part of it cannot be read: {error}"))
            }
        }
    }
}
