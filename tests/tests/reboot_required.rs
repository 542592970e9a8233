//! `/run/reboot-required`: there while a reboot leads somewhere else, with the lines of others untouched.

#[cfg(test)]
mod reboot_required {
    use std::fs;

    use anyhow::Result;
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Layer, Written};
    use osteward_tests::systemd::Systemd;

    const FILE: &str = "/run/reboot-required";
    const OTHERS: &str = "*** System restart required ***";

    /// Version 1 runs, version 2 is published.
    fn published() -> Result<(Host, Written)> {
        let host = Host::boot()?;
        let layer = Layer::new().dir("usr").dir("usr/share");
        let layer = layer.file("usr/share/second", "second");
        let image = host.publish(&host.next_image("2", [layer]))?;
        Ok((host, image))
    }

    /// bootc's line for that image.
    fn line(image: &Written) -> String {
        format!("bootc: Reboot required for image: {}", image.digest)
    }

    fn lines(host: &Host) -> Result<Vec<String>> {
        let text = fs::read_to_string(host.sandbox.inside(FILE)?)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn ask(host: &Host, words: &[&str]) -> Result<()> {
        client::ask(&host.sandbox, &host.bus, words)?.expect(&[0])?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_line_names_what_is_staged_and_those_of_others_stay() -> Result<()> {
        let (host, image) = published()?;
        let systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        // As bootc leaves it, without an end of the last line.
        let before = format!("{}\n{OTHERS}", line(&host.first));
        fs::write(host.sandbox.inside(FILE)?, before)?;
        host.upgrade().await?.succeeded()?;
        let expected = [OTHERS.to_owned(), line(&image)];
        assert_eq!(lines(&host)?, expected);
        let runs = systemd.started().len();
        host.upgrade().await?.succeeded()?;
        assert_eq!(lines(&host)?, expected);
        assert_eq!(systemd.started().len(), runs, "{:?}", systemd.started());

        // A reboot would lose what is locked.
        ask(&host, &["lock"])?;
        assert_eq!(lines(&host)?, [OTHERS]);
        ask(&host, &["unlock"])?;
        assert_eq!(lines(&host)?, expected);
        ask(&host, &["discard", "staged"])?;
        assert_eq!(lines(&host)?, [OTHERS]);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_queued_rollback_has_its_line_and_no_file_is_left_without_one() -> Result<()> {
        let (mut host, image) = published()?;
        let systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        host.upgrade().await?.succeeded()?;
        assert_eq!(lines(&host)?, [line(&image)]);
        drop(systemd);
        host.reboot()?;
        assert!(!host.sandbox.exists(FILE));

        let _systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        ask(&host, &["rollback"])?;
        assert_eq!(lines(&host)?, [line(&host.first)]);
        ask(&host, &["rollback", "--cancel"])?;
        assert!(!host.sandbox.exists(FILE));
        ask(&host, &["kargs", "--append", "quiet"])?;
        assert_eq!(lines(&host)?, [line(&image)]);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn without_a_service_manager_the_update_is_staged_and_the_line_comes_later() -> Result<()>
    {
        let (host, image) = published()?;
        host.upgrade().await?.succeeded()?;
        assert!(host.sandbox.deployments()?[0].staged);
        assert!(!host.sandbox.exists(FILE));
        let _systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        host.upgrade().await?.succeeded()?;
        assert_eq!(lines(&host)?, [line(&image)]);
        Ok(())
    }
}
