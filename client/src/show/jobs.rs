//! The table of `jobs`, and a job in a line.

use std::fmt::Write as _;

use osteward_dbus::types::JobInfo;
use zbus::OwnedObjectPath;

use super::table;
use crate::follow::is_end;
use crate::progress::{numbers, phase};
use crate::text::{Look, age, duration, plain};

/// `jobs` for people: a table, the oldest first.
pub(crate) fn jobs(jobs: &[(OwnedObjectPath, JobInfo)], now: u64, look: Look) -> String {
    if jobs.is_empty() {
        return "No jobs.\n".to_owned();
    }
    let mut rows = vec![["JOB", "KIND", "STATE", "STARTED", "BY", "DETAILS"].map(str::to_owned)];
    for (path, job) in jobs {
        rows.push([
            number(path).to_owned(),
            plain(&job.kind),
            plain(&job.state),
            age(job.created_at / 1_000_000, now),
            starter(job),
            details(job),
        ]);
    }
    table(&rows, look)
}

/// What a job does and how far it is, in one line.
pub(super) fn job_in_words(job: &JobInfo) -> String {
    let mut words = plain(&job.kind);
    let phase = phase(job);
    if phase != job.kind {
        let _ = write!(words, ", {phase}");
    }
    if job.fraction >= 0.0 {
        let _ = write!(words, " {:.0} %", job.fraction * 100.0);
    }
    let numbers = numbers(job);
    if !numbers.is_empty() {
        let _ = write!(words, ": {numbers}");
    }
    words
}

fn details(job: &JobInfo) -> String {
    if !is_end(&job.state) {
        let words = job_in_words(job);
        return words
            .strip_prefix(&job.kind)
            .map_or(words.as_str(), |rest| rest.trim_start_matches(", "))
            .to_owned();
    }
    if !job.error.0.is_empty() {
        return plain(&job.error.1);
    }
    let took = job.finished_at.saturating_sub(job.created_at) / 1_000_000;
    format!("took {}", duration(took))
}

fn starter(job: &JobInfo) -> String {
    match job.started_by_label.as_str() {
        "" => format!("uid {}", job.started_by_uid),
        label => format!("{} (uid {})", plain(label), job.started_by_uid),
    }
}

/// The part of a job's path that a person types; for display, programs use the path.
fn number(path: &OwnedObjectPath) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{self, NOW};

    #[test]
    fn jobs_are_a_table() {
        let failed = JobInfo {
            error: (
                "org.osteward1.Error.NoSpace".into(),
                "need 3 GiB in /sysroot".into(),
            ),
            started_by_label: String::new(),
            started_by_uid: 0,
            ..sample::job("switch", "failed")
        };
        let done = JobInfo {
            finished_at: (NOW - 18) * 1_000_000,
            ..sample::job("check", "succeeded")
        };
        let list = vec![
            (sample::path("/org/osteward1/job/6"), failed),
            (sample::path("/org/osteward1/job/10"), done),
            (sample::path("/org/osteward1/job/11"), sample::downloading()),
        ];
        let expected = "\
JOB  KIND     STATE      STARTED         BY                   DETAILS
6    switch   failed     60 seconds ago  uid 0                need 3 GiB in /sysroot
10   check    succeeded  60 seconds ago  osteward (uid 1000)  took 42 seconds
11   upgrade  running    60 seconds ago  osteward (uid 1000)  downloading 45 %: 512.00 MiB of 1...
";
        let look = Look {
            color: false,
            unicode: true,
            width: Some(98),
        };
        assert_eq!(jobs(&list, NOW, look), expected);
        assert_eq!(jobs(&[], NOW, look), "No jobs.\n");
    }
}
