//! Clocks that jump, and what other clocks wrote: a host without a battery wakes up in the
//! past, and the network sets it right in the middle of an upgrade.

#[cfg(test)]
mod clock {
    use std::fs::{self, FileTimes};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, SystemTime};

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{CheckOptions, NoOptions};
    use osteward_dbus::types::{HistoryEntry, from_dict};
    use osteward_tests::chance::Dice;
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::Layer;
    use osteward_tests::job::Listener;
    use osteward_tests::settled::Settled;
    use serde_json::{Value, json};

    const LARGE: usize = 2 << 20;
    const HALF: u64 = 1 << 20;
    const DAY: u64 = 24 * 3600;
    const YEARS: u64 = 10 * 365 * DAY;

    fn small(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    fn large(seed: u64) -> Layer {
        let layer = Layer::new().dir("usr").dir("usr/share");
        layer.file(&format!("usr/share/large-{seed}"), Dice(seed).noise(LARGE))
    }

    /// The library that stands between a program and the clock of the day; the monotonic
    /// clock, which does not jump either on a real host, it leaves alone.
    fn library() -> Result<PathBuf> {
        let mut places = vec![PathBuf::from("/usr/lib64"), PathBuf::from("/usr/lib")];
        for entry in fs::read_dir("/usr/lib")? {
            places.push(entry?.path());
        }
        let libraries = places
            .iter()
            .map(|place| place.join("faketime/libfaketimeMT.so.1"));
        let mut found = libraries.filter(|library| library.exists());
        found.next().context("libfaketime is not installed")
    }

    /// The clock of a host's daemon.
    struct Clock(PathBuf);

    impl Clock {
        /// Starts the daemon anew with a clock that can be set.
        fn of(host: &mut Host) -> Result<Self> {
            let clock = Self(host.sandbox.share().join("clock"));
            clock.set("+0")?;
            let library = library()?;
            host.set_environment(&[
                ("LD_PRELOAD", library.to_str().context("an odd path")?),
                ("FAKETIME_TIMESTAMP_FILE", "/run/share/clock"),
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ("NO_FAKE_STAT", "1"),
            ])?;
            Ok(clock)
        }

        /// Sets it to so many seconds, days or years (`+10y`) before or after what it is.
        fn set(&self, offset: &str) -> Result<()> {
            // Replaced whole: it may be read at any moment.
            let new = self.0.with_extension("new");
            fs::write(&new, offset)?;
            fs::rename(new, &self.0).context("setting the clock")
        }
    }

    /// What a check says about whether it asked anybody, if the last one may be a day old.
    async fn is_cached(host: &Host) -> Result<bool> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let options = CheckOptions {
            max_age: Some(DAY),
            ..Default::default()
        };
        let job = Host::proxy(&connection).await?.check(&options).await?;
        listener.end(&job).await?.succeeded()?.value("cached")
    }

    /// The newest first.
    async fn history(host: &Host) -> Result<Vec<HistoryEntry>> {
        let manager = Host::manager(&host.connect().await?).await?;
        let entries = manager.get_history(0, &NoOptions {}).await?;
        let entries = entries.iter().map(from_dict);
        Ok(entries.collect::<zbus::Result<_>>()?)
    }

    /// An upgrade during which the clock jumps, once by `far` and then back.
    async fn upgraded_while_it_jumps(far: &str, seed: u64) -> Result<()> {
        let mut settled = Settled::new([small("second")]).await?;
        let clock = Clock::of(&mut settled.host)?;
        let image = settled.publish([small("a"), large(seed)])?;
        let stopped = settled.start_until_last(&image, HALF).await?;
        clock.set(far)?;
        settled.relay.resume();
        let ended = stopped.end().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        let staged = settled.staged()?.context("nothing is staged")?;
        let host = &settled.host;
        assert_eq!(
            host.sandbox.root_tree(&staged.checksum)?,
            host.oracle_tree()?
        );
        host.sandbox.fsck()?;

        // Both ends of it are told, each as the clock was.
        let [entry, ..] = &history(host).await?[..] else {
            anyhow::bail!("no history");
        };
        assert_eq!((&*entry.kind, &*entry.state), ("upgrade", "succeeded"));
        let between = entry.finished_at.abs_diff(entry.created_at) / 1_000_000;
        ensure!(between.abs_diff(YEARS) < 7 * DAY, "{entry:?}");
        for words in [["status"], ["history"], ["jobs"]] {
            client::ask(&host.sandbox, &host.bus, &words)?.expect(&[0])?;
        }

        // A check of another time is no answer; one of this time is.
        is_cached(host).await?;
        assert!(is_cached(host).await?, "checked just now");
        clock.set("+0")?;
        assert!(!is_cached(host).await?, "checked by another clock");
        assert!(is_cached(host).await?, "checked just now");

        settled.host.reboot()?;
        assert_eq!(settled.host.sandbox.booted()?.checksum, staged.checksum);
        Ok(())
    }

    #[tokio::test]
    async fn the_clock_is_set_right_during_an_upgrade() -> Result<()> {
        upgraded_while_it_jumps("+10y", 1).await
    }

    #[tokio::test]
    async fn the_clock_falls_back_during_an_upgrade() -> Result<()> {
        upgraded_while_it_jumps("-10y", 2).await
    }

    fn years_from_now(forward: bool) -> Result<SystemTime> {
        let (now, years) = (SystemTime::now(), Duration::from_secs(YEARS));
        let then = match forward {
            true => now.checked_add(years),
            false => now.checked_sub(years),
        };
        then.context("no such time")
    }

    /// Dates all that is in `directory`, and it, `time`.
    fn date(directory: &Path, time: SystemTime) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                date(&path, time)?;
            } else if path.is_file() {
                let times = FileTimes::new().set_modified(time);
                fs::File::open(&path)?.set_times(times)?;
            }
        }
        fs::File::open(directory)?.set_modified(time)?;
        Ok(())
    }

    /// Changes every line of a file of JSON objects.
    fn edit(path: &Path, change: impl Fn(&mut Value)) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let lines = text.lines().map(|line| {
            let mut value: Value = serde_json::from_str(line)?;
            change(&mut value);
            Ok(format!("{value}\n"))
        });
        let lines: String = lines.collect::<Result<_>>()?;
        fs::write(path, lines)?;
        Ok(())
    }

    /// An upgrade is killed, everything that the daemon and libostree had written down is
    /// dated another time, and the next daemon makes use of it.
    async fn left_by_another_clock(forward: bool) -> Result<()> {
        let mut settled = Settled::new([small("second")]).await?;
        assert!(!is_cached(&settled.host).await?);
        let image = settled.publish([small("a"), large(3)])?;
        let stopped = settled.start_until_last(&image, HALF).await?;
        settled.host.kill_daemon()?;
        drop(stopped);

        let time = years_from_now(forward)?;
        let seconds = time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let sandbox = &settled.host.sandbox;
        for place in ["ostree/repo/tmp", "ostree/repo/state", "ostree/bootc"] {
            date(&sandbox.sysroot().join(place), time)?;
        }
        fs::File::open(sandbox.sysroot().join("ostree/deploy"))?.set_modified(time)?;
        let state = sandbox.inside("/var/lib/osteward")?;
        date(&state, time)?;
        edit(&state.join("last-check.json"), |check| {
            check["time"] = json!(seconds)
        })?;
        edit(&state.join("history.jsonl"), |entry| {
            entry["created-at"] = json!(seconds * 1_000_000);
            entry["finished-at"] = json!(seconds * 1_000_000);
        })?;

        settled.host.start_daemon()?;
        assert!(!is_cached(&settled.host).await?, "checked by another clock");
        assert!(is_cached(&settled.host).await?, "checked just now");
        let told = history(&settled.host).await?;
        // In the order of what was done, whatever the clock said.
        assert_eq!(told[0].state, "interrupted", "{told:?}");
        assert!(told[1].created_at / 1_000_000 == seconds, "{told:?}");
        client::ask(&settled.host.sandbox, &settled.host.bus, &["history"])?.expect(&[0])?;
        // What was complete is used.
        let fetched = settled.finish(&image).await?;
        assert!(fetched > HALF);
        Ok(())
    }

    #[tokio::test]
    async fn what_was_left_in_the_future_is_used() -> Result<()> {
        left_by_another_clock(true).await
    }

    #[tokio::test]
    async fn what_was_left_long_ago_is_used() -> Result<()> {
        left_by_another_clock(false).await
    }
}
