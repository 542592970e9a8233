//! An upgrade whose layer is made by a delta beside the image.

use std::path::Path;

use anyhow::Result;
use osteward_tests::bench::delta::between;
use osteward_tests::bench::images::Set;
use osteward_tests::bench::report::OSTEWARD;
use osteward_tests::image::Layout;
use osteward_tests::image::delta::Copies;

use crate::Bench;
use crate::ours::{Ours, Task, compare};

/// The version before is booted, and a delta from it is beside the new one.
pub(crate) const BY_DELTA: &str = "upgrade by a delta";

/// The version before and the new one.
const VERSIONS: [&str; 2] = ["a", "b"];

/// Bytes of the delta, if nothing that is in changed files were in their older versions.
pub(crate) fn at_worst(images: &Path, set: &str, layout: &Layout) -> Result<u64> {
    Ok(between(images, set, layout, VERSIONS, Copies::Files)?
        .1
        .size)
}

/// Whether that is measured of it: one big layer is the most that a delta has to make.
fn is_measured(set: Set) -> bool {
    set.layers == 1 && set.is_chunked()
}

/// One round with a set. A delta that is not taken is no failure: the bytes show it.
pub(crate) async fn upgrade(bench: &mut Bench, set: Set, layout: &Layout) -> Result<()> {
    if !is_measured(set) {
        return Ok(());
    }
    let (made, delta) = between(&bench.images, &set.name(), layout, VERSIONS, Copies::Blocks)?;
    // Images of a name of their own: nobody else finds the delta.
    let name = format!("{}-delta", set.name());
    bench.shelf.offer(&name, layout, "a")?;
    let mut ours = Ours::boot(&bench.reference(&name))?;
    ours.run(Task::Upgrade).await?;
    ours.reboot()?;
    bench.shelf.offer(&name, layout, "b")?;
    bench.shelf.offer_delta(&name, &made, &delta)?;
    let run = ours.measure(bench, Task::Download).await?;
    bench.note(&set.name(), BY_DELTA, OSTEWARD, run);
    ours.run(Task::Stage).await?;
    if let Some([_, next]) = bench.trees.get(&set.layers) {
        compare(&format!("{name} B"), &ours.staged_tree()?, next)?;
    }
    ours.host.sandbox.fsck()?;
    bench.keep(ours);
    Ok(())
}
