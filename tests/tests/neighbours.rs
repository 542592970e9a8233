//! Other tools on the same host: what they hold, what they change, what they leave behind; and
//! what bootc's own code makes of what osteward wrote.

#[cfg(test)]
mod neighbours {
    use std::collections::HashSet;
    use std::fs;
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use anyhow::{Context, Result, ensure};
    use futures_util::StreamExt;
    use osteward_dbus::options::{DownloadOptions, NoOptions};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::oracle;
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::refs::{blob_ref, image_ref};
    use osteward_tests::sandbox::{SHARE, STATEROOT};
    use zbus::fdo::PropertiesChanged;
    use zbus::{MatchRule, MessageStream, OwnedObjectPath, OwnedVariant};

    /// Longer than a loaded machine takes to notice a change.
    const PATIENCE: Duration = Duration::from_secs(120);

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    fn size(host: &Host, digest: &str) -> Result<u64> {
        Ok(fs::metadata(host.layout.blob(digest))?.len())
    }

    async fn download(host: &Host) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.download(&DownloadOptions::default()).await?;
        listener.end(&job).await
    }

    /// Version 2 runs, version 1 is what it can go back to.
    async fn settled() -> Result<Host> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", [layer("second")]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        Ok(host)
    }

    /// Hears of all changes of properties from its making on.
    struct Changes {
        signals: MessageStream,
    }

    impl Changes {
        async fn listen(connection: &zbus::Connection) -> Result<Self> {
            let rule = MatchRule::builder()
                .msg_type(zbus::message::Type::Signal)
                .sender("org.osteward1")
                .interface("org.freedesktop.DBus.Properties")
                .member("PropertiesChanged")
                .build()?;
            let signals = MessageStream::for_match_rule(rule, connection, None).await?;
            Ok(Self { signals })
        }

        /// Waits until `property` of the object is published with a value that `fits`.
        async fn until(
            &mut self,
            path: &str,
            property: &str,
            fits: impl Fn(&OwnedVariant) -> bool,
        ) -> Result<()> {
            let changed = async {
                while let Some(message) = self.signals.next().await {
                    let message = message?;
                    if message.header().path().map(|p| p.as_str()) != Some(path) {
                        continue;
                    }
                    let Some(signal) = PropertiesChanged::from_message(message) else {
                        continue;
                    };
                    let arguments = signal.args()?;
                    if let Some(value) = arguments.changed_properties().get(property)
                        && fits(&value.try_to_owned()?)
                    {
                        return Ok(());
                    }
                }
                anyhow::bail!("the bus went away")
            };
            tokio::time::timeout(PATIENCE, changed)
                .await
                .with_context(|| format!("{property} of {path} was not published"))?
        }
    }

    fn path_of(value: &OwnedVariant) -> Option<OwnedObjectPath> {
        OwnedObjectPath::try_from(value.try_clone().ok()?).ok()
    }

    const HOST: &str = "/org/osteward1/Host";

    #[tokio::test]
    async fn a_held_lock_ends_an_upgrade_and_delays_nobody_else() -> Result<()> {
        let mut host = settled().await?;
        host.kill_daemon()?;
        let config = host.sandbox.inside("/etc/osteward/config.d")?;
        fs::create_dir_all(&config)?;
        fs::write(config.join("lock.toml"), "[daemon]\nlock_wait = \"3s\"\n")?;
        host.start_daemon()?;
        host.publish(&host.next_image("3", [layer("third")]))?;
        let before = host.sandbox.deployments()?;

        let lock = host.sandbox.hold_lock()?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.upgrade(&Default::default()).await?;
        listener.wait_for_phase(&job, "staging").await?;
        let status = proxy.status(&NoOptions::default()).await?;
        assert!(status.contains_key("deployments"), "{status:?}");
        assert_eq!(proxy.update_state().await?, "staging");
        assert_eq!(Host::manager(&connection).await?.active_job().await?, job);
        let ended = listener.end(&job).await?.failed("SysrootLocked")?;
        assert!(ended.error_message.contains("try again"), "{ended:?}");
        let refused = proxy.rollback(&Default::default()).await?;
        listener.end(&refused).await?.failed("SysrootLocked")?;
        drop(lock);

        assert_eq!(host.sandbox.deployments()?, before);
        host.sandbox.fsck()?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, 0);
        Ok(())
    }

    #[tokio::test]
    async fn changes_by_ostree_admin_are_published() -> Result<()> {
        let host = settled().await?;
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        let booted = proxy.booted_deployment().await?;
        let rollback = proxy.rollback_deployment().await?;
        let mut changes = Changes::listen(&connection).await?;

        let os = format!("--os={STATEROOT}");
        let commit = host.sandbox.booted()?.checksum;
        let ostree = ["ostree", "admin"];
        let admin = |words: &[&str]| {
            let words = ostree.iter().chain(words).copied();
            host.sandbox.run(words.collect::<Vec<_>>())
        };
        admin(&["deploy", "--stage", &os, &commit])?;
        let is_some =
            |value: &OwnedVariant| path_of(value).is_some_and(|path| path.as_str() != "/");
        changes.until(HOST, "StagedDeployment", is_some).await?;
        let staged = proxy.staged_deployment().await?;
        assert_eq!(
            proxy.deployments().await?,
            [staged, booted.clone(), rollback]
        );

        let is_none =
            |value: &OwnedVariant| path_of(value).is_some_and(|path| path.as_str() == "/");
        admin(&["undeploy", "0"])?;
        changes.until(HOST, "StagedDeployment", is_none).await?;

        let yes = |value: &OwnedVariant| bool::try_from(value).unwrap_or(false);
        admin(&["pin", "0"])?;
        changes.until(booted.as_str(), "Pinned", yes).await?;
        admin(&["pin", "--unpin", "0"])?;
        changes
            .until(booted.as_str(), "Pinned", |v| !yes(v))
            .await?;

        admin(&["undeploy", "1"])?;
        changes.until(HOST, "RollbackDeployment", is_none).await?;
        assert_eq!(proxy.deployments().await?, [booted]);
        Ok(())
    }

    #[tokio::test]
    async fn changes_are_told_where_the_path_unit_of_bootc_looks() -> Result<()> {
        let host = settled().await?;
        let directory = host.sandbox.sysroot().join("ostree/bootc");
        fs::create_dir_all(&directory)?;
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        let mut listener = Listener::new(&connection).await?;
        let long_ago = UNIX_EPOCH + Duration::from_secs(1);
        host.publish(&host.next_image("3", [layer("third")]))?;
        for change in ["rollback", "cancel-rollback", "upgrade"] {
            fs::File::open(&directory)?.set_modified(long_ago)?;
            let job = match change {
                "rollback" => proxy.rollback(&Default::default()).await?,
                "upgrade" => proxy.upgrade(&Default::default()).await?,
                _ => proxy.cancel_rollback(&Default::default()).await?,
            };
            listener.end(&job).await?.succeeded()?;
            assert!(fs::metadata(&directory)?.modified()? > long_ago, "{change}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn bootc_accepts_what_osteward_wrote() -> Result<()> {
        let mut host = settled().await?;
        let repo = host.sandbox.repo();
        let second = host.layout.find("latest")?;
        let stored = oracle::query(&repo, &host.source())?.context("no image")?;
        assert_eq!(stored.manifest_digest, second.digest);
        assert_eq!(stored.merge_commit, host.sandbox.booted()?.checksum);
        assert_eq!(stored.version.as_deref(), Some("2"));
        assert_eq!(oracle::list(&repo)?, [host.source()]);
        assert_eq!(oracle::collect_layers(&repo)?, 0, "all layers are needed");
        let before = host.sandbox.deployments()?;
        assert_eq!(oracle::prune(host.sandbox.sysroot())?, (0, 0));
        assert_eq!(host.sandbox.deployments()?, before);
        host.sandbox.fsck()?;

        let third = host.publish(&host.next_image("3", [layer("second"), layer("third")]))?;
        let ended = host.upgrade().await?.succeeded()?;
        let new = third.layers.last().context("no layers")?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, size(&host, new)?);
        host.reboot()?;
        oracle::prune(host.sandbox.sysroot())?;
        host.sandbox.fsck()?;
        assert_eq!(oracle::list(&repo)?, [host.source()]);
        Ok(())
    }

    #[tokio::test]
    async fn a_found_update_is_found_by_bootc_too() -> Result<()> {
        let host = Host::boot()?;
        let image = host.publish(&host.next_image("2", [layer("second")]))?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.check(&Default::default()).await?;
        listener.end(&job).await?.succeeded()?;
        let stored = oracle::query(&host.sandbox.repo(), &host.source())?.context("no image")?;
        assert_eq!(stored.manifest_digest, host.first.digest);
        assert_eq!(stored.cached_update, Some(image.digest));
        Ok(())
    }

    #[tokio::test]
    async fn what_bootc_pulled_is_staged_without_a_download() -> Result<()> {
        let mut host = Host::boot()?;
        let image = host.publish(&host.next_image("2", [layer("second")]))?;
        let place = format!("oci:{}:latest", host.layout.path.display());
        let pulled = oracle::import_as(&host.sandbox.repo(), &place, &host.source())?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, 0);
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, pulled.merge_commit);

        // Of what runs now nothing is fetched again either.
        let third = host.publish(&host.next_image("3", [layer("second"), layer("third")]))?;
        let ended = host.upgrade().await?.succeeded()?;
        let new = third.layers.last().context("no layers")?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, size(&host, new)?);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_download_survives_the_clean_up_of_bootc() -> Result<()> {
        let host = Host::boot()?;
        let image = host.publish(&host.next_image("2", [layer("second")]))?;
        let ended = download(&host).await?.succeeded()?;
        assert!(ended.value::<u64>("fetched-bytes")? > 0);
        assert_eq!(host.sandbox.deployments()?.len(), 1);
        // bootc drops the refs of images that no origin names, and then what only they held.
        oracle::prune(host.sandbox.sysroot())?;
        oracle::collect_layers(&host.sandbox.repo())?;
        let words = ["refs", "--delete", &image_ref(&host.source())];
        host.sandbox.ostree(words)?;
        oracle::prune(host.sandbox.sysroot())?;
        host.sandbox.fsck()?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, 0);
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn half_a_download_survives_the_clean_up_of_bootc() -> Result<()> {
        let mut host = Host::boot()?;
        let relay = Relay::before(&mut host)?;
        let large = Layer::new().dir("usr").file("usr/large", vec![7; 4 << 20]);
        let large = large.compressed(osteward_tests::image::Compression::Plain);
        let image = host.publish(&host.next_image("2", [layer("a"), layer("b"), large]))?;
        let (large, rest) = image.layers.split_last().context("no layers")?;
        relay.stop(large, 1 << 20);
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.download(&DownloadOptions::default()).await?;
        listener.wait_for_phase(&job, "downloading").await?;
        relay.wait_until_stopped()?;
        let wanted: HashSet<String> = rest.iter().map(|digest| blob_ref(digest)).collect();
        // The lanes commit what they have when nothing is left for them to do.
        let start = Instant::now();
        while !wanted.is_subset(&layers(&host)?) {
            ensure!(start.elapsed() < PATIENCE, "the small layers were not kept");
        }
        let job = Host::job(&connection, &job).await?;
        job.cancel(&NoOptions::default()).await?;
        let ended = listener.end(&job.inner().path().to_owned().into()).await?;
        ensure!(ended.state == "cancelled", "{ended:?}");

        oracle::collect_layers(&host.sandbox.repo())?;
        oracle::prune(host.sandbox.sysroot())?;
        assert!(wanted.is_subset(&layers(&host)?), "layers were collected");
        relay.resume();
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, size(&host, large)?);
        host.sandbox.fsck()
    }

    fn layers(host: &Host) -> Result<HashSet<String>> {
        let refs = host.sandbox.refs("ostree/container/blob/")?;
        Ok(refs.into_iter().collect())
    }

    #[tokio::test]
    async fn what_bootc_staged_is_not_thrown_away() -> Result<()> {
        let host = settled().await?;
        let commit = host.sandbox.booted()?.checksum;
        let os = format!("--os={STATEROOT}");
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        let mut changes = Changes::listen(&connection).await?;
        let origin = format!(
            "[origin]\ncontainer-image-reference=ostree-unverified-registry:{}\n",
            host.registry.name("os:latest")
        );
        fs::write(host.sandbox.share().join("origin"), origin)?;
        let origin = format!("--origin-file={SHARE}/origin");
        let words = [
            "ostree", "admin", "deploy", "--stage", &os, &origin, &commit,
        ];
        host.sandbox.run(words)?;
        let is_some =
            |value: &OwnedVariant| path_of(value).is_some_and(|path| path.as_str() != "/");
        changes.until(HOST, "StagedDeployment", is_some).await?;
        let before = host.sandbox.deployments()?;
        let refused = proxy.rollback(&Default::default()).await;
        let refused = refused.err().context("it was accepted")?;
        assert_eq!(refused.name(), "org.osteward1.Error.StagedPending");
        let _published: Written = host.publish(&host.next_image("3", [layer("third")]))?;
        host.upgrade().await?.failed("StagedPending")?;
        assert_eq!(host.sandbox.deployments()?, before);
        Ok(())
    }
}
