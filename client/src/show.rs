//! What `status` shows, and the looks that it shares with other verbs.
//!
//! Owns what a person sees of the `Status` document. Invariants: pure (the time and the
//! looks are passed in); everything that comes from an image or a registry goes through
//! [`plain`]; what is not known is left out rather than shown empty.

pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod history;
mod jobs;

use std::fmt::Write as _;

use console::{StyledObject, measure_text_width, style, truncate_str};
use osteward_dbus::types::{DeploymentInfo, Dict, HostInfo, Status, UpdateInfo};
use osteward_dbus::{NO_OBJECT, UNKNOWN};
use zbus::OwnedVariant;

use self::jobs::job_in_words;
pub(crate) use self::jobs::jobs;
use crate::fail::Exit;
use crate::follow::is_end;
use crate::text::{Look, age, bytes, date, plain, short};

/// `status` for people.
pub(crate) fn status(status: &Status, now: u64, look: Look, full: bool) -> String {
    let mut facts = Facts::new(look);
    host_facts(&mut facts, status, now, full);
    for (path, job) in status.jobs.iter().filter(|(_, job)| !is_end(&job.state)) {
        facts.add("Job", format!("{} ({path})", job_in_words(job)));
    }
    let mut text = facts.render("");
    if status.deployments.is_empty() {
        text.push_str("\nNo deployments: this host was not booted by ostree.\n");
        return text;
    }
    text.push_str("\nDeployments, in boot order:\n");
    for (index, deployment) in status.deployments.iter().enumerate() {
        let path = status.host.deployments.get(index);
        let next = path.is_some_and(|path| *path == status.host.default_deployment);
        text.push('\n');
        text.push_str(&deployment_block(deployment, next, now, look, full));
    }
    text
}

/// What `check` and `status --exit-code` end with.
pub(crate) fn exit_code(status: &Status) -> Exit {
    let newest = status.update.as_ref();
    match newest.map(|update| (update.state.as_str(), update.direction.as_str())) {
        Some(("staged", _)) => Exit::Staged,
        Some(("available" | "downloading" | "downloaded", direction)) if direction != "same" => {
            Exit::UpdateAvailable
        }
        Some(_) => Exit::Done,
        None if status.host.staged_deployment.as_str() != NO_OBJECT => Exit::Staged,
        None => Exit::Done,
    }
}

/// `43 (sha256:cccccccccccc)`: a version and what it stands for.
pub(crate) fn name(version: &str, digest: &str) -> String {
    match (version, digest) {
        ("", "") => "an image without a digest".to_owned(),
        ("", digest) => short(digest),
        (version, "") => plain(version),
        (version, digest) => format!("{} ({})", plain(version), short(digest)),
    }
}

/// The candidate in one line.
pub(crate) fn update_in_words(update: &UpdateInfo, full: bool) -> String {
    let mut words = if full {
        format!("{} ({})", plain(&update.version), plain(&update.digest))
    } else {
        name(&update.version, &update.digest)
    };
    let state = match update.state.as_str() {
        "quarantined" => "left behind by a rollback, not staged by itself",
        other => other,
    };
    let _ = write!(words, ", {}", plain(state));
    if update.direction == "downgrade" {
        words.push_str(", older than what is booted");
    }
    if update.state == "available" && update.download_size != UNKNOWN {
        let _ = write!(words, ", {} to download", bytes(update.download_size));
        if update.total_size != UNKNOWN && update.total_size > 0 {
            let _ = write!(words, " of {}", bytes(update.total_size));
        }
    }
    if let Some(date) = date(update.timestamp) {
        let _ = write!(words, ", made {date}");
    }
    words
}

fn host_facts(facts: &mut Facts, status: &Status, now: u64, full: bool) {
    let host = &status.host;
    facts.add("State", facts.state(&host.update_state));
    if let Some(image) = string(&host.tracking, "image") {
        // References of images name theirs; those of ostree remotes do not.
        let transport = string(&host.tracking, "transport").filter(|it| !image.starts_with(it));
        let transport = transport.map(|text| format!(" ({text})"));
        facts.add(
            "Tracking",
            format!("{image}{}", transport.unwrap_or_default()),
        );
    }
    if let Some(update) = status
        .update
        .as_ref()
        .filter(|update| update.direction != "same")
    {
        facts.add("Update", update_in_words(update, full));
    }
    facts.add("Checked", last_check(&host.last_check, now));
    facts.add("Finalize", last_finalize(&host.last_finalize, now));
    match host.reboot_required.as_str() {
        "none" | "" => {}
        "reboot" => facts.add("Reboot", next_boot(status)),
        "soft-reboot" => {
            let next = format!("{}; a soft one is enough", next_boot(status));
            facts.add("Reboot", next);
        }
        other => facts.add("Reboot", plain(other)),
    }
}

fn next_boot(status: &Status) -> String {
    let HostInfo {
        default_deployment,
        deployments,
        rollback_queued,
        ..
    } = &status.host;
    let next = deployments
        .iter()
        .zip(&status.deployments)
        .find(|(path, _)| *path == default_deployment)
        .map(|(_, next)| name(&next.version, &next.digest));
    let verb = if *rollback_queued {
        "goes back to"
    } else {
        "gives"
    };
    match next {
        Some(next) => format!("required; the next boot {verb} {next}"),
        None => "required".to_owned(),
    }
}

fn last_check(check: &Dict, now: u64) -> String {
    let Some(time) = check.get("time").and_then(|time| u64::try_from(time).ok()) else {
        return "never".to_owned();
    };
    let ago = age(time, now);
    if check.get("ok").and_then(|ok| bool::try_from(ok).ok()) != Some(false) {
        return ago;
    }
    let message = string(check, "error-message").unwrap_or_default();
    let error = string(check, "error-name").unwrap_or_default();
    format!("{ago}, failed: {message} ({error})")
}

/// Only worth a line if it failed.
fn last_finalize(last: &Dict, now: u64) -> String {
    if last
        .get("failed")
        .and_then(|failed| bool::try_from(failed).ok())
        != Some(true)
    {
        return String::new();
    }
    let time = last.get("time").and_then(|time| u64::try_from(time).ok());
    let ago = time.filter(|time| *time > 0).map(|time| age(time, now));
    let message = string(last, "message").unwrap_or_default();
    format!("failed {}: {message}", ago.unwrap_or_default())
}

fn string(dict: &Dict, key: &str) -> Option<String> {
    let text: &str = dict
        .get(key)
        .and_then(|value: &OwnedVariant| value.try_into().ok())?;
    (!text.is_empty()).then(|| plain(text))
}

fn deployment_block(info: &DeploymentInfo, next: bool, now: u64, look: Look, full: bool) -> String {
    let dot = match (info.booted, look.unicode) {
        (true, true) => "●",
        (true, false) => "*",
        (false, true) => "○",
        (false, false) => "-",
    };
    let mark = |text: String| paint(text, look);
    let dot = if info.booted {
        mark(dot.into()).green().bold()
    } else {
        mark(dot.into())
    };
    let mut words = vec![plain(&info.state)];
    words.extend(next.then(|| "next boot".to_owned()));
    words.extend(info.pinned.then(|| "pinned".to_owned()));
    words.extend(info.locked.then(|| "locked".to_owned()));
    let mut block = format!("{dot} {}\n", mark(words.join(", ")).bold());
    let mut facts = Facts::new(look);
    let length = if full { usize::MAX } else { 12 };
    facts.add("Image", plain(&info.image));
    facts.add(
        "Digest",
        if full {
            plain(&info.digest)
        } else {
            short(&info.digest)
        },
    );
    facts.add("Version", plain(&info.version));
    if let Some(date) = date(info.timestamp) {
        facts.add("Made", format!("{date}, {}", age(info.timestamp, now)));
    }
    let commit: String = plain(&info.checksum).chars().take(length).collect();
    facts.add(
        "Commit",
        format!("{commit}.{} ({})", info.serial, plain(&info.stateroot)),
    );
    facts.add("Kernel", plain(&info.kernel_version));
    if info.unlocked != "none" {
        facts.add("Unlocked", plain(&info.unlocked));
    }
    if full {
        facts.add("Arguments", plain(&info.kernel_arguments.join(" ")));
    }
    for warning in &info.warnings {
        facts.add("Warning", plain(warning));
    }
    block.push_str(&facts.render("  "));
    block
}

/// Columns two spaces apart; on a terminal the last one is cut to its width.
fn table<const N: usize>(rows: &[[String; N]], look: Look) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = measure_text_width(cell).max(*width);
        }
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - measure_text_width(cell) + 2));
        }
        let line = line.trim_end();
        let line = truncate_str(line, look.width.unwrap_or(usize::MAX), "...");
        let line = paint(line.into_owned(), look);
        let _ = writeln!(text, "{}", if index == 0 { line.bold() } else { line });
    }
    text
}

fn paint(text: String, look: Look) -> StyledObject<String> {
    style(text).force_styling(look.color)
}

/// `Name: value` lines with the names right-aligned; empty values are left out.
struct Facts {
    look: Look,
    lines: Vec<(&'static str, String)>,
}

impl Facts {
    fn new(look: Look) -> Self {
        Self {
            look,
            lines: Vec::new(),
        }
    }

    fn add(&mut self, name: &'static str, value: String) {
        if !value.is_empty() {
            self.lines.push((name, value));
        }
    }

    fn state(&self, state: &str) -> String {
        let text = paint(plain(state), self.look);
        match state {
            "failed" => text.red().bold(),
            "staged" | "rollback-queued" | "available" | "downloaded" => text.yellow().bold(),
            _ => text.bold(),
        }
        .to_string()
    }

    fn render(&self, indent: &str) -> String {
        let width = self
            .lines
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or_default();
        let mut text = String::new();
        for (name, value) in &self.lines {
            let _ = writeln!(text, "{indent}{name:>width$}: {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{self, NOW};

    const PLAIN: Look = Look {
        color: false,
        unicode: true,
        width: None,
    };

    #[test]
    fn a_host_with_an_update() {
        let mut host = sample::status("available");
        host.jobs
            .push((sample::path("/org/osteward1/job/7"), sample::downloading()));
        host.deployments[1].pinned = true;
        let expected = "   State: available
Tracking: docker://registry.example.org/os:stable
  Update: 43 (sha256:cccccccccccc), available, 120.00 MiB to download of 1.00 GiB, made 2026-11-22 00:53 UTC
 Checked: 5 minutes ago
     Job: upgrade, downloading 45 %: 512.00 MiB of 1.00 GiB, 12.00 MiB/s, 43 seconds left, layer 12 of 60, 256.00 MiB here already (/org/osteward1/job/7)

Deployments, in boot order:

● booted, next boot
    Image: ostree-unverified-registry:registry.example.org/os:stable
   Digest: sha256:aaaaaaaaaaaa
  Version: 42
     Made: 2026-11-20 01:53 UTC, 2 days ago
   Commit: aaaaaaaaaaaa.0 (default)
   Kernel: 6.12.1

○ rollback, pinned
    Image: ostree-unverified-registry:registry.example.org/os:stable
   Digest: sha256:bbbbbbbbbbbb
  Version: 41
     Made: 2026-11-20 01:53 UTC, 2 days ago
   Commit: bbbbbbbbbbbb.0 (default)
   Kernel: 6.12.1
";
        assert_eq!(status(&host, NOW, PLAIN, false), expected);
    }

    #[test]
    fn a_staged_update_and_a_queued_rollback_say_what_the_next_boot_gives() {
        let text = status(&sample::staged(), NOW, PLAIN, false);
        assert!(
            text.contains("Reboot: required; the next boot gives 43 (sha256:cccccccccccc)\n"),
            "{text}"
        );
        assert!(
            text.contains("○ staged, next boot\n") && text.contains("● booted\n"),
            "{text}"
        );
        let mut back = sample::status("rollback-queued");
        back.host.rollback_queued = true;
        back.host.default_deployment = back.host.rollback_deployment.clone();
        back.host.reboot_required = "reboot".into();
        let text = status(&back, NOW, PLAIN, false);
        assert!(
            text.contains("the next boot goes back to 41 (sha256:bbbbbbbbbbbb)"),
            "{text}"
        );
    }

    #[test]
    fn a_failed_check_shows_its_error_and_a_missing_one_says_never() {
        let mut host = sample::status("idle");
        host.host
            .last_check
            .insert("ok".into(), OwnedVariant::from(false));
        host.host
            .last_check
            .insert("error-message".into(), sample::text("no route\u{7}"));
        host.host.last_check.insert(
            "error-name".into(),
            sample::text("org.osteward1.Error.RegistryUnreachable"),
        );
        let text = status(&host, NOW, PLAIN, false);
        let line = " Checked: 5 minutes ago, failed: no route\u{fffd} (org.osteward1.Error.RegistryUnreachable)\n";
        assert!(text.contains(line), "{text}");
        host.host.last_check = Dict::new();
        assert!(status(&host, NOW, PLAIN, false).contains(" Checked: never\n"));
    }

    #[test]
    fn a_finalization_is_shown_if_it_failed() {
        let mut host = sample::status("idle");
        for failed in [false, true] {
            let last = &mut host.host.last_finalize;
            last.insert("failed".into(), OwnedVariant::from(failed));
            last.insert("message".into(), sample::text("no space\u{7}"));
            last.insert("time".into(), OwnedVariant::from(NOW - 3600));
            let text = status(&host, NOW, PLAIN, false);
            let line = "Finalize: failed 60 minutes ago: no space\u{fffd}\n";
            assert_eq!(text.contains(line), failed, "{text}");
        }
    }

    #[test]
    fn a_host_without_ostree_is_said_to_be_one() {
        let mut host = sample::status("unknown");
        host.deployments.clear();
        host.host.deployments.clear();
        assert!(
            status(&host, NOW, PLAIN, false)
                .ends_with("No deployments: this host was not booted by ostree.\n")
        );
    }

    #[test]
    fn full_shows_what_the_short_form_cuts() {
        let text = status(&sample::status("idle"), NOW, PLAIN, true);
        assert!(
            text.contains(&format!("Digest: sha256:{}\n", "a".repeat(64))),
            "{text}"
        );
        assert!(text.contains("Arguments: root=UUID=1 rw\n"), "{text}");
    }

    #[test]
    fn looks_are_obeyed() {
        let ascii = Look {
            color: false,
            unicode: false,
            width: None,
        };
        let text = status(&sample::status("idle"), NOW, ascii, false);
        assert!(text.is_ascii() && text.contains("* booted"), "{text}");
        let color = Look {
            color: true,
            ..PLAIN
        };
        assert!(status(&sample::status("idle"), NOW, color, false).contains("\u{1b}[32m"));
        assert!(!status(&sample::status("idle"), NOW, PLAIN, false).contains('\u{1b}'));
    }

    #[test]
    fn exit_codes() {
        let mut same = sample::status("idle");
        same.update = Some(UpdateInfo {
            direction: "same".into(),
            ..sample::update("available", 'a')
        });
        let cases = [
            (sample::status("idle"), Exit::Done),
            (sample::status("available"), Exit::UpdateAvailable),
            (sample::status("downloaded"), Exit::UpdateAvailable),
            (sample::status("quarantined"), Exit::Done),
            (sample::staged(), Exit::Staged),
            (same, Exit::Done),
        ];
        for (host, expected) in cases {
            assert_eq!(exit_code(&host), expected, "{}", host.host.update_state);
        }
        let mut forgotten = sample::staged();
        forgotten.update = None;
        assert_eq!(exit_code(&forgotten), Exit::Staged);
        forgotten.update = Some(sample::update("available", 'd'));
        assert_eq!(
            exit_code(&forgotten),
            Exit::UpdateAvailable,
            "a newer one than the staged"
        );
    }
}
