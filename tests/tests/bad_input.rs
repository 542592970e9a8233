//! What can be asked wrongly, or at the wrong moment: a name, a sentence that says what to do,
//! and no damage.

#[cfg(test)]
mod bad_input {
    use std::collections::HashMap;
    use std::fs;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::Error;
    use osteward_dbus::options::{
        ApplyOptions, DownloadOptions, ListJobsOptions, RollbackOptions, UpgradeOptions,
    };
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Image, Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::sandbox::Deployment;
    use zbus::OwnedObjectPath;

    const INVALID: &str = "org.freedesktop.DBus.Error.InvalidArgs";

    type Called = std::result::Result<OwnedObjectPath, Error>;

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    /// Calls made as root, and what became of them.
    struct Caller {
        connection: zbus::Connection,
        host: osteward_dbus::proxies::HostProxy<'static>,
        listener: Listener,
    }

    impl Caller {
        async fn new(host: &Host) -> Result<Self> {
            let connection = host.connect().await?;
            Ok(Self {
                host: Host::proxy(&connection).await?,
                listener: Listener::new(&connection).await?,
                connection,
            })
        }

        /// The job, or the call, has failed with that name and a sentence that has these words.
        async fn fails(&mut self, called: Called, name: &str, words: &str) -> Result<()> {
            let (found, text) = match called {
                Ok(job) => {
                    let ended = self.listener.end(&job).await?;
                    ensure!(ended.state == "failed", "not {name}: {ended:?}");
                    (ended.error_name, ended.error_message)
                }
                Err(error) => (error.name().to_owned(), error.message()),
            };
            let full = match name.contains('.') {
                true => name.to_owned(),
                false => format!("org.osteward1.Error.{name}"),
            };
            ensure!(found == full, "{found} instead of {full}: {text}");
            ensure!(text.contains(words), "{words:?} is not in {text:?}");
            ensure!(text.len() > 20 && text.contains(' '), "no sentence: {text}");
            Ok(())
        }

        async fn succeeds(&mut self, called: Called) -> Result<Ended> {
            self.listener.end(&called?).await?.succeeded()
        }

        async fn switch(&mut self, image: &str) -> Called {
            self.host.switch(image, &UpgradeOptions::default()).await
        }

        async fn upgrade_to(&mut self, digest: &str) -> Called {
            let digest = Some(digest.to_owned());
            let options = UpgradeOptions {
                digest,
                ..Default::default()
            };
            self.host.upgrade(&options).await
        }
    }

    /// Version 2 runs, version 1 is what it can go back to.
    async fn settled() -> Result<(Host, Written, Vec<Deployment>)> {
        let mut host = Host::boot()?;
        let second = host.publish(&host.next_image("2", [layer("second")]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        let before = host.sandbox.deployments()?;
        Ok((host, second, before))
    }

    fn third(second: &Written, layers: impl IntoIterator<Item = Layer>) -> Image {
        let image = Image::new("3").on(second).created("2025-03-01T00:00:00Z");
        layers.into_iter().fold(image, Image::layer)
    }

    #[tokio::test]
    async fn bad_arguments_are_refused_at_once() -> Result<()> {
        let host = Host::boot()?;
        let mut caller = Caller::new(&host).await?;
        for method in ["Upgrade", "Download", "Check", "Rollback", "Apply"] {
            let options = HashMap::from([("no-such-option", zbus::Variant::from(true))]);
            let body = (options,);
            let reply = caller.connection.call_method(
                Some("org.osteward1"),
                "/org/osteward1/Host",
                Some("org.osteward1.Host"),
                method,
                &body,
            );
            let called = reply.await.map_err(Error::from);
            let called = called.and_then(|m| Ok(m.body().deserialize::<OwnedObjectPath>()?));
            caller.fails(called, INVALID, "no-such-option").await?;
        }
        for digest in ["", "sha256:12", "latest", "sha512:00"] {
            let called = caller.upgrade_to(digest).await;
            caller.fails(called, INVALID, "digest").await?;
        }
        let image = ["", "UPPER/case:x", "a b", "oci:", "registry.test/x:y:z"];
        for image in image {
            let called = caller.switch(image).await;
            caller.fails(called, INVALID, "reference").await?;
        }
        let options = UpgradeOptions {
            apply: Some("now".into()),
            ..Default::default()
        };
        let called = caller.host.upgrade(&options).await;
        caller.fails(called, INVALID, "reboot").await?;
        let nothing: &[&str] = &["everything"];
        let called = caller.host.discard(nothing, &Default::default()).await;
        caller.fails(called, INVALID, "staged").await?;
        let jobs = Host::manager(&caller.connection).await?;
        assert!(
            jobs.list_jobs(&ListJobsOptions::default())
                .await?
                .is_empty()
        );
        let words = ["upgrade", "--no-such-option"];
        client::ask(&host.sandbox, &host.bus, &words)?.expect(&[2])?;
        Ok(())
    }

    #[tokio::test]
    async fn images_that_are_not_there() -> Result<()> {
        let (mut host, second, before) = settled().await?;
        host.configure("[registry]\nretry_time = \"0s\"\n")?;
        let mut caller = Caller::new(&host).await?;
        for name in ["os:nothing", "nothing:latest"] {
            let called = caller.switch(&host.registry.name(name)).await;
            caller.fails(called, "ImageNotFound", "check").await?;
        }
        for place in ["oci:/run/share/none:x", "oci:/run/share/oci:none"] {
            let called = caller.switch(place).await;
            caller.fails(called, "ImageNotFound", "check").await?;
        }
        let gone = format!("sha256:{}", "a".repeat(64));
        let called = caller.upgrade_to(&gone).await;
        caller.fails(called, "DigestGone", "another digest").await?;

        host.registry.stop();
        for _ in 0..2 {
            let called = caller.host.upgrade(&Default::default()).await;
            caller
                .fails(called, "RegistryUnreachable", "try again")
                .await?;
        }
        let called = caller.host.check(&Default::default()).await;
        caller
            .fails(called, "RegistryUnreachable", "try again")
            .await?;
        assert_eq!(caller.host.update_state().await?, "failed");
        let answer = client::ask(&host.sandbox, &host.bus, &["upgrade"])?.expect(&[1])?;
        assert!(answer.stderr.contains("RegistryUnreachable"), "{answer:?}");
        host.registry.resume()?;

        // A blob that the registry has lost.
        let lossy = host.publish(&third(&second, [layer("kept"), layer("lost")]))?;
        let lost = lossy.layers.last().context("no layers")?;
        fs::remove_file(host.registry.blob(lost))?;
        let called = caller.host.upgrade(&Default::default()).await;
        caller.fails(called, "ImageNotFound", "").await?;

        assert_eq!(host.sandbox.deployments()?, before);
        host.sandbox.fsck()?;
        host.publish(&third(&second, [layer("kept"), layer("found")]))?;
        let called = caller.host.upgrade(&Default::default()).await;
        caller.succeeds(called).await?;
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn images_that_cannot_be_booted_here() -> Result<()> {
        let (host, second, before) = settled().await?;
        let mut caller = Caller::new(&host).await?;
        let bare = Image::new("3")
            .label("containers.bootc", "")
            .layer(layer("bare"));
        bare.write_as(&host.layout, "plain")?;
        let called = caller.switch("oci:/run/share/oci:plain").await;
        caller.fails(called, "ImageInvalid", "not bootable").await?;

        let other = third(&second, [layer("other")]).architecture("riscv64");
        let other = other.write_as(&host.layout, "other")?;
        let called = caller.switch("oci:/run/share/oci:other").await;
        caller.fails(called, "ImageInvalid", "riscv64").await?;
        let index = host.layout.tag_platforms("index", &[&other])?;
        for tag in ["other", "index"] {
            host.layout.push(tag, &host.registry.name("os:other"))?;
        }
        let called = caller.switch(&host.registry.name("os:other")).await;
        caller.fails(called, "ImageInvalid", "riscv64").await?;
        // Asked for by digest: neither the other machine's manifest, nor an index without ours.
        let called = caller.upgrade_to(&other.digest).await;
        caller.fails(called, "ImageInvalid", "riscv64").await?;
        let called = caller.upgrade_to(&index).await;
        caller.fails(called, "ImageInvalid", "riscv64").await?;

        assert_eq!(host.sandbox.deployments()?, before);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn nothing_to_do_and_nothing_to_go_back_to() -> Result<()> {
        let mut host = Host::boot()?;
        let mut caller = Caller::new(&host).await?;
        let called = caller.host.rollback(&Default::default()).await;
        caller
            .fails(called, "NoRollback", "after the next update")
            .await?;
        let called = caller.host.cancel_rollback(&Default::default()).await;
        caller
            .fails(called, "NoRollback", "no rollback is queued")
            .await?;
        let called = caller.host.apply(&ApplyOptions::default()).await;
        caller.fails(called, "NoUpdate", "stage an update").await?;
        let called = caller.host.download(&DownloadOptions::default()).await;
        caller.fails(called, "NoUpdate", "newest").await?;
        let called = caller.host.upgrade(&Default::default()).await;
        let ended = caller.succeeds(called).await?;
        assert!(!ended.value::<bool>("changed")?, "{ended:?}");
        drop(caller);

        host.publish(&host.next_image("2", [layer("second")]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        let mut caller = Caller::new(&host).await?;
        let called = caller.host.rollback(&Default::default()).await;
        caller.succeeds(called).await?;
        let called = caller.host.rollback(&Default::default()).await;
        caller.fails(called, "NoRollback", "queued already").await?;
        let called = caller.host.cancel_rollback(&Default::default()).await;
        caller.succeeds(called).await?;
        let options = RollbackOptions {
            digest: Some(format!("sha256:{}", "b".repeat(64))),
            ..Default::default()
        };
        let called = caller.host.rollback(&options).await;
        caller.fails(called, "NoRollback", "see the status").await?;
        let called = caller.host.rollback(&Default::default()).await;
        caller.succeeds(called).await?;
        let wrong = ApplyOptions {
            digest: Some(format!("sha256:{}", "b".repeat(64))),
            ..Default::default()
        };
        let called = caller.host.apply(&wrong).await;
        caller.fails(called, "DigestMismatch", "status").await?;
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn what_is_staged_is_not_thrown_away_silently() -> Result<()> {
        let (host, second, _) = settled().await?;
        host.publish(&third(&second, [layer("third")]))?;
        host.upgrade().await?.succeeded()?;
        let staged = host.sandbox.deployments()?;
        let mut caller = Caller::new(&host).await?;
        let called = caller.host.rollback(&Default::default()).await;
        caller.fails(called, "StagedPending", "explicitly").await?;
        let fourth = third(&second, [layer("fourth")]).created("2025-04-01T00:00:00Z");
        let fourth = host.publish(&fourth)?;
        let called = caller.host.upgrade(&Default::default()).await;
        caller.fails(called, "StagedPending", "replacement").await?;
        let called = caller.switch("oci:/run/share/oci:latest").await;
        caller.fails(called, "StagedPending", "replacement").await?;
        assert_eq!(host.sandbox.deployments()?, staged);

        let options = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let called = caller.host.upgrade(&options).await;
        let ended = caller.succeeds(called).await?;
        assert_eq!(ended.value::<String>("digest")?, fourth.digest);
        assert!(ended.result.contains_key("replaced"), "{ended:?}");
        let options = RollbackOptions {
            discard_staged: Some(true),
            ..Default::default()
        };
        let called = caller.host.rollback(&options).await;
        caller.succeeds(called).await?;
        let now = host.sandbox.deployments()?;
        assert!(now.iter().all(|deployment| !deployment.staged), "{now:?}");
        assert_eq!(now.len(), 2);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_downgrade_is_made_only_when_it_is_meant() -> Result<()> {
        let (host, second, before) = settled().await?;
        let older = third(&second, [layer("older")]).created("2024-01-01T00:00:00Z");
        let older = host.publish(&older)?;
        let mut caller = Caller::new(&host).await?;
        let called = caller.host.upgrade(&Default::default()).await;
        caller
            .fails(called, "DowngradeRefused", "allow the downgrade")
            .await?;
        let called = caller.host.download(&Default::default()).await;
        caller
            .fails(called, "DowngradeRefused", "allow the downgrade")
            .await?;
        assert_eq!(host.sandbox.deployments()?, before);
        let options = UpgradeOptions {
            allow_downgrade: Some(true),
            ..Default::default()
        };
        let called = caller.host.upgrade(&options).await;
        let ended = caller.succeeds(called).await?;
        assert_eq!(ended.value::<String>("digest")?, older.digest);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn what_was_left_behind_comes_back_only_by_its_digest() -> Result<()> {
        let (mut host, second, _) = settled().await?;
        client::ask(&host.sandbox, &host.bus, &["rollback"])?.expect(&[0])?;
        host.reboot()?;
        let mut caller = Caller::new(&host).await?;
        let called = caller.host.upgrade(&Default::default()).await;
        caller.fails(called, "Quarantined", "newer image").await?;
        let called = caller.host.download(&Default::default()).await;
        caller.fails(called, "Quarantined", "newer image").await?;
        let called = caller.upgrade_to(&second.digest).await;
        let ended = caller.succeeds(called).await?;
        assert_eq!(ended.value::<String>("digest")?, second.digest);
        drop(caller);
        host.reboot()?;
        // It was lifted by that.
        let ended = host.upgrade().await?.succeeded()?;
        assert!(!ended.value::<bool>("changed")?);
        Ok(())
    }
}
