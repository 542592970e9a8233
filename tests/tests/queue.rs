//! Jobs that wait for each other, give way, pause and go on.

#[cfg(test)]
mod queue {
    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{
        ApplyOptions, Common, DiscardOptions, DownloadOptions, ListJobsOptions, NoOptions,
        UpgradeOptions,
    };
    use osteward_dbus::types::{Dict, JobInfo};
    use osteward_dbus::{Error, JobProxy};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::job::Listener;
    use osteward_tests::peer::connect_as;
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;
    use osteward_tests::witness::{JOB, Witness, all, is};
    use zbus::proxy::CacheProperties;
    use zbus::{Connection, OwnedObjectPath};

    /// Bytes of one layer of [`plain`], a little more than its files have.
    const LAYER: u64 = 1_540_000;
    /// More than the manifests need, and less than the first layer.
    const A_BIT_OF_A_LAYER: u64 = 600_000;

    fn plain(seed: u8) -> Layer {
        let mut layer = Layer::new().dir("usr").compressed(Compression::Plain);
        for number in 0..30_u8 {
            let mut content = vec![seed; 50_000];
            content[0] = number;
            layer = layer.file(&format!("usr/{seed}-{number}"), content);
        }
        layer
    }

    /// A host with an image of four layers behind a link that lets `bytes` pass.
    async fn boot(bytes: u64) -> Result<(Host, Relay, Connection)> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", (0..4).map(plain)))?;
        let relay = Relay::before(&mut host)?;
        relay.allow(bytes);
        let connection = host.connect().await?;
        Ok((host, relay, connection))
    }

    async fn job(connection: &Connection, path: &OwnedObjectPath) -> Result<JobProxy<'static>> {
        let job = JobProxy::builder(connection).path(path.clone());
        Ok(job.cache_properties(CacheProperties::No).build().await?)
    }

    /// What can be read of a job now.
    async fn info(connection: &Connection, path: &OwnedObjectPath) -> Result<JobInfo> {
        let properties = all(connection, path, JOB).await?;
        let key = |name: &str| {
            let mut key = String::new();
            for letter in name.chars() {
                if letter.is_uppercase() && !key.is_empty() {
                    key.push('-');
                }
                key.extend(letter.to_lowercase());
            }
            key
        };
        let record: Dict = properties
            .into_iter()
            .map(|(name, value)| (key(&name), value))
            .collect();
        Ok(osteward_dbus::types::from_dict(&record)?)
    }

    fn queued() -> Common {
        Common {
            on_busy: Some("queue".into()),
            ..Common::default()
        }
    }

    fn ranked(priority: i32) -> Common {
        Common {
            priority: Some(priority),
            ..queued()
        }
    }

    async fn discard(
        connection: &Connection,
        what: &str,
        terms: Common,
    ) -> Result<OwnedObjectPath, Error> {
        let host = osteward_dbus::HostProxy::new(connection).await?;
        let options = DiscardOptions {
            dry_run: Some(true),
            ..DiscardOptions::default().with_common(terms)
        };
        host.discard(&[what], &options).await
    }

    async fn upgrade(connection: &Connection) -> Result<OwnedObjectPath> {
        let host = Host::proxy(connection).await?;
        Ok(host.upgrade(&UpgradeOptions::default()).await?)
    }

    /// Waits until what can be read of the job is as wanted.
    async fn until(
        witness: &mut Witness,
        path: &OwnedObjectPath,
        wanted: impl Fn(&JobInfo) -> bool,
    ) -> Result<JobInfo> {
        loop {
            // What was told before is in what is read.
            witness.rest();
            let now = info(&witness.connection, path).await?;
            if wanted(&now) {
                return Ok(now);
            }
            ensure!(now.finished_at == 0, "it ended before: {now:?}");
            while !is(&witness.next().await?, path, "PropertiesChanged") {}
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn jobs_wait_their_turn_and_survive_the_one_before() -> Result<()> {
        let (_host, _relay, connection) = boot(A_BIT_OF_A_LAYER).await?;
        let mut listener = Listener::new(&connection).await?;
        let first = upgrade(&connection).await?;
        listener.wait_for_phase(&first, "downloading").await?;
        let last = discard(&connection, "cache", queued()).await?;
        let urgent = discard(&connection, "staged", ranked(5)).await?;
        let middle = discard(&connection, "unreferenced", ranked(1)).await?;
        let hurried = discard(&connection, "rollback", Common::default()).await;
        ensure!(
            matches!(&hurried, Err(Error::Busy(text)) if text.contains(first.as_str())),
            "{hurried:?}"
        );
        // The same again is the same job, for those who would wait.
        assert_eq!(discard(&connection, "cache", queued()).await?, last);
        let impatient = discard(&connection, "cache", Common::default()).await;
        ensure!(matches!(impatient, Err(Error::Busy(_))), "{impatient:?}");
        for (path, before) in [(&urgent, &first), (&middle, &urgent), (&last, &middle)] {
            let now = info(&connection, path).await?;
            assert_eq!((now.state.as_str(), now.started_at), ("queued", 0));
            assert_eq!(now.blocked_by, *before, "{now:?}");
            assert!(now.message.starts_with("waiting for job "), "{now:?}");
        }
        let active = ListJobsOptions {
            active: Some(true),
            kind: Some("discard".into()),
        };
        let listed = Host::manager(&connection).await?.list_jobs(&active).await?;
        assert_eq!(listed, [last.clone(), urgent.clone(), middle.clone()]);

        // One in the queue leaves it at once, while the first still runs.
        job(&connection, &middle)
            .await?
            .cancel(&NoOptions {})
            .await?;
        assert_eq!(listener.end(&middle).await?.state, "cancelled");
        assert_eq!(info(&connection, &last).await?.blocked_by, urgent);
        assert_eq!(info(&connection, &first).await?.state, "running");

        job(&connection, &first)
            .await?
            .cancel(&NoOptions {})
            .await?;
        assert_eq!(listener.end(&first).await?.state, "cancelled");
        listener.end(&urgent).await?.succeeded()?;
        listener.end(&last).await?.succeeded()?;
        let first = info(&connection, &first).await?;
        let urgent = info(&connection, &urgent).await?;
        let last = info(&connection, &last).await?;
        assert!(
            first.finished_at <= urgent.started_at,
            "{first:?} {urgent:?}"
        );
        assert!(urgent.finished_at <= last.started_at, "{urgent:?} {last:?}");
        assert_eq!(last.blocked_by.as_str(), "/");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_waited_is_judged_when_its_turn_comes() -> Result<()> {
        let (_host, relay, connection) = boot(A_BIT_OF_A_LAYER).await?;
        let mut listener = Listener::new(&connection).await?;
        let host = Host::proxy(&connection).await?;
        let apply = ApplyOptions::default().with_common(queued());
        let first = upgrade(&connection).await?;
        listener.wait_for_phase(&first, "downloading").await?;
        let applying = host.apply(&apply).await?;
        job(&connection, &first)
            .await?
            .cancel(&NoOptions {})
            .await?;
        // Nothing was staged, so there is nothing to reboot into.
        listener.end(&applying).await?.failed("NoUpdate")?;
        assert_eq!(info(&connection, &applying).await?.started_at, 0);

        let second = upgrade(&connection).await?;
        let applying = host.apply(&apply).await?;
        relay.resume();
        listener.end(&second).await?.succeeded()?;
        // Now there is; only that no logind is here.
        listener.end(&applying).await?.failed("NotSupported")?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_background_download_makes_way_and_loses_nothing() -> Result<()> {
        // In the background one layer comes after the other: the first one and a bit.
        let (host, relay, connection) = boot(LAYER + A_BIT_OF_A_LAYER).await?;
        let between = host.publish(&host.next_image("3", [plain(9)]))?;
        let newest = host.publish(&host.next_image("4", (0..4).map(plain)))?;
        let mut witness = Witness::new(connection.clone()).await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let options = DownloadOptions::default().with_common(Common {
            background: Some(true),
            ..Common::default()
        });
        let download = proxy.download(&options).await?;
        let has_layer = |now: &JobInfo| now.layers_done > 0 && now.phase == "downloading";
        let before = until(&mut witness, &download, has_layer).await?;
        assert!(before.background);

        let other = Common {
            background: Some(true),
            ..queued()
        };
        let patient = discard(&connection, "unreferenced", other).await?;
        assert_eq!(info(&connection, &patient).await?.state, "queued");
        assert_eq!(info(&connection, &download).await?.state, "running");

        // It fetches and stages another image, and removes what nothing needs.
        let urgent = UpgradeOptions {
            digest: Some(between.digest),
            ..UpgradeOptions::default()
        };
        let urgent = proxy.upgrade(&urgent).await?;
        until(&mut witness, &download, |now| now.state == "queued").await?;
        let before = relay.requests().len();
        relay.resume();
        listener.end(&urgent).await?.succeeded()?;
        let now = until(&mut witness, &download, |now| now.finished_at > 0).await?;
        assert_eq!(now.state, "succeeded", "{now:?}");
        assert!(now.bytes_cached >= LAYER - 40_000, "{now:?}");
        assert!(now.layers_done == now.layers_total, "{now:?}");
        let later = relay.requests().split_off(before);
        let asked = |layer: &String| later.iter().any(|request| request.path.ends_with(layer));
        let plain = newest.layers.last_chunk::<4>().context("no layers")?;
        assert_eq!(plain.each_ref().map(asked), [false, true, true, true]);
        // What was staged needs no guard, and what waits to be staged does.
        let hex = newest.digest.replace("sha256:", "");
        let guard = format!("ostree/container/baseimage/osteward/{hex}");
        assert_eq!(host.sandbox.refs("ostree/container/baseimage/")?, [guard]);
        let lines = job(&connection, &download)
            .await?
            .get_log(&NoOptions {})
            .await?;
        let interrupted = lines
            .iter()
            .filter(|line| line.ends_with("interrupted for a job that somebody waits for"));
        assert_eq!(interrupted.count(), 1, "{lines:#?}");
        host.sandbox.fsck()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn asking_for_a_background_job_takes_it_out_of_the_background() -> Result<()> {
        let (_host, relay, connection) = boot(A_BIT_OF_A_LAYER).await?;
        let mut listener = Listener::new(&connection).await?;
        let host = Host::proxy(&connection).await?;
        let plain = DownloadOptions::default();
        let behind = plain.clone().with_common(Common {
            background: Some(true),
            ..Common::default()
        });
        let download = host.download(&behind).await?;
        listener.wait_for_phase(&download, "downloading").await?;
        assert_eq!(host.download(&behind).await?, download);
        assert!(info(&connection, &download).await?.background);
        assert_eq!(host.download(&plain).await?, download);
        assert!(!info(&connection, &download).await?.background);
        // It does not make way any more.
        let refused = discard(&connection, "staged", Common::default()).await;
        ensure!(matches!(refused, Err(Error::Busy(_))), "{refused:?}");
        relay.resume();
        listener.end(&download).await?.succeeded()?;
        let late = job(&connection, &download)
            .await?
            .adopt(&NoOptions {})
            .await;
        ensure!(matches!(late, Err(Error::TooLate(_))), "{late:?}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_paused_download_lets_others_work() -> Result<()> {
        let (host, relay, connection) = boot(A_BIT_OF_A_LAYER).await?;
        let mut witness = Witness::new(connection.clone()).await?;
        let mut listener = Listener::new(&connection).await?;
        let path = upgrade(&connection).await?;
        until(&mut witness, &path, |now| now.bytes_done > 0).await?;
        let upgrading = job(&connection, &path).await?;
        upgrading.pause(&NoOptions {}).await?;
        until(&mut witness, &path, |now| {
            now.state == "queued" && now.paused
        })
        .await?;
        upgrading.pause(&NoOptions {}).await?;
        let manager = Host::manager(&connection).await?;
        assert_eq!(manager.active_job().await?.as_str(), "/");
        let busy = discard(&connection, "staged", Common::default()).await?;
        listener.end(&busy).await?.succeeded()?;
        let refused = job(&connection, &busy).await?.pause(&NoOptions {}).await;
        ensure!(
            matches!(refused, Err(Error::NotSupported(_))),
            "{refused:?}"
        );
        assert_eq!(info(&connection, &path).await?.state, "queued");

        let stranger = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        for answer in [
            job(&stranger, &path).await?.resume(&NoOptions {}).await,
            job(&stranger, &path).await?.pause(&NoOptions {}).await,
            job(&stranger, &path).await?.adopt(&NoOptions {}).await,
            job(&stranger, &path).await?.release().await,
        ] {
            ensure!(matches!(answer, Err(Error::AccessDenied(_))), "{answer:?}");
        }
        upgrading.resume(&NoOptions {}).await?;
        relay.resume();
        let ended = listener.end(&path).await?.succeeded()?;
        assert!(ended.value::<bool>("changed")?);
        let now = info(&connection, &path).await?;
        assert!(!now.paused && now.started_at > 0, "{now:?}");
        assert!(now.bytes_done <= now.bytes_total, "{now:?}");
        host.sandbox.fsck()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_paused_job_can_be_cancelled_and_is_with_the_daemon() -> Result<()> {
        let (mut host, relay, connection) = boot(A_BIT_OF_A_LAYER).await?;
        let mut listener = Listener::new(&connection).await?;
        let mut witness = Witness::new(connection.clone()).await?;
        let path = upgrade(&connection).await?;
        job(&connection, &path).await?.pause(&NoOptions {}).await?;
        until(&mut witness, &path, |now| now.state == "queued").await?;
        job(&connection, &path).await?.cancel(&NoOptions {}).await?;
        assert_eq!(listener.end(&path).await?.state, "cancelled");

        let running = upgrade(&connection).await?;
        let waiting = discard(&connection, "staged", queued()).await?;
        let daemon = host.daemon.take().context("the daemon does not run")?;
        assert!(daemon.stop()?.success());
        // What waits is cancelled first, or it would begin.
        for path in [waiting, running] {
            assert_eq!(listener.end(&path).await?.state, "cancelled");
        }
        relay.resume();
        host.start_daemon()?;
        host.upgrade().await?.succeeded()?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_released_goes() -> Result<()> {
        let (_host, relay, connection) = boot(A_BIT_OF_A_LAYER).await?;
        relay.resume();
        let mut witness = Witness::new(connection.clone()).await?;
        let first = discard(&connection, "staged", Common::default()).await?;
        witness.follow(&first, Dict::new()).await?;
        let second = discard(&connection, "cache", Common::default()).await?;
        let released = job(&connection, &second).await?;
        released.release().await?;
        let ended = witness.follow(&second, Dict::new()).await?;
        assert_eq!(ended.finished.0, "succeeded", "released before its end");
        loop {
            let message = witness.next().await?;
            let header = message.header();
            if header
                .member()
                .is_some_and(|it| it.as_str() == "JobRemoved")
            {
                let (path, kind, state, error): (OwnedObjectPath, String, String, String) =
                    message.body().deserialize()?;
                assert_eq!(path, second);
                assert_eq!([kind, state, error], ["discard", "succeeded", ""]);
                break;
            }
        }
        let gone = released.state().await;
        ensure!(matches!(gone, Err(Error::UnknownObject(_))), "{gone:?}");
        assert_eq!(info(&connection, &first).await?.state, "succeeded");
        Ok(())
    }
}
