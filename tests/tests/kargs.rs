//! Kernel arguments: what images bring along, what is changed on the host, and what the boot
//! entries say in the end.

#[cfg(test)]
mod kargs {
    use std::fs;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{
        RollbackOptions, SetKernelArgumentsOptions, SimulateOptions, UpgradeOptions,
    };
    use osteward_dbus::proxies::DeploymentProxy;
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Image, Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use zbus::proxy::CacheProperties;

    const DIRECTORY: &str = "usr/lib/bootc/kargs.d";

    /// A layer with these files in the images' directory of kernel arguments, and no others.
    fn bringing(files: &[(&str, &str)]) -> Layer {
        let mut layer = Layer::new();
        for directory in ["usr", "usr/lib", "usr/lib/bootc", DIRECTORY] {
            layer = layer.dir(directory);
        }
        layer = layer.opaque(DIRECTORY);
        for (name, text) in files {
            layer = layer.file(&format!("{DIRECTORY}/{name}"), *text);
        }
        layer
    }

    fn next(host: &Host, base: &Written, version: &str, files: &[(&str, &str)]) -> Result<Written> {
        let created = format!("2025-0{version}-01T00:00:00Z");
        let image = Image::new(version).on(base).created(&created);
        host.publish(&image.layer(bringing(files)))
    }

    /// The arguments in the boot entries, the default one first, without libostree's own.
    fn entries(host: &Host) -> Result<Vec<String>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(host.sandbox.sysroot().join("boot/loader/entries"))? {
            let text = fs::read_to_string(entry?.path())?;
            let field = |key: &str| {
                let mut lines = text.lines();
                let found = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
                found.map(str::trim).unwrap_or_default().to_owned()
            };
            let options = field("options");
            ensure!(options.contains("ostree=/ostree/boot"), "{text}");
            let ours = options.split(' ').filter(|one| !one.starts_with("ostree="));
            let version: u32 = field("version").parse().context("no version")?;
            entries.push((version, ours.collect::<Vec<_>>().join(" ")));
        }
        entries.sort();
        Ok(entries.into_iter().rev().map(|(_, line)| line).collect())
    }

    /// The arguments of what is staged, as everybody sees them.
    async fn staged(host: &Host) -> Result<String> {
        let connection = host.connect().await?;
        let path = Host::proxy(&connection).await?.staged_deployment().await?;
        ensure!(path.as_str() != "/", "nothing is staged");
        let proxy = DeploymentProxy::builder(&connection).path(path);
        let proxy = proxy.cache_properties(CacheProperties::No).build().await?;
        Ok(proxy.kernel_arguments().await?.join(" "))
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    async fn change(
        host: &Host,
        (append, replace, delete): (&str, &str, &str),
        options: &SetKernelArgumentsOptions,
    ) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let (append, replace, delete) = (words(append), words(replace), words(delete));
        let proxy = Host::proxy(&connection).await?;
        let job = proxy
            .set_kernel_arguments(&append, &replace, &delete, options)
            .await?;
        listener.end(&job).await
    }

    fn ask(host: &Host, line: &[&str]) -> Result<client::Answer> {
        client::ask(&host.sandbox, &host.bus, line)
    }

    #[tokio::test]
    async fn what_images_bring_comes_changes_and_goes_and_what_is_local_stays() -> Result<()> {
        let mut host = Host::boot()?;
        assert_eq!(entries(&host)?, ["root=LABEL=test rw"]);
        let here = std::env::consts::ARCH;
        let second = next(
            &host,
            &host.first,
            "2",
            &[
                ("20-last.toml", "kargs = [\"console=tty0 console=ttyS0\"]\n"),
                ("10-first.toml", "kargs = [\"quiet\", \"lsm=a,b\"]\n"),
                (
                    "30-here.toml",
                    &format!("kargs = [\"here\"]\nmatch-architectures = [\"{here}\"]\n"),
                ),
                (
                    "40-there.toml",
                    "kargs = [\"there\"]\nmatch-architectures = [\"sparc64\"]\n",
                ),
                ("README", "no kernel arguments"),
            ],
        )?;
        host.upgrade().await?.succeeded()?;
        let all = "root=LABEL=test rw quiet lsm=a,b console=tty0 console=ttyS0 here";
        assert_eq!(staged(&host).await?, all);
        host.reboot()?;
        assert_eq!(entries(&host)?, [all, "root=LABEL=test rw"]);

        let told = ask(
            &host,
            &[
                "kargs",
                "--append=local=1",
                "--delete=quiet",
                "--replace=lsm=mine",
            ],
        )?;
        let told = told.expect(&[0])?.stdout;
        assert!(told.contains("Staged 2 (sha256:"), "{told}");
        let local = "root=LABEL=test rw lsm=mine console=tty0 console=ttyS0 here local=1";
        let shown = ask(&host, &["kargs"])?.expect(&[0])?.stdout;
        assert_eq!(shown.trim(), local);
        host.reboot()?;
        assert_eq!(entries(&host)?, [local, all]);
        let booted = Host::proxy(&host.connect().await?).await?;
        assert_eq!(booted.boot_digest().await?, second.digest);
        let running = booted.kernel_arguments().await?;
        assert!(running.contains(&"local=1".to_owned()), "{running:?}");
        assert!(
            running.iter().any(|one| one.starts_with("ostree=")),
            "{running:?}"
        );
        drop(booted);

        // One argument goes, one comes, one has another value; what was changed here stays.
        let third = next(
            &host,
            &second,
            "3",
            &[(
                "10-first.toml",
                "kargs = [\"quiet\", \"lsm=c\", \"console=tty0\", \"new\"]\n",
            )],
        )?;
        host.upgrade().await?.succeeded()?;
        let merged = "root=LABEL=test rw lsm=mine console=tty0 local=1 new";
        assert_eq!(staged(&host).await?, merged);
        host.reboot()?;
        assert_eq!(entries(&host)?, [merged, local]);

        // Without the directory everything that it brought goes.
        let created = "2025-04-01T00:00:00Z";
        let image = Image::new("4").on(&third).created(created);
        host.publish(&image.layer(Layer::new().whiteout(DIRECTORY)))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        assert_eq!(
            entries(&host)?,
            ["root=LABEL=test rw lsm=mine local=1", merged]
        );
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_staged_update_takes_the_change_and_the_next_one_keeps_it() -> Result<()> {
        let mut host = Host::boot()?;
        let second = next(
            &host,
            &host.first,
            "2",
            &[("a.toml", "kargs = [\"two\"]\n")],
        )?;
        let lock = UpgradeOptions {
            lock: Some(true),
            ..Default::default()
        };
        host.upgrade_with(&lock).await?.succeeded()?;
        let ended = change(&host, ("mine=1", "", ""), &Default::default()).await?;
        let ended = ended.succeeded()?;
        assert!(ended.value::<bool>("changed")? && ended.value::<bool>("locked")?);
        assert_eq!(ended.value::<String>("digest")?, second.digest);
        assert_eq!(ended.value::<String>("reboot")?, "none");
        assert_eq!(staged(&host).await?, "root=LABEL=test rw two mine=1");
        let deployments = host.sandbox.deployments()?;
        assert_eq!(deployments.len(), 2, "{deployments:?}");
        assert!(
            deployments[0].staged && deployments[0].serial > 0,
            "{deployments:?}"
        );

        next(&host, &second, "3", &[("a.toml", "kargs = [\"three\"]\n")])?;
        let replace = UpgradeOptions {
            replace_staged: Some(true),
            lock: Some(false),
            ..Default::default()
        };
        host.upgrade_with(&replace).await?.succeeded()?;
        assert_eq!(staged(&host).await?, "root=LABEL=test rw mine=1 three");
        host.reboot()?;
        assert_eq!(
            entries(&host)?,
            ["root=LABEL=test rw mine=1 three", "root=LABEL=test rw"]
        );
        // The way back leads to the old arguments, and a change there stays there.
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let back = proxy.rollback(&RollbackOptions::default()).await?;
        listener.end(&back).await?.succeeded()?;
        let refused = change(&host, ("no", "", ""), &Default::default()).await;
        let refused = refused.err().context("it was let in")?.to_string();
        assert!(refused.contains("rollback is queued"), "{refused}");
        drop((listener, proxy, connection));
        host.reboot()?;
        assert_eq!(
            entries(&host)?,
            ["root=LABEL=test rw", "root=LABEL=test rw mine=1 three"]
        );
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn nothing_changes_unless_it_is_what_was_seen() -> Result<()> {
        let host = Host::boot()?;
        let expect = |line: &str| SetKernelArgumentsOptions {
            expect: Some(words(line)),
            ..Default::default()
        };
        let digest = |digest: &str| SetKernelArgumentsOptions {
            digest: Some(digest.to_owned()),
            ..Default::default()
        };
        let other = format!("sha256:{}", "0".repeat(64));
        for options in [expect("root=LABEL=test"), digest(&other)] {
            let refused = change(&host, ("a", "", ""), &options).await?;
            refused.failed("DigestMismatch")?;
        }
        for (edit, why) in [
            (("", "", "quiet"), "not among"),
            (("", "quiet=1", ""), "not among"),
            (("", "", "rw=1"), "not among"),
        ] {
            let refused = change(&host, edit, &Default::default()).await?;
            assert_eq!(refused.error_name, "org.freedesktop.DBus.Error.InvalidArgs");
            assert!(refused.error_message.contains(why), "{refused:?}");
        }
        // What is like that already is not staged again.
        let same = change(&host, ("", "rw", ""), &Default::default()).await?;
        let same = same.succeeded()?;
        assert!(!same.value::<bool>("changed")?);
        assert_eq!(same.value::<String>("reboot")?, "none");
        let told = ask(
            &host,
            &[
                "kargs",
                "--append-if-missing=rw",
                "--delete-if-present=quiet",
            ],
        )?;
        assert!(told.expect(&[0])?.stdout.contains("Nothing to do"));
        ask(&host, &["kargs", "--delete", "quiet"])?.expect(&[1])?;
        ask(&host, &["kargs", "quiet"])?.expect(&[2])?;
        assert_eq!(host.sandbox.deployments()?.len(), 1);

        let seen = expect("root=LABEL=test rw");
        let ended = change(&host, ("a", "", ""), &seen).await?.succeeded()?;
        let now: Vec<String> = ended.value("kernel-arguments")?;
        assert_eq!(now.join(" "), "root=LABEL=test rw a");
        change(&host, ("b", "", ""), &seen)
            .await?
            .failed("DigestMismatch")?;
        let told = ask(&host, &["kargs", "--append-if-missing", "b", "--json"])?;
        let told = told.expect(&[0])?.stdout;
        let last = told.lines().last().context("it said nothing")?;
        assert!(
            last.contains("\"kernel-arguments\":[\"root=LABEL=test\",\"rw\",\"a\",\"b\"]"),
            "{last}"
        );
        let shown = ask(&host, &["kargs", "--json"])?.expect(&[0])?.json()?;
        assert_eq!(shown["kernel-arguments"][3], "b");
        let first = host.first.digest.clone();
        change(&host, ("", "", "a b"), &digest(&first))
            .await?
            .succeeded()?;
        assert_eq!(staged(&host).await?, "root=LABEL=test rw");
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_refused_and_a_better_image_helps() -> Result<()> {
        let mut host = Host::boot()?;
        let good = next(
            &host,
            &host.first,
            "2",
            &[("a.toml", "kargs = [\"good\"]\n")],
        )?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        for (version, text) in [
            ("3", "kargs = [\"a\"]\nmatch = 1\n"),
            ("4", "kargs = [\"ostree=/x\"]"),
        ] {
            next(&host, &good, version, &[("a.toml", text)])?;
            let refused = host.upgrade().await?.failed("ImageInvalid")?;
            assert!(
                refused.error_message.contains("kargs.d/a.toml"),
                "{refused:?}"
            );
            assert!(host.sandbox.deployments()?.iter().all(|one| !one.staged));
            let connection = host.connect().await?;
            let mut listener = Listener::new(&connection).await?;
            let proxy = Host::proxy(&connection).await?;
            let job = proxy.simulate(&SimulateOptions::default()).await?;
            let told = listener.end(&job).await?.succeeded()?;
            let obstacles: Vec<String> = told.value("obstacles")?;
            assert!(obstacles[0].contains("kargs.d/a.toml"), "{obstacles:?}");
        }
        next(&host, &good, "5", &[("a.toml", "kargs = [\"better\"]\n")])?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        assert_eq!(entries(&host)?[0], "root=LABEL=test rw better");
        host.sandbox.fsck()
    }
}
