//! Showing a job while it runs.
//!
//! Owns the three forms of it: a bar that is redrawn in place on a terminal, a line now
//! and then in a pipe, JSON lines for programs. Invariants: the bar never stays behind on
//! the screen; progress goes to standard error, JSON to standard output; the text of a
//! line depends on the job's record alone.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use osteward_dbus::UNKNOWN;
use osteward_dbus::types::JobInfo;
use serde_json::{Map, Value, json};

use crate::output::outln;
use crate::text::{bytes, duration, plain};

/// Steps of the bar; finer than any terminal is wide.
const STEPS: u64 = 1000;
/// The bar moves its spinner this often, also when nothing is heard.
const TICK: Duration = Duration::from_millis(200);

/// Where the progress of a job is shown.
#[derive(Debug)]
pub(crate) enum Display {
    /// Redrawn in place on a terminal.
    Live(Live),
    /// A line now and then.
    Lines(Pace),
    /// JSON lines of what changed.
    Json,
    /// Not at all.
    Silent,
}

impl Display {
    /// A bar on standard error.
    pub(crate) fn live(color: bool) -> Self {
        Display::Live(Live {
            bar: None,
            color,
            remarks: Remarks::default(),
        })
    }

    /// Shows the job; `changed` is what the daemon said, by keys.
    pub(crate) fn update(&mut self, path: &str, info: &JobInfo, changed: Map<String, Value>) {
        match self {
            Display::Live(live) => live.update(info),
            Display::Lines(pace) => {
                if let Some(remark) = pace.remarks.heard(info) {
                    eprintln!("{remark}");
                }
                if pace.due(info, Instant::now()) {
                    eprintln!("{}", line(info));
                }
            }
            Display::Json => outln!("{}", crate::json::line(&progress_event(path, changed))),
            Display::Silent => {}
        }
    }

    /// Takes the bar off the screen; the next update brings it back.
    pub(crate) fn clear(&mut self) {
        if let Display::Live(live) = self {
            live.clear();
        }
    }
}

/// One JSON line of what changed.
fn progress_event(path: &str, changed: Map<String, Value>) -> Value {
    let mut event = changed;
    event.insert("event".into(), json!("progress"));
    event.insert("job".into(), json!(path));
    Value::Object(event)
}

/// The bar on the terminal: phase, bar and percentage, and the numbers below.
#[derive(Debug)]
pub(crate) struct Live {
    bar: Option<ProgressBar>,
    color: bool,
    remarks: Remarks,
}

impl Live {
    fn update(&mut self, info: &JobInfo) {
        let color = self.color;
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
            bar.set_style(style(info.fraction >= 0.0, color));
            bar.enable_steady_tick(TICK);
            bar
        });
        let known = info.fraction >= 0.0;
        if known != (bar.length() == Some(STEPS)) {
            bar.set_style(style(known, color));
            if known {
                bar.set_length(STEPS)
            } else {
                bar.unset_length()
            }
        }
        bar.set_position(steps(info.fraction));
        bar.set_prefix(phase(info));
        bar.set_message(numbers(info));
        if let Some(remark) = self.remarks.heard(info) {
            bar.println(remark);
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.clear();
    }
}

fn steps(fraction: f64) -> u64 {
    // A float to integer cast saturates, and NaN is 0.
    (fraction.clamp(0.0, 1.0) * STEPS as f64) as u64
}

/// Two lines; indicatif cuts both to the width of the terminal.
fn style(fraction_known: bool, color: bool) -> ProgressStyle {
    let (strong, filled) = if color { (".bold", ".cyan") } else { ("", "") };
    let template = if fraction_known {
        format!(
            "{{spinner}} {{prefix{w}{strong}}} [{{bar:30{filled}}}] {{percent:>3}} %\n  {{wide_msg}}",
            w = ":12"
        )
    } else {
        format!(
            "{{spinner}} {{prefix{w}{strong}}}\n  {{wide_msg}}",
            w = ":12"
        )
    };
    // A template that does not parse would be a bug that the tests find; a plain bar will do.
    ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("|/-\\ ")
}

/// The phase, or what there is before the first.
pub(crate) fn phase(info: &JobInfo) -> String {
    match (info.state.as_str(), info.phase.as_str()) {
        ("cancelling", _) => "cancelling".to_owned(),
        ("queued", _) if info.paused => "paused".to_owned(),
        ("queued", _) => "waiting".to_owned(),
        _ if info.paused => "pausing".to_owned(),
        (_, "") => plain(&info.kind),
        (_, phase) => plain(phase),
    }
}

/// Bytes, rate, time left and layers, as far as they mean something in this phase.
pub(crate) fn numbers(info: &JobInfo) -> String {
    if info.state == "queued" && !info.paused {
        // What it waits for.
        return plain(&info.message);
    }
    let mut parts = Vec::new();
    if info.bytes_total > 0 && info.bytes_total != UNKNOWN {
        parts.push(format!(
            "{} of {}",
            bytes(info.bytes_done),
            bytes(info.bytes_total)
        ));
    }
    if info.rate > 0 && info.bytes_done < info.bytes_total {
        parts.push(format!("{}/s", bytes(info.rate)));
        if info.eta != UNKNOWN {
            parts.push(format!("{} left", duration(info.eta)));
        }
    }
    if info.layers_total > 0 {
        parts.push(format!(
            "layer {} of {}",
            info.layers_done, info.layers_total
        ));
    }
    // Last, as a narrow terminal cuts the end.
    if info.bytes_cached > 0 {
        parts.push(format!("{} here already", bytes(info.bytes_cached)));
    }
    if parts.is_empty() {
        plain(&info.message)
    } else {
        parts.join(", ")
    }
}

/// One line for a pipe.
fn line(info: &JobInfo) -> String {
    let mut line = phase(info);
    if info.fraction >= 0.0 {
        line.push_str(&format!(" {:.0} %", info.fraction * 100.0));
    }
    let numbers = numbers(info);
    if !numbers.is_empty() {
        line.push_str(": ");
        line.push_str(&numbers);
    }
    line
}

/// What the daemon says in the middle of a phase that depends on the network: that it waits for a
/// registry, and that it goes on. The bar has no room for that.
#[derive(Debug, Default)]
struct Remarks {
    /// The phase and its last message.
    last: Option<(String, String)>,
}

impl Remarks {
    /// The message if it is a new one; the first of a phase only says what begins.
    fn heard(&mut self, info: &JobInfo) -> Option<String> {
        let now = (info.phase.clone(), info.message.clone());
        let before = self.last.replace(now);
        let (phase, message) = before?;
        let networked = ["resolving", "downloading"].contains(&info.phase.as_str());
        (networked && phase == info.phase && message != info.message)
            .then(|| plain(&info.message))
            .filter(|remark| !remark.is_empty())
    }
}

/// When a line is due: at each change of phase or state, and within one at most every
/// 5 seconds and only for another 10 % or after a minute.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<(String, f64, Instant)>,
    remarks: Remarks,
}

impl Pace {
    const GAP: Duration = Duration::from_secs(5);
    const SILENCE: Duration = Duration::from_secs(60);
    const STEP: f64 = 0.1;

    /// Whether to print a line now; notes that it was printed.
    pub(crate) fn due(&mut self, info: &JobInfo, now: Instant) -> bool {
        let phase = phase(info);
        let due = match &self.last {
            None => true,
            Some((last, _, _)) if *last != phase => true,
            Some((_, fraction, at)) => {
                let since = now.saturating_duration_since(*at);
                let moved = info.fraction - fraction >= Self::STEP;
                since >= Self::GAP && (moved || since >= Self::SILENCE)
            }
        };
        if due {
            self.last = Some((phase, info.fraction, now));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn templates_parse() {
        for known in [true, false] {
            for color in [true, false] {
                style(known, color);
            }
        }
        ProgressStyle::with_template(
            "{spinner} {prefix:12.bold} [{bar:30.cyan}] {percent:>3} %\n  {wide_msg}",
        )
        .unwrap();
    }

    #[test]
    fn a_registry_that_is_waited_for_is_told_once() {
        let mut info = sample::downloading();
        let mut remarks = Remarks::default();
        assert_eq!(remarks.heard(&info), None, "what the phase began with");
        info.message = "registry.test answers 503;\u{7} trying again in 4 s".into();
        let told = remarks.heard(&info);
        assert_eq!(told, Some(plain(&info.message)));
        info.bytes_done += 1;
        assert_eq!(remarks.heard(&info), None);
        info.phase = "merging".into();
        info.message = "composing the root tree".into();
        assert_eq!(remarks.heard(&info), None);
        info.message = "committing".into();
        assert_eq!(remarks.heard(&info), None, "not of the network");
    }

    #[test]
    fn numbers_of_a_download() {
        let info = sample::downloading();
        assert_eq!(
            numbers(&info),
            "512.00 MiB of 1.00 GiB, 12.00 MiB/s, 43 seconds left, layer 12 of 60, 256.00 MiB here already"
        );
        assert_eq!(
            line(&info),
            "downloading 45 %: 512.00 MiB of 1.00 GiB, 12.00 MiB/s, 43 seconds left, layer 12 of 60, \
             256.00 MiB here already"
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut info = sample::downloading();
        info.eta = UNKNOWN;
        info.bytes_cached = 0;
        assert_eq!(
            numbers(&info),
            "512.00 MiB of 1.00 GiB, 12.00 MiB/s, layer 12 of 60"
        );
        let info = JobInfo {
            message: "asking the registry".into(),
            ..sample::job("check", "running")
        };
        assert_eq!(numbers(&info), "asking the registry");
        assert_eq!(line(&info), "check: asking the registry");
    }

    #[test]
    fn fractions_become_steps() {
        for (fraction, expected) in [
            (-1.0, 0),
            (0.0, 0),
            (0.4567, 456),
            (1.0, 1000),
            (7.0, 1000),
            (f64::NAN, 0),
        ] {
            assert_eq!(steps(fraction), expected);
        }
    }

    #[test]
    fn lines_come_at_changes_of_phase_and_not_too_often() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        let mut info = sample::downloading();
        assert!(pace.due(&info, at(0)), "the first");
        info.fraction = 0.60;
        assert!(!pace.due(&info, at(3)), "too early");
        assert!(pace.due(&info, at(5)), "ten percent and five seconds");
        info.fraction = 0.61;
        assert!(!pace.due(&info, at(50)), "hardly moved");
        assert!(pace.due(&info, at(65)), "a minute of silence");
        info.phase = "importing".into();
        assert!(pace.due(&info, at(65)), "another phase");
        info.state = "cancelling".into();
        assert!(pace.due(&info, at(65)), "another state");
    }

    #[test]
    fn json_lines_name_the_job() {
        let mut changed = Map::new();
        changed.insert("phase".into(), json!("merging"));
        assert_eq!(
            progress_event("/org/osteward1/job/7", changed),
            json!({"event": "progress", "job": "/org/osteward1/job/7", "phase": "merging"})
        );
    }
}
