//! Blobs of a repository: where they are, and how much of them at a time.
//!
//! Invariants: where the registry led to is asked for all that follows, without what lets requests into the
//! registry if that is another host; a place that does not have the blob (any more) is not asked again.

use std::ops::Range;
use std::time::Instant;

use reqwest::{Method, Response, StatusCode};

use super::super::Error;
use super::super::open::Count;
use super::super::pace::{Meter, Pace};
use super::super::redirected::Blob;
use super::super::reference::Digest;
use super::super::session::Pass;
use super::{Registry, Wish, is_same_host};

impl<'a> Wish<'a> {
    fn blob(url: &'a str, bytes: &Option<Range<u64>>) -> Wish<'a> {
        Wish {
            method: Method::GET,
            url,
            accept: "*/*",
            bytes: bytes.clone(),
        }
    }
}

impl Registry {
    /// Asks for a blob, or for some of its bytes: where it was found last, else here.
    pub(in crate::image) async fn get_blob(
        &self,
        digest: &Digest,
        bytes: Option<Range<u64>>,
    ) -> Result<Response, Error> {
        let here = format!("{}/blobs/{digest}", self.base);
        let blob = self.redirected.of(digest);
        if let Some(response) = self.get_there(&blob, &bytes).await {
            return Ok(response);
        }
        let asking = blob.ask().await;
        if let Some(response) = self.get_there(&blob, &bytes).await {
            return Ok(response);
        }
        let asking = asking.filter(|_| !blob.is_here());
        let asked = Instant::now();
        let response = self.ask(&Wish::blob(&here, &bytes)).await?;
        self.meter().answered(asked.elapsed());
        if response.status().is_success() {
            let led = response.url().as_str() != here;
            blob.found(led.then_some(response.url()));
        }
        drop(asking);
        Ok(response)
    }

    /// Asks where the registry led to last, if it is known and still has an answer.
    async fn get_there(&self, blob: &Blob, bytes: &Option<Range<u64>>) -> Option<Response> {
        let there = blob.there()?;
        let pass = match is_same_host(&self.base, &there) {
            true => self.session.pass().await,
            false => Pass::none(),
        };
        let asked = Instant::now();
        let answer = self.send(&Wish::blob(there.as_str(), bytes), &pass).await;
        let response = answer.ok().filter(|found| !is_lost(found.status()));
        match &response {
            Some(_) => self.meter().answered(asked.elapsed()),
            None => blob.lost(&there),
        }
        response
    }

    /// Passes on the answer that has a whole blob.
    pub(in crate::image) async fn expect_blob(
        &self,
        response: Response,
        digest: &Digest,
    ) -> Result<Response, Error> {
        let missing = || Error::NotFound {
            what: format!("the blob {digest} of {}", self.name()),
        };
        self.expect_ok(response, missing).await
    }

    /// Whether it makes sense to ask for a part of a blob.
    pub(in crate::image) fn knows_ranges(&self) -> bool {
        self.remembered.knows_ranges()
    }

    /// A range was not understood, so no further one is asked for.
    pub(in crate::image) fn forget_ranges(&self) {
        if self.remembered.has_no_ranges() {
            tracing::info!(
                host = self.host(),
                "no ranges here: broken transfers begin anew"
            );
        }
    }

    /// How many transfers there are.
    pub(in crate::image) fn open(&self) -> &Count {
        &self.open
    }

    /// How many parts of one layer may be fetched at a time. What nobody waits for takes one connection.
    pub(in crate::image) fn parts(&self) -> usize {
        match self.is_background() {
            true => 1,
            false => self.open.parts(),
        }
    }

    /// How fast it is.
    pub(in crate::image) fn meter(&self) -> &Meter {
        &self.remembered.meter
    }

    /// Whether nobody waits for what comes.
    pub(in crate::image) fn is_background(&self) -> bool {
        self.config.background
    }

    pub(in crate::image) fn pace(&self) -> Pace {
        self.meter().pace()
    }

    /// Bytes of a blob have arrived. Returns when they may be passed on.
    pub(in crate::image) async fn arrived(&self, bytes: u64) {
        self.meter().arrived(Instant::now(), bytes);
        let config = &self.config;
        let throttle = config.remembered.throttle();
        throttle
            .pass(bytes, config.max_rate, config.background)
            .await;
    }
}

/// Whether the place that a registry led to has to be asked for anew. A place that is overloaded, or that knows
/// no ranges, is the right one.
fn is_lost(status: StatusCode) -> bool {
    match status {
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::RANGE_NOT_SATISFIABLE
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::NOT_IMPLEMENTED => false,
        other => !other.is_success(),
    }
}
