//! More than 1 GB in 60 layers, from the registry to the next boot and back, in numbers.

#[cfg(test)]
mod big_upgrade {
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result};
    use osteward_dbus::options::{NoOptions, UpgradeOptions};
    use osteward_tests::big_image::{VERSION, big_image};
    use osteward_tests::chance::tell;
    use osteward_tests::client;
    use osteward_tests::daemon::Daemon;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Image, Layout};
    use osteward_tests::job::Listener;
    use osteward_tests::oracle;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;

    /// What the daemon may have resident at its peak, in KiB.
    const MEMORY: u64 = 300 << 10;

    fn peak(host: &Host) -> Result<u64> {
        host.daemon
            .as_ref()
            .map(Daemon::peak_rss_kib)
            .context("the daemon does not run")?
    }

    async fn upgrade_to(host: &Host, big: &Layout, tag: &str) -> Result<()> {
        let image = Image::new(VERSION)
            .on(&host.base)
            .with_layers_of(big, &big.find(tag)?)?;
        let image = host.publish(&image.created("2025-03-01T00:00:00Z"))?;
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        let mut listener = Listener::new(&connection).await?;
        let start = Instant::now();
        let options = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let job = proxy.upgrade(&options).await?;
        let mut answers = Vec::new();
        let none = NoOptions::default();
        let mut slowest_status = Duration::ZERO;
        let ended = {
            let end = listener.end(&job);
            tokio::pin!(end);
            loop {
                let asked = Instant::now();
                tokio::select! {
                    ended = &mut end => break ended?,
                    status = proxy.status(&none) => {
                        status?;
                        answers.push(asked.elapsed());
                    }
                }
                let asked = Instant::now();
                client::ask_as(
                    &host.sandbox,
                    &host.bus,
                    Some(UNPRIVILEGED_UID),
                    &["status"],
                )?
                .expect(&[0])?;
                slowest_status = slowest_status.max(asked.elapsed());
            }
        };
        let took = start.elapsed();
        let ended = ended.succeeded()?;
        answers.sort();
        tell(format_args!(
            "{tag}: {} bytes in {} layers, staged in {took:.1?}; phases {:?}; {} progress updates\n\
             {tag}: daemon's peak memory {} KiB (allowed {MEMORY})\n\
             {tag}: Host.Status meanwhile: median {:?}, slowest {:?} of {}; \
             `osteward status` as nobody, nsenter and all: slowest {slowest_status:?}",
            image.size,
            image.layers.len(),
            ended.phases,
            ended.updates.len(),
            peak(host)?,
            answers[answers.len() / 2],
            answers[answers.len() - 1],
            answers.len(),
        ))?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        let ours = oracle::query(&host.sandbox.repo(), &host.source())?.context("no image")?;
        let start = Instant::now();
        let theirs = host.oracle_tree()?;
        tell(format_args!(
            "{tag}: root tree {} (ostree-ext took {:.1?})",
            theirs.0,
            start.elapsed()
        ))?;
        assert_eq!((ours.root_contents, ours.root_metadata), theirs);
        assert!(peak(host)? < MEMORY, "too much memory");
        Ok(())
    }

    #[tokio::test]
    async fn a_big_image_in_sixty_layers_becomes_the_next_boot_and_is_left_again() -> Result<()> {
        // First, for it may take minutes, and a daemon with nothing to do ends after one.
        let big = big_image()?;
        let mut host = Host::boot()?;
        let first = host.sandbox.booted()?;
        upgrade_to(&host, &big, "sixty").await?;
        host.reboot()?;
        let big = host.sandbox.booted()?;
        assert_ne!(big.checksum, first.checksum);
        client::ask(&host.sandbox, &host.bus, &["rollback"])?.expect(&[0])?;
        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, first.checksum);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_big_image_in_one_layer_is_staged() -> Result<()> {
        let big = big_image()?;
        let host = Host::boot()?;
        upgrade_to(&host, &big, "one").await
    }
}
