//! Bound images: container images that must be on the host before an image of the host is staged, and go when
//! no deployment needs them any more (on-disk notes 1.10).
//!
//! They are in a container storage of their own, which bootc shares and podman writes, in units outside of the
//! daemon's sandbox. Invariants: an image is staged only when everything it is bound to is there; nothing is
//! removed while it is not known what every deployment is bound to.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::Job;
use super::progress::Phase;
use crate::error::Error;
use crate::image::RegistryConfig;
use crate::image::here::{PODMAN, is_installed};
use crate::image::reference::Transport;
use crate::import;
use crate::observe::systemd::{self, Run};
use crate::sysroot::{Deployment, Snapshot};

/// Runs podman on the storage. podman keeps paths in its database, so they are those that bootc gives: the
/// storage is mounted at /run/bootc/storage, and what was there before is descriptor 3. /sysroot may be
/// read-only on the host; here it becomes writable in a mount namespace of our own. A new storage gets the
/// SELinux label of the host's own. Arguments: a file with credentials, or nothing, then those of podman, or
/// one of our words and names of images. Which name means which image is podman's to say.
const SCRIPT: &str = r#"set -e
storage=/sysroot/ostree/bootc/storage
mount -o remount,rw /sysroot 2>/dev/null || :
if ! [ -d "$storage" ]; then
  mkdir -p "$storage"
  chcon --reference=/var/lib/containers/storage "$storage" 2>/dev/null || :
fi
mkdir -p /run/bootc/storage
exec 3</run/bootc/storage
mount --bind "$storage" /run/bootc/storage
if [ -n "$1" ]; then export REGISTRY_AUTH_FILE="$1"
else export REGISTRY_AUTH_FILE=/tmp/osteward-auth.json; echo '{}' >"$REGISTRY_AUTH_FILE"; fi
shift
podman() { /usr/bin/podman --root /run/bootc/storage --runroot /proc/self/fd/3 image "$@"; }
word=$1
case $word in missing|ids) shift;; *) podman "$@"; exit;; esac
for name; do
  status=0
  podman exists "$name" || status=$?
  case $word$status in
    ids0) podman inspect --format '{{.Id}}' "$name";;
    missing1) printf '%s\n' "$name";;
    missing0|ids1) ;;
    *) printf 'it was looking for %s\n' "$name" >&2; exit "$status";;
  esac
done
"#;

/// Variables that podman shares with the daemon.
const PROXIES: [&str; 6] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Sees to it that everything `commit` is bound to is on the host. Those that are, are not asked for again.
///
/// # Errors
/// [`Error::NotSupported`] without podman, [`Error::BoundImage`] for an image that cannot be pulled.
pub(super) async fn pull(job: &Job, commit: &str, phase: Phase) -> Result<(), Error> {
    let images = bound_to(job, commit).await?;
    if images.is_empty() {
        return Ok(());
    }
    if !is_installed(PODMAN) {
        return Err(Error::NotSupported(format!(
            "the image needs {} on this host, which podman pulls, and podman is not installed; add podman \
             to the image that is booted, or stage one without bound images",
            images.join(", ")
        )));
    }
    let pulled = async {
        let images = missing(job, images).await?;
        if images.is_empty() {
            return Ok(());
        }
        pull_all(job, images, phase).await
    };
    tokio::select! {
        pulled = pulled => pulled,
        // Dropping the pulls stops their units.
        () = job.cancel.cancelled() => Err(Error::Cancelled),
    }
}

async fn missing(job: &Job, images: Vec<String>) -> Result<Vec<String>, Error> {
    let description = "Looking for bound images".to_owned();
    let arguments = ["missing".to_owned()].into_iter().chain(images);
    let run = podman(description, arguments.collect());
    lines(job.systemd.run(run).await)
}

async fn pull_all(job: &Job, images: Vec<String>, phase: Phase) -> Result<(), Error> {
    let total = images.len();
    job.progress
        .enter(phase, format!("pulling {total} bound images"));
    stream::iter(images)
        .map(|image| pull_one(job, image))
        .buffer_unordered(job.config.parallel_layers.max(1))
        .enumerate()
        .map(|(done, pulled)| pulled.map(|image| (done + 1, image)))
        .try_for_each(|(done, image)| {
            job.progress
                .say(format!("bound image {image} is here ({done} of {total})"));
            job.progress.part(0.25 * done as f64 / total as f64);
            std::future::ready(Ok(()))
        })
        .await
}

async fn pull_one(job: &Job, image: String) -> Result<String, Error> {
    let mut arguments = vec!["pull".to_owned(), "--quiet".to_owned()];
    let host = image.split('/').next().unwrap_or_default();
    if job.config.insecure.iter().any(|insecure| insecure == host) {
        arguments.push("--tls-verify=false".to_owned());
    }
    arguments.push(image.clone());
    let run = podman(format!("Pulling the bound image {image}"), arguments);
    match job.systemd.run(run).await {
        Ok(_) => Ok(image),
        Err(error) => Err(Error::BoundImage {
            image,
            reason: error.to_string(),
        }),
    }
}

/// Removes what neither a deployment nor a download is bound to. Failing is no more than a warning: it only
/// costs space.
pub(super) async fn prune(job: &Job, snapshot: &Snapshot) {
    if !storage(job).exists() || !is_installed(PODMAN) {
        return;
    }
    match try_prune(job, snapshot).await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "bound images of former deployments were removed"),
        Err(error) => tracing::warn!(%error, "unneeded bound images could not be removed"),
    }
}

async fn try_prune(job: &Job, snapshot: &Snapshot) -> Result<usize, Error> {
    let (path, mut commits) = (job.sysroot.repo_path(), Vec::new());
    commits.extend(snapshot.deployments.iter().map(|d| d.checksum.clone()));
    let read = move || import::all_bound_images(&path, commits);
    let read = tokio::task::spawn_blocking(read).await;
    let mut needed = read.map_err(|error| Error::Internal(error.to_string()))??;
    needed.extend(snapshot.deployments.iter().filter_map(host_image));
    needed.insert(0, "ids".to_owned());
    let run = podman("Looking for bound images".to_owned(), needed);
    let needed = lines(job.systemd.run(run).await)?;
    let list = ["list", "--quiet", "--no-trunc"].map(str::to_owned);
    let run = podman("Listing the bound images".to_owned(), list.to_vec());
    let stored = lines(job.systemd.run(run).await)?;
    let unneeded = unneeded(&stored, &needed);
    if !unneeded.is_empty() {
        let arguments = ["rm".to_owned()].into_iter().chain(unneeded.clone());
        let description = "Removing bound images of former deployments".to_owned();
        let run = podman(description, arguments.collect());
        job.systemd.run(run).await.map_err(failed)?;
    }
    Ok(unneeded.len())
}

/// The images of podman's list that are not among those needed, each once: an image is listed under each of
/// its names, and with the algorithm before its identity.
fn unneeded(stored: &[String], needed: &[String]) -> Vec<String> {
    let ids = stored
        .iter()
        .map(|id| id.strip_prefix("sha256:").unwrap_or(id).to_owned());
    let unneeded: BTreeSet<String> = ids.filter(|id| !needed.contains(id)).collect();
    unneeded.into_iter().collect()
}

fn lines(output: Result<Vec<u8>, systemd::Error>) -> Result<Vec<String>, Error> {
    let output = output.map_err(failed)?;
    let text = String::from_utf8_lossy(&output);
    Ok(text.lines().map(str::to_owned).collect())
}

fn failed(error: systemd::Error) -> Error {
    Error::BoundImage {
        image: "storage".to_owned(),
        reason: error.to_string(),
    }
}

/// Hosts can keep their own image in the same storage. Names that are paths are none of podman's.
fn host_image(deployment: &Deployment) -> Option<String> {
    let image = &deployment.origin.as_ref()?.image;
    let is_stored = match image.transport() {
        Transport::Registry => true,
        Transport::ContainersStorage => !image.name().starts_with('['),
        _ => false,
    };
    is_stored.then(|| image.name().to_owned())
}

async fn bound_to(job: &Job, commit: &str) -> Result<Vec<String>, Error> {
    let (path, commit) = (job.sysroot.repo_path(), commit.to_owned());
    let read = tokio::task::spawn_blocking(move || import::bound_images(&path, &commit)).await;
    Ok(read.map_err(|error| Error::Internal(error.to_string()))??)
}

/// The storage, as the daemon sees it.
fn storage(job: &Job) -> PathBuf {
    job.sysroot.repo_path().with_file_name("bootc/storage")
}

fn podman(description: String, arguments: Vec<String>) -> Run {
    let credentials = RegistryConfig::default().auth_files;
    let credentials = credentials.into_iter().find(|file| file.exists());
    let shell = ["/usr/bin/unshare", "--mount", "--propagation", "slave"];
    let mut command: Vec<String> = shell.map(str::to_owned).to_vec();
    command.extend(["/bin/sh", "-c", SCRIPT, "podman"].map(str::to_owned));
    command.push(credentials.map_or_else(String::new, |file| file.display().to_string()));
    command.extend(arguments);
    Run {
        name: "podman",
        description,
        command,
        environment: PROXIES
            .iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
            .collect(),
        output: None,
        in_host_mounts: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_under_any_name_stays() {
        let words =
            |words: &[&str]| -> Vec<String> { words.iter().map(|&word| word.to_owned()).collect() };
        let stored = words(&["sha256:1", "sha256:2", "sha256:2", "3"]);
        assert_eq!(unneeded(&stored, &words(&["1", "3"])), ["2"]);
        assert_eq!(unneeded(&stored, &words(&["3", "2", "1"])).len(), 0);
        assert_eq!(unneeded(&stored, &[]), ["1", "2", "3"]);
        assert_eq!(unneeded(&[], &words(&["1"])).len(), 0);
    }
}
