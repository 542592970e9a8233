//! Other tools change the host while a job runs: `ostree admin` deploys, undeploys and pins,
//! bootc's own code cleans up. Nobody's change is undone, nothing is damaged, and no job goes by
//! what it saw before.
//!
//! `OSTEWARD_VERSIONS` says how many upgrades are cleaned up beside at random times,
//! `OSTEWARD_VERSIONS_SEED` when.

#[cfg(test)]
mod beside {
    use std::sync::atomic::{AtomicBool, Ordering};

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{DiscardOptions, RollbackOptions, UpgradeOptions};
    use osteward_tests::chance::{Dice, number, seed, tell};
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::oracle;
    use osteward_tests::process::run;
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::STATEROOT;
    use osteward_tests::turnstile::Turnstile;
    use zbus::OwnedObjectPath;

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    /// Uncompressed, so that its bytes are those that pass the relay.
    fn plain(name: &str, bytes: usize) -> Layer {
        let path = format!("usr/share/{name}");
        let content: Vec<u8> = name.bytes().cycle().take(bytes).collect();
        let layer = Layer::new().dir("usr").dir("usr/share");
        layer.file(&path, content).compressed(Compression::Plain)
    }

    /// Version 2 runs, version 1 is what it can go back to.
    async fn settled() -> Result<Host> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", [layer("2")]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        Ok(host)
    }

    fn admin(host: &Host, words: &[&str]) -> Result<String> {
        let words = ["ostree", "admin"].iter().chain(words).copied();
        host.sandbox.run(words.collect::<Vec<_>>())
    }

    /// State and version of all deployments, with a `+` for what is pinned.
    fn shown(host: &Host) -> Result<String> {
        let answer = client::ask(&host.sandbox, &host.bus, &["status", "--json"])?;
        let status = answer.expect(&[0])?.json()?;
        let deployments = status["deployments"].as_array().context("no list")?.iter();
        let words = deployments.map(|one| {
            let mark = if one["pinned"] == true { "+" } else { "" };
            let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}{mark}", text("state"), text("version"))
        });
        Ok(words.collect::<Vec<_>>().join(", "))
    }

    fn publish(host: &Host, version: &str) -> Result<Written> {
        let layers = [layer(version), plain(version, 2 << 20)];
        host.publish(&host.next_image(version, layers))
    }

    /// An upgrade that waits for the registry.
    struct Waiting<'relay> {
        relay: &'relay Relay,
        listener: Listener,
        job: OwnedObjectPath,
    }

    impl<'relay> Waiting<'relay> {
        /// In the middle of a layer.
        async fn downloading(host: &Host, relay: &'relay Relay, version: &str) -> Result<Self> {
            let image = publish(host, version)?;
            relay.stop(image.layers.last().context("no layers")?, 1 << 20);
            Self::start(host, relay, "downloading").await
        }

        /// With a look at the host behind it, and nothing decided. Other tools can prune now,
        /// which they cannot while layers are written.
        async fn resolving(host: &Host, relay: &'relay Relay, version: &str) -> Result<Self> {
            publish(host, version)?;
            relay.stop("/manifests/", 0);
            Self::start(host, relay, "resolving").await
        }

        async fn start(host: &Host, relay: &'relay Relay, phase: &str) -> Result<Self> {
            let connection = host.connect().await?;
            let mut listener = Listener::new(&connection).await?;
            let proxy = Host::proxy(&connection).await?;
            let job = proxy.upgrade(&UpgradeOptions::default()).await?;
            listener.wait_for_phase(&job, phase).await?;
            relay.wait_until_stopped()?;
            Ok(Self {
                relay,
                listener,
                job,
            })
        }

        async fn go_on(&mut self) -> Result<Ended> {
            self.relay.resume();
            self.listener.end(&self.job).await
        }
    }

    #[tokio::test]
    async fn what_was_staged_during_a_download_is_not_replaced() -> Result<()> {
        let mut host = settled().await?;
        let relay = Relay::before(&mut host)?;
        let mut upgrade = Waiting::downloading(&host, &relay, "3").await?;
        let os = format!("--os={STATEROOT}");
        let booted = host.sandbox.booted()?.checksum;
        admin(&host, &["deploy", "--stage", &os, &booted])?;
        let before = host.sandbox.deployments()?;
        upgrade.go_on().await?.failed("StagedPending")?;
        assert_eq!(host.sandbox.deployments()?, before);
        admin(&host, &["undeploy", "0"])?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, 0, "it was kept");
        host.reboot()?;
        assert_eq!(shown(&host)?, "booted 3, rollback 2");
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn what_was_pinned_or_undeployed_meanwhile_stays_so() -> Result<()> {
        let mut host = settled().await?;
        let relay = Relay::before(&mut host)?;
        let mut upgrade = Waiting::downloading(&host, &relay, "3").await?;
        admin(&host, &["pin", "1"])?;
        upgrade.go_on().await?.succeeded()?;
        assert_eq!(shown(&host)?, "staged 3, booted 2, rollback 1+");
        host.reboot()?;
        assert_eq!(shown(&host)?, "booted 3, rollback 2, other 1+");

        let mut upgrade = Waiting::resolving(&host, &relay, "4").await?;
        admin(&host, &["pin", "--unpin", "2"])?;
        admin(&host, &["undeploy", "2"])?;
        admin(&host, &["undeploy", "1"])?;
        upgrade.go_on().await?.succeeded()?;
        assert_eq!(shown(&host)?, "staged 4, booted 3");
        host.sandbox.fsck()?;
        host.reboot()?;
        assert_eq!(shown(&host)?, "booted 4, rollback 3");
        Ok(())
    }

    #[tokio::test]
    async fn a_boot_order_that_was_changed_meanwhile_is_kept() -> Result<()> {
        let mut host = settled().await?;
        let relay = Relay::before(&mut host)?;
        let mut upgrade = Waiting::resolving(&host, &relay, "3").await?;
        // As an administrator goes back without us.
        let os = format!("--os={STATEROOT}");
        let first = host.sandbox.deployments()?.remove(1).checksum;
        admin(&host, &["deploy", &os, &first])?;
        let before = host.sandbox.deployments()?;
        ensure!(!before[0].booted && !before[0].staged, "{before:?}");
        upgrade.go_on().await?.failed("StagedPending")?;
        assert_eq!(host.sandbox.deployments()?, before);
        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, first);
        host.sandbox.fsck()
    }

    /// Bars a directory that all versions share: whoever checks out or prunes comes by.
    fn turnstile(host: &Host) -> Result<Turnstile> {
        let booted = host.sandbox.booted()?.checksum;
        let words = ["ls", "-C", "-d", &booted, "/usr/lib/ostree"];
        let listing = host.sandbox.ostree(words)?;
        let contents = listing.split_whitespace().nth(4).context("no checksum")?;
        Turnstile::at_directory(&host.sandbox.repo(), contents)
    }

    #[tokio::test]
    async fn an_undeployment_waits_for_the_staging_and_both_are_done() -> Result<()> {
        let mut host = settled().await?;
        let relay = Relay::before(&mut host)?;
        let mut upgrade = Waiting::downloading(&host, &relay, "3").await?;
        // So that the staging, not the merge, is the next to read it.
        let lock = host.sandbox.hold_lock()?;
        relay.resume();
        let waiting = "waiting for the sysroot lock";
        let job = upgrade.job.clone();
        upgrade.listener.wait_for_message(&job, waiting).await?;
        let bar = turnstile(&host)?;
        drop(lock);
        bar.wait()?;
        let mut undeploy = host.sandbox.command(["ostree", "admin", "undeploy", "2"])?;
        let undeployed = std::thread::spawn(move || run(&mut undeploy));
        bar.pass();
        upgrade.go_on().await?.succeeded()?;
        let undeployed = undeployed.join();
        undeployed.map_err(|_| anyhow::anyhow!("the thread broke"))??;
        let after = host.sandbox.deployments()?;
        ensure!(after.len() == 2 && after[0].staged && after[1].booted);
        host.sandbox.fsck()?;
        host.reboot()?;
        assert_eq!(shown(&host)?, "booted 3, rollback 2");
        Ok(())
    }

    #[tokio::test]
    async fn a_job_that_waited_for_an_undeployment_goes_by_what_is_left() -> Result<()> {
        let host = settled().await?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let bar = turnstile(&host)?;
        let mut undeploy = host.sandbox.command(["ostree", "admin", "undeploy", "1"])?;
        let undeployed = std::thread::spawn(move || run(&mut undeploy));
        // It prunes, under the lock, and the rollback deployment is off the list.
        bar.wait()?;
        let discard = DiscardOptions::default();
        let job = proxy.discard(&["rollback"], &discard).await?;
        let waiting = "waiting for the sysroot lock";
        listener.wait_for_message(&job, waiting).await?;
        bar.pass();
        let ended = listener.end(&job).await?.succeeded()?;
        assert_eq!(ended.value::<u64>("deployments")?, 0, "{ended:?}");
        let undeployed = undeployed.join();
        undeployed.map_err(|_| anyhow::anyhow!("the thread broke"))??;
        let refused = proxy.rollback(&RollbackOptions::default()).await;
        let refused = refused.err().context("it was accepted")?;
        assert_eq!(refused.name(), "org.osteward1.Error.NoRollback");
        assert_eq!(shown(&host)?, "booted 2");
        host.sandbox.fsck()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn cleaning_up_at_any_time_of_an_upgrade_damages_nothing() -> Result<()> {
        let versions = number("OSTEWARD_VERSIONS", 3)?;
        let seed = seed("OSTEWARD_VERSIONS_SEED")?;
        let mut dice = Dice(seed);
        let mut host = settled().await?;
        let mut relay = Relay::before(&mut host)?;
        let replace = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let last = 2 + versions;
        for version in (3..=last).map(|version| version.to_string()) {
            let layers = (0..4).map(|at| plain(&format!("{version}-{at}"), 1 << 20));
            let image = host.publish(&host.next_image(&version, layers))?;
            let connection = host.connect().await?;
            let mut listener = Listener::new(&connection).await?;
            relay.pace((1 << 20) + dice.roll(4 << 20));
            let job = Host::proxy(&connection).await?.upgrade(&replace).await?;
            let (repo, sysroot) = (host.sandbox.repo(), host.sandbox.sysroot().to_owned());
            let (over, layers_only) = (AtomicBool::new(false), dice.coin());
            let ended = std::thread::scope(|scope| {
                let cleaning = scope.spawn(|| -> Result<u32> {
                    let mut times = 0;
                    while !over.load(Ordering::Relaxed) {
                        let done = if layers_only && times % 2 == 0 {
                            oracle::collect_layers(&repo).map(drop)
                        } else {
                            oracle::prune(&sysroot).map(drop)
                        };
                        // While layers are written it waits, but not for ever.
                        match done {
                            Err(error) if format!("{error:#}").contains("Locking repo") => {}
                            other => other?,
                        }
                        times += 1;
                    }
                    Ok(times)
                });
                let ended = tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(listener.end(&job))
                });
                over.store(true, Ordering::Relaxed);
                let times = cleaning.join();
                let times = times.map_err(|_| anyhow::anyhow!("the thread broke"))??;
                tell(format_args!("version {version}: cleaned up {times} times"))?;
                ended
            });
            let ended = ended?.succeeded().with_context(|| format!("seed {seed}"))?;
            assert_eq!(ended.value::<String>("digest")?, image.digest);
            relay.resume();
            host.sandbox.fsck()?;
        }
        drop(relay);
        let tree = host.oracle_tree()?;
        host.reboot()?;
        let booted = host.sandbox.booted()?.checksum;
        assert_eq!(host.sandbox.root_tree(&booted)?, tree);
        assert_eq!(shown(&host)?, format!("booted {last}, rollback 2"));
        Ok(())
    }
}
