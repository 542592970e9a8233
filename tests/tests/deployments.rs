//! What becomes of deployments and downloads: kept, removed, staged from what is here, counted.

#[cfg(test)]
mod deployments {
    use std::fs;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{CheckOptions, DiscardOptions, ManageOptions, UpgradeOptions};
    use osteward_dbus::proxies::DeploymentProxy;
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::oracle;
    use osteward_tests::process::{command, run, workspace};
    use osteward_tests::sandbox::refs::blob_ref;
    use zbus::OwnedObjectPath;
    use zbus::proxy::CacheProperties;

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    /// Publishes a version with one layer of its own, and boots it.
    async fn boot_version(host: &mut Host, version: &str) -> Result<Written> {
        let image = host.publish(&host.next_image(version, [layer(version)]))?;
        host.upgrade().await?.succeeded()?;
        reboot(host).await?;
        Ok(image)
    }

    /// Reboots, and waits until the daemon has seen what is booted now: the end of a job,
    /// whatever it is, comes after a look.
    async fn reboot(host: &mut Host) -> Result<()> {
        host.reboot()?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = CheckOptions::default();
        let job = Host::proxy(&connection).await?.check(&options).await?;
        listener.end(&job).await.map(drop)
    }

    fn ask(host: &Host, words: &[&str], code: i32) -> Result<String> {
        let answer = client::ask(&host.sandbox, &host.bus, words)?.expect(&[code])?;
        Ok(answer.stdout + &answer.stderr)
    }

    fn versions(host: &Host) -> Result<Vec<(String, String, bool)>> {
        let answer = client::ask(&host.sandbox, &host.bus, &["status", "--json"])?;
        let status = answer.expect(&[0])?.json()?;
        let deployments = status["deployments"].as_array().context("no list")?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(deployments
            .iter()
            .map(|one| {
                (
                    text(&one["state"]),
                    text(&one["version"]),
                    one["pinned"] == true,
                )
            })
            .collect())
    }

    /// As [`versions`], in the words `state version` with a `+` for what is pinned.
    fn shown(host: &Host) -> Result<String> {
        let versions = versions(host)?.into_iter();
        let words = versions.map(|(state, version, pinned)| {
            format!("{state} {version}{}", if pinned { "+" } else { "" })
        });
        Ok(words.collect::<Vec<_>>().join(", "))
    }

    async fn upgrade(host: &Host, options: UpgradeOptions) -> Result<Ended> {
        host.upgrade_with(&options).await
    }

    fn has_layers(host: &Host, image: &Written) -> Result<bool> {
        let refs = host.sandbox.refs("ostree/container/blob/")?;
        Ok(image
            .layers
            .iter()
            .all(|layer| refs.contains(&blob_ref(layer))))
    }

    #[tokio::test]
    async fn what_is_pinned_stays_through_every_version_and_can_be_booted() -> Result<()> {
        let mut host = Host::boot()?;
        let second = boot_version(&mut host, "2").await?;
        ask(&host, &["pin", "booted"], 0)?;
        let told = ask(&host, &["pin", &second.digest], 0)?;
        assert!(told.contains("pinned already"), "{told}");
        let third = boot_version(&mut host, "3").await?;
        assert_eq!(shown(&host)?, "booted 3, rollback 2+");
        boot_version(&mut host, "4").await?;
        assert_eq!(shown(&host)?, "booted 4, rollback 3, other 2+");
        let fifth = boot_version(&mut host, "5").await?;
        assert_eq!(shown(&host)?, "booted 5, rollback 4, other 2+");
        // One more staging cleans up after version 3, and bootc's own clean-up after all.
        host.publish(&host.next_image("6", [layer("6")]))?;
        host.upgrade().await?.succeeded()?;
        oracle::prune(host.sandbox.sysroot())?;
        host.sandbox.fsck()?;
        assert!(has_layers(&host, &second)? && has_layers(&host, &fifth)?);
        assert!(!has_layers(&host, &third)?);
        assert_eq!(shown(&host)?, "staged 6, booted 5, rollback 4, other 2+");

        let refused = ask(&host, &["remove", &second.digest], 1)?;
        assert!(refused.contains("unpin"), "{refused}");
        let unclear = ask(&host, &["remove", "2"], 1)?;
        assert!(unclear.contains(" or "), "a place and a version: {unclear}");
        ask(&host, &["discard", "staged"], 0)?;
        ask(&host, &["rollback", "--digest", &second.digest], 0)?;
        reboot(&mut host).await?;
        assert_eq!(shown(&host)?, "booted 2+, rollback 5, other 4");
        ask(&host, &["unpin", "booted"], 0)?;
        assert_eq!(shown(&host)?, "booted 2, rollback 5, other 4");
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_deployment_is_removed_unless_the_host_needs_it() -> Result<()> {
        let mut host = Host::boot()?;
        let second = boot_version(&mut host, "2").await?;
        let before = host.sandbox.deployments()?;
        for word in ["booted", &second.digest[..20]] {
            let refused = ask(&host, &["remove", word], 1)?;
            assert!(refused.contains("NotSupported"), "{refused}");
        }
        ask(&host, &["remove", "7"], 1)?;
        ask(&host, &["rollback"], 0)?;
        let refused = ask(&host, &["remove", "rollback"], 1)?;
        assert!(refused.contains("StagedPending"), "{refused}");
        let refused = ask(&host, &["discard", "rollback"], 1)?;
        assert!(refused.contains("StagedPending"), "{refused}");
        ask(&host, &["rollback", "--cancel"], 0)?;
        assert_eq!(host.sandbox.deployments()?, before);

        let third = host.publish(&host.next_image("3", [layer("3")]))?;
        host.upgrade().await?.succeeded()?;
        ask(&host, &["pin", "staged"], 1)?;
        ask(&host, &["remove", "staged"], 0)?;
        assert!(!host.sandbox.exists("/run/ostree/staged-deployment"));
        assert_eq!(host.sandbox.deployments()?, before);
        let told = ask(&host, &["remove", "rollback"], 0)?;
        assert!(told.contains("Removed"), "{told}");
        assert_eq!(shown(&host)?, "booted 2");
        host.sandbox.fsck()?;
        // What was removed staged is here as long as nothing else is pulled.
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, third.digest);
        reboot(&mut host).await?;
        assert_eq!(shown(&host)?, "booted 3, rollback 2");
        Ok(())
    }

    #[tokio::test]
    async fn a_deployment_that_is_gone_is_an_unknown_object() -> Result<()> {
        let mut host = Host::boot()?;
        boot_version(&mut host, "2").await?;
        let connection = host.connect().await?;
        let path = Host::proxy(&connection)
            .await?
            .rollback_deployment()
            .await?;
        let proxy = DeploymentProxy::builder(&connection).path(path.clone());
        let proxy = proxy.cache_properties(CacheProperties::No).build().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = ManageOptions::default();
        let job: OwnedObjectPath = proxy.remove(&options).await?;
        listener.end(&job).await?.succeeded()?;
        let calls = [
            proxy.remove(&options).await,
            proxy.set_pinned(true, &options).await,
            proxy.set_locked(true, &options).await,
        ];
        for refused in calls {
            let error = refused.err().context("it was accepted")?;
            assert_eq!(error.name(), "org.freedesktop.DBus.Error.UnknownObject");
        }
        Ok(())
    }

    #[tokio::test]
    async fn what_was_downloaded_is_staged_without_a_network() -> Result<()> {
        let mut host = Host::boot()?;
        host.configure("[registry]\nretry_time = \"0s\"\n")?;
        let nothing = upgrade(&host, from_cache()).await?.succeeded()?;
        assert!(
            !nothing.value::<bool>("changed")?,
            "the booted image is all there is"
        );
        let image = host.publish(&host.next_image("2", [layer("2")]))?;
        let only = UpgradeOptions {
            download_only: Some(true),
            ..Default::default()
        };
        let ended = upgrade(&host, only.clone()).await?.succeeded()?;
        assert!(ended.value::<u64>("fetched-bytes")? > 0 && !ended.value::<bool>("staged")?);
        assert_eq!(host.sandbox.deployments()?.len(), 1);
        // Whatever the registry says now, and whether or not there is one.
        host.publish(&host.next_image("3", [layer("3")]))?;
        host.registry.stop();
        upgrade(&host, only).await?.failed("RegistryUnreachable")?;
        let ended = upgrade(&host, from_cache()).await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        assert!(ended.value::<bool>("staged")?);
        reboot(&mut host).await?;
        assert_eq!(shown(&host)?, "booted 2, rollback 1");
        let by_digest = |digest: &str| UpgradeOptions {
            digest: Some(digest.to_owned()),
            allow_downgrade: Some(true),
            ..from_cache()
        };
        let ended = upgrade(&host, by_digest(&host.first.digest))
            .await?
            .succeeded()?;
        assert_eq!(
            ended.value::<u64>("fetched-bytes")?,
            0,
            "the rollback is here"
        );
        let unknown = format!("sha256:{}", "0".repeat(64));
        upgrade(&host, by_digest(&unknown))
            .await?
            .failed("NoUpdate")?;
        host.sandbox.fsck()
    }

    fn from_cache() -> UpgradeOptions {
        UpgradeOptions {
            from_cache: Some(true),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn half_a_download_is_not_staged_from_the_cache() -> Result<()> {
        let host = Host::boot()?;
        let image = host.publish(&host.next_image("2", [layer("2"), layer("two")]))?;
        ask(&host, &["download"], 0)?;
        let lost = image.layers.last().context("no layers")?;
        host.sandbox.ostree(["refs", "--delete", &blob_ref(lost)])?;
        let refused = upgrade(&host, from_cache()).await?.failed("NoUpdate")?;
        assert!(refused.error_message.contains("1 of"), "{refused:?}");
        let told = ask(&host, &["upgrade", "--from-cache"], 1)?;
        assert!(told.contains("from-cache"), "{told}");
        host.upgrade().await?.succeeded()?;
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn what_was_staged_locked_survives_the_reboot_and_bootc_as_a_download() -> Result<()> {
        let mut host = Host::boot()?;
        let source = format!("{}-next", host.registry.name("os:latest"));
        host.next_image("2", [layer("2")])
            .write_as(&host.layout, "next")?;
        host.layout.push("next", &source)?;
        // Another reference: nothing that is booted has its name.
        ask(&host, &["switch", "--lock", &source], 0)?;
        host.reboot()?;
        assert_eq!(host.sandbox.deployments()?.len(), 1);
        oracle::prune(host.sandbox.sysroot())?;
        let told = ask(&host, &["--json", "switch", &source], 0)?;
        let last = told.lines().last().unwrap_or_default();
        let last: serde_json::Value = serde_json::from_str(last)?;
        assert_eq!(last["result"]["fetched-bytes"], 0, "{last}");
        host.sandbox.fsck()
    }

    async fn discard(host: &Host, what: &[&str], dry_run: bool) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = DiscardOptions {
            dry_run: Some(dry_run),
            ..Default::default()
        };
        let job = Host::proxy(&connection)
            .await?
            .discard(what, &options)
            .await?;
        listener.end(&job).await?.succeeded()
    }

    #[tokio::test]
    async fn a_dry_run_tells_what_discard_then_frees() -> Result<()> {
        let mut host = Host::boot()?;
        boot_version(&mut host, "2").await?;
        let big = Layer::new().dir("usr").file("usr/big", vec![7; 3 << 20]);
        host.publish(&host.next_image("3", [layer("2"), big]))?;
        ask(&host, &["download"], 0)?;
        let words: [&[&str]; 3] = [&["unreferenced"], &["cache"], &["rollback", "unreferenced"]];
        for what in words {
            let before = host.sandbox.deployments()?;
            let told = discard(&host, what, true).await?;
            assert!(!told.value::<bool>("changed")?);
            assert_eq!(host.sandbox.deployments()?, before);
            let done = discard(&host, what, false).await?;
            for key in ["freed-bytes", "deployments", "images", "layers"] {
                let (told, done) = (told.value::<u64>(key)?, done.value::<u64>(key)?);
                assert_eq!(told, done, "{key} of {what:?}");
            }
            if what == ["cache"] {
                assert!(done.value::<u64>("freed-bytes")? > 3 << 20, "{done:?}");
            }
            host.sandbox.fsck()?;
        }
        assert_eq!(shown(&host)?, "booted 2");
        reboot(&mut host).await?;
        assert_eq!(shown(&host)?, "booted 2");
        Ok(())
    }

    #[tokio::test]
    async fn a_finalization_that_failed_is_told_after_the_boot() -> Result<()> {
        let mut host = Host::boot()?;
        let first = host.sandbox.booted()?.checksum;
        host.publish(&host.next_image("2", [layer("2")]))?;
        host.upgrade().await?.succeeded()?;
        let daemon = host.daemon.take().context("the daemon does not run")?;
        ensure!(daemon.stop()?.success(), "the daemon did not end well");
        let boot = host.sandbox.sysroot().join("boot");
        run(command(["chattr", "+i"]).arg(&boot))?;
        let finalized = host
            .sandbox
            .succeeds(["ostree", "admin", "finalize-staged"]);
        run(command(["chattr", "-i"]).arg(&boot))?;
        ensure!(!finalized?, "it was finalized after all");
        let stamp = fs::read_to_string(boot.join("ostree/finalize-failure.stamp"))?;
        host.sandbox.power_cut()?;
        assert_eq!(host.sandbox.booted()?.checksum, first);

        // Early in the boot: tmpfiles, then libostree's own report, which removes its stamp.
        let rules = workspace().join("systemd-units/osteward.tmpfiles.conf");
        fs::copy(rules, host.sandbox.share().join("osteward.conf"))?;
        let tmpfiles = [
            "systemd-tmpfiles",
            "--create",
            "--remove",
            "--boot",
            "/run/share/osteward.conf",
        ];
        host.sandbox.run(tmpfiles)?;
        assert!(!host.sandbox.succeeds([
            "env",
            "INVOCATION_ID=1",
            "ostree",
            "admin",
            "boot-complete"
        ])?);
        assert!(!boot.join("ostree/finalize-failure.stamp").exists());
        host.start_daemon()?;
        let connection = host.connect().await?;
        let last = Host::proxy(&connection).await?.last_finalize().await?;
        assert!(bool::try_from(&last["failed"])?, "{last:?}");
        assert_eq!(
            String::try_from(last["message"].try_clone()?)?,
            stamp.trim()
        );
        assert!(u64::try_from(&last["time"])? > 1_700_000_000, "{last:?}");
        let told = ask(&host, &["status"], 0)?;
        assert!(told.contains("Finalize: failed"), "{told}");

        // The same again, without obstacles.
        drop(connection);
        host.upgrade().await?.succeeded()?;
        reboot(&mut host).await?;
        let last = Host::proxy(&host.connect().await?)
            .await?
            .last_finalize()
            .await?;
        assert!(!bool::try_from(&last["failed"])?, "{last:?}");
        assert_eq!(shown(&host)?, "booted 2, rollback 1");
        Ok(())
    }
}
