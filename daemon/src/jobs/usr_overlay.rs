//! `UsrOverlay`: a `/usr` that can be written to until the next boot.
//!
//! The overlay has to be seen by the whole host, so it cannot be mounted from the daemon's
//! sandbox: libostree's own program does it, in a unit outside. Invariant: the sysroot lock is
//! not held here, that program takes it.

use super::progress::Phase;
use super::{Fact, Job, Outcome};
use crate::error::Error;
use crate::image::here::{OSTREE, is_installed};
use crate::observe::systemd::Run;
use crate::sysroot::Snapshot;

pub(super) async fn run(job: &Job, read_only: bool) -> Result<Outcome, Error> {
    job.progress.enter(Phase::Staging, "looking at /usr");
    let before = unlocked(&job.sysroot.snapshot().await?)?;
    if before != "none" {
        job.progress.say("/usr has an overlay already");
        return Ok(outcome(false, before));
    }
    if !is_installed(OSTREE) {
        return Err(Error::NotSupported(format!(
            "{OSTREE} mounts the overlay and is not installed; install the package that has it"
        )));
    }
    job.progress.say("mounting the overlay");
    job.progress.point_of_no_return();
    job.check_cancelled()?;
    let options: &[&str] = if read_only { &["--transient"] } else { &[] };
    let command = [OSTREE, "admin", "unlock"].iter().chain(options);
    let run = Run {
        name: "usr-overlay",
        description: "Mounting an overlay over /usr".into(),
        command: command.map(|&word| word.to_owned()).collect(),
        environment: Vec::new(),
        output: None,
        in_host_mounts: true,
    };
    job.systemd
        .run(run)
        .await
        .map_err(|error| Error::NotSupported(format!("the overlay cannot be mounted: {error}")))?;
    let after = unlocked(&job.sysroot.snapshot().await?)?;
    Ok(outcome(true, after))
}

fn unlocked(snapshot: &Snapshot) -> Result<String, Error> {
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    Ok(booted.unlocked.clone())
}

fn outcome(changed: bool, unlocked: String) -> Outcome {
    Outcome {
        facts: vec![
            ("changed", Fact::Flag(changed)),
            ("unlocked", Fact::Text(unlocked)),
        ],
    }
}
