//! Everything that can be said about the host without asking anybody.
//!
//! Owns [`Status`], the record that feeds all properties, and the one-word summary.
//! Invariant: it is plain data; reading it never waits.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::job::{JobId, JobView};
use crate::config::Config;
use crate::image::layout::Image;
use crate::inhibit::Inhibitor;
use crate::jobs::{Candidate, packages, progress::Phase};
use crate::packages::Difference;
use crate::record::history::Entry;
use crate::record::last_check::LastCheck;
use crate::sysroot::Snapshot;

/// What the last look at the sysroot gave.
#[derive(Debug, Clone)]
pub enum Look {
    /// There was none yet.
    NotYet,
    /// The host was not booted by ostree.
    NotBooted,
    /// It could not be read.
    Broken(String),
    /// This is what is there.
    Seen(Arc<Snapshot>),
}

/// Everything that can be said now.
#[derive(Debug, Clone)]
pub struct Status {
    /// The deployments.
    pub look: Look,
    /// What the last check in this process found.
    pub found: Option<Candidate>,
    /// How the registry was asked last.
    pub last_check: Option<LastCheck>,
    /// Digests that are not staged by themselves.
    pub quarantined: HashSet<String>,
    /// Running and recently finished jobs.
    pub jobs: Vec<(JobId, watch::Receiver<JobView>)>,
    /// The finished operations, the oldest first.
    pub history: Arc<[Entry]>,
    /// Who inhibits what.
    pub inhibitors: Vec<Inhibitor>,
    /// What an administrator should know about the configuration.
    pub warnings: Vec<String>,
    /// How long the daemon stays without work; zero: for ever.
    pub idle_timeout: Duration,
    /// The running system's own description.
    pub os: OsRelease,
    /// Whether the service manager has soft reboots; `None`: not known.
    pub soft_reboots: Option<bool>,
    /// How the packages of the best candidate differ from those that are booted, if all are known.
    pub difference: Option<Arc<Difference>>,
}

/// `os-release(5)` of the running system, as far as it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `ID`.
    pub name: String,
    /// `VERSION`, else `VERSION_ID`.
    pub version: String,
}

impl OsRelease {
    /// Reads the file's text: `KEY=value` lines, values quoted as in a shell.
    pub fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let line = text
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
            let line = line.trim();
            let inner = ['"', '\'']
                .iter()
                .find_map(|quote| line.strip_prefix(*quote)?.strip_suffix(*quote))
                .unwrap_or(line);
            (!inner.is_empty()).then(|| inner.replace('\\', ""))
        };
        Self {
            name: value("ID").unwrap_or_default(),
            version: value("VERSION")
                .or_else(|| value("VERSION_ID"))
                .unwrap_or_default(),
        }
    }
}

/// The best candidate, as far as it is known.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The image.
    pub image: Arc<Image>,
    /// The reference it was found under.
    pub reference: String,
    /// Layers that are missing; `None` = not known.
    pub layers_missing: Option<u32>,
    /// Bytes that are missing; `None` = not known.
    pub download_size: Option<u64>,
    /// `available`, `downloaded`, `staged` or `quarantined`.
    pub state: &'static str,
}

impl Status {
    /// Nothing is known.
    pub(super) fn unknown(warnings: &[String]) -> Self {
        Self {
            look: Look::NotYet,
            found: None,
            last_check: None,
            quarantined: HashSet::new(),
            jobs: Vec::new(),
            history: Arc::default(),
            inhibitors: Vec::new(),
            warnings: warnings.to_vec(),
            idle_timeout: Config::default().idle_timeout,
            os: OsRelease::default(),
            soft_reboots: None,
            difference: None,
        }
    }

    /// The deployments, if they could be read.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match &self.look {
            Look::Seen(snapshot) => Some(snapshot),
            Look::NotYet | Look::NotBooted | Look::Broken(_) => None,
        }
    }

    /// The job that holds the write slot.
    pub fn active_job(&self) -> Option<JobId> {
        let mut jobs = self.jobs.iter();
        jobs.find(|(_, view)| {
            let view = view.borrow();
            view.writes && view.is_at_work()
        })
        .map(|(id, _)| *id)
    }

    /// The best candidate: what the last check found, else what is cached on disk. The
    /// booted image is none.
    pub fn offer(&self) -> Option<Offer> {
        let snapshot = self.snapshot()?;
        let booted = snapshot.booted()?.digest();
        let cached = || {
            Some(Candidate {
                image: Arc::new(snapshot.cached_update.clone()?),
                reference: snapshot.tracking()?.origin.as_ref()?.image.clone(),
                found_at: 0,
                layers_missing: None,
                download_size: None,
            })
        };
        // What a check found under another reference is not an update of this host.
        let tracked = snapshot
            .tracking()?
            .origin
            .as_ref()
            .map(|origin| &origin.image);
        let found = self
            .found
            .clone()
            .filter(|found| Some(&found.reference) == tracked);
        let found = found.or_else(cached);
        let candidate = found.filter(|candidate| Some(&candidate.image.digest) != booted)?;
        let digest = &candidate.image.digest;
        let staged = snapshot.staged().and_then(|staged| staged.digest()) == Some(digest);
        let pulled = staged || snapshot.pulled.contains(digest);
        Some(Offer {
            reference: candidate.reference.to_string(),
            layers_missing: if pulled {
                Some(0)
            } else {
                candidate.layers_missing
            },
            download_size: if pulled {
                Some(0)
            } else {
                candidate.download_size
            },
            state: match (staged, self.quarantined.contains(digest.as_str()), pulled) {
                (true, ..) => "staged",
                (false, true, _) => "quarantined",
                (false, false, true) => "downloaded",
                (false, false, false) => "available",
            },
            image: candidate.image,
        })
    }

    /// The keys of the two lists of packages that are compared: what is booted, the candidate.
    pub(super) fn compared(&self) -> Option<(String, String)> {
        let booted = packages::key(self.snapshot()?.booted()?).to_owned();
        Some((booted, self.offer()?.image.digest.to_string()))
    }

    /// How good [`Status::difference`] is (`Update.DiffLevel`).
    pub fn diff_level(&self) -> &'static str {
        let booted = self.snapshot().and_then(Snapshot::booted);
        let images = booted
            .and_then(|booted| booted.image.as_ref())
            .zip(self.offer());
        match images {
            _ if self.difference.is_some() => "full",
            None => "none",
            Some((old, new)) if is_described(old) && is_described(&new.image) => "metadata",
            Some(_) => "layers",
        }
    }

    /// The release of the candidate's kernel: out of the image, else as its label says.
    pub fn kernel_of_offer(&self) -> String {
        let read = self
            .difference
            .as_ref()
            .map(|difference| &difference.new_kernel);
        let read = read.filter(|kernel| !kernel.is_empty()).cloned();
        let label = || Some(self.offer()?.image.kernel()?.to_owned());
        read.or_else(label).unwrap_or_default()
    }

    /// One word for a tray icon (`Host.UpdateState`).
    pub fn update_state(&self) -> &'static str {
        for (_, view) in &self.jobs {
            let view = view.borrow();
            if view.is_at_work()
                && let Some(word) = word_of_job(&view)
            {
                return word;
            }
        }
        let Some(snapshot) = self.snapshot() else {
            return "unknown";
        };
        if snapshot.staged().is_some() {
            return "staged";
        }
        if snapshot.rollback_queued {
            return "rollback-queued";
        }
        match self.offer().map(|offer| offer.state) {
            Some("available") => "available",
            Some("downloaded") => "downloaded",
            Some(_) | None if self.last_check.as_ref().is_some_and(|c| c.error.is_some()) => {
                "failed"
            }
            Some(_) | None => "idle",
        }
    }
}

/// Whether an image says of itself what can be compared.
fn is_described(image: &Image) -> bool {
    image.version().is_some() || image.kernel().is_some()
}

/// What a running job means for the host; `None` if it says nothing about updates.
fn word_of_job(view: &JobView) -> Option<&'static str> {
    match view.kind {
        "check" => Some("checking"),
        "download" | "upgrade" | "switch" => Some(match view.reading.phase {
            None | Some(Phase::Resolving) => "checking",
            Some(Phase::Downloading | Phase::Importing) => "downloading",
            Some(_) => "staging",
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_read_as_a_shell_would() {
        let os = OsRelease::parse("# c\nID=debian\nVERSION_ID='12'\nVERSION=\"12 (bookworm)\"\n");
        assert_eq!(
            os,
            OsRelease {
                name: "debian".into(),
                version: "12 (bookworm)".into()
            }
        );
        let os = OsRelease::parse("ID=\"x\"\nVERSION_ID=7");
        assert_eq!((os.name.as_str(), os.version.as_str()), ("x", "7"));
        assert_eq!(OsRelease::parse(""), OsRelease::default());
    }
}
