//! Some bytes of one blob on their way in: they go on where they were broken off.
//!
//! Invariants: the stream delivers each byte once and in order, and ends well only with all of them;
//! what a partial answer begins with is compared with what is missing, never assumed; a registry that
//! does not understand ranges is not asked for one again. Then whoever can do with it gets the whole anew, of
//! which only what is missing is delivered. Nothing is hashed here: the consumer does it, over all parts
//! together.

use std::fmt;
use std::ops;
use std::sync::Arc;

use futures_util::stream;
use reqwest::{Response, StatusCode};
use tokio_util::bytes::{Buf as _, Bytes};

use super::answer::{Range, content_range};
use super::open::Open;
use super::reference::Digest;
use super::registry::Registry;
use super::retry::Patience;
use super::{ByteStream, Error};

/// New bytes after which a transfer counts as going on again.
const PROGRESS: u64 = 64 << 10;

/// New bytes after which an answer that is cut is no failure: some servers end each connection after a while.
const PLENTY: u64 = 1 << 20;

/// Why a range is not to be had, so that the whole has to do.
const NO_RANGES: [StatusCode; 4] = [
    StatusCode::RANGE_NOT_SATISFIABLE,
    StatusCode::BAD_REQUEST,
    StatusCode::NOT_IMPLEMENTED,
    StatusCode::METHOD_NOT_ALLOWED,
];

/// What a transfer does where ranges are not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// It goes on to the end of the blob, and passes over what comes before its own beginning.
    Whole,
    /// It fails with [`Error::NoRanges`].
    Nothing,
}

/// An answer that is being read.
struct Body {
    response: Response,
    /// Bytes at its beginning that are not wanted (any more).
    skip: u64,
    /// Where it ends.
    end: u64,
    /// Whether it is a partial one.
    is_part: bool,
    /// New bytes that it brought.
    brought: u64,
}

/// One row of requests, one at a time.
pub(super) struct Transfer {
    registry: Arc<Registry>,
    digest: Digest,
    /// Of the blob.
    size: u64,
    /// The next byte to deliver.
    at: u64,
    /// Behind the last one.
    end: u64,
    otherwise: Otherwise,
    body: Option<Body>,
    patience: Patience,
    _open: Open,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An answer would show its URL.
        write!(f, "Transfer({} {}..{})", self.digest, self.at, self.end)
    }
}

impl Transfer {
    /// Prepares to fetch these bytes of a blob that must have `size` of them; nothing is sent yet.
    pub(super) fn new(
        open: Open,
        digest: &Digest,
        size: u64,
        wanted: ops::Range<u64>,
        otherwise: Otherwise,
    ) -> Transfer {
        let registry = Arc::clone(open.registry());
        Transfer {
            patience: registry.patience(),
            registry,
            digest: digest.clone(),
            size,
            at: wanted.start,
            end: wanted.end,
            otherwise,
            body: None,
            _open: open,
        }
    }

    /// Begins to fetch.
    ///
    /// # Errors
    /// When the registry has no such blob, no ranges though nothing else would do, or gives no answer in time.
    pub(super) async fn open(
        registry: &Arc<Registry>,
        digest: &Digest,
        size: u64,
        wanted: ops::Range<u64>,
        otherwise: Otherwise,
    ) -> Result<Transfer, Error> {
        let open = Open::one(registry);
        let mut transfer = Transfer::new(open, digest, size, wanted, otherwise);
        if transfer.at < transfer.end {
            transfer.body = Some(transfer.reopened().await?);
        }
        Ok(transfer)
    }

    /// Behind the last byte that it delivers; later than what was asked for when the whole has to do.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// From now on it fails where ranges are not to be had.
    pub(super) fn or_nothing(mut self) -> Transfer {
        self.otherwise = Otherwise::Nothing;
        self
    }

    /// The bytes as they arrive.
    pub(super) fn into_stream(self) -> ByteStream {
        Box::pin(stream::try_unfold(self, |mut transfer| async move {
            let chunk = transfer.next().await?;
            Ok(chunk.map(|chunk| (chunk, transfer)))
        }))
    }

    /// The next bytes that were not delivered yet.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.at == self.end && self.body.is_none() {
            return Ok(None);
        }
        loop {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.reopened().await?,
            };
            let chunk = self.registry.connection().chunk(&mut body.response).await;
            let failure = match chunk {
                Ok(Some(chunk)) => {
                    self.registry.arrived(chunk.len() as u64).await;
                    let new = self.new_of(chunk, &mut body)?;
                    self.body = Some(body);
                    if !new.is_empty() {
                        return Ok(Some(new));
                    }
                    continue;
                }
                // All bytes are here, whatever becomes of the connection.
                Ok(None) | Err(_) if self.at == self.end => return Ok(None),
                // A part that ends early, but where it said, is followed by the next.
                Ok(None) if self.at == body.end => continue,
                Ok(None) if body.is_part => self.ended_early(),
                Ok(None) => return Err(self.wrong_size(self.at)),
                Err(failure) => failure,
            };
            let goes_on = body.brought >= PLENTY && self.registry.knows_ranges();
            if !goes_on || !failure.is_retryable() {
                self.patience.wait(failure).await?;
            }
        }
    }

    /// What of a chunk was not delivered yet.
    fn new_of(&mut self, mut chunk: Bytes, body: &mut Body) -> Result<Bytes, Error> {
        let old = body.skip.min(chunk.len() as u64);
        body.skip -= old;
        // It fits: it is no more than the length of the chunk.
        chunk.advance(old as usize);
        let new = chunk.len() as u64;
        body.brought += new;
        self.at = self.at.saturating_add(new);
        if self.at > body.end {
            return Err(self.wrong_size(self.at));
        }
        if body.brought >= PROGRESS || self.at == self.end {
            self.patience.progressed(self.registry.host());
        }
        Ok(chunk)
    }

    /// Asks for what is missing until there is an answer, or no patience left.
    async fn reopened(&mut self) -> Result<Body, Error> {
        loop {
            match self.request().await {
                Ok(body) => return Ok(body),
                Err(failure) => self.patience.wait(failure).await?,
            }
        }
    }

    async fn request(&mut self) -> Result<Body, Error> {
        let can_be_whole = self.otherwise == Otherwise::Whole;
        let is_whole = can_be_whole && self.at == 0 && self.end == self.size;
        if !is_whole && self.registry.knows_ranges() {
            let rest = self.at..self.end;
            let response = self.registry.get_blob(&self.digest, Some(rest)).await?;
            match self.partial(response).await? {
                Some(body) => return Ok(body),
                None => self.registry.forget_ranges(),
            }
        }
        if !can_be_whole {
            return Err(Error::NoRanges);
        }
        let response = self.registry.get_blob(&self.digest, None).await?;
        let response = self.registry.expect_blob(response, &self.digest).await?;
        self.whole(response)
    }

    /// What the answer to a range is good for; `None` when the range was not understood.
    async fn partial(&mut self, response: Response) -> Result<Option<Body>, Error> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = content_range(response.headers()).filter(|range| self.continues(range));
                Ok(range.map(|range| Body {
                    response,
                    skip: 0,
                    end: range.last + 1,
                    is_part: true,
                    brought: 0,
                }))
            }
            StatusCode::OK if self.otherwise == Otherwise::Nothing => Ok(None),
            StatusCode::OK => {
                self.registry.forget_ranges();
                self.whole(response).map(Some)
            }
            status if NO_RANGES.contains(&status) => Ok(None),
            _ => {
                let missing = self.registry.expect_blob(response, &self.digest).await;
                missing.and_then(|response| self.whole(response)).map(Some)
            }
        }
    }

    /// Less than was asked for will do, but not so little that there are requests without end.
    fn continues(&self, range: &Range) -> bool {
        range.first == self.at
            && range.last < self.end
            && (range.last + 1 == self.end || range.last - range.first >= PROGRESS)
            && range.whole.is_none_or(|whole| whole == self.size)
    }

    fn whole(&mut self, response: Response) -> Result<Body, Error> {
        match response.content_length() {
            Some(announced) if announced != self.size => Err(self.wrong_size(announced)),
            _ => {
                self.end = self.size;
                Ok(Body {
                    response,
                    skip: self.at,
                    end: self.size,
                    is_part: false,
                    brought: 0,
                })
            }
        }
    }

    /// Of an answer that said where it would end, and then nothing.
    fn ended_early(&self) -> Error {
        Error::Unreachable {
            host: self.registry.host().to_owned(),
            reason: "its answer ended early".to_owned(),
        }
    }

    fn wrong_size(&self, actual: u64) -> Error {
        Error::Protocol {
            host: self.registry.host().to_owned(),
            reason: format!(
                "the blob {} has {actual} bytes instead of {}",
                self.digest, self.size
            ),
        }
    }
}
