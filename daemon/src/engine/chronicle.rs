//! What is written down of jobs, and when it is safe on disk.
//!
//! Owns the history, the list of unfinished jobs and the last check, and the one task that
//! writes their files. Invariants: the engine never waits for the disk; the history has a job before the
//! unfinished list loses it, so that a daemon killed in between loses nothing; a history
//! that could not be read is never overwritten; of read jobs, which change nothing, only
//! the last check is written down.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::job::microseconds;
use crate::record;
use crate::record::history::{Entry, History};
use crate::record::last_check::{self, LastCheck};

/// What goes to disk; the latest one wins.
#[derive(Debug, Clone)]
struct Page {
    /// Counts the pages.
    number: u64,
    /// The first page with this history.
    history_since: u64,
    /// `None`: it could not be read, and stays as it is.
    history: Option<History>,
    unfinished: History,
    /// The first page with this check.
    check_since: u64,
    check: Option<LastCheck>,
    /// `None`: it could not be read, and stays as it is.
    check_file: Option<last_check::File>,
}

/// The engine's side of it.
pub(super) struct Chronicle {
    page: Page,
    entries: Arc<[Entry]>,
    warning: Option<String>,
    pages: watch::Sender<Page>,
    written: watch::Receiver<u64>,
}

impl Chronicle {
    /// Reads what an earlier daemon left; what it did not finish is in the history then.
    pub(super) fn open(state_directory: &Path, runtime_directory: &Path) -> Self {
        let history = History::load(state_directory);
        let warning = history.as_ref().err().map(record::Error::to_string);
        if let Some(warning) = &warning {
            tracing::error!(
                error = warning,
                "the history cannot be read; nothing is added to it"
            );
        }
        let left = History::load_unfinished(runtime_directory).unwrap_or_else(|error| {
            tracing::warn!(%error, "what an earlier daemon did not finish is not known");
            History::none_unfinished(runtime_directory)
        });
        let mut history = history.ok();
        for entry in left.entries() {
            let Some(history) = &mut history else { break };
            if !history.has(entry) {
                tracing::warn!(
                    OSTEWARD_KIND = entry.kind,
                    "an earlier daemon did not end its {}",
                    entry.kind
                );
                history.push(interrupted(entry));
            }
        }
        let (check_file, check) = match last_check::File::open(state_directory) {
            Ok((file, check)) => (Some(file), check),
            Err(error) => {
                tracing::warn!(%error, "when the last check was is not known, and not kept");
                (None, None)
            }
        };
        let first = u64::from(!left.entries().is_empty());
        let page = Page {
            number: first,
            history_since: first,
            history,
            unfinished: History::none_unfinished(runtime_directory),
            check_since: 0,
            check,
            check_file,
        };
        let pages = watch::Sender::new(page.clone());
        let (told, written) = watch::channel(0);
        tokio::spawn(write_pages(pages.subscribe(), told));
        Self {
            entries: entries(&page),
            page,
            warning,
            pages,
            written,
        }
    }

    /// All entries, the oldest first.
    pub(super) fn entries(&self) -> Arc<[Entry]> {
        self.entries.clone()
    }

    /// Why there is no history, if there is none.
    pub(super) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// A job was asked for.
    pub(super) fn begun(&mut self, entry: Entry) {
        self.page.unfinished.push(entry);
        self.turn();
    }

    /// A job ended. Returns the number of the page that has it.
    pub(super) fn ended(&mut self, entry: Entry) -> u64 {
        self.page.unfinished.remove(&entry);
        if let Some(history) = &mut self.page.history {
            history.push(entry);
            self.page.history_since = self.page.number + 1;
        }
        self.turn();
        self.entries = entries(&self.page);
        self.page.number
    }

    /// The registry was asked.
    pub(super) fn checked(&mut self, check: LastCheck) {
        self.page.check = Some(check);
        self.page.check_since = self.page.number + 1;
        self.turn();
    }

    /// How the registry was asked last.
    pub(super) fn last_check(&self) -> Option<&LastCheck> {
        self.page.check.as_ref()
    }

    /// The number of the last page.
    pub(super) fn page(&self) -> u64 {
        self.page.number
    }

    fn turn(&mut self) {
        self.page.number += 1;
        self.pages.send_replace(self.page.clone());
    }

    /// The last page that is on disk, or that could not be written.
    pub(super) fn written(&self) -> u64 {
        *self.written.borrow()
    }

    /// Returns when another page was written; safe to drop and call again.
    pub(super) async fn page_written(&mut self) {
        if self.written.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn entries(page: &Page) -> Arc<[Entry]> {
    page.history
        .as_ref()
        .map(History::entries)
        .unwrap_or_default()
        .into()
}

fn interrupted(entry: &Entry) -> Entry {
    Entry {
        state: "interrupted".into(),
        finished_at: microseconds(),
        error_message: "the daemon ended before the job did".into(),
        ..entry.clone()
    }
}

async fn write_pages(mut pages: watch::Receiver<Page>, told: watch::Sender<u64>) {
    let (mut last, mut saved) = (0, 0);
    loop {
        let page = pages.borrow_and_update().clone();
        let number = page.number;
        if number > last {
            match tokio::task::spawn_blocking(move || page.write(saved)).await {
                Ok(Ok(())) => saved = number,
                // The next page tries again.
                Ok(Err(error)) => tracing::warn!(%error, "the history is not on disk"),
                Err(error) => tracing::error!(%error, "the history is not on disk"),
            }
            last = number;
            // The engine is gone at the end of the process only.
            let _ = told.send(number);
        }
        if pages.changed().await.is_err() {
            return;
        }
    }
}

impl Page {
    /// Writes what is new since page `last`. The history goes first: whoever is killed in
    /// between leaves a job in both files, not in none.
    fn write(&self, last: u64) -> Result<(), record::Error> {
        let history = match &self.history {
            Some(history) if self.history_since > last => history.write(),
            Some(_) | None => Ok(()),
        };
        let check = match (&self.check_file, &self.check) {
            (Some(file), Some(check)) if self.check_since > last => file.write(check),
            _ => Ok(()),
        };
        // What is in no history must not leave the other file.
        history.and_then(|()| self.unfinished.write()).and(check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(job: u64) -> Entry {
        Entry {
            job,
            kind: "upgrade".into(),
            state: "succeeded".into(),
            created_at: job,
            ..Entry::default()
        }
    }

    async fn wait_for(chronicle: &mut Chronicle, page: u64) {
        while chronicle.written() < page {
            chronicle.page_written().await;
        }
    }

    #[tokio::test]
    async fn what_was_not_finished_is_found_again() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut chronicle = Chronicle::open(state.path(), run.path());
        chronicle.begun(entry(1));
        chronicle.begun(entry(2));
        let page = chronicle.ended(entry(1));
        wait_for(&mut chronicle, page).await;

        let mut second = Chronicle::open(state.path(), run.path());
        let states: Vec<_> = second
            .entries()
            .iter()
            .map(|entry| (entry.job, entry.state.clone()))
            .collect();
        assert_eq!(states, [(1, "succeeded".into()), (2, "interrupted".into())]);
        wait_for(&mut second, 1).await;
        let third = Chronicle::open(state.path(), run.path());
        assert_eq!(third.entries(), second.entries(), "it is told once");
    }

    #[tokio::test]
    async fn a_daemon_killed_between_the_two_files_tells_a_job_once() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut unfinished = History::load_unfinished(run.path()).unwrap();
        unfinished.push(entry(1));
        unfinished.write().unwrap();
        let mut history = History::load(state.path()).unwrap();
        history.push(entry(1));
        history.write().unwrap();
        let chronicle = Chronicle::open(state.path(), run.path());
        assert_eq!(*chronicle.entries(), [entry(1)]);
    }

    #[tokio::test]
    async fn a_history_that_cannot_be_read_is_left_alone_and_said() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = state.path().join("history.jsonl");
        std::fs::write(&path, "{\"schema\":99}\n").unwrap();
        let mut chronicle = Chronicle::open(state.path(), run.path());
        assert!(chronicle.warning().unwrap().contains("newer osteward"));
        let page = chronicle.ended(entry(1));
        wait_for(&mut chronicle, page).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"schema\":99}\n");
        assert_eq!(*chronicle.entries(), []);
    }
}
