//! What a simulated upgrade comes to, in sentences.

use osteward_dbus::types::{Dict, JobInfo};
use zbus::OwnedVariant;

use super::{flag, text};
use crate::fail::Exit;
use crate::text::{bytes, plain};

/// The longest list of paths; `--json` has them all.
const PATHS: usize = 20;

/// What `simulate` ends with.
pub(crate) fn exit(job: &JobInfo) -> Exit {
    match strings(&job.result, "obstacles").is_empty() {
        true => Exit::Done,
        false => Exit::Blocked,
    }
}

/// The lines for a simulation of an upgrade to `what`.
pub(super) fn lines(result: &Dict, what: &str) -> Vec<String> {
    if flag(result, "changed") == Some(false) {
        return vec![format!("Nothing would change: {what} is what runs now.")];
    }
    let mut lines = vec![match flag(result, "staged") {
        Some(true) => format!("Staged: {what}."),
        _ => format!("Would be staged: {what}."),
    }];
    let number = |key: &str| number(result, key);
    if let Some(size @ 1..) = number("download-size") {
        lines.push(format!("To download: {}.", bytes(size)));
    }
    lines.extend(room(
        "Room in the repository",
        number("disk-need"),
        number("disk-have"),
    ));
    lines.extend(room(
        "Room in /boot",
        number("boot-need"),
        number("boot-have"),
    ));
    lines.extend(arguments(result));
    lines.extend(conflicts(result));
    lines.push(match text(result, "reboot").as_deref() {
        Some("soft-reboot") => {
            "Reboot: a soft one is enough (`osteward apply --soft-reboot`).".to_owned()
        }
        Some("reboot") => "Reboot: with the kernel.".to_owned(),
        _ => "Kernel, kernel arguments and /etc can be compared after `osteward download`."
            .to_owned(),
    });
    let obstacles = strings(result, "obstacles").into_iter();
    lines.extend(obstacles.map(|why| format!("It would not work: {}.", plain(&why))));
    lines
}

fn room(what: &str, need: Option<u64>, have: Option<u64>) -> Option<String> {
    let (need, have) = (need?, have?);
    (need > 0).then(|| format!("{what}: {} needed, {} there.", bytes(need), bytes(have)))
}

fn arguments(result: &Dict) -> Vec<String> {
    let line = |sign: &str, key: &str| {
        let arguments = strings(result, key).into_iter();
        arguments
            .map(|argument| format!("Kernel argument: {sign} {}", plain(&argument)))
            .collect::<Vec<_>>()
    };
    [
        line("-", "kernel-arguments-removed"),
        line("+", "kernel-arguments-added"),
    ]
    .concat()
}

fn conflicts(result: &Dict) -> Vec<String> {
    let all = result
        .get("etc-conflicts")
        .and_then(|value| Vec::<(String, String)>::try_from(value.try_clone().ok()?).ok())
        .unwrap_or_default();
    let told = all.iter().take(PATHS).map(|(outcome, path)| {
        let outcome = match outcome.as_str() {
            "kept" => "changed here and in the image; yours stays",
            "stays-removed" => "removed here and changed in the image; stays removed",
            "orphaned" => "changed here and gone from the image; yours stays",
            "blocked" => "a file on one side and a directory on the other",
            other => other,
        };
        format!("/etc/{}: {}", plain(path), plain(outcome))
    });
    let mut lines: Vec<String> = told.collect();
    let count = number(result, "etc-conflict-count").unwrap_or_default();
    if count > lines.len() as u64 {
        lines.push(format!("… and {} more in /etc", count - lines.len() as u64));
    }
    lines
}

fn number(result: &Dict, key: &str) -> Option<u64> {
    result.get(key).and_then(|value| u64::try_from(value).ok())
}

fn strings(result: &Dict, key: &str) -> Vec<String> {
    let strings = |value: &OwnedVariant| Vec::<String>::try_from(value.try_clone().ok()?).ok();
    result.get(key).and_then(strings).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use zbus::Variant;

    use super::*;
    use crate::sample;

    fn job(facts: &[(&str, Variant<'static>)]) -> JobInfo {
        let mut job = sample::job("simulate", "succeeded");
        for (key, value) in facts {
            let value = value.try_clone().unwrap().try_into().unwrap();
            job.result.insert((*key).to_owned(), value);
        }
        job
    }

    #[test]
    fn a_downloaded_update_is_told_in_full() {
        let blocked = "/etc/a is a file";
        let job = job(&[
            ("changed", true.into()),
            ("staged", false.into()),
            ("disk-need", 0_u64.into()),
            ("disk-have", 7_u64.into()),
            ("boot-need", (1_u64 << 20).into()),
            ("boot-have", (2_u64 << 20).into()),
            ("kernel-arguments-added", vec!["a=2".to_owned()].into()),
            ("kernel-arguments-removed", vec!["a=1".to_owned()].into()),
            (
                "etc-conflicts",
                vec![("kept".to_owned(), "motd".to_owned())].into(),
            ),
            ("etc-conflict-count", 3_u64.into()),
            ("reboot", "reboot".into()),
            ("obstacles", vec![blocked.to_owned()].into()),
        ]);
        assert_eq!(
            lines(&job.result, "43"),
            [
                "Would be staged: 43.",
                "Room in /boot: 1.00 MiB needed, 2.00 MiB there.",
                "Kernel argument: - a=1",
                "Kernel argument: + a=2",
                "/etc/motd: changed here and in the image; yours stays",
                "… and 2 more in /etc",
                "Reboot: with the kernel.",
                "It would not work: /etc/a is a file.",
            ]
        );
        assert_eq!(exit(&job), Exit::Blocked);
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let unknown = job(&[
            ("changed", true.into()),
            ("download-size", (5_u64 << 20).into()),
            ("reboot", "unknown".into()),
        ]);
        assert_eq!(
            lines(&unknown.result, "43"),
            [
                "Would be staged: 43.",
                "To download: 5.00 MiB.",
                "Kernel, kernel arguments and /etc can be compared after `osteward download`.",
            ]
        );
        assert_eq!(exit(&unknown), Exit::Done);
        let nothing = job(&[("changed", false.into())]);
        let told = lines(&nothing.result, "42");
        assert_eq!(told, ["Nothing would change: 42 is what runs now."]);
    }
}
