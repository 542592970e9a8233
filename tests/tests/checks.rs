//! What is known of the last check: by the daemon that made it, and by those that come after it.

#[cfg(test)]
mod checks {
    use anyhow::Result;
    use osteward_dbus::options::{CheckOptions, UpgradeOptions};
    use osteward_dbus::types::Dict;
    use osteward_tests::host::Host;
    use osteward_tests::image::Layer;
    use osteward_tests::job::{Ended, Listener};

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    async fn check(host: &Host, max_age: Option<u64>) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = CheckOptions {
            max_age,
            ..Default::default()
        };
        let job = Host::proxy(&connection).await?.check(&options).await?;
        listener.end(&job).await
    }

    async fn last_check(host: &Host) -> Result<Dict> {
        let connection = host.connect().await?;
        Ok(Host::proxy(&connection).await?.last_check().await?)
    }

    fn word(check: &Dict, key: &str) -> Result<String> {
        let value = check.get(key).map(|value| value.try_clone()).transpose()?;
        Ok(value.map(String::try_from).transpose()?.unwrap_or_default())
    }

    fn is_ok(check: &Dict) -> bool {
        check
            .get("ok")
            .is_some_and(|ok| bool::try_from(ok).unwrap_or(false))
    }

    const LONG: Option<u64> = Some(24 * 3600);

    #[tokio::test]
    async fn the_next_daemon_knows_what_the_last_one_found() -> Result<()> {
        let mut host = Host::boot()?;
        host.configure("[registry]\nretry_time = \"0s\"\n")?;
        assert_eq!(last_check(&host).await?, Dict::new(), "there was none");
        let image = host.publish(&host.next_image("2", [layer("2")]))?;
        check(&host, None).await?.succeeded()?;
        let found = last_check(&host).await?;
        assert!(is_ok(&found), "{found:?}");
        assert_eq!(word(&found, "digest")?, image.digest);

        host.registry.stop();
        host.kill_daemon()?;
        host.start_daemon()?;
        assert_eq!(last_check(&host).await?, found);
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        assert_eq!(proxy.update_state().await?, "available");
        let answer = check(&host, LONG).await?.succeeded()?;
        assert_eq!(answer.value::<String>("digest")?, image.digest);
        assert!(answer.value::<bool>("changed")? && answer.value::<bool>("cached")?);
        assert_eq!(last_check(&host).await?, found, "nobody was asked");

        check(&host, Some(0)).await?.failed("RegistryUnreachable")?;
        let failed = last_check(&host).await?;
        assert!(!is_ok(&failed), "{failed:?}");
        host.kill_daemon()?;
        host.start_daemon()?;
        assert_eq!(last_check(&host).await?, failed);
        assert!(word(&failed, "error-name")?.ends_with(".RegistryUnreachable"));
        assert_eq!(word(&failed, "digest")?, image.digest);
        // What failed is no answer.
        check(&host, LONG).await?.failed("RegistryUnreachable")?;
        Ok(())
    }

    #[tokio::test]
    async fn only_a_question_to_the_registry_is_a_check() -> Result<()> {
        let mut host = Host::boot()?;
        let image = host.publish(&host.next_image("2", [layer("2")]))?;
        let by_digest = UpgradeOptions {
            digest: Some(image.digest.clone()),
            ..Default::default()
        };
        host.upgrade_with(&by_digest).await?.succeeded()?;
        let from_cache = UpgradeOptions {
            from_cache: Some(true),
            ..Default::default()
        };
        host.upgrade_with(&from_cache).await?.succeeded()?;
        assert_eq!(last_check(&host).await?, Dict::new());
        check(&host, LONG).await?.succeeded()?;
        let staged = last_check(&host).await?;
        assert_eq!(word(&staged, "digest")?, image.digest);

        // What is booted now is what was found: still an answer, and no update.
        host.registry.stop();
        host.reboot()?;
        let answer = check(&host, LONG).await?.succeeded()?;
        assert_eq!(answer.value::<String>("digest")?, image.digest);
        assert!(!answer.value::<bool>("changed")?);
        Ok(())
    }
}
