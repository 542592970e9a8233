//! What must be remembered and cannot be derived: the files in `/var/lib/osteward`.
//!
//! Owns the quarantine: digests that a rollback left behind and that are not staged
//! again by themselves; the [`history`]; and the [`last_check`]. `/var` is shared by all
//! deployments of a stateroot, so a record survives the rollback it is about. Invariants: a file is replaced whole
//! (write, fsync, rename, fsync of the directory) and carries `schema`; a file of a newer
//! schema, or one that cannot be read, is an error and never overwritten.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub mod history;
pub mod inventories;
pub mod last_check;

const SCHEMA: u32 = 1;

/// Why a record cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

/// Why a digest is on the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reason {
    /// `user-rollback`; other reasons may come.
    pub reason: String,
    /// Unix seconds.
    pub since: u64,
    /// The digest that was gone back to, if known.
    #[serde(default)]
    pub to_digest: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    schema: u32,
    digests: BTreeMap<String, Reason>,
}

/// Digests that are not staged by themselves.
#[derive(Debug, Clone)]
pub struct Quarantine {
    path: PathBuf,
    digests: BTreeMap<String, Reason>,
}

impl Quarantine {
    /// Reads the list in `directory`; a missing file is an empty list.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let path = directory.join("quarantine.json");
        let fail = |problem: String| Error {
            path: path.clone(),
            problem,
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self {
                    path,
                    digests: BTreeMap::new(),
                });
            }
            Err(error) => return Err(fail(error.to_string())),
        };
        let file: File = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
        if file.schema > SCHEMA {
            return Err(fail(format!(
                "has schema {}, this version knows {SCHEMA}: it was written by a newer osteward",
                file.schema
            )));
        }
        Ok(Self {
            path,
            digests: file.digests,
        })
    }

    /// Why the digest is on the list, if it is.
    pub fn reason(&self, digest: &str) -> Option<&Reason> {
        self.digests.get(digest)
    }

    /// All digests on the list.
    pub fn digests(&self) -> HashSet<String> {
        self.digests.keys().cloned().collect()
    }

    /// Puts a digest on the list, on disk before it returns.
    pub fn add(&mut self, digest: &str, reason: Reason) -> Result<(), Error> {
        let mut digests = self.digests.clone();
        digests.insert(digest.to_owned(), reason);
        self.replace(digests)
    }

    /// Takes a digest off the list, on disk before it returns. Says whether it was on it.
    pub fn lift(&mut self, digest: &str) -> Result<bool, Error> {
        let mut digests = self.digests.clone();
        if digests.remove(digest).is_none() {
            return Ok(false);
        }
        self.replace(digests).map(|()| true)
    }

    /// Takes a digest off the list, and what the same rollback put there with it.
    pub fn lift_rollback(&mut self, digest: &str) -> Result<(), Error> {
        let Some(reason) = self.digests.get(digest).cloned() else {
            return Ok(());
        };
        let mut digests = self.digests.clone();
        digests.retain(|_, other| *other != reason);
        self.replace(digests)
    }

    fn replace(&mut self, digests: BTreeMap<String, Reason>) -> Result<(), Error> {
        let file = File {
            schema: SCHEMA,
            digests,
        };
        let written = serde_json::to_vec_pretty(&file)
            .map_err(std::io::Error::from)
            .and_then(|text| write_whole(&self.path, &text));
        written.map_err(|error| Error {
            path: self.path.clone(),
            problem: error.to_string(),
        })?;
        self.digests = file.digests;
        Ok(())
    }
}

/// Replaces a file so that after a power cut it is either the old or the new one.
fn write_whole(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(directory)?.sync_all()
}

/// The number for the next job's path, from a counter in the runtime directory, so that
/// a path is not used twice although the daemon exits when idle. `given` is the last one of this
/// process: the counter may not have been kept.
pub fn next_job_number(directory: &Path, given: u64) -> u64 {
    let path = directory.join("next-job");
    let last = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let next = last.unwrap_or(0u64).max(given) + 1;
    if let Err(error) = write_whole(&path, next.to_string().as_bytes()) {
        tracing::warn!(%error, path = %path.display(), "cannot keep the job counter");
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason() -> Reason {
        Reason {
            reason: "user-rollback".into(),
            since: 7,
            to_digest: "sha256:b".into(),
        }
    }

    #[test]
    fn survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut list = Quarantine::load(directory.path()).unwrap();
        list.add("sha256:a", reason()).unwrap();
        let mut again = Quarantine::load(directory.path()).unwrap();
        assert_eq!(again.reason("sha256:a"), Some(&reason()));
        assert!(again.lift("sha256:a").unwrap());
        assert!(!again.lift("sha256:a").unwrap());
        assert_eq!(
            Quarantine::load(directory.path())
                .unwrap()
                .reason("sha256:a"),
            None
        );
    }

    #[test]
    fn a_rollback_is_lifted_as_a_whole_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let mut list = Quarantine::load(directory.path()).unwrap();
        let earlier = Reason {
            since: 6,
            ..reason()
        };
        list.add("sha256:old", earlier).unwrap();
        list.add("sha256:booted", reason()).unwrap();
        list.add("sha256:staged", reason()).unwrap();
        list.lift_rollback("sha256:unknown").unwrap();
        list.lift_rollback("sha256:booted").unwrap();
        assert_eq!(list.digests(), HashSet::from(["sha256:old".to_owned()]));
    }

    #[test]
    fn a_newer_or_broken_file_is_refused_and_kept() {
        for text in ["{\"schema\":2,\"digests\":{}}", "{\"sch"] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("quarantine.json");
            std::fs::write(&path, text).unwrap();
            let error = Quarantine::load(directory.path()).unwrap_err();
            assert!(error.to_string().contains("quarantine.json"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn job_numbers_do_not_repeat() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(next_job_number(directory.path(), 0), 1);
        assert_eq!(next_job_number(directory.path(), 0), 2);
        std::fs::write(directory.path().join("next-job"), "lost").unwrap();
        assert_eq!(next_job_number(directory.path(), 2), 3);
        let nowhere = directory.path().join("next-job/nowhere");
        assert_eq!(next_job_number(&nowhere, 3), 4);
    }
}
