//! One thing that was looked at, and how it is.

use serde_json::{Value, json};

use crate::fail::Failure;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Updates work, but something will be in the way or is not what most people want.
    Warn,
    /// Updates do not work as long as it is like this.
    Fail,
}

impl Level {
    /// The word in both outputs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What was looked at: a word for programs, which never changes its meaning.
    pub(crate) id: &'static str,
    /// How it is.
    pub(crate) level: Level,
    /// What was seen.
    pub(crate) text: String,
    /// What to do next; empty when all is well.
    pub(crate) next: String,
}

impl Finding {
    pub(super) fn ok(id: &'static str, text: impl Into<String>) -> Self {
        Self::new(id, Level::Ok, text, "")
    }

    pub(super) fn warn(id: &'static str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(id, Level::Warn, text, next)
    }

    pub(super) fn fail(id: &'static str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(id, Level::Fail, text, next)
    }

    /// A call that failed is a finding, with the hint that any verb gives.
    pub(super) fn of(id: &'static str, failure: &Failure) -> Self {
        let hint = failure.hint("doctor");
        let hint = hint.unwrap_or("`journalctl -u ostewardd` may tell more.");
        Self::fail(id, &failure.message, hint)
    }

    fn new(
        id: &'static str,
        level: Level,
        text: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            id,
            level,
            text: text.into(),
            next: next.into(),
        }
    }

    /// One entry of `findings` in JSON output.
    pub(crate) fn to_json(&self) -> Value {
        let next = Some(&self.next).filter(|next| !next.is_empty());
        json!({"id": self.id, "level": self.level.word(), "text": self.text, "next": next})
    }
}
