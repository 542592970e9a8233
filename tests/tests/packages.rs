//! What is in an update: told from the images' own package databases, and checked against what
//! the package managers say that made them.

#[cfg(test)]
mod packages {
    use std::collections::BTreeSet;

    use anyhow::{Context, Result, ensure};
    use futures_util::StreamExt as _;
    use osteward_dbus::options::{CheckOptions, DownloadOptions, NoOptions, UpgradeOptions};
    use osteward_dbus::proxies::UpdateProxy;
    use osteward_dbus::types::{PackageChange, change};
    use osteward_tests::client::{self, Answer};
    use osteward_tests::host::Host;
    use osteward_tests::image::{KERNEL, Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::packages::{Dpkg, Installed, Rpm, dpkg_is_older, rpm_is_older};
    use osteward_tests::sandbox::UNPRIVILEGED_UID;
    use serde_json::json;
    use zbus::Connection;
    use zbus::proxy::CacheProperties;

    const DPKG: &str = "usr/lib/sysimage/dpkg/status";
    const RPM: &str = "usr/share/rpm/rpmdb.sqlite";
    const APK: &str = "usr/lib/apk/db/installed";

    /// A layer with files, and with the directories that lead to them.
    fn layer(files: &[(&str, Vec<u8>)]) -> Layer {
        let mut directories = BTreeSet::new();
        for (path, _) in files {
            let slashes = path.match_indices('/').map(|(at, _)| &path[..at]);
            directories.extend(slashes);
        }
        let layer = directories
            .iter()
            .fold(Layer::new(), |layer, path| layer.dir(path));
        let files = files.iter().cloned();
        files.fold(layer, |layer, (path, content)| layer.file(path, content))
    }

    fn status(packages: &str) -> Layer {
        layer(&[(DPKG, packages.into())])
    }

    /// dpkg's database with one package in that version.
    fn one(version: &str) -> Layer {
        status(&format!(
            "Package: one\nStatus: install ok installed\nArchitecture: all\nVersion: {version}\n"
        ))
    }

    async fn boot_into(host: &mut Host, version: &str, databases: Layer) -> Result<Written> {
        let image = host.publish(&host.next_image(version, [databases]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        check(host).await?.succeeded()?;
        Ok(image)
    }

    async fn check(host: &Host) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = Host::proxy(&connection)
            .await?
            .check(&CheckOptions::default())
            .await?;
        listener.end(&job).await
    }

    async fn download(host: &Host) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = DownloadOptions::default();
        let job = Host::proxy(&connection).await?.download(&options).await?;
        listener.end(&job).await
    }

    async fn update(connection: &Connection) -> Result<UpdateProxy<'static>> {
        let path = Host::proxy(connection).await?.update().await?;
        ensure!(path.as_str() != "/", "no update is known");
        let update = UpdateProxy::builder(connection).path(path);
        Ok(update.cache_properties(CacheProperties::No).build().await?)
    }

    async fn level(host: &Host) -> Result<String> {
        let connection = host.connect().await?;
        Ok(update(&connection).await?.diff_level().await?)
    }

    fn diff(host: &Host, words: &[&str]) -> Result<Answer> {
        let words = [&["diff"], words].concat();
        client::ask_as(&host.sandbox, &host.bus, Some(UNPRIVILEGED_UID), &words)
    }

    /// Change, name, architecture, old and new version, as the client prints them in a pipe.
    fn expected(
        old: &Installed,
        new: &Installed,
        is_older: impl Fn(&str, &str) -> Result<bool>,
    ) -> Result<Vec<String>> {
        let both: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        let mut lines = Vec::new();
        for key in both {
            let (name, arch) = key;
            lines.push(match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) if old == new => continue,
                (Some(old), Some(new)) if is_older(old, new)? => {
                    format!("upgraded {name} {arch} {old} {new}")
                }
                (Some(old), Some(new)) => format!("downgraded {name} {arch} {old} {new}"),
                (Some(old), None) => format!("removed {name} {arch} {old} -"),
                (None, new) => {
                    format!("added {name} {arch} - {}", new.map_or("", String::as_str))
                }
            });
        }
        Ok(lines)
    }

    fn by_name(mut lines: Vec<String>) -> Vec<String> {
        let key = |line: &String| {
            let words: Vec<_> = line.split(' ').collect();
            (words[1].to_owned(), words[2].to_owned())
        };
        lines.sort_by_key(key);
        lines
    }

    fn in_words((name, number, old, new, arch, _): &PackageChange) -> String {
        let shown = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        let (old, new) = (shown(old), shown(new));
        format!("{} {name} {arch} {old} {new}", change::name(*number))
    }

    /// Two generations of databases and how they differ by their makers' accounts.
    fn generations() -> Result<([Layer; 2], Vec<String>)> {
        let (dpkg, rpm) = (Dpkg::new()?, Rpm::new()?);
        let apk = |musl: &str| format!("C:Q1{musl}=\nP:musl\nV:{musl}\nA:x86_64\nI:5\no:musl\n\n");
        let databases = |dpkg: &Dpkg, rpm: &Rpm, musl: &str| -> Result<Layer> {
            Ok(layer(&[
                (DPKG, dpkg.database()?),
                (RPM, rpm.database()?),
                (APK, apk(musl).into_bytes()),
            ]))
        };
        dpkg.install(&[
            ("d-lib", "amd64", "1.0-1"),
            ("d-lib", "i386", "1.0-1"),
            ("d-epoch", "arm64", "2:0.9"),
            ("d-candidate", "all", "3.0~rc1-1"),
            ("d-back", "amd64", "5.0-1+b2"),
            ("d-gone", "all", "1"),
            ("d-same", "all", "1"),
        ])?;
        rpm.install(&[
            ("r-tool", "x86_64", 0, "1.0~beta2", "1.fc41"),
            ("r-snapshot", "aarch64", 0, "2.0", "1"),
            ("r-epoch", "noarch", 1, "1.0", "1"),
            ("r-gone", "noarch", 0, "1", "1"),
            ("r-same", "noarch", 0, "1", "1"),
        ])?;
        let before = (dpkg.list()?, rpm.list()?);
        let first = databases(&dpkg, &rpm, "1.2.4-r1")?;
        dpkg.install(&[
            ("d-lib", "amd64", "1.0-1+deb12u1"),
            ("d-lib", "i386", "1.0-1+deb12u1"),
            ("d-epoch", "arm64", "2:0.10"),
            ("d-candidate", "all", "3.0-1"),
            ("d-back", "amd64", "5.0-1+b1"),
            ("d-new", "amd64", "7"),
        ])?;
        dpkg.remove("d-gone")?;
        rpm.install(&[
            ("r-tool", "x86_64", 0, "1.0", "1.fc41"),
            ("r-snapshot", "aarch64", 0, "2.0^git5", "1"),
            ("r-epoch", "noarch", 2, "0.9", "1"),
            ("r-new", "x86_64", 0, "1", "2"),
        ])?;
        rpm.remove("r-gone")?;
        let after = (dpkg.list()?, rpm.list()?);
        let mut lines = expected(&before.0, &after.0, dpkg_is_older)?;
        lines.extend(expected(&before.1, &after.1, rpm_is_older)?);
        lines.push("upgraded musl x86_64 1.2.4-r1 1.2.5_rc1-r0".to_owned());
        let second = databases(&dpkg, &rpm, "1.2.5_rc1-r0")?;
        Ok(([first, second], by_name(lines)))
    }

    #[tokio::test]
    async fn an_update_changes_what_the_package_managers_say_that_it_does() -> Result<()> {
        let ([first, second], expected) = generations()?;
        ensure!(expected.len() == 13, "{expected:#?}");
        let mut host = Host::boot()?;
        boot_into(&mut host, "2", first).await?;
        let image = host.publish(&host.next_image("3", [second]))?;
        let before = host.sandbox.refs("")?;
        check(&host).await?.succeeded()?;
        assert_eq!(host.sandbox.refs("")?, before, "a check downloads nothing");

        let connection = host.connect().await?;
        let update = update(&connection).await?;
        assert_eq!(update.diff_level().await?, "full");
        let (rows, total) = update.get_package_diff(0, 0, &NoOptions {}).await?;
        assert_eq!(rows.iter().map(in_words).collect::<Vec<_>>(), expected);
        assert_eq!(total, expected.len() as u64);
        let (page, total) = update.get_package_diff(3, 2, &NoOptions {}).await?;
        assert_eq!(
            page.iter().map(in_words).collect::<Vec<_>>(),
            expected[3..5]
        );
        assert_eq!(total, expected.len() as u64);
        let (none, _) = update.get_package_diff(u64::MAX, 1, &NoOptions {}).await?;
        assert!(none.is_empty());
        let (_, _, _, _, _, extra) = rows
            .iter()
            .find(|row| row.0 == "d-back")
            .context("no row")?;
        assert_eq!(<&str>::try_from(&extra["source"])?, "src-d-back");
        assert_eq!(<&str>::try_from(&extra["manager"])?, "dpkg");
        assert_eq!(u64::try_from(&extra["old-size"])?, 14 * 1024);

        let answer = diff(&host, &[])?.expect(&[0])?;
        assert_eq!(answer.stdout.lines().collect::<Vec<_>>(), expected);
        let document = diff(&host, &["--json"])?.expect(&[0])?.json()?;
        assert_eq!(document["level"], "full");
        assert_eq!(document["digest"], image.digest.as_str());
        assert_eq!(document["version"], json!({"old": "2", "new": "3"}));
        assert_eq!(document["packages"].as_array().map(Vec::len), Some(13));

        host.upgrade().await?.succeeded()?;
        let answer = diff(&host, &["booted", "staged"])?.expect(&[0])?;
        assert_eq!(answer.stdout.lines().collect::<Vec<_>>(), expected);
        // What is staged is still what is asked about when the daemon begins anew.
        host.kill_daemon()?;
        host.start_daemon()?;
        let answer = diff(&host, &[])?.expect(&[0])?;
        assert_eq!(answer.stdout.lines().collect::<Vec<_>>(), expected);
        host.reboot()?;
        let answer = diff(&host, &["rollback", "booted"])?.expect(&[0])?;
        assert_eq!(answer.stdout.lines().collect::<Vec<_>>(), expected);
        let answer = diff(&host, &["booted", "booted"])?.expect(&[0])?;
        assert_eq!(answer.stdout, "");
        diff(&host, &["booted", "0123456789"])?.expect(&[1])?;
        Ok(())
    }

    #[tokio::test]
    async fn what_a_check_cannot_tell_the_download_does() -> Result<()> {
        let mut host = Host::boot()?;
        boot_into(&mut host, "2", one("1")).await?;
        host.configure("[check]\nmax_peek_size = 0\n")?;
        let (old, new) = (
            format!("usr/lib/modules/{KERNEL}"),
            "usr/lib/modules/6.2.0-next",
        );
        let kernel = one("2").whiteout(&old).dir(new);
        let kernel = kernel.file(&format!("{new}/vmlinuz"), "kernel of 3\n");
        let kernel = kernel.file(&format!("{new}/initramfs.img"), "initramfs of 3\n");
        host.publish(&host.next_image("3", [kernel]))?;
        check(&host).await?.succeeded()?;
        assert_eq!(level(&host).await?, "metadata");
        let answer = diff(&host, &[])?.expect(&[0])?;
        assert_eq!(answer.stdout, "");
        assert!(answer.stderr.contains("osteward download"), "{answer:?}");
        let document = diff(&host, &["--json"])?.expect(&[0])?.json()?;
        assert_eq!(document["level"], "metadata");
        assert_eq!(document["kernel"], json!({"old": KERNEL, "new": ""}));

        let connection = host.connect().await?;
        let path = Host::proxy(&connection).await?.update().await?;
        let update = UpdateProxy::builder(&connection).path(path).build().await?;
        let mut changes = update.receive_diff_level_changed().await;
        download(&host).await?.succeeded()?;
        while update.diff_level().await? != "full" {
            changes.next().await.context("the bus is gone")?;
        }
        assert_eq!(update.kernel_version().await?, "6.2.0-next");
        assert_eq!(
            diff(&host, &[])?.expect(&[0])?.stdout,
            "upgraded one all 1 2\n"
        );
        drop(connection);
        // Read once, remembered for good.
        host.kill_daemon()?;
        host.start_daemon()?;
        assert_eq!(level(&host).await?, "full");
        let document = diff(&host, &["--json"])?.expect(&[0])?.json()?;
        assert_eq!(
            document["kernel"],
            json!({"old": KERNEL, "new": "6.2.0-next"})
        );
        assert_eq!(
            diff(&host, &[])?.expect(&[0])?.stdout,
            "upgraded one all 1 2\n"
        );
        Ok(())
    }

    #[tokio::test]
    async fn without_an_update_it_says_so_and_without_a_database_what_is_known() -> Result<()> {
        let host = Host::boot()?;
        let answer = diff(&host, &[])?.expect(&[0])?;
        assert_eq!(answer.stdout, "");
        assert!(answer.stderr.contains("No update is known"), "{answer:?}");
        let document = diff(&host, &["--json"])?.expect(&[0])?.json()?;
        let nothing = json!({"update": null, "level": "none", "packages": []});
        assert_eq!(document, nothing);
        host.publish(&host.next_image("2", [layer(&[("usr/x", b"x".into())])]))?;
        host.upgrade().await?.succeeded()?;
        assert_eq!(level(&host).await?, "metadata");
        let answer = diff(&host, &["booted", "staged"])?.expect(&[1])?;
        assert!(answer.stderr.contains("NotSupported"), "{answer:?}");
        Ok(())
    }

    #[tokio::test]
    async fn a_damaged_database_keeps_nobody_from_an_update() -> Result<()> {
        let mut host = Host::boot()?;
        boot_into(&mut host, "2", one("1")).await?;
        let broken = status("Package: one\nStatus: install ok installed\nnonsense\n");
        host.publish(&host.next_image("3", [broken]))?;
        check(&host).await?.succeeded()?;
        assert_eq!(level(&host).await?, "metadata");
        let options = UpgradeOptions::default();
        host.upgrade_with(&options).await?.succeeded()?;
        assert_eq!(level(&host).await?, "metadata");
        let answer = diff(&host, &["booted", "staged"])?.expect(&[1])?;
        let is_named = answer.stderr.contains("ImageInvalid") && answer.stderr.contains("line 3");
        assert!(is_named, "{answer:?}");
        Ok(())
    }
}
