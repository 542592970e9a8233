//! A host that has something to lose: a version that runs, and one that it can go back to.
//!
//! Owns what every interruption of an upgrade has to leave: both of those as they were, nothing
//! in the repository that is named and not whole, and an upgrade that completes the next time.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use osteward_dbus::options::{NoOptions, RollbackOptions, UpgradeOptions};
use zbus::{Connection, OwnedObjectPath};

use crate::host::Host;
use crate::image::{Image, Layer, Written};
use crate::job::{Ended, Listener};
use crate::oracle;
use crate::relay::{Relay, Way};
use crate::sandbox::refs::blob_ref;
use crate::sandbox::{Deployment, STATEROOT};
use crate::turnstile::Turnstile;

const BLOBS: &str = "ostree/container/blob/";

/// Longer than any commit to the repository takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What may be on its way into a file when the daemon is killed.
pub const ON_ITS_WAY: u64 = 1 << 20;

/// A host that has been upgraded once: version 2 runs, version 1 is what it can go back to.
#[derive(Debug)]
pub struct Settled {
    /// The host.
    pub host: Host,
    /// What it reaches its registry through.
    pub relay: Relay,
    /// The two deployments, in boot order.
    pub before: Vec<Deployment>,
    second: Written,
}

/// A job that stands at some place.
#[derive(Debug)]
pub struct Stopped {
    job: OwnedObjectPath,
    listener: Listener,
    connection: Connection,
}

impl Settled {
    /// Boots a host, upgrades it to a version that has `layers` besides, and reboots.
    ///
    /// # Errors
    /// When any of that fails.
    pub async fn new(layers: impl IntoIterator<Item = Layer>) -> Result<Self> {
        let mut host = Host::boot()?;
        let second = host.publish(&host.next_image("2", layers))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        let relay = Relay::before(&mut host)?;
        let before = host.sandbox.deployments()?;
        ensure!(before.len() == 2, "{before:?}");
        Ok(Self {
            host,
            relay,
            before,
            second,
        })
    }

    /// Publishes a version 3: these layers on top of what runs.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn publish(&self, layers: impl IntoIterator<Item = Layer>) -> Result<Written> {
        let image = Image::new("3")
            .on(&self.second)
            .created("2025-03-01T00:00:00Z");
        self.host
            .publish(&layers.into_iter().fold(image, Image::layer))
    }

    async fn start(&self) -> Result<Stopped> {
        let connection = self.host.connect().await?;
        let listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.upgrade(&UpgradeOptions::default()).await?;
        Ok(Stopped {
            job,
            listener,
            connection,
        })
    }

    /// Starts an upgrade that whoever calls this has seen to stop in `phase`.
    ///
    /// # Errors
    /// When it ends before that phase.
    pub async fn start_until(&self, phase: &str) -> Result<Stopped> {
        let mut stopped = self.start().await?;
        stopped
            .listener
            .wait_for_phase(&stopped.job, phase)
            .await
            .with_context(|| format!("on the way to {phase}"))?;
        Ok(stopped)
    }

    /// Upgrades up to `bytes` bytes of the last layer of `image`, with all others written.
    ///
    /// # Errors
    /// When it does not come as far.
    pub async fn start_until_last(&self, image: &Written, bytes: u64) -> Result<Stopped> {
        let (last, rest) = image.layers.split_last().context("no layers")?;
        self.relay.stop(last, bytes);
        let stopped = self.start_until("downloading").await?;
        self.relay.wait_until_stopped()?;
        // The other lanes commit what they have when nothing is left for them to do: there
        // is no event for that, but it is coming.
        let wanted: HashSet<String> = rest.iter().map(|digest| blob_ref(digest)).collect();
        let start = Instant::now();
        while !wanted.is_subset(&self.layers()?) {
            ensure!(start.elapsed() < PATIENCE, "the other layers were not kept");
        }
        Ok(stopped)
    }

    fn layers(&self) -> Result<HashSet<String>> {
        Ok(self.host.sandbox.refs(BLOBS)?.into_iter().collect())
    }

    /// Compressed bytes of the layers of `image` that have no ref, but for what was kept of them.
    fn missing(&self, image: &Written) -> Result<u64> {
        let here = self.layers()?;
        let missing = image.layers.iter();
        let missing = missing.filter(|digest| !here.contains(&blob_ref(digest)));
        let sizes = missing.map(|digest| {
            let size = fs::metadata(self.host.layout.blob(digest))?.len();
            Ok(size - self.kept(digest))
        });
        sizes.sum()
    }

    /// Bytes of a layer that is not complete that are kept for the next attempt.
    pub fn kept(&self, digest: &str) -> u64 {
        let hex = digest.trim_start_matches("sha256:");
        let path = self
            .host
            .sandbox
            .repo()
            .join(format!("tmp/osteward-blob-{hex}"));
        fs::metadata(path).map_or(0, |found| found.len())
    }

    /// Where in the repository the tree has a directory that every version shares.
    ///
    /// # Errors
    /// When it cannot be barred.
    pub fn shared_directory(&self) -> Result<Turnstile> {
        let booted = self.host.sandbox.booted()?.checksum;
        let words = ["ls", "-C", "-d", &booted, "/usr/lib/ostree"];
        let listing = self.host.sandbox.ostree(words)?;
        let contents = listing.split_whitespace().nth(4).context("no checksum")?;
        Turnstile::at_directory(&self.host.sandbox.repo(), contents)
    }

    /// What is staged, if anything.
    ///
    /// # Errors
    /// When a deployment from before is not as it was, or there is one too many.
    pub fn staged(&self) -> Result<Option<Deployment>> {
        let mut now = self.host.sandbox.deployments()?;
        let is_staged = now.first().is_some_and(|first| first.staged);
        let staged = is_staged.then(|| now.remove(0));
        ensure!(now == self.before, "besides {staged:?}: {now:?}");
        for deployment in &now {
            let tree = self.host.sandbox.sysroot().join(format!(
                "ostree/deploy/{STATEROOT}/deploy/{}.{}",
                deployment.checksum, deployment.serial
            ));
            let release = tree.join("usr/lib/os-release");
            ensure!(release.exists(), "{} is missing", release.display());
        }
        Ok(staged)
    }

    /// Fails unless the repository is whole, both deployments are as they were, and nothing
    /// is staged.
    ///
    /// # Errors
    /// With what is wrong, and when that was.
    pub fn check(&self, when: &str) -> Result<()> {
        let at = || format!("after an interruption of {when}");
        self.host.sandbox.fsck().with_context(at)?;
        let staged = self.staged().with_context(at)?;
        ensure!(staged.is_none(), "{}: {staged:?}", at());
        Ok(())
    }

    /// Kills the daemon and cuts the power, then starts both again.
    ///
    /// # Errors
    /// As [`Settled::check`], and when the daemon does not start.
    pub fn kill(&mut self, when: &str) -> Result<()> {
        self.host.kill_daemon()?;
        self.check(when)?;
        self.host.sandbox.power_cut()?;
        self.check(when)?;
        self.relay.resume();
        self.host.start_daemon()
    }

    /// Kills the daemon when it has the first half of the last layer of `image`, published last; everything
    /// passes from then on.
    ///
    /// # Errors
    /// As [`Settled::check`], and when it does not come as far.
    pub async fn kill_at_half(&mut self, image: &Written) -> Result<()> {
        let digest = image.layers.last().context("no layers")?.clone();
        let half = fs::metadata(self.host.layout.blob(&digest))?.len() / 2;
        let blob = digest.clone();
        // However many requests it is asked for with: no byte beyond the half.
        self.relay.rule(move |request| {
            let (first, last) = request.range();
            match request.path.contains(&blob) {
                true if first >= half => Way::Stop(0),
                true if last.is_none_or(|last| last >= half) => Way::Stop(half - first),
                _ => Way::Pass,
            }
        });
        let stopped = self.start_until("downloading").await?;
        self.relay.wait_until_stopped()?;
        // There is no event for what was written, but it is coming.
        let start = Instant::now();
        while self.kept(&digest) < half - ON_ITS_WAY {
            ensure!(start.elapsed() < PATIENCE, "nothing is kept");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.host.kill_daemon()?;
        drop(stopped);
        self.check("downloading")?;
        self.relay.resume();
        Ok(())
    }

    /// The next upgrade completes, fetching only what is missing; it boots, and goes back.
    /// Returns how many bytes were missing. `image` is what was published last.
    ///
    /// # Errors
    /// When any of that is not so.
    pub async fn finish(&mut self, image: &Written) -> Result<u64> {
        self.relay.resume();
        let missing = self.missing(image)?;
        let ended = self.host.upgrade().await?.succeeded()?;
        ensure!(ended.value::<String>("digest")? == image.digest);
        let fetched = ended.value::<u64>("fetched-bytes")?;
        ensure!(fetched == missing, "{missing} were missing: {ended:?}");
        self.host.sandbox.fsck()?;
        self.host.reboot()?;
        let booted = self.host.sandbox.booted()?.checksum;
        let (tree, wanted) = (
            self.host.sandbox.root_tree(&booted)?,
            self.host.oracle_tree()?,
        );
        ensure!(tree == wanted, "{tree:?} is not {wanted:?}");
        let connection = self.host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.rollback(&RollbackOptions::default()).await?;
        listener.end(&job).await?.succeeded()?;
        self.host.reboot()?;
        let booted = self.host.sandbox.booted()?.checksum;
        ensure!(booted == self.before[0].checksum, "{booted} is booted");
        oracle::list(&self.host.sandbox.repo())?;
        Ok(missing)
    }
}

impl Stopped {
    /// Asks for its end.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn cancel(&self) -> std::result::Result<(), osteward_dbus::Error> {
        let job = Host::job(&self.connection, &self.job).await;
        let job = job.map_err(|error| osteward_dbus::Error::Failed(error.to_string()))?;
        job.cancel(&NoOptions::default()).await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As [`Listener::end`].
    pub async fn end(mut self) -> Result<Ended> {
        self.listener.end(&self.job).await
    }

    /// Fails unless it ends as one that was cancelled.
    ///
    /// # Errors
    /// With how it ended.
    pub async fn cancelled(self) -> Result<()> {
        let ended = self.end().await?;
        ensure!(ended.state == "cancelled", "{ended:?}");
        ensure!(
            ended.error_name == "org.osteward1.Error.Cancelled",
            "{ended:?}"
        );
        Ok(())
    }
}
