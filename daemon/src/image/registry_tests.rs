//! The registry client against a hand-made HTTP server on loopback, which can misbehave as no real
//! registry would on request.

mod answers;
mod login;
mod parallel;
mod parts;
mod redirects;
mod referrers;
mod resuming;
mod retrying;
mod unchanged;
mod way;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::layer::Layer;
use super::layout::{LayoutError, host_architecture};
use super::reference::{Digest, ImageReference};
use super::test_images::{TestImage, bytes, image, index};
use super::{Backoff, Error, RegistryConfig, Source, blob};

/// What came in: what follows the method (the path with its query), some of the headers, and the body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    authorization: Option<String>,
    range: Option<String>,
    referer: Option<String>,
    body: String,
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
        self.source_with(hasty())
    }

    fn source_with(&self, config: RegistryConfig) -> Source {
        let reference: ImageReference = format!("docker://{}/ns/os:1", self.address)
            .parse()
            .unwrap();
        Source::open(&reference, &config).unwrap()
    }

    /// How often each path was asked for.
    fn count(&self, path: &str) -> usize {
        self.paths().iter().filter(|asked| *asked == path).count()
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
    let (mut request, mut length) = (Request::default(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if request.method.is_empty() {
            let mut words = line.split(' ').map(str::to_owned);
            request.method = words.next().unwrap_or_default();
            request.path = words.next().unwrap_or_default();
        }
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" | "proxy-authorization" => request.authorization = Some(value.into()),
            "range" => request.range = Some(value.into()),
            "referer" => request.referer = Some(value.into()),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    request.body = String::from_utf8(body).unwrap();
    let answer = handler(&request, &address);
    let mut bytes = answer.bytes;
    if request.method == "HEAD" {
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n");
        bytes.truncate(head.map_or(bytes.len(), |at| at + 4));
    }
    log.lock().unwrap().push(request);
    let _ = stream.write_all(&bytes).await;
    let _ = stream.flush().await;
    match answer.then {
        Then::Close => {
            let _ = stream.shutdown().await;
        }
        Then::Reset => drop(stream.into_inner().set_zero_linger()),
        Then::Stall => std::future::pending().await,
    }
}

/// As little patience with failures as a test needs: one that is tried again shows within milliseconds.
/// A slow machine is no failure.
fn hasty() -> RegistryConfig {
    RegistryConfig {
        backoff: Backoff {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(4),
            give_up: Duration::from_millis(200),
        },
        ..RegistryConfig::default()
    }
}

/// Hardly any patience with silence, for servers that never end it.
fn curt() -> RegistryConfig {
    RegistryConfig {
        read_timeout: Duration::from_millis(300),
        response_timeout: Duration::from_millis(300),
        ..hasty()
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
            ..hasty()
        },
    )
}

/// `alice:hunter2`
const ALICE: &str = "YWxpY2U6aHVudGVyMg==";

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
async fn anonymous_registries_are_asked_nothing_twice() {
    let given = Arc::new(small());
    let image = given.clone();
    let server = Server::start(move |request, _| served(&image, &request.path)).await;
    let source = server.source();
    let found = source.resolve(None).await.unwrap();
    assert_eq!(found.digest, given.digest());
    assert_eq!(found.require_bootable(host_architecture()), Ok(()));
    let layer = blob::collect(source.blob(&found.layers[0], 0).await.unwrap())
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
