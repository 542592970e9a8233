//! Images in a registry: requests, what their answers mean, manifests and blobs.
//!
//! Manifests are requested here and not through oci-client, because that reads answers of any length into
//! memory; references and the token handshake are its part. Invariants: plain HTTP only to loopback and to
//! hosts configured so, and from TLS no redirect leads back to it; every answer ends in one of the errors
//! of [`Error`], whose text has no URL, since those can carry signatures.

use std::error::Error as _;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use oci_client::Reference;
use reqwest::header::{ACCEPT, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio_util::bytes::{Bytes, BytesMut};

use super::layout::{LayoutError, verify};
use super::manifest::{Document, MANIFEST_TYPES};
use super::reference::Digest;
use super::session::{Pass, Session};
use super::{ByteStream, Error, RawDocument, RegistryConfig, blob};

/// Bytes of an error document that are read to find out what the registry has to say.
const MAX_ERROR_BYTES: u64 = 16 << 10;

/// One repository of a registry.
#[derive(Debug)]
pub(super) struct Registry {
    reference: Reference,
    /// `SCHEME://HOST/v2/REPOSITORY`
    base: String,
    plain_http: bool,
    config: RegistryConfig,
    session: Session,
    client: OnceCell<Client>,
}

impl Registry {
    pub(super) fn new(reference: &Reference, config: &RegistryConfig) -> Registry {
        let plain_http = is_plain_http(reference.registry(), &config.insecure);
        let scheme = if plain_http { "http" } else { "https" };
        let host = reference.resolve_registry();
        Registry {
            base: format!("{scheme}://{host}/v2/{}", reference.repository()),
            plain_http,
            session: Session::new(reference, plain_http, config),
            config: config.clone(),
            client: OnceCell::new(),
            reference: reference.clone(),
        }
    }

    /// Longest document that is read into memory, in bytes.
    pub(super) fn max_manifest_bytes(&self) -> u64 {
        self.config.max_manifest_bytes
    }

    /// The manifest or index of this digest, or the one that the reference names.
    pub(super) async fn document(&self, digest: Option<&Digest>) -> Result<RawDocument, Error> {
        let pinned = match (digest, self.reference.digest()) {
            (Some(digest), _) => Some(digest.clone()),
            (None, Some(text)) => Some(text.parse()?),
            (None, None) => None,
        };
        let name = match &pinned {
            Some(digest) => digest.as_str(),
            None => self.reference.tag().unwrap_or("latest"),
        };
        let response = self
            .get(&format!("manifests/{name}"), &MANIFEST_TYPES.join(", "))
            .await?;
        let response = self.expect_ok(response, || match &pinned {
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
        let bytes = self.read(response, self.config.max_manifest_bytes).await?;
        match pinned.or(announced) {
            Some(expected) => {
                check_digest(&expected, &bytes)?;
                Ok(RawDocument {
                    digest: expected,
                    bytes,
                })
            }
            None => Ok(RawDocument {
                digest: Digest::of(&bytes),
                bytes,
            }),
        }
    }

    /// The blob of this digest, which must have this many bytes.
    pub(super) async fn blob(&self, digest: &Digest, size: u64) -> Result<ByteStream, Error> {
        let response = self.get(&format!("blobs/{digest}"), "*/*").await?;
        let missing = || Error::NotFound {
            what: format!("the blob {digest} of {}", self.name()),
        };
        let response = self.expect_ok(response, missing).await?;
        let (host, digest) = (self.host().to_owned(), digest.clone());
        let wrong_size = {
            let host = host.clone();
            move |actual| Error::Protocol {
                host: host.clone(),
                reason: format!("the blob {digest} has {actual} bytes instead of {size}"),
            }
        };
        if let Some(announced) = response.content_length()
            && announced != size
        {
            return Err(wrong_size(announced));
        }
        let bytes = response
            .bytes_stream()
            .map_err(move |error| network_error(&host, error));
        Ok(blob::sized(Box::pin(bytes), size, wrong_size))
    }

    fn host(&self) -> &str {
        self.reference.registry()
    }

    fn name(&self) -> String {
        format!("{}/{}", self.host(), self.reference.repository())
    }

    /// One request, and a second one if the first is refused for want of (fresh) credentials.
    async fn get(&self, path: &str, accept: &str) -> Result<Response, Error> {
        let pass = self.session.pass().await;
        let response = self.send(path, accept, &pass).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges: Vec<String> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let pass = self.session.renew(&pass, &challenges).await?;
        self.send(path, accept, &pass).await
    }

    async fn send(&self, path: &str, accept: &str, pass: &Pass) -> Result<Response, Error> {
        let client = self.client.get_or_try_init(|| self.connect()).await?;
        let request = client
            .get(format!("{}/{path}", self.base))
            .header(ACCEPT, accept);
        let sent = pass.apply(request).send().await;
        sent.map_err(|error| network_error(self.host(), error))
    }

    /// Makes the client, in a place where reading the system's certificates blocks nobody.
    async fn connect(&self) -> Result<Client, Error> {
        let (config, plain_http) = (self.config.clone(), self.plain_http);
        let build = move || {
            let builder = || {
                Client::builder()
                    .user_agent(&config.user_agent)
                    .connect_timeout(config.connect_timeout)
                    .read_timeout(config.read_timeout)
                    .https_only(!plain_http)
            };
            match builder().build() {
                // A host without certificates can still talk to itself.
                Err(_) if plain_http => builder().tls_certs_only([]).build(),
                built => built,
            }
        };
        let built = tokio::task::spawn_blocking(build)
            .await
            .map_err(|_| Error::Cancelled)?;
        built.map_err(|error| network_error(self.host(), error))
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
        let explanation = match self.read(response, MAX_ERROR_BYTES).await {
            Ok(bytes) => explanation(&bytes),
            Err(_) => None,
        };
        let reason = match explanation {
            Some(explanation) => format!("it answers {status}: {explanation}"),
            None => format!("it answers {status}"),
        };
        let host = self.host().to_owned();
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.session.refused(&reason),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Error::Unreachable { host, reason },
            _ => Error::Protocol { host, reason },
        })
    }

    /// Reads a short answer; one that is longer than the limit is given up on as soon as that is known.
    async fn read(&self, mut response: Response, limit: u64) -> Result<Bytes, Error> {
        let too_long = || Error::Protocol {
            host: self.host().to_owned(),
            reason: format!("its answer is longer than the {limit} bytes allowed"),
        };
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_long());
        }
        let mut bytes = BytesMut::new();
        let failed = |error| network_error(self.host(), error);
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(too_long());
            }
        }
        Ok(bytes.freeze())
    }
}

/// Whether a registry is spoken to without TLS.
fn is_plain_http(registry: &str, insecure: &[String]) -> bool {
    insecure.iter().any(|host| host == registry) || is_loopback(registry)
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => address,
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn announced_digest(headers: &HeaderMap) -> Option<Digest> {
    headers
        .get("docker-content-digest")?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn check_digest(expected: &Digest, bytes: &[u8]) -> Result<(), Error> {
    match verify("manifest", expected, bytes) {
        Ok(()) => Ok(()),
        // The digest of schema 1 covers only a part of it, so it never matches; say what it is instead.
        Err(_) if matches!(Document::parse(bytes), Err(LayoutError::Schema1)) => {
            Err(Error::Invalid(LayoutError::Schema1))
        }
        Err(error) => Err(error.into()),
    }
}

/// What a registry says in the error document of the distribution specification.
fn explanation(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let envelope: Envelope = serde_json::from_slice(bytes).ok()?;
    let first = envelope.errors.into_iter().next()?;
    let text = if first.message.is_empty() {
        first.code
    } else {
        first.message
    };
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    (!text.is_empty()).then_some(text)
}

/// What an error of the HTTP client means, without the URL.
pub(super) fn network_error(host: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let host = host.to_owned();
    // A body that breaks off counts as one that does not decode, so that says nothing about the registry.
    let makes_no_sense = error.is_redirect() || error.is_builder();
    let mut reason = if error.is_timeout() {
        "no answer for too long".to_owned()
    } else {
        error.to_string()
    };
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        cause = inner.source();
    }
    match makes_no_sense && !error.is_timeout() {
        true => Error::Protocol { host, reason },
        false => Error::Unreachable { host, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_for_those_configured() {
        let insecure = ["registry.example:5000".to_owned()];
        for (registry, plain) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.8.9.10", true),
            ("[::1]:5000", true),
            ("registry.example:5000", true),
            ("registry.example", false),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("10.0.0.1:5000", false),
            ("quay.io", false),
        ] {
            assert_eq!(is_plain_http(registry, &insecure), plain, "{registry}");
        }
    }

    #[test]
    fn errors_of_the_registry_are_quoted_short_and_on_one_line() {
        let document = br#"{"errors":[{"code":"DENIED","message":"not\nfor you"},{"code":"X"}]}"#;
        assert_eq!(explanation(document).as_deref(), Some("notfor you"));
        assert_eq!(
            explanation(br#"{"errors":[{"code":"DENIED"}]}"#).as_deref(),
            Some("DENIED")
        );
        assert_eq!(explanation(br#"{"errors":[]}"#), None);
        assert_eq!(explanation(b"<html>"), None);
    }
}
