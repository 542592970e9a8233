//! Hosts that something is wrong with: full disks, broken configuration, odd origins, or no
//! ostree at all. What does not need the broken part still works.

#[cfg(test)]
mod bad_host {
    use std::fs;
    use std::path::PathBuf;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{NoOptions, UpgradeOptions};
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::Layer;
    use osteward_tests::job::Listener;
    use osteward_tests::process::{command, run, target_dir};
    use osteward_tests::sandbox::STATEROOT;

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    /// Version 2 runs, version 1 is what it can go back to.
    async fn settled() -> Result<Host> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", [layer("second")]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        Ok(host)
    }

    fn origin(host: &Host) -> Result<PathBuf> {
        let booted = host.sandbox.booted()?;
        let name = format!("{}.{}.origin", booted.checksum, booted.serial);
        let deployments = format!("ostree/deploy/{STATEROOT}/deploy");
        Ok(host.sandbox.sysroot().join(deployments).join(name))
    }

    /// Tells a test that it runs on a disk of its own.
    const SMALL_DISK: &str = "OSTEWARD_TEST_SMALL_DISK";
    const DISK_SIZE: u64 = 512 << 20;

    /// Runs one test of this file once more, with everything that it makes on a small disk.
    fn on_a_small_disk(test: &str) -> Result<()> {
        const SCRIPT: &str = r#"mount -o loop "$1" "$2" && shift 2 && exec "$@""#;
        let place = target_dir()?.join("sandbox");
        fs::create_dir_all(&place)?;
        let image = tempfile::NamedTempFile::new_in(target_dir()?)?;
        image.as_file().set_len(DISK_SIZE)?;
        run(command(["mkfs.ext4", "-q", "-m", "0"]).arg(image.path()))?;
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
        let mut again = command(words);
        again.args([SCRIPT, "small-disk"]).arg(image.path());
        again.arg(place).arg(std::env::current_exe()?);
        again.args(["--exact", test, "--nocapture"]);
        println!("{}", run(again.env(SMALL_DISK, "1"))?);
        Ok(())
    }

    #[tokio::test]
    async fn a_full_disk_is_told_with_numbers() -> Result<()> {
        if std::env::var_os(SMALL_DISK).is_none() {
            return on_a_small_disk("bad_host::a_full_disk_is_told_with_numbers");
        }
        let host = settled().await?;
        let before = host.sandbox.deployments()?;
        // Few bytes to fetch, more to write than there is room: only the writing can tell.
        let files = ["usr", "usr/share", "usr/share/zeros"].map(str::to_owned);
        fs::create_dir_all(host.sandbox.share().join("tree/usr/share"))?;
        let tree = host.sandbox.share().join("tree");
        fs::File::create(tree.join(&files[2]))?.set_len(2 * DISK_SIZE)?;
        host.publish(&host.next_image("3", [Layer::new().add_from(&tree, &files)?]))?;
        // Before the first byte, at libostree's reserve, and at the very end of the disk.
        let reserves = [
            ("core.min-free-space-size", "512MB"),
            ("core.min-free-space-percent", "3"),
            ("core.min-free-space-percent", "0"),
        ];
        for (key, value) in reserves {
            host.sandbox.ostree(["config", "set", key, value])?;
            let ended = host.upgrade().await?.failed("NoSpace")?;
            let told = &ended.error_message;
            ensure!(told.contains("free some"), "{key}={value}: {told}");
            assert!(ended.value::<u64>("need")? > 0, "{ended:?}");
            assert!(ended.value::<u64>("have")? < DISK_SIZE, "{ended:?}");
            assert!(ended.value::<String>("where")?.contains("ostree/repo"));
            assert_eq!(host.sandbox.deployments()?, before);
            host.sandbox.ostree(["config", "unset", key])?;
            host.sandbox.fsck()?;
        }
        let image = host.publish(&host.next_image("3", [layer("third")]))?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_broken_configuration_stops_fetching_and_nothing_else() -> Result<()> {
        let mut host = settled().await?;
        host.kill_daemon()?;
        let config = host.sandbox.inside("/etc/osteward")?;
        fs::create_dir_all(&config)?;
        let file = config.join("osteward.toml");
        fs::write(&file, "[registry]\ninsecur = [\"x\"]\n")?;
        host.start_daemon()?;
        let connection = host.connect().await?;
        let warnings = Host::manager(&connection).await?.config_warnings().await?;
        let named = |text: &str| text.contains("/etc/osteward/osteward.toml");
        assert!(warnings.iter().any(|w| named(w)), "{warnings:?}");
        let proxy = Host::proxy(&connection).await?;
        let calls = [
            proxy.upgrade(&Default::default()).await,
            proxy.check(&Default::default()).await,
            proxy.download(&Default::default()).await,
            proxy
                .switch("oci:/run/share/oci:latest", &Default::default())
                .await,
        ];
        for refused in calls {
            let error = refused.err().context("it was accepted")?;
            assert_eq!(error.name(), "org.osteward1.Error.ConfigInvalid");
            let text = error.message();
            assert!(named(&text) && text.contains("insecur"), "{text}");
            assert!(text.contains("correct the file"), "{text}");
        }
        client::ask(&host.sandbox, &host.bus, &["status"])?.expect(&[0])?;
        let mut listener = Listener::new(&connection).await?;
        let job = proxy.rollback(&Default::default()).await?;
        listener.end(&job).await?.succeeded()?;
        drop((proxy, listener, connection));
        let rollback = host.sandbox.deployments()?.remove(0).checksum;
        fs::remove_file(file)?;
        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, rollback);
        Ok(())
    }

    #[tokio::test]
    async fn origins_that_osteward_must_not_follow() -> Result<()> {
        let mut host = settled().await?;
        let file = origin(&host)?;
        let plain = fs::read_to_string(&file)?;
        let name = host.registry.name("os:latest");
        let signed = plain.replace(
            "ostree-unverified-registry:",
            "ostree-image-signed:docker://",
        );
        let remote = plain.replace("ostree-unverified-registry:", "ostree-remote-registry:me:");
        let layered = format!("{plain}\n[packages]\nrequested=vim;\n");
        let odd = plain.replace(&name, "");
        let refspec = "[origin]\nrefspec=me:os/stable\n".to_owned();
        for (text, error, words) in [
            (signed, "SignatureRejected", "bootc"),
            (remote, "SignatureRejected", "bootc"),
            (layered, "NotSupported", "rpm-ostree reset"),
            (odd, "NotSupported", "osteward switch"),
            (refspec, "NotSupported", "osteward switch"),
        ] {
            host.kill_daemon()?;
            fs::write(&file, &text)?;
            host.start_daemon()?;
            let before = host.sandbox.deployments()?;
            let ended = host.upgrade().await?.failed(error)?;
            assert!(ended.error_message.contains(words), "{text}: {ended:?}");
            client::ask(&host.sandbox, &host.bus, &["check"])?.expect(&[1])?;
            client::ask(&host.sandbox, &host.bus, &["status"])?.expect(&[0])?;
            assert_eq!(host.sandbox.deployments()?, before);
        }
        // The way out that the message names.
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        host.publish(&host.next_image("3", [layer("third")]))?;
        let job = Host::proxy(&connection)
            .await?
            .switch(&name, &UpgradeOptions::default())
            .await?;
        listener.end(&job).await?.succeeded()?;
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_host_that_was_not_booted_by_ostree() -> Result<()> {
        let mut host = Host::boot()?;
        host.kill_daemon()?;
        host.sandbox.run(["rm", "/run/ostree-booted"])?;
        host.start_daemon()?;
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        let mut listener = Listener::new(&connection).await?;
        let calls = [
            proxy.upgrade(&Default::default()).await,
            proxy.check(&Default::default()).await,
            proxy.download(&Default::default()).await,
            proxy.rollback(&Default::default()).await,
            proxy.apply(&Default::default()).await,
            proxy.discard(&["cache"], &Default::default()).await,
        ];
        for called in calls {
            let (name, text) = match called {
                Ok(job) => {
                    let ended = listener.end(&job).await?;
                    (ended.error_name, ended.error_message)
                }
                Err(error) => (error.name().to_owned(), error.message()),
            };
            assert_eq!(name, "org.osteward1.Error.NotBooted", "{text}");
            assert!(text.contains("image-based host"), "{text}");
        }
        assert_eq!(proxy.booted_deployment().await?.as_str(), "/");
        let status = proxy.status(&NoOptions::default()).await?;
        assert!(status.contains_key("deployments"), "{status:?}");
        client::ask(&host.sandbox, &host.bus, &["status"])?;
        Ok(())
    }
}
