//! Registries and networks that misbehave: what may pass is waited out, what was fetched is kept,
//! and whatever fails has a name, a sentence and no consequences.

#[cfg(test)]
mod registry {
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{CheckOptions, NoOptions, UpgradeOptions};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer, Written};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::relay::{Relay, Request, Way, answer};
    use osteward_tests::sandbox::Deployment;

    /// Of the layer that is troubled: more than the rest, so that a lane begins with it.
    const LARGE: usize = 2 << 20;
    const HALF: u64 = 1 << 20;

    /// A host behind a relay, and an image that it does not have.
    struct Troubled {
        host: Host,
        relay: Relay,
        image: Written,
        before: Vec<Deployment>,
        version: u32,
    }

    impl Troubled {
        fn new(configuration: &str) -> Result<Self> {
            let mut host = Host::boot()?;
            host.configure(configuration)?;
            let relay = Relay::before(&mut host)?;
            let before = host.sandbox.deployments()?;
            let image = host.first.clone();
            let mut troubled = Self {
                host,
                relay,
                image,
                before,
                version: 1,
            };
            troubled.publish()?;
            Ok(troubled)
        }

        /// Publishes a newer image with a large layer of its own, its last.
        fn publish(&mut self) -> Result<()> {
            self.version += 1;
            let version = self.version;
            let dir = Layer::new().dir("usr").dir("usr/share");
            let small = dir.clone().file("usr/share/version", version.to_string());
            let content = vec![version as u8; LARGE];
            let large = dir
                .file("usr/share/large", content)
                .compressed(Compression::Plain);
            let image = self.host.next_image(&version.to_string(), [small, large]);
            let image = image.created(&format!("2025-02-{version:02}T00:00:00Z"));
            self.image = self.host.publish(&image)?;
            Ok(())
        }

        /// The path of the large layer, or a part of it that is enough.
        fn large(&self) -> Result<String> {
            self.image.layers.last().cloned().context("no layers")
        }

        async fn upgrade(&self) -> Result<Ended> {
            let options = UpgradeOptions {
                replace_staged: Some(true),
                ..Default::default()
            };
            self.host.upgrade_with(&options).await
        }

        /// The upgrade ends with the image that was published.
        async fn succeeds(&self) -> Result<()> {
            let ended = self.upgrade().await?.succeeded()?;
            assert_eq!(ended.value::<String>("digest")?, self.image.digest);
            self.host.sandbox.fsck()
        }

        /// The upgrade fails with that name and a sentence that has these words; nothing changes.
        async fn fails(&self, name: &str, words: &str) -> Result<()> {
            let ended = self.upgrade().await?.failed(name)?;
            let text = &ended.error_message;
            ensure!(text.contains(words), "{words:?} is not in {text:?}");
            let now = self.host.sandbox.deployments()?;
            ensure!(now == self.before, "after {text}: {now:?}");
            self.host.sandbox.fsck()
        }

        /// How often a path that contains `text` was asked for.
        fn asked(&self, text: &str) -> usize {
            let requests = self.relay.requests();
            requests.iter().filter(|r| r.path.contains(text)).count()
        }
    }

    /// A configuration with little patience with failures, small manifests, and one more line.
    fn hasty(line: &str) -> String {
        format!("[registry]\nretry_time = \"2s\"\nmax_manifest_size = 100000\n{line}\n")
    }

    /// Where a range begins.
    fn start(request: &Request) -> Option<u64> {
        let range = request.header("range")?.strip_prefix("bytes=")?;
        range.split_once('-')?.0.parse().ok()
    }

    #[tokio::test]
    async fn a_transfer_that_breaks_goes_on_where_it_broke() -> Result<()> {
        let troubled = Troubled::new("")?;
        let large = troubled.large()?;
        troubled.relay.rule({
            let large = large.clone();
            move |request| match start(request) {
                None if request.path.contains(&large) => Way::Break(HALF),
                _ => Way::Pass,
            }
        });
        troubled.succeeds().await?;
        let requests = troubled.relay.requests();
        let starts: Vec<u64> = requests.iter().filter_map(start).collect();
        let [start] = starts[..] else {
            anyhow::bail!("not one range: {requests:?}");
        };
        // What is missing from the half is the head of the answer.
        assert!((HALF - 2000..HALF).contains(&start), "{start}");
        assert_eq!(troubled.asked(&large), 2);
        Ok(())
    }

    #[tokio::test]
    async fn a_registry_without_ranges_sends_the_whole_again() -> Result<()> {
        let mut troubled = Troubled::new("")?;
        let ways: [fn() -> Way; 4] = [
            || Way::Whole,
            || answer("400 Bad Request", "", b""),
            || answer("416 Range Not Satisfiable", "", b""),
            || answer("501 Not Implemented", "", b""),
        ];
        for way in ways {
            // A daemon that knows it does not ask for a range again.
            troubled.host.kill_daemon()?;
            troubled.host.start_daemon()?;
            let large = troubled.large()?;
            let mut wholes = 0;
            troubled.relay.rule(move |request| {
                if !request.path.contains(&large) {
                    return Way::Pass;
                }
                if request.header("range").is_some() {
                    return way();
                }
                wholes += 1;
                match wholes {
                    1 => Way::Break(HALF),
                    _ => Way::Pass,
                }
            });
            troubled.succeeds().await?;
            troubled.publish()?;
        }
        let requests = troubled.relay.requests();
        assert_eq!(requests.iter().filter_map(start).count(), 4);
        Ok(())
    }

    #[tokio::test]
    async fn an_outage_is_waited_out_and_told() -> Result<()> {
        let troubled = Troubled::new("")?;
        troubled.relay.stop(&troubled.large()?, HALF);
        let connection = troubled.host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = Host::proxy(&connection).await?;
        let job = job.upgrade(&UpgradeOptions::default()).await?;
        troubled.relay.wait_until_stopped()?;
        troubled.relay.cut();
        let said = listener
            .wait_for_message(&job, "; trying again in ")
            .await?;
        assert!(said.contains("cannot be reached"), "{said}");
        troubled.relay.resume();
        let ended = listener.end(&job).await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, troubled.image.digest);
        let log = troubled.host.daemon.as_ref().context("no daemon")?.log();
        assert!(log.contains("answers again"), "{log}");
        troubled.host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_registry_that_wants_to_be_left_alone_is_and_cancel_ends_it() -> Result<()> {
        let troubled = Troubled::new("[registry]\nretry_time = \"1h\"\n")?;
        let later = |seconds: u32| {
            let header = format!("retry-after: {seconds}\r\n");
            answer("429 Too Many Requests", &header, b"")
        };
        troubled.relay.rule(move |_| later(1000));
        let connection = troubled.host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = Host::proxy(&connection).await?;
        let job = job.upgrade(&UpgradeOptions::default()).await?;
        let said = listener
            .wait_for_message(&job, "trying again in 1000 s")
            .await?;
        assert!(said.contains("429 Too Many Requests"), "{said}");
        let cancelled = Instant::now();
        let proxy = Host::job(&connection, &job).await?;
        proxy.cancel(&NoOptions::default()).await?;
        let ended = listener.end(&job).await?;
        assert_eq!(ended.state, "cancelled", "{ended:?}");
        assert!(cancelled.elapsed() < Duration::from_secs(500));
        assert_eq!(troubled.asked(""), 1);

        let (mut asked, start) = (0, Instant::now());
        troubled.relay.rule(move |_| {
            asked += 1;
            match asked {
                1 | 2 => later(2),
                _ => Way::Pass,
            }
        });
        troubled.succeeds().await?;
        assert!(start.elapsed() >= Duration::from_secs(4));
        Ok(())
    }

    #[tokio::test]
    async fn whatever_the_registry_answers_has_a_name_and_no_consequences() -> Result<()> {
        let mut troubled = Troubled::new(&hasty(""))?;
        let realm = format!("http://{}/token", troubled.relay.host());
        let refusals: [(&str, &str, &str, usize); 6] = [
            ("401 Unauthorized", "RegistryAuth", "auth.json", 2),
            ("403 Forbidden", "RegistryAuth", "auth.json", 1),
            ("404 Not Found", "ImageNotFound", "check the name", 1),
            ("418 I'm a teapot", "RegistryError", "418", 1),
            ("500 Internal Server Error", "RegistryUnreachable", "500", 0),
            ("503 Service Unavailable", "RegistryUnreachable", "503", 0),
        ];
        for (status, name, words, tries) in refusals {
            let header = format!("www-authenticate: Bearer realm=\"{realm}\"\r\n");
            troubled
                .relay
                .rule(move |request| match request.path.starts_with("/token") {
                    true => answer("200 OK", "", br#"{"token":"sesame"}"#),
                    false => answer(status, &header, b""),
                });
            let before = troubled.asked("/manifests/");
            troubled.fails(name, words).await?;
            let asked = troubled.asked("/manifests/") - before;
            match tries {
                0 => assert!(asked > 1, "{status}: asked once"),
                tries => assert_eq!(asked, tries, "{status}"),
            }
        }

        let endless = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b' '; LARGE + 1]].concat();
        // Heads of answers have fewer than 600 bytes, and manifests have more.
        let bodies: [(&str, Way, &str, &str); 4] = [
            (
                "/manifests/",
                Way::Break(600),
                "RegistryUnreachable",
                "try again",
            ),
            (
                "/manifests/",
                Way::Answer(endless.clone()),
                "RegistryError",
                "100000 bytes",
            ),
            (
                "/blobs/",
                Way::Answer(endless),
                "RegistryError",
                "instead of",
            ),
            ("/blobs/", Way::Break(0), "RegistryUnreachable", "try again"),
        ];
        for (place, way, name, words) in bodies {
            troubled.relay.rule(move |request| match &way {
                _ if !request.path.contains(place) => Way::Pass,
                Way::Answer(bytes) => Way::Answer(bytes.clone()),
                Way::Break(bytes) => Way::Break(*bytes),
                Way::Stop(_) | Way::Pass | Way::Whole => Way::Pass,
            });
            troubled.fails(name, words).await?;
        }

        // Each with the one limit that it is about: a slow machine reaches no other.
        for (bytes, limit, words) in [
            (0, "response_timeout = \"2s\"", "no answer for 2s"),
            (600, "read_timeout = \"1s\"", "nothing arrived for 1s"),
        ] {
            troubled.host.configure(&hasty(limit))?;
            troubled.relay.stop("/manifests/", bytes);
            troubled.fails("RegistryUnreachable", words).await?;
        }
        troubled.relay.resume();
        troubled.host.configure("")?;
        troubled.succeeds().await
    }

    #[tokio::test]
    async fn nothing_new_costs_one_small_request() -> Result<()> {
        let mut troubled = Troubled::new("")?;
        troubled.succeeds().await?;
        troubled.host.reboot()?;
        for _ in 0..2 {
            let before = troubled.relay.requests().len();
            let connection = troubled.host.connect().await?;
            let mut listener = Listener::new(&connection).await?;
            let host = Host::proxy(&connection).await?;
            let job = host.check(&CheckOptions::default()).await?;
            let ended = listener.end(&job).await?.succeeded()?;
            assert!(!ended.value::<bool>("changed")?);
            assert_eq!(ended.value::<String>("digest")?, troubled.image.digest);
            let asked = troubled.relay.requests().split_off(before);
            let methods: Vec<_> = asked.iter().map(|r| r.method.as_str()).collect();
            assert_eq!(methods, ["HEAD"], "{asked:?}");
            // Neither does it for the next daemon.
            troubled.host.kill_daemon()?;
            troubled.host.start_daemon()?;
        }
        troubled.publish()?;
        troubled.succeeds().await
    }

    #[tokio::test]
    async fn a_tag_that_moves_on_the_way_changes_nothing() -> Result<()> {
        let mut troubled = Troubled::new("")?;
        let first = troubled.image.digest.clone();
        troubled.relay.stop("/blobs/", 0);
        let connection = troubled.host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = Host::proxy(&connection).await?;
        let job = job.upgrade(&UpgradeOptions::default()).await?;
        troubled.relay.wait_until_stopped()?;
        troubled.publish()?;
        troubled.relay.resume();
        let ended = listener.end(&job).await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, first);
        assert_eq!(troubled.asked("/manifests/latest"), 1);
        troubled.succeeds().await
    }

    #[tokio::test]
    async fn layers_that_are_too_long_are_refused_before_the_download() -> Result<()> {
        let mut troubled = Troubled::new("[registry]\nmax_layer_size = 1000000\n")?;
        troubled.fails("ImageInvalid", "max_layer_size").await?;
        assert_eq!(troubled.asked(&troubled.large()?), 0);
        troubled.host.configure("")?;
        troubled.succeeds().await
    }
}
