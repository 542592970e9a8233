//! The finalization lock: what is staged and locked survives every reboot but that of `Apply`,
//! whoever locked it, and whatever the lock is written in.

#[cfg(test)]
mod finalization {
    use std::fs;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{ApplyOptions, ManageOptions, UpgradeOptions};
    use osteward_dbus::proxies::{DeploymentProxy, HostProxy};
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::logind::{Announcing, Logind};
    use osteward_tests::sandbox::STATEROOT;
    use zbus::proxy::CacheProperties;
    use zbus::{Connection, OwnedObjectPath};

    const FILE: &str = "/run/ostree/staged-deployment-locked";

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    fn lock(locked: bool) -> UpgradeOptions {
        UpgradeOptions {
            lock: Some(locked),
            ..Default::default()
        }
    }

    /// Version 1 runs, version 2 is published.
    fn published() -> Result<(Host, Written)> {
        let host = Host::boot()?;
        let image = host.publish(&host.next_image("2", [layer("second")]))?;
        Ok((host, image))
    }

    async fn deployment(
        connection: &Connection,
        path: &OwnedObjectPath,
    ) -> Result<DeploymentProxy<'static>> {
        let proxy = DeploymentProxy::builder(connection).path(path.clone());
        Ok(proxy.cache_properties(CacheProperties::No).build().await?)
    }

    async fn staged(connection: &Connection) -> Result<DeploymentProxy<'static>> {
        let path = HostProxy::new(connection)
            .await?
            .staged_deployment()
            .await?;
        ensure!(path.as_str() != "/", "nothing is staged");
        deployment(connection, &path).await
    }

    async fn is_locked(host: &Host) -> Result<bool> {
        Ok(staged(&host.connect().await?).await?.locked().await?)
    }

    async fn set_locked(host: &Host, path: &OwnedObjectPath, locked: bool) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let deployment = deployment(&connection, path).await?;
        let options = ManageOptions::default();
        let job = deployment.set_locked(locked, &options).await?;
        listener.end(&job).await
    }

    async fn apply(host: &Host) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = ApplyOptions::default();
        let job = Host::proxy(&connection).await?.apply(&options).await?;
        listener.end(&job).await
    }

    #[tokio::test]
    async fn what_is_locked_is_not_switched_to_until_it_is_unlocked() -> Result<()> {
        let (mut host, image) = published()?;
        let first = host.sandbox.booted()?.checksum;
        let ended = host.upgrade_with(&lock(true)).await?.succeeded()?;
        assert!(ended.value::<bool>("changed")? && ended.value::<bool>("locked")?);
        assert_eq!(ended.value::<String>("reboot")?, "none");
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        assert!(staged(&connection).await?.locked().await?);
        assert_eq!(
            proxy.default_deployment().await?,
            proxy.booted_deployment().await?
        );
        assert_eq!(proxy.reboot_required().await?, "none");
        drop((proxy, connection));

        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, first);
        assert_eq!(host.sandbox.deployments()?.len(), 1);
        let ended = host.upgrade_with(&lock(true)).await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, 0);

        let ask = |words: &[&str]| client::ask(&host.sandbox, &host.bus, words);
        let told = ask(&["unlock"])?.expect(&[0])?.stdout;
        assert!(told.contains("Unlocked 2 (sha256:"), "{told}");
        let told = ask(&["unlock"])?.expect(&[0])?.stdout;
        assert!(told.contains("is not locked"), "{told}");
        assert!(!is_locked(&host).await?);
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        assert_eq!(proxy.reboot_required().await?, "reboot");
        drop((proxy, connection));
        host.reboot()?;
        assert_ne!(host.sandbox.booted()?.checksum, first);
        let booted = Host::proxy(&host.connect().await?).await?;
        assert_eq!(booted.boot_digest().await?, image.digest);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn an_unlocked_deployment_can_be_locked_and_a_power_cut_changes_nothing() -> Result<()> {
        let (mut host, _image) = published()?;
        let first = host.sandbox.booted()?.checksum;
        client::ask(&host.sandbox, &host.bus, &["lock"])?.expect(&[1])?;
        host.upgrade().await?.succeeded()?;
        assert!(!is_locked(&host).await?);
        let told = client::ask(&host.sandbox, &host.bus, &["lock"])?.expect(&[0])?;
        assert!(told.stdout.contains("Locked 2"), "{told:?}");
        let shown = client::ask(&host.sandbox, &host.bus, &["status"])?.expect(&[0])?;
        assert!(shown.stdout.contains("staged, locked"), "{shown:?}");
        host.kill_daemon()?;
        // What is locked is known to whoever looks, not only to who locked it.
        host.start_daemon()?;
        assert!(is_locked(&host).await?);
        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, first);
        Ok(())
    }

    #[tokio::test]
    async fn an_upgrade_turns_the_lock_only_when_it_says_so() -> Result<()> {
        let (host, _second) = published()?;
        host.upgrade_with(&lock(true)).await?.succeeded()?;
        let ended = host.upgrade().await?.succeeded()?;
        assert!(!ended.value::<bool>("changed")?);
        assert!(is_locked(&host).await?, "as it was");
        for locked in [false, true] {
            let ended = host.upgrade_with(&lock(locked)).await?.succeeded()?;
            assert!(ended.value::<bool>("changed")?, "{ended:?}");
            assert_eq!(ended.value::<bool>("locked")?, locked);
            assert_eq!(is_locked(&host).await?, locked);
        }
        // A newer one takes over the lock of what it replaces, unless told otherwise.
        for (version, options, expected) in [
            ("3", UpgradeOptions::default(), true),
            ("4", lock(false), false),
            ("5", UpgradeOptions::default(), false),
            ("6", lock(true), true),
        ] {
            let image = host.publish(&host.next_image(version, [layer(version)]))?;
            let options = UpgradeOptions {
                replace_staged: Some(true),
                ..options
            };
            let ended = host.upgrade_with(&options).await?.succeeded()?;
            assert_eq!(ended.value::<String>("digest")?, image.digest);
            assert_eq!(ended.value::<bool>("locked")?, expected, "{version}");
            assert_eq!(is_locked(&host).await?, expected, "{version}");
        }
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn apply_unlocks_for_its_own_reboot_only() -> Result<()> {
        let (mut host, _image) = published()?;
        let first = host.sandbox.booted()?.checksum;
        host.upgrade_with(&lock(true)).await?.succeeded()?;
        // Nobody there who could reboot, then somebody who forbids it, then somebody who fails.
        apply(&host).await?.failed("NotSupported")?;
        assert!(is_locked(&host).await?);
        let logind = Logind::start(&host.bus).await?;
        logind.inhibit("shutdown", "Flasher", "firmware", "block");
        apply(&host).await?.failed("Inhibited")?;
        assert!(is_locked(&host).await?);
        logind.inhibit("sleep", "Player", "music", "block");
        logind.refuse_reboots(true);
        apply(&host).await?.failed("NotSupported")?;
        assert!(is_locked(&host).await?, "the reboot did not come");
        logind.refuse_reboots(false);
        assert_eq!(logind.reboots(), 0);

        let held = host.sandbox.hold_lock()?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = ApplyOptions::default();
        let job = Host::proxy(&connection).await?.apply(&options).await?;
        drop(held);
        listener.end(&job).await?.succeeded()?;
        assert_eq!(logind.reboots(), 1);
        assert!(!is_locked(&host).await?);
        drop((logind, listener, connection));
        host.reboot()?;
        assert_ne!(host.sandbox.booted()?.checksum, first);
        Ok(())
    }

    #[tokio::test]
    async fn a_logind_that_goes_down_with_the_host_owes_no_answer() -> Result<()> {
        let (host, _image) = published()?;
        host.upgrade_with(&lock(true)).await?.succeeded()?;
        let crashing = Logind::start(&host.bus).await?;
        crashing.vanish_at_reboot(Announcing::Nothing);
        apply(&host).await?.failed("NotSupported")?;
        assert!(is_locked(&host).await?, "no reboot was announced");
        drop(crashing);

        let leaving = Logind::start(&host.bus).await?;
        leaving.vanish_at_reboot(Announcing::Shutdown);
        apply(&host).await?.succeeded()?;
        assert!(!is_locked(&host).await?, "the shutdown has begun");
        Ok(())
    }

    #[tokio::test]
    async fn a_lock_of_another_tool_is_seen_and_can_be_taken_away() -> Result<()> {
        let (host, _image) = published()?;
        let commit = host.sandbox.booted()?.checksum;
        let os = format!("--os={STATEROOT}");
        let words = ["ostree", "admin", "deploy", "--stage", &os, &commit];
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        let booted = proxy.booted_deployment().await?;
        host.sandbox.run(words)?;
        host.sandbox.run(["touch", FILE])?;
        // The end of a job, whatever it is, comes after a look at the sysroot.
        let mut listener = Listener::new(&connection).await?;
        let job = proxy.check(&Default::default()).await?;
        listener.end(&job).await?;
        assert!(is_locked(&host).await?);

        let path = proxy.staged_deployment().await?;
        set_locked(&host, &path, false).await?.succeeded()?;
        assert!(!host.sandbox.exists(FILE) && !is_locked(&host).await?);
        set_locked(&host, &path, true).await?.succeeded()?;
        assert!(is_locked(&host).await?);
        let refused = set_locked(&host, &booted, true).await?;
        let refused = refused.failed("NotSupported")?;
        assert!(refused.error_message.contains("not staged"), "{refused:?}");
        Ok(())
    }

    #[tokio::test]
    async fn a_lock_without_a_deployment_holds_nothing_that_comes_later() -> Result<()> {
        let (mut host, _image) = published()?;
        let first = host.sandbox.booted()?.checksum;
        host.sandbox.run(["touch", FILE])?;
        host.upgrade().await?.succeeded()?;
        assert!(!is_locked(&host).await?);
        // Nor does the lock of what was thrown away.
        host.upgrade_with(&lock(true)).await?.succeeded()?;
        client::ask(&host.sandbox, &host.bus, &["discard", "staged"])?.expect(&[0])?;
        host.upgrade().await?.succeeded()?;
        assert!(!is_locked(&host).await?);
        host.reboot()?;
        assert_ne!(host.sandbox.booted()?.checksum, first);
        Ok(())
    }

    #[tokio::test]
    async fn where_no_lock_can_be_made_nothing_is_staged() -> Result<()> {
        let (host, _image) = published()?;
        let file = host.sandbox.inside(FILE)?;
        std::os::unix::fs::symlink("/no/such/directory/file", &file)?;
        let refused = host.upgrade_with(&lock(true)).await?;
        let refused = refused.failed("NotSupported")?;
        assert!(refused.error_message.contains("lock"), "{refused:?}");
        assert_eq!(host.sandbox.deployments()?.len(), 1);
        let told = client::ask(&host.sandbox, &host.bus, &["doctor"])?;
        assert!(told.stdout.contains("no update can be staged"), "{told:?}");
        fs::remove_file(&file).context("the link is gone")?;
        let ended = host.upgrade_with(&lock(true)).await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, 0, "it is kept");
        assert!(is_locked(&host).await?);
        let told = client::ask(&host.sandbox, &host.bus, &["doctor"])?;
        assert!(!told.stdout.contains("no update can be staged"), "{told:?}");
        let both = UpgradeOptions {
            apply: Some("reboot".into()),
            ..lock(true)
        };
        let connection = host.connect().await?;
        let refused = Host::proxy(&connection).await?.upgrade(&both).await;
        let refused = refused.err().context("it was accepted")?;
        assert_eq!(refused.name(), "org.freedesktop.DBus.Error.InvalidArgs");
        Ok(())
    }
}
