//! What `doctor` found, for people.
//!
//! Pure, like all of `show`; what comes from files or the daemon goes through [`plain`].

use std::fmt::Write as _;

use super::paint;
use crate::doctor::{Finding, Level};
use crate::text::{Look, plain};

/// One line a finding, and under those that are not well what to do next. With `quiet` only
/// those.
pub(crate) fn findings(findings: &[Finding], look: Look, quiet: bool) -> String {
    let shown = || {
        let all = findings.iter();
        all.filter(|finding| !quiet || finding.level != Level::Ok)
    };
    let width = shown().map(|finding| finding.id.len()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for finding in shown() {
        let word = paint(format!("{:<4}", finding.level.word()), look);
        let word = match finding.level {
            Level::Ok => word.green(),
            Level::Warn => word.yellow().bold(),
            Level::Fail => word.red().bold(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{word}  {:<width$}  {}",
            finding.id,
            plain(&finding.text)
        );
        if !finding.next.is_empty() {
            let indent = " ".repeat(4 + 2 + width);
            let _ = writeln!(text, "{indent}  -> {}", plain(&finding.next));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(id: &'static str, level: Level, next: &str) -> Finding {
        Finding {
            id,
            level,
            text: format!("{id} was looked\nat"),
            next: next.into(),
        }
    }

    #[test]
    fn what_is_wrong_says_what_to_do() {
        let all = [
            finding("clock", Level::Ok, ""),
            finding("boot-space", Level::Fail, "Remove it."),
        ];
        let plain = Look {
            color: false,
            unicode: true,
            width: None,
        };
        let expected = "ok    clock       clock was looked\u{fffd}at\n\
                        fail  boot-space  boot-space was looked\u{fffd}at\n\
                        \x20                 -> Remove it.\n";
        assert_eq!(findings(&all, plain, false), expected);
        assert_eq!(findings(&all[..1], plain, true), "");
        let color = Look {
            color: true,
            ..plain
        };
        assert!(findings(&all, color, true).contains("\u{1b}[31m"));
    }
}
