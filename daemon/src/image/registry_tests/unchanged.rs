//! Whether a reference still means what it meant, for as little as possible.

use super::*;

/// The method and the path of each request.
fn asked(server: &Server) -> Vec<(String, String)> {
    let requests = server.requests.lock().unwrap();
    let asked = requests.iter().map(|request| {
        let path = request.path.split('?').next().unwrap_or_default();
        (request.method.clone(), path.to_owned())
    });
    asked.collect()
}

fn head() -> (String, String) {
    ("HEAD".to_owned(), "/v2/ns/os/manifests/1".to_owned())
}

fn token() -> (String, String) {
    ("GET".to_owned(), "/token".to_owned())
}

#[tokio::test]
async fn one_small_request_tells_that_nothing_is_new() {
    let given = Arc::new(small());
    let image = given.clone();
    let server = Server::start(move |request, _| served(&image, &request.path)).await;
    let source = server.source();
    assert!(source.still_means(&given.digest()).await.unwrap());
    assert_eq!(asked(&server), [head()]);
    assert!(!source.still_means(&Digest::of(b"old")).await.unwrap());
    assert_eq!(asked(&server), [head(), head()]);
}

#[tokio::test]
async fn a_registry_that_does_not_say_has_to_be_asked_for_more() {
    let digest = small().digest();
    let header = format!("docker-content-digest: {digest}\r\n");
    let other = format!("docker-content-digest: {}x\r\n", digest);
    for (status, headers) in [
        ("200 OK", ""),
        ("200 OK", &*other),
        ("404 Not Found", &header),
        ("405 Method Not Allowed", &header),
        ("403 Forbidden", ""),
        ("500 Internal Server Error", ""),
        ("503 Service Unavailable", "retry-after: 100\r\n"),
        (
            "401 Unauthorized",
            "www-authenticate: Basic realm=\"x\"\r\n",
        ),
        ("401 Unauthorized", "www-authenticate: Unknown\r\n"),
    ] {
        let headers = headers.to_owned();
        let server = Server::start(move |_, _| answer(status, &headers, b"")).await;
        let source = server.source();
        assert!(!source.still_means(&digest).await.unwrap(), "{status}");
        assert_eq!(asked(&server), [head()], "{status}");
    }
}

#[tokio::test]
async fn a_registry_that_is_out_of_reach_is_waited_for_and_told() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let reference: ImageReference = format!("docker://{address}/ns/os:1").parse().unwrap();
    let source = Source::open(&reference, &hasty()).unwrap();
    let error = source.still_means(&small().digest()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_token_is_fetched_before_the_registry_asks_if_it_asked_before() {
    let given = Arc::new(small());
    let image = given.clone();
    let server =
        Server::start(move |request, address| with_token(&image, request, address, true)).await;
    let config = hasty();
    let source = server.source_with(config.clone());
    assert!(source.still_means(&given.digest()).await.unwrap());
    assert_eq!(asked(&server), [head(), token(), head()]);

    server.requests.lock().unwrap().clear();
    let source = server.source_with(config.clone());
    assert!(source.still_means(&given.digest()).await.unwrap());
    assert_eq!(asked(&server), [token(), head()]);

    // As a process does that knows what the one before it knew.
    server.requests.lock().unwrap().clear();
    let reference: ImageReference = format!("docker://{}/ns/os:1", server.address)
        .parse()
        .unwrap();
    let known = config.remembered.token_server(&reference).unwrap();
    assert_eq!(known.1.as_deref(), Some("here"));
    let config = hasty();
    assert_eq!(config.remembered.token_server(&reference), None);
    config.remembered.expect_token_server(&reference, known);
    let source = server.source_with(config.clone());
    assert!(source.still_means(&given.digest()).await.unwrap());
    assert_eq!(asked(&server), [token(), head()]);
    assert!(!format!("{config:?}").contains("sesame"));
}

#[tokio::test]
async fn a_token_server_that_moved_or_is_gone_is_forgotten() {
    let given = Arc::new(small());
    let image = given.clone();
    let server =
        Server::start(move |request, address| with_token(&image, request, address, true)).await;
    let reference: ImageReference = format!("docker://{}/ns/os:1", server.address)
        .parse()
        .unwrap();
    for old in ["http://127.0.0.1:1/token", "http://127.0.0.1:2/token"] {
        let config = hasty();
        let known = (old.to_owned(), None);
        config.remembered.expect_token_server(&reference, known);
        let source = server.source_with(config.clone());
        assert!(source.still_means(&given.digest()).await.unwrap());
        let known = config.remembered.token_server(&reference).unwrap();
        assert!(known.0.contains(&server.address), "{known:?}");
    }
    // What is no address is not even tried.
    let config = hasty();
    let nonsense = ("nonsense".to_owned(), None);
    config.remembered.expect_token_server(&reference, nonsense);
    assert_eq!(config.remembered.token_server(&reference), None);
}
