//! The main job: an image becomes the next boot, over D-Bus, with the tree that bootc gets.

#[cfg(test)]
mod main_job {
    use anyhow::{Context, Result};
    use osteward_dbus::options::UpgradeOptions;
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::oracle;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;

    fn motd(text: &str) -> Layer {
        Layer::new().dir("etc").file("etc/motd", text)
    }

    #[tokio::test]
    async fn an_image_is_pulled_staged_booted_and_rolled_back() -> Result<()> {
        let mut host = Host::boot()?;
        let first = host.sandbox.booted()?;
        let layers = [
            motd("2\n"),
            Layer::new()
                .dir("usr")
                .file("usr/z", "z")
                .compressed(Compression::Zstd),
            Layer::new()
                .whiteout("etc/fstab")
                .compressed(Compression::Plain),
            Layer::new(),
        ];
        let image = host.publish(&host.next_image("2", layers))?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        assert!(ended.value::<bool>("changed")?);

        let source = host.source();
        let stored = oracle::query(&host.sandbox.repo(), &source)?.context("no image ref")?;
        assert_eq!(stored.manifest_digest, image.digest);
        let tree = host.oracle_tree()?;
        assert_eq!((stored.root_contents, stored.root_metadata), tree);
        let deployments = host.sandbox.deployments()?;
        assert!(deployments[0].staged && deployments[0].checksum == stored.merge_commit);
        let again = host.upgrade().await?.succeeded()?;
        assert!(!again.value::<bool>("changed")?);
        host.sandbox.fsck()?;

        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, stored.merge_commit);
        assert_eq!(host.sandbox.run(["cat", "/etc/motd"])?, "2\n");
        assert!(!host.sandbox.exists("/etc/fstab"));

        client::ask(&host.sandbox, &host.bus, &["rollback"])?.expect(&[0])?;
        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, first.checksum);
        oracle::prune(host.sandbox.sysroot())?;
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn what_was_rolled_back_is_not_staged_again_by_itself() -> Result<()> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", [motd("2\n")]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        client::ask(&host.sandbox, &host.bus, &["rollback"])?.expect(&[0])?;
        host.reboot()?;
        host.upgrade().await?.failed("Quarantined")?;
        assert_eq!(
            host.sandbox
                .deployments()?
                .iter()
                .filter(|d| d.staged)
                .count(),
            0
        );
        Ok(())
    }

    #[tokio::test]
    async fn only_missing_layers_are_fetched() -> Result<()> {
        let host = Host::boot()?;
        let image = host.publish(&host.next_image("2", [motd("2\n")]))?;
        let ended = host.upgrade().await?.succeeded()?;
        let refs = host.sandbox.refs("ostree/container/blob/")?;
        assert_eq!(refs.len(), image.layers.len(), "{refs:?} {ended:?}");
        let next = host.next_image("3", [motd("2\n"), motd("3\n")]);
        host.registry.corrupt(&image.layers[0])?;
        host.registry.corrupt(&image.layers[1])?;
        next.write_as(&host.layout, "latest")?;
        host.layout
            .push("latest", &host.registry.name("os:latest"))?;
        let options = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let ended = host.upgrade_with(&options).await?.succeeded()?;
        assert!(ended.value::<bool>("changed")?);
        Ok(())
    }

    #[test]
    fn the_client_tells_an_unprivileged_user_how_things_stand() -> Result<()> {
        let host = Host::boot()?;
        let words = ["status", "--json"];
        let answer = client::ask_as(&host.sandbox, &host.bus, Some(UNPRIVILEGED_UID), &words)?;
        let status = answer.expect(&[0])?.json()?;
        assert_eq!(
            status["boot-digest"],
            host.first.digest.as_str(),
            "{status:#}"
        );
        let answer = client::ask(&host.sandbox, &host.bus, &["check"])?.expect(&[0])?;
        drop(answer);
        host.publish(&host.next_image("2", [motd("2\n")]))?;
        client::ask(&host.sandbox, &host.bus, &["check"])?.expect(&[10])?;
        client::ask(&host.sandbox, &host.bus, &["upgrade"])?.expect(&[0])?;
        client::ask(&host.sandbox, &host.bus, &["check"])?.expect(&[11])?;
        let upgrade = ["upgrade"];
        let denied = client::ask_as(&host.sandbox, &host.bus, Some(UNPRIVILEGED_UID), &upgrade)?;
        let denied = denied.expect(&[1])?;
        assert!(denied.stderr.contains("AccessDenied"), "{denied:#?}");
        Ok(())
    }
}
