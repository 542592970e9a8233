//! Credentials for registries, from the auth files of the host.
//!
//! Invariants: the first auth file that exists is the only one that counts, as for the other tools on the
//! host; no secret, and no piece of an auth file, gets into an error, a log line or `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Error;

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
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
}

/// Looks up the credentials for a repository; `None` when there are none and access is to be anonymous.
///
/// # Errors
/// [`Error::Auth`] for a file that cannot be read or that is malformed, [`Error::NotSupported`] for an
/// entry that needs a credential helper or an identity token.
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
    let helper_needed = |what: &str| {
        Error::NotSupported(format!(
            "the credentials for {registry} in {} need {what}, which is not supported; \
             put user and password into the field \"auth\"",
            path.display()
        ))
    };
    let entries = normalized(&file.auths);
    let Some((key, entry)) = scopes(registry, repository)
        .find_map(|scope| entries.get(scope.as_str()).map(|entry| (scope, entry)))
    else {
        return match file.helpers.keys().any(|host| normalize(host) == registry) {
            true => Err(helper_needed("a credential helper")),
            false => Ok(None),
        };
    };
    match entry.auth.as_deref().filter(|auth| !auth.is_empty()) {
        Some(auth) => match decode(auth) {
            Some(credentials) => Ok(Some(credentials)),
            None => Err(malformed(format!(
                "the field \"auth\" of {key:?} is not base64 of USER:PASSWORD"
            ))),
        },
        None => Err(helper_needed("a credential helper or an identity token")),
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
    let plain = String::from_utf8(decode_base64(auth.trim())?).ok()?;
    // Some tools pad the decoded text with NULs.
    let (user, password) = plain.trim_end_matches('\0').split_once(':')?;
    (!user.is_empty()).then(|| Credentials {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

/// Standard base64, with or without padding; `None` for anything that is not.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    if padding > 2 || (padding > 0 && !text.len().is_multiple_of(4)) || digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut pending, mut bits) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        pending = (pending << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            // Only the eight bits that are complete; the cast drops those already taken.
            bytes.push((pending >> bits) as u8);
        }
    }
    Some(bytes)
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
            "bad.example": {"auth": "%%%"},
            "nocolon.example": {"auth": "c2VjcmV0"}
        },
        "credHelpers": {"helper.example": "pass"}
    }"#;

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
        for (registry, repository, user) in [
            ("quay.io", "other/os", Some("host")),
            ("quay.io", "ns/other", Some("ns")),
            ("quay.io", "ns/os", Some("repo")),
            ("quay.io", "ns/os/deeper", Some("repo")),
            ("quay.io", "nsx/os", Some("host")),
            ("docker.io", "library/busybox", Some("hub")),
            ("quay.io:5000", "ns/os", None),
            ("elsewhere.example", "ns/os", None),
        ] {
            let found = look_up(registry, repository)
                .unwrap()
                .map(|found| found.user);
            assert_eq!(found.as_deref(), user, "{registry}/{repository}");
        }
        // Only the first colon separates.
        assert_eq!(look_up("docker.io", "x").unwrap().unwrap().password, "h:3");
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
        let credentials = Credentials {
            user: "alice".into(),
            password: "hunter2".into(),
        };
        let text = format!("{credentials:?}");
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
        assert_eq!(found.unwrap(), None);
        let found = credentials(&[path("first"), path("third")], "quay.io", "os").await;
        assert_eq!(found.unwrap().unwrap().user, "host");
        assert_eq!(
            credentials(&[path("first")], "quay.io", "os")
                .await
                .unwrap(),
            None
        );
        let unreadable = credentials(&[directory.path().to_owned()], "quay.io", "os").await;
        assert!(matches!(unreadable, Err(Error::Auth { .. })));
    }

    #[test]
    fn base64_is_read_as_written() {
        for (text, bytes) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zg", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYmFy", Some(b"foobar")),
            ("+/+/", Some(&[0xfb, 0xff, 0xbf])),
            ("Z", None),
            ("Zg=", None),
            ("Z===", None),
            ("Zm 9v", None),
            ("Zm-v", None),
        ] {
            assert_eq!(decode_base64(text).as_deref(), bytes, "{text:?}");
        }
    }
}
