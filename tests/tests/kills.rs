//! Killed at random instants of an upgrade, many times in a row on one host: whatever the
//! instant, the next daemon finds a host that boots what it booted before, and goes on.
//!
//! `OSTEWARD_KILLS` says how often, `OSTEWARD_KILLS_SEED` when.

#[cfg(test)]
mod kills {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{DiscardOptions, NoOptions, UpgradeOptions};
    use osteward_tests::chance::{Dice, number, seed, tell};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Layer, Written};
    use osteward_tests::job::Listener;
    use osteward_tests::settled::Settled;

    /// Without a wish. One takes most of a second in a debug build, half of it a daemon's start.
    const KILLS: u64 = 200;

    /// So many fall into every phase that matters.
    const MANY: u64 = 100;

    /// Of every so many kills one is followed by a closer look.
    const LOOK: u64 = 20;

    /// So many small files that writing them takes a while, and some bytes to be fetched.
    fn layer(name: &str, files: u64, bytes: usize) -> Layer {
        let directory = format!("usr/share/{name}");
        let layer = Layer::new().dir("usr").dir("usr/share").dir(&directory);
        let layer = (0..files).fold(layer, |layer, number| {
            layer.file(&format!("{directory}/{number}"), format!("{name} {number}"))
        });
        let seed = name.bytes().map(u64::from).sum();
        layer.file(&format!("{directory}/noise"), Dice(seed).noise(bytes))
    }

    /// What there is of a host's files that an upgrade may add to: objects and refs of the
    /// repository, deployments, and what boots them.
    fn inventory(host: &Host) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let sysroot = host.sandbox.sysroot();
        for place in ["ostree/repo/objects", "ostree/repo/refs", "boot"] {
            walk(&sysroot.join(place), usize::MAX, &mut found)?;
        }
        walk(&sysroot.join("ostree/deploy/default/deploy"), 1, &mut found)?;
        // libostree's own of deployments, whose numbers alternate.
        found.retain(|path| {
            !path.contains("/refs/heads/ostree/0/") && !path.contains("/refs/heads/ostree/1/")
        });
        Ok(found)
    }

    /// Adds what is in `directory`, but no empty directories, which nobody misses.
    fn walk(directory: &Path, depth: usize, found: &mut BTreeSet<String>) -> Result<()> {
        for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if depth > 1 && path.is_dir() && !path.is_symlink() {
                walk(&path, depth - 1, found)?;
            } else {
                found.insert(path.display().to_string());
            }
        }
        Ok(())
    }

    /// What an import that was killed can leave to the next one: marks of commits that are
    /// incomplete, and directories of objects that were not made visible.
    fn unfinished(host: &Host) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for place in ["state", "tmp"] {
            walk(&host.sandbox.repo().join(place), 1, &mut found)?;
        }
        // Empty files, which libostree removes after a day.
        found.retain(|path| !path.ends_with("-lock"));
        Ok(found)
    }

    /// The commits that have a name in the repository, each with one of its names.
    fn named(host: &Host) -> Result<BTreeMap<String, String>> {
        let mut names = BTreeSet::new();
        walk(
            &host.sandbox.repo().join("refs/heads"),
            usize::MAX,
            &mut names,
        )?;
        let named = names.into_iter().map(|name| {
            let commit = fs::read_to_string(&name)?;
            Ok((commit.trim().to_owned(), name))
        });
        named.collect()
    }

    /// The phase that an upgrade had come to, by what the daemon wrote; `None` if it was over.
    fn phase(log: &str) -> Option<String> {
        if log.contains("upgrade succeeded") {
            return None;
        }
        let last = log.rsplit_once("phase=\"").map(|(_, rest)| rest);
        let name = last.and_then(|rest| rest.split('"').next());
        Some(name.unwrap_or("asked").to_owned())
    }

    /// A host whose daemon is killed.
    struct Victim {
        settled: Settled,
        /// Two that share a layer, so that one replaces the other in part.
        images: [Written; 2],
        /// What an upgrade leaves when all that it brought has been removed.
        bare: BTreeSet<String>,
        /// The commits of those; whether they still are whole is seen now and then.
        sound: BTreeSet<String>,
        /// How long a whole upgrade takes.
        length: Duration,
        dice: Dice,
    }

    impl Victim {
        async fn new(seed: u64) -> Result<Self> {
            let settled = Settled::new([layer("second", 10, 10)]).await?;
            let shared = || layer("shared", 200, 100_000);
            let one =
                settled.publish([shared(), layer("one", 100, 200_000), layer("few", 3, 3)])?;
            let two = settled.publish([shared(), layer("two", 100, 200_000)])?;
            Ok(Self {
                settled,
                images: [one, two],
                bare: BTreeSet::new(),
                sound: BTreeSet::new(),
                length: Duration::ZERO,
                dice: Dice(seed),
            })
        }

        /// An upgrade that nobody disturbs; returns how long it took and what it staged.
        async fn whole(&self, image: &Written) -> Result<(Duration, String)> {
            let options = UpgradeOptions {
                digest: Some(image.digest.clone()),
                ..Default::default()
            };
            let start = Instant::now();
            let ended = self.settled.host.upgrade_with(&options).await?;
            let took = start.elapsed();
            ended.succeeded()?;
            let staged = self.settled.staged()?.context("nothing is staged")?;
            Ok((took, staged.checksum))
        }

        /// Measures the upgrade; returns what `images` become.
        async fn calibrate(&mut self) -> Result<[String; 2]> {
            let mut lengths = Vec::new();
            let mut commits = [String::new(), String::new()];
            for turn in 0..4 {
                let (took, commit) = self.whole(&self.images[turn % 2]).await?;
                lengths.push(took);
                commits[turn % 2] = commit;
                self.discard().await?;
            }
            self.bare = inventory(&self.settled.host)?;
            self.sound = named(&self.settled.host)?.into_keys().collect();
            lengths.sort();
            self.length = lengths[1];
            Ok(commits)
        }

        async fn discard(&self) -> Result<()> {
            let connection = self.settled.host.connect().await?;
            let mut listener = Listener::new(&connection).await?;
            let proxy = Host::proxy(&connection).await?;
            let options = DiscardOptions::default();
            let job = proxy.discard(&["staged", "cache"], &options).await?;
            listener.end(&job).await?.succeeded()?;
            ensure!(self.settled.staged()?.is_none(), "it is still staged");
            Ok(())
        }

        /// Has everything removed that upgrades have brought; of those that were killed there
        /// is as little left as of one that was not.
        async fn begin_anew(&self) -> Result<()> {
            self.discard().await?;
            let now = inventory(&self.settled.host)?;
            let left: Vec<_> = now.symmetric_difference(&self.bare).take(20).collect();
            ensure!(left.is_empty(), "left behind, or gone: {left:#?}");
            Ok(())
        }

        /// Looks at every byte of the repository, and lets an upgrade through: how long one
        /// takes changes with what else this machine does.
        async fn look(&mut self) -> Result<()> {
            self.begin_anew().await?;
            self.settled.host.sandbox.fsck()?;
            (self.length, _) = self.whole(&self.images[0]).await?;
            self.begin_anew().await
        }

        /// One upgrade and one kill: the phase that it fell into, or `None` if it was too late.
        async fn round(&mut self) -> Result<Option<String>> {
            let staged = self.settled.staged()?;
            // Now and then the next daemon goes on where that one was killed.
            if self.dice.roll(4) > 0 {
                self.begin_anew().await?;
            }
            let image = &self.images[self.dice.roll(2) as usize];
            let connection = self.settled.host.connect().await?;
            let proxy = Host::proxy(&connection).await?;
            let options = UpgradeOptions {
                digest: Some(image.digest.clone()),
                replace_staged: Some(staged.is_some()),
                ..Default::default()
            };
            let daemon = self.settled.host.daemon.take();
            let daemon = daemon.context("the daemon does not run")?;
            let said = daemon.log().len();
            let nanoseconds = u64::try_from(self.length.as_nanos())?;
            let instant = Duration::from_nanos(self.dice.roll(nanoseconds));
            let kill = move || {
                // The instant is the point of the test; nothing is waited for.
                std::thread::sleep(instant);
                daemon.kill()
            };
            let killing = tokio::task::spawn_blocking(kill);
            let asked = proxy.upgrade(&options).await;
            let log = killing.await??;
            let phase = phase(&log[said..]);
            if let Err(error) = asked {
                // The bus says so of a daemon that is gone.
                ensure!(error.name().ends_with(".NoReply"), "{error:?}");
            }
            self.check()
                .with_context(|| format!("killed after {instant:?} in {phase:?}"))?;
            self.settled.host.start_daemon()?;
            let status = proxy.status(&NoOptions::default()).await?;
            ensure!(status.contains_key("deployments"), "{status:?}");
            Ok(phase)
        }

        /// The deployments are as they were but for a staged one, and every name in the
        /// repository stands for something whole.
        fn check(&self) -> Result<()> {
            self.settled.staged()?;
            for (commit, name) in named(&self.settled.host)? {
                if self.sound.contains(&commit) {
                    continue;
                }
                // Looks up every object, also of commits that are marked as incomplete, which
                // fsck passes over.
                let listed = self.settled.host.sandbox.ostree(["ls", "-R", &commit]);
                listed.with_context(|| format!("{name} is not whole"))?;
            }
            Ok(())
        }
    }

    /// The parts of an upgrade that no kill fell into, of those that write.
    fn missed(phases: &BTreeMap<String, u32>) -> Vec<&'static str> {
        let parts: [&[&'static str]; 3] =
            [&["downloading"], &["importing", "merging"], &["staging"]];
        let is_hit = |part: &&[&str]| part.iter().any(|phase| phases.contains_key(*phase));
        let missed = parts.into_iter().filter(|part| !is_hit(part));
        missed.map(|part| part[0]).collect()
    }

    async fn killed(kills: u64, seed: u64) -> Result<()> {
        let mut victim = Victim::new(seed).await?;
        let commits = victim.calibrate().await?;
        let before = unfinished(&victim.settled.host)?;
        tell(format_args!("an upgrade takes {:?}", victim.length))?;
        let (mut phases, mut done, mut late) = (BTreeMap::<String, u32>::new(), 0, 0);
        // So many that one phase was missed only by chance: a few more, then.
        let most = if kills >= MANY { 2 * kills } else { kills };
        while done < kills || (done < most && !missed(&phases).is_empty()) {
            let round = victim.round().await;
            match round.with_context(|| format!("kill {}", done + 1))? {
                Some(phase) => *phases.entry(phase).or_default() += 1,
                None => {
                    late += 1;
                    ensure!(late <= 20 + 2 * kills, "mostly too late: {phases:?}");
                    continue;
                }
            }
            done += 1;
            if done % LOOK == 0 {
                victim.look().await?;
            }
        }
        tell(format_args!(
            "{done} kills: {phases:?}, and {late} too late"
        ))?;
        let missed = missed(&phases);
        ensure!(kills < MANY || missed.is_empty(), "never in {missed:?}");

        // What is left now is what a host has that was never killed.
        let [_, two] = &victim.images;
        let replace = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let ended = victim
            .settled
            .host
            .upgrade_with(&replace)
            .await?
            .succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, two.digest);
        let staged = victim.settled.staged()?.context("nothing is staged")?;
        assert_eq!(staged.checksum, commits[1]);
        victim.begin_anew().await?;
        victim.whole(&victim.images[0]).await?;
        victim.begin_anew().await?;
        // The next imports of the same images have used it, or taken it away.
        assert_eq!(unfinished(&victim.settled.host)?, before);
        let two = two.clone();
        victim.settled.finish(&two).await?;
        Ok(())
    }

    /// Every second kill, on a host of its own: two use a machine better than one.
    async fn half(number_of_host: u64) -> Result<()> {
        let kills = number("OSTEWARD_KILLS", KILLS)?;
        let seed = seed("OSTEWARD_KILLS_SEED")?;
        let repeat = format!("OSTEWARD_KILLS={kills} OSTEWARD_KILLS_SEED={seed}");
        let ended = killed(kills.div_ceil(2), seed + number_of_host).await;
        ended.context(repeat)
    }

    #[tokio::test]
    async fn killed_at_random_instants_of_an_upgrade() -> Result<()> {
        half(0).await
    }

    #[tokio::test]
    async fn killed_at_other_instants_of_an_upgrade() -> Result<()> {
        half(1).await
    }
}
