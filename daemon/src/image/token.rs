//! Tokens: what a registry asks for in its challenge, and how its token server is asked for one.
//!
//! Invariants: only reading this one repository is asked for, whatever the challenge says; credentials go
//! to no token server without TLS (loopback and hosts configured so excepted) and follow no redirect;
//! nothing that a token server says is shown if it repeats them.

use std::time::SystemTime;

use http_auth::parser::ChallengeParser;
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::Error;
use super::answer::{explanation, is_temporary, retry_after};
use super::auth::Credentials;
use super::connection::Connection;

/// Longest answer of a token server, in bytes; real tokens have a few thousand.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// How requests introduce themselves to a token server that wants to know.
const CLIENT_ID: &str = "osteward";

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from another server.
    Bearer {
        /// Where to get it.
        realm: Url,
        /// What it is for, in the words of that server.
        service: Option<String>,
    },
}

/// The way in that the challenges (the values of `WWW-Authenticate`) offer: a token if possible, else a
/// password; `None` when all are unknown.
pub(super) fn choose<'a>(challenges: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for text in challenges {
        // After a syntax error nothing more comes; what was understood before it counts.
        for challenge in ChallengeParser::new(text).map_while(Result::ok) {
            let parameter = |wanted: &str| {
                let mut parameters = challenge.params.iter();
                let found = parameters.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
                if let Some(realm) = realm.filter(Url::has_host) {
                    let service = parameter("service");
                    return Some(Challenge::Bearer { realm, service });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum NoToken {
    /// The token server refuses; the text is its own.
    Refused(String),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for NoToken {
    fn from(error: Error) -> NoToken {
        NoToken::Failed(error)
    }
}

/// Asks the token server for a token to read `repository` with.
pub(super) async fn fetch(
    connection: &Connection,
    realm: &Url,
    service: Option<&str>,
    repository: &str,
    credentials: Option<&Credentials>,
) -> Result<String, NoToken> {
    let client = connection.client().await?;
    let scope = format!("repository:{repository}:pull");
    let mut fields = vec![("scope", scope.as_str())];
    fields.extend(service.map(|service| ("service", service)));
    let request = match credentials {
        None => client.get(realm.clone()).query(&fields),
        Some(Credentials::Password { user, password }) => client
            .get(realm.clone())
            .query(&fields)
            .basic_auth(user, Some(password)),
        Some(Credentials::IdentityToken(token)) => {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("refresh_token", token.as_str()),
                ("client_id", CLIENT_ID),
            ]);
            client.post(realm.clone()).form(&fields)
        }
    };
    let response = connection.send(request).await?;
    let (status, wait) = (
        response.status(),
        retry_after(response.headers(), SystemTime::now()),
    );
    let host = connection.host().to_owned();
    if is_temporary(status) {
        return Err(NoToken::Failed(Error::Unavailable {
            host,
            reason: format!("its token server answers {status}"),
            retry_after: wait,
        }));
    }
    let bytes = connection.read(response, MAX_TOKEN_BYTES).await?;
    match status {
        StatusCode::OK => token(&bytes).ok_or(NoToken::Failed(Error::Protocol {
            host,
            reason: "its token server answers with something that is no token".to_owned(),
        })),
        StatusCode::BAD_REQUEST
        | StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND => {
            let said = explanation(&bytes).filter(|said| !repeats(said, credentials));
            Err(NoToken::Refused(match said {
                Some(said) => format!("its token server answers {status}: {said}"),
                None => format!("its token server answers {status}"),
            }))
        }
        _ => Err(NoToken::Failed(Error::Protocol {
            host,
            reason: format!("its token server answers {status}"),
        })),
    }
}

/// The token in the answer, under either of its names.
fn token(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Granted {
        token: Option<String>,
        access_token: Option<String>,
    }
    let granted: Granted = serde_json::from_slice(bytes).ok()?;
    let tokens = [granted.token, granted.access_token];
    tokens.into_iter().flatten().find(|token| !token.is_empty())
}

fn repeats(said: &str, credentials: Option<&Credentials>) -> bool {
    match credentials {
        None => false,
        Some(Credentials::Password { password, .. }) => said.contains(password),
        Some(Credentials::IdentityToken(token)) => said.contains(token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_preferred_and_the_unknown_is_passed_over() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: Url::parse(realm).unwrap(),
                service: service.map(str::to_owned),
            })
        };
        for (challenge, expected) in [
            (
                r#"Bearer realm="https://auth.example/token",service="x""#,
                bearer("https://auth.example/token", Some("x")),
            ),
            (
                r#"bearer service="a \"b\", c" , realm="https://auth.example/t?k=v""#,
                bearer("https://auth.example/t?k=v", Some(r#"a "b", c"#)),
            ),
            (
                r#"Negotiate, Basic realm="x", BEARER realm="https://y.example/""#,
                bearer("https://y.example/", None),
            ),
            (
                r#"Bearer realm="not a url", Basic realm="x""#,
                Some(Challenge::Basic),
            ),
            (r#"Bearer realm="data:token""#, None),
            ("Bearer", None),
            ("basic realm=\"Registry\"", Some(Challenge::Basic)),
            (r#"Digest realm="basic bearer""#, None),
            ("", None),
            (";;;", None),
        ] {
            assert_eq!(choose([challenge]), expected, "{challenge}");
        }
        let several = ["Basic realm=\"x\"", r#"Bearer realm="https://y.example/""#];
        assert_eq!(choose(several), bearer("https://y.example/", None));
    }

    #[test]
    fn a_token_has_either_name_and_is_not_empty() {
        for (document, expected) in [
            (r#"{"token":"a"}"#, Some("a")),
            (r#"{"access_token":"b","expires_in":60}"#, Some("b")),
            (r#"{"token":"","access_token":"b"}"#, Some("b")),
            (r#"{"token":""}"#, None),
            ("{}", None),
            ("<html>", None),
        ] {
            assert_eq!(
                token(document.as_bytes()).as_deref(),
                expected,
                "{document}"
            );
        }
    }
}
