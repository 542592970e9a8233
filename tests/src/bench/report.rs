//! What was measured, as rows of runs; medians, ratios and goals out of them.
//!
//! Invariant: a goal that was not measured is neither reached nor missed.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::floor::Step;
use super::usage::Usage;
use crate::served::Served;

/// Who is measured, beside the floors.
pub const OSTEWARD: &str = "osteward";

/// The importer that bootc hosts have, with skopeo.
pub const PEER: &str = "ostree-ext";

/// The name of a floor in the rows.
pub fn floor_name(step: Step) -> String {
    format!("floor: {}", step.name())
}

/// One measurement. Times are in seconds, sizes in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Run {
    /// From the call to the answer.
    pub wall: f64,
    /// Processor time, children included.
    pub cpu: f64,
    /// The registry's processor time meanwhile.
    pub registry_cpu: f64,
    /// Memory resident at most.
    pub peak: u64,
    /// From the registry, without heads of answers; with them where a relay counted.
    pub wire: u64,
    /// Requests to the registry.
    pub requests: u64,
    /// Written to disk.
    pub written: u64,
}

impl Run {
    /// Puts together what several places counted.
    pub fn new(usage: Usage, served: Served, registry_cpu: Duration) -> Self {
        Self {
            wall: usage.wall.as_secs_f64(),
            cpu: usage.cpu.as_secs_f64(),
            registry_cpu: registry_cpu.as_secs_f64(),
            peak: usage.peak,
            wire: served.bytes,
            requests: served.requests,
            written: usage.written,
        }
    }

    /// The mean of several, for what is too short to be measured once; their highest peak.
    pub fn mean(runs: &[Self]) -> Self {
        let count = runs.len().max(1);
        let time = |of: fn(&Self) -> f64| runs.iter().map(of).sum::<f64>() / count as f64;
        // Rounded up: of what happens at all, nothing is hidden.
        let number = |of: fn(&Self) -> u64| runs.iter().map(of).sum::<u64>().div_ceil(count as u64);
        Self {
            wall: time(|run| run.wall),
            cpu: time(|run| run.cpu),
            registry_cpu: time(|run| run.registry_cpu),
            peak: runs.iter().map(|run| run.peak).max().unwrap_or_default(),
            wire: number(|run| run.wire),
            requests: number(|run| run.requests),
            written: number(|run| run.written),
        }
    }
}

/// All measurements of one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The images, `60-gzip` for example.
    pub set: String,
    /// What was done with them.
    pub case: String,
    /// By whom.
    pub who: String,
    /// In the order they were taken.
    pub runs: Vec<Run>,
}

impl Row {
    /// The middle, the least and the most of something, if there are runs.
    pub fn spread(&self, of: impl Fn(&Run) -> f64) -> Option<[f64; 3]> {
        let mut values: Vec<f64> = self.runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some([median, low, high])
    }

    fn median(&self, of: impl Fn(&Run) -> f64) -> Option<f64> {
        self.spread(of).map(|[median, ..]| median)
    }
}

/// Something that should be so.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    /// What.
    pub text: String,
    /// Its value should be at most, or at least, that.
    pub wanted: String,
    /// What it is; `None`: it was not measured.
    pub found: Option<f64>,
    /// Whether it is as wanted.
    pub reached: Option<bool>,
}

impl Goal {
    /// Something that should not be more than `limit`.
    pub fn at_most(text: &str, limit: f64, found: Option<f64>) -> Self {
        let (text, wanted) = (text.to_owned(), format!("≤ {limit}"));
        Self {
            text,
            wanted,
            found,
            reached: found.map(|found| found <= limit),
        }
    }

    /// Something that is good to know with the others.
    pub fn told(text: &str, found: Option<f64>) -> Self {
        Self {
            text: text.to_owned(),
            wanted: "–".to_owned(),
            found,
            reached: None,
        }
    }

    /// Something that should not be less than `limit`.
    pub fn at_least(text: &str, limit: f64, found: Option<f64>) -> Self {
        let (text, wanted) = (text.to_owned(), format!("≥ {limit}"));
        Self {
            text,
            wanted,
            found,
            reached: found.map(|found| found >= limit),
        }
    }
}

/// All that was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// In the order of their first runs.
    pub rows: Vec<Row>,
    /// In the order they were given.
    pub goals: Vec<Goal>,
}

impl Report {
    /// Takes a measurement down.
    pub fn note(&mut self, set: &str, case: &str, who: &str, run: Run) {
        let known = self
            .rows
            .iter_mut()
            .find(|row| row.set == set && row.case == case && row.who == who);
        match known {
            Some(row) => row.runs.push(run),
            None => self.rows.push(Row {
                set: set.to_owned(),
                case: case.to_owned(),
                who: who.to_owned(),
                runs: vec![run],
            }),
        }
    }

    /// The median of something in a row that is there.
    pub fn median(
        &self,
        set: &str,
        case: &str,
        who: &str,
        of: impl Fn(&Run) -> f64,
    ) -> Option<f64> {
        let mut rows = self.rows.iter();
        rows.find(|row| row.set == set && row.case == case && row.who == who)?
            .median(of)
    }

    /// How many times as much of something `who` takes as `other`.
    pub fn ratio(
        &self,
        set: &str,
        case: &str,
        who: [&str; 2],
        of: impl Fn(&Run) -> f64,
    ) -> Option<f64> {
        let [who, other] = who.map(|who| self.median(set, case, who, &of));
        let ratio = who? / other?;
        ratio.is_finite().then_some(ratio)
    }

    /// Sets of images and what was done with them, in order.
    pub fn cases(&self) -> Vec<(&str, &str)> {
        let mut cases: Vec<(&str, &str)> = Vec::new();
        for row in &self.rows {
            let case = (row.set.as_str(), row.case.as_str());
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }

    /// All as tables of Markdown.
    pub fn tables(&self) -> String {
        let mut text = String::from(
            "| images | what | who | wall s | CPU s | peak MB | wire MB | requests | written MB | \
             CPU ÷ floor | CPU ÷ floor without the tar's digest | CPU ÷ ours | wall ÷ ours |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        let (floor, unproven) = (floor_name(Step::Write), floor_name(Step::WriteUnproven));
        for (set, case) in self.cases() {
            for row in self
                .rows
                .iter()
                .filter(|row| row.set == set && row.case == case)
            {
                let mega = |of: fn(&Run) -> u64| {
                    row.median(|run| of(run) as f64 / 1e6)
                        .map_or_else(String::new, |mega| format!("{mega:.1}"))
                };
                let ratio = |to: &str, of: fn(&Run) -> f64| {
                    let ratio = self.ratio(set, case, [&row.who, to], of);
                    ratio
                        .filter(|_| row.who != to)
                        .map_or_else(String::new, |ratio| format!("{ratio:.2}"))
                };
                let (wall, cpu) = (|run: &Run| run.wall, |run: &Run| run.cpu);
                // Writing to a String cannot fail.
                let _written = writeln!(
                    text,
                    "| {set} | {case} | {} | {} | {} | {} | {} | {:.0} | {} | {} | {} | {} | {} |",
                    row.who,
                    with_range(row.spread(wall)),
                    with_range(row.spread(cpu)),
                    mega(|run| run.peak),
                    mega(|run| run.wire),
                    row.median(|run| run.requests as f64).unwrap_or_default(),
                    mega(|run| run.written),
                    ratio(&floor, cpu),
                    ratio(&unproven, cpu),
                    ratio(OSTEWARD, cpu),
                    ratio(OSTEWARD, wall),
                );
            }
        }
        text.push_str("\n| goal | wanted | found | |\n|---|---|---|---|\n");
        for goal in &self.goals {
            let found = goal
                .found
                .map_or_else(|| "–".into(), |found| format!("{found:.3}"));
            let verdict = match (goal.reached, goal.found) {
                (Some(true), _) => "reached",
                (Some(false), _) => "**not reached**",
                (None, Some(_)) => "",
                (None, None) => "not measured",
            };
            let _written = writeln!(
                text,
                "| {} | {} | {found} | {verdict} |",
                goal.text, goal.wanted
            );
        }
        text
    }
}

/// `median (least–most)`.
fn with_range(spread: Option<[f64; 3]>) -> String {
    spread.map_or_else(String::new, |[median, low, high]| {
        format!("{median:.2} ({low:.2}–{high:.2})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(wall: f64, cpu: f64) -> Run {
        Run {
            wall,
            cpu,
            ..Run::default()
        }
    }

    #[test]
    fn medians_and_ratios_are_of_the_same_case() {
        let mut report = Report::default();
        for wall in [4.0, 1.0, 2.0] {
            report.note("60-gzip", "cold", OSTEWARD, run(wall, 1.0));
        }
        report.note("60-gzip", "cold", PEER, run(10.0, 3.0));
        report.note("60-gzip", "upgrade", PEER, run(99.0, 99.0));
        assert_eq!(
            report.median("60-gzip", "cold", OSTEWARD, |run| run.wall),
            Some(2.0)
        );
        assert_eq!(report.rows[0].spread(|run| run.wall), Some([2.0, 1.0, 4.0]));
        let ratio = report.ratio("60-gzip", "cold", [PEER, OSTEWARD], |run| run.wall);
        assert_eq!(ratio, Some(5.0));
        assert_eq!(
            report.ratio("60-gzip", "upgrade", [PEER, OSTEWARD], |run| run.wall),
            None
        );
        assert!(
            report
                .tables()
                .contains("| 60-gzip | cold | ostree-ext | 10.00 (10.00–10.00) |")
        );
    }

    #[test]
    fn a_mean_hides_nothing() {
        let quiet = run(1.0, 0.0);
        let busy = Run {
            requests: 1,
            peak: 7,
            ..run(2.0, 1.0)
        };
        let mean = Run::mean(&[quiet, busy, quiet]);
        assert_eq!((mean.requests, mean.peak), (1, 7));
        assert!((mean.wall - 4.0 / 3.0).abs() < 1e-9, "{mean:?}");
    }

    #[test]
    fn a_goal_without_a_measurement_is_neither_reached_nor_missed() {
        assert_eq!(Goal::at_most("a", 1.0, Some(0.5)).reached, Some(true));
        assert_eq!(Goal::at_least("a", 1.0, Some(0.5)).reached, Some(false));
        let mut report = Report::default();
        report.goals.push(Goal::at_most("bytes", 1.0, None));
        report.goals.push(Goal::told("more bytes", Some(2.0)));
        assert!(
            report
                .tables()
                .contains("| bytes | ≤ 1 | – | not measured |\n| more bytes | – | 2.000 |  |")
        );
    }
}
