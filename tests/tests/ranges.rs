//! Registries that have no ranges, lead elsewhere, or hang up: upgrades complete, of layers that come in parts
//! and of layers of which only parts come.

#[cfg(test)]
mod ranges {
    use std::fs;
    use std::net::Ipv4Addr;

    use anyhow::{Context, Result};
    use osteward_dbus::options::UpgradeOptions;
    use osteward_tests::host::Host;
    use osteward_tests::image::chunked::Style;
    use osteward_tests::image::{Compression, Layer, Written};
    use osteward_tests::relay::{Relay, Request, Way, answer};

    /// More than a layer must have to be fetched by several requests at a time.
    const LARGE: usize = 33 << 20;
    const FILES: u64 = 16;
    /// Bytes of each file of the layer that is fetched by parts.
    const FILE: usize = 1 << 20;
    /// After so many bytes a connection is cut: less than is asked for at once.
    const CUT: u64 = 5 << 20;

    /// A layer that comes whole.
    fn plain(version: u32) -> Layer {
        let content = vec![version as u8; LARGE];
        Layer::new()
            .dir("usr")
            .dir("usr/share")
            .file("usr/share/large", content)
            .compressed(Compression::Plain)
    }

    /// A layer of files that do not compress; the first `changed` are other ones in each version.
    fn chunked(version: u32, changed: u64) -> Layer {
        let mut layer = Layer::new().dir("usr").dir("usr/lib").dir("usr/lib/files");
        for file in 0..FILES {
            let seed = if file < changed { version } else { 0 };
            let mut content = vec![0; FILE];
            fastrand::Rng::with_seed(file << 32 | u64::from(seed)).fill(&mut content);
            layer = layer.file(&format!("usr/lib/files/{file}"), content);
        }
        layer.compressed(Compression::Chunked(Style::Modern))
    }

    struct Troubled {
        host: Host,
        relay: Relay,
        version: u32,
    }

    impl Troubled {
        /// A host that has a version of the layer of files.
        async fn new() -> Result<Self> {
            let mut host = Host::boot()?;
            let relay = Relay::before(&mut host)?;
            let version = 1;
            let mut troubled = Self {
                host,
                relay,
                version,
            };
            let image = troubled.publish(|version| vec![chunked(version, 0)])?;
            troubled.fetched(&image).await?;
            Ok(troubled)
        }

        /// Publishes the next version, of these layers.
        fn publish(&mut self, layers: impl Fn(u32) -> Vec<Layer>) -> Result<Written> {
            self.version += 1;
            let version = self.version;
            let image = self.host.next_image(&version.to_string(), layers(version));
            self.host
                .publish(&image.created(&format!("2025-02-{version:02}T00:00:00Z")))
        }

        /// Publishes both kinds of layers, all new but `FILES - changed` files.
        fn publish_both(&mut self, changed: u64) -> Result<Written> {
            self.publish(|version| vec![plain(version), chunked(version, changed)])
        }

        /// Bytes that the upgrade to `image` has fetched.
        async fn fetched(&self, image: &Written) -> Result<u64> {
            let options = UpgradeOptions {
                replace_staged: Some(true),
                ..Default::default()
            };
            let ended = self.host.upgrade_with(&options).await?.succeeded()?;
            assert_eq!(ended.value::<String>("digest")?, image.digest);
            self.host.sandbox.fsck()?;
            ended.value("fetched-bytes")
        }

        /// Bytes of the plain layer and of the one of files.
        fn sizes(&self, image: &Written) -> Result<[u64; 2]> {
            let [.., plain, chunked] = &image.layers[..] else {
                anyhow::bail!("not two layers");
            };
            let size = |layer| anyhow::Ok(fs::metadata(self.host.layout.blob(layer))?.len());
            Ok([size(plain)?, size(chunked)?])
        }
    }

    /// The bytes that are fetched when all is well: both layers but for the files that are here.
    fn at_most([plain, chunked]: [u64; 2], changed: u64) -> u64 {
        plain + chunked / FILES * changed + chunked / 16
    }

    fn is_ranged(request: &Request) -> bool {
        request.header("range").is_some()
    }

    #[tokio::test]
    async fn a_registry_without_ranges_is_asked_for_them_no_more() -> Result<()> {
        let mut troubled = Troubled::new().await?;
        // Other refusals take the same way as the first.
        let ways: [fn() -> Way; 2] = [|| answer("501 Not Implemented", "", b""), || Way::Whole];
        for (number, way) in ways.into_iter().enumerate() {
            // A daemon that is new knows nothing of the registry.
            troubled.host.while_stopped(|_| Ok(()))?;
            let image = troubled.publish_both(1)?;
            troubled
                .relay
                .rule(move |request| match is_ranged(request) {
                    true => way(),
                    false => Way::Pass,
                });
            let before = troubled.relay.requests().len();
            let whole: u64 = troubled.sizes(&image)?.iter().sum();
            assert_eq!(troubled.fetched(&image).await?, whole, "way {number}");
            let requests = troubled.relay.requests().split_off(before);
            let ranged = requests.iter().filter(|request| is_ranged(request)).count();
            // Each lane may have asked before the first answer was there.
            assert!((1..=4).contains(&ranged), "way {number}: {requests:?}");
        }
        troubled.relay.resume();
        troubled.host.while_stopped(|_| Ok(()))?;
        let image = troubled.publish_both(1)?;
        let most = at_most(troubled.sizes(&image)?, 1);
        let fetched = troubled.fetched(&image).await?;
        assert!(fetched <= most, "{fetched} of at most {most}");
        Ok(())
    }

    #[tokio::test]
    async fn connections_that_break_over_and_over_cost_little() -> Result<()> {
        const CHANGED: u64 = 12;
        let mut troubled = Troubled::new().await?;
        let image = troubled.publish_both(CHANGED)?;
        let most = at_most(troubled.sizes(&image)?, CHANGED);
        troubled.relay.cut_each_after(CUT);
        let carried = troubled.relay.carried();
        let fetched = troubled.fetched(&image).await?;
        assert!(fetched <= most, "{fetched} of at most {most}");
        let carried = troubled.relay.carried() - carried;
        let cuts = troubled.relay.cuts();
        assert!(cuts >= 4, "{cuts} connections were cut");
        // Also what was lost on the way is little.
        assert!(carried <= most + most / 16, "{carried} for {fetched}");
        Ok(())
    }

    #[tokio::test]
    async fn another_host_gets_the_requests_but_not_the_credentials() -> Result<()> {
        let mut troubled = Troubled::new().await?;
        let elsewhere =
            Relay::listening(Ipv4Addr::new(127, 0, 0, 2), troubled.host.registry.port())?;
        let image = troubled.publish_both(1)?;
        let realm = format!("http://{}/token", troubled.relay.host());
        let challenge = format!("www-authenticate: Bearer realm=\"{realm}\",service=\"here\"\r\n");
        let (host, mut signature) = (elsewhere.host(), 0);
        troubled.relay.rule(move |request| {
            if request.path.starts_with("/token") {
                return answer("200 OK", "", br#"{"token": "sesame"}"#);
            }
            if request.header("authorization") != Some("Bearer sesame") {
                return answer("401 Unauthorized", &challenge, b"");
            }
            if !request.path.contains("/blobs/") {
                return Way::Pass;
            }
            signature += 1;
            let location = format!(
                "location: http://{host}{}?signature={signature}\r\n",
                request.path
            );
            answer("307 Temporary Redirect", &location, b"")
        });
        // The address of the plain layer is good for two requests.
        let [.., plain, chunked] = &image.layers[..] else {
            anyhow::bail!("not two layers");
        };
        let (mut uses, mut first, layer) = (0, None, plain.clone());
        elsewhere.rule(move |request| {
            if !request.path.contains(&layer) {
                return Way::Pass;
            }
            if *first.get_or_insert_with(|| request.path.clone()) != request.path {
                return Way::Pass;
            }
            uses += 1;
            match uses {
                1 | 2 => Way::Pass,
                _ => answer("403 Forbidden", "", b""),
            }
        });
        let before = troubled.relay.requests().len();
        let most = at_most(troubled.sizes(&image)?, 1);
        let fetched = troubled.fetched(&image).await?;
        assert!(fetched <= most, "{fetched} of at most {most}");
        let asked = troubled.relay.requests().split_off(before);
        let there = elsewhere.requests();
        for request in &there {
            assert_eq!(request.header("authorization"), None, "{request:?}");
            assert_eq!(request.header("cookie"), None, "{request:?}");
        }
        let count = |requests: &[Request], layer: &str| {
            let of_layer = requests.iter().filter(|r| r.path.contains(layer));
            of_layer
                .filter(|r| {
                    r.header("authorization") == Some("Bearer sesame")
                        || r.path.contains("signature=")
                })
                .count()
        };
        // One address for all parts of a layer, and few more for those that asked while it ran out.
        assert!(count(&asked, chunked) <= 2, "{asked:?}");
        assert!(count(&asked, plain) <= 5, "{asked:?}");
        assert!(count(&there, plain) >= 5, "{there:?}");
        assert!(count(&there, chunked) >= 2, "{there:?}");
        let log = troubled.host.daemon.as_ref().context("no daemon")?.log();
        assert!(
            !log.contains("signature=") && !log.contains("sesame"),
            "a secret: {log}"
        );
        Ok(())
    }
}
