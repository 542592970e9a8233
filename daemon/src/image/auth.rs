//! Credentials for registries, from the auth files of the host.
//!
//! The format is that of containers-auth.json(5). Credential helpers are programs, and the daemon runs
//! none: what only a helper knows is an error that says so. Invariants: the first auth file that exists
//! is the only one that counts, as for the other tools on the host; it is read anew each time, so that
//! new credentials count at once; no secret, and no piece of an auth file, gets into an error, a log line
//! or `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde::Deserialize;

use super::Error;

/// Standard base64, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What an auth file has for a repository.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// A user name and a password.
    Password { user: String, password: String },
    /// What a token server exchanges for a token.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(<redacted>)")
    }
}

// No Debug: it would print the secrets.
#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

/// Looks up the credentials for a repository; `None` when there are none and access is to be anonymous.
///
/// # Errors
/// [`Error::Auth`] for a file that cannot be read or that is malformed, [`Error::NotSupported`] for an
/// entry that needs a credential helper.
pub(super) async fn credentials(
    files: &[PathBuf],
    registry: &str,
    repository: &str,
) -> Result<Option<Credentials>, Error> {
    for path in files {
        match tokio::fs::read(path).await {
            Ok(text) => return find(&text, path, registry, repository),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Auth {
                    host: registry.to_owned(),
                    reason: format!("{} cannot be read: {source}", path.display()),
                });
            }
        }
    }
    Ok(None)
}

fn find(
    text: &[u8],
    path: &Path,
    registry: &str,
    repository: &str,
) -> Result<Option<Credentials>, Error> {
    let malformed = |reason: String| Error::Auth {
        host: registry.to_owned(),
        reason: format!("{}: {reason}", path.display()),
    };
    // The parser's own message could quote a secret, so only the place is told.
    let file: AuthFile = serde_json::from_slice(text).map_err(|error| {
        malformed(format!(
            "malformed at line {} column {}",
            error.line(),
            error.column()
        ))
    })?;
    let helper_needed = || {
        Error::NotSupported(format!(
            "the credentials for {registry} in {} are kept by a credential helper, which this service \
             does not run; put user and password into the field \"auth\" (podman login --authfile)",
            path.display()
        ))
    };
    let entries = normalized(&file.auths);
    let Some((key, entry)) = scopes(registry, repository)
        .find_map(|scope| entries.get(scope.as_str()).map(|entry| (scope, entry)))
    else {
        return match file.helpers.keys().any(|host| normalize(host) == registry) {
            true => Err(helper_needed()),
            false => Ok(None),
        };
    };
    if let Some(token) = entry
        .identity_token
        .as_deref()
        .filter(|token| !token.is_empty())
    {
        return Ok(Some(Credentials::IdentityToken(token.to_owned())));
    }
    match entry.auth.as_deref().filter(|auth| !auth.is_empty()) {
        Some(auth) => match decode(auth) {
            Some(credentials) => Ok(Some(credentials)),
            None => Err(malformed(format!(
                "the field \"auth\" of {key:?} is not base64 of USER:PASSWORD"
            ))),
        },
        None => Err(helper_needed()),
    }
}

/// The keys that apply to a repository, the most specific first.
fn scopes<'a>(registry: &'a str, repository: &'a str) -> impl Iterator<Item = String> + 'a {
    let ends = repository.match_indices('/').map(|(at, _)| at).rev();
    let paths = std::iter::once(repository.len()).chain(ends);
    paths
        .map(move |end| format!("{registry}/{}", &repository[..end]))
        .chain(std::iter::once(registry.to_owned()))
}

/// Keys in today's form; an entry that is written so wins over one that only means the same.
fn normalized(auths: &BTreeMap<String, Entry>) -> BTreeMap<&str, &Entry> {
    let mut entries: BTreeMap<&str, &Entry> = auths
        .iter()
        .map(|(key, entry)| (normalize(key), entry))
        .collect();
    entries.extend(auths.iter().map(|(key, entry)| (key.as_str(), entry)));
    entries
}

/// Docker writes its hub as a URL of an interface that is long gone; podman writes plain names.
fn normalize(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

fn decode(auth: &str) -> Option<Credentials> {
    let plain = String::from_utf8(BASE64.decode(auth.trim()).ok()?).ok()?;
    // Some tools pad the decoded text with NULs.
    let (user, password) = plain.trim_end_matches('\0').split_once(':')?;
    (!user.is_empty()).then(|| Credentials::Password {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "auths": {
            "quay.io": {"auth": "aG9zdDpoMA=="},
            "quay.io/ns": {"auth": "bnM6bjE="},
            "quay.io/ns/os": {"auth": "cmVwbzpyMg=="},
            "https://index.docker.io/v1/": {"auth": "aHViOmg6Mw=="},
            "empty.example": {},
            "token.example": {"auth": "PHRva2VuPjo=", "identitytoken": "t0k3n"},
            "bad.example": {"auth": "%%%"},
            "nocolon.example": {"auth": "c2VjcmV0"}
        },
        "credHelpers": {"helper.example": "pass"}
    }"#;

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password {
            user: user.into(),
            password: password.into(),
        }
    }

    fn look_up(registry: &str, repository: &str) -> Result<Option<Credentials>, Error> {
        find(
            FILE.as_bytes(),
            Path::new("/run/ostree/auth.json"),
            registry,
            repository,
        )
    }

    #[test]
    fn the_most_specific_key_wins() {
        for (registry, repository, found) in [
            ("quay.io", "other/os", Some(password("host", "h0"))),
            ("quay.io", "ns/other", Some(password("ns", "n1"))),
            ("quay.io", "ns/os", Some(password("repo", "r2"))),
            ("quay.io", "ns/os/deeper", Some(password("repo", "r2"))),
            ("quay.io", "nsx/os", Some(password("host", "h0"))),
            // Only the first colon separates.
            ("docker.io", "library/busybox", Some(password("hub", "h:3"))),
            ("quay.io:5000", "ns/os", None),
            ("elsewhere.example", "ns/os", None),
        ] {
            let place = format!("{registry}/{repository}");
            assert!(look_up(registry, repository).unwrap() == found, "{place}");
        }
    }

    #[test]
    fn an_identity_token_is_preferred_to_the_password_beside_it() {
        let token = Credentials::IdentityToken("t0k3n".into());
        assert!(look_up("token.example", "os").unwrap() == Some(token));
    }

    #[test]
    fn what_needs_a_helper_says_so() {
        for host in ["helper.example", "empty.example"] {
            let error = look_up(host, "os").unwrap_err();
            assert!(
                matches!(&error, Error::NotSupported(text) if text.contains(host)),
                "{error}"
            );
        }
    }

    #[test]
    fn malformed_files_and_entries_tell_no_secret() {
        for host in ["bad.example", "nocolon.example"] {
            let error = look_up(host, "os").unwrap_err();
            assert!(matches!(error, Error::Auth { .. }));
            assert!(!format!("{error} {error:?}").contains("c2VjcmV0"));
        }
        let file = br#"{"auths": {"quay.io": "c2VjcmV0"}}"#;
        let error = find(file, Path::new("/auth.json"), "quay.io", "os").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/auth.json: malformed at line 1"),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn debug_tells_no_secret() {
        let token = Credentials::IdentityToken("hunter2".into());
        let text = format!("{:?} {token:?}", password("alice", "hunter2"));
        assert!(!text.contains("alice") && !text.contains("hunter2"));
    }

    #[tokio::test]
    async fn only_the_first_file_that_exists_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("second"), "{}").unwrap();
        std::fs::write(path("third"), FILE).unwrap();
        let found = credentials(
            &[path("first"), path("second"), path("third")],
            "quay.io",
            "os",
        )
        .await;
        assert!(found.unwrap().is_none());
        let found = credentials(&[path("first"), path("third")], "quay.io", "os").await;
        assert!(found.unwrap() == Some(password("host", "h0")));
        let found = credentials(&[path("first")], "quay.io", "os").await;
        assert!(found.unwrap().is_none());
        let unreadable = credentials(&[directory.path().to_owned()], "quay.io", "os").await;
        assert!(matches!(unreadable, Err(Error::Auth { .. })));
    }

    #[test]
    fn base64_comes_with_and_without_padding() {
        for (text, found) in [
            ("YTpi", Some(password("a", "b"))),
            (" YTpiYw==\n", Some(password("a", "bc"))),
            ("YTpiYw", Some(password("a", "bc"))),
            ("YTpiAA==", Some(password("a", "b"))),
            ("OmI=", None),
            ("YQ==", None),
            ("YTpi%", None),
            ("", None),
        ] {
            assert!(decode(text) == found, "{text:?}");
        }
    }
}
