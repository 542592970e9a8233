//! Images in a registry: requests, what their answers mean, manifests and blobs.
//!
//! Invariants: plain HTTP only to loopback and to hosts configured so; credentials are got only for the
//! registry itself, never because a host that it leads to asks for them; what is read into memory is
//! bounded; every answer ends in one of the errors of [`Error`].

mod blobs;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oci_client::Reference;
use reqwest::header::{ACCEPT, HeaderMap, RANGE, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use tokio_util::bytes::Bytes;

use super::answer::{explanation, is_temporary, retry_after};
use super::connection::{Connection, Redirects, is_plain_http};
use super::layout::{LayoutError, verify};
use super::manifest::{Document, MANIFEST_TYPES};
use super::open::Count;
use super::redirected::Redirected;
use super::reference::Digest;
use super::remembered::Host;
use super::retry::Patience;
use super::session::{Pass, Session};
use super::{Error, RawDocument, RegistryConfig};

/// Bytes of an error document that are read to find out what the registry has to say …
const MAX_ERROR_BYTES: u64 = 16 << 10;
/// … and the longest time that this takes.
const MAX_ERROR_TIME: Duration = Duration::from_secs(5);

/// One repository of a registry.
#[derive(Debug)]
pub(super) struct Registry {
    reference: Reference,
    /// `SCHEME://HOST/v2/REPOSITORY`
    base: String,
    config: RegistryConfig,
    connection: Connection,
    session: Session,
    /// What other sources found out about it too.
    remembered: Arc<Host>,
    redirected: Redirected,
    open: Count,
}

/// What is asked for.
struct Wish<'a> {
    method: Method,
    url: &'a str,
    accept: &'a str,
    bytes: Option<Range<u64>>,
}

impl Registry {
    pub(super) fn new(reference: &Reference, config: &RegistryConfig) -> Registry {
        let (registry, repository) = (reference.registry(), reference.repository());
        let plain_http = is_plain_http(registry, &config.insecure);
        let scheme = if plain_http { "http" } else { "https" };
        let host = reference.resolve_registry();
        Registry {
            base: format!("{scheme}://{host}/v2/{repository}"),
            connection: Connection::new(registry, plain_http, Redirects::Follow, config),
            session: Session::new(registry, repository, plain_http, config),
            config: config.clone(),
            remembered: config.remembered.host(registry),
            redirected: Redirected::default(),
            open: Count::default(),
            reference: reference.clone(),
        }
    }

    /// Longest document that is read into memory, in bytes.
    pub(super) fn max_manifest_bytes(&self) -> u64 {
        self.config.max_manifest_bytes
    }

    /// Longest layer that is fetched, in bytes.
    pub(super) fn max_layer_bytes(&self) -> u64 {
        self.config.max_layer_bytes
    }

    /// The manifest or index of this digest, or the one that the reference names.
    pub(super) async fn document(&self, digest: Option<&Digest>) -> Result<RawDocument, Error> {
        let pinned = match (digest, self.reference.digest()) {
            (Some(digest), _) => Some(digest.clone()),
            (None, Some(text)) => Some(text.parse()?),
            (None, None) => None,
        };
        let mut patience = self.patience();
        loop {
            match self.ask_for_document(pinned.as_ref()).await {
                Ok(document) => {
                    patience.progressed(self.host());
                    return Ok(document);
                }
                Err(failure) => patience.wait(failure).await?,
            }
        }
    }

    /// As [`Registry::document`], without patience.
    pub(super) async fn ask_for_document(
        &self,
        pinned: Option<&Digest>,
    ) -> Result<RawDocument, Error> {
        let name = match pinned {
            Some(digest) => digest.as_str(),
            None => self.reference.tag().unwrap_or("latest"),
        };
        let wish = Wish {
            method: Method::GET,
            url: &format!("{}/manifests/{name}", self.base),
            accept: &MANIFEST_TYPES.join(", "),
            bytes: None,
        };
        let response = self.ask(&wish).await?;
        let response = self.expect_ok(response, || match pinned {
            Some(digest) => Error::DigestGone {
                image: self.name(),
                digest: digest.clone(),
            },
            None => Error::NotFound {
                what: format!("{}:{name}", self.name()),
            },
        });
        let response = response.await?;
        let announced = announced_digest(response.headers());
        let limit = self.config.max_manifest_bytes;
        let bytes = self.connection.read(response, limit).await?;
        let expected = pinned.cloned().or(announced);
        let digest = match expected {
            Some(expected) => {
                check_digest(&expected, &bytes)?;
                expected
            }
            None => Digest::of(&bytes),
        };
        Ok(RawDocument { digest, bytes })
    }

    /// Whether the reference means the document of this digest, as far as the registry says so for the price
    /// of a few headers. Where it does not say, the document itself will.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn still_means(&self, known: &Digest) -> Result<bool, Error> {
        let name = self.reference.digest().or(self.reference.tag());
        let wish = Wish {
            method: Method::HEAD,
            url: &format!("{}/manifests/{}", self.base, name.unwrap_or("latest")),
            accept: &MANIFEST_TYPES.join(", "),
            bytes: None,
        };
        let mut patience = self.patience();
        loop {
            match self.ask(&wish).await {
                Ok(response) => {
                    patience.progressed(self.host());
                    let found = response.status() == StatusCode::OK;
                    return Ok(
                        found && announced_digest(response.headers()).as_ref() == Some(known)
                    );
                }
                Err(failure) if failure.is_retryable() => patience.wait(failure).await?,
                Err(_) => return Ok(false),
            }
        }
    }

    /// Asks once for a document beside the manifests, which may be missing.
    pub(super) async fn get_document(&self, url: &str, accept: &str) -> Result<Response, Error> {
        let bytes = None;
        self.ask(&Wish {
            method: Method::GET,
            url,
            accept,
            bytes,
        })
        .await
    }

    /// Reads what [`Registry::get_document`] found.
    pub(super) async fn read_document(&self, response: Response) -> Result<Bytes, Error> {
        let missing = || Error::NotFound {
            what: format!("a list of artifacts of {}", self.name()),
        };
        let response = self.expect_ok(response, missing).await?;
        let limit = self.config.max_manifest_bytes;
        self.connection.read(response, limit).await
    }

    /// Patience with one request to this registry.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.config.backoff, self.config.listener.clone())
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What other sources found out about it too.
    pub(super) fn remembered(&self) -> &Host {
        &self.remembered
    }

    /// `SCHEME://HOST/v2/REPOSITORY`
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn host(&self) -> &str {
        self.reference.registry()
    }

    fn name(&self) -> String {
        format!("{}/{}", self.host(), self.reference.repository())
    }

    /// One request, and another one when it is refused for want of a fresh authorization. One that
    /// others renewed meanwhile may have run out again, so it does not count as the own renewal.
    async fn ask(&self, wish: &Wish<'_>) -> Result<Response, Error> {
        let mut pass = self.session.pass().await;
        let mut renewed = false;
        loop {
            let response = self.send(wish, &pass).await?;
            let refused = response.status() == StatusCode::UNAUTHORIZED;
            if !refused || renewed || !is_same_host(wish.url, response.url()) {
                return Ok(response);
            }
            let challenges: Vec<String> = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect();
            (pass, renewed) = self.session.renew(&pass, &challenges).await?;
        }
    }

    async fn send(&self, wish: &Wish<'_>, pass: &Pass) -> Result<Response, Error> {
        let client = self.connection.client().await?;
        let request = client.request(wish.method.clone(), wish.url);
        let request = request.header(ACCEPT, wish.accept);
        let request = match &wish.bytes {
            Some(bytes) => {
                request.header(RANGE, format!("bytes={}-{}", bytes.start, bytes.end - 1))
            }
            None => request,
        };
        self.connection.send(pass.apply(request)).await
    }

    /// Passes an answer on if it is the one hoped for, else says what it means.
    async fn expect_ok(
        &self,
        response: Response,
        missing: impl FnOnce() -> Error,
    ) -> Result<Response, Error> {
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        if status == StatusCode::NOT_FOUND {
            return Err(missing());
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED
            && let Some(refusal) = self.connection.proxy_refusal()
        {
            return Err(refusal);
        }
        let at_home = is_same_host(&self.base, response.url());
        let wait = retry_after(response.headers(), SystemTime::now());
        let reason = self.reason(response, wait).await;
        let host = self.host().to_owned();
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if at_home => {
                self.session.refused(&reason)
            }
            _ if is_temporary(status) => Error::Unavailable {
                host,
                reason,
                retry_after: wait,
            },
            _ => Error::Protocol { host, reason },
        })
    }

    /// What an answer says, and who gave it if it was not the registry itself.
    async fn reason(&self, response: Response, wait: Option<Duration>) -> String {
        let mut reason = format!("it answers {}", response.status());
        if !is_same_host(&self.base, response.url()) {
            let host = response.url().host_str().unwrap_or("another host");
            reason = format!("it leads to {host}, which answers {}", response.status());
        }
        let said = self.connection.read(response, MAX_ERROR_BYTES);
        if let Ok(Ok(bytes)) = tokio::time::timeout(MAX_ERROR_TIME, said).await
            && let Some(explanation) = explanation(&bytes)
        {
            reason = format!("{reason}: {explanation}");
        }
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            let wait = wait.as_secs_f64().ceil();
            reason = format!("{reason} (it wants to be left alone for {wait} s)");
        }
        reason
    }
}

/// Whether an answer came from the host that was asked, and not from one that it leads to.
fn is_same_host(asked: &str, answered: &Url) -> bool {
    Url::parse(asked).is_ok_and(|asked| asked.origin() == answered.origin())
}

fn announced_digest(headers: &HeaderMap) -> Option<Digest> {
    headers
        .get("docker-content-digest")?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn check_digest(expected: &Digest, bytes: &Bytes) -> Result<(), Error> {
    match verify("manifest", expected, bytes) {
        Ok(()) => Ok(()),
        // The digest of schema 1 covers only a part of it, so it never matches; say what it is instead.
        Err(_) if matches!(Document::parse(bytes), Err(LayoutError::Schema1)) => {
            Err(Error::Invalid(LayoutError::Schema1))
        }
        Err(error) => Err(error.into()),
    }
}
