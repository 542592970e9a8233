//! What the daemon remembers of jobs: the history, the log of one job, and its events.

#[cfg(test)]
mod memory {
    use std::fs;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{
        ApplyOptions, CheckOptions, Common, DiscardOptions, NoOptions, UpgradeOptions,
    };
    use osteward_dbus::types::{HistoryEntry, from_dict};
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::job::Listener;
    use osteward_tests::peer::connect_as;
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;
    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt, BufReader, Lines};
    use tokio::net::unix::pipe::Receiver;
    use zbus::{Connection, OwnedObjectPath};

    /// More than the manifests need, and less than [`filling`].
    const A_BIT_OF_A_LAYER: u64 = 600_000;

    fn filling(seed: u8) -> Layer {
        let content = vec![seed; 2_000_000];
        let layer = Layer::new().dir("usr").file("usr/filling", content);
        layer.compressed(Compression::Plain)
    }

    fn stop(host: &mut Host) -> Result<()> {
        let daemon = host.daemon.take().context("the daemon does not run")?;
        ensure!(daemon.stop()?.success(), "the daemon did not end well");
        Ok(())
    }

    /// The newest first, as an unprivileged user sees it.
    async fn history(host: &Host, max: u32) -> Result<Vec<HistoryEntry>> {
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let manager = Host::manager(&user).await?;
        let entries = manager.get_history(max, &NoOptions {}).await?;
        let entries = entries.iter().map(from_dict);
        Ok(entries.collect::<zbus::Result<_>>()?)
    }

    async fn job(connection: &Connection, path: &OwnedObjectPath) -> Result<u64> {
        let created = Host::job(connection, path).await?.created_at().await?;
        Ok(created)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_history_survives_daemons_and_reboots() -> Result<()> {
        let mut host = Host::boot()?;
        assert_eq!(history(&host, 0).await?, []);
        let second = host.publish(&host.next_image("2", [filling(1)]))?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        // Looking is nothing to remember.
        let check = proxy.check(&CheckOptions::default()).await?;
        listener.end(&check).await?.succeeded()?;
        let options = UpgradeOptions::default().with_common(Common {
            client_label: Some("tray".into()),
            reason: Some("it is noon".into()),
            ..Common::default()
        });
        let upgrade = proxy.upgrade(&options).await?;
        listener.end(&upgrade).await?.succeeded()?;
        let created = job(&connection, &upgrade).await?;
        host.kill_daemon()?;
        host.start_daemon()?;
        let entries = history(&host, 0).await?;
        let [entry] = &entries[..] else {
            anyhow::bail!("{entries:#?}");
        };
        let number = upgrade.rsplit('/').next().unwrap_or_default();
        assert_eq!(entry.job.to_string(), number);
        assert_eq!(entry.created_at, created);
        assert!(entry.finished_at >= created);
        let words = [
            &entry.kind,
            &entry.state,
            &entry.started_by_label,
            &entry.reason,
        ];
        assert_eq!(words, ["upgrade", "succeeded", "tray", "it is noon"]);
        assert_eq!((entry.started_by_uid, entry.changed), (0, true));
        assert!(entry.image.ends_with("/os:latest"), "{entry:?}");
        assert_eq!(entry.from_digest, host.first.digest);
        assert_eq!(entry.to_digest, second.digest);
        assert_eq!(
            (&entry.digest, entry.version.as_str()),
            (&second.digest, "2")
        );

        host.reboot()?;
        let nothing = host.upgrade().await?.succeeded()?;
        assert!(!nothing.value::<bool>("changed")?);
        let back = client::ask(
            &host.sandbox,
            &host.bus,
            &["rollback", "--reason", "it hums"],
        )?;
        back.expect(&[0])?;
        let refused = host.upgrade().await;
        assert!(refused.is_err(), "{refused:?}");
        let entries = history(&host, 2).await?;
        let told = entries
            .iter()
            .map(|entry| (entry.kind.as_str(), entry.state.as_str(), entry.changed));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                ("rollback", "succeeded", true),
                ("upgrade", "succeeded", false)
            ],
            "what is refused is no job"
        );
        assert_eq!(entries[0].from_digest, second.digest);
        assert_eq!(entries[0].to_digest, host.first.digest);
        client_shows(&host, &second.digest)
    }

    fn client_shows(host: &Host, second: &str) -> Result<()> {
        let short = |digest: &str| digest[..19].to_owned();
        let shown = client::ask(&host.sandbox, &host.bus, &["history"])?.expect(&[0])?;
        let lines: Vec<&str> = shown.stdout.lines().collect();
        assert_eq!(lines.len(), 4, "{shown:?}");
        let (from, to) = (short(second), short(&host.first.digest));
        for word in [
            "rollback",
            "osteward (uid 0)",
            "reason: it hums",
            &from,
            &to,
        ] {
            assert!(lines[1].contains(word), "{word}: {shown:?}");
        }
        assert!(lines[2].contains("unchanged"), "{shown:?}");
        let json = client::ask(&host.sandbox, &host.bus, &["history", "-n", "1", "--json"])?;
        let json = json.expect(&[0])?.json()?;
        assert_eq!(json.as_array().map(Vec::len), Some(1), "{json}");
        assert_eq!(json[0]["to-digest"], host.first.digest.as_str());
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn failures_and_interruptions_are_remembered() -> Result<()> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", [filling(1)]))?;
        let relay = Relay::before(&mut host)?;
        relay.allow(A_BIT_OF_A_LAYER);
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let queued = Common {
            on_busy: Some("queue".into()),
            ..Common::default()
        };
        let upgrade = proxy.upgrade(&UpgradeOptions::default()).await?;
        listener.wait_for_phase(&upgrade, "downloading").await?;
        let waiting = ApplyOptions::default().with_common(queued);
        proxy.apply(&waiting).await?;
        host.kill_daemon()?;
        relay.resume();
        host.start_daemon()?;
        let entries = history(&host, 0).await?;
        let told: Vec<_> = entries
            .iter()
            .map(|entry| {
                (
                    entry.kind.as_str(),
                    entry.state.as_str(),
                    entry.to_digest.as_str(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [("apply", "interrupted", ""), ("upgrade", "interrupted", "")]
        );

        let options = UpgradeOptions::default();
        let missing = proxy.switch("oci:/run/share/oci:missing", &options).await?;
        let ended = listener.end(&missing).await?.failed("ImageNotFound")?;
        let entry = history(&host, 1).await?.pop().context("no entry")?;
        assert_eq!(
            (entry.kind.as_str(), entry.state.as_str()),
            ("switch", "failed")
        );
        assert_eq!(
            (entry.error_name, entry.error_message),
            (ended.error_name, ended.error_message)
        );
        assert!(entry.image.ends_with(":missing"), "{}", entry.image);
        assert_eq!(entry.from_digest, entry.to_digest);
        // Interruptions are told once.
        stop(&mut host)?;
        host.start_daemon()?;
        assert_eq!(history(&host, 0).await?.len(), 3);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_history_of_the_future_is_kept_and_said() -> Result<()> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", [filling(1)]))?;
        stop(&mut host)?;
        let file = host
            .sandbox
            .inside("/var/lib/osteward")?
            .join("history.jsonl");
        fs::create_dir_all(file.parent().context("no parent")?)?;
        fs::write(&file, "{\"schema\":2,\"job\":1}\n")?;
        host.start_daemon()?;
        // It is no reason not to upgrade.
        host.upgrade().await?.succeeded()?;
        let manager = Host::manager(&host.connect().await?).await?;
        let warnings = manager.config_warnings().await?;
        assert!(
            warnings.iter().any(|it| it.contains("newer osteward")),
            "{warnings:?}"
        );
        assert_eq!(history(&host, 0).await?, []);
        assert_eq!(fs::read_to_string(&file)?, "{\"schema\":2,\"job\":1}\n");
        Ok(())
    }

    async fn events(
        connection: &Connection,
        path: &OwnedObjectPath,
    ) -> Result<Lines<BufReader<Receiver>>> {
        let pipe = Host::job(connection, path)
            .await?
            .stream_events(&NoOptions {})
            .await?;
        Ok(BufReader::new(Receiver::from_owned_fd(pipe.into())?).lines())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_log_and_the_events_tell_the_story() -> Result<()> {
        let mut host = Host::boot()?;
        let image = host.publish(&host.next_image("2", (0..6).map(filling)))?;
        let relay = Relay::before(&mut host)?;
        relay.hold();
        let root = host.connect().await?;
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let mut listener = Listener::new(&root).await?;
        let job = Host::proxy(&root)
            .await?
            .upgrade(&UpgradeOptions::default())
            .await?;
        let mut lines = events(&user, &job).await?;
        // Whoever does not read, or leaves, holds nothing up.
        let _unread = events(&user, &job).await?;
        drop(events(&user, &job).await?);
        relay.resume();
        let mut seen = Vec::new();
        while let Some(line) = lines.next_line().await? {
            seen.push(serde_json::from_str::<Value>(&line).with_context(|| line)?);
        }
        listener.end(&job).await?.succeeded()?;
        let of = |name: &str| {
            seen.iter()
                .filter(|event| event["event"] == name)
                .collect::<Vec<_>>()
        };
        assert_eq!(seen[0]["event"], "state", "{seen:#?}");
        for layer in &image.layers[image.layers.len() - 6..] {
            for name in ["layer-started", "layer-done"] {
                let about = of(name)
                    .iter()
                    .filter(|it| it["digest"] == layer.as_str())
                    .count();
                assert_eq!(about, 1, "{name} {layer}: {seen:#?}");
            }
        }
        let end = seen.last().context("no events")?;
        assert_eq!(
            (&end["event"], &end["state"]),
            (&"finished".into(), &"succeeded".into())
        );
        assert!(
            !of("progress").is_empty() && of("dropped").is_empty(),
            "{seen:#?}"
        );

        let log = Host::job(&user, &job).await?.get_log(&NoOptions {}).await?;
        for words in ["asking for", "making the deployment"] {
            assert!(
                log.iter().any(|line| line.contains(words)),
                "{words}: {log:#?}"
            );
        }
        let shown = client::ask(&host.sandbox, &host.bus, &["log"])?.expect(&[0])?;
        assert_eq!(shown.stdout.lines().collect::<Vec<_>>(), log);
        let number = job.rsplit('/').next().unwrap_or_default();
        let words = ["watch", "--events", number];
        let late = client::ask(&host.sandbox, &host.bus, &words)?.expect(&[0])?;
        assert!(late.stdout.contains("\"finished\""), "{late:?}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_listens_more_often_than_others_can() -> Result<()> {
        let host = Host::boot()?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let lock = host.sandbox.hold_lock()?;
        let options = DiscardOptions::default();
        let job = Host::proxy(&connection)
            .await?
            .discard(&["staged"], &options)
            .await?;
        let mut open = Vec::new();
        for _ in 0..16 {
            open.push(events(&connection, &job).await?);
        }
        let refused = Host::job(&connection, &job)
            .await?
            .stream_events(&NoOptions {})
            .await;
        let refused = refused.err().context("one too many")?;
        assert_eq!(refused.name(), "org.freedesktop.DBus.Error.LimitsExceeded");
        open.clear();
        // The daemon hears of the closing by itself, only not at once.
        while let Err(error) = events(&connection, &job).await {
            ensure!(error.to_string().contains("listen"), "{error:?}");
        }
        drop(lock);
        listener.end(&job).await?.succeeded()?;
        Ok(())
    }
}
