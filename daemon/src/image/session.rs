//! Being allowed in: the authorization that requests to one repository carry, and how it is renewed.
//!
//! Nothing is sent before the registry asks: anonymous registries cost no extra request. Invariants: of
//! many requests that are refused at once, one gets the new authorization and the others wait for it;
//! what was obtained is sent only to the registry that asked, and never printed.

use std::fmt;

use reqwest::{RequestBuilder, Url};
use tokio::sync::Mutex;

use super::auth::{self, Credentials};
use super::connection::{Connection, Redirects, may_be_plain};
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
            connection: Connection::new(registry, plain_http, Redirects::Refuse, config),
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
        let files = &self.config.auth_files;
        let credentials = auth::credentials(files, &self.registry, &self.repository).await?;
        let authorization = match token::choose(challenges.iter().map(String::as_str)) {
            Some(Challenge::Bearer { realm, service }) => {
                let service = service.as_deref();
                Authorization::Bearer(self.token(&realm, service, credentials.as_ref()).await?)
            }
            Some(Challenge::Basic) => match credentials {
                Some(Credentials::Password { user, password }) => {
                    Authorization::Basic { user, password }
                }
                Some(Credentials::IdentityToken(_)) => {
                    return Err(self.refused(
                        "it wants a user and a password, and the auth file has an identity token",
                    ));
                }
                None => return Err(self.refused("it wants a user and a password")),
            },
            None => {
                return Err(self.refused("it asks for credentials in no way that is known here"));
            }
        };
        *pass = Pass {
            generation: pass.generation + 1,
            authorization,
        };
        Ok((pass.clone(), true))
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
