//! Transfers that break off, and registries that do not know ranges.

use std::sync::LazyLock;

use super::*;
use crate::image::layout::Image;

/// So many that each part makes progress, and that they do not arrive at one stroke.
pub(super) const LENGTH: usize = 1 << 20;

/// Bytes that tell where they are.
pub(super) fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..LENGTH as u32 / 4).flat_map(u32::to_be_bytes).collect());
    &CONTENT
}

pub(super) fn layer() -> Layer {
    let given = image(host_architecture(), &[], &[content()]);
    let (manifest, config) = (bytes(&given.manifest), bytes(&given.config));
    let found = Image::parse(given.digest(), None, &manifest, &config).unwrap();
    found.layers[0].clone()
}

/// Where a range asked for begins; 0 without one.
fn start(request: &Request) -> usize {
    let Some(range) = &request.range else {
        return 0;
    };
    let range = range.strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    assert_eq!(last, (LENGTH - 1).to_string(), "{range}");
    first.parse().unwrap()
}

/// `first` to `last` of the content as a partial answer that breaks off after `sent` bytes of it.
pub(super) fn part(first: usize, last: usize, sent: usize) -> Answer {
    let length = last - first + 1;
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {length}\r\n\
         content-range: bytes {first}-{last}/{LENGTH}\r\n\r\n"
    );
    let end = (first + sent).min(last + 1);
    Answer {
        bytes: [head.as_bytes(), &content()[first..end]].concat(),
        then: Then::Close,
    }
}

/// Enough for any number of failures.
pub(super) fn patient() -> RegistryConfig {
    RegistryConfig {
        backoff: Backoff {
            give_up: Duration::from_secs(60),
            ..hasty().backoff
        },
        ..hasty()
    }
}

async fn fetched(server: &Server) -> (Result<Vec<u8>, Error>, Vec<Option<String>>) {
    fetched_with(server, patient()).await
}

/// Fetches the layer, and tells the ranges that were asked for.
async fn fetched_with(
    server: &Server,
    config: RegistryConfig,
) -> (Result<Vec<u8>, Error>, Vec<Option<String>>) {
    let source = server.source_with(config);
    let collected = match source.blob(&layer(), 0).await {
        Ok(stream) => blob::collect(stream).await.map(|bytes| bytes.to_vec()),
        Err(error) => Err(error),
    };
    let requests = server.requests.lock().unwrap();
    let ranges = requests.iter().map(|request| request.range.clone());
    (collected, ranges.collect())
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let third = LENGTH / 3;
    let server = Server::start(move |request, _| match start(request) {
        0 => partial(LENGTH, &content()[..third], Then::Close),
        first => part(first, LENGTH - 1, third),
    })
    .await;
    let (collected, ranges) = fetched(&server).await;
    assert_eq!(collected.unwrap(), content());
    assert!(ranges.len() >= 3, "{ranges:?}");
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");
    let asked: Vec<usize> = server.requests.lock().unwrap().iter().map(start).collect();
    assert!(asked.is_sorted_by(|a, b| a < b), "{asked:?}");
}

#[tokio::test]
async fn parts_that_are_smaller_than_asked_for_are_followed_by_the_next() {
    let server = Server::start(|request, _| match start(request) {
        0 => partial(LENGTH, &content()[..10], Then::Close),
        first => part(first, (first + LENGTH / 8).min(LENGTH - 1), LENGTH),
    })
    .await;
    let (collected, ranges) = fetched(&server).await;
    assert_eq!(collected.unwrap(), content());
    assert!((9..=10).contains(&ranges.len()), "{ranges:?}");
}

#[tokio::test]
async fn a_registry_without_ranges_sends_the_whole_again() {
    let refusals: [fn(usize) -> Answer; 8] = [
        |_| ok(content()),
        |_| answer("400 Bad Request", "", b""),
        |_| answer("405 Method Not Allowed", "", b""),
        |_| {
            answer(
                "416 Range Not Satisfiable",
                "content-range: bytes */9\r\n",
                b"",
            )
        },
        |_| answer("501 Not Implemented", "", b""),
        // Other bytes than those asked for.
        |first| part(first + 1, LENGTH - 1, LENGTH),
        |first| part(first - 1, LENGTH - 1, LENGTH),
        // Of another whole, or of none.
        |_| answer("206 Partial Content", "", b"bytes"),
    ];
    for (number, refusal) in refusals.into_iter().enumerate() {
        let wholes = Mutex::new(0);
        let server = Server::start(move |request, _| {
            if request.range.is_some() {
                return refusal(start(request));
            }
            // The first two break off at different places.
            let mut wholes = wholes.lock().unwrap();
            *wholes += 1;
            match *wholes {
                3.. => ok(content()),
                n => partial(LENGTH, &content()[..n * LENGTH / 4], Then::Close),
            }
        })
        .await;
        let (collected, ranges) = fetched(&server).await;
        assert_eq!(collected.unwrap(), content(), "{number}");
        let asked = ranges.iter().flatten().count();
        assert_eq!(
            asked, 1,
            "{number}: a range is asked for once, not {ranges:?}"
        );
    }
}

#[tokio::test]
async fn a_transfer_without_progress_is_given_up() {
    let server = Server::start(|request, _| match start(request) {
        0 => partial(LENGTH, &content()[..1000], Then::Close),
        first => part(first, LENGTH - 1, 0),
    })
    .await;
    let (collected, ranges) = fetched_with(&server, hasty()).await;
    let error = collected.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(ranges.len() > 1, "{ranges:?}");
}

#[tokio::test]
async fn a_transfer_that_may_not_go_on_says_why() {
    for (status, name) in [
        ("403 Forbidden", "Auth"),
        ("404 Not Found", "NotFound"),
        ("418 I'm a teapot", "Protocol"),
    ] {
        let server = Server::start(move |request, _| match start(request) {
            0 => partial(LENGTH, &content()[..1000], Then::Close),
            _ => answer(status, "", b""),
        })
        .await;
        let (collected, ranges) = fetched(&server).await;
        let error = collected.unwrap_err();
        assert!(format!("{error:?}").starts_with(name), "{error:?}");
        assert_eq!(ranges.len(), 2, "{ranges:?}");
    }
}

#[tokio::test]
async fn bodies_without_end_are_not_read_to_it() {
    // Neither announces its length; both stay open, so this ends only because reading stops.
    let endless = |head: &str| Answer {
        bytes: [head.as_bytes(), content(), b"and more"].concat(),
        then: Then::Stall,
    };
    let server = Server::start(move |_, _| endless("HTTP/1.1 200 OK\r\n\r\n")).await;
    let error = fetched(&server).await.0.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    let server = Server::start(move |request, _| match start(request) {
        0 => partial(LENGTH, &content()[..10], Then::Close),
        first => {
            let last = LENGTH - 1;
            let range = format!("bytes {first}-{last}/{LENGTH}");
            let head = format!("HTTP/1.1 206 Partial Content\r\ncontent-range: {range}\r\n\r\n");
            endless(&head)
        }
    })
    .await;
    let error = fetched(&server).await.0.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn a_token_that_runs_out_on_the_way_is_renewed() {
    let valid = Arc::new(Mutex::new(0));
    let count = valid.clone();
    let server = Server::start(move |request, address| {
        let mut valid = count.lock().unwrap();
        if request.path.starts_with("/token?") {
            *valid += 1;
            return ok(format!(r#"{{"token":"number-{valid}"}}"#).as_bytes());
        }
        if request.authorization != Some(format!("Bearer number-{valid}")) {
            let challenge = format!("Bearer realm=\"http://{address}/token\"");
            let header = format!("www-authenticate: {challenge}\r\n");
            return answer("401 Unauthorized", &header, b"");
        }
        // It runs out as soon as it was used.
        *valid += 1;
        match start(request) {
            0 => partial(LENGTH, &content()[..LENGTH / 3], Then::Close),
            first => part(first, LENGTH - 1, LENGTH / 3),
        }
    })
    .await;
    let (collected, _) = fetched(&server).await;
    assert_eq!(collected.unwrap(), content());
    assert!(*valid.lock().unwrap() >= 6);
}
