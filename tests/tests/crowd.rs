//! Fifty clients who do everything at once.
//!
//! `OSTEWARD_CROWD_OPERATIONS` says how much each does, `OSTEWARD_CROWD_SEED` what.

#[cfg(test)]
mod crowd {
    use std::time::Duration;

    use anyhow::{Context, Result, ensure};
    use futures_util::future::try_join_all;
    use osteward_dbus::options::{
        ApplyOptions, CancelRollbackOptions, CheckOptions, Common, DiscardOptions, DownloadOptions,
        InhibitOptions, ListJobsOptions, ManageOptions, NoOptions, RollbackOptions, UpgradeOptions,
    };
    use osteward_dbus::{DeploymentProxy, Error, HostProxy, JobProxy, ManagerProxy, ROOT_PATH};
    use osteward_tests::chance::{Dice, number};
    use osteward_tests::crowd::Book;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::job::Listener;
    use osteward_tests::peer::connect_as;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;
    use osteward_tests::turnstile::Turnstile;
    use zbus::fdo::ObjectManagerProxy;
    use zbus::proxy::CacheProperties;
    use zbus::{Connection, OwnedFd, OwnedObjectPath};

    /// How many there are; every fifth is not root.
    const CLIENTS: u64 = 50;
    /// Longer than a deadlock is worth waiting for, shorter than the harness waits.
    const PATIENCE: Duration = Duration::from_secs(300);

    /// What was got, or nothing if the daemon had a reason to refuse that a crowd can cause.
    fn fine<T>(answer: Result<T, Error>) -> Result<Option<T>> {
        let error = match answer {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        let expected = matches!(
            error,
            Error::Busy(_)
                | Error::LimitsExceeded(_)
                | Error::TooLate(_)
                | Error::NotSupported(_)
                | Error::UnknownObject(_)
                | Error::NoRollback(_)
                | Error::NoUpdate(_)
                | Error::StagedPending(_)
                | Error::AccessDenied(_)
        );
        ensure!(expected, "{}: {error:?}", error.name());
        ensure!(error.message().contains(' '), "no sentence: {error:?}");
        Ok(None)
    }

    fn terms(dice: &mut Dice) -> Common {
        Common {
            on_busy: Some(if dice.roll(4) == 0 { "fail" } else { "queue" }.into()),
            background: dice.coin().then_some(true),
            priority: dice.coin().then(|| dice.roll(11) as i32 - 5),
            ..Common::default()
        }
    }

    struct Client {
        connection: Connection,
        host: HostProxy<'static>,
        manager: ManagerProxy<'static>,
        held: Vec<OwnedFd>,
    }

    impl Client {
        async fn new(bus: &osteward_tests::bus::Bus, uid: u32) -> Result<Self> {
            let connection = connect_as(bus, uid).await?;
            let no = CacheProperties::No;
            Ok(Self {
                host: HostProxy::builder(&connection)
                    .cache_properties(no)
                    .build()
                    .await?,
                manager: ManagerProxy::builder(&connection)
                    .cache_properties(no)
                    .build()
                    .await?,
                connection,
                held: Vec::new(),
            })
        }

        async fn booted(&self) -> Result<DeploymentProxy<'static>> {
            let path = self.host.booted_deployment().await?;
            let booted = DeploymentProxy::builder(&self.connection).path(path);
            Ok(booted.cache_properties(CacheProperties::No).build().await?)
        }

        async fn job(&self, path: OwnedObjectPath) -> Result<JobProxy<'static>> {
            let job = JobProxy::builder(&self.connection).path(path);
            Ok(job.cache_properties(CacheProperties::No).build().await?)
        }

        /// Everything that is there to be read.
        async fn read(&self) -> Result<()> {
            self.host.status(&NoOptions {}).await?;
            self.host.update_state().await?;
            self.manager.active_job().await?;
            self.manager.get_history(5, &NoOptions {}).await?;
            let objects = ObjectManagerProxy::new(&self.connection, "org.osteward1", ROOT_PATH);
            objects.await?.get_managed_objects().await?;
            for path in self.manager.list_jobs(&ListJobsOptions::default()).await? {
                let job = self.job(path).await?;
                // It may be forgotten since; if that happens while a property is being looked
                // up, it is the interface that is missing.
                fine(job.get_log(&NoOptions {}).await)?;
                match job.fraction().await {
                    Err(error) if error.name().ends_with(".UnknownInterface") => {}
                    read => fine(read).map(drop)?,
                }
            }
            Ok(())
        }

        /// Asks for some job.
        async fn ask(&self, dice: &mut Dice) -> Result<Option<(OwnedObjectPath, &'static str)>> {
            let terms = terms(dice);
            let coin = Some(dice.coin());
            let (kind, answer) = match dice.roll(10) {
                0 => {
                    let options = CheckOptions::default().with_common(terms);
                    ("check", self.host.check(&options).await)
                }
                1 | 2 => {
                    let options = DownloadOptions {
                        allow_downgrade: coin,
                        ..DownloadOptions::default().with_common(terms)
                    };
                    ("download", self.host.download(&options).await)
                }
                3 | 4 => {
                    let options = UpgradeOptions {
                        replace_staged: Some(true),
                        ..UpgradeOptions::default().with_common(terms)
                    };
                    ("upgrade", self.host.upgrade(&options).await)
                }
                5 => {
                    let options = RollbackOptions {
                        discard_staged: coin,
                        ..RollbackOptions::default().with_common(terms)
                    };
                    ("rollback", self.host.rollback(&options).await)
                }
                6 => {
                    let options = CancelRollbackOptions::default().with_common(terms);
                    ("cancel-rollback", self.host.cancel_rollback(&options).await)
                }
                7 => {
                    // Nobody is there who could reboot the host.
                    let options = ApplyOptions::default().with_common(terms);
                    ("apply", self.host.apply(&options).await)
                }
                8 => {
                    let options = ManageOptions::default().with_common(terms);
                    let booted = self.booted().await?;
                    ("pin", booted.set_pinned(dice.coin(), &options).await)
                }
                _ => {
                    let options = DiscardOptions {
                        dry_run: coin,
                        ..DiscardOptions::default().with_common(terms)
                    };
                    let what = ["staged", "cache", "unreferenced"][dice.roll(3) as usize];
                    ("discard", self.host.discard(&[what], &options).await)
                }
            };
            Ok(fine(answer)?.map(|job| (job, kind)))
        }

        /// Meddles with somebody's job.
        async fn meddle(&mut self, dice: &mut Dice, path: OwnedObjectPath) -> Result<()> {
            let (job, no) = (self.job(path).await?, NoOptions {});
            match dice.roll(6) {
                0 => fine(job.cancel(&no).await).map(drop),
                1 => fine(job.pause(&no).await).map(drop),
                2 => fine(job.resume(&no).await).map(drop),
                3 => fine(job.adopt(&no).await).map(drop),
                4 => fine(job.release().await).map(drop),
                _ => {
                    let pipe = fine(job.stream_events(&no).await)?;
                    // Half of the pipes are never read, and kept.
                    self.held.extend(pipe.filter(|_| dice.coin()));
                    Ok(())
                }
            }
        }

        async fn inhibit(&mut self, dice: &mut Dice) -> Result<()> {
            let what = if dice.coin() { "idle" } else { "apply" };
            let options = InhibitOptions {
                what: Some(what.to_owned()),
            };
            let fd = self
                .manager
                .inhibit("crowd", "there are many", &options)
                .await;
            self.held.extend(fine(fd)?);
            if dice.coin() {
                self.held.clear();
            }
            Ok(())
        }

        async fn live(mut self, book: &Book, mut dice: Dice, operations: u64) -> Result<()> {
            for _ in 0..operations {
                match dice.roll(11) {
                    0..=4 => {
                        if let Some((job, kind)) = self.ask(&mut dice).await? {
                            book.give(&job, kind);
                        }
                    }
                    5..=7 => {
                        if let Some(job) = book.any(&mut dice) {
                            self.meddle(&mut dice, job).await?;
                        }
                    }
                    8 => self.read().await?,
                    9 => fine(self.manager.reload_config().await).map(drop)?,
                    _ => self.inhibit(&mut dice).await?,
                }
            }
            Ok(())
        }
    }

    /// Resumes whatever is paused until all that was given out has ended.
    async fn drain(book: &Book, root: &Client) -> Result<()> {
        while !book.missing().is_empty() {
            let active = ListJobsOptions {
                active: Some(true),
                kind: None,
            };
            for path in root.manager.list_jobs(&active).await? {
                fine(root.job(path).await?.resume(&NoOptions {}).await)?;
            }
            book.one_more().await;
        }
        Ok(())
    }

    fn filling(seed: u8) -> Layer {
        let content = vec![seed; 300_000];
        let path = format!("usr/filling-{seed}");
        let layer = Layer::new().dir("usr").file(&path, content);
        layer.compressed(Compression::Plain)
    }

    /// Brings an upgrade to the middle of a check-out, where the thread of the sysroot stands
    /// until the turnstile is passed.
    async fn stuck(host: &Host) -> Result<(Turnstile, OwnedObjectPath)> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let lock = host.sandbox.hold_lock()?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.upgrade(&UpgradeOptions::default()).await?;
        listener.wait_for_phase(&job, "staging").await?;
        let booted = host.sandbox.booted()?.checksum;
        let listing = host
            .sandbox
            .ostree(["ls", "-C", "-d", &booted, "/usr/lib/ostree"])?;
        let contents = listing.split_whitespace().nth(4).context("no checksum")?;
        let turnstile = Turnstile::at_directory(&host.sandbox.repo(), contents)?;
        drop(lock);
        turnstile.wait()?;
        Ok((turnstile, job))
    }

    async fn crowd(host: &Host) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let uid = if number % 5 == 4 { UNPRIVILEGED_UID } else { 0 };
            clients.push(Client::new(&host.bus, uid).await?);
        }
        Ok(clients)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everybody_is_answered_while_the_sysroot_stands_still() -> Result<()> {
        let host = Host::boot()?;
        host.publish(&host.next_image("2", [filling(1)]))?;
        let clients = crowd(&host).await?;
        let book = Book::open(host.connect().await?).await?;
        let (turnstile, job) = stuck(&host).await?;
        book.give(&job, "upgrade");
        let seed = number("OSTEWARD_CROWD_SEED", 1)?;
        let calls = clients.iter().enumerate().map(|(index, client)| {
            let (book, mut dice) = (&book, Dice(seed + index as u64));
            async move {
                client.read().await?;
                if let Some((job, kind)) = client.ask(&mut dice).await? {
                    book.give(&job, kind);
                }
                client.read().await
            }
        });
        try_join_all(calls).await?;
        // All of that was answered before this job could go on.
        assert_eq!(clients[0].job(job).await?.phase().await?, "staging");
        turnstile.pass();
        tokio::time::timeout(PATIENCE, drain(&book, &clients[0]))
            .await
            .with_context(|| format!("not over: {:?}", book.missing()))??;
        host.sandbox.fsck()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fifty_clients_at_once_lose_no_job() -> Result<()> {
        let operations = number("OSTEWARD_CROWD_OPERATIONS", 12)?;
        let seed = number("OSTEWARD_CROWD_SEED", 1)?;
        println!("OSTEWARD_CROWD_SEED={seed} OSTEWARD_CROWD_OPERATIONS={operations}");
        let host = Host::boot()?;
        host.publish(&host.next_image("2", (0..3).map(filling)))?;
        let root = Client::new(&host.bus, 0).await?;
        let book = Book::open(host.connect().await?).await?;
        let lives = crowd(&host).await?.into_iter().enumerate();
        let lives = lives.map(|(index, client)| {
            let dice = Dice(seed.wrapping_mul(1000) + index as u64);
            client.live(&book, dice, operations)
        });
        // The crowd's own length is its own affair; only that it ends is the daemon's.
        let limit = PATIENCE * (1 + operations as u32 / 12);
        tokio::time::timeout(limit, try_join_all(lives))
            .await
            .context("the crowd is stuck")??;
        tokio::time::timeout(PATIENCE, drain(&book, &root))
            .await
            .with_context(|| format!("not over: {:?}", book.missing()))??;

        let kinds = book.kinds();
        println!("jobs: {kinds:?}");
        assert!(kinds.len() >= 6, "a crowd does more: {kinds:?}");
        book.check()?;
        // Everybody is gone, and the daemon as good as new.
        assert_eq!(root.manager.active_job().await?.as_str(), "/");
        assert_eq!(host.sandbox.booted()?.checksum.len(), 64);
        calm(&host).await?;
        host.sandbox.fsck()
    }

    /// Whatever the crowd left: an upgrade is possible again.
    async fn calm(host: &Host) -> Result<()> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        if proxy.rollback_queued().await? {
            let job = proxy
                .cancel_rollback(&CancelRollbackOptions::default())
                .await?;
            listener.end(&job).await?.succeeded()?;
        }
        let third = host.publish(&host.next_image("3", [filling(9)]))?;
        let options = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let ended = host.upgrade_with(&options).await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, third.digest);
        Ok(())
    }
}
