//! Fifty clients who do everything at once for a minute.
//!
//! `OSTEWARD_CROWD_SECONDS` says how long; `OSTEWARD_CROWD_SEED` repeats what each does, though
//! not what comes between.

#[cfg(test)]
mod crowd {
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result};
    use futures_util::future::{join, try_join_all};
    use osteward_dbus::options::{CancelRollbackOptions, DiscardOptions, UpgradeOptions};
    use osteward_tests::chance::{Dice, number, seed, tell};
    use osteward_tests::crowd::{Book, Client, Square, Waits};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Image, Layer};
    use osteward_tests::job::Listener;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;
    use osteward_tests::turnstile::Turnstile;
    use zbus::OwnedObjectPath;

    /// How many there are; every fifth is not root.
    const CLIENTS: u64 = 50;
    /// How long they are there, in seconds, without a wish.
    const SECONDS: u64 = 60;
    /// Longer than a deadlock is worth waiting for, shorter than the harness waits.
    const PATIENCE: Duration = Duration::from_secs(300);

    /// How long another tool holds the sysroot, with the crowd's first jobs behind it; less than
    /// the daemon waits for it.
    const HELD: Duration = Duration::from_secs(25);
    /// So long may the slowest read take on a busy machine: less than one that waits for the
    /// sysroot, or for a job that does. That is what is told apart here; how quick reads are is
    /// for `make bench`.
    const SLOWEST: Duration = Duration::from_secs(20);
    /// So long may half of the reads take, of fifty clients who never pause: a few times what they
    /// do where nine others want the processors.
    const MEDIAN: Duration = Duration::from_secs(2);

    const SEED: &str = "OSTEWARD_CROWD_SEED";

    fn filling(seed: u8) -> Layer {
        let content = vec![seed; 300_000];
        let path = format!("usr/filling-{seed}");
        let layer = Layer::new().dir("usr").file(&path, content);
        layer.compressed(Compression::Plain)
    }

    /// dpkg's database, with one package that has the image's version.
    fn database(version: &str) -> Layer {
        let mut layer = Layer::new();
        for directory in [
            "usr",
            "usr/lib",
            "usr/lib/sysimage",
            "usr/lib/sysimage/dpkg",
        ] {
            layer = layer.dir(directory);
        }
        let package = format!(
            "Package: crowd\nStatus: install ok installed\nArchitecture: all\nVersion: {version}\n"
        );
        layer.file("usr/lib/sysimage/dpkg/status", package)
    }

    fn image(host: &Host, version: &str) -> Image {
        let seed = version.bytes().fold(0, u8::wrapping_add);
        let image = host.next_image(version, [filling(seed), database(version)]);
        image.created(&format!("2025-0{version}-01T00:00:00Z"))
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

    /// Where a crowd meets, with another image to switch to.
    async fn square(host: &Host) -> Result<Square> {
        let elsewhere = host.registry.name("elsewhere:latest");
        image(host, "4").write_as(&host.layout, "elsewhere")?;
        host.layout.push("elsewhere", &elsewhere)?;
        Ok(Square {
            book: Book::open(host.connect().await?).await?,
            waits: Waits::default(),
            elsewhere,
        })
    }

    async fn crowd(host: &Host) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let uid = if number % 5 == 4 { UNPRIVILEGED_UID } else { 0 };
            clients.push(Client::new(&host.bus, uid).await?);
        }
        Ok(clients)
    }

    /// Resumes whatever is paused until all that was given out has ended.
    async fn drain(book: &Book, root: &Client) -> Result<()> {
        let all_over = async {
            while !book.missing().is_empty() {
                root.resume_all().await?;
                book.one_more().await;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, all_over)
            .await
            .with_context(|| format!("not over: {:?}", book.missing()))?
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everybody_is_answered_while_the_sysroot_stands_still() -> Result<()> {
        let seed = seed(SEED)?;
        let host = Host::boot()?;
        host.publish(&image(&host, "2"))?;
        let clients = crowd(&host).await?;
        let square = square(&host).await?;
        let (turnstile, job) = stuck(&host).await?;
        square.book.give(&job, "upgrade");
        let calls = clients.iter().enumerate().map(|(index, client)| {
            let (square, mut dice) = (&square, Dice(seed + index as u64));
            async move {
                client.read(&square.waits).await?;
                client.ask(&mut dice, square).await?;
                client.read(&square.waits).await
            }
        });
        try_join_all(calls).await?;
        // All of that was answered before this job could go on.
        assert_eq!(clients[0].job(job).await?.phase().await?, "staging");
        turnstile.pass();
        drain(&square.book, &clients[0]).await?;
        host.sandbox.fsck()
    }

    /// Version 2 runs, and what it can go back to is pinned, so that no crowd can remove it.
    async fn with_rollback() -> Result<Host> {
        let mut host = Host::boot()?;
        host.publish(&image(&host, "2"))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        host.sandbox.run(["ostree", "admin", "pin", "1"])?;
        host.publish(&image(&host, "3"))?;
        Ok(host)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fifty_clients_at_once_lose_no_job_and_read_without_waiting() -> Result<()> {
        let length = Duration::from_secs(number("OSTEWARD_CROWD_SECONDS", SECONDS)?);
        let seed = seed(SEED)?;
        let mut host = with_rollback().await?;
        let before = host.sandbox.deployments()?;
        let root = Client::new(&host.bus, 0).await?;
        let square = square(&host).await?;
        let lock = host.sandbox.hold_lock()?;
        let until = Instant::now() + length;
        let lives = crowd(&host).await?.into_iter().enumerate();
        let lives = lives.map(|(index, client)| {
            let dice = Dice(seed.wrapping_mul(1000) + index as u64);
            client.live(&square, dice, until)
        });
        let everybody = tokio::time::timeout(length + PATIENCE, try_join_all(lives));
        let another_tool = async {
            // How long it holds on is the point; nothing is waited for.
            tokio::time::sleep(HELD).await;
            drop(lock);
        };
        let (lived, ()) = join(everybody, another_tool).await;
        lived.context("the crowd is stuck")??;
        drain(&square.book, &root).await?;

        let kinds = square.book.kinds();
        tell(format_args!("jobs, and how many succeeded: {kinds:?}"))?;
        tell(&square.waits)?;
        assert!(kinds.len() >= 10, "a crowd does more: {kinds:?}");
        square.book.check()?;
        square.waits.check(MEDIAN, SLOWEST)?;
        // Everybody is gone, and the daemon as good as new.
        assert_eq!(root.active_job().await?.as_str(), "/");
        calm(&mut host).await?;
        let mut now = host.sandbox.deployments()?;
        let newest = now.remove(0);
        assert!(newest.booted, "{newest:?}");
        let checksums = |all: &[osteward_tests::sandbox::Deployment]| -> Vec<String> {
            all.iter().map(|one| one.checksum.clone()).collect()
        };
        assert_eq!(checksums(&now), checksums(&before), "nothing was lost");
        host.sandbox.fsck()
    }

    /// Whatever the crowd left: an upgrade is possible again, and boots.
    async fn calm(host: &mut Host) -> Result<()> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        if proxy.rollback_queued().await? {
            let job = proxy
                .cancel_rollback(&CancelRollbackOptions::default())
                .await?;
            listener.end(&job).await?.succeeded()?;
        }
        // The last switch may have left another reference to follow.
        let job = proxy
            .discard(&["staged"], &DiscardOptions::default())
            .await?;
        listener.end(&job).await?.succeeded()?;
        let newest = host.publish(&image(host, "5"))?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, newest.digest);
        host.reboot()
    }
}
