//! Being allowed in: the authorization that requests to one repository carry, and how it is renewed.
//!
//! Nothing is sent before the registry asks, or has asked before for the same repository: anonymous
//! registries cost no extra request, and others one for a token. Invariants: of
//! many requests that are refused at once, one gets the new authorization and the others wait for it;
//! what was obtained is sent only to the registry that asked, and never printed; how a registry asked counts
//! for later only where nobody on the way could have said it instead.

use std::fmt;
use std::sync::Arc;

use reqwest::{RequestBuilder, Url};
use tokio::sync::Mutex;

use super::auth::{self, Credentials};
use super::connection::{Connection, Redirects, is_loopback, may_be_plain};
use super::remembered::Host;
use super::token::{self, Challenge, NoToken};
use super::{Error, RegistryConfig};

/// What a request carries to be let in.
#[derive(Clone)]
enum Authorization {
    Anonymous,
    Basic { user: String, password: String },
    Bearer(String),
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Authorization::Anonymous => "Anonymous",
            Authorization::Basic { .. } => "Basic(<redacted>)",
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
    /// For hosts that nobody gets an authorization for.
    pub(super) fn none() -> Pass {
        Pass {
            generation: 0,
            authorization: Authorization::Anonymous,
        }
    }

    /// The next one in the row.
    fn followed_by(&self, authorization: Authorization) -> Pass {
        Pass {
            generation: self.generation + 1,
            authorization,
        }
    }

    pub(super) fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.authorization {
            Authorization::Anonymous => request,
            Authorization::Basic { user, password } => request.basic_auth(user, Some(password)),
            Authorization::Bearer(token) => request.bearer_auth(token),
        }
    }
}

/// The authorization for one repository.
#[derive(Debug)]
pub(super) struct Session {
    registry: String,
    repository: String,
    config: RegistryConfig,
    /// How it asked other sources …
    remembered: Arc<Host>,
    /// … which is believed.
    is_believed: bool,
    /// The way to token servers.
    connection: Connection,
    pass: Mutex<Pass>,
}

impl Session {
    pub(super) fn new(
        registry: &str,
        repository: &str,
        plain_http: bool,
        config: &RegistryConfig,
    ) -> Session {
        Session {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            config: config.clone(),
            remembered: config.remembered.host(registry),
            is_believed: !plain_http || is_loopback(registry),
            connection: Connection::new(registry, plain_http, Redirects::Refuse, config),
            pass: Mutex::new(Pass::none()),
        }
    }

    /// What the next request is to carry.
    pub(super) async fn pass(&self) -> Pass {
        let mut pass = self.pass.lock().await;
        if pass.generation == 0
            && self.is_believed
            && let Some(challenge) = self.remembered.challenge(&self.repository)
        {
            match self.answer(&challenge).await {
                Ok(authorization) => *pass = pass.followed_by(authorization),
                Err(error) => {
                    // The registry may ask in another way by now, or not at all.
                    tracing::debug!(%error, "no authorization as the registry wanted it last");
                    self.remembered.set_challenge(&self.repository, None);
                }
            }
        }
        pass.clone()
    }

    /// Gets another pass after this one was refused with these challenges (`WWW-Authenticate`); tells
    /// whether it was made now, or by somebody else while this request was on its way.
    ///
    /// # Errors
    /// [`Error::Auth`] when there is none to be had, and what can happen on the way to it.
    pub(super) async fn renew(
        &self,
        refused: &Pass,
        challenges: &[String],
    ) -> Result<(Pass, bool), Error> {
        let mut pass = self.pass.lock().await;
        if pass.generation != refused.generation {
            return Ok((pass.clone(), false));
        }
        let Some(challenge) = token::choose(challenges.iter().map(String::as_str)) else {
            return Err(self.refused("it asks for credentials in no way that is known here"));
        };
        let authorization = self.answer(&challenge).await?;
        if self.is_believed {
            self.remembered
                .set_challenge(&self.repository, Some(challenge));
        }
        *pass = pass.followed_by(authorization);
        Ok((pass.clone(), true))
    }

    /// What the registry asks for.
    async fn answer(&self, challenge: &Challenge) -> Result<Authorization, Error> {
        let files = &self.config.auth_files;
        let credentials = auth::credentials(files, &self.registry, &self.repository).await?;
        match (challenge, credentials) {
            (Challenge::Bearer { realm, service }, credentials) => {
                let service = service.as_deref();
                let token = self.token(realm, service, credentials.as_ref()).await?;
                Ok(Authorization::Bearer(token))
            }
            (Challenge::Basic, Some(Credentials::Password { user, password })) => {
                Ok(Authorization::Basic { user, password })
            }
            (Challenge::Basic, Some(Credentials::IdentityToken(_))) => Err(self.refused(
                "it wants a user and a password, and the auth file has an identity token",
            )),
            (Challenge::Basic, None) => Err(self.refused("it wants a user and a password")),
        }
    }

    async fn token(
        &self,
        realm: &Url,
        service: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<String, Error> {
        if realm.scheme() != "https" && !may_be_plain(realm, &self.config.insecure) {
            return Err(self.refused("its token server is not behind TLS"));
        }
        let (connection, repository) = (&self.connection, &self.repository);
        token::fetch(connection, realm, service, repository, credentials)
            .await
            .map_err(|error| match error {
                NoToken::Refused(reason) => self.refused(&reason),
                NoToken::Failed(error) => error,
            })
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
            host: self.registry.clone(),
            reason: format!(
                "{reason} (credentials are read from the first of {})",
                files.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_tls_each_source_waits_to_be_asked() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("auth.json");
        // alice:hunter2
        let known = r#"{"auth":"YWxpY2U6aHVudGVyMg=="}"#;
        let hosts = ["registry.example:5000", "127.0.0.1:5000"];
        let [first, second] = hosts.map(|host| format!(r#""{host}":{known}"#));
        std::fs::write(&file, format!(r#"{{"auths":{{{first},{second}}}}}"#)).unwrap();
        let config = RegistryConfig {
            auth_files: vec![file],
            ..RegistryConfig::default()
        };
        for (host, plain_http, is_believed) in [
            (hosts[0], true, false),
            (hosts[1], true, true),
            (hosts[0], false, true),
        ] {
            let session = || Session::new(host, "ns/os", plain_http, &config);
            let challenges = [r#"Basic realm="x""#.to_owned()];
            let renewed = session().renew(&Pass::none(), &challenges).await;
            assert!(renewed.unwrap().1);
            let remembered = config.remembered.host(host).challenge("ns/os");
            assert_eq!(remembered, is_believed.then_some(Challenge::Basic));
            // As an earlier process may have said it.
            let host = config.remembered.host(host);
            host.set_challenge("ns/os", Some(Challenge::Basic));
            assert_eq!(session().pass().await.generation, u64::from(is_believed));
            host.set_challenge("ns/os", None);
        }
    }

    #[test]
    fn debug_tells_no_secret() {
        let token = Authorization::Bearer("hunter2".into());
        let password = Authorization::Basic {
            user: "alice".into(),
            password: "hunter2".into(),
        };
        let text = format!("{token:?} {password:?}");
        assert!(
            !text.contains("hunter2") && !text.contains("alice"),
            "{text}"
        );
    }
}
