//! Being allowed in: the authorization that requests to one repository carry, and how it is renewed.
//!
//! Nothing is sent before the registry asks: anonymous registries cost no extra request. Invariants: of
//! many requests that are refused at once, one does the handshake and the others wait for it; what was
//! obtained is sent only to the registry that asked, and never printed.

use std::fmt;

use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use reqwest::RequestBuilder;
use tokio::sync::Mutex;

use super::auth::{self, Credentials};
use super::registry::network_error;
use super::{Error, RegistryConfig};

/// How requests introduce themselves unless configured otherwise.
pub(super) const USER_AGENT: &str = concat!("osteward/", env!("CARGO_PKG_VERSION"));

/// What a request carries to be let in.
#[derive(Clone)]
enum Authorization {
    Anonymous,
    Basic(Credentials),
    Bearer(String),
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Authorization::Anonymous => "Anonymous",
            Authorization::Basic(_) => "Basic(<redacted>)",
            Authorization::Bearer(_) => "Bearer(<redacted>)",
        })
    }
}

/// An authorization, and which one in the row it is, so that a refusal can tell what it refused.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    generation: u64,
    authorization: Authorization,
}

impl Pass {
    pub(super) fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.authorization {
            Authorization::Anonymous => request,
            Authorization::Basic(Credentials { user, password }) => {
                request.basic_auth(user, Some(password))
            }
            Authorization::Bearer(token) => request.bearer_auth(token),
        }
    }
}

/// The authorization for one repository.
#[derive(Debug)]
pub(super) struct Session {
    reference: Reference,
    plain_http: bool,
    config: RegistryConfig,
    pass: Mutex<Pass>,
}

impl Session {
    pub(super) fn new(reference: &Reference, plain_http: bool, config: &RegistryConfig) -> Session {
        Session {
            reference: reference.clone(),
            plain_http,
            config: config.clone(),
            pass: Mutex::new(Pass {
                generation: 0,
                authorization: Authorization::Anonymous,
            }),
        }
    }

    /// What the next request is to carry.
    pub(super) async fn pass(&self) -> Pass {
        self.pass.lock().await.clone()
    }

    /// Gets another pass after this one was refused with these challenges (`WWW-Authenticate`).
    ///
    /// # Errors
    /// [`Error::Auth`] when there is none to be had, and what can happen on the way to it.
    pub(super) async fn renew(&self, refused: &Pass, challenges: &[String]) -> Result<Pass, Error> {
        let mut pass = self.pass.lock().await;
        if pass.generation != refused.generation {
            return Ok(pass.clone());
        }
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        let credentials = auth::credentials(&self.config.auth_files, registry, repository).await?;
        let unprotected = |challenge: &String| challenge.contains("\"http://");
        if !self.plain_http && credentials.is_some() && challenges.iter().any(unprotected) {
            return Err(self.refused("its token server is not behind TLS"));
        }
        let offers = |scheme: &str| challenges.iter().any(|challenge| offers(challenge, scheme));
        let authorization = if offers("bearer") {
            Authorization::Bearer(self.token(credentials).await?)
        } else if offers("basic") {
            let missing = || self.refused("it wants a user and a password");
            Authorization::Basic(credentials.ok_or_else(missing)?)
        } else {
            return Err(self.refused("it asks for credentials in no way that is known here"));
        };
        *pass = Pass {
            generation: pass.generation + 1,
            authorization,
        };
        Ok(pass.clone())
    }

    /// A refusal, and where the administrator can put what is missing.
    pub(super) fn refused(&self, reason: &str) -> Error {
        let files: Vec<_> = self
            .config
            .auth_files
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Error::Auth {
            host: self.reference.registry().to_owned(),
            reason: format!(
                "{reason} (credentials are read from the first of {})",
                files.join(", ")
            ),
        }
    }

    /// Fetches a token with oci-client, which asks the registry where to get one.
    async fn token(&self, credentials: Option<Credentials>) -> Result<String, Error> {
        let client = self.token_client().await?;
        let (secret, auth) = match credentials {
            Some(Credentials { user, password }) => {
                (Some(password.clone()), RegistryAuth::Basic(user, password))
            }
            None => (None, RegistryAuth::Anonymous),
        };
        let answer = client
            .auth(&self.reference, &auth, RegistryOperation::Pull)
            .await;
        match answer {
            Ok(Some(token)) => Ok(token),
            Ok(None) => Err(self.refused("it wants a token but does not say from where")),
            Err(error) => Err(self.token_error(error, secret.as_deref())),
        }
    }

    /// The client is made for the handshake alone, which is rare; it reads certificates, so it is made
    /// where that blocks nobody.
    async fn token_client(&self) -> Result<Client, Error> {
        let config = ClientConfig {
            protocol: if self.plain_http {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            connect_timeout: Some(self.config.connect_timeout),
            read_timeout: Some(self.config.read_timeout),
            user_agent: USER_AGENT,
            platform_resolver: None,
            ..ClientConfig::default()
        };
        let made = tokio::task::spawn_blocking(move || Client::try_from(config)).await;
        made.map_err(|_| Error::Cancelled)?
            .map_err(|error| self.token_error(error, None))
    }

    fn token_error(&self, error: OciDistributionError, secret: Option<&str>) -> Error {
        let host = self.reference.registry();
        match error {
            OciDistributionError::AuthenticationFailure(answer) => {
                // The answer is the token server's own text; one that repeats the password stays here.
                let repeats = secret.is_some_and(|secret| answer.contains(secret));
                let shown: String = answer
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(200)
                    .collect();
                match repeats || shown.is_empty() {
                    true => self.refused("its token server says no"),
                    false => self.refused(&format!("its token server says no: {shown}")),
                }
            }
            OciDistributionError::RequestError(error) => network_error(host, error),
            OciDistributionError::RegistryTokenDecodeError(_) => Error::Protocol {
                host: host.to_owned(),
                reason: "its token server answers with something that is no token".to_owned(),
            },
            other => Error::Protocol {
                host: host.to_owned(),
                reason: other.to_string(),
            },
        }
    }
}

/// Whether a `WWW-Authenticate` header names this scheme. A header can name several, each with parameters
/// separated by the same commas.
fn offers(challenge: &str, scheme: &str) -> bool {
    challenge.split(',').any(|part| {
        let word = part.split_whitespace().next().unwrap_or_default();
        word.eq_ignore_ascii_case(scheme)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_found_in_challenges() {
        for (challenge, bearer, basic) in [
            (
                r#"Bearer realm="https://auth.example/token",service="x""#,
                true,
                false,
            ),
            ("Basic realm=\"Registry\"", false, true),
            ("basic", false, true),
            (
                r#"Negotiate, Basic realm="x", BEARER realm="y""#,
                true,
                true,
            ),
            (r#"Digest realm="basic bearer""#, false, false),
            ("", false, false),
        ] {
            assert_eq!(offers(challenge, "bearer"), bearer, "{challenge}");
            assert_eq!(offers(challenge, "basic"), basic, "{challenge}");
        }
    }

    #[test]
    fn debug_tells_no_secret() {
        let token = Authorization::Bearer("hunter2".into());
        let password = Credentials {
            user: "alice".into(),
            password: "hunter2".into(),
        };
        let text = format!("{token:?} {:?}", Authorization::Basic(password));
        assert!(
            !text.contains("hunter2") && !text.contains("alice"),
            "{text}"
        );
    }
}
