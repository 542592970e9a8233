//! Being let in: passwords, tokens, certificates and proxies, with real registries behind them.

#[cfg(test)]
mod login {
    use std::fs;

    use anyhow::{Context, Result, ensure};
    use osteward_tests::authority::Authority;
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer, Written};
    use osteward_tests::registry::Door;
    use osteward_tests::relay::{Relay, Way, answer};
    use osteward_tests::sandbox::SHARE;

    /// `alice:hunter2`, which the registry knows, and `alice:hunter3`, which it does not.
    const KNOWN: &str = "YWxpY2U6aHVudGVyMg==";
    const UNKNOWN: &str = "YWxpY2U6aHVudGVyMw==";

    const LARGE: usize = 2 << 20;

    fn publish(host: &Host) -> Result<Written> {
        let dir = Layer::new().dir("usr").dir("usr/share");
        let small = ["a", "b"].map(|name| dir.clone().file(&format!("usr/share/{name}"), name));
        let large = dir.file("usr/share/large", vec![7; LARGE]);
        let large = large.compressed(Compression::Plain);
        let [a, b] = small;
        host.publish(&host.next_image("2", [a, b, large]))
    }

    fn write(host: &Host, path: &str, text: &str) -> Result<()> {
        let path = host.sandbox.inside(path)?;
        fs::create_dir_all(path.parent().context("no directory")?)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    fn auth(registry: &str, secret: &str) -> String {
        format!(r#"{{"auths": {{"{registry}": {{"auth": "{secret}"}}}}}}"#)
    }

    async fn fails(host: &Host, name: &str, words: &[&str]) -> Result<()> {
        let ended = host.upgrade().await?.failed(name)?;
        let text = &ended.error_message;
        for word in words {
            ensure!(text.contains(word), "{word:?} is not in {text:?}");
        }
        ensure!(!text.contains("hunter"), "a secret: {text}");
        assert_eq!(host.sandbox.deployments()?.len(), 1);
        Ok(())
    }

    async fn succeeds(host: &Host, image: &Written) -> Result<()> {
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        let log = host.daemon.as_ref().context("no daemon")?.log();
        ensure!(
            !log.contains("hunter") && !log.contains("sesame"),
            "a secret in the log"
        );
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_password_comes_from_the_first_auth_file_there_is() -> Result<()> {
        let mut host = Host::boot()?;
        let image = publish(&host)?;
        let door = Door {
            login: true,
            certificate: None,
        };
        host.registry.move_behind(door)?;
        let registry = host.registry.host();
        let place = "/etc/ostree/auth.json";
        fails(&host, "RegistryAuth", &["a user and a password", place]).await?;
        let answer = client::ask(&host.sandbox, &host.bus, &["upgrade"])?.expect(&[1])?;
        assert!(answer.stderr.contains("hint:"), "{answer:?}");
        write(&host, place, &auth(&registry, UNKNOWN))?;
        fails(&host, "RegistryAuth", &["401", place]).await?;
        write(&host, place, "{")?;
        fails(&host, "RegistryAuth", &[place, "line 1"]).await?;
        let helper = format!(r#"{{"credHelpers": {{"{registry}": "pass"}}}}"#);
        write(&host, place, &helper)?;
        fails(&host, "NotSupported", &[place, "credential helper"]).await?;
        let program = host.sandbox.inside("/run/ostree")?;
        assert!(!program.join("auth.json").exists());
        // It comes before the other, although that one is of no use.
        write(
            &host,
            "/run/ostree/auth.json",
            &auth(&format!("{registry}/os"), KNOWN),
        )?;
        succeeds(&host, &image).await
    }

    #[tokio::test]
    async fn credentials_stay_with_the_registry_that_they_are_for() -> Result<()> {
        let mut host = Host::boot()?;
        let image = publish(&host)?;
        let large = image.layers.last().cloned().context("no layers")?;
        let content = fs::read(host.registry.blob(&large))?;
        let door = Door {
            login: true,
            certificate: None,
        };
        host.registry.move_behind(door)?;
        let relay = Relay::before(&mut host)?;
        write(&host, "/run/ostree/auth.json", &auth(&relay.host(), KNOWN))?;
        let elsewhere = Relay::to_port(host.registry.port())?;
        let location = format!("location: http://{}/cdn?signature=s\r\n", elsewhere.host());
        relay.rule(move |request| match request.path.contains(&large) {
            true if request.header("authorization").is_some() => {
                answer("307 Temporary Redirect", &location, b"")
            }
            _ => Way::Pass,
        });

        let realm = format!("http://{}/token", elsewhere.host());
        let challenges = format!(
            "www-authenticate: Basic realm=\"x\"\r\nwww-authenticate: Bearer realm=\"{realm}\"\r\n"
        );
        elsewhere.rule(move |_| answer("401 Unauthorized", &challenges, b""));
        fails(&host, "RegistryError", &["which answers 401"]).await?;
        elsewhere.rule(move |_| answer("200 OK", "", &content));
        succeeds(&host, &image).await?;
        let requests = elsewhere.requests();
        assert!(!requests.is_empty());
        for request in requests {
            assert_eq!(request.path, "/cdn?signature=s");
            assert_eq!(request.header("authorization"), None, "{request:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn tokens_that_run_out_are_renewed_in_the_middle_of_a_pull() -> Result<()> {
        let mut host = Host::boot()?;
        // One request after the other, so that each token is used up by whoever got it.
        host.configure("[import]\nparallel_layers = 1\n")?;
        let image = publish(&host)?;
        let relay = Relay::before(&mut host)?;
        write(&host, "/etc/ostree/auth.json", &auth(&relay.host(), KNOWN))?;
        let realm = format!("http://{}/token", relay.host());
        let large = image.layers.last().cloned().context("no layers")?;
        let (mut issued, mut left, mut breaks) = (0, 0, 0);
        relay.rule(move |request| {
            if let Some(query) = request.path.strip_prefix("/token?") {
                let known = Some(format!("Basic {KNOWN}"));
                if request.header("authorization").map(str::to_owned) != known
                    || query != "scope=repository%3Aos%3Apull&service=here"
                {
                    return answer("401 Unauthorized", "", b"");
                }
                (issued, left) = (issued + 1, 2);
                let token = format!(r#"{{"token": "sesame{issued}", "expires_in": 1}}"#);
                return answer("200 OK", "", token.as_bytes());
            }
            let fresh = request.header("authorization") == Some(&format!("Bearer sesame{issued}"));
            if !fresh || left == 0 {
                let header =
                    format!("www-authenticate: Bearer realm=\"{realm}\",service=\"here\"\r\n");
                return answer("401 Unauthorized", &header, b"");
            }
            left -= 1;
            // The rest of the large layer needs a new token each time.
            if request.path.contains(&large) && breaks < 3 {
                (left, breaks) = (0, breaks + 1);
                return Way::Break(400_000);
            }
            Way::Pass
        });
        succeeds(&host, &image).await?;
        let requests = relay.requests();
        let tokens = requests
            .iter()
            .filter(|r| r.path.starts_with("/token"))
            .count();
        let ranges = requests.iter().filter(|r| r.header("range").is_some());
        assert_eq!(
            ranges.count(),
            6,
            "each of three was refused once: {requests:?}"
        );
        assert!(tokens >= 5, "{tokens} tokens");
        Ok(())
    }

    /// A registry behind TLS under the name `registry.test`, with an authority of its own; the name
    /// leads to loopback. Tells the name with the port, and the authority's file inside.
    fn behind_tls(host: &mut Host) -> Result<(String, Authority)> {
        let authority = Authority::create(&host.sandbox.share().join("authority"))?;
        let door = Door {
            login: false,
            certificate: Some(authority.issue("registry.test")?),
        };
        host.registry.move_behind(door)?;
        Ok((format!("registry.test:{}", host.registry.port()), authority))
    }

    /// The authority's certificate, as the daemon can read it.
    fn inside(authority: &Authority) -> Result<String> {
        let file = authority.certificate();
        let mut parts = file.iter().rev().map(|part| part.display());
        let (name, directory) = (parts.next(), parts.next());
        let (name, directory) = name.zip(directory).context("no name")?;
        Ok(format!("{SHARE}/{directory}/{name}"))
    }

    #[tokio::test]
    async fn a_certificate_counts_when_the_host_trusts_its_authority() -> Result<()> {
        let mut host = Host::boot()?;
        let image = publish(&host)?;
        let (name, authority) = behind_tls(&mut host)?;
        write(&host, "/etc/hosts", "127.0.0.1 localhost registry.test\n")?;
        host.track(&format!("{name}/os:latest"))?;
        // The sandbox trusts nobody.
        fails(
            &host,
            "RegistryError",
            &["registry.test", "ca-certificates"],
        )
        .await?;
        let other = Authority::create(&host.sandbox.share().join("other"))?;
        host.set_environment(&[("SSL_CERT_FILE", &inside(&other)?)])?;
        fails(&host, "RegistryError", &["registry.test", "trust store"]).await?;
        let log = host.daemon.as_ref().context("no daemon")?.log();
        assert!(!log.contains("trying again"), "{log}");
        host.set_environment(&[("SSL_CERT_FILE", &inside(&authority)?)])?;
        succeeds(&host, &image).await?;

        let other = Door {
            login: false,
            certificate: Some(authority.issue("other.test")?),
        };
        host.registry.move_behind(other)?;
        let ended = host.upgrade().await?.failed("RegistryError")?;
        assert!(ended.error_message.contains("another name"), "{ended:?}");
        host.registry.move_behind(Door::default())?;
        let ended = host.upgrade().await?.failed("RegistryError")?;
        assert!(
            ended.error_message.contains("registry.insecure"),
            "{ended:?}"
        );
        host.configure(&format!("[registry]\ninsecure = [\"{name}\"]\n"))?;
        let ended = host.upgrade().await?.succeeded()?;
        assert!(!ended.value::<bool>("changed")?, "{ended:?}");
        Ok(())
    }

    #[tokio::test]
    async fn the_way_through_a_proxy_is_the_environments() -> Result<()> {
        let mut host = Host::boot()?;
        host.configure("[registry]\nretry_time = \"0s\"\n")?;
        let image = publish(&host)?;
        let (name, authority) = behind_tls(&mut host)?;
        host.track(&format!("{name}/os:latest"))?;
        let authority = inside(&authority)?;
        // Nothing but the proxy knows the name.
        host.set_environment(&[("SSL_CERT_FILE", &authority)])?;
        fails(&host, "RegistryUnreachable", &["registry.test"]).await?;

        let proxy = Relay::to_port(host.registry.port())?;
        proxy.rule(|request| match request.method.as_str() {
            "CONNECT" => Way::Answer(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
            _ => Way::Pass,
        });
        let through = format!("http://alice:hunter2@{}", proxy.host());
        host.set_environment(&[("HTTPS_PROXY", &through), ("NO_PROXY", "registry.test")])?;
        fails(&host, "RegistryUnreachable", &["HTTPS_PROXY is set"]).await?;
        assert!(proxy.requests().is_empty());
        host.set_environment(&[("NO_PROXY", "other.test")])?;
        succeeds(&host, &image).await?;
        let requests = proxy.requests();
        let first = requests.first().context("no request")?;
        assert_eq!((&*first.method, &*first.path), ("CONNECT", &*name));
        let password = first.header("proxy-authorization").context("no password")?;
        assert_eq!(password, format!("Basic {KNOWN}"));
        host.set_environment(&[("HTTPS_PROXY", "socks5://127.0.0.1")])?;
        let ended = host.upgrade().await?.failed("ConfigInvalid")?;
        assert!(ended.error_message.contains("HTTPS_PROXY"), "{ended:?}");
        Ok(())
    }
}
