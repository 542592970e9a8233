//! What was done on this host: the finished operations, in a bounded list.
//!
//! Owns `history.jsonl` (one JSON object a line, the oldest first) and, in the same form,
//! the operations that are under way, so that a daemon that died finds what it left.
//! Invariants of the parent hold; besides, at most [`LIMIT`] entries are kept, and of
//! those that have to go an operation that changed nothing goes first.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, write_whole};

const SCHEMA: u32 = 1;

/// How many entries are kept.
pub const LIMIT: usize = 200;

/// One operation. Times are microseconds since the epoch; what is not known is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Entry {
    /// The number of the job; unique until the host is booted again.
    pub job: u64,
    /// As `Job.Kind`.
    pub kind: String,
    /// `succeeded`, `failed`, `cancelled` or `interrupted`: the daemon ended before it did.
    pub state: String,
    /// The image that was asked for.
    pub image: String,
    /// The digest that it was about.
    pub digest: String,
    /// The version that goes with it.
    pub version: String,
    /// What the next boot gave before.
    pub from_digest: String,
    /// What the next boot gave afterwards.
    pub to_digest: String,
    /// Whether anything was done.
    pub changed: bool,
    /// The user who asked.
    pub uid: u32,
    /// What the client called itself.
    pub label: String,
    /// The client's reason.
    pub reason: String,
    /// When it was asked for.
    pub created_at: u64,
    /// When it ended, or was found to have ended.
    pub finished_at: u64,
    /// D-Bus error name, if it did not succeed.
    pub error_name: String,
    /// The sentence that goes with it.
    pub error_message: String,
}

impl Entry {
    /// Whether both are about one job: numbers begin anew when the host is booted.
    pub fn is_same_job(&self, other: &Entry) -> bool {
        (self.job, self.created_at) == (other.job, other.created_at)
    }

    fn did_nothing(&self) -> bool {
        self.state == "succeeded" && !self.changed
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    schema: u32,
    #[serde(flatten)]
    entry: Entry,
}

/// A file of entries.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
    /// The oldest first.
    entries: Vec<Entry>,
}

impl History {
    /// Reads the history of the host in the state directory; a missing file is an empty one.
    pub fn load(state_directory: &Path) -> Result<Self, Error> {
        Self::read(state_directory.join("history.jsonl"))
    }

    /// Reads the operations that were under way, in the runtime directory.
    pub fn load_unfinished(runtime_directory: &Path) -> Result<Self, Error> {
        Self::read(runtime_directory.join("unfinished.jsonl"))
    }

    /// No operation is under way, whatever the file says.
    pub fn none_unfinished(runtime_directory: &Path) -> Self {
        Self {
            path: runtime_directory.join("unfinished.jsonl"),
            entries: Vec::new(),
        }
    }

    fn read(path: PathBuf) -> Result<Self, Error> {
        let fail = |problem: String| Error {
            path: path.clone(),
            problem,
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(fail(error.to_string())),
        };
        let mut entries = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| fail(format!("line {}: {error}", number + 1)))?;
            if line.schema > SCHEMA {
                return Err(fail(format!(
                    "has schema {}, this version knows {SCHEMA}: it was written by a newer osteward",
                    line.schema
                )));
            }
            entries.push(line.entry);
        }
        Ok(Self { path, entries })
    }

    /// The entries, the oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds an entry, in memory only, and drops one if there are too many.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
        if self.entries.len() > LIMIT {
            let older = &self.entries[..LIMIT];
            let least = older.iter().position(Entry::did_nothing).unwrap_or(0);
            self.entries.remove(least);
        }
    }

    /// Takes the entry of the same job out, in memory only.
    pub fn remove(&mut self, entry: &Entry) {
        self.entries.retain(|other| !other.is_same_job(entry));
    }

    /// Whether there is an entry of the same job.
    pub fn has(&self, entry: &Entry) -> bool {
        self.entries.iter().any(|other| other.is_same_job(entry))
    }

    /// Replaces the file; on disk when it returns.
    pub fn write(&self) -> Result<(), Error> {
        let mut text = Vec::new();
        let lines = self.entries.iter().try_for_each(|entry| {
            let line = Line {
                schema: SCHEMA,
                entry: entry.clone(),
            };
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
            Ok(())
        });
        lines
            .and_then(|()| write_whole(&self.path, &text))
            .map_err(|error: std::io::Error| Error {
                path: self.path.clone(),
                problem: error.to_string(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(job: u64, changed: bool) -> Entry {
        Entry {
            job,
            kind: "upgrade".into(),
            state: "succeeded".into(),
            changed,
            created_at: 1000 + job,
            ..Entry::default()
        }
    }

    fn numbers(history: &History) -> Vec<u64> {
        history.entries().iter().map(|entry| entry.job).collect()
    }

    #[test]
    fn survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::load(directory.path()).unwrap();
        assert_eq!(history.entries(), []);
        let odd = Entry {
            reason: "a \"quoted\"\nreason".into(),
            ..entry(7, true)
        };
        history.push(odd.clone());
        history.push(entry(8, false));
        history.write().unwrap();
        let again = History::load(directory.path()).unwrap();
        assert_eq!(again.entries(), [odd, entry(8, false)]);
        let text = std::fs::read_to_string(directory.path().join("history.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn what_changed_nothing_goes_first_and_the_newest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::load(directory.path()).unwrap();
        for job in 0..LIMIT as u64 {
            history.push(entry(job, job != 5));
        }
        history.push(entry(1000, false));
        assert!(!numbers(&history).contains(&5) && numbers(&history).contains(&0));
        history.push(entry(1001, true));
        assert!(!numbers(&history).contains(&1000));
        history.push(entry(1002, true));
        assert_eq!(history.entries().len(), LIMIT);
        assert_eq!(numbers(&history)[0], 1, "then the oldest");
        assert_eq!(numbers(&history).last(), Some(&1002));
    }

    #[test]
    fn jobs_of_different_boots_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::load_unfinished(directory.path()).unwrap();
        history.push(entry(1, true));
        let of_another_boot = Entry {
            created_at: 5,
            ..entry(1, true)
        };
        assert!(history.has(&entry(1, false)) && !history.has(&of_another_boot));
        history.remove(&of_another_boot);
        assert_eq!(numbers(&history), [1]);
        history.remove(&entry(1, true));
        assert_eq!(history.entries(), []);
    }

    #[test]
    fn a_newer_or_broken_file_is_refused_and_unknown_keys_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        for text in ["{\"schema\":2,\"job\":1}\n", "{\"sch", "\u{0}\u{0}"] {
            std::fs::write(&path, text).unwrap();
            let error = History::load(directory.path()).unwrap_err();
            assert!(error.to_string().contains("history.jsonl"), "{error}");
        }
        std::fs::write(&path, "{\"schema\":1,\"job\":3,\"mood\":\"good\"}\n").unwrap();
        assert_eq!(numbers(&History::load(directory.path()).unwrap()), [3]);
    }
}
