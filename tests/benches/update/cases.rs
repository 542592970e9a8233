//! What is measured of each set of images, and how it grows with the number of files.

use anyhow::{Context, Result};
use osteward_tests::bench::files::{SIZES, image_of};
use osteward_tests::bench::floor::Step;
use osteward_tests::bench::images::Set;
use osteward_tests::bench::report::{OSTEWARD, PEER, Run, floor_name};
use osteward_tests::bench::shelf::Shelf;
use osteward_tests::image::{Compression, Layout};
use osteward_tests::relay::Relay;

use crate::ours::{Ours, Task, compare};
use crate::theirs::{Floor, Theirs, new_layers};
use crate::{Bench, FLOORS, Trees, deltas, is_wanted};

/// Nothing of the image is there.
pub(crate) const COLD: &str = "cold";
/// The version before is there.
pub(crate) const UPGRADE: &str = "upgrade";
/// The version before is there, and 40 packages change.
pub(crate) const PACKAGES: &str = "upgrade of 40 packages";
/// What was pulled becomes the next boot.
pub(crate) const STAGING: &str = "staging";
/// The registry has nothing new.
pub(crate) const NOTHING: &str = "nothing new";
/// The next boot is to be the version before, which is there.
pub(crate) const BACK: &str = "going back";
/// The same, until it is staged; what follows is clean-up.
pub(crate) const STAGED: &str = "going back, until staged";
/// The daemon was killed when half of it was there.
pub(crate) const RESUMED: &str = "resumed after kill at half";

/// The floors that are measured of everything.
const FEW: [Step; 3] = [Step::Fetch, Step::Write, Step::WriteUnproven];

/// Checks in a round: one is too short for the kernel's clock.
const CHECKS: usize = 20;

/// The name of the images with so many files.
pub(crate) fn set_of_files(files: usize) -> String {
    format!("files-{files}")
}

/// Whether all is measured of it, or only what every set is there for.
fn is_reference(set: Set) -> bool {
    set.layers == 60 && set.compression == Compression::Gzip
}

/// One round with a set.
pub(crate) async fn set(bench: &mut Bench, set: Set, layout: &Layout, round: usize) -> Result<()> {
    if is_wanted("WHO", FLOORS) {
        floors(bench, set, layout)?;
    }
    if !set.is_chunked() && is_wanted("WHO", PEER) {
        let trees = peer(bench, set, layout, round)?;
        bench.trees.insert(set.layers, trees);
    }
    if !is_wanted("WHO", OSTEWARD) {
        return Ok(());
    }
    osteward(bench, set, layout).await?;
    deltas::upgrade(bench, set, layout).await?;
    if is_reference(set) {
        resume(bench, set, layout).await?;
    }
    Ok(())
}

/// Floors have nothing to compare with where parts of layers can be fetched: cold only, then. The one that
/// proves nothing has a place of its own, where the same is missing.
fn floors(bench: &mut Bench, set: Set, layout: &Layout) -> Result<()> {
    let name = set.name();
    let size = |layer: &str| layout.blob(layer).metadata().map_or(0, |meta| meta.len());
    let (floor, unproven) = (Floor::new()?, Floor::new()?);
    let place = |step| match step {
        Step::WriteUnproven => &unproven,
        _ => &floor,
    };
    let first = bench.shelf.offer(&name, layout, "a")?;
    let layers = new_layers(None, &first, size);
    let steps = if set.layers == 60 {
        &Step::ALL[..]
    } else {
        &FEW[..]
    };
    for step in steps {
        let run = place(*step).measure(bench, *step, &name, &layers)?;
        bench.note(&name, COLD, &floor_name(*step), run);
    }
    if !set.is_chunked() {
        let next = bench.shelf.offer(&name, layout, "b")?;
        let layers = new_layers(Some(&first), &next, size);
        for step in FEW {
            let run = place(step).measure(bench, step, &name, &layers)?;
            bench.note(&name, UPGRADE, &floor_name(step), run);
        }
    }
    bench.keep([floor, unproven]);
    Ok(())
}

/// Not where layers have tables of contents behind their tar: ostree-ext 0.15.3 stops to read at the
/// tar's end, and skopeo, which still writes, fails.
fn peer(bench: &mut Bench, set: Set, layout: &Layout, round: usize) -> Result<Trees> {
    let name = set.name();
    let reference = bench.reference(&name);
    let theirs = Theirs::new()?;
    let first = bench.shelf.offer(&name, layout, "a")?;
    let (run, first_tree) = theirs.import(bench, &reference)?;
    bench.note(&name, COLD, PEER, run);
    if round == 0 && is_reference(set) {
        let floor = Floor::new()?;
        let above_base = first.layers.get(1..).context("no layers")?;
        floor.measure(bench, Step::Write, &name, above_base)?;
        theirs.has_all(&floor.objects())?;
        bench.keep(floor);
    }
    let (run, _) = theirs.import(bench, &reference)?;
    bench.note(&name, NOTHING, PEER, run);
    let other = theirs.copy()?;
    bench.shelf.offer(&name, layout, "b")?;
    let (run, next_tree) = theirs.import(bench, &reference)?;
    bench.note(&name, UPGRADE, PEER, run);
    if set.versions().contains(&"c") {
        bench.shelf.offer(&name, layout, "c")?;
        let (run, _) = other.import(bench, &reference)?;
        bench.note(&name, PACKAGES, PEER, run);
    }
    bench.keep([theirs, other]);
    Ok([first_tree, next_tree])
}

async fn osteward(bench: &mut Bench, set: Set, layout: &Layout) -> Result<()> {
    let theirs = bench.trees.get(&set.layers).cloned();
    let name = set.name();
    bench.shelf.offer(&name, layout, "a")?;
    let mut ours = Ours::boot(&bench.reference(&name))?;
    let run = ours.measure(bench, Task::Download).await?;
    bench.note(&name, COLD, OSTEWARD, run);
    let run = ours.measure(bench, Task::Stage).await?;
    bench.note(&name, STAGING, OSTEWARD, run);
    let tree = ours.reboot()?;
    if let Some([first, _]) = &theirs {
        compare(&format!("{name} A"), &tree, first)?;
    }

    // The first check of a daemon learns things that others need not.
    ours.run(Task::Check).await?;
    let mut checks = Vec::new();
    for _ in 0..CHECKS {
        checks.push(ours.measure(bench, Task::Check).await?);
    }
    bench.note(&name, NOTHING, OSTEWARD, Run::mean(&checks));

    for (tag, case) in set.versions().iter().zip([COLD, UPGRADE, PACKAGES]).skip(1) {
        bench.shelf.offer(&name, layout, tag)?;
        let run = ours.measure(bench, Task::Download).await?;
        bench.note(&name, case, OSTEWARD, run);
    }
    bench.shelf.offer(&name, layout, "b")?;
    ours.run(Task::Upgrade).await?;
    if let Some([_, next]) = &theirs {
        compare(&format!("{name} B"), &ours.staged_tree()?, next)?;
    }
    if is_reference(set) {
        ours.reboot()?;
        bench.shelf.offer(&name, layout, "a")?;
        let (run, staged) = ours.measure_staging(bench).await?;
        bench.note(&name, BACK, OSTEWARD, run);
        bench.note(&name, STAGED, OSTEWARD, staged);
        ours.host.sandbox.fsck()?;
    }
    bench.keep(ours);
    Ok(())
}

/// The daemon is killed when half of the image has come through a relay, and starts again.
async fn resume(bench: &mut Bench, set: Set, layout: &Layout) -> Result<()> {
    let name = set.name();
    let image = bench.shelf.offer(&name, layout, "a")?;
    let relay = Relay::to_port(bench.shelf.registry.port())?;
    let mut ours = Ours::boot(&Shelf::reference(&relay.host(), &name))?;
    relay.allow(image.size / 2);
    ours.begin_download().await?;
    relay.wait_until_held()?;
    ours.host.kill_daemon()?;
    relay.resume();
    ours.host.start_daemon()?;
    let before = relay.carried();
    let mut run = ours.measure(bench, Task::Download).await?;
    run.wire = relay.carried() - before;
    bench.note(&name, RESUMED, OSTEWARD, run);
    bench.keep((ours, relay));
    Ok(())
}

/// The same update of images with more and more files.
pub(crate) async fn files(bench: &mut Bench, scale: f64) -> Result<()> {
    for size in SIZES {
        let files = (size as f64 * scale) as usize;
        let layout = image_of(&bench.images, files, bench.rounds)?;
        let name = set_of_files(size);
        let reference = bench.reference(&name);
        bench.shelf.offer(&name, &layout, "v0")?;
        let mut ours = Ours::boot(&reference)?;
        ours.run(Task::Upgrade).await?;
        ours.reboot()?;
        let theirs = Theirs::new()?;
        theirs.import(bench, &reference)?;
        for round in 1..=bench.rounds {
            bench.shelf.offer(&name, &layout, &format!("v{round}"))?;
            let run = ours.measure(bench, Task::Download).await?;
            bench.note(&name, UPGRADE, OSTEWARD, run);
            let (run, _) = theirs.import(bench, &reference)?;
            bench.note(&name, UPGRADE, PEER, run);
        }
    }
    Ok(())
}
