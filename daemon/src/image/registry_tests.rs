//! The registry client against a hand-made HTTP server on loopback, which can misbehave as no real
//! registry would on request.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::layout::{Layer, LayoutError, host_architecture};
use super::reference::{Digest, ImageReference};
use super::test_images::{TestImage, bytes, image, index};
use super::{Error, RegistryConfig, Source, blob};

/// What came in: the path with its query, and the value of `Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    path: String,
    authorization: Option<String>,
}

/// What happens after the bytes of an answer.
#[derive(Clone, Copy)]
enum Then {
    Close,
    Reset,
    Stall,
}

struct Answer {
    bytes: Vec<u8>,
    then: Then,
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Answer {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    Answer {
        bytes: [head.as_bytes(), body].concat(),
        then: Then::Close,
    }
}

fn ok(body: &[u8]) -> Answer {
    answer("200 OK", "", body)
}

/// An answer that announces `length` bytes and sends only these.
fn partial(length: usize, body: &[u8], then: Then) -> Answer {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    Answer {
        bytes: [head.as_bytes(), body].concat(),
        then,
    }
}

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    _tasks: JoinSet<()>,
}

type Handler = dyn Fn(&Request, &str) -> Answer + Send + Sync;

impl Server {
    /// Answers every request by the handler, which is also told the server's own address.
    async fn start(handler: impl Fn(&Request, &str) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, own_address) = (requests.clone(), address.clone());
        let handler: Arc<Handler> = Arc::new(handler);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(
                    stream,
                    log.clone(),
                    handler.clone(),
                    own_address.clone(),
                ));
            }
        });
        Server {
            address,
            requests,
            _tasks: tasks,
        }
    }

    fn source(&self) -> Source {
        self.source_with(RegistryConfig::default())
    }

    fn source_with(&self, config: RegistryConfig) -> Source {
        let reference: ImageReference = format!("docker://{}/ns/os:1", self.address)
            .parse()
            .unwrap();
        let config = RegistryConfig {
            read_timeout: Duration::from_millis(300),
            ..config
        };
        Source::open(&reference, &config).unwrap()
    }

    fn paths(&self) -> Vec<String> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .map(|request| request.path.clone())
            .collect()
    }
}

async fn serve(
    stream: TcpStream,
    log: Arc<Mutex<Vec<Request>>>,
    handler: Arc<Handler>,
    address: String,
) {
    let mut stream = BufReader::new(stream);
    let mut request = Request {
        path: String::new(),
        authorization: None,
    };
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("GET ") {
            request.path = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                request.authorization = Some(value.to_owned());
            }
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    let answer = handler(&request, &address);
    log.lock().unwrap().push(request);
    let _ = stream.write_all(&answer.bytes).await;
    let _ = stream.flush().await;
    match answer.then {
        Then::Close => {
            let _ = stream.shutdown().await;
        }
        Then::Reset => drop(stream.into_inner().set_zero_linger()),
        Then::Stall => std::future::pending().await,
    }
}

fn small() -> TestImage {
    image(
        host_architecture(),
        &[("containers.bootc", "1")],
        &[b"the one layer"],
    )
}

/// Serves an image under the tag `1` and its digests, everything else is unknown.
fn served(image: &TestImage, path: &str) -> Answer {
    let manifest = bytes(&image.manifest);
    let Some(name) = path.strip_prefix("/v2/ns/os/") else {
        return answer("404 Not Found", "", b"");
    };
    let mut blobs = image.blobs.clone();
    blobs.push(bytes(&image.config));
    let blob = blobs
        .iter()
        .find(|blob| name == format!("blobs/{}", Digest::of(blob)));
    match (name, blob) {
        (_, Some(blob)) => ok(blob),
        (name, _) if name == "manifests/1" || name == format!("manifests/{}", image.digest()) => {
            answer(
                "200 OK",
                &format!("docker-content-digest: {}\r\n", image.digest()),
                &manifest,
            )
        }
        _ => answer(
            "404 Not Found",
            "",
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#,
        ),
    }
}

fn auth_file(server: &Server, text: &str) -> (tempfile::TempDir, RegistryConfig) {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("auth.json");
    std::fs::write(&path, text.replace("HOST", &server.address)).unwrap();
    (
        directory,
        RegistryConfig {
            auth_files: vec![path],
            ..RegistryConfig::default()
        },
    )
}

/// `alice:hunter2`
const ALICE: &str = "YWxpY2U6aHVudGVyMg==";

#[tokio::test]
async fn anonymous_registries_are_asked_nothing_twice() {
    let given = Arc::new(small());
    let image = given.clone();
    let server = Server::start(move |request, _| served(&image, &request.path)).await;
    let source = server.source();
    let found = source.resolve(None).await.unwrap();
    assert_eq!(found.digest, given.digest());
    assert_eq!(found.require_bootable(host_architecture()), Ok(()));
    let layer = blob::collect(source.blob(&found.layers[0]).await.unwrap())
        .await
        .unwrap();
    assert_eq!(&layer[..], b"the one layer");
    assert_eq!(
        server.paths(),
        [
            "/v2/ns/os/manifests/1".to_owned(),
            format!("/v2/ns/os/blobs/{}", found.config_digest),
            format!("/v2/ns/os/blobs/{}", found.layers[0].digest),
        ]
    );
}

#[tokio::test]
async fn an_index_leads_to_this_machine() {
    let given = small();
    let platform = format!("linux/{}", host_architecture());
    let other = image("vax", &[], &[b"other"]);
    let document = bytes(&index(&[
        ("linux/vax", &other.manifest),
        (&platform, &given.manifest),
    ]));
    let (index_digest, digest) = (Digest::of(&document), given.digest());
    let by_digest = format!("/v2/ns/os/manifests/{index_digest}");
    let server = Server::start(move |request, _| match request.path.as_str() {
        path if path == "/v2/ns/os/manifests/1" || path == by_digest => ok(&document),
        path => served(&given, path),
    })
    .await;
    for pin in [None, Some(&index_digest)] {
        let found = server.source().resolve(pin).await.unwrap();
        assert_eq!(found.digest, digest);
        assert_eq!(found.index_digest.as_ref(), Some(&index_digest));
    }
    let found = server.source().resolve(Some(&digest)).await.unwrap();
    assert_eq!((found.digest, found.index_digest), (digest, None));
}

/// A registry that wants a bearer token, and its token server, which knows alice or anyone.
fn with_token(image: &TestImage, request: &Request, address: &str, anonymous: bool) -> Answer {
    let authorization = request.authorization.as_deref();
    if let Some(query) = request.path.strip_prefix("/token?") {
        let scoped =
            query.contains("scope=repository%3Ans%2Fos%3Apull") && query.contains("service=here");
        let known = anonymous || authorization == Some(&format!("Basic {ALICE}"));
        return match scoped && known {
            true => ok(br#"{"token":"sesame"}"#),
            false => answer("401 Unauthorized", "", b"who is that with hunter2?"),
        };
    }
    if authorization != Some("Bearer sesame") {
        let challenge = format!(r#"Bearer realm="http://{address}/token",service="here""#);
        return answer(
            "401 Unauthorized",
            &format!("www-authenticate: {challenge}\r\n"),
            b"",
        );
    }
    served(image, &request.path)
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_for_everything() {
    for anonymous in [true, false] {
        let given = small();
        let server =
            Server::start(move |request, address| with_token(&given, request, address, anonymous))
                .await;
        let (_directory, config) = auth_file(
            &server,
            &format!(r#"{{"auths":{{"HOST/ns":{{"auth":"{ALICE}"}}}}}}"#),
        );
        let config = if anonymous {
            RegistryConfig::default()
        } else {
            config
        };
        let source = server.source_with(config);
        let found = source.resolve(None).await.unwrap();
        let streams =
            futures_util::future::join_all((0..4).map(|_| source.blob(&found.layers[0]))).await;
        assert!(streams.iter().all(Result::is_ok));
        let paths = server.paths();
        let tokens = paths
            .iter()
            .filter(|path| path.starts_with("/token"))
            .count();
        assert_eq!(tokens, 1, "{paths:?}");
        assert!(!format!("{source:?}").contains("sesame"));
    }
}

#[tokio::test]
async fn a_token_that_expired_is_replaced_once() {
    let given = Arc::new(small());
    let issued = Arc::new(Mutex::new(0));
    let (image, count) = (given.clone(), issued.clone());
    let server = Server::start(move |request, address| {
        let mut count = count.lock().unwrap();
        if request.path.starts_with("/token?") {
            *count += 1;
            return ok(format!(r#"{{"access_token":"number-{count}"}}"#).as_bytes());
        }
        if request.authorization != Some(format!("Bearer number-{count}")) {
            let challenge =
                format!("www-authenticate: Bearer realm=\"http://{address}/token\"\r\n");
            return answer("401 Unauthorized", &challenge, b"");
        }
        served(&image, &request.path)
    })
    .await;
    let source = server.source();
    let found = source.resolve(None).await.unwrap();
    *issued.lock().unwrap() = 7;
    let streams =
        futures_util::future::join_all((0..3).map(|_| source.blob(&found.layers[0]))).await;
    assert!(streams.iter().all(Result::is_ok));
    assert_eq!(*issued.lock().unwrap(), 8);
}

#[tokio::test]
async fn basic_credentials_are_sent_when_asked_for() {
    let given = small();
    let server = Server::start(move |request, _| {
        match request.authorization == Some(format!("Basic {ALICE}")) {
            true => served(&given, &request.path),
            false => answer(
                "401 Unauthorized",
                "www-authenticate: Basic realm=\"x\"\r\n",
                b"",
            ),
        }
    })
    .await;
    let (_directory, config) = auth_file(
        &server,
        &format!(r#"{{"auths":{{"HOST":{{"auth":"{ALICE}"}}}}}}"#),
    );
    assert!(server.source_with(config).resolve(None).await.is_ok());
    let without = RegistryConfig {
        auth_files: Vec::new(),
        ..RegistryConfig::default()
    };
    let error = server.source_with(without).resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Auth { .. }), "{error}");
}

#[tokio::test]
async fn every_refusal_is_an_auth_error_without_secrets() {
    let given = small();
    let server =
        Server::start(move |request, address| with_token(&given, request, address, false)).await;
    // mallory:hunter2
    let mallory = r#"{"auths":{"HOST":{"auth":"bWFsbG9yeTpodW50ZXIy"}}}"#;
    let (_directory, config) = auth_file(&server, mallory);
    let error = server.source_with(config).resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Auth { .. }), "{error}");
    assert!(
        !format!("{error} {error:?}").contains("hunter2"),
        "{error:?}"
    );

    for (status, challenge) in [
        ("401 Unauthorized", ""),
        ("401 Unauthorized", "www-authenticate: Negotiate\r\n"),
        ("403 Forbidden", ""),
    ] {
        let body = br#"{"errors":[{"code":"DENIED","message":"members only"}]}"#;
        let server = Server::start(move |_, _| answer(status, challenge, body)).await;
        let error = server.source().resolve(None).await.unwrap_err();
        assert!(matches!(error, Error::Auth { .. }), "{error}");
        assert!(error.to_string().contains("auth.json"), "{error}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let server = Server::start(|_, _| answer("404 Not Found", "", b"")).await;
    let source = server.source();
    let error = source.resolve(None).await.unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { what } if what.ends_with("/ns/os:1")),
        "{error}"
    );
    let error = source.resolve(Some(&Digest::of(b""))).await.unwrap_err();
    assert!(matches!(error, Error::DigestGone { .. }), "{error}");
    let error = source.blob(&layer(b"x", 1)).await.err().unwrap();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(!error.is_retryable());
}

fn layer(content: &[u8], size: u64) -> Layer {
    let given = image(host_architecture(), &[], &[content]);
    let found = super::layout::Image::parse(
        given.digest(),
        None,
        &bytes(&given.manifest),
        &bytes(&given.config),
    );
    Layer {
        size,
        ..found.unwrap().layers[0].clone()
    }
}

#[tokio::test]
async fn wrong_digests_are_refused() {
    let given = small();
    let manifest = bytes(&given.manifest);
    // By digest, other bytes than asked for; by tag, other bytes than the header announces.
    let header = format!(
        "docker-content-digest: {}\r\n",
        Digest::of(b"something else")
    );
    let server = Server::start(move |_, _| answer("200 OK", &header, &manifest)).await;
    for pin in [None, Some(&Digest::of(b"wanted"))] {
        let error = server.source().resolve(pin).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::DigestMismatch {
                    what: "manifest",
                    ..
                }
            ),
            "{error}"
        );
    }
    let server = Server::start(move |request, _| match request.path.contains("/blobs/") {
        true => ok(&vec![b' '; bytes(&given.config).len()]),
        false => served(&given, &request.path),
    })
    .await;
    let error = server.source().resolve(None).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::DigestMismatch {
                what: "configuration",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn schema_1_is_named() {
    let header = format!(
        "docker-content-digest: {}\r\n",
        Digest::of(b"only the payload")
    );
    let server =
        Server::start(move |_, _| answer("200 OK", &header, br#"{"schemaVersion":1}"#)).await;
    let error = server.source().resolve(None).await.unwrap_err();
    assert!(
        matches!(error, Error::Invalid(LayoutError::Schema1)),
        "{error}"
    );
}

#[tokio::test]
async fn long_manifests_are_given_up_on() {
    let config = || RegistryConfig {
        max_manifest_bytes: 1000,
        ..RegistryConfig::default()
    };
    // Announced: nothing of it is read.
    let server = Server::start(|_, _| partial(1001, b"", Then::Stall)).await;
    let error = server
        .source_with(config())
        .resolve(None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    // Not announced: the connection stays open, so this ends only because reading stops.
    let server = Server::start(|_, _| {
        let body = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[b' '; 2000]].concat();
        Answer {
            bytes: body,
            then: Then::Stall,
        }
    })
    .await;
    let error = server
        .source_with(config())
        .resolve(None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

async fn first_error(source: &Source, layer: &Layer) -> Error {
    match source.blob(layer).await {
        Ok(stream) => blob::collect(stream).await.unwrap_err(),
        Err(error) => error,
    }
}

#[tokio::test]
async fn connections_that_break_or_stall_are_worth_another_try() {
    for then in [Then::Close, Then::Reset, Then::Stall] {
        let server = Server::start(move |_, _| partial(10, b"12345", then)).await;
        let error = first_error(&server.source(), &layer(b"1234567890", 10)).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.is_retryable());
    }
    let server = Server::start(|_, _| Answer {
        bytes: Vec::new(),
        then: Then::Stall,
    })
    .await;
    let error = server.source().resolve(None).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { reason, .. } if reason.contains("too long")),
        "{error}"
    );

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference: ImageReference = format!("docker://{address}/os").parse().unwrap();
    let source = Source::open(&reference, &RegistryConfig::default()).unwrap();
    let error = source.resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn bytes_before_a_break_arrive() {
    let server = Server::start(|_, _| partial(10, b"12345", Then::Close)).await;
    let mut stream = server
        .source()
        .blob(&layer(b"1234567890", 10))
        .await
        .unwrap();
    assert_eq!(&stream.next().await.unwrap().unwrap()[..], b"12345");
    assert!(stream.next().await.unwrap().is_err());
}

#[tokio::test]
async fn blobs_of_another_size_are_refused() {
    let server = Server::start(|_, _| ok(b"12345")).await;
    let error = first_error(&server.source(), &layer(b"1234", 4)).await;
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    // Without an announced length the end of the connection is the end of the blob.
    let bytes = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n12345".to_vec();
    let server = Server::start(move |_, _| Answer {
        bytes: bytes.clone(),
        then: Then::Close,
    })
    .await;
    for size in [4, 6] {
        let error = first_error(&server.source(), &layer(b"", size)).await;
        assert!(matches!(error, Error::Protocol { .. }), "{size}: {error}");
    }
}

#[tokio::test]
async fn overload_is_temporary_and_nonsense_is_not() {
    for (status, retryable) in [
        ("429 Too Many Requests", true),
        ("502 Bad Gateway", true),
        ("503 Service Unavailable", true),
        ("500 Internal Server Error", false),
        ("206 Partial Content", false),
        ("418 I'm a teapot", false),
    ] {
        let server = Server::start(move |_, _| answer(status, "", b"<html>")).await;
        let error = server.source().resolve(None).await.unwrap_err();
        assert_eq!(error.is_retryable(), retryable, "{error}");
        assert!(
            retryable || matches!(error, Error::Protocol { .. }),
            "{error}"
        );
    }
    let server = Server::start(|_, _| Answer {
        bytes: b"SSH-2.0-x\r\n".to_vec(),
        then: Then::Close,
    })
    .await;
    assert!(server.source().resolve(None).await.is_err());
    let server = Server::start(|_, _| ok(b"<html>")).await;
    let error = server.source().resolve(None).await.unwrap_err();
    assert!(
        matches!(error, Error::Invalid(LayoutError::Unreadable { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_redirect_elsewhere_takes_no_token_along() {
    let elsewhere = Server::start(|_, _| ok(b"moved")).await;
    let (given, target) = (small(), elsewhere.address.clone());
    let server = Server::start(move |request, address| {
        match request.path.contains(Digest::of(b"moved").hex()) {
            true if request.authorization.is_some() => {
                let location = format!("location: http://{target}/blob\r\n");
                answer("307 Temporary Redirect", &location, b"")
            }
            _ => with_token(&given, request, address, true),
        }
    })
    .await;
    let source = server.source();
    let stream = source.blob(&layer(b"moved", 5)).await.unwrap();
    assert_eq!(&blob::collect(stream).await.unwrap()[..], b"moved");
    let request = Request {
        path: "/blob".to_owned(),
        authorization: None,
    };
    assert_eq!(*elsewhere.requests.lock().unwrap(), [request]);
}

#[tokio::test]
async fn redirects_of_blobs_are_followed() {
    let server = Server::start(|request, address| match request.path.as_str() {
        "/elsewhere?signature=s" => ok(b"moved"),
        _ => {
            let location = format!("location: http://{address}/elsewhere?signature=s\r\n");
            answer("307 Temporary Redirect", &location, b"")
        }
    })
    .await;
    let source = server.source();
    let stream = source.blob(&layer(b"moved", 5)).await.unwrap();
    assert_eq!(&blob::collect(stream).await.unwrap()[..], b"moved");

    let server = Server::start(|request, address| {
        let location = format!("location: http://{address}{}x\r\n", request.path);
        answer("307 Temporary Redirect", &location, b"")
    })
    .await;
    let error = first_error(&server.source(), &layer(b"moved", 5)).await;
    assert!(
        matches!(&error, Error::Protocol { reason, .. } if !reason.contains("http")),
        "{error}"
    );
}
