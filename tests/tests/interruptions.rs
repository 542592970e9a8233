//! A daemon that is killed, a job that is cancelled, in every phase: nothing is damaged, the
//! host boots what it booted before, and what was there is used by the next upgrade.

#[cfg(test)]
mod interruptions {
    use anyhow::{Context, Result};
    use osteward_tests::chance::Dice;
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::sandbox::refs::blob_ref;
    use osteward_tests::settled::Settled;
    use osteward_tests::turnstile::Turnstile;

    /// Of the layer that is stopped: more than the rest, so that a lane begins with it.
    const LARGE: usize = 2 << 20;
    const HALF: u64 = 1 << 20;

    fn small(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    fn large(seed: u64) -> Layer {
        let layer = Layer::new().dir("usr").dir("usr/share");
        layer.file(&format!("usr/share/large-{seed}"), Dice(seed).noise(LARGE))
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

    async fn settled() -> Result<Settled> {
        Settled::new([small("second")]).await
    }

    #[tokio::test]
    async fn killed_while_downloading() -> Result<()> {
        let mut settled = settled().await?;
        let image = settled.publish([small("a"), small("b"), large(1)])?;
        let stopped = settled.start_until_last(&image, HALF).await?;
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
        let mut settled = settled().await?;
        let image = settled.publish([small("a"), many_files()])?;
        let stopped = settled.start_until("importing").await?;
        settled.kill("importing")?;
        drop(stopped);
        settled.finish(&image).await?;
        Ok(())
    }

    #[tokio::test]
    async fn killed_while_merging() -> Result<()> {
        let mut settled = settled().await?;
        let image = settled.publish([small("a"), large(2)])?;
        let stopped = settled.start_until_last(&image, HALF).await?;
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
        let mut settled = settled().await?;
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
        let mut settled = settled().await?;
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
        let mut settled = settled().await?;
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
        let mut settled = settled().await?;
        let image = settled.publish([small("a"), small("b"), large(3)])?;
        let stopped = settled.start_until_last(&image, HALF).await?;
        stopped.cancel().await?;
        stopped.cancelled().await?;
        settled.check("downloading")?;
        let fetched = settled.finish(&image).await?;
        assert!(fetched > HALF);
        Ok(())
    }

    #[tokio::test]
    async fn cancelled_while_importing() -> Result<()> {
        let mut settled = settled().await?;
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
        let mut settled = settled().await?;
        let image = settled.publish([small("a"), large(4)])?;
        let stopped = settled.start_until_last(&image, HALF).await?;
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
        let mut settled = settled().await?;
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
        let mut settled = settled().await?;
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
        let settled = settled().await?;
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
        let mut settled = settled().await?;
        let image = settled.publish([small("a"), small("b"), large(5)])?;
        let stopped = settled.start_until_last(&image, HALF).await?;
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
        let mut settled = settled().await?;
        let hasty = "[registry]\nretry_time = \"2s\"\n";
        settled.host.configure(hasty)?;
        let image = settled.publish([small("a"), small("b"), large(6)])?;
        let stopped = settled.start_until_last(&image, HALF).await?;
        settled.relay.cut();
        stopped.end().await?.failed("RegistryUnreachable")?;
        settled.check("downloading")?;
        let fetched = settled.finish(&image).await?;
        assert!(fetched > HALF);
        Ok(())
    }
}
