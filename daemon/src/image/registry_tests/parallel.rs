//! Long blobs: several parts at a time, in order, and whatever the registry does about it.

use std::sync::LazyLock;

use super::*;
use crate::image::Listener;

/// What one request asks for.
const PART: usize = (8 << 20) - (64 << 10);

/// Five parts, the last of them short.
const LENGTH: usize = (32 << 20) + 1234;

/// Bytes that tell where they are.
fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let words = (0..LENGTH as u32 / 4 + 1).flat_map(u32::to_be_bytes);
        words.take(LENGTH).collect()
    });
    &CONTENT
}

/// Its digest is never compared here, so any will do.
fn layer() -> Layer {
    Layer {
        size: LENGTH as u64,
        ..super::resuming::layer()
    }
}

fn range_of(request: &Request) -> Option<(usize, usize)> {
    let range = request.range.as_ref()?.strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    Some((first.parse().unwrap(), last.parse().unwrap()))
}

/// Bytes `first` to `last` as a partial answer of which only `sent` come.
fn part(first: usize, last: usize, sent: usize) -> Answer {
    let length = last - first + 1;
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nconnection: close\r\ncontent-length: {length}\r\n\
         content-range: bytes {first}-{last}/{LENGTH}\r\n\r\n"
    );
    let end = (first + sent).min(last + 1);
    Answer {
        bytes: [head.as_bytes(), &content()[first..end]].concat(),
        then: Then::Close,
    }
}

fn patient() -> RegistryConfig {
    super::resuming::patient()
}

async fn fetched(server: &Server, from: usize) -> Vec<Option<(usize, usize)>> {
    fetched_with(patient(), server, from).await
}

async fn fetched_with(
    config: RegistryConfig,
    server: &Server,
    from: usize,
) -> Vec<Option<(usize, usize)>> {
    let source = server.source_with(config);
    let stream = source.blob(&layer(), from as u64).await.unwrap();
    let bytes = blob::collect(stream).await.unwrap();
    assert!(bytes == content()[from..], "{} bytes", bytes.len());
    let requests = server.requests.lock().unwrap();
    requests.iter().map(range_of).collect()
}

#[tokio::test]
async fn parts_are_asked_for_side_by_side_and_delivered_in_order() {
    let server = Server::start(|request, _| match range_of(request) {
        Some((first, last)) => part(first, last, LENGTH),
        None => ok(content()),
    })
    .await;
    for from in [0, 3] {
        let mut asked = fetched(&server, from).await;
        asked.sort();
        let parts = (from..LENGTH).step_by(PART);
        let parts: Vec<_> = parts
            .map(|first| Some((first, (first + PART).min(LENGTH) - 1)))
            .collect();
        assert_eq!(asked, parts);
        server.requests.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn what_nobody_takes_is_not_asked_for() {
    let server = Server::start(|request, _| {
        let (first, last) = range_of(request).unwrap();
        part(first, last, LENGTH)
    })
    .await;
    let source = server.source();
    let mut stream = source.blob(&layer(), 0).await.unwrap();
    let (mut seen, mut two_more) = (0, None);
    while seen < PART {
        seen += stream.next().await.unwrap().unwrap().len();
        if server.paths().len() >= 3 {
            two_more.get_or_insert(seen);
        }
        // The server has the same thread.
        tokio::task::yield_now().await;
    }
    assert!(two_more.is_some_and(|seen| seen < PART), "{two_more:?}");
    let asked = server.paths().len();
    assert!(asked <= 4, "{asked}");
    drop(stream);
    let mut later = source.blob(&layer(), 0).await.unwrap();
    assert!(later.next().await.unwrap().is_ok());
}

#[tokio::test]
async fn short_blobs_and_short_ends_come_by_one_request() {
    let server = Server::start(|request, _| match range_of(request) {
        Some((first, last)) => part(first, last, LENGTH),
        None => ok(content()),
    })
    .await;
    let from = LENGTH - 3 * PART;
    assert_eq!(fetched(&server, from).await, [Some((from, LENGTH - 1))]);
    // As does what nobody waits for.
    server.requests.lock().unwrap().clear();
    let background = RegistryConfig {
        background: true,
        ..patient()
    };
    assert_eq!(fetched_with(background, &server, 0).await, [None]);
}

#[tokio::test]
async fn where_there_are_no_parts_the_first_answer_is_the_whole() {
    let server = Server::start(|_, _| ok(content())).await;
    assert_eq!(fetched(&server, 0).await, [Some((0, PART - 1))]);
    let server = Server::start(|request, _| match range_of(request) {
        Some(_) => answer("501 Not Implemented", "", b""),
        None => ok(content()),
    })
    .await;
    assert_eq!(fetched(&server, 0).await, [Some((0, PART - 1)), None]);
}

#[tokio::test]
async fn parts_that_are_refused_later_come_in_one() {
    for refusal in ["200 OK", "400 Bad Request", "416 Range Not Satisfiable"] {
        let server = Server::start(move |request, _| match range_of(request) {
            Some((0, last)) => part(0, last, LENGTH),
            Some((first, last)) if first == PART => part(first, last, LENGTH),
            Some(_) if refusal != "200 OK" => answer(refusal, "", b""),
            _ => ok(content()),
        })
        .await;
        let asked = fetched(&server, 0).await;
        assert_eq!(asked.last(), Some(&None), "{refusal}: {asked:?}");
        assert!(asked.len() <= 5, "{refusal}: {asked:?}");
    }
}

#[tokio::test]
async fn connections_that_are_cut_after_each_eight_mebibytes_do_not_matter() {
    // Whole answers are cut there too, with headers and all.
    let server = Server::start(|request, _| match range_of(request) {
        Some((first, last)) => part(first, last, PART - 300),
        None => partial(LENGTH, &content()[..PART - 300], Then::Reset),
    })
    .await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    // Nor are they failures, which would be waited out.
    let config = RegistryConfig {
        backoff: Backoff {
            give_up: Duration::ZERO,
            ..hasty().backoff
        },
        listener: Listener::new(move |notice| sink.lock().unwrap().push(notice.clone())),
        ..hasty()
    };
    let asked = fetched_with(config, &server, 0).await;
    assert!(heard.lock().unwrap().is_empty(), "{heard:?}");
    assert!(asked.iter().all(Option::is_some), "{asked:?}");
    // Each part but the short one at the end goes on once.
    assert_eq!(asked.len(), 9, "{asked:?}");
}

#[tokio::test]
async fn a_part_that_fails_for_good_ends_the_whole() {
    let server = Server::start(|request, _| match range_of(request) {
        Some((first, last)) if first < 2 * PART => part(first, last, LENGTH),
        _ => answer("404 Not Found", "", b""),
    })
    .await;
    let source = server.source();
    let mut stream = source.blob(&layer(), 0).await.unwrap();
    let mut seen = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(bytes) => seen += bytes.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert_eq!(seen, 2 * PART, "what came before it is delivered");
    assert!(stream.next().await.is_none(), "and nothing behind it");
}
