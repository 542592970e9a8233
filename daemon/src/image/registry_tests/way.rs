//! The way to a registry: proxies, and answers that lead elsewhere.

use super::*;
use crate::image::Proxies;
use crate::image::connection::{Connection, Redirects};

fn registry(name: &str, config: RegistryConfig) -> Source {
    Source::open(&name.parse().unwrap(), &config).unwrap()
}

fn proxies(variables: &[(&str, &str)]) -> Proxies {
    Proxies::from_variables(|name| {
        let set = variables.iter().find(|(known, _)| *known == name);
        set.map(|(_, value)| (*value).to_owned())
    })
}

#[tokio::test]
async fn plain_http_goes_through_its_proxy_unless_it_is_to_be_direct() {
    let given = Arc::new(small());
    let image = given.clone();
    let proxy = Server::start(move |request, _| {
        let url = request.path.strip_prefix("http://registry.test:5000");
        served(&image, url.unwrap_or("not for a proxy"))
    })
    .await;
    let through = format!("http://alice:hunter2@{}", proxy.address);
    let image = given.clone();
    let server = Server::start(move |request, _| served(&image, &request.path)).await;
    // Loopback, although nothing says so.
    let nearby = server.address.replace("127.0.0.1", "0.0.0.0");
    let config = |direct| RegistryConfig {
        insecure: vec!["registry.test:5000".to_owned(), nearby.clone()],
        proxies: proxies(&[("HTTP_PROXY", &through), ("NO_PROXY", direct)]),
        ..hasty()
    };
    let far = registry("docker://registry.test:5000/ns/os:1", config("other.test"));
    assert_eq!(far.resolve(None).await.unwrap().digest, given.digest());
    let first = proxy.requests.lock().unwrap()[0].clone();
    assert_eq!(first.path, "http://registry.test:5000/v2/ns/os/manifests/1");
    assert_eq!(first.authorization, Some(format!("Basic {ALICE}")));
    assert!(!format!("{far:?}").contains("hunter2"));

    let asked = proxy.paths().len();
    let name = format!("docker://{nearby}/ns/os:1");
    let direct = registry(&name, config(&nearby));
    assert!(direct.resolve(None).await.is_ok());
    assert!(server.source_with(config("")).resolve(None).await.is_ok());
    assert_eq!(proxy.paths().len(), asked);
    let through = registry(&name, config("other.test"));
    let error = through.resolve(None).await.unwrap_err();
    assert!(
        matches!(error, Error::NotFound { .. }),
        "the proxy knows it not: {error}"
    );
    assert_eq!(proxy.paths().len(), asked + 1);
}

#[tokio::test]
async fn tls_asks_its_proxy_for_a_tunnel() {
    let proxy = Server::start(|_, _| answer("502 Bad Gateway", "", b"")).await;
    let config = RegistryConfig {
        proxies: proxies(&[
            ("https_proxy", &proxy.address),
            ("HTTP_PROXY", "other.test"),
        ]),
        ..hasty()
    };
    let source = registry("docker://registry.test/ns/os:1", config);
    let error = source.resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(
        error.to_string().contains("(https_proxy is set)"),
        "{error}"
    );
    let request = proxy.requests.lock().unwrap()[0].clone();
    assert_eq!(
        (&*request.method, &*request.path),
        ("CONNECT", "registry.test:443")
    );
}

#[tokio::test]
async fn a_proxy_that_makes_no_sense_is_not_gone_around() {
    let config = RegistryConfig {
        proxies: proxies(&[("HTTPS_PROXY", "socks5://proxy.test")]),
        ..hasty()
    };
    let source = registry("docker://registry.test/ns/os:1", config);
    let error = source.resolve(None).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Proxy {
                variable: "HTTPS_PROXY",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_is_asked_once() {
    let proxy = Server::start(|_, _| {
        let header = "proxy-authenticate: Basic realm=\"x\"\r\n";
        answer("407 Proxy Authentication Required", header, b"")
    })
    .await;
    let config = RegistryConfig {
        insecure: vec!["plain.test".to_owned()],
        proxies: proxies(&[
            ("HTTP_PROXY", &proxy.address),
            (
                "https_proxy",
                &format!("http://mallory:hunter2@{}", proxy.address),
            ),
        ]),
        ..hasty()
    };
    for (number, (name, variable)) in [
        ("docker://registry.test/ns/os:1", "https_proxy"),
        ("docker://plain.test/ns/os:1", "HTTP_PROXY"),
    ]
    .into_iter()
    .enumerate()
    {
        let error = registry(name, config.clone())
            .resolve(None)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Proxy { .. }), "{error:?}");
        assert!(!error.is_retryable());
        let text = format!("{error} {error:?}");
        assert!(text.contains(variable), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(proxy.paths().len(), number + 1);
    }
}

fn redirect(location: &str) -> Answer {
    let header = format!("location: {location}\r\n");
    answer("307 Temporary Redirect", &header, b"")
}

/// A layer with this content.
fn layer(content: &[u8]) -> Layer {
    let given = image(host_architecture(), &[], &[content]);
    let (manifest, config) = (bytes(&given.manifest), bytes(&given.config));
    let found = crate::image::layout::Image::parse(given.digest(), None, &manifest, &config);
    found.unwrap().layers[0].clone()
}

#[tokio::test]
async fn a_redirect_elsewhere_takes_no_token_along() {
    let elsewhere = Server::start(|_, _| ok(b"moved")).await;
    let (given, target) = (small(), elsewhere.address.clone());
    let server = Server::start(move |request, address| {
        match request.path.contains(Digest::of(b"moved").hex()) {
            true if request.authorization.is_some() => redirect(&format!("http://{target}/blob")),
            _ => with_token(&given, request, address, true),
        }
    })
    .await;
    let source = server.source();
    let stream = source.blob(&layer(b"moved"), 0).await.unwrap();
    assert_eq!(&blob::collect(stream).await.unwrap()[..], b"moved");
    let request = Request {
        method: "GET".to_owned(),
        path: "/blob".to_owned(),
        ..Request::default()
    };
    assert_eq!(*elsewhere.requests.lock().unwrap(), [request]);
}

#[tokio::test]
async fn another_host_is_given_no_credentials_although_it_asks() {
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let elsewhere = Server::start(move |_, address| {
            let header = format!(
                "www-authenticate: Basic realm=\"x\"\r\n\
                 www-authenticate: Bearer realm=\"http://{address}/token\"\r\n"
            );
            answer(status, &header, b"")
        })
        .await;
        let target = elsewhere.address.clone();
        let server = Server::start(move |_, _| redirect(&format!("http://{target}/blob"))).await;
        let file = format!(r#"{{"auths":{{"HOST":{{"auth":"{ALICE}"}}}}}}"#);
        let (_directory, config) = auth_file(&server, &file);
        let source = server.source_with(config);
        let error = source.blob(&layer(b"moved"), 0).await.err().unwrap();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert!(error.to_string().contains("leads to 127.0.0.1"), "{error}");
        assert_eq!(elsewhere.paths(), ["/blob"]);
        let requests = [server.requests, elsewhere.requests];
        for request in requests.iter().flat_map(|all| all.lock().unwrap().clone()) {
            assert_eq!(request.authorization, None, "{request:?}");
        }
    }
}

#[tokio::test]
async fn http_2_is_offered_where_there_is_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connection = Connection::new(&address, false, Redirects::Follow, &hasty());
    let client = connection.client().await.unwrap();
    let request = client.get(format!("https://{address}/v2/"));
    let listening = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = Vec::new();
        let protocols = b"\x02h2\x08http/1.1";
        // The beginning of the handshake is not encrypted, and comes in one piece or in several.
        while !hello.windows(protocols.len()).any(|part| part == protocols) {
            assert_ne!(stream.read_buf(&mut hello).await.unwrap(), 0, "{hello:?}");
            assert!(hello.len() < 20_000);
        }
    };
    let (failed, ()) = tokio::join!(connection.send(request), listening);
    assert!(matches!(failed, Err(Error::Unreachable { .. })));
}
