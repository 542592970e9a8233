//! One HTTP client: how a server is reached, how long it may be silent, how much it may say.
//!
//! Invariants: from TLS nothing leads back to plain HTTP; what is waited for is the connection, the
//! beginning of an answer or its next bytes, each with a limit of its own; the text of a failure has no
//! URL, since those can carry signatures.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, Url};
use tokio::sync::OnceCell;
use tokio_util::bytes::{Bytes, BytesMut};

use super::{Error, RegistryConfig};

/// Answers that lead elsewhere which are followed in a row.
const MAX_REDIRECTS: usize = 10;

/// Longest wait for the whole of a short answer.
const WHOLE: Duration = Duration::from_secs(600);

/// How the HTTP client says that a proxy wants a password for a tunnel; its type is not to be had.
const TUNNEL_REFUSED: &str = "proxy authorization required";

/// Whether answers that lead elsewhere are followed. Credentials never go along to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redirects {
    Follow,
    /// For requests that carry a secret which is no header.
    Refuse,
}

/// A client for one registry, or for what belongs to it.
#[derive(Debug)]
pub(super) struct Connection {
    /// What failures call the server.
    host: String,
    plain_http: bool,
    redirects: Redirects,
    config: RegistryConfig,
    client: OnceCell<Client>,
}

impl Connection {
    /// Prepares a connection; nothing is sent or read from disk yet.
    pub(super) fn new(
        host: &str,
        plain_http: bool,
        redirects: Redirects,
        config: &RegistryConfig,
    ) -> Connection {
        Connection {
            host: host.to_owned(),
            plain_http,
            redirects,
            config: config.clone(),
            client: OnceCell::new(),
        }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// See [`super::Proxies::refusal`].
    pub(super) fn proxy_refusal(&self) -> Option<Error> {
        self.config.proxies.refusal(self.plain_http)
    }

    /// The client, made in a place where reading the host's certificates blocks nobody.
    pub(super) async fn client(&self) -> Result<&Client, Error> {
        let make = || async {
            let (config, host) = (self.config.clone(), self.host.clone());
            let (plain_http, redirects) = (self.plain_http, self.redirects);
            let build = move || build(&host, plain_http, redirects, &config);
            let built = tokio::task::spawn_blocking(build).await;
            built.map_err(|_| Error::Cancelled)?
        };
        self.client.get_or_try_init(make).await
    }

    /// Sends a request and waits for the beginning of the answer.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let limit = self.config.response_timeout;
        self.within(limit, "no answer", request.send()).await
    }

    /// The next bytes of an answer; `None` at its end.
    pub(super) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Error> {
        let limit = self.config.read_timeout;
        self.within(limit, "nothing arrived", response.chunk())
            .await
    }

    /// Reads a short answer; one that is longer than the limit is given up on as soon as that is known.
    pub(super) async fn read(&self, mut response: Response, limit: u64) -> Result<Bytes, Error> {
        let too_long = || Error::Protocol {
            host: self.host.clone(),
            reason: format!("its answer is longer than the {limit} bytes allowed"),
        };
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_long());
        }
        let whole = async {
            let mut bytes = BytesMut::new();
            while let Some(chunk) = self.chunk(&mut response).await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > limit {
                    return Err(too_long());
                }
            }
            Ok(bytes.freeze())
        };
        // One byte now and then is never silence, and never an end.
        let whole = tokio::time::timeout(WHOLE, whole).await;
        whole.unwrap_or_else(|_| {
            Err(Error::Unreachable {
                host: self.host.clone(),
                reason: format!(
                    "no end of an answer for {}",
                    humantime::format_duration(WHOLE)
                ),
            })
        })
    }

    async fn within<T>(
        &self,
        limit: Duration,
        silence: &str,
        doing: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, doing).await {
            Ok(done) => done.map_err(|error| self.failure(error)),
            Err(_) => Err(Error::Unreachable {
                host: self.host.clone(),
                reason: format!("{silence} for {}", humantime::format_duration(limit)),
            }),
        }
    }

    /// What an error of the HTTP client means.
    fn failure(&self, error: reqwest::Error) -> Error {
        let host = self.host.clone();
        if let Some(tls) = tls_error(&error) {
            return tls_failure(host, tls);
        }
        // A body that breaks off counts as one that does not decode, so that says nothing about the server.
        let makes_no_sense = error.is_redirect() || error.is_builder();
        let mut reason = match error.is_connect() && error.is_timeout() {
            true => format!(
                "no connection for {}",
                humantime::format_duration(self.config.connect_timeout)
            ),
            false => causes(&error),
        };
        if makes_no_sense {
            return Error::Protocol { host, reason };
        }
        if error.is_connect()
            && reason.contains(TUNNEL_REFUSED)
            && let Some(refusal) = self.proxy_refusal()
        {
            return refusal;
        }
        if let Some(variable) = self.config.proxies.variable(self.plain_http)
            && !is_loopback(&host)
        {
            reason = format!("{reason} ({variable} is set)");
        }
        Error::Unreachable { host, reason }
    }
}

fn build(
    host: &str,
    plain_http: bool,
    redirects: Redirects,
    config: &RegistryConfig,
) -> Result<Client, Error> {
    let builder = || {
        let builder = Client::builder()
            .user_agent(&config.user_agent)
            .connect_timeout(config.connect_timeout)
            .https_only(!plain_http)
            // Where one place led to can be signed, and is nothing that the next has to know.
            .referer(false)
            .redirect(match redirects {
                Redirects::Follow => Policy::limited(MAX_REDIRECTS),
                Redirects::Refuse => Policy::none(),
            });
        config.proxies.apply(builder)
    };
    match builder()?.build() {
        Ok(client) => Ok(client),
        // A host without certificates can still talk to itself.
        Err(_) if plain_http => builder()?
            .tls_certs_only([])
            .build()
            .map_err(|error| no_client(host, &error)),
        Err(error) => Err(no_client(host, &error)),
    }
}

/// Why there is no client: what it reads on this host is the certificates of authorities.
fn no_client(host: &str, error: &reqwest::Error) -> Error {
    Error::Untrusted {
        host: host.to_owned(),
        reason: format!(
            "this host has no usable certificates of authorities ({}); install them (ca-certificates)",
            causes(error)
        ),
    }
}

/// The text of an error and of what caused it, each thing said once.
fn causes(error: &dyn StdError) -> String {
    // The HTTP client names its URL last, in the causes of its errors too.
    let without_url = |text: String| match text.split_once(" for url (") {
        Some((text, _)) => text.to_owned(),
        None => text,
    };
    let mut text = without_url(error.to_string());
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = without_url(inner.to_string());
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// The TLS error that caused another one. An I/O error hides what it holds from the chain of sources.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        let held = inner
            .downcast_ref::<io::Error>()
            .and_then(|error| error.get_ref());
        let found = match held {
            Some(held) => held.downcast_ref::<rustls::Error>(),
            None => inner.downcast_ref::<rustls::Error>(),
        };
        if found.is_some() {
            return found;
        }
        cause = match held {
            Some(held) => Some(held),
            None => inner.source(),
        };
    }
    None
}

fn tls_failure(host: String, error: &rustls::Error) -> Error {
    use rustls::CertificateError as Bad;
    let reason = match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => {
                "its certificate has expired, or the clock of this host is wrong; check both"
                    .to_owned()
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "its certificate is not valid yet, or the clock of this host is wrong; check both"
                    .to_owned()
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "its certificate is for another name; check the name of the registry".to_owned()
            }
            other => format!(
                "its certificate is not accepted ({other}); if the registry is the right one, add the \
                 authority that signed it to this host's trust store (update-ca-trust(8) or \
                 update-ca-certificates(8))"
            ),
        },
        rustls::Error::InvalidMessage(_) => {
            return Error::Protocol {
                host,
                reason:
                    "it does not speak TLS; a registry that is meant to be reached by plain HTTP \
                         has to be named in registry.insecure"
                        .to_owned(),
            };
        }
        other => {
            return Error::Unreachable {
                host,
                reason: format!("no TLS connection: {other}"),
            };
        }
    };
    Error::Untrusted { host, reason }
}

/// Whether a host, `HOST[:PORT]`, is spoken to without TLS.
pub(super) fn is_plain_http(host: &str, insecure: &[String]) -> bool {
    insecure.iter().any(|known| known == host) || is_loopback(host)
}

/// The same for the host of a URL.
pub(super) fn may_be_plain(url: &Url, insecure: &[String]) -> bool {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => is_plain_http(&format!("{host}:{port}"), insecure),
        None => is_plain_http(host, insecure),
    }
}

/// Whether what is said to a host, `HOST[:PORT]`, stays on this one.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost"
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_for_those_configured() {
        let insecure = ["registry.example:5000".to_owned()];
        for (host, plain) in [
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
            assert_eq!(is_plain_http(host, &insecure), plain, "{host}");
            let url = Url::parse(&format!("http://{host}/token")).unwrap();
            assert_eq!(may_be_plain(&url, &insecure), plain, "{url}");
        }
    }

    #[tokio::test]
    async fn no_cause_tells_a_url() {
        let client = Client::builder().https_only(true).no_proxy().build();
        let signed = "http://cdn.test/blob?signature=hunter2";
        let error = client.unwrap().get(signed).send().await.unwrap_err();
        assert!(error.to_string().contains("hunter2"), "{error}");
        let text = causes(&io::Error::other(io::Error::other(error)));
        assert!(!text.contains("cdn.test") && !text.is_empty(), "{text}");
    }

    #[test]
    fn certificates_that_are_not_accepted_say_what_to_do() {
        use rustls::CertificateError as Bad;
        for (bad, advice) in [
            (Bad::UnknownIssuer, "trust store"),
            (Bad::Expired, "clock"),
            (Bad::NotValidYet, "clock"),
            (Bad::NotValidForName, "name of the registry"),
            (Bad::Revoked, "trust store"),
        ] {
            let held = io::Error::other(rustls::Error::InvalidCertificate(bad.clone()));
            let error = io::Error::other(held);
            let found = tls_error(&error).map(|tls| tls_failure("host".to_owned(), tls));
            let Some(Error::Untrusted { reason, .. }) = found else {
                panic!("{bad:?}: {found:?}");
            };
            assert!(reason.contains(advice), "{reason}");
        }
        assert!(tls_error(&io::Error::other("something else")).is_none());
    }
}
