//! A daemon that is killed, a job that is cancelled, in every phase: nothing is damaged, the
//! host boots what it booted before, and what was there is used by the next upgrade.

#[cfg(test)]
mod interruptions {
    use std::collections::HashSet;
    use std::fs;
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{NoOptions, RollbackOptions, UpgradeOptions};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::oracle;
    use osteward_tests::sandbox::Deployment;
    use osteward_tests::sandbox::refs::blob_ref;
    use osteward_tests::slow_registry::SlowRegistry;
    use osteward_tests::turnstile::Turnstile;
    use zbus::OwnedObjectPath;

    const BLOBS: &str = "ostree/container/blob/";
    /// Of the layer that is stopped: more than the rest, so that a lane begins with it.
    const LARGE: usize = 2 << 20;
    const HALF: u64 = 1 << 20;

    /// Longer than any commit to the repository takes.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// Bytes that no compression makes fewer.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let step = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        std::iter::repeat_with(step).take(length).collect()
    }

    fn small(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    fn large(seed: u64) -> Layer {
        let layer = Layer::new().dir("usr").dir("usr/share");
        layer.file(&format!("usr/share/large-{seed}"), noise(seed, LARGE))
    }

    /// So many files that making them visible takes longer than telling of it.
    fn many_files() -> Layer {
        let mut layer = Layer::new()
            .dir("usr")
            .dir("usr/share")
            .dir("usr/share/many");
        for number in 0..20_000 {
            let path = format!("usr/share/many/{number}");
            layer = layer.file(&path, format!("{number}\n"));
        }
        layer.compressed(Compression::Zstd)
    }

    /// A host that has been upgraded once: version 2 runs, version 1 is what it can go back to.
    struct Settled {
        host: Host,
        relay: SlowRegistry,
        before: Vec<Deployment>,
        second: Written,
    }

    /// A job that stands at some place.
    struct Stopped {
        job: OwnedObjectPath,
        listener: Listener,
        connection: zbus::Connection,
    }

    impl Settled {
        async fn new() -> Result<Self> {
            let mut host = Host::boot()?;
            let second = host.publish(&host.next_image("2", [small("second")]))?;
            host.upgrade().await?.succeeded()?;
            host.reboot()?;
            let relay = SlowRegistry::before(&mut host)?;
            let before = host.sandbox.deployments()?;
            ensure!(before.len() == 2, "{before:?}");
            Ok(Self {
                host,
                relay,
                before,
                second,
            })
        }

        /// Publishes version 3: these layers on top of what runs.
        fn publish(&self, layers: impl IntoIterator<Item = Layer>) -> Result<Written> {
            let image = osteward_tests::image::Image::new("3")
                .on(&self.second)
                .created("2025-03-01T00:00:00Z");
            self.host
                .publish(&layers.into_iter().fold(image, |image, l| image.layer(l)))
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

        async fn start_until(&self, phase: &str) -> Result<Stopped> {
            let mut stopped = self.start().await?;
            stopped
                .listener
                .wait_for_phase(&stopped.job, phase)
                .await
                .with_context(|| format!("on the way to {phase}"))?;
            Ok(stopped)
        }

        /// Upgrades up to the middle of the large layer, with all smaller ones written.
        async fn start_until_half(&self, image: &Written) -> Result<Stopped> {
            let (large, rest) = image.layers.split_last().context("no layers")?;
            self.relay.stop(large, HALF);
            let stopped = self.start_until("downloading").await?;
            self.relay.wait_until_stopped()?;
            // The other lanes commit what they have when nothing is left for them to do: there
            // is no event for that, but it is coming.
            let wanted: HashSet<String> = rest.iter().map(|digest| blob_ref(digest)).collect();
            let start = Instant::now();
            while !wanted.is_subset(&self.layers()?) {
                ensure!(start.elapsed() < PATIENCE, "the small layers were not kept");
            }
            Ok(stopped)
        }

        fn layers(&self) -> Result<HashSet<String>> {
            Ok(self.host.sandbox.refs(BLOBS)?.into_iter().collect())
        }

        /// Compressed bytes of the layers of `image` that have no ref.
        fn missing(&self, image: &Written) -> Result<u64> {
            let here = self.layers()?;
            let missing = image.layers.iter();
            let missing = missing.filter(|digest| !here.contains(&blob_ref(digest)));
            let sizes =
                missing.map(|digest| Ok(fs::metadata(self.host.layout.blob(digest))?.len()));
            sizes.sum()
        }

        /// Where in the repository the tree has a directory that every version shares.
        fn shared_directory(&self) -> Result<Turnstile> {
            let booted = self.host.sandbox.booted()?.checksum;
            let words = ["ls", "-C", "-d", &booted, "/usr/lib/ostree"];
            let listing = self.host.sandbox.ostree(words)?;
            let contents = listing.split_whitespace().nth(4).context("no checksum")?;
            Turnstile::at_directory(&self.host.sandbox.repo(), contents)
        }

        /// The repository is whole and both deployments are as they were.
        fn check(&self, when: &str) -> Result<()> {
            let at = || format!("after an interruption of {when}");
            self.host.sandbox.fsck().with_context(at)?;
            let now = self.host.sandbox.deployments()?;
            ensure!(now == self.before, "{}: {now:?}", at());
            for deployment in &self.before {
                let tree = self.host.sandbox.sysroot().join(format!(
                    "ostree/deploy/default/deploy/{}.{}",
                    deployment.checksum, deployment.serial
                ));
                ensure!(tree.join("usr/lib/os-release").exists(), "{}", at());
            }
            Ok(())
        }

        /// Kills the daemon and cuts the power, then starts both again.
        fn kill(&mut self, when: &str) -> Result<()> {
            self.host.kill_daemon()?;
            self.check(when)?;
            self.host.sandbox.power_cut()?;
            self.check(when)?;
            self.relay.resume();
            self.host.start_daemon()
        }

        /// The next upgrade completes, fetching only what is missing; it boots, and goes back.
        async fn finish(&mut self, image: &Written) -> Result<u64> {
            self.relay.resume();
            let missing = self.missing(image)?;
            let ended = self.host.upgrade().await?.succeeded()?;
            assert_eq!(ended.value::<String>("digest")?, image.digest);
            assert_eq!(ended.value::<u64>("fetched-bytes")?, missing, "{ended:?}");
            self.host.sandbox.fsck()?;
            self.host.reboot()?;
            let booted = self.host.sandbox.booted()?.checksum;
            let tree = self.host.oracle_tree()?;
            assert_eq!(self.host.sandbox.root_tree(&booted)?, tree);
            let connection = self.host.connect().await?;
            let mut listener = Listener::new(&connection).await?;
            let proxy = Host::proxy(&connection).await?;
            let job = proxy.rollback(&RollbackOptions::default()).await?;
            listener.end(&job).await?.succeeded()?;
            self.host.reboot()?;
            let booted = self.host.sandbox.booted()?.checksum;
            assert_eq!(booted, self.before[0].checksum);
            oracle::list(&self.host.sandbox.repo())?;
            Ok(missing)
        }
    }

    impl Stopped {
        async fn cancel(&self) -> std::result::Result<(), osteward_dbus::Error> {
            let job = Host::job(&self.connection, &self.job).await;
            let job = job.map_err(|error| osteward_dbus::Error::Failed(error.to_string()))?;
            job.cancel(&NoOptions::default()).await
        }

        async fn end(mut self) -> Result<Ended> {
            self.listener.end(&self.job).await
        }

        async fn cancelled(self) -> Result<()> {
            let ended = self.end().await?;
            assert_eq!(ended.state, "cancelled", "{ended:?}");
            assert_eq!(ended.error_name, "org.osteward1.Error.Cancelled");
            Ok(())
        }
    }

    #[tokio::test]
    async fn killed_while_downloading() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a"), small("b"), large(1)])?;
        let stopped = settled.start_until_half(&image).await?;
        settled.kill("downloading")?;
        drop(stopped);
        let fetched = settled.finish(&image).await?;
        assert!(
            fetched > HALF,
            "the small layers were kept, the large one was not"
        );
        Ok(())
    }

    #[tokio::test]
    async fn killed_while_importing() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a"), many_files()])?;
        let stopped = settled.start_until("importing").await?;
        settled.kill("importing")?;
        drop(stopped);
        settled.finish(&image).await?;
        Ok(())
    }

    #[tokio::test]
    async fn killed_while_merging() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a"), large(2)])?;
        let stopped = settled.start_until_half(&image).await?;
        let turnstile = settled.shared_directory()?;
        settled.relay.resume();
        turnstile.wait()?;
        settled.host.kill_daemon()?;
        turnstile.pass();
        settled.check("merging")?;
        settled.host.start_daemon()?;
        drop(stopped);
        assert_eq!(settled.finish(&image).await?, 0, "all layers were there");
        Ok(())
    }

    #[tokio::test]
    async fn killed_while_waiting_to_stage() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a")])?;
        let lock = settled.host.sandbox.hold_lock()?;
        let stopped = settled.start_until("staging").await?;
        settled.host.kill_daemon()?;
        drop(lock);
        settled.check("waiting")?;
        settled.host.start_daemon()?;
        drop(stopped);
        assert_eq!(settled.finish(&image).await?, 0, "the image was there");
        Ok(())
    }

    #[tokio::test]
    async fn killed_while_staging() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a")])?;
        let lock = settled.host.sandbox.hold_lock()?;
        let stopped = settled.start_until("staging").await?;
        // In the middle of the check-out of the new deployment.
        let turnstile = settled.shared_directory()?;
        drop(lock);
        turnstile.wait()?;
        settled.host.kill_daemon()?;
        turnstile.pass();
        settled.check("staging")?;
        settled.host.sandbox.power_cut()?;
        settled.check("staging")?;
        settled.host.start_daemon()?;
        drop(stopped);
        assert_eq!(settled.finish(&image).await?, 0, "the image was there");
        Ok(())
    }

    #[tokio::test]
    async fn cancelled_while_resolving() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a")])?;
        settled.relay.stop("/manifests/", 0);
        let stopped = settled.start_until("resolving").await?;
        settled.relay.wait_until_stopped()?;
        stopped.cancel().await?;
        stopped.cancelled().await?;
        settled.check("resolving")?;
        settled.finish(&image).await?;
        Ok(())
    }

    #[tokio::test]
    async fn cancelled_while_downloading() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a"), small("b"), large(3)])?;
        let stopped = settled.start_until_half(&image).await?;
        stopped.cancel().await?;
        stopped.cancelled().await?;
        settled.check("downloading")?;
        let fetched = settled.finish(&image).await?;
        assert!(fetched > HALF);
        Ok(())
    }

    #[tokio::test]
    async fn cancelled_while_importing() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a"), many_files()])?;
        let stopped = settled.start_until("importing").await?;
        stopped.cancel().await?;
        stopped.cancelled().await?;
        settled.check("importing")?;
        settled.finish(&image).await?;
        Ok(())
    }

    #[tokio::test]
    async fn cancelled_while_merging() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a"), large(4)])?;
        let stopped = settled.start_until_half(&image).await?;
        let turnstile = settled.shared_directory()?;
        settled.relay.resume();
        turnstile.wait()?;
        stopped.cancel().await?;
        turnstile.pass();
        stopped.cancelled().await?;
        settled.check("merging")?;
        assert_eq!(settled.finish(&image).await?, 0, "all layers were there");
        Ok(())
    }

    #[tokio::test]
    async fn cancelled_while_waiting_to_stage() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a")])?;
        let lock = settled.host.sandbox.hold_lock()?;
        let stopped = settled.start_until("staging").await?;
        stopped.cancel().await?;
        stopped.cancelled().await?;
        drop(lock);
        settled.check("waiting")?;
        assert_eq!(settled.finish(&image).await?, 0, "the image was there");
        Ok(())
    }

    #[tokio::test]
    async fn cancelled_while_staging() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a")])?;
        let lock = settled.host.sandbox.hold_lock()?;
        let stopped = settled.start_until("staging").await?;
        let turnstile = settled.shared_directory()?;
        drop(lock);
        turnstile.wait()?;
        stopped.cancel().await?;
        turnstile.pass();
        stopped.cancelled().await?;
        settled.check("staging")?;
        assert_eq!(settled.finish(&image).await?, 0, "the image was there");
        Ok(())
    }

    #[tokio::test]
    async fn too_late_to_cancel_while_cleaning() -> Result<()> {
        let settled = Settled::new().await?;
        let image = settled.publish([small("a")])?;
        let lock = settled.host.sandbox.hold_lock()?;
        let stopped = settled.start_until("staging").await?;
        // The root of a layer is no part of what is deployed: only the clean-up reads it.
        let layer = blob_ref(image.layers.last().context("no layers")?);
        let (contents, _) = settled.host.sandbox.root_tree(&layer)?;
        let repo = settled.host.sandbox.repo();
        let turnstile = Turnstile::at_directory(&repo, &contents)?;
        drop(lock);
        turnstile.wait()?;
        let refused = stopped.cancel().await.err().context("it was accepted")?;
        assert_eq!(refused.name(), "org.osteward1.Error.TooLate", "{refused:?}");
        assert!(refused.message().contains("roll back"), "{refused:?}");
        turnstile.pass();
        let ended = stopped.end().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        assert!(settled.host.sandbox.deployments()?[0].staged);
        settled.host.sandbox.fsck()
    }

    #[tokio::test]
    async fn terminated_while_downloading() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a"), small("b"), large(5)])?;
        let stopped = settled.start_until_half(&image).await?;
        let daemon = settled.host.daemon.take().context("no daemon")?;
        let status = tokio::task::spawn_blocking(move || daemon.stop()).await??;
        assert!(status.success(), "{status}");
        // Whoever watched has heard of the end.
        stopped.cancelled().await?;
        settled.check("downloading")?;
        settled.relay.resume();
        settled.host.start_daemon()?;
        let fetched = settled.finish(&image).await?;
        assert!(fetched > HALF);
        Ok(())
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_not_the_end_of_what_was_fetched() -> Result<()> {
        let mut settled = Settled::new().await?;
        let image = settled.publish([small("a"), small("b"), large(6)])?;
        let stopped = settled.start_until_half(&image).await?;
        settled.relay.cut();
        stopped.end().await?.failed("RegistryUnreachable")?;
        settled.check("downloading")?;
        let fetched = settled.finish(&image).await?;
        assert!(fetched > HALF);
        Ok(())
    }
}
