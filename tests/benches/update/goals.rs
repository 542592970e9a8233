//! What should come out. A goal that is missed is shown as such; it fails nothing.

use anyhow::Result;
use osteward_tests::bench::files::SIZES;
use osteward_tests::bench::floor::Step;
use osteward_tests::bench::ideal::between;
use osteward_tests::bench::images::Set;
use osteward_tests::bench::report::{Goal, OSTEWARD, PEER, Run, floor_name};
use osteward_tests::image::Layout;

use crate::Bench;
use crate::cases::{BACK, COLD, NOTHING, RESUMED, STAGED, UPGRADE, set_of_files};
use crate::deltas::{BY_DELTA, at_worst};
use crate::lines::with_heads;

const GZIP: &str = "60-gzip";
const ZSTD: &str = "60-zstd";
const CHUNKED: &str = "1-chunked";

/// The default of `import.parallel_layers`.
const CONNECTIONS: f64 = 3.0;

const MIB: f64 = 1_048_576.0;

fn wall(run: &Run) -> f64 {
    run.wall
}

fn cpu(run: &Run) -> f64 {
    run.cpu
}

fn peak_of(run: &Run) -> f64 {
    run.peak as f64
}

fn wire(run: &Run) -> f64 {
    run.wire as f64
}

/// Judges what was measured, in the report.
pub(crate) fn judge(bench: &mut Bench, sets: &[(Set, Layout)]) -> Result<()> {
    let floor = floor_name(Step::Write);
    let report = &bench.report;
    let ours = |set: &str, case: &str, of: fn(&Run) -> f64| report.median(set, case, OSTEWARD, of);
    let of_floor = |set: &str, case: &str| report.ratio(set, case, [OSTEWARD, &floor], cpu);
    let theirs =
        |set: &str, case: &str, of: fn(&Run) -> f64| report.ratio(set, case, [PEER, OSTEWARD], of);
    let mut goals = Vec::new();
    for set in [GZIP, ZSTD] {
        goals.push(Goal::at_most(
            &format!("{set}, cold: CPU as a multiple of the floor's"),
            1.25,
            of_floor(set, COLD),
        ));
        goals.push(Goal::at_least(
            &format!("{set}, cold: times less CPU than ostree-ext"),
            3.0,
            theirs(set, COLD, cpu),
        ));
        goals.push(Goal::at_least(
            &format!("{set}, cold: times less wall time"),
            5.0,
            theirs(set, COLD, wall),
        ));
    }
    goals.push(Goal::at_most(
        "60-gzip, upgrade: CPU as a multiple of the floor's",
        1.35,
        of_floor(GZIP, UPGRADE),
    ));
    goals.push(Goal::at_least(
        "60-gzip, upgrade: times less CPU than ostree-ext",
        5.0,
        theirs(GZIP, UPGRADE, cpu),
    ));
    goals.push(Goal::at_least(
        "60-gzip, upgrade: times less wall time",
        6.5,
        theirs(GZIP, UPGRADE, wall),
    ));
    for set in [GZIP, ZSTD] {
        let ratio = theirs(set, UPGRADE, wire);
        goals.push(Goal::at_least(
            &format!("{set}, upgrade: ostree-ext's bytes as a multiple of ours"),
            1.0,
            ratio,
        ));
    }
    let layout = sets
        .iter()
        .find(|(set, _)| set.name() == CHUNKED)
        .map(|(_, layout)| layout);
    let ideal = layout.map_or(Ok(None), |layout| between(layout, "a", "b"))?;
    let bytes = ours(CHUNKED, UPGRADE, wire);
    let ratio = ideal.and_then(|ideal| Some(bytes? / ideal.contents as f64));
    goals.push(Goal::at_most(
        "1-chunked, upgrade: all bytes as a multiple of the new contents",
        1.08,
        ratio,
    ));
    let ratio = ideal.map(|ideal| ideal.overhead as f64 / ideal.contents as f64);
    goals.push(Goal::told(
        "… of which table of contents and tar-split",
        ratio,
    ));
    // The peer takes the same update out of one gzip layer: it cannot import the other.
    let theirs = report.median("1-gzip", UPGRADE, PEER, wire);
    let ratio = theirs.and_then(|theirs| Some(bytes? / theirs));
    goals.push(Goal::at_most(
        "1-chunked, upgrade: share of ostree-ext's bytes with 1-gzip",
        0.3,
        ratio,
    ));
    goals.push(Goal::at_most(
        "1-chunked, upgrade: CPU seconds, strict",
        5.0,
        ours(CHUNKED, UPGRADE, cpu),
    ));
    let ratio = ours(CHUNKED, BY_DELTA, wire).and_then(|delta| Some(delta / bytes?));
    goals.push(Goal::at_most(
        "1-chunked, upgrade by a delta: share of the bytes by parts",
        0.45,
        ratio,
    ));
    let worst = layout.map(|layout| at_worst(&bench.images, CHUNKED, layout));
    let ratio = worst.transpose()?.zip(bytes);
    goals.push(Goal::told(
        "… if changed files had nothing in common with their older versions",
        ratio.map(|(worst, bytes)| worst as f64 / bytes),
    ));
    goals.push(Goal::at_most(
        "nothing new: requests",
        1.0,
        ours(GZIP, NOTHING, |run| run.requests as f64),
    ));
    goals.push(Goal::at_most(
        "nothing new: bytes, heads counted",
        4096.0,
        ours(GZIP, &with_heads(), wire),
    ));
    goals.push(Goal::at_most(
        "nothing new: CPU seconds",
        0.05,
        ours(GZIP, NOTHING, cpu),
    ));
    // A manifest is asked for in any case; blobs are bigger than all manifests here.
    goals.push(Goal::at_most(
        "going back: KB from the registry, manifests included",
        64.0,
        ours(GZIP, BACK, wire).map(|bytes| bytes / 1000.0),
    ));
    goals.push(Goal::at_most(
        "going back: seconds until it is staged",
        1.0,
        ours(GZIP, STAGED, wall),
    ));
    let size = sets
        .iter()
        .find(|(set, _)| set.name() == GZIP)
        .map(|(_, layout)| layout.find("a"));
    let half = size
        .transpose()?
        .map(|image| (image.size - image.size / 2) as f64);
    let again = half.and_then(|half| Some((ours(GZIP, RESUMED, wire)? - half) / MIB / CONNECTIONS));
    goals.push(Goal::at_most(
        "kill at half: MiB fetched again, for each connection",
        16.0,
        again,
    ));
    let (least, most) = (SIZES[0], SIZES[SIZES.len() - 1]);
    let [least, most] = [least, most].map(|files| ours(&set_of_files(files), UPGRADE, wall));
    let growth = least.and_then(|least| Some(most? / least));
    goals.push(Goal::at_most(
        "upgrade of an image with 16 times the files: times the wall time",
        2.0,
        growth,
    ));
    for (big, small) in [("1-gzip", GZIP), (CHUNKED, "60-chunked")] {
        let [big_peak, small_peak] = [big, small].map(|set| ours(set, COLD, peak_of));
        goals.push(Goal::at_most(
            &format!("{big}, cold: times the peak memory of {small}"),
            1.25,
            big_peak.and_then(|peak| Some(peak / small_peak?)),
        ));
    }
    let peaks = report
        .rows
        .iter()
        .filter(|row| row.who == OSTEWARD)
        .flat_map(|row| &row.runs);
    let peak = peaks.map(|run| run.peak as f64 / MIB).reduce(f64::max);
    goals.push(Goal::at_most(
        "peak memory of the daemon, in MiB, in all of it",
        256.0,
        peak,
    ));
    goals.extend(UNMEASURED.map(|(text, limit)| Goal::at_most(text, limit, None)));
    bench.report.goals = goals;
    Ok(())
}

/// What no case here measures.
const UNMEASURED: [(&str, f64); 4] = [
    (
        "1-chunked, upgrade: CPU seconds without the proof of the whole tar",
        3.5,
    ),
    (
        "1-chunked, upgrade: seconds from the table of contents to the plan",
        0.3,
    ),
    ("50,000 files: seconds to compose the tree", 0.5),
    ("power cut at half: MB fetched again", 256.0),
];
