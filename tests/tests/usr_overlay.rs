//! An overlay over `/usr` that the whole host sees, and soft reboots where they cannot be.

#[cfg(test)]
mod usr_overlay {
    use std::fs;

    use anyhow::{Context, Result};
    use osteward_dbus::options::{ApplyOptions, UpgradeOptions, UsrOverlayOptions};
    use osteward_dbus::proxies::DeploymentProxy;
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::Layer;
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::logind::Logind;
    use osteward_tests::systemd::Systemd;
    use zbus::Connection;
    use zbus::proxy::CacheProperties;

    async fn overlay(connection: &Connection, options: &UsrOverlayOptions) -> Result<Ended> {
        let mut listener = Listener::new(connection).await?;
        let job = Host::proxy(connection).await?.usr_overlay(options).await?;
        listener.end(&job).await
    }

    async fn unlocked(connection: &Connection) -> Result<String> {
        let path = Host::proxy(connection).await?.booted_deployment().await?;
        let proxy = DeploymentProxy::builder(connection).path(path);
        let proxy = proxy.cache_properties(CacheProperties::No).build().await?;
        Ok(proxy.unlocked().await?)
    }

    #[tokio::test]
    async fn it_is_there_for_everybody_and_gone_after_a_reboot() -> Result<()> {
        let mut host = Host::boot()?;
        // As systemd has it: what is mounted in one namespace is seen in those it came from.
        host.while_stopped(|host| host.sandbox.run(["mount", "--make-rshared", "/"]).map(drop))?;
        let told = client::ask(&host.sandbox, &host.bus, &["usr-overlay"])?.expect(&[1])?;
        assert!(told.stderr.contains("NotSupported"), "{told:?}");
        let systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        let connection = host.connect().await?;
        assert_eq!(unlocked(&connection).await?, "none");
        let ended = overlay(&connection, &UsrOverlayOptions::default()).await?;
        let ended = ended.succeeded()?;
        assert!(ended.value::<bool>("changed")?);
        assert_eq!(ended.value::<String>("unlocked")?, "development");
        assert_eq!(unlocked(&connection).await?, "development");
        assert_eq!(systemd.started().len(), 1, "{:?}", systemd.started());
        // From here on /usr is the deployment's own, which has no programs to run.
        let probe = host.sandbox.inside("/usr/probe")?;
        fs::write(&probe, "x").context("writing below /usr")?;
        assert!(host.sandbox.exists("/usr/lib/os-release"));
        let again = overlay(&connection, &UsrOverlayOptions::default()).await?;
        assert!(!again.succeeded()?.value::<bool>("changed")?);
        assert_eq!(systemd.started().len(), 1);
        drop((systemd, connection));

        host.reboot()?;
        let connection = host.connect().await?;
        assert_eq!(unlocked(&connection).await?, "none");
        assert!(!host.sandbox.exists("/usr/probe"));
        Ok(())
    }

    #[tokio::test]
    async fn a_read_only_one_stays_as_it_is_for_everybody_else() -> Result<()> {
        let mut host = Host::boot()?;
        host.while_stopped(|host| host.sandbox.run(["mount", "--make-rshared", "/"]).map(drop))?;
        let _systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        let connection = host.connect().await?;
        let read_only = UsrOverlayOptions {
            read_only: Some(true),
            ..Default::default()
        };
        let ended = overlay(&connection, &read_only).await?.succeeded()?;
        assert_eq!(ended.value::<String>("unlocked")?, "transient");
        let probe = host.sandbox.inside("/usr/probe")?;
        assert!(fs::write(&probe, "x").is_err());
        assert_eq!(unlocked(&connection).await?, "transient");
        Ok(())
    }

    #[tokio::test]
    async fn without_soft_reboots_auto_is_a_full_one_and_required_is_refused() -> Result<()> {
        let host = Host::boot()?;
        let layer = Layer::new()
            .dir("usr")
            .dir("usr/share")
            .file("usr/share/x", "x");
        host.publish(&host.next_image("2", [layer]))?;
        let logind = Logind::start(&host.bus).await?;
        let _systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        let soft = UpgradeOptions {
            apply: Some("soft-reboot".into()),
            lock: Some(false),
            ..Default::default()
        };
        let refused = host.upgrade_with(&soft).await?.failed("NotSupported")?;
        assert!(refused.error_message.contains("libostree"), "{refused:?}");
        assert_eq!(logind.reboots(), 0);
        assert!(host.sandbox.deployments()?[0].staged, "it stays staged");

        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        assert_eq!(proxy.reboot_required().await?, "reboot");
        let features = Host::manager(&connection).await?.features().await?;
        assert!(
            !features.contains(&"soft-reboot".to_owned()),
            "{features:?}"
        );
        let path = proxy.staged_deployment().await?;
        let staged = DeploymentProxy::builder(&connection).path(path);
        let staged = staged.cache_properties(CacheProperties::No).build().await?;
        assert_eq!(staged.soft_reboot_capable().await?, "no");
        let told = client::ask(&host.sandbox, &host.bus, &["apply", "--soft-reboot"])?;
        let told = told.expect(&[1])?;
        assert!(
            told.stderr.contains("soft reboot is not possible"),
            "{told:?}"
        );
        assert_eq!(logind.reboots(), 0);
        let mut listener = Listener::new(&connection).await?;
        let options = ApplyOptions {
            mode: Some("auto".into()),
            ..Default::default()
        };
        let ended = proxy.apply(&options).await?;
        let ended = listener.end(&ended).await?.succeeded()?;
        assert_eq!(ended.value::<String>("reboot")?, "reboot");
        assert_eq!(logind.reboots(), 1);
        Ok(())
    }
}
