//! Container images that an image of the host is bound to: there before it is staged, gone with its deployments.

#[cfg(test)]
mod bound_images {
    use std::time::Duration;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{DiscardOptions, NoOptions, UpgradeOptions};
    use osteward_tests::containers;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Image, Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::systemd::Systemd;

    const DIRECTORY: &str = "usr/lib/bootc/bound-images.d";
    const UNITS: &str = "usr/share/containers/systemd";

    /// A layer that binds the image it is in to `units`: file names and what they say.
    fn binding(units: &[(&str, String)]) -> Layer {
        let mut layer = Layer::new();
        for directory in ["usr/lib/bootc", DIRECTORY, "usr/share/containers", UNITS] {
            layer = layer.dir(directory);
        }
        for (name, text) in units {
            layer = layer
                .file(&format!("{UNITS}/{name}"), text.as_str())
                .symlink(&format!("{DIRECTORY}/{name}"), &format!("/{UNITS}/{name}"));
        }
        layer
    }

    fn image_unit(image: &str) -> String {
        format!("[Unit]\nDescription=x\n\n[Image]\nImage={image}\n")
    }

    fn container_unit(image: &str) -> String {
        format!("[Container]\n# a comment\nImage={image}\n")
    }

    /// A container image that is no host, in the registry under `name`.
    fn publish(host: &Host, name: &str) -> Result<Written> {
        let layer = Layer::new().dir("app").file("app/name", name);
        let image = Image::new("1").label("containers.bootc", "").layer(layer);
        let tag = name.replace(':', "-");
        let written = image.write_as(&host.layout, &tag)?;
        host.layout.push(&tag, &host.registry.name(name))?;
        Ok(written)
    }

    /// What podman finds in the storage.
    fn stored(host: &Host) -> Result<Vec<String>> {
        let script = "mkdir -p /run/bootc/storage && exec 3</run/bootc/storage && \
                      mount --bind /sysroot/ostree/bootc/storage /run/bootc/storage && \
                      exec podman --root /run/bootc/storage --runroot /proc/self/fd/3 image list \
                      --noheading --format '{{.Repository}}:{{.Tag}}'";
        let words = ["unshare", "--mount", "sh", "-c", script];
        let mut names: Vec<String> = host
            .sandbox
            .run(words)?
            .lines()
            .filter_map(|line| line.rsplit('/').next())
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Reboots, and makes the host again one that podman works on.
    async fn reboot(host: &mut Host) -> Result<Systemd> {
        host.reboot()?;
        containers::configure(host)?;
        Systemd::start(&host.bus, &host.sandbox).await
    }

    async fn discard(host: &Host, what: &[&str]) -> Result<()> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.discard(what, &DiscardOptions::default()).await?;
        listener.end(&job).await?.succeeded().map(drop)
    }

    fn on(base: &Written, version: &str, units: &[(&str, String)]) -> Image {
        let created = format!("2025-0{version}-01T00:00:00Z");
        let removed = Layer::new().dir(DIRECTORY).opaque(DIRECTORY);
        let image = Image::new(version).on(base).created(&created);
        image.layer(removed).layer(binding(units))
    }

    fn nothing_is_staged(host: &Host) -> Result<()> {
        let deployments = host.sandbox.deployments()?;
        ensure!(
            deployments.iter().all(|deployment| !deployment.staged),
            "{deployments:?}"
        );
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn they_come_before_staging_and_go_with_their_deployments() -> Result<()> {
        let mut host = Host::boot()?;
        containers::configure(&host)?;
        let systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        for name in ["app:1", "web:1", "other:latest"] {
            publish(&host, name)?;
        }
        let app = ("app.image", image_unit(&host.registry.name("app:1")));
        let web = (
            "web.container",
            container_unit(&host.registry.name("web:1")),
        );
        // Neither a tag nor a second file for the same image makes a difference.
        let other = ("other.image", image_unit(&host.registry.name("other")));
        let again = (
            "again.container",
            container_unit(&host.registry.name("web:1")),
        );
        let units = [app.clone(), web, other.clone(), again];
        let second = host.publish(&host.next_image("2", [binding(&units)]))?;
        let ended = host.upgrade().await?.succeeded()?;
        assert!(ended.phases.contains(&"staging".to_owned()), "{ended:?}");
        assert_eq!(stored(&host)?, ["app:1", "other:latest", "web:1"]);
        let pulls = systemd.started();
        let pulls = pulls.iter().filter(|what| what.starts_with("Pulling"));
        assert_eq!(pulls.count(), 3, "{:?}", systemd.started());
        assert!(systemd.most_at_a_time() > 1);
        drop(systemd);

        let _systemd = reboot(&mut host).await?;
        let third = host.publish(&on(&second, "3", std::slice::from_ref(&app)))?;
        host.upgrade().await?.succeeded()?;
        // The second version is still booted, and can be gone back to.
        assert_eq!(stored(&host)?, ["app:1", "other:latest", "web:1"]);

        let _systemd = reboot(&mut host).await?;
        host.publish(&on(&third, "4", &[app, other]))?;
        host.upgrade().await?.succeeded()?;
        let _systemd = reboot(&mut host).await?;
        discard(&host, &["unreferenced"]).await?;
        // Of the second version nothing is left but what others are bound to as well.
        assert_eq!(stored(&host)?, ["app:1", "other:latest"]);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_download_brings_and_keeps_them() -> Result<()> {
        let mut host = Host::boot()?;
        containers::configure(&host)?;
        let systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        let app = publish(&host, "app:1")?;
        publish(&host, "web:1")?;
        // podman itself goes by the digest, and forgets the tag.
        let app = format!("{}@{}", host.registry.name("app:1"), app.digest);
        let web = container_unit(&host.registry.name("web:1"));
        let units = [("app.image", image_unit(&app)), ("web.container", web)];
        host.publish(&host.next_image("2", [binding(&units)]))?;
        let download = UpgradeOptions {
            download_only: Some(true),
            ..Default::default()
        };
        host.upgrade_with(&download).await?.succeeded()?;
        nothing_is_staged(&host)?;
        let there = stored(&host)?;
        assert_eq!(there.len(), 2, "{there:?}");
        discard(&host, &["unreferenced"]).await?;
        assert_eq!(stored(&host)?, there);

        host.registry.stop();
        let from_cache = UpgradeOptions {
            from_cache: Some(true),
            ..Default::default()
        };
        host.upgrade_with(&from_cache).await?.succeeded()?;
        assert_eq!(stored(&host)?, there);
        let pulls = systemd.started();
        let pulls = pulls.iter().filter(|what| what.starts_with("Pulling"));
        assert_eq!(pulls.count(), 2, "{:?}", systemd.started());

        discard(&host, &["staged", "cache"]).await?;
        let left = stored(&host)?;
        assert!(left.is_empty(), "{left:?}");
        nothing_is_staged(&host)
    }

    #[tokio::test]
    async fn without_podman_nothing_that_needs_it_is_staged() -> Result<()> {
        let host = Host::boot()?;
        containers::hide(&host, "podman")?;
        let app = ("app.image", image_unit("registry.example.org/app:1"));
        host.publish(&host.next_image("2", [binding(&[app])]))?;
        let ended = host.upgrade().await?;
        for word in ["registry.example.org/app:1", "podman is not installed"] {
            assert!(ended.error_message.contains(word), "{ended:?}");
        }
        ended.failed("NotSupported")?;
        let connection = host.connect().await?;
        let features = Host::manager(&connection).await?.features().await?;
        assert!(
            !features.contains(&"bound-images".to_owned()),
            "{features:?}"
        );
        nothing_is_staged(&host)
    }

    #[tokio::test]
    async fn an_image_that_cannot_be_pulled_keeps_the_update_from_being_staged() -> Result<()> {
        let host = Host::boot()?;
        containers::configure(&host)?;
        let _systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        let name = host.registry.name("app:1");
        let app = ("app.image", image_unit(&name));
        host.publish(&host.next_image("2", [binding(&[app])]))?;
        let ended = host.upgrade().await?;
        for word in [name.as_str(), "manifest unknown"] {
            assert!(ended.error_message.contains(word), "{ended:?}");
        }
        ended.failed("RegistryError")?;
        nothing_is_staged(&host)?;

        publish(&host, "app:1")?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, 0, "{ended:?}");
        assert_eq!(stored(&host)?, ["app:1"]);
        Ok(())
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_the_images_fault() -> Result<()> {
        let host = Host::boot()?;
        let file = Layer::new().dir("usr/lib/bootc").dir(DIRECTORY);
        let file = file.file(&format!("{DIRECTORY}/a.image"), image_unit("x.test/a"));
        let dangling = Layer::new().dir("usr/lib/bootc").dir(DIRECTORY);
        let dangling = dangling.symlink(&format!("{DIRECTORY}/a.image"), "/usr/none");
        let specifier = binding(&[("a.image", image_unit("x.test/%a"))]);
        let auth = format!("{}AuthFile=/etc/auth.json\n", image_unit("x.test/a"));
        let auth = binding(&[("a.image", auth)]);
        let other = binding(&[("a.service", image_unit("x.test/a"))]);
        for (layer, words) in [
            (file, "no symbolic link"),
            (dangling, "leads to no file"),
            (specifier, "specifier"),
            (auth, "AuthFile"),
            (other, "neither .image nor .container"),
        ] {
            host.publish(&host.next_image("2", [layer]))?;
            let ended = host.upgrade().await?;
            assert!(ended.error_message.contains(words), "{words}: {ended:?}");
            ended.failed("ImageInvalid").context(words)?;
        }
        nothing_is_staged(&host)
    }

    #[tokio::test]
    async fn cancelling_stops_the_pull() -> Result<()> {
        let host = Host::boot()?;
        containers::configure(&host)?;
        let systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        // A registry that takes calls and never answers.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let app = (
            "app.image",
            image_unit(&format!("{}/app:1", silent.local_addr()?)),
        );
        host.publish(&host.next_image("2", [binding(&[app])]))?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let path = proxy.upgrade(&UpgradeOptions::default()).await?;
        // The call of podman, once it got so far.
        let called = tokio::time::timeout(Duration::from_secs(120), silent.accept());
        let _held = called.await.context("podman does not call")??;
        let job = Host::job(&connection, &path).await?;
        job.cancel(&NoOptions {}).await?;
        let Ended { state, .. } = listener.end(&path).await?;
        assert_eq!(state, "cancelled");
        // Its end comes with a signal of the service manager that only the daemon waits for.
        for _ in 0..600 {
            if systemd.is_idle() {
                return nothing_is_staged(&host);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("podman still runs")
    }
}
