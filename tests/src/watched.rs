//! A host behind a relay that sees all that it asks for, and what its upgrades fetch.
//!
//! Owns the versions that are published to it: each is the host's first image with other layers on top, newer
//! than the one before.

use std::fs;

use anyhow::{Context, Result, ensure};
use osteward_dbus::options::{NoOptions, UpgradeOptions};

use crate::host::Host;
use crate::image::{Compression, Image, Layer, Written};
use crate::job::{Ended, Listener};
use crate::oracle;
use crate::relay::Relay;
use crate::sandbox::refs::blob_ref;

/// The host.
#[derive(Debug)]
pub struct Watched {
    /// The host itself.
    pub host: Host,
    /// What it reaches its registry through.
    pub relay: Relay,
    /// The version that was published last.
    pub version: u32,
}

impl Watched {
    /// Boots a host; its first image is version 1.
    ///
    /// # Errors
    /// When any part of it does not start.
    pub fn boot() -> Result<Self> {
        let mut host = Host::boot()?;
        let relay = Relay::before(&mut host)?;
        let version = 1;
        Ok(Self {
            host,
            relay,
            version,
        })
    }

    /// Publishes a layer on top of the host's first image, as the next version.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn publish(&mut self, layer: Layer) -> Result<Written> {
        self.publish_image(|image| image.layer(layer))
    }

    /// Publishes the host's first image with whatever `make` puts on top, as the next version.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn publish_image(&mut self, make: impl FnOnce(Image) -> Image) -> Result<Written> {
        self.version += 1;
        let version = self.version;
        let image = self.host.next_image(&version.to_string(), []);
        let image = image.created(&format!("2025-02-{version:02}T00:00:00Z"));
        self.host.publish(&make(image))
    }

    /// Upgrades, whatever is staged, and waits for the end.
    ///
    /// # Errors
    /// When the call is refused; a job that fails is an end.
    pub async fn upgrade(&self) -> Result<Ended> {
        Ok(self.upgrade_with_log().await?.0)
    }

    /// As [`Watched::upgrade`]; gives the job's log, too.
    ///
    /// # Errors
    /// As [`Watched::upgrade`].
    pub async fn upgrade_with_log(&self) -> Result<(Ended, Vec<String>)> {
        let options = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let connection = self.host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = Host::proxy(&connection).await?.upgrade(&options).await?;
        let ended = listener.end(&job).await?;
        let job = Host::job(&connection, &job).await?;
        Ok((ended, job.get_log(&NoOptions::default()).await?))
    }

    /// Bytes that an upgrade to `image`, which succeeds, has fetched.
    ///
    /// # Errors
    /// When it does not succeed, or leads elsewhere.
    pub async fn fetched(&self, image: &Written) -> Result<u64> {
        let ended = self.upgrade().await?.succeeded()?;
        ensure!(
            ended.value::<String>("digest")? == image.digest,
            "{ended:?}"
        );
        ended.value("fetched-bytes")
    }

    /// The upgrade to `image` pulls its last layer whole; what it had to read to decide that is little.
    ///
    /// # Errors
    /// When that is not so.
    pub async fn fetches_it_whole(&self, image: &Written) -> Result<()> {
        let (bytes, size) = (self.fetched(image).await?, self.size(image)?);
        ensure!(
            (size..size + size / 100).contains(&bytes),
            "{bytes} instead of {size}"
        );
        Ok(())
    }

    /// Publishes and pulls a layer that everything later can share.
    ///
    /// # Errors
    /// As [`Watched::fetches_it_whole`].
    pub async fn start_with(&mut self, layer: Layer) -> Result<Written> {
        let image = self.publish(layer)?;
        self.fetches_it_whole(&image).await?;
        Ok(image)
    }

    /// Bytes of the image's last layer.
    ///
    /// # Errors
    /// When the layout does not have it.
    pub fn size(&self, image: &Written) -> Result<u64> {
        Ok(fs::metadata(self.host.layout.blob(last(image)?))?.len())
    }

    /// Bytes of blobs that the registry has answered with so far, to everybody.
    ///
    /// # Errors
    /// When it does not run.
    pub fn served(&self) -> Result<u64> {
        Ok(self.host.registry.served()?.blobs)
    }

    /// A check tells how many bytes the upgrade to `image` fetches, within a twentieth of what the registry then
    /// answers with; returns that.
    ///
    /// # Errors
    /// When it tells something else.
    pub async fn fetches_what_it_told(&self, image: &Written) -> Result<u64> {
        let told = self.host.download_size().await?;
        let before = self.served()?;
        self.fetched(image).await?;
        let served = self.served()? - before;
        ensure!(is_close(told, served), "{told} were told, {served} came");
        Ok(served)
    }

    /// The source that the host tracks, as the repository's refs are named after it.
    pub fn source(&self) -> String {
        format!("docker://{}", self.relay.name("os:latest"))
    }

    /// The root of the image's tree, and that of its last layer.
    ///
    /// # Errors
    /// When the repository does not have it, or another image.
    pub fn trees(&self, image: &Written) -> Result<[(String, String); 2]> {
        let repo = self.host.sandbox.repo();
        let stored = oracle::query(&repo, &self.source())?.context("no image")?;
        ensure!(stored.manifest_digest == image.digest, "{stored:?}");
        Ok([
            (stored.root_contents, stored.root_metadata),
            self.host.sandbox.root_tree(&blob_ref(last(image)?))?,
        ])
    }

    /// The image's tree is the one that ostree-ext makes of it, with its last layer, `layer`, as a plain
    /// tar: ostree-ext hangs up before it has read a table of contents, at which skopeo fails.
    ///
    /// # Errors
    /// When it is another tree, or the repository is damaged.
    pub fn is_like_the_oracles(&self, image: &Written, layer: Layer) -> Result<()> {
        let [ours, _] = self.trees(image)?;
        let plain = layer.compressed(Compression::Plain);
        let plain = self.host.next_image("plain", [plain]);
        plain.write_as(&self.host.layout, "latest")?;
        let theirs = self.host.oracle_tree()?;
        ensure!(ours == theirs, "{ours:?} is not {theirs:?}");
        self.host.sandbox.fsck()
    }

    /// The ranges of the image's last layer that were asked for since `from`, and how often all of it was.
    ///
    /// # Errors
    /// When it has no layers.
    pub fn asked(&self, image: &Written, from: usize) -> Result<(usize, usize)> {
        let layer = last(image)?;
        let requests = self.relay.requests().split_off(from);
        let of_layer = requests
            .iter()
            .filter(|request| request.path.contains(layer));
        let (ranges, wholes): (Vec<_>, Vec<_>) =
            of_layer.partition(|request| request.header("range").is_some());
        Ok((ranges.len(), wholes.len()))
    }
}

/// The digest of an image's last layer.
///
/// # Errors
/// When it has none.
pub fn last(image: &Written) -> Result<&String> {
    image.layers.last().context("no layers")
}

/// Whether so many bytes were told rightly, if so many came.
pub fn is_close(told: u64, came: u64) -> bool {
    told.abs_diff(came) <= came / 20
}
