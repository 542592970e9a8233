//! When the registry was asked last, and what came of it.
//!
//! Owns `last-check.json`. The daemon exits when nobody needs it, so that hardly any question
//! about the last check reaches the process that made it. Invariants of the parent hold.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, write_whole};

const SCHEMA: u32 = 1;

/// How the registry was asked last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LastCheck {
    /// Unix seconds.
    pub time: u64,
    /// D-Bus error name and message, if it failed.
    pub error: Option<(String, String)>,
    /// The digest that the reference had.
    pub digest: String,
    /// The digest that the reference was served under: that of an index, if it leads to one. Empty when it is
    /// not known.
    pub served: String,
    /// The reference.
    pub reference: String,
    /// Where its registry sends for tokens, and the service that they are for.
    pub token_server: Option<(String, Option<String>)>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    schema: u32,
    #[serde(flatten)]
    check: LastCheck,
}

/// The file.
#[derive(Debug, Clone)]
pub struct File(PathBuf);

impl File {
    /// That of the host, and what it says; a missing file says nothing.
    pub fn open(state_directory: &Path) -> Result<(Self, Option<LastCheck>), Error> {
        let path = state_directory.join("last-check.json");
        let fail = |problem: String| Error {
            path: path.clone(),
            problem,
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Self(path), None));
            }
            Err(error) => return Err(fail(error.to_string())),
        };
        let content: Content =
            serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
        if content.schema > SCHEMA {
            return Err(fail(format!(
                "has schema {}, this version knows {SCHEMA}: it was written by a newer osteward",
                content.schema
            )));
        }
        Ok((Self(path), Some(content.check)))
    }

    /// Replaces what it says, on disk before it returns.
    pub fn write(&self, check: &LastCheck) -> Result<(), Error> {
        let content = Content {
            schema: SCHEMA,
            check: check.clone(),
        };
        let written = serde_json::to_vec(&content)
            .map_err(std::io::Error::from)
            .and_then(|text| write_whole(&self.0, &text));
        written.map_err(|error| Error {
            path: self.0.clone(),
            problem: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (file, check) = File::open(directory.path()).unwrap();
        assert_eq!(check, None);
        for error in [None, Some(("a.Name".to_owned(), "a sentence".to_owned()))] {
            let check = LastCheck {
                time: 7,
                error,
                digest: "sha256:a".into(),
                served: "sha256:b".into(),
                token_server: Some(("https://r.test/token".into(), None)),
                reference: "docker://r.test/os".into(),
            };
            file.write(&check).unwrap();
            let (_, again) = File::open(directory.path()).unwrap();
            assert_eq!(again, Some(check));
        }
    }

    #[test]
    fn what_an_older_version_wrote_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("last-check.json");
        let text = r#"{"schema":1,"time":7,"error":null,"digest":"sha256:a","reference":"r"}"#;
        std::fs::write(path, text).unwrap();
        let (_, check) = File::open(directory.path()).unwrap();
        let check = check.unwrap();
        assert_eq!((check.time, check.digest.as_str()), (7, "sha256:a"));
        assert_eq!((check.served.as_str(), check.token_server), ("", None));
    }

    #[test]
    fn a_newer_or_broken_file_is_refused() {
        for text in ["{\"schema\":2,\"time\":1}", "{\"sch", "{\"time\":1}"] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("last-check.json");
            std::fs::write(&path, text).unwrap();
            let error = File::open(directory.path()).unwrap_err();
            assert!(error.to_string().contains("last-check.json"), "{error}");
        }
    }
}
