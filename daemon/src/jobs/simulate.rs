//! `Simulate`: what an upgrade would lead to, told without doing it.
//!
//! Invariants: nothing is written and no lock is taken, so it may run beside a job that writes (unless what is
//! tracked is on this host, and has to be unpacked to be read); nothing is fetched but the documents of the
//! image; what is not known before the image is here is left out, and never guessed.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::source::{self, Found};
use super::upgrade::{Decision, Pull, decide, is_quarantined, refuse_beside_rollback};
use super::{Fact, Facts, Job, Outcome, kargs, progress::Phase, room, soft_reboot};
use crate::error::Error;
use crate::etc::{self, Conflict, Directory, Sight};
use crate::image::Source;
use crate::image::layout::Image;
use crate::image::reference::{Digest, OriginReference};
use crate::import::{self, EtcDefaults, Room};
use crate::kargs::Arguments;
use crate::sysroot::{Deployment, Kernel, Snapshot};

/// More conflicts are counted, but not told one by one.
const MOST_CONFLICTS: usize = 1000;

/// What is looked at.
struct Subject {
    image: Arc<Image>,
    origin: OriginReference,
    is_staged: bool,
}

pub(super) async fn run(job: &Job, digest: Option<&Digest>) -> Result<Outcome, Error> {
    job.progress
        .enter(Phase::Resolving, "looking for what would come");
    let snapshot = job.sysroot.snapshot().await?;
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    let subject = subject(job, &snapshot, digest).await?;
    let mut facts = vec![
        ("digest", Fact::Text(subject.image.digest.to_string())),
        ("staged", Fact::Flag(subject.is_staged)),
    ];
    if let Some(version) = subject.image.version() {
        facts.push(("version", Fact::Text(version.to_owned())));
    }
    let is_booted = !subject.is_staged && booted.digest() == Some(&subject.image.digest);
    facts.push(("changed", Fact::Flag(!is_booted)));
    if is_booted {
        facts.push(("reboot", Fact::Text("none".into())));
        facts.push(("obstacles", Fact::Texts(Vec::new())));
        return Ok(Outcome { facts });
    }
    let mut obstacles = obstacles(job, &snapshot, &subject, digest).await?;
    let commit = repository(job, &subject, &mut facts, &mut obstacles).await?;
    let boot = match &commit {
        Some(commit) => job.sysroot.boot_room(Kernel::Of(commit.clone())).await?,
        None => room::of_image(job, &snapshot, &subject.image).await?,
    };
    facts.push(("boot-need", Fact::Number(boot.need)));
    facts.push(("boot-have", Fact::Number(boot.have)));
    obstacles.extend(boot.suffices().err().map(|error| error.to_string()));
    job.check_cancelled()?;
    match commit {
        Some(commit) => {
            job.progress.say("comparing it with this host");
            let told = (&mut facts, &mut obstacles);
            compare(job, &snapshot, &subject, commit, told).await?;
        }
        None => facts.push(("reboot", Fact::Text("unknown".into()))),
    }
    facts.push(("obstacles", Fact::Texts(obstacles)));
    Ok(Outcome { facts })
}

/// What is staged, else what was found before, else what the registry has.
async fn subject(
    job: &Job,
    snapshot: &Snapshot,
    digest: Option<&Digest>,
) -> Result<Subject, Error> {
    let is_meant = |image: &Image| digest.is_none_or(|digest| *digest == image.digest);
    if let Some(staged) = snapshot.staged()
        && let (Some(image), Some(origin)) = (&staged.image, &staged.origin)
        && is_meant(image)
    {
        return Ok(Subject {
            image: Arc::new(image.clone()),
            origin: origin.clone(),
            is_staged: true,
        });
    }
    let origin = source::tracked(snapshot)?;
    let found = job.found.borrow().clone();
    // A switch that was only downloaded is found too, and is no update of this host.
    let found = found.filter(|found| found.reference == origin.image);
    let mut known = found.map(|found| found.image);
    if known.is_none() {
        known = snapshot.cached_update.clone().map(Arc::new);
    }
    // What runs already is no offer: there may be a newer one by now.
    let booted = snapshot.booted().and_then(Deployment::digest);
    let is_offer = |image: &Image| digest.is_some() || Some(&image.digest) != booted;
    let mut known = known.filter(|image| is_meant(image) && is_offer(image));
    if known.is_none() && digest.is_some() {
        let reference = origin.image.canonical();
        let stored = job.sysroot.stored_image(reference, digest.cloned()).await?;
        known = stored.map(Arc::new);
    }
    let image = match known {
        Some(image) => image,
        None => source::resolve_image(job, snapshot, &origin, digest).await?,
    };
    Ok(Subject {
        image,
        origin,
        is_staged: false,
    })
}

/// Why an upgrade would be refused at once.
async fn obstacles(
    job: &Job,
    snapshot: &Snapshot,
    subject: &Subject,
    digest: Option<&Digest>,
) -> Result<Vec<String>, Error> {
    if subject.is_staged {
        return Ok(Vec::new());
    }
    let reference = subject.origin.image.canonical();
    let found = Found {
        image: subject.image.clone(),
        source: Source::open(&reference, &source::registry_config(job))?,
        origin: subject.origin.clone(),
        deltas: Arc::default(),
        looked: 0,
    };
    let pull = Pull {
        digest: digest.cloned(),
        replace_staged: true,
        ..Pull::default()
    };
    let decision = match refuse_beside_rollback(snapshot) {
        Ok(()) => decide(snapshot, &found, &pull, is_quarantined(job, &found)?),
        Err(error) => Err(error),
    };
    Ok(match decision {
        Ok(Decision::Pull | Decision::Nothing(_)) => Vec::new(),
        Err(error) => vec![error.to_string()],
    })
}

/// What would be written into the repository; the merge commit if the image is there already.
async fn repository(
    job: &Job,
    subject: &Subject,
    facts: &mut Facts,
    obstacles: &mut Vec<String>,
) -> Result<Option<String>, Error> {
    let (path, image) = (job.sysroot.repo_path(), subject.image.clone());
    let room = tokio::task::spawn_blocking(move || import::room(&path, &image)).await;
    let Room {
        need,
        have,
        download,
        is_whole,
    } = room.map_err(|error| Error::Internal(error.to_string()))??;
    facts.extend([
        ("download-size", Fact::Number(download)),
        ("disk-need", Fact::Number(need)),
        ("disk-have", Fact::Number(have)),
    ]);
    if need > have {
        obstacles.push(format!("the repository needs {need} bytes and has {have}"));
    }
    match is_whole {
        true => Ok(job
            .sysroot
            .merge_commit(subject.image.digest.clone())
            .await?),
        false => Ok(None),
    }
}

/// What is known only of an image that is here.
async fn compare(
    job: &Job,
    snapshot: &Snapshot,
    subject: &Subject,
    commit: String,
    (facts, obstacles): (&mut Facts, &mut Vec<String>),
) -> Result<(), Error> {
    let booted = snapshot.booted().ok_or(Error::NotBooted)?;
    let staged = snapshot.staged().filter(|_| subject.is_staged);
    let after = match staged {
        Some(staged) => Arguments::new(&staged.kernel_arguments),
        None => match kargs::for_image(job, snapshot, &commit).await {
            Ok(arguments) => arguments,
            Err(error) => {
                obstacles.push(error.to_string());
                Arguments::new(&booted.kernel_arguments)
            }
        },
    };
    let (added, removed) = Arguments::new(&booted.kernel_arguments).difference(&after);
    let same_arguments = added.is_empty() && removed.is_empty();
    facts.push(("kernel-arguments-added", Fact::Texts(added)));
    facts.push(("kernel-arguments-removed", Fact::Texts(removed)));
    let Conflicts { named, unnamed } = conflicts(job, booted, &commit).await?;
    let count = named.len() + unnamed.len();
    let is_blocked = |one: &&Conflict| one.outcome == etc::Outcome::Blocked;
    let places = named.iter().filter(is_blocked);
    let mut places: Vec<String> = places
        .map(|one| format!("/etc/{}", one.path.display()))
        .collect();
    if unnamed.iter().any(|one| is_blocked(&one)) {
        places.push("something in a directory of /etc that only its owner may list".into());
    }
    obstacles.extend(places.into_iter().map(|place| {
        format!(
            "{place} is a file on one side and a directory on the other, so the update could not \
             be finalized; move it away first"
        )
    }));
    facts.push(("etc-conflict-count", Fact::Number(count as u64)));
    facts.push(("etc-conflicts", Fact::Pairs(told(&named))));
    let reboot = match staged {
        Some(staged) => soft_reboot::obstacle(job, snapshot, staged).await.is_none(),
        None => {
            same_arguments
                && soft_reboot::obstacle_on_host(job, snapshot).await.is_none()
                && job.sysroot.has_booted_kernel(commit).await?
        }
    };
    let reboot = if reboot { "soft-reboot" } else { "reboot" };
    facts.push(("reboot", Fact::Text(reboot.into())));
    Ok(())
}

fn told(conflicts: &[Conflict]) -> Vec<(String, String)> {
    let told = conflicts.iter().take(MOST_CONFLICTS);
    told.map(|conflict| {
        let path = conflict.path.to_string_lossy().into_owned();
        (conflict.outcome.name().to_owned(), path)
    })
    .collect()
}

/// What the merge of /etc meets. Everybody can read what a job found, so what not everybody may
/// list is not named.
struct Conflicts {
    named: Vec<Conflict>,
    unnamed: Vec<Conflict>,
}

/// The /etc of what runs now is what libostree merges into that of the new deployment.
async fn conflicts(job: &Job, booted: &Deployment, commit: &str) -> Result<Conflicts, Error> {
    let (path, commit) = (job.sysroot.repo_path(), commit.to_owned());
    let (defaults, current): (PathBuf, PathBuf) = (
        booted.directory.join("usr/etc"),
        booted.directory.join("etc"),
    );
    let look = move || -> Result<Conflicts, Error> {
        let new = EtcDefaults::open(&path, &commit)?;
        let compare = || -> std::io::Result<Conflicts> {
            let public = etc::changes(&defaults, &current, Sight::Public)?;
            let public: HashSet<PathBuf> = public.into_iter().map(|change| change.path).collect();
            let changes = etc::changes(&defaults, &current, Sight::All)?;
            let (defaults, current) = (Directory(defaults), Directory(current));
            let conflicts = etc::conflicts(&changes, &defaults, &current, &new)?;
            let is_public = |one: &Conflict| public.contains(&one.path);
            let (named, unnamed) = conflicts.into_iter().partition(is_public);
            Ok(Conflicts { named, unnamed })
        };
        compare().map_err(|error| Error::Internal(format!("/etc cannot be compared: {error}")))
    };
    let found = tokio::task::spawn_blocking(look).await;
    found.map_err(|error| Error::Internal(error.to_string()))?
}
