//! The tables of `history` and `inhibit --list`.

use osteward_dbus::types::{HistoryEntry, InhibitorInfo};

use super::table;
use crate::text::{Look, age, date, duration, plain, short};

/// `history` for people: a table, in the order of the entries.
pub(crate) fn history(entries: &[HistoryEntry], look: Look) -> String {
    if entries.is_empty() {
        return "Nothing was done yet.\n".to_owned();
    }
    let mut rows = vec![["WHEN", "KIND", "STATE", "NEXT BOOT", "BY", "DETAILS"].map(str::to_owned)];
    for entry in entries {
        rows.push([
            date(entry.created_at / 1_000_000).unwrap_or_default(),
            plain(&entry.kind),
            plain(&entry.state),
            next_boot(entry, look),
            starter(entry),
            details(entry),
        ]);
    }
    table(&rows, look)
}

/// Who inhibits what, for people.
pub(crate) fn inhibitors(list: &[InhibitorInfo], now: u64, look: Look) -> String {
    if list.is_empty() {
        return "No inhibitors.\n".to_owned();
    }
    let mut rows = vec![["WHAT", "WHO", "USER", "SINCE", "WHY", ""].map(str::to_owned)];
    for one in list {
        rows.push([
            plain(&one.what),
            plain(&one.who),
            format!("uid {}", one.uid),
            age(one.since / 1_000_000, now),
            plain(&one.why),
            String::new(),
        ]);
    }
    table(&rows, look)
}

/// What the operation made of the next boot.
fn next_boot(entry: &HistoryEntry, look: Look) -> String {
    let name = |digest: &str| match digest {
        "" => "?".to_owned(),
        digest => short(digest),
    };
    if entry.state == "interrupted" {
        return "?".to_owned();
    }
    if entry.from_digest == entry.to_digest {
        return "unchanged".to_owned();
    }
    let arrow = if look.unicode { "→" } else { "->" };
    format!(
        "{} {arrow} {}",
        name(&entry.from_digest),
        name(&entry.to_digest)
    )
}

fn starter(entry: &HistoryEntry) -> String {
    match entry.started_by_label.as_str() {
        "" => format!("uid {}", entry.started_by_uid),
        label => format!("{} (uid {})", plain(label), entry.started_by_uid),
    }
}

fn details(entry: &HistoryEntry) -> String {
    let mut parts = Vec::new();
    if !entry.error_message.is_empty() {
        parts.push(plain(&entry.error_message));
    } else if !entry.changed {
        parts.push("nothing to do".to_owned());
    } else {
        if !entry.version.is_empty() {
            parts.push(plain(&entry.version));
        }
        let took = entry.finished_at.saturating_sub(entry.created_at) / 1_000_000;
        parts.push(format!("took {}", duration(took)));
    }
    if !entry.reason.is_empty() {
        parts.push(format!("reason: {}", plain(&entry.reason)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::NOW;

    const PLAIN: Look = Look {
        color: false,
        unicode: true,
        width: None,
    };

    fn entry(state: &str) -> HistoryEntry {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        HistoryEntry {
            job: 7,
            kind: "upgrade".into(),
            state: state.into(),
            image: "registry.example.org/os:stable".into(),
            digest: digest("b"),
            version: "42.1".into(),
            from_digest: digest("a"),
            to_digest: digest("b"),
            changed: true,
            started_by_uid: 0,
            started_by_label: "osteward".into(),
            reason: "nightly\u{1b}".into(),
            created_at: (NOW - 60) * 1_000_000,
            finished_at: (NOW - 18) * 1_000_000,
            error_name: String::new(),
            error_message: String::new(),
        }
    }

    #[test]
    fn history_is_a_table() {
        let nothing = HistoryEntry {
            to_digest: entry("").from_digest,
            changed: false,
            started_by_label: String::new(),
            reason: String::new(),
            ..entry("succeeded")
        };
        let failed = HistoryEntry {
            to_digest: entry("").from_digest,
            error_message: "no route".into(),
            reason: String::new(),
            ..entry("failed")
        };
        let interrupted = HistoryEntry {
            to_digest: String::new(),
            error_message: "the daemon ended".into(),
            reason: String::new(),
            ..entry("interrupted")
        };
        let text = history(&[entry("succeeded"), nothing, failed, interrupted], PLAIN);
        let expected = "\
WHEN                  KIND     STATE        NEXT BOOT                                  BY                DETAILS
2026-11-22 01:52 UTC  upgrade  succeeded    sha256:aaaaaaaaaaaa → sha256:bbbbbbbbbbbb  osteward (uid 0)  42.1, took 42 seconds, reason: nightly\u{fffd}
2026-11-22 01:52 UTC  upgrade  succeeded    unchanged                                  uid 0             nothing to do
2026-11-22 01:52 UTC  upgrade  failed       unchanged                                  osteward (uid 0)  no route
2026-11-22 01:52 UTC  upgrade  interrupted  ?                                          osteward (uid 0)  the daemon ended
";
        assert_eq!(text, expected);
        assert_eq!(history(&[], PLAIN), "Nothing was done yet.\n");
        let ascii = Look {
            unicode: false,
            ..PLAIN
        };
        let first = HistoryEntry {
            from_digest: String::new(),
            ..entry("succeeded")
        };
        assert!(history(&[first], ascii).contains(" ? -> sha256:bbbbbbbbbbbb "));
    }

    #[test]
    fn inhibitors_are_a_table() {
        let one = InhibitorInfo {
            what: "apply".into(),
            who: "backup".into(),
            why: "nightly".into(),
            uid: 1000,
            since: (NOW - 60) * 1_000_000,
        };
        let expected = "\
WHAT   WHO     USER      SINCE           WHY
apply  backup  uid 1000  60 seconds ago  nightly
";
        assert_eq!(inhibitors(&[one], NOW, PLAIN), expected);
        assert_eq!(inhibitors(&[], NOW, PLAIN), "No inhibitors.\n");
    }
}
