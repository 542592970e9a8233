//! Small pieces of text: sizes, times, digests, and text from outside made harmless.
//!
//! Owns how a quantity is written, so that the table, the progress line and the summary
//! agree. Invariant: nothing here reads the clock, the environment or the terminal.

use std::time::{Duration, SystemTime};

use indicatif::{HumanBytes, HumanDuration};

/// How the output may look; worked out once from options, environment and terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Colours and bold may be used.
    pub(crate) color: bool,
    /// The terminal can show more than ASCII.
    pub(crate) unicode: bool,
    /// Columns, where there is a terminal.
    pub(crate) width: Option<usize>,
}

/// Text from an image, a registry or the daemon without anything that could drive a
/// terminal: control and bidirectional formatting characters become U+FFFD.
pub(crate) fn plain(text: &str) -> String {
    let harmless = |c: char| if drives_terminal(c) { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

/// Whether a terminal may do something else than showing it, or show what follows in another order.
pub(crate) fn drives_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `1.20 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// `12 seconds`, `3 minutes`.
pub(crate) fn duration(seconds: u64) -> String {
    HumanDuration(Duration::from_secs(seconds)).to_string()
}

/// `5 minutes ago`, `just now`, or `in the future` where a clock is wrong.
pub(crate) fn age(then: u64, now: u64) -> String {
    match now.checked_sub(then) {
        None => "in the future".to_owned(),
        Some(0..=4) => "just now".to_owned(),
        Some(seconds) => format!("{} ago", duration(seconds)),
    }
}

/// `2026-11-22 01:53 UTC`; `None` when the time is not known (0) or cannot be a date.
pub(crate) fn date(seconds: u64) -> Option<String> {
    /// The last second of the year 9999, where the format ends.
    const LAST: u64 = 253_402_300_799;
    if seconds == 0 || seconds > LAST {
        return None;
    }
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    let stamp = humantime::format_rfc3339_seconds(time).to_string();
    Some(format!("{} {} UTC", stamp.get(..10)?, stamp.get(11..16)?))
}

/// `sha256:0123456789ab`: enough of a digest to recognise it.
pub(crate) fn short(digest: &str) -> String {
    let digest = plain(digest);
    match digest.split_once(':') {
        Some((algorithm, hex)) => {
            format!("{algorithm}:{}", hex.chars().take(12).collect::<String>())
        }
        None => digest.chars().take(12).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_made_harmless() {
        assert_eq!(
            plain("a\u{1b}[31mb\nc\u{9b}d\u{202e}e"),
            "a\u{fffd}[31mb\u{fffd}c\u{fffd}d\u{fffd}e"
        );
        assert_eq!(plain("größer ✓"), "größer ✓");
    }

    #[test]
    fn quantities() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_288_490_189), "1.20 GiB");
        assert_eq!(duration(1), "1 second");
        assert_eq!(duration(72), "72 seconds");
        assert_eq!(duration(3600 * 5), "5 hours");
    }

    #[test]
    fn ages() {
        assert_eq!(age(100, 90), "in the future");
        assert_eq!(age(100, 102), "just now");
        assert_eq!(age(100, 400), "5 minutes ago");
    }

    #[test]
    fn dates_never_panic() {
        assert_eq!(date(0), None);
        assert_eq!(date(u64::MAX), None);
        assert_eq!(date(253_402_300_800), None);
        assert_eq!(date(1_795_312_380).as_deref(), Some("2026-11-22 01:53 UTC"));
    }

    #[test]
    fn digests() {
        assert_eq!(short("sha256:0123456789abcdef"), "sha256:0123456789ab");
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
        assert_eq!(short(""), "");
    }
}
