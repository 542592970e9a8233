//! Images that are in no registry: archives, files of the caller, the container storage of the host.

#[cfg(test)]
mod sources {
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::path::Path;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::Error;
    use osteward_dbus::options::{ImportArchiveOptions, UpgradeOptions};
    use osteward_tests::client;
    use osteward_tests::containers;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Image, Layer, Layout, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::oracle;
    use osteward_tests::process::{command, run};
    use osteward_tests::sandbox::refs::{blob_ref, image_ref};
    use osteward_tests::sandbox::{SHARE, UNPRIVILEGED_UID};
    use osteward_tests::systemd::Systemd;

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    /// Writes an image into a layout of its own, and that as a tar to `path`.
    fn archive(host: &Host, image: &Image, tag: &str, path: &Path) -> Result<Written> {
        let written = image.write_as(&host.layout, tag)?;
        let source = format!("oci:{}:{tag}", host.layout.path.display());
        let target = format!("oci-archive:{}:{tag}", path.display());
        let words = ["skopeo", "--insecure-policy", "copy", "--quiet"];
        run(command(words).args(["--preserve-digests", &source, &target]))?;
        Ok(written)
    }

    async fn switch(host: &Host, image: &str) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.switch(image, &options).await?;
        listener.end(&job).await
    }

    async fn import(host: &Host, path: &Path, options: &ImportArchiveOptions) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let file = fs::File::open(path)?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.import_archive(file.as_fd().into(), options).await?;
        drop(file);
        listener.end(&job).await
    }

    /// The origin of what is staged, as its file has it.
    fn staged_origin(host: &Host) -> Result<String> {
        let staged = host.sandbox.deployments()?.remove(0);
        ensure!(staged.staged, "nothing is staged: {staged:?}");
        let name = format!("{}.{}.origin", staged.checksum, staged.serial);
        let path = host.sandbox.sysroot().join("ostree/deploy/default/deploy");
        let text = fs::read_to_string(path.join(name))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("container-image-reference="));
        Ok(line.context("no container image")?.to_owned())
    }

    #[tokio::test]
    async fn an_archive_is_switched_to_and_upgraded_from() -> Result<()> {
        let mut host = Host::boot()?;
        let path = host.sandbox.share().join("os.tar");
        let second = archive(&host, &host.next_image("2", [layer("2")]), "os", &path)?;
        let name = format!("oci-archive:{SHARE}/os.tar:os");
        let ended = switch(&host, &name).await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, second.digest);
        assert_eq!(
            staged_origin(&host)?,
            format!("ostree-unverified-image:{name}")
        );
        let stored = oracle::query(&host.sandbox.repo(), &name)?.context("no image ref")?;
        assert_eq!(stored.manifest_digest, second.digest);
        host.sandbox.fsck()?;

        host.reboot()?;
        let third = Image::new("3").on(&second).created("2025-03-01T00:00:00Z");
        fs::remove_file(&path)?;
        let third = archive(&host, &third.layer(layer("3")), "os", &path)?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, third.digest);
        let only = fs::metadata(host.layout.blob(third.layers.last().context("no layer")?))?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, only.len());
        let answer = client::ask(&host.sandbox, &host.bus, &["status", "--json"])?.expect(&[0])?;
        assert_eq!(answer.json()?["tracking"]["transport"], "oci-archive:");
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_file_that_only_the_user_sees_is_handed_over() -> Result<()> {
        let host = Host::boot()?;
        // The daemon has mounts of its own, so this is in nobody's sight but the user's.
        let home = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            "mode=755",
            "tmpfs",
            "/var/home",
        ];
        host.sandbox.run(home)?;
        let path = host.sandbox.share().join("os.tar");
        let second = archive(&host, &host.next_image("2", [layer("2")]), "os", &path)?;
        host.sandbox
            .run(["cp", "/run/share/os.tar", "/var/home/os.tar"])?;
        host.sandbox
            .run(["cp", "-r", "/run/share/oci", "/var/home/oci"])?;
        let ended = switch(&host, "oci-archive:/var/home/os.tar").await?;
        assert!(
            ended.error_message.contains("`osteward switch` hands over"),
            "{ended:?}"
        );
        ended.failed("ImageNotFound")?;

        let words = ["switch", "oci-archive:/var/home/os.tar:os"];
        let denied = client::ask_as(&host.sandbox, &host.bus, Some(UNPRIVILEGED_UID), &words)?;
        assert!(denied.stderr.contains("AccessDenied"), "{denied:?}");
        client::ask(&host.sandbox, &host.bus, &words)?.expect(&[0])?;
        assert_eq!(
            staged_origin(&host)?,
            "ostree-unverified-image:oci-archive:/var/home/os.tar:os"
        );
        let deployed = host.sandbox.deployments()?.remove(0).checksum;

        // The same as a directory: nothing is fetched twice, but another image is tracked.
        let words = [
            "switch",
            "oci:/var/home/oci:os",
            "--replace-staged",
            "--json",
        ];
        let answer = client::ask(&host.sandbox, &host.bus, &words)?.expect(&[0])?;
        let last = answer.stdout.lines().last().context("no JSON")?;
        let last: serde_json::Value = serde_json::from_str(last)?;
        assert_eq!(last["kind"], "import", "{last:#}");
        assert_eq!(last["result"]["digest"], second.digest.as_str(), "{last:#}");
        assert_eq!(last["result"]["fetched-bytes"], 0, "{last:#}");
        assert_eq!(
            staged_origin(&host)?,
            "ostree-unverified-image:oci:/var/home/oci:os"
        );
        let same = host.sandbox.root_tree(&deployed)?;
        let now = host.sandbox.deployments()?.remove(0).checksum;
        assert_eq!(host.sandbox.root_tree(&now)?, same);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_medium_updates_a_host_that_goes_on_with_its_registry() -> Result<()> {
        let mut host = Host::boot()?;
        let tracked = format!(
            "ostree-unverified-registry:{}",
            host.registry.name("os:latest")
        );
        let path = host.sandbox.share().join("os.tar");
        let second = archive(&host, &host.next_image("2", [layer("2")]), "os", &path)?;
        let packed = host.sandbox.share().join("os.tar.zst");
        run(command(["zstd", "--quiet"])
            .arg(&path)
            .arg("-o")
            .arg(&packed))?;
        host.registry.stop();
        let words = ["import", "/run/share/os.tar.zst"];
        let answer = client::ask(&host.sandbox, &host.bus, &words)?.expect(&[0])?;
        assert!(answer.stdout.contains("Staged 2 ("), "{answer:?}");
        assert_eq!(staged_origin(&host)?, tracked);
        let again = client::ask(&host.sandbox, &host.bus, &words)?.expect(&[0])?;
        assert!(again.stdout.contains("Nothing to do"), "{again:?}");
        let stored = oracle::query(&host.sandbox.repo(), &host.source())?;
        assert_eq!(
            stored.context("no image ref")?.manifest_digest,
            second.digest
        );
        host.reboot()?;
        host.registry.resume()?;
        let source = format!("oci:{}:os", host.layout.path.display());
        run(&mut command([
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--dest-tls-verify=false",
            &source,
            &format!("docker://{}", host.registry.name("os:latest")),
        ]))?;
        // The registry has the very image that came on the medium.
        let ended = host.upgrade().await?.succeeded()?;
        assert!(!ended.value::<bool>("changed")?, "{ended:?}");
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn what_is_no_whole_archive_is_refused() -> Result<()> {
        let host = Host::boot()?;
        let before = host.sandbox.deployments()?;
        let path = host.sandbox.share().join("os.tar");
        let image = archive(&host, &host.next_image("2", [layer("2")]), "os", &path)?;
        let whole = fs::read(&path)?;
        let none = ImportArchiveOptions::default();
        for (bytes, words) in [
            (&whole[..whole.len() / 2], "cut short"),
            (b"certainly no archive".as_slice(), "cannot be read"),
        ] {
            fs::write(&path, bytes)?;
            let ended = import(&host, &path, &none).await?;
            assert!(ended.error_message.contains(words), "{ended:?}");
            ended.failed("ImageInvalid")?;
        }
        fs::write(&path, &whole)?;
        let other = ImportArchiveOptions {
            tag: Some("other".into()),
            ..none.clone()
        };
        let ended = import(&host, &path, &other).await?;
        assert!(ended.error_message.contains("there is os"), "{ended:?}");
        ended.failed("ImageNotFound")?;
        let gone = ImportArchiveOptions {
            digest: Some(format!("sha256:{}", "a".repeat(64))),
            ..none.clone()
        };
        import(&host, &path, &gone).await?.failed("DigestGone")?;
        // A blob whose bytes are others than its name says.
        let layer = fs::read(host.layout.blob(&image.layers[2]))?;
        let at = whole
            .windows(layer.len())
            .position(|window| window == layer);
        let mut damaged = whole.clone();
        damaged[at.context("the layer is not in the archive")? + 12] ^= 1;
        fs::write(&path, damaged)?;
        import(&host, &path, &none).await?.failed("ImageInvalid")?;

        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        let null = fs::File::open("/dev/null")?;
        let called = proxy.import_archive(null.as_fd().into(), &none).await;
        assert!(matches!(called, Err(Error::InvalidArgs(_))), "{called:?}");
        let short = ImportArchiveOptions {
            image: Some(format!("{}@sha256:12ab", host.registry.name("os"))),
            ..none
        };
        let file = fs::File::open(&path)?;
        let called = proxy.import_archive(file.as_fd().into(), &short).await;
        let Err(Error::InvalidArgs(text)) = &called else {
            anyhow::bail!("a shortened digest is accepted: {called:?}");
        };
        assert!(text.contains("all of its 64"), "{text}");
        assert_eq!(host.sandbox.deployments()?, before);
        host.sandbox.fsck()
    }

    /// Puts an image of the layout into the container storage.
    fn store(host: &Host, layout: &Layout, tag: &str, name: &str) -> Result<()> {
        let relative = layout.path.strip_prefix(host.sandbox.share())?;
        let source = format!("oci:{SHARE}/{}:{tag}", relative.display());
        let target = format!("containers-storage:{name}");
        let words = ["skopeo", "copy", "--quiet", &source, &target];
        host.sandbox.run(words).map(drop)
    }

    #[tokio::test]
    async fn the_container_storage_is_read_through_its_tools() -> Result<()> {
        let host = Host::boot()?;
        containers::configure(&host)?;
        let image = host.next_image("2", [layer("2"), layer("stored")]);
        let image = image.write_as(&host.layout, "os")?;
        store(&host, &host.layout, "os", "localhost/os:2")?;
        let name = "containers-storage:localhost/os:2";

        let ended = switch(&host, name).await?;
        assert!(ended.error_message.contains("systemd"), "{ended:?}");
        ended.failed("RegistryError")?;

        let systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        let ended = switch(&host, name).await?.succeeded()?;
        // The image is still the one that was pulled, though its layers came unpacked.
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        let refs = host.sandbox.refs("ostree/container/")?;
        for layer in &image.layers {
            assert!(refs.contains(&blob_ref(layer)), "{layer} of {refs:?}");
        }
        assert!(refs.contains(&image_ref(name)), "{refs:?}");
        let stored = oracle::query(&host.sandbox.repo(), name)?.context("no image ref")?;
        assert_eq!(stored.manifest_digest, image.digest);
        host.layout.retag("latest", &image)?;
        let theirs = host.oracle_tree()?;
        assert_eq!((stored.root_contents, stored.root_metadata), theirs);
        assert!(
            systemd
                .started()
                .iter()
                .any(|what| what.starts_with("copying")),
            "{:?}",
            systemd.started()
        );

        let ended = switch(&host, "containers-storage:localhost/none:1").await?;
        ended.failed("ImageNotFound")?;
        assert!(systemd.is_idle());
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn podman_reads_the_storage_where_skopeo_is_missing() -> Result<()> {
        let host = Host::boot()?;
        containers::configure(&host)?;
        let image = host.next_image("2", [layer("2")]);
        image.write_as(&host.layout, "os")?;
        store(&host, &host.layout, "os", "localhost/os:2")?;
        let _systemd = Systemd::start(&host.bus, &host.sandbox).await?;
        let name = "containers-storage:localhost/os:2";
        // In the daemon's own namespace, where it looks for its tools.
        containers::hide(&host, "skopeo")?;
        let ended = switch(&host, name).await?.succeeded()?;
        let digest = ended.value::<String>("digest")?;
        let stored = oracle::query(&host.sandbox.repo(), name)?.context("no image ref")?;
        assert_eq!(stored.manifest_digest, digest);
        host.layout.retag("latest", &host.layout.find("os")?)?;
        let theirs = host.oracle_tree()?;
        assert_eq!((stored.root_contents, stored.root_metadata), theirs);

        containers::hide(&host, "podman")?;
        let ended = switch(&host, name).await?;
        assert!(ended.error_message.contains("add skopeo"), "{ended:?}");
        ended.failed("NotSupported")?;
        let connection = host.connect().await?;
        let features = Host::manager(&connection).await?.features().await?;
        assert!(
            !features.contains(&"containers-storage".to_owned()),
            "{features:?}"
        );
        host.sandbox.fsck()
    }
}
