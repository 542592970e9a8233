//! What a user at home feels: upgrades over slow lines, and the bytes of a check, heads and all.

use std::time::Duration;

use anyhow::Result;
use osteward_tests::bench::images::Set;
use osteward_tests::bench::report::{OSTEWARD, PEER};
use osteward_tests::bench::shelf::Shelf;
use osteward_tests::image::{Compression, Layout};
use osteward_tests::relay::Relay;

use crate::Bench;
use crate::cases::NOTHING;
use crate::ours::{Ours, Task};
use crate::theirs::Theirs;

/// Megabits a second.
const RATES: [u64; 2] = [100, 20];

/// The time to the registry and back.
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// Measured once for each rate, for the reference and for one big layer with parts.
pub(crate) async fn all(bench: &mut Bench, set: Set, layout: &Layout) -> Result<()> {
    let is_reference = set.layers == 60 && set.compression == Compression::Gzip;
    let is_one_with_parts = set.layers == 1 && set.is_chunked();
    if is_reference || is_one_with_parts {
        for rate in RATES {
            line(bench, set, layout, rate).await?;
        }
    }
    Ok(())
}

async fn line(bench: &mut Bench, set: Set, layout: &Layout, rate: u64) -> Result<()> {
    let name = set.name();
    let case = format!("upgrade at {rate} Mbit/s, {} ms", ROUND_TRIP.as_millis());
    let mut relay = Relay::to_port(bench.shelf.registry.port())?;
    let reference = Shelf::reference(&relay.host(), &name);
    bench.shelf.offer(&name, layout, "a")?;
    let mut ours = Ours::boot(&reference)?;
    ours.run(Task::Upgrade).await?;
    ours.reboot()?;
    ours.run(Task::Check).await?;
    let before = relay.carried();
    let mut run = ours.measure(bench, Task::Check).await?;
    run.wire = relay.carried() - before;
    bench.note(&name, &with_heads(), OSTEWARD, run);
    // The peer cannot import the others.
    let theirs = if set.is_chunked() {
        None
    } else {
        Some(Theirs::new()?)
    };
    if let Some(theirs) = &theirs {
        theirs.import(bench, &reference)?;
    }

    relay.delay(ROUND_TRIP);
    relay.pace(rate * 1_000_000 / 8);
    bench.shelf.offer(&name, layout, "b")?;
    let before = relay.carried();
    let mut run = ours.measure(bench, Task::Download).await?;
    run.wire = relay.carried() - before;
    bench.note(&name, &case, OSTEWARD, run);
    if let Some(theirs) = &theirs {
        let before = relay.carried();
        let (mut run, _) = theirs.import(bench, &reference)?;
        run.wire = relay.carried() - before;
        bench.note(&name, &case, PEER, run);
    }
    Ok(())
}

/// A check whose bytes were counted on the line.
pub(crate) fn with_heads() -> String {
    format!("{NOTHING}, heads counted")
}
