//! The daemon is killed in every phase: nothing is damaged, and what was there is used again.

#[cfg(test)]
mod crash {
    use anyhow::{Context, Result};
    use osteward_dbus::options::UpgradeOptions;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Image, Layer};
    use osteward_tests::job::Listener;
    use osteward_tests::oracle;

    /// Files enough that no phase is over before the harness has heard of it.
    fn heavy(seed: u8) -> Layer {
        let mut layer = Layer::new()
            .dir("usr")
            .dir("usr/heavy")
            .compressed(Compression::Plain);
        for number in 0..400_u32 {
            let mut content = vec![seed; 48 << 10];
            content[..4].copy_from_slice(&number.to_le_bytes());
            layer = layer.file(&format!("usr/heavy/{seed}-{number}"), content);
        }
        layer
    }

    fn image(host: &Host, version: &str) -> Image {
        host.next_image(version, (0..6).map(heavy))
    }

    async fn killed_while(phase: &str) -> Result<()> {
        let mut host = Host::boot()?;
        let image = host.publish(&image(&host, "2"))?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        // Staging is short, and what comes in one fifth of a second is told as one change:
        // another tool's lock holds the daemon at the door until the harness has seen it there.
        let lock = if phase == "staging" {
            Some(host.sandbox.hold_lock()?)
        } else {
            None
        };
        let job = Host::proxy(&connection)
            .await?
            .upgrade(&UpgradeOptions::default())
            .await?;
        listener.wait_for_phase(&job, phase).await?;
        drop(lock);
        host.kill_daemon()?;
        host.sandbox
            .fsck()
            .with_context(|| format!("killed while {phase}"))?;
        let before = host.sandbox.refs("ostree/container/blob/")?.len();
        host.start_daemon()?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        let stored = oracle::query(&host.sandbox.repo(), &host.source())?.context("no image")?;
        assert_eq!(
            (stored.root_contents, stored.root_metadata),
            host.oracle_tree()?
        );
        println!("killed while {phase}: {before} layers were kept");
        if matches!(phase, "merging" | "staging") {
            assert_eq!(before, image.layers.len(), "layers were lost");
        }
        host.sandbox.fsck()?;
        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, stored.merge_commit);
        Ok(())
    }

    #[tokio::test]
    async fn while_downloading() -> Result<()> {
        killed_while("downloading").await
    }

    #[tokio::test]
    async fn while_importing() -> Result<()> {
        killed_while("importing").await
    }

    #[tokio::test]
    async fn while_merging() -> Result<()> {
        killed_while("merging").await
    }

    #[tokio::test]
    async fn while_staging() -> Result<()> {
        killed_while("staging").await
    }
}
