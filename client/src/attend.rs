//! Attending a job on behalf of a person: progress, Ctrl-C, end.
//!
//! Owns the loop around [`Follower`]. Invariants: a job is never cancelled unless the
//! person said so; without a terminal nobody is asked and the job goes on; the second
//! Ctrl-C always ends the waiting.

use std::io::{BufRead as _, Write as _};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::bus::{Bus, Order};
use crate::fail::Failure;
use crate::follow::{Event, Follower, vanished};
use crate::progress::Display;

/// How the waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The job ended; its record says how.
    Finished,
    /// The daemon went away when it had asked for the reboot: with the host, or by itself.
    Rebooting,
    /// The person left; the job goes on.
    Left,
}

/// What Ctrl-C means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// Ask whether to cancel the job.
    Ask,
    /// End the waiting.
    Leave,
}

/// The answer to the question at Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Cancel,
    Leave,
    GoOn,
}

/// Ctrl-C as a stream. From its creation on, Ctrl-C does not end the process.
#[derive(Debug)]
pub(crate) struct Interrupts(Signal);

impl Interrupts {
    /// Takes Ctrl-C over.
    pub(crate) fn take() -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(
                "org.freedesktop.DBus.Error.IOError",
                format!("cannot handle Ctrl-C: {error}"),
            )
        };
        signal(SignalKind::interrupt()).map(Self).map_err(failed)
    }

    /// The next Ctrl-C; safe to drop and call again.
    pub(crate) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Shows the job until it ends or the person leaves.
pub(crate) async fn attend(
    bus: &Bus,
    follower: &mut Follower,
    display: &mut Display,
    on_interrupt: OnInterrupt,
) -> Result<Ended, Failure> {
    let mut interrupts = Interrupts::take()?;
    let mut question: Option<oneshot::Receiver<Choice>> = None;
    show_all(display, follower);
    loop {
        tokio::select! {
            event = follower.next() => match event? {
                // The question must stay readable.
                Event::Changed(_) if question.is_some() => {}
                Event::Changed(changed) => display.update(follower.path(), follower.info(), changed),
                Event::Finished => {
                    close(display, question.is_some());
                    return Ok(Ended::Finished);
                }
                Event::Vanished => {
                    close(display, question.is_some());
                    return went_away(follower);
                }
            },
            () = interrupts.next() => {
                display.clear();
                let asked = question.is_some();
                if asked || on_interrupt == OnInterrupt::Leave {
                    close(display, asked);
                    return Ok(Ended::Left);
                }
                question = Some(ask());
            }
            choice = answer(&mut question) => {
                question = None;
                match choice {
                    Choice::Leave => return Ok(Ended::Left),
                    Choice::GoOn => {}
                    Choice::Cancel => if !cancel(bus, follower, &mut interrupts).await {
                        return Ok(Ended::Left);
                    },
                }
                show_all(display, follower);
            }
        }
    }
}

/// Cancels the job, which may ask for a password. False: the person did not wait for that.
async fn cancel(bus: &Bus, follower: &mut Follower, interrupts: &mut Interrupts) -> bool {
    let path = follower.path().clone();
    tokio::select! {
        told = follower.meanwhile(bus.tell(&path, Order::Cancel)) => {
            if let Err(refused) = told {
                eprintln!("{}", refused.render("cancel", false));
            }
            true
        }
        () = interrupts.next() => false,
    }
}

fn show_all(display: &mut Display, follower: &Follower) {
    display.update(follower.path(), follower.info(), follower.snapshot());
}

/// A daemon that goes down with the host has done its work; whether it did, is to be asked.
fn went_away(follower: &Follower) -> Result<Ended, Failure> {
    match follower.info().phase.as_str() {
        "rebooting" => Ok(Ended::Rebooting),
        _ => Err(vanished()),
    }
}

/// Clears the bar, and ends the line of a question that nobody answered.
fn close(display: &mut Display, asked: bool) {
    display.clear();
    if asked {
        eprintln!();
    }
}

/// Puts the question and reads the answer on a thread of its own, as reading a terminal
/// cannot be taken back.
fn ask() -> oneshot::Receiver<Choice> {
    let (answered, answer) = oneshot::channel();
    eprint!("\nCancel the job [c], leave it running [l], go on watching [Enter]? ");
    // If the terminal is gone there is nobody to read it.
    let _ = std::io::stderr().flush();
    std::thread::spawn(move || {
        let mut line = String::new();
        let choice = match std::io::stdin().lock().read_line(&mut line) {
            Ok(length) if length > 0 => choice(&line),
            // End of input: nobody is there any more.
            _ => Choice::Leave,
        };
        // The receiver is gone when the job ended meanwhile.
        let _ = answered.send(choice);
    });
    answer
}

/// The answer to a question that was put; never ready when there was none.
async fn answer(question: &mut Option<oneshot::Receiver<Choice>>) -> Choice {
    match question {
        Some(receiver) => receiver.await.unwrap_or(Choice::GoOn),
        None => std::future::pending().await,
    }
}

/// What a line that was typed means; anything unclear changes nothing.
fn choice(line: &str) -> Choice {
    match line.trim().to_lowercase().as_str() {
        "c" | "cancel" => Choice::Cancel,
        "l" | "leave" => Choice::Leave,
        _ => Choice::GoOn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unclear_answers_change_nothing() {
        let cases = [
            ("c\n", Choice::Cancel),
            (" Cancel ", Choice::Cancel),
            ("l\n", Choice::Leave),
            ("\n", Choice::GoOn),
            ("yes\n", Choice::GoOn),
        ];
        for (line, expected) in cases {
            assert_eq!(choice(line), expected, "{line:?}");
        }
    }
}
