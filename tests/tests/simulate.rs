//! What a simulated upgrade says, and what comes of the real one; and what was changed in `/etc`
//! as we and as `ostree admin` see it.

#[cfg(test)]
mod simulate {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::{Path, PathBuf};

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{
        DiffEtcOptions, DownloadOptions, RollbackOptions, SimulateOptions, UpgradeOptions,
    };
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::chunked::Style;
    use osteward_tests::image::{Compression, Image, Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::peer::connect_as;
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;

    async fn simulate(host: &Host, digest: Option<&str>) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = SimulateOptions {
            digest: digest.map(str::to_owned),
            ..Default::default()
        };
        let job = Host::proxy(&connection).await?.simulate(&options).await?;
        listener.end(&job).await
    }

    async fn download(host: &Host) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = DownloadOptions::default();
        let job = Host::proxy(&connection).await?.download(&options).await?;
        listener.end(&job).await?.succeeded()
    }

    fn conflicts(told: &Ended) -> Result<Vec<String>> {
        let pairs: Vec<(String, String)> = told.value("etc-conflicts")?;
        assert_eq!(told.value::<u64>("etc-conflict-count")?, pairs.len() as u64);
        let lines = pairs
            .into_iter()
            .map(|(word, path)| format!("{word} {path}"));
        Ok(lines.collect())
    }

    /// Version 2 runs, with these files in `/etc`.
    async fn running(files: &[&str]) -> Result<(Host, Written)> {
        let mut host = Host::boot()?;
        let mut layer = Layer::new().dir("etc").dir("etc/d");
        for path in files {
            layer = layer.file(&format!("etc/{path}"), format!("{path} of 2\n"));
        }
        let second = host.publish(&host.next_image("2", [layer]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        Ok((host, second))
    }

    fn third(host: &Host, second: &Written, layer: Layer) -> Result<Written> {
        let image = Image::new("3").on(second).created("2025-03-01T00:00:00Z");
        host.publish(&image.layer(layer))
    }

    /// All files below a directory, and their lengths.
    fn files(directory: &Path, found: &mut BTreeSet<(PathBuf, u64)>) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => files(&entry.path(), found)?,
                false => _ = found.insert((entry.path(), entry.metadata()?.len())),
            }
        }
        Ok(())
    }

    /// A layer of which the same file is in all versions.
    fn chunked(version: u8) -> Layer {
        let layer = [("same", 0), ("other", version)].into_iter().fold(
            Layer::new().dir("usr").dir("usr/share"),
            |layer, (name, seed)| {
                let mut content = vec![0; 1 << 20];
                fastrand::Rng::with_seed(seed.into()).fill(&mut content);
                layer.file(&format!("usr/share/{name}"), content)
            },
        );
        layer.compressed(Compression::Chunked(Style::Modern))
    }

    #[tokio::test]
    async fn only_documents_are_fetched_for_it_and_nothing_is_kept() -> Result<()> {
        let mut host = Host::boot()?;
        let relay = Relay::before(&mut host)?;
        let second = host.publish(&host.next_image("2", [chunked(2)]))?;
        host.upgrade().await?.succeeded()?;
        let image = third(&host, &second, chunked(3))?;
        let (asked, mut before) = (relay.requests().len(), BTreeSet::new());
        files(&host.sandbox.repo(), &mut before)?;
        let told = simulate(&host, Some(&image.digest)).await?.succeeded()?;
        assert_eq!(told.value::<String>("digest")?, image.digest);
        let mut after = BTreeSet::new();
        files(&host.sandbox.repo(), &mut after)?;
        assert_eq!(before, after);
        for request in relay.requests().split_off(asked) {
            let documents = [&image.digest, &image.config_digest];
            let is_one = documents
                .iter()
                .any(|digest| request.path.ends_with(*digest));
            assert!(
                is_one && !request.path.contains("/referrers/"),
                "{request:?}"
            );
        }
        Ok(())
    }

    #[tokio::test]
    async fn what_is_told_before_and_after_the_download_is_what_comes() -> Result<()> {
        let files = ["both", "here", "gone-here", "gone-there", "there", "d/deep"];
        let (mut host, second) = running(&files).await?;
        let nothing = simulate(&host, None).await?.succeeded()?;
        assert!(!nothing.value::<bool>("changed")?);
        assert_eq!(nothing.value::<String>("reboot")?, "none");

        let write = |path: &str, text: &str| -> Result<()> {
            fs::write(host.sandbox.inside("/etc")?.join(path), text).context("writing")
        };
        for path in ["both", "here", "gone-there", "d/deep"] {
            write(path, "mine\n")?;
        }
        write("own", "mine\n")?;
        fs::remove_file(host.sandbox.inside("/etc/gone-here")?)?;
        let mut layer = Layer::new()
            .dir("etc")
            .dir("etc/d")
            .dir("usr")
            .dir("usr/share");
        for path in ["both", "gone-here", "there", "own"] {
            layer = layer.file(&format!("etc/{path}"), format!("{path} of 3\n"));
        }
        let layer = layer.whiteout("etc/gone-there");
        let image = third(
            &host,
            &second,
            layer.file("usr/share/big", vec![7; 200_000]),
        )?;

        let before = simulate(&host, None).await?.succeeded()?;
        assert_eq!(before.value::<String>("digest")?, image.digest);
        assert!(before.value::<bool>("changed")? && !before.value::<bool>("staged")?);
        let size: u64 = before.value("download-size")?;
        assert!(
            size > 0 && before.value::<u64>("disk-have")? > size,
            "{before:?}"
        );
        assert!(before.value::<u64>("boot-have")? > before.value::<u64>("boot-need")?);
        assert_eq!(before.value::<String>("reboot")?, "unknown");
        assert!(!before.result.contains_key("etc-conflicts"), "{before:?}");

        download(&host).await?;
        let expected = [
            "kept both",
            "stays-removed gone-here",
            "orphaned gone-there",
            "kept own",
        ];
        let after = simulate(&host, None).await?.succeeded()?;
        assert_eq!(conflicts(&after)?, expected);
        assert_eq!(after.value::<u64>("download-size")?, 0);
        assert_eq!(after.value::<String>("reboot")?, "reboot");
        assert_eq!(
            after.value::<Vec<String>>("obstacles")?,
            Vec::<String>::new()
        );
        let told = client::ask(&host.sandbox, &host.bus, &["simulate"])?.expect(&[0])?;
        for words in [
            "Would be staged: 3",
            "/etc/both: ",
            "Reboot: with the kernel",
        ] {
            assert!(told.stdout.contains(words), "{told:?}");
        }
        assert_eq!(
            host.sandbox
                .deployments()?
                .iter()
                .filter(|one| one.staged)
                .count(),
            0
        );

        host.upgrade().await?.succeeded()?;
        let staged = simulate(&host, None).await?.succeeded()?;
        assert!(staged.value::<bool>("staged")?);
        assert_eq!(conflicts(&staged)?, expected);
        host.reboot()?;
        let read = |path: &str| {
            fs::read_to_string(host.sandbox.inside("/etc")?.join(path)).context("reading")
        };
        for path in ["both", "here", "gone-there", "own", "d/deep"] {
            assert_eq!(read(path)?, "mine\n", "{path}");
        }
        assert!(!host.sandbox.exists("/etc/gone-here"));
        assert_eq!(read("there")?, "there of 3\n");
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn what_would_fail_at_shutdown_is_told_before() -> Result<()> {
        let (host, second) = running(&["file", "d/x", "d/z"]).await?;
        // A directory where a file was, and the other way round.
        let layer = Layer::new()
            .dir("etc")
            .dir("etc/file")
            .file("etc/file/below", "3");
        third(&host, &second, layer.file("etc/d", "a file now"))?;
        download(&host).await?;
        let clean = simulate(&host, None).await?.succeeded()?;
        assert_eq!(conflicts(&clean)?, Vec::<String>::new());
        let etc = host.sandbox.inside("/etc")?;
        for (path, mine) in [
            ("file", Some("mine")),
            ("d/x", Some("mine")),
            ("d/own", Some("mine")),
            ("d/z", None),
        ] {
            // libostree does not tell anybody that it has given up.
            host.sandbox.run(["touch", "/sysroot/ostree/deploy"])?;
            let ended = host.upgrade().await?.succeeded()?;
            assert!(ended.value::<bool>("changed")?, "{ended:?}");
            let place = etc.join(path);
            let before = fs::read(&place).ok();
            match mine {
                Some(text) => fs::write(&place, text)?,
                None => fs::remove_file(&place)?,
            }
            let told = simulate(&host, None).await?.succeeded()?;
            assert_eq!(conflicts(&told)?, [format!("blocked {path}")]);
            let finalized = host.sandbox.run(["ostree", "admin", "finalize-staged"]);
            ensure!(
                finalized.is_err(),
                "libostree can merge {path}: {finalized:?}"
            );
            match before {
                Some(text) => fs::write(&place, text)?,
                None => fs::remove_file(&place)?,
            }
        }
        fs::write(etc.join("file"), "mine")?;
        let answer = client::ask(&host.sandbox, &host.bus, &["simulate"])?.expect(&[12])?;
        assert!(answer.stdout.contains("It would not work"), "{answer:?}");
        fs::write(etc.join("file"), "file of 2\n")?;
        client::ask(&host.sandbox, &host.bus, &["simulate"])?.expect(&[0])?;
        Ok(())
    }

    #[tokio::test]
    async fn what_an_upgrade_would_refuse_is_an_obstacle() -> Result<()> {
        let (mut host, second) = running(&["file"]).await?;
        let other = format!("sha256:{}", "1".repeat(64));
        simulate(&host, Some(&other)).await?.failed("DigestGone")?;
        let staged = simulate(&host, Some(&host.first.digest))
            .await?
            .succeeded()?;
        let obstacles: Vec<String> = staged.value("obstacles")?;
        assert!(
            obstacles[0].contains("older than the booted"),
            "{obstacles:?}"
        );

        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.rollback(&RollbackOptions::default()).await?;
        listener.end(&job).await?.succeeded()?;
        drop((listener, proxy, connection));
        host.reboot()?;
        let told = simulate(&host, None).await?.succeeded()?;
        let obstacles: Vec<String> = told.value("obstacles")?;
        assert!(obstacles[0].contains("left behind"), "{obstacles:?}");
        let told = simulate(&host, Some(&second.digest)).await?.succeeded()?;
        let obstacles: Vec<String> = told.value("obstacles")?;
        assert_eq!(
            obstacles,
            Vec::<String>::new(),
            "named like that it would be staged"
        );
        let answer = client::ask(&host.sandbox, &host.bus, &["simulate"])?.expect(&[12])?;
        assert!(answer.stdout.contains("It would not work"), "{answer:?}");
        let refused = host.upgrade_with(&UpgradeOptions::default()).await?;
        refused.failed("Quarantined")?;
        Ok(())
    }

    async fn changes(host: &Host, uid: Option<u32>) -> Result<BTreeSet<String>> {
        let connection = match uid {
            None => host.connect().await?,
            Some(uid) => connect_as(&host.bus, uid).await?,
        };
        let changes = Host::proxy(&connection).await?;
        let changes = changes.diff_etc(&DiffEtcOptions::default()).await?;
        let lines: Vec<String> = changes
            .into_iter()
            .map(|(word, path)| format!("{word} {path}"))
            .collect();
        let sorted = lines.iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(sorted.len(), lines.len(), "each path once: {lines:?}");
        Ok(sorted)
    }

    /// As `ostree admin config-diff` has it, in our words.
    fn libostree(host: &Host) -> Result<BTreeSet<String>> {
        let said = host.sandbox.run(["ostree", "admin", "config-diff"])?;
        let line = |line: &str| {
            let (sign, path) = line.split_once(' ').context("not a difference")?;
            let word = match sign {
                "M" => "modified",
                "D" => "removed",
                "A" => "added",
                other => anyhow::bail!("what is {other}?"),
            };
            Ok(format!("{word} {}", path.trim()))
        };
        said.lines().map(line).collect()
    }

    #[tokio::test]
    async fn what_was_changed_in_etc_is_what_libostree_says() -> Result<()> {
        let (host, _second) =
            running(&["file", "mode", "gone", "link", "kind", "d/x", "d/y"]).await?;
        assert_eq!(changes(&host, None).await?, libostree(&host)?);
        let etc = host.sandbox.inside("/etc")?;
        fs::write(etc.join("file"), "mine")?;
        fs::set_permissions(etc.join("mode"), fs::Permissions::from_mode(0o600))?;
        fs::remove_file(etc.join("gone"))?;
        fs::remove_file(etc.join("link"))?;
        symlink("file", etc.join("link"))?;
        fs::remove_file(etc.join("kind"))?;
        fs::create_dir_all(etc.join("kind/below"))?;
        fs::remove_dir_all(etc.join("d"))?;
        fs::create_dir_all(etc.join("new/deep"))?;
        symlink("/nowhere", etc.join("new/dangling"))?;
        fs::write(etc.join("new/deep/file"), "")?;
        fs::create_dir(etc.join("private"))?;
        fs::write(etc.join("private/key"), "")?;
        fs::set_permissions(etc.join("private"), fs::Permissions::from_mode(0o700))?;
        let told = changes(&host, None).await?;
        assert_eq!(told, libostree(&host)?);
        for line in [
            "modified file",
            "modified mode",
            "modified link",
            "modified kind",
            "removed gone",
            "removed d",
            "added new/deep/file",
            "added private/key",
        ] {
            assert!(told.contains(line), "{line}: {told:#?}");
        }
        let mut public = told.clone();
        public.remove("added private/key");
        assert_eq!(changes(&host, Some(UNPRIVILEGED_UID)).await?, public);

        let ask = |words: &[&str]| client::ask(&host.sandbox, &host.bus, words);
        let shown = ask(&["diff", "etc"])?.expect(&[0])?.stdout;
        assert_eq!(shown.lines().count(), told.len(), "{shown}");
        assert!(shown.contains("modified  /etc/file\n"), "{shown}");
        let shown = ask(&["diff", "etc", "rollback", "--json"])?
            .expect(&[0])?
            .json()?;
        assert!(
            shown.as_array().context("no list")?.len() < told.len(),
            "{shown}"
        );
        ask(&["diff", "etc", "staged"])?.expect(&[1])?;
        ask(&["diff", "etc", "nonsense"])?.expect(&[1])?;
        ask(&["diff", "usr"])?.expect(&[2])?;
        Ok(())
    }
}
