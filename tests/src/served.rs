//! What a registry has answered, by its own log: it has a line for every answer it has finished.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Longest time from an answer to its line.
const PATIENCE: Duration = Duration::from_secs(30);

/// Begins the query of the requests that mark the end of what is counted.
const MARK: &str = "/v2/?mark=";

/// Answers, and bytes of their bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of the answers without their heads.
    pub bytes: u64,
    /// Those of blobs: layers, parts of them, deltas, and configurations.
    pub blobs: u64,
}

impl Served {
    /// What came after `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            bytes: self.bytes - earlier.bytes,
            blobs: self.blobs - earlier.blobs,
        }
    }
}

/// Sums up the lines of a registry's log.
#[derive(Debug, Default)]
pub(crate) struct Account {
    book: Mutex<Book>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Book {
    served: Served,
    /// The number of the last mark, and of the last one that the log has had.
    marks: (u64, u64),
}

impl Account {
    /// Takes down a line.
    pub(crate) fn note(&self, line: &str) {
        let Some(answer) = answer_in(line) else {
            return;
        };
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Answer::Mark(number) => book.marks.1 = book.marks.1.max(number),
            Answer::Bytes { bytes, of_blob } => {
                book.served.requests += 1;
                book.served.bytes += bytes;
                book.served.blobs += if of_blob { bytes } else { 0 };
            }
        }
        drop(book);
        self.changed.notify_all();
    }

    /// The account with all that was answered before: a line is written when its answer is already with the
    /// client, so it is closed when two marks in a row have found the same.
    ///
    /// # Errors
    /// When the registry at `address` does not answer over plain HTTP.
    pub(crate) fn close(&self, address: SocketAddr) -> Result<Served> {
        let mut served = self.mark(address)?;
        loop {
            let again = self.mark(address)?;
            if again == served {
                return Ok(served);
            }
            served = again;
        }
    }

    /// Asks the registry for something that nobody else does, and waits until its log has that.
    fn mark(&self, address: SocketAddr) -> Result<Served> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.marks.0 += 1;
        let number = book.marks.0;
        drop(book);
        let mut registry = TcpStream::connect(address).context("asking the registry")?;
        let ask = format!("GET {MARK}{number} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        registry.write_all(ask.as_bytes())?;
        registry.read_to_end(&mut Vec::new())?;
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let (book, waited) = self
            .changed
            .wait_timeout_while(book, PATIENCE, |book| book.marks.1 < number)
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(
            !waited.timed_out(),
            "the registry's log has no answer to {MARK}{number}"
        );
        Ok(book.served)
    }
}

enum Answer {
    Bytes { bytes: u64, of_blob: bool },
    Mark(u64),
}

fn answer_in(line: &str) -> Option<Answer> {
    if !line.contains("msg=\"response completed") {
        return None;
    }
    let field = |name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}="))?;
        let value = rest.split(' ').next()?;
        Some(value.trim_matches('"'))
    };
    let uri = field("http.request.uri").unwrap_or_default();
    if let Some(mark) = uri.strip_prefix(MARK) {
        return Some(Answer::Mark(mark.parse().ok()?));
    }
    // What has no body has no such field.
    let written = field("http.response.written").map_or(Ok(0), str::parse);
    Some(Answer::Bytes {
        bytes: written.ok()?,
        of_blob: uri.contains("/blobs/sha256:"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_and_marks_are_not() {
        let account = Account::default();
        let line = |uri: &str, written: u64| {
            format!(
                "time=\"2025-01-01T00:00:00Z\" level=info msg=\"response completed\" \
                 http.request.method=GET http.request.uri=\"{uri}\" http.response.duration=1ms \
                 http.response.status=200 http.response.written={written} "
            )
        };
        account.note(&line("/v2/os/blobs/sha256:00", 1000));
        account.note(&line("/v2/os/manifests/latest", 20));
        account.note(&line("/v2/?mark=7", 2));
        account.note("time=\"2025-01-01T00:00:00Z\" level=info msg=\"listening on [::]:5000\"");
        let book = account.book.lock().unwrap();
        let expected = Served {
            requests: 2,
            bytes: 1020,
            blobs: 1000,
        };
        assert_eq!(book.served, expected);
        assert_eq!(book.marks.1, 7);
    }

    #[test]
    fn a_registry_counts_what_it_answers() {
        let registry = crate::registry::Registry::start().unwrap();
        let before = registry.served().unwrap();
        let mut connection = TcpStream::connect(("127.0.0.1", registry.port())).unwrap();
        connection
            .write_all(b"GET /v2/ HTTP/1.0\r\nHost: registry\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let served = registry.served().unwrap().since(before);
        assert_eq!((served.requests, served.bytes), (1, body.len() as u64));
    }
}
