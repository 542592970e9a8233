//! One blob on its way in: it goes on where it was broken off.
//!
//! Invariants: the stream delivers each byte once and in order, and ends well only with all of them;
//! what a partial answer begins with is compared with what is missing, never assumed; a registry that
//! does not understand ranges is not asked for one again, and sends the whole anew, of which only the
//! missing end is delivered. Nothing is hashed here: the consumer does it, over all parts together.

use std::sync::Arc;

use futures_util::stream;
use reqwest::{Response, StatusCode};
use tokio_util::bytes::{Buf as _, Bytes};

use super::answer::{Range, content_range};
use super::reference::Digest;
use super::registry::Registry;
use super::retry::Patience;
use super::{ByteStream, Error};

/// New bytes after which a transfer counts as going on again.
const PROGRESS: u64 = 64 << 10;

/// Why a range is not to be had, so that the whole has to do.
const NO_RANGES: [StatusCode; 4] = [
    StatusCode::RANGE_NOT_SATISFIABLE,
    StatusCode::BAD_REQUEST,
    StatusCode::NOT_IMPLEMENTED,
    StatusCode::METHOD_NOT_ALLOWED,
];

/// An answer that is being read.
#[derive(Debug)]
struct Body {
    response: Response,
    /// Bytes at its beginning that were delivered before.
    skip: u64,
    /// Where it ends.
    end: u64,
    /// New bytes that it brought.
    brought: u64,
}

#[derive(Debug)]
pub(super) struct BlobTransfer {
    registry: Arc<Registry>,
    digest: Digest,
    size: u64,
    /// Bytes that were delivered.
    seen: u64,
    body: Option<Body>,
    patience: Patience,
}

impl BlobTransfer {
    /// Begins to fetch a blob that must have this many bytes.
    ///
    /// # Errors
    /// When the registry has no such blob, or gives no answer in time.
    pub(super) async fn open(
        registry: Arc<Registry>,
        digest: &Digest,
        size: u64,
    ) -> Result<ByteStream, Error> {
        let mut transfer = BlobTransfer {
            patience: registry.patience(),
            registry,
            digest: digest.clone(),
            size,
            seen: 0,
            body: None,
        };
        let body = transfer.reopened().await?;
        transfer.body = Some(body);
        let bytes = stream::try_unfold(transfer, |mut transfer| async move {
            let chunk = transfer.next().await?;
            Ok(chunk.map(|chunk| (chunk, transfer)))
        });
        Ok(Box::pin(bytes))
    }

    /// The next bytes that were not delivered yet.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let mut body = match self.body.take() {
                Some(body) => body,
                None => self.reopened().await?,
            };
            match self.registry.connection().chunk(&mut body.response).await {
                Ok(Some(mut chunk)) => {
                    let old = body.skip.min(chunk.len() as u64);
                    body.skip -= old;
                    // It fits: it is no more than the length of the chunk.
                    chunk.advance(old as usize);
                    let new = chunk.len() as u64;
                    body.brought += new;
                    self.seen = self.seen.saturating_add(new);
                    if self.seen > body.end {
                        return Err(self.wrong_size(self.seen));
                    }
                    if body.brought >= PROGRESS || self.seen == self.size {
                        self.patience.progressed(self.registry.host());
                    }
                    self.body = Some(body);
                    if new > 0 {
                        return Ok(Some(chunk));
                    }
                }
                // A part that ends early, but where it said, is followed by the next.
                Ok(None) if self.seen < self.size && self.seen == body.end => {}
                Ok(None) if self.seen < self.size => return Err(self.wrong_size(self.seen)),
                Ok(None) => return Ok(None),
                // All bytes are here, whatever becomes of the connection.
                Err(_) if self.seen == self.size => return Ok(None),
                Err(failure) => self.patience.wait(failure).await?,
            }
        }
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

    async fn request(&self) -> Result<Body, Error> {
        if self.seen > 0 && self.registry.knows_ranges() {
            let rest = self.seen..self.size;
            let response = self.registry.get_blob(&self.digest, Some(rest)).await?;
            match self.partial(response).await? {
                Some(body) => return Ok(body),
                None => self.registry.forget_ranges(),
            }
        }
        let response = self.registry.get_blob(&self.digest, None).await?;
        let response = self.registry.expect_blob(response, &self.digest).await?;
        self.whole(response)
    }

    /// What the answer to a range is good for; `None` when the range was not understood.
    async fn partial(&self, response: Response) -> Result<Option<Body>, Error> {
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = content_range(response.headers()).filter(|range| self.continues(range));
                Ok(range.map(|range| Body {
                    response,
                    skip: 0,
                    end: range.last + 1,
                    brought: 0,
                }))
            }
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

    fn continues(&self, range: &Range) -> bool {
        range.first == self.seen
            && range.last < self.size
            && range.whole.is_none_or(|whole| whole == self.size)
    }

    fn whole(&self, response: Response) -> Result<Body, Error> {
        match response.content_length() {
            Some(announced) if announced != self.size => Err(self.wrong_size(announced)),
            _ => Ok(Body {
                response,
                skip: self.seen,
                end: self.size,
                brought: 0,
            }),
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
