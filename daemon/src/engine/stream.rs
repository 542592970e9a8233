//! The events of one job, one JSON object a line, through a pipe.
//!
//! Owns the pipe's writing end and the words of the events. Invariants: a reader that does
//! not read never holds anything up: what does not fit into the pipe is dropped, and counted
//! in a later `dropped` event; the last line is `finished`, and then the pipe ends.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::{broadcast, watch};

use super::job::JobView;
use crate::jobs::log::{Event, Log};

/// How many may listen to one job: each costs the daemon a file descriptor.
pub(super) const AT_MOST: usize = 16;
/// How long a full pipe may keep the last line back.
const LAST_LINE: Duration = Duration::from_secs(10);

/// Opens a stream that begins with what is known now; returns the end to read from.
pub(super) fn open(log: &Log, view: watch::Receiver<JobView>) -> io::Result<OwnedFd> {
    let (writer, reader) = pipe::pipe()?;
    let events = log.listen();
    tokio::spawn(run(Pen { writer, dropped: 0 }, view, events));
    reader.into_blocking_fd()
}

/// The writing end; gone when the reader is.
struct Pen {
    writer: pipe::Sender,
    dropped: u64,
}

/// The reader closed its end.
struct Closed;

impl Pen {
    /// Writes a line if there is room for it.
    fn line(&mut self, event: &Value) -> Result<(), Closed> {
        if self.dropped > 0 {
            let count = json!({"event": "dropped", "count": self.dropped});
            match self.try_line(&count)? {
                true => self.dropped = 0,
                false => {
                    self.dropped += 1;
                    return Ok(());
                }
            }
        }
        if !self.try_line(event)? {
            self.dropped += 1;
        }
        Ok(())
    }

    /// A line of up to PIPE_BUF bytes is written whole or not at all (pipe(7)); a longer one
    /// is not an event of this module.
    fn try_line(&mut self, event: &Value) -> Result<bool, Closed> {
        let mut line = event.to_string();
        line.push('\n');
        match self.writer.try_write(line.as_bytes()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err(Closed),
        }
    }

    /// Writes the last line, for which the reader gets some time.
    async fn last_line(mut self, event: &Value) {
        let written = async {
            loop {
                if self.line(event).is_err() || self.dropped == 0 {
                    return;
                }
                // The line is what was dropped last: it is tried again.
                self.dropped -= 1;
                if self.writer.writable().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(LAST_LINE, written).await.is_err() {
            tracing::debug!("a listener did not read how the job ended");
        }
    }
}

async fn run(
    mut pen: Pen,
    mut view: watch::Receiver<JobView>,
    mut events: broadcast::Receiver<Event>,
) {
    // An empty pipe has room, but that is known only when the reactor has looked.
    if pen.writer.writable().await.is_err() {
        return;
    }
    let mut told = None;
    loop {
        let now = view.borrow_and_update().clone();
        if now.state.is_final() {
            pen.last_line(&finished(&now)).await;
            return;
        }
        for event in changes(told.as_ref(), &now) {
            if pen.line(&event).is_err() {
                return;
            }
        }
        told = Some(now);
        tokio::select! {
            () = closed(&pen.writer) => return,
            changed = view.changed() => if changed.is_err() { return },
            event = events.recv() => {
                let written = match event {
                    Ok(event) => pen.line(&words(event)),
                    Err(broadcast::error::RecvError::Lagged(count)) => {
                        pen.dropped += count;
                        Ok(())
                    }
                    // The job was forgotten.
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if written.is_err() {
                    return;
                }
            }
        }
    }
}

/// Returns when nobody can read from the pipe any more.
async fn closed(writer: &pipe::Sender) {
    // An error means that readiness cannot be known; writing tells then.
    if writer.ready(Interest::ERROR).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What `now` says that `told` did not.
fn changes(told: Option<&JobView>, now: &JobView) -> Vec<Value> {
    let mut events = Vec::new();
    let state = |view: &JobView| (view.state, view.paused, view.background, view.blocked_by);
    if told.map(state) != Some(state(now)) {
        events.push(json!({
            "event": "state",
            "state": now.state.name(),
            "paused": now.paused,
            "background": now.background,
            "blocked-by": now.blocked_by.map(|job| job.path()),
        }));
    }
    let reading = &now.reading;
    if told.is_none_or(|told| told.reading != *reading) {
        let layers = reading.active_layers.iter().map(|(digest, done, total)| {
            json!({"digest": digest, "bytes-done": done, "bytes-total": total})
        });
        events.push(json!({
            "event": "progress",
            "phase": reading.phase.map(|phase| phase.name()),
            "fraction": reading.fraction,
            "bytes-done": reading.bytes_done,
            "bytes-total": reading.bytes_total,
            "layers-done": reading.layers_done,
            "layers-total": reading.layers_total,
            "layers": layers.collect::<Vec<_>>(),
        }));
    }
    events
}

fn words(event: Event) -> Value {
    match event {
        Event::Phase(phase) => json!({"event": "phase", "phase": phase}),
        Event::Message(text) => json!({"event": "message", "message": cut(text)}),
        Event::LayerStarted { digest, size } => {
            json!({"event": "layer-started", "digest": digest, "bytes-total": size})
        }
        Event::LayerDone { digest } => json!({"event": "layer-done", "digest": digest}),
    }
}

fn finished(view: &JobView) -> Value {
    let (name, message) = view.error.clone().unwrap_or_default();
    json!({
        "event": "finished",
        "state": view.state.name(),
        "error-name": name,
        "error-message": cut(message),
    })
}

/// Text that surely fits into a line that is written at once, even if all of it is escaped.
fn cut(text: String) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;
    use crate::engine::known::Known;
    use crate::engine::{Caller, JobId, Terms};
    use crate::error::Error;
    use crate::jobs::Request;

    fn job() -> Known {
        let request = Request::Check { max_age: None };
        Known::new(JobId(1), request, Caller::default(), Terms::default())
    }

    type Lines = tokio::io::Lines<BufReader<pipe::Receiver>>;

    fn reading(reader: OwnedFd) -> Lines {
        BufReader::new(pipe::Receiver::from_owned_fd(reader).unwrap()).lines()
    }

    async fn next(lines: &mut Lines) -> Option<Value> {
        let line = lines.next_line().await.unwrap()?;
        Some(serde_json::from_str(&line).unwrap())
    }

    async fn rest(mut lines: Lines) -> Vec<Value> {
        let mut read = Vec::new();
        while let Some(event) = next(&mut lines).await {
            read.push(event);
        }
        read
    }

    #[tokio::test]
    async fn the_story_has_a_beginning_and_an_end() {
        let mut job = job();
        let reader = open(job.progress.log(), job.view.subscribe()).unwrap();
        let mut lines = reading(reader);
        assert_eq!(next(&mut lines).await.unwrap()["state"], "queued");
        job.begin();
        job.progress.say("asking");
        let events = loop {
            let event = next(&mut lines).await.unwrap();
            if event["message"] == "asking" {
                job.finish(&Err(Error::InvalidArgs("no such image".into())));
                break rest(lines).await;
            }
        };
        let last = events.last().unwrap();
        assert_eq!(last["event"], "finished");
        assert_eq!(last["state"], "failed");
        assert_eq!(last["error-message"], "no such image");
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_told_how_much_it_missed() {
        let mut job = job();
        let reader = open(job.progress.log(), job.view.subscribe()).unwrap();
        let said = 3000;
        for number in 0..said {
            job.progress.log().line(&format!("{number:0300}"));
            // Lets the writer come along until its pipe is full.
            tokio::task::yield_now().await;
        }
        job.finish(&Ok(Default::default()));
        let events = rest(reading(reader)).await;
        assert_eq!(events.last().unwrap()["state"], "succeeded");
        let missed: u64 = events
            .iter()
            .filter_map(|event| event["count"].as_u64())
            .sum();
        let heard = events
            .iter()
            .filter(|event| event["event"] == "message")
            .count() as u64;
        assert!(missed > 0 && heard > 0, "{missed} {heard}");
        assert!(
            missed + heard >= said && missed + heard <= said + 10,
            "{missed} {heard}"
        );
    }

    #[tokio::test]
    async fn a_reader_that_leaves_is_forgotten() {
        let job = job();
        drop(open(job.progress.log(), job.view.subscribe()).unwrap());
        // Nothing is said: the pipe itself tells. The writer's task has nothing else to await.
        let gone = async {
            while job.progress.log().listeners() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LAST_LINE, gone).await.unwrap();
    }

    #[test]
    fn every_line_fits_into_one_write() {
        let text = "\u{1}".repeat(5000);
        let line = words(Event::Message(text)).to_string();
        assert!(line.len() < 4000, "{}", line.len());
    }
}
