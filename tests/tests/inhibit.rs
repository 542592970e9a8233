//! Who keeps the daemon from leaving or from rebooting, and configuration that is read again.

#[cfg(test)]
mod inhibit {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Stdio;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{
        ApplyOptions, CheckOptions, InhibitOptions, NoOptions, UpgradeOptions,
    };
    use osteward_dbus::types::{InhibitorInfo, from_dict};
    use osteward_dbus::{Error, ManagerProxy};
    use osteward_tests::client;
    use osteward_tests::daemon::{Daemon, Settings};
    use osteward_tests::host::Host;
    use osteward_tests::image::Layer;
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::logind::Logind;
    use osteward_tests::peer::connect_as;
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;
    use osteward_tests::witness::Witness;
    use zbus::proxy::CacheProperties;
    use zbus::{Connection, OwnedFd};

    /// The watchdog is fed at half of it: a clock that the daemon itself keeps.
    const WATCHDOG: u64 = 200_000;

    fn daemon(host: &mut Host) -> Result<&mut Daemon> {
        host.daemon.as_mut().context("the daemon does not run")
    }

    fn config(host: &Host) -> Result<PathBuf> {
        Ok(host.sandbox.inside("/etc/osteward")?.join("osteward.toml"))
    }

    fn stop(host: &mut Host) -> Result<()> {
        let daemon = host.daemon.take().context("the daemon does not run")?;
        ensure!(daemon.stop()?.success(), "the daemon did not end well");
        Ok(())
    }

    async fn manager(connection: &Connection) -> Result<ManagerProxy<'static>> {
        let manager = ManagerProxy::builder(connection);
        Ok(manager
            .cache_properties(CacheProperties::No)
            .build()
            .await?)
    }

    async fn hold(connection: &Connection, what: &str) -> Result<OwnedFd, Error> {
        let options = InhibitOptions {
            what: Some(what.to_owned()),
        };
        let manager = ManagerProxy::new(connection).await?;
        manager
            .inhibit("Tester", "a test is running", &options)
            .await
    }

    async fn listed(connection: &Connection) -> Result<Vec<InhibitorInfo>> {
        let list = manager(connection).await?.inhibitors().await?;
        let list = list.iter().map(from_dict);
        Ok(list.collect::<zbus::Result<_>>()?)
    }

    /// Waits until so many inhibitors are on the list.
    async fn until_listed(connection: &Connection, count: usize) -> Result<()> {
        let mut witness = Witness::new(connection.clone()).await?;
        while listed(connection).await?.len() != count {
            witness.next().await?;
        }
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_inhibits_keeps_the_daemon_and_whoever_leaves_does_not() -> Result<()> {
        let settings = Settings {
            watchdog_usec: Some(WATCHDOG),
            ..Default::default()
        };
        let mut host = Host::boot_with(settings)?;
        stop(&mut host)?;
        fs::write(config(&host)?, "[daemon]\nidle_timeout = \"1s\"\n")?;
        host.start_daemon()?;
        // Anybody may, without asking anybody.
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let first = hold(&user, "idle").await?;
        let leaving = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let _open = hold(&leaving, "idle").await?;
        let list = listed(&user).await?;
        assert_eq!(list.len(), 2);
        assert_eq!(
            (list[0].uid, list[0].who.as_str()),
            (UNPRIVILEGED_UID, "Tester")
        );
        assert_eq!(
            (list[0].what.as_str(), list[0].why.as_str()),
            ("idle", "a test is running")
        );
        let root = host.connect().await?;
        leaving.close().await?;
        until_listed(&root, 1).await?;
        // Thirty ticks of a tenth of a second: three idle times, without a call.
        for _ in 0..30 {
            daemon(&mut host)?.wait_for("WATCHDOG=1")?;
        }
        assert!(!daemon(&mut host)?.has_said("STOPPING=1")?);
        drop(first);
        let status = daemon(&mut host)?.ended()?;
        assert!(status.success(), "{status}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_job_that_waits_keeps_the_daemon() -> Result<()> {
        let settings = Settings {
            watchdog_usec: Some(WATCHDOG),
            ..Default::default()
        };
        let mut host = Host::boot_with(settings)?;
        let layer = Layer::new().dir("usr").file("usr/x", vec![1; 10]);
        host.publish(&host.next_image("2", [layer]))?;
        fs::write(config(&host)?, "[daemon]\nidle_timeout = \"1s\"\n")?;
        // With this the daemon starts anew, and reads that.
        let relay = Relay::before(&mut host)?;
        relay.hold();
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let path = Host::proxy(&connection)
            .await?
            .upgrade(&UpgradeOptions::default())
            .await?;
        let job = Host::job(&connection, &path).await?;
        job.pause(&NoOptions {}).await?;
        // As above: three idle times without a call.
        for _ in 0..30 {
            daemon(&mut host)?.wait_for("WATCHDOG=1")?;
        }
        assert!(!daemon(&mut host)?.has_said("STOPPING=1")?);
        let (state, paused) = (job.state().await?, job.paused().await?);
        assert_eq!((state.as_str(), paused), ("queued", true));
        relay.resume();
        job.resume(&NoOptions {}).await?;
        listener.end(&path).await?.succeeded()?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_can_hold_too_many() -> Result<()> {
        let host = Host::boot()?;
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(hold(&user, "idle").await?);
        }
        let refused = hold(&user, "idle").await;
        ensure!(
            matches!(refused, Err(Error::LimitsExceeded(_))),
            "{refused:?}"
        );
        let root = host.connect().await?;
        let another = hold(&root, "idle").await?;
        held.pop();
        until_listed(&root, 16).await?;
        hold(&user, "idle").await?;
        drop(another);
        Ok(())
    }

    async fn apply(host: &Host, options: &ApplyOptions) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = Host::proxy(&connection).await?.apply(options).await?;
        listener.end(&job).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_job_reboots_while_somebody_objects() -> Result<()> {
        let host = Host::boot()?;
        let layer = Layer::new().dir("usr").file("usr/x", vec![1; 10]);
        host.publish(&host.next_image("2", [layer]))?;
        host.upgrade().await?.succeeded()?;
        let logind = Logind::start(&host.bus).await?;
        let root = host.connect().await?;
        let idle = hold(&root, "idle").await?;
        let held = hold(&root, "apply").await?;
        let refused = apply(&host, &ApplyOptions::default())
            .await?
            .failed("Inhibited")?;
        for word in ["Tester", "a test is running"] {
            assert!(refused.error_message.contains(word), "{refused:?}");
        }
        assert_eq!(logind.reboots(), 0);
        let anyway = ApplyOptions {
            ignore_inhibitors: Some(true),
            ..Default::default()
        };
        apply(&host, &anyway).await?.succeeded()?;
        assert_eq!(logind.reboots(), 1);
        drop(held);
        until_listed(&root, 1).await?;
        apply(&host, &ApplyOptions::default()).await?.succeeded()?;
        assert_eq!(logind.reboots(), 2);
        drop(idle);
        // That is not for everybody.
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let denied = hold(&user, "apply").await;
        ensure!(matches!(denied, Err(Error::AccessDenied(_))), "{denied:?}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_command_inhibits_as_long_as_it_runs() -> Result<()> {
        let host = Host::boot()?;
        let ask = |words: &[&str]| client::ask(&host.sandbox, &host.bus, words);
        let bus = host.bus.address();
        let list = format!("osteward --bus {bus} inhibit --list; exit 7");
        let words = ["inhibit", "--why", "nightly", "sh", "-c", &list];
        let shown = ask(&words)?.expect(&[7])?;
        let lines: Vec<&str> = shown.stdout.lines().collect();
        assert_eq!(lines.len(), 2, "{shown:?}");
        for word in ["apply", "sh", "uid 0", "nightly"] {
            assert!(lines[1].contains(word), "{shown:?}");
        }
        let connection = host.connect().await?;
        until_listed(&connection, 0).await?;
        let shown = ask(&["inhibit", "--list", "--json"])?.expect(&[0])?;
        assert_eq!(shown.json()?, serde_json::json!([]));
        ask(&["inhibit", "/no/such/program"])?.expect(&[127])?;
        ask(&["inhibit", "/etc"])?.expect(&[126])?;
        ask(&["inhibit", "sh", "-c", "kill -TERM $$"])?.expect(&[143])?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_command_inhibits_beyond_the_end_of_the_daemon() -> Result<()> {
        let mut host = Host::boot()?;
        let words = ["inhibit", "--why", "nightly", "cat"];
        let mut command = client::osteward(&host.sandbox, &host.bus, None, &words)?;
        let mut running = command.stdin(Stdio::piped()).spawn()?;
        let connection = host.connect().await?;
        until_listed(&connection, 1).await?;
        host.kill_daemon()?;
        host.start_daemon()?;
        until_listed(&connection, 1).await?;
        assert_eq!(listed(&connection).await?[0].why, "nightly");
        // The command reads to the end of its input.
        drop(running.stdin.take());
        assert!(running.wait()?.success());
        until_listed(&connection, 0).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn configuration_is_read_again_when_asked_for() -> Result<()> {
        let settings = Settings {
            watchdog_usec: Some(WATCHDOG),
            ..Default::default()
        };
        let mut host = Host::boot_with(settings)?;
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        fs::write(config(&host)?, "[daemon]\nidle_timeouts = \"1s\"\n")?;
        let ask = |host: &Host, words: &[&str]| client::ask(&host.sandbox, &host.bus, words);
        let answer = ask(&host, &["reload"])?.expect(&[1])?;
        for word in ["ConfigInvalid", "osteward.toml", "idle_timeouts"] {
            assert!(answer.stderr.contains(word), "{answer:?}");
        }
        // As after a start with such a file.
        let refused = proxy.check(&CheckOptions::default()).await;
        ensure!(
            matches!(refused, Err(Error::ConfigInvalid(_))),
            "{refused:?}"
        );
        let manager = manager(&connection).await?;
        let warnings = manager.config_warnings().await?;
        assert!(
            warnings.iter().any(|it| it.contains("idle_timeouts")),
            "{warnings:?}"
        );

        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let denied = ManagerProxy::new(&user).await?.reload_config().await;
        ensure!(matches!(denied, Err(Error::AccessDenied(_))), "{denied:?}");

        fs::write(config(&host)?, "[daemon]\nidle_timeout = \"300ms\"\n")?;
        ask(&host, &["reload"])?.expect(&[0])?;
        assert_eq!(manager.config_warnings().await?, Vec::<String>::new());
        // The new idle time holds at once: the daemon leaves.
        let status = daemon(&mut host)?.ended()?;
        assert!(status.success(), "{status}");
        Ok(())
    }
}
