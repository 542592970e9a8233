//! The report as a drawing: how many times as much others take, and time over the number of files.

use std::fmt::Write as _;

use super::report::{OSTEWARD, PEER, Report, Run};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 230.0;
const RIGHT: f64 = 60.0;
const BAR: f64 = 14.0;
const CURVE_HEIGHT: f64 = 280.0;

/// A name, a colour, and the value to draw.
type Measure = (&'static str, &'static str, fn(&Run) -> f64);

/// What is drawn of a run.
const MEASURES: [Measure; 2] = [
    ("wall time", "#1f77b4", |run| run.wall),
    ("processor time", "#ff7f0e", |run| run.cpu),
];

/// Who has a curve, with its colour.
const CURVES: [(&str, &str); 2] = [(OSTEWARD, "#2ca02c"), (PEER, "#d62728")];

/// Draws both; `sizes` are numbers of files, each with the set of images that has as many.
pub fn draw(report: &Report, case: &str, sizes: &[(usize, String)]) -> String {
    let mut body = String::new();
    let bottom = bars(report, &mut body, sizes);
    let height = curves(report, case, sizes, &mut body, bottom + 50.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    // Writing to a String cannot fail, here and below.
    let _written = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

fn line(body: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _written = writeln!(
        body,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn rectangle(body: &mut String, x: f64, y: f64, width: f64, colour: &str) {
    let height = BAR - 2.0;
    let _written = writeln!(
        body,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}

/// Draws a pair of bars for each case that both have done; returns where they end.
fn bars(report: &Report, body: &mut String, without: &[(usize, String)]) -> f64 {
    let ratios: Vec<(String, [Option<f64>; 2])> = report
        .cases()
        .into_iter()
        .filter(|(set, _)| without.iter().all(|(_, curve)| curve != set))
        .map(|(set, case)| {
            let ratio = |of| report.ratio(set, case, [PEER, OSTEWARD], of);
            (
                format!("{set}, {case}"),
                MEASURES.map(|(_, _, of)| ratio(of)),
            )
        })
        .filter(|(_, ratios)| ratios.iter().any(Option::is_some))
        .collect();
    text(
        body,
        10.0,
        24.0,
        "start",
        "ostree-ext and skopeo, as a multiple of osteward",
    );
    let mut x = LEFT + 200.0;
    for (name, colour, _) in MEASURES {
        rectangle(body, x, 14.0, BAR, colour);
        text(body, x + BAR + 4.0, 24.0, "start", name);
        x += 140.0;
    }
    let most = ratios
        .iter()
        .flat_map(|(_, ratios)| ratios.iter().flatten());
    let most = most.fold(1.0, |most: f64, ratio| most.max(*ratio));
    let scale = (WIDTH - LEFT - RIGHT) / most;
    let mut y = 44.0;
    let top = y;
    for (name, ratios) in ratios {
        text(body, LEFT - 8.0, y + BAR + 2.0, "end", &name);
        for (ratio, (_, colour, _)) in ratios.into_iter().zip(MEASURES) {
            if let Some(ratio) = ratio {
                rectangle(body, LEFT, y, ratio * scale, colour);
                text(
                    body,
                    LEFT + ratio * scale + 4.0,
                    y + BAR - 4.0,
                    "start",
                    &format!("{ratio:.1}"),
                );
            }
            y += BAR;
        }
        y += 8.0;
    }
    line(body, (LEFT + scale, top - 4.0), (LEFT + scale, y), "black");
    y
}

/// Draws seconds over the number of files; returns where it ends.
fn curves(
    report: &Report,
    case: &str,
    sizes: &[(usize, String)],
    body: &mut String,
    top: f64,
) -> f64 {
    let seconds = |set: &str, who| report.median(set, case, who, |run| run.wall);
    let all = sizes
        .iter()
        .flat_map(|(_, set)| CURVES.map(|(who, _)| seconds(set, who)));
    let most = all.flatten().fold(0.0, f64::max);
    let count = sizes.last().map_or(0, |(files, _)| *files) as f64;
    if most == 0.0 || count == 0.0 {
        return top;
    }
    text(
        body,
        10.0,
        top,
        "start",
        "Seconds for an update of 500 files, over the number of files of the image",
    );
    let (left, right) = (60.0, WIDTH - 130.0);
    let (high, low) = (top + 20.0, top + CURVE_HEIGHT);
    let place = |files: usize, seconds: f64| {
        (
            left + (right - left) * files as f64 / count,
            low - (low - high) * seconds / most,
        )
    };
    line(body, (left, low), (right, low), "black");
    line(body, (left, high), (left, low), "black");
    text(body, left - 6.0, high + 4.0, "end", &format!("{most:.1}"));
    text(body, left - 6.0, low + 4.0, "end", "0");
    for (files, _) in sizes {
        let (x, _) = place(*files, 0.0);
        text(body, x, low + 18.0, "middle", &files.to_string());
    }
    for (who, colour) in CURVES {
        let known = sizes
            .iter()
            .filter_map(|(files, set)| Some(place(*files, seconds(set, who)?)));
        let points: Vec<(f64, f64)> = known.collect();
        for ends in points.windows(2) {
            line(body, ends[0], ends[1], colour);
        }
        for (x, y) in &points {
            let _written = writeln!(
                body,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
        if let Some((x, y)) = points.last() {
            text(body, x + 8.0, y + 4.0, "start", who);
        }
    }
    low + 40.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_has_the_ratios_and_a_point_for_each_size() {
        let mut report = Report::default();
        let run = |wall| Run {
            wall,
            cpu: 1.0,
            ..Run::default()
        };
        report.note("60-gzip", "cold", OSTEWARD, run(2.0));
        report.note("60-gzip", "cold", PEER, run(9.0));
        let sizes = [(10, "files-10".to_owned()), (20, "files-20".to_owned())];
        for (_, set) in &sizes {
            report.note(set, "upgrade", OSTEWARD, run(1.0));
        }
        let drawing = draw(&report, "upgrade", &sizes);
        assert!(drawing.contains(">60-gzip, cold<") && drawing.contains(">4.5<"));
        assert!(!drawing.contains("files-10, upgrade"));
        assert_eq!(drawing.matches("<circle").count(), 2);
        assert!(drawing.ends_with("</svg>\n"));
    }
}
