//! How to talk to whoever called.
//!
//! Owns the choice between text and JSON, a bar and lines, talk and silence. Made once from
//! options, terminal and environment; nothing else in the client looks at those.

use serde_json::Value;

use crate::json;
use crate::output::outln;
use crate::progress::{Display, Pace};
use crate::text::Look;

/// How to talk to the person or program that called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// JSON on standard output instead of text.
    pub(crate) json: bool,
    /// No progress and no notes.
    pub(crate) quiet: bool,
    /// Standard output is a terminal.
    pub(crate) stdout_terminal: bool,
    /// Standard error is a terminal.
    pub(crate) stderr_terminal: bool,
    /// Somebody can answer a question.
    pub(crate) attended: bool,
    /// How text on standard output may look.
    pub(crate) look: Look,
    /// Colours on standard error.
    pub(crate) stderr_color: bool,
}

impl Manner {
    /// Where the progress of a job goes.
    pub(crate) fn display(&self) -> Display {
        match self {
            Manner {
                json: true,
                quiet: false,
                ..
            } => Display::Json,
            Manner { json: true, .. } | Manner { quiet: true, .. } => Display::Silent,
            Manner {
                stderr_terminal: true,
                ..
            } => Display::live(self.stderr_color),
            _ => Display::Lines(Pace::default()),
        }
    }

    /// A document: indented for people, one line for programs.
    pub(crate) fn print_json(&self, document: &Value) {
        let text = if self.stdout_terminal {
            format!("{document:#}")
        } else {
            document.to_string()
        };
        outln!("{}", json::harmless(&text));
    }

    /// Something that is good to know, on standard error.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            eprintln!("{text}");
        }
    }
}
