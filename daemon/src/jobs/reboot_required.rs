//! `/run/reboot-required`, where tools such as kured look for whether to reboot the host some time.
//!
//! Owns bootc's line in that file, which names the image that the next boot gives; all other lines are other
//! tools' and stay. A unit outside of the daemon's sandbox writes: `ReadWritePaths=` and bind mounts are for files
//! that are there and stay the same, and this one appears, goes, and is replaced by bootc with another; all of
//! `/run` would be the state of every other service, too. Invariants: the line is there only while a
//! reboot leads to another deployment than the one that runs (one that is staged and locked is lost by a reboot);
//! no job fails because of it.

use std::time::Duration;

use super::Job;
use crate::image::reference::Digest;
use crate::observe::systemd::Run;
use crate::sysroot::Snapshot;

const FILE: &str = "/run/reboot-required";
/// How bootc begins its line.
const WORDS: &str = "bootc: Reboot required for image: ";
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments: the beginning of the lines that go, and the end of the one that comes instead, or nothing. Nobody
/// sees half of it, and a last line without an end gets one. A file without lines would ask for a reboot, too.
const SCRIPT: &str = r#"set -e
file=/run/reboot-required
new=/run/.reboot-required.osteward
{
  if [ -e "$file" ]; then
    while IFS= read -r line || [ -n "$line" ]; do
      case $line in "$1"*) ;; *) printf '%s\n' "$line";; esac
    done <"$file"
  fi
  if [ -n "$2" ]; then printf '%s\n' "$1$2"; fi
} >"$new"
if [ -s "$new" ]; then mv -f "$new" "$file"; else rm -f "$new" "$file"; fi
"#;

/// Lets the file say what is so now. To be called after each change of what the next boot gives.
pub(super) async fn tell(job: &Job) {
    match job.sysroot.snapshot().await {
        Ok(snapshot) => write(job, required(&snapshot)).await,
        Err(error) => tracing::warn!(%error, "{FILE} stays as it is"),
    }
}

/// Takes our line away for a soft reboot, which `/run` outlives.
pub(super) async fn withdraw(job: &Job) {
    write(job, None).await;
}

/// The image that a reboot is required for; of what is no image the commit.
fn required(snapshot: &Snapshot) -> Option<String> {
    let (booted, next) = (snapshot.booted()?, snapshot.next_boot()?);
    let image = || next.digest().map(Digest::to_string);
    (next.id != booted.id).then(|| image().unwrap_or_else(|| next.checksum.clone()))
}

async fn write(job: &Job, image: Option<String>) {
    // What is not there has no lines.
    let text = tokio::fs::read(FILE).await.unwrap_or_default();
    if says(&String::from_utf8_lossy(&text), image.as_deref()) {
        return;
    }
    let script = ["/bin/sh", "-c", SCRIPT, "reboot-required", WORDS];
    let mut command: Vec<String> = script.map(str::to_owned).to_vec();
    command.push(image.unwrap_or_default());
    let run = Run {
        name: "reboot-required",
        description: "Noting whether a reboot is required".into(),
        command,
        environment: Vec::new(),
        output: None,
        // It mounts nothing, and needs no /tmp of its own.
        in_host_mounts: true,
    };
    let failure = match tokio::time::timeout(PATIENCE, job.systemd.run(run)).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it takes too long".to_owned(),
    };
    tracing::warn!(error = %failure, "{FILE} does not say whether a reboot is required");
}

/// Whether our line is in the text, once, and for that image; or none of ours, for no image.
fn says(text: &str, image: Option<&str>) -> bool {
    let lines = text.lines().filter_map(|line| line.strip_prefix(WORDS));
    lines.eq(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysroot::{Deployment, Slot};

    fn deployment(id: &str, slot: Slot, locked: bool) -> Deployment {
        Deployment {
            id: id.into(),
            checksum: format!("commit of {id}"),
            serial: 0,
            stateroot: "default".into(),
            slot,
            pinned: false,
            locked,
            origin_text: String::new(),
            origin: None,
            refspec: None,
            incompatible: None,
            image: None,
            commit_version: String::new(),
            kernel_version: String::new(),
            kernel_arguments: Vec::new(),
            directory: "/".into(),
            unlocked: "none".into(),
            soft_reboot: false,
        }
    }

    #[test]
    fn only_what_is_not_said_is_written() {
        let one = "bootc: Reboot required for image: sha256:1";
        for (text, image, expected) in [
            (String::new(), None, true),
            ("*** restart required ***\n".into(), None, true),
            ("*** restart required ***\n".into(), Some("sha256:1"), false),
            (one.into(), Some("sha256:1"), true),
            (format!("x\n{one}\ny\n"), Some("sha256:1"), true),
            (format!("{one}1\n"), Some("sha256:1"), false),
            (format!("{one}\n{one}\n"), Some("sha256:1"), false),
            (format!("x\n{one}\n"), None, false),
        ] {
            assert_eq!(says(&text, image), expected, "{text:?} {image:?}");
        }
    }

    #[test]
    fn a_reboot_is_required_for_what_it_leads_to() {
        let booted = || deployment("booted", Slot::Booted, false);
        let staged = |locked| deployment("staged", Slot::Staged, locked);
        let rollback = || deployment("rollback", Slot::Rollback, false);
        for (deployments, expected) in [
            (vec![booted(), rollback()], None),
            (vec![staged(false), booted()], Some("commit of staged")),
            (vec![staged(true), booted()], None),
            (vec![rollback(), booted()], Some("commit of rollback")),
            (vec![rollback()], None),
        ] {
            let snapshot = Snapshot {
                deployments,
                ..Snapshot::default()
            };
            assert_eq!(required(&snapshot).as_deref(), expected, "{snapshot:?}");
        }
    }
}
