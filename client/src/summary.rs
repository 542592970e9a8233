//! What a finished job means, in a sentence or two.
//!
//! Owns the last lines of a verb for people. Pure: made from the job's record and the
//! status before and after it. Programs read the job's `result` instead.

mod simulation;

use osteward_dbus::types::{DeploymentInfo, Dict, JobInfo, Status};
use zbus::OwnedObjectPath;

use crate::show::{name, update_in_words};
use crate::text::bytes;

pub(crate) use simulation::exit as simulated_exit;

/// The lines for a job that succeeded. Without `after` only what the job itself says.
pub(crate) fn lines(
    job: &JobInfo,
    before: Option<&Status>,
    after: Option<&Status>,
    dry_run: bool,
) -> Vec<String> {
    let changed = flag(&job.result, "changed").unwrap_or(true);
    let stages = flag(&job.result, "staged").unwrap_or(true);
    let what = subject(job, after);
    let mut lines = match (job.kind.as_str(), changed) {
        ("check", _) => vec![checked(after)],
        ("download", true) => vec![format!("Downloaded {what}. `osteward upgrade` stages it.")],
        ("download", false) => vec![format!("Nothing to download: {what} is here already.")],
        ("upgrade", true) if !stages => {
            vec![format!(
                "Downloaded {what}. `osteward upgrade --from-cache` stages it."
            )]
        }
        ("switch", true) if !stages => {
            vec![format!(
                "Downloaded {what}. `osteward switch` with --from-cache stages it."
            )]
        }
        ("upgrade" | "switch" | "import", false) if locked(job) == Some(true) => {
            vec![format!(
                "Nothing to do: {what} is staged already, locked: {LOCKED}"
            )]
        }
        ("upgrade" | "switch" | "import", true) => {
            let mut lines = replaced(before, after).into_iter().collect::<Vec<_>>();
            lines.push(match locked(job) {
                Some(true) => format!("Staged {what}, locked: {LOCKED}"),
                _ => format!("Staged {what} for the next boot."),
            });
            lines
        }
        ("lock", true) => vec![format!("Locked {what}: {LOCKED}")],
        ("lock", false) => vec![format!("Nothing to do: {what} is locked already.")],
        ("unlock", true) => vec![format!("Unlocked {what}: the next boot gives it.")],
        ("pin", true) => vec![format!(
            "Pinned {what}: no update and no clean-up removes it."
        )],
        ("pin", false) => vec![format!("Nothing to do: {what} is pinned already.")],
        ("unpin", true) => vec![format!("Unpinned {what}: it may go with the next update.")],
        ("unpin", false) => vec![format!("Nothing to do: {what} is not pinned.")],
        ("remove", _) => vec![format!("Removed {what}. {}", freed(&job.result, false))],
        ("unlock", false) => vec![format!("Nothing to do: {what} is not locked.")],
        ("upgrade", false) => vec![format!(
            "Nothing to do: {what} is the newest image and here already."
        )],
        ("switch" | "import", false) => vec![format!(
            "Nothing to do: {what} is what the next boot gives already."
        )],
        ("rollback", true) => vec![format!("The next boot goes back to {what}.")],
        ("rollback", false) => vec![format!(
            "Nothing to do: the next boot goes back to {what} already."
        )],
        ("cancel-rollback", true) => vec![format!(
            "The rollback is taken back: the next boot gives {what}."
        )],
        ("cancel-rollback", false) => vec!["Nothing to do: no rollback is queued.".to_owned()],
        ("discard", _) => vec![freed(&job.result, dry_run)],
        ("apply", _) => vec!["The host reboots.".to_owned()],
        ("kargs", true) => {
            let lock = match locked(job) {
                Some(true) => format!(", locked: {LOCKED}"),
                _ => " for the next boot.".to_owned(),
            };
            vec![format!("Staged {what} with other kernel arguments{lock}")]
        }
        ("kargs", false) => {
            vec!["Nothing to do: the kernel arguments are like that already.".to_owned()]
        }
        ("simulate", _) => simulation::lines(&job.result, &what),
        ("usr-overlay", changed) => vec![overlay(&job.result, changed)],
        (kind, _) => vec![format!("{} is done.", crate::text::plain(kind))],
    };
    let stages = stages
        && ["upgrade", "switch", "import", "rollback", "unlock", "kargs"]
            .contains(&job.kind.as_str());
    if changed && stages {
        let reboots = job.phase == "rebooting";
        let next = if reboots {
            "The host reboots."
        } else {
            "`osteward apply` reboots into it now."
        };
        lines.push(next.to_owned());
    }
    lines
}

/// What became of `/usr`.
fn overlay(result: &Dict, changed: bool) -> String {
    let how = match text(result, "unlocked").as_deref() {
        Some("transient") => "has an overlay, mounted read-only",
        Some("hotfix") => "can be changed, and stays changed",
        _ => "can be changed until the next boot, which forgets it",
    };
    match changed {
        true => format!("/usr {how}."),
        false => format!("Nothing to do: /usr {how}."),
    }
}

/// What a lock means.
const LOCKED: &str =
    "reboots go on with what runs now until `osteward apply` or `osteward unlock`.";

/// Whether the job left what is staged locked; `None` if that was none of its business.
fn locked(job: &JobInfo) -> Option<bool> {
    flag(&job.result, "locked")
}

/// The deployment that waits for finalization.
pub(crate) fn staged(status: &Status) -> Option<&DeploymentInfo> {
    status
        .deployments
        .iter()
        .find(|deployment| deployment.staged)
}

/// The line that says which staged update had to go.
fn replaced(before: Option<&Status>, after: Option<&Status>) -> Option<String> {
    let old = staged(before?)?;
    let gone = after
        .and_then(staged)
        .is_none_or(|new| new.checksum != old.checksum);
    gone.then(|| {
        format!(
            "Replaced the update that was staged, {}.",
            name(&old.version, &old.digest)
        )
    })
}

/// What the job was about: by its result's deployment, else by its result's digest.
fn subject(job: &JobInfo, after: Option<&Status>) -> String {
    let digest = text(&job.result, "digest").unwrap_or_default();
    let path = job
        .result
        .get("deployment")
        .and_then(|value| OwnedObjectPath::try_from(value.try_clone().ok()?).ok());
    let deployment = after.and_then(|status| {
        let mut known = status.host.deployments.iter().zip(&status.deployments);
        known
            .find(|(at, info)| {
                path.as_ref() == Some(at) || (!digest.is_empty() && info.digest == digest)
            })
            .map(|(_, info)| (info.version.clone(), info.digest.clone()))
    });
    let update = || {
        let update = after?
            .update
            .as_ref()
            .filter(|update| update.digest == digest)?;
        Some((update.version.clone(), update.digest.clone()))
    };
    match deployment.or_else(update) {
        Some((version, digest)) => name(&version, &digest),
        None if digest.is_empty() && job.kind.contains("rollback") => {
            "the other deployment".to_owned()
        }
        None if digest.is_empty() => "what is booted".to_owned(),
        None => name("", &digest),
    }
}

fn checked(after: Option<&Status>) -> String {
    let update = after.and_then(|status| status.update.as_ref());
    match update.filter(|update| update.direction != "same") {
        Some(update) => {
            let words = update_in_words(update, false);
            match update.state.as_str() {
                "staged" => format!("Staged already: {words}. `osteward apply` reboots into it."),
                "quarantined" => format!("Known: {words}."),
                _ => format!("Update: {words}. `osteward upgrade` stages it."),
            }
        }
        None => "No update: the newest image is here.".to_owned(),
    }
}

fn freed(result: &Dict, dry_run: bool) -> String {
    let size = result
        .get("freed-bytes")
        .and_then(|value| u64::try_from(value).ok());
    let size = bytes(size.unwrap_or_default());
    if dry_run {
        format!("{size} would be freed.")
    } else {
        format!("{size} freed.")
    }
}

fn flag(result: &Dict, key: &str) -> Option<bool> {
    result.get(key).and_then(|value| bool::try_from(value).ok())
}

fn text(result: &Dict, key: &str) -> Option<String> {
    let text: &str = result.get(key).and_then(|value| value.try_into().ok())?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use zbus::OwnedVariant;

    use super::*;
    use crate::sample;

    fn done(kind: &str, changed: bool, digest: char) -> JobInfo {
        let mut job = sample::job(kind, "succeeded");
        job.result
            .insert("changed".into(), OwnedVariant::from(changed));
        let digest = format!("sha256:{}", digest.to_string().repeat(64));
        job.result.insert("digest".into(), sample::text(&digest));
        job
    }

    #[test]
    fn an_upgrade_says_what_is_staged_and_how_to_get_into_it() {
        let (before, after) = (sample::status("available"), sample::staged());
        assert_eq!(
            lines(
                &done("upgrade", true, 'c'),
                Some(&before),
                Some(&after),
                false
            ),
            [
                "Staged 43 (sha256:cccccccccccc) for the next boot.",
                "`osteward apply` reboots into it now."
            ]
        );
        assert_eq!(
            lines(
                &done("upgrade", false, 'a'),
                Some(&before),
                Some(&before),
                false
            ),
            ["Nothing to do: 42 (sha256:aaaaaaaaaaaa) is the newest image and here already."]
        );
    }

    #[test]
    fn a_staged_update_that_had_to_go_is_named() {
        let (mut before, after) = (sample::staged(), sample::staged());
        before.deployments[0] = sample::deployment("staged", "42.5", 'd');
        let text = lines(
            &done("upgrade", true, 'c'),
            Some(&before),
            Some(&after),
            false,
        );
        assert_eq!(
            text[0],
            "Replaced the update that was staged, 42.5 (sha256:dddddddddddd)."
        );
        let same = lines(
            &done("upgrade", true, 'c'),
            Some(&after),
            Some(&after),
            false,
        );
        assert!(!same[0].starts_with("Replaced"), "{same:?}");
    }

    #[test]
    fn a_rollback_finds_its_deployment_by_path() {
        let after = sample::status("rollback-queued");
        let mut job = sample::job("rollback", "succeeded");
        let path = after.host.rollback_deployment.clone();
        job.result.insert(
            "deployment".into(),
            zbus::Variant::from(path).try_into().unwrap(),
        );
        assert_eq!(
            lines(&job, None, Some(&after), false)[0],
            "The next boot goes back to 41 (sha256:bbbbbbbbbbbb)."
        );
    }

    #[test]
    fn kernel_arguments_and_overlays() {
        let (idle, staged) = (sample::status("idle"), sample::staged());
        let text = lines(&done("kargs", true, 'c'), Some(&idle), Some(&staged), false);
        assert_eq!(
            text,
            [
                "Staged 43 (sha256:cccccccccccc) with other kernel arguments for the next boot.",
                "`osteward apply` reboots into it now."
            ]
        );
        let mut job = sample::job("usr-overlay", "succeeded");
        job.result
            .insert("unlocked".into(), sample::text("development"));
        assert_eq!(
            lines(&job, None, None, false),
            ["/usr can be changed until the next boot, which forgets it."]
        );
    }

    #[test]
    fn check_and_discard() {
        let text = lines(
            &done("check", true, 'c'),
            None,
            Some(&sample::status("available")),
            false,
        );
        assert!(
            text[0].starts_with("Update: 43 (sha256:cccccccccccc), available"),
            "{text:?}"
        );
        let text = lines(
            &done("check", false, 'a'),
            None,
            Some(&sample::status("idle")),
            false,
        );
        assert_eq!(text, ["No update: the newest image is here."]);
        let mut job = sample::job("discard", "succeeded");
        job.result
            .insert("freed-bytes".into(), OwnedVariant::from(3_u64 << 20));
        assert_eq!(lines(&job, None, None, false), ["3.00 MiB freed."]);
        assert_eq!(lines(&job, None, None, true), ["3.00 MiB would be freed."]);
    }
}
