//! The daemon's life under a service manager: ready, watched, idle, stopped, and the reboot.

#[cfg(test)]
mod life {
    use std::fs;
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::sync::{Arc, Mutex, PoisonError};

    use anyhow::{Context, Result, ensure};
    use futures_util::StreamExt;
    use osteward_dbus::options::{ApplyOptions, CheckOptions, NoOptions, UpgradeOptions};
    use osteward_dbus::types::Status;
    use osteward_dbus::{BUS_NAME, Error};
    use osteward_tests::bus::Bus;
    use osteward_tests::daemon::{Daemon, Settings};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::logind::Logind;
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::SHARE;
    use zbus::fdo::DBusProxy;

    fn filling() -> Layer {
        let content = vec![7_u8; 2_000_000];
        let layer = Layer::new().dir("usr").file("usr/filling", content);
        layer.compressed(Compression::Plain)
    }

    fn daemon(host: &mut Host) -> Result<&mut Daemon> {
        host.daemon.as_mut().context("the daemon does not run")
    }

    fn stop(host: &mut Host) -> Result<()> {
        let daemon = host.daemon.take().context("the daemon does not run")?;
        let status = daemon.stop()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }

    /// Stops the daemon, configures it and starts it again.
    fn configure(host: &mut Host, text: &str) -> Result<()> {
        stop(host)?;
        let file = host.sandbox.inside("/etc/osteward")?.join("osteward.toml");
        fs::write(file, text)?;
        host.start_daemon()
    }

    /// Ends when the daemon gives up its name; listens from the call on.
    async fn releasing(bus: &Bus) -> Result<tokio::task::JoinHandle<Result<()>>> {
        let connection = bus.connect().await?;
        let proxy = DBusProxy::new(&connection).await?;
        let arguments = [(0, BUS_NAME)];
        let mut changes = proxy
            .receive_name_owner_changed_with_args(&arguments)
            .await?;
        Ok(tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                if change.args()?.new_owner.is_none() {
                    return Ok(());
                }
            }
            anyhow::bail!("{connection:?} ended")
        }))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ready_is_said_when_everything_answers() -> Result<()> {
        let mut host = Host::boot()?;
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        for _ in 0..3 {
            stop(&mut host)?;
            host.start_daemon()?;
            let status = Status::from_dict(&proxy.status(&NoOptions {}).await?)?;
            // Not "unknown yet" either: a client that is the reason for the start asks once.
            assert_eq!(status.deployments.len(), 1, "{status:?}");
            assert_eq!(status.host.boot_digest, host.first.digest);
        }
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn systemd_is_told_what_goes_on() -> Result<()> {
        let settings = Settings {
            watchdog_usec: Some(400_000),
            ..Default::default()
        };
        let mut host = Host::boot_with(settings)?;
        host.publish(&host.next_image("2", [filling()]))?;
        let throttle = Relay::before(&mut host)?;
        throttle.hold();
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.upgrade(&UpgradeOptions::default()).await?;
        daemon(&mut host)?.wait_for("STATUS=upgrade: resolving")?;
        throttle.allow(600_000);
        daemon(&mut host)?.wait_for("STATUS=upgrade: downloading")?;
        for _ in 0..3 {
            daemon(&mut host)?.wait_for("WATCHDOG=1")?;
        }
        throttle.resume();
        listener.end(&job).await?.succeeded()?;
        daemon(&mut host)?.wait_for("STATUS=idle")?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_not_needed_leaves_in_order() -> Result<()> {
        let mut host = Host::boot()?;
        stop(&mut host)?;
        let file = host.sandbox.inside("/etc/osteward")?.join("osteward.toml");
        fs::write(file, "[daemon]\nidle_timeout = \"1s\"\n")?;
        let leaving = releasing(&host.bus).await?;
        host.start_daemon()?;
        leaving.await??;
        let daemon = daemon(&mut host)?;
        assert!(daemon.has_said("STOPPING=1")?, "the name went first");
        let status = daemon.ended()?;
        assert!(status.success(), "{status}");
        let log = daemon.log();
        assert!(log.contains("nothing to do, exiting"), "{log}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_has_something_to_tell_stays() -> Result<()> {
        let settings = Settings {
            watchdog_usec: Some(200_000),
            ..Default::default()
        };
        let mut host = Host::boot_with(settings)?;
        configure(&mut host, "[daemon]\nidle_timeout = \"300ms\"\n")?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.check(&CheckOptions::default()).await?;
        listener.end(&job).await?.succeeded()?;
        // Ten idle times: one tick of the watchdog is a tenth of a second.
        for _ in 0..30 {
            daemon(&mut host)?.wait_for("WATCHDOG=1")?;
        }
        assert!(!daemon(&mut host)?.has_said("STOPPING=1")?);
        assert_eq!(
            Host::job(&connection, &job).await?.state().await?,
            "succeeded"
        );
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_job_that_is_stopped_with_the_daemon_is_told_of() -> Result<()> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", [filling()]))?;
        let throttle = Relay::before(&mut host)?;
        throttle.allow(600_000);
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.upgrade(&UpgradeOptions::default()).await?;
        listener.wait_for_phase(&job, "downloading").await?;
        stop(&mut host)?;
        assert_eq!(listener.end(&job).await?.state, "cancelled");
        throttle.resume();
        host.start_daemon()?;
        let ended = host.upgrade().await?.succeeded()?;
        assert!(ended.value::<bool>("changed")?);
        host.sandbox.fsck()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_job_has_the_path_of_another() -> Result<()> {
        let mut host = Host::boot()?;
        let connection = host.connect().await?;
        let proxy = Host::proxy(&connection).await?;
        let mut listener = Listener::new(&connection).await?;
        let mut before = 0;
        for round in 0..4 {
            let job = proxy.check(&CheckOptions::default()).await?;
            let number = job.rsplit('/').next().unwrap_or_default().parse::<u64>()?;
            assert!(number > before, "{number} after {before}");
            before = number;
            listener.end(&job).await?;
            match round {
                0 | 2 => stop(&mut host)?,
                _ => host.kill_daemon()?,
            }
            host.start_daemon()?;
        }
        Ok(())
    }

    async fn apply(host: &Host, options: &ApplyOptions) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = Host::proxy(&connection).await?.apply(options).await?;
        listener.end(&job).await
    }

    async fn apply_by_digest(host: &Host, logind: &Logind, staged: &str) -> Result<()> {
        let digest = |digest: &str| ApplyOptions {
            digest: Some(digest.to_owned()),
            ..Default::default()
        };
        let before = logind.reboots();
        let other = digest(&host.first.digest);
        apply(host, &other).await?.failed("DigestMismatch")?;
        assert_eq!(logind.reboots(), before);
        apply(host, &digest(staged)).await?.succeeded()?;
        assert_eq!(logind.reboots(), before + 1);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reboots_are_logind_s_and_inhibitors_count() -> Result<()> {
        let host = Host::boot()?;
        let connection = host.connect().await?;
        let default = ApplyOptions::default();
        let early = Host::proxy(&connection).await?.apply(&default).await;
        assert!(matches!(early, Err(Error::NoUpdate(_))), "{early:?}");
        let image = host.publish(&host.next_image("2", [filling()]))?;
        host.upgrade().await?.succeeded()?;
        apply(&host, &default).await?.failed("NotSupported")?;

        let logind = Logind::start(&host.bus).await?;
        logind.inhibit(
            "sleep:shutdown",
            "Flasher",
            "firmware is being written",
            "block",
        );
        let refused = apply(&host, &default).await?.failed("Inhibited")?;
        for word in ["Flasher", "firmware is being written"] {
            assert!(refused.error_message.contains(word), "{refused:?}");
        }
        let upgrade = UpgradeOptions {
            apply: Some("reboot".into()),
            ..Default::default()
        };
        host.upgrade_with(&upgrade).await?.failed("Inhibited")?;
        assert_eq!(logind.reboots(), 0);
        let anyway = ApplyOptions {
            ignore_inhibitors: Some(true),
            ..Default::default()
        };
        apply(&host, &anyway).await?.succeeded()?;
        assert_eq!(logind.reboots(), 1);
        for (what, mode) in [("shutdown", "delay"), ("sleep:idle", "block")] {
            logind.inhibit(what, "Player", "music", mode);
            let before = logind.reboots();
            apply(&host, &default).await?.succeeded()?;
            assert_eq!(logind.reboots(), before + 1, "{what} {mode}");
        }
        apply_by_digest(&host, &logind, &image.digest).await?;
        let before = logind.reboots();
        host.upgrade_with(&upgrade).await?.succeeded()?;
        assert_eq!(logind.reboots(), before + 1);
        assert!(host.sandbox.deployments()?.iter().any(|it| it.staged));
        Ok(())
    }

    const PASSWORD: &str = "hunter2-hunter2";
    const TOKEN: &str = "c2VjcmV0LXRva2Vu";
    /// `steward:hunter2-hunter2`
    const BASIC: &str = "c3Rld2FyZDpodW50ZXIyLWh1bnRlcjI=";

    /// Answers one request as a registry that wants a token and has no images.
    fn answer(mut stream: TcpStream, port: u16, seen: &Mutex<String>) -> std::io::Result<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let (status, more, body) = if head.contains("/token") && head.contains(BASIC) {
            ("200 OK", String::new(), format!(r#"{{"token":"{TOKEN}"}}"#))
        } else if head.contains(TOKEN) {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}"#;
            ("404 Not Found", String::new(), body.to_owned())
        } else {
            let realm = format!("http://127.0.0.1:{port}/token");
            let wants = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"x\"\r\n");
            ("401 Unauthorized", wants, "{}".to_owned())
        };
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_str(&head);
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\n{more}Content-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    }

    /// A registry that wants credentials: its port, and the heads of the requests it gets.
    fn guarded_registry() -> Result<(u16, Arc<Mutex<String>>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Mutex::new(String::new()));
        let notes = Arc::clone(&seen);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A client that hangs up has its own reasons.
                let _answered = answer(stream, port, &notes);
            }
        });
        Ok((port, seen))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_log_is_for_people_and_keeps_secrets() -> Result<()> {
        // Whoever fetches tokens wants certificates, even if it then talks plain HTTP.
        let bundle = "certificates.crt";
        let variables = [
            ("OSTEWARD_LOG", "trace".to_owned()),
            ("SSL_CERT_FILE", format!("{SHARE}/{bundle}")),
        ];
        let settings = Settings {
            environment: variables
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            ..Default::default()
        };
        let mut host = Host::boot_with(settings)?;
        let certificates = "/etc/ssl/certs/ca-certificates.crt";
        fs::copy(certificates, host.sandbox.share().join(bundle)).context(certificates)?;
        let (port, seen) = guarded_registry()?;
        let auth = format!(r#"{{"auths":{{"127.0.0.1:{port}":{{"auth":"{BASIC}"}}}}}}"#);
        fs::write(host.sandbox.inside("/run/ostree")?.join("auth.json"), auth)?;
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let image = format!("127.0.0.1:{port}/os:latest");
        let job = Host::proxy(&connection)
            .await?
            .switch(&image, &UpgradeOptions::default())
            .await?;
        let ended = listener.end(&job).await?.failed("ImageNotFound")?;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(seen.contains(BASIC) && seen.contains(TOKEN), "{seen}");

        let running = daemon(&mut host)?;
        let log = running.log();
        for secret in [PASSWORD, BASIC, TOKEN] {
            assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
            assert!(!format!("{ended:?}").contains(secret), "{ended:?}");
        }
        assert!(
            !log.contains('\u{1b}'),
            "escape sequences in a pipe:\n{log}"
        );
        let line = log
            .lines()
            .find(|line| line.contains("switch asked for by uid 0"));
        let line = line.context("the job is not in the log")?;
        assert!(line.contains(" INFO "), "{line}");
        let line = log.lines().find(|line| line.contains("switch failed: "));
        assert!(line.is_some_and(|line| line.contains("ERROR")), "{line:?}");
        Ok(())
    }
}
