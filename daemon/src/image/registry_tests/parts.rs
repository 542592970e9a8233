//! Parts of blobs: exactly those, by requests for one range each, or not at all.

use super::resuming::{LENGTH, content, layer, part, patient};
use super::*;

/// What a range asks for; everything without one.
fn asked(request: &Request) -> (usize, usize) {
    let Some(range) = &request.range else {
        return (0, LENGTH - 1);
    };
    let range = range.strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    let requests = server.requests.lock().unwrap();
    requests
        .iter()
        .map(|request| request.range.clone())
        .collect()
}

async fn collected(source: &Source, wanted: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
    let stream = source.part(&layer(), wanted).await?;
    Ok(blob::collect(stream).await?.to_vec())
}

#[tokio::test]
async fn a_part_is_one_request_for_one_range() {
    let server = Server::start(|request, _| {
        let (first, last) = asked(request);
        part(first, last, LENGTH)
    })
    .await;
    let source = server.source();
    assert!(source.has_parts());
    for (wanted, range) in [
        (5..1000, "bytes=5-999"),
        (0..1, "bytes=0-0"),
        (LENGTH as u64 - 9..LENGTH as u64, "bytes=1048567-1048575"),
        // Also all of it: the answer shows whether there are parts.
        (0..LENGTH as u64, "bytes=0-1048575"),
    ] {
        let bytes = collected(&source, wanted.clone()).await.unwrap();
        let wanted = wanted.start as usize..wanted.end as usize;
        assert_eq!(bytes, content()[wanted], "{range}");
        assert_eq!(ranges(&server).last().unwrap().as_deref(), Some(range));
    }
    assert_eq!(ranges(&server).len(), 4);
    assert!(source.has_parts());
}

#[tokio::test]
async fn how_many_are_asked_for_depends_on_what_is_open() {
    let server = Server::start(|request, _| {
        let (first, last) = asked(request);
        part(first, last, LENGTH)
    })
    .await;
    let source = server.source();
    assert_eq!(source.connections(), 4);
    let layer = layer();
    let open = [0, 1, 2, 3, 4].map(|start| source.part(&layer, start..1000));
    let open = futures_util::future::join_all(open).await;
    assert!(open.iter().all(Result::is_ok));
    assert_eq!(source.connections(), 2);
    drop(open);
    assert_eq!(source.connections(), 4);
    let background = RegistryConfig {
        background: true,
        ..hasty()
    };
    assert_eq!(server.source_with(background).connections(), 1);
}

#[tokio::test]
async fn nothing_is_asked_for_what_is_not_there() {
    let server = Server::start(|_, _| ok(content())).await;
    let source = server.source();
    let length = LENGTH as u64;
    assert!(collected(&source, 7..7).await.unwrap().is_empty());
    let (late, early) = (6, 5);
    let wrong = [0..length + 1, late..early, length + 1..u64::MAX];
    for wanted in wrong {
        let error = collected(&source, wanted).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    assert!(source.blob(&layer(), length + 1).await.is_err());
    assert!(server.paths().is_empty());
    assert!(source.has_parts());
}

#[tokio::test]
async fn a_broken_part_goes_on_inside_of_it() {
    let server = Server::start(|request, _| {
        let (first, last) = asked(request);
        part(first, last, LENGTH / 8)
    })
    .await;
    let source = server.source_with(patient());
    let (start, end) = (LENGTH / 4, LENGTH - 10);
    let bytes = collected(&source, start as u64..end as u64).await;
    assert_eq!(bytes.unwrap(), content()[start..end]);
    let requests = server.requests.lock().unwrap();
    let asked: Vec<_> = requests.iter().map(asked).collect();
    assert!(asked.len() >= 6, "{asked:?}");
    assert!(asked.iter().all(|(_, last)| *last == end - 1), "{asked:?}");
    assert!(asked.is_sorted_by(|a, b| a.0 < b.0), "{asked:?}");
}

#[tokio::test]
async fn a_part_of_unknown_length_goes_on_where_it_ended() {
    let server = Server::start(|request, _| {
        let (first, last) = asked(request);
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nconnection: close\r\n\
             content-range: bytes {first}-{last}/{LENGTH}\r\n\r\n"
        );
        let end = (first + LENGTH / 8).min(last + 1);
        Answer {
            bytes: [head.as_bytes(), &content()[first..end]].concat(),
            then: Then::Close,
        }
    })
    .await;
    let source = server.source_with(patient());
    let (start, end) = (5, LENGTH / 2);
    let bytes = collected(&source, start as u64..end as u64).await;
    assert_eq!(bytes.unwrap(), content()[start..end]);
    let firsts: Vec<_> = [0, 1, 2, 3]
        .map(|eighth| start + eighth * LENGTH / 8)
        .into();
    let requests = server.requests.lock().unwrap();
    let asked: Vec<_> = requests.iter().map(|request| asked(request).0).collect();
    assert_eq!(asked, firsts);
}

#[tokio::test]
async fn a_registry_without_parts_is_known_from_then_on() {
    let refusals: [fn(usize, usize) -> Answer; 11] = [
        |_, _| ok(content()),
        |_, _| answer("400 Bad Request", "", b""),
        |_, _| answer("405 Method Not Allowed", "", b""),
        |_, _| answer("416 Range Not Satisfiable", "", b""),
        |_, _| answer("501 Not Implemented", "", b""),
        // Other bytes than those asked for.
        |first, last| part(first + 1, last, LENGTH),
        |first, last| part(first - 1, last, LENGTH),
        |first, last| part(first, last + 1, LENGTH),
        // So few that there would be no end of requests.
        |first, _| part(first, first, LENGTH),
        // Of several parts, or of nobody knows what.
        |_, _| {
            answer(
                "206 Partial Content",
                "content-type: multipart/byteranges; boundary=x\r\n",
                b"--x",
            )
        },
        |first, last| {
            let range = format!("content-range: bytes {first}-{last}/{}\r\n", LENGTH + 1);
            answer("206 Partial Content", &range, &content()[first..=last])
        },
    ];
    for (number, refusal) in refusals.into_iter().enumerate() {
        let server = Server::start(move |request, _| match asked(request) {
            (first, last) if request.range.is_some() => refusal(first, last),
            _ => ok(content()),
        })
        .await;
        let config = hasty();
        let source = server.source_with(config.clone());
        let error = collected(&source, 5..1000).await.unwrap_err();
        assert!(matches!(error, Error::NoRanges), "{number}: {error}");
        // Another source in this process knows it too.
        let other = server.source_with(config);
        for source in [&source, &other] {
            assert!(!source.has_parts());
            let error = collected(source, 5..1000).await.unwrap_err();
            assert!(matches!(error, Error::NoRanges), "{number}: {error}");
        }
        assert!(server.source().has_parts());
        let stream = other.blob(&layer(), 1000).await.unwrap();
        let rest = blob::collect(stream).await.unwrap();
        assert_eq!(rest, content()[1000..], "{number}");
        assert_eq!(ranges(&server).len(), 2, "{number}");
    }
}

#[tokio::test]
async fn parts_can_end_in_the_middle_of_one() {
    let server = Server::start(|request, _| match asked(request) {
        (5, last) => part(5, last, LENGTH / 4),
        _ => answer("501 Not Implemented", "", b""),
    })
    .await;
    let source = server.source();
    let mut stream = source.part(&layer(), 5..LENGTH as u64).await.unwrap();
    let mut seen = 0;
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(bytes) => seen += bytes.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoRanges), "{error}");
    assert_eq!(seen, LENGTH / 4);
    assert!(!source.has_parts());
}

#[tokio::test]
async fn a_failure_that_is_none_of_ranges_is_told_as_it_is() {
    for (status, name) in [
        ("404 Not Found", "NotFound"),
        ("403 Forbidden", "Auth"),
        ("418 I'm a teapot", "Protocol"),
        ("503 Service Unavailable", "Unavailable"),
    ] {
        let server = Server::start(move |_, _| answer(status, "", b"")).await;
        let source = server.source();
        let error = collected(&source, 5..1000).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(name), "{error:?}");
        assert!(source.has_parts(), "{status}");
    }
}

#[tokio::test]
async fn a_rate_holds_for_all_transfers_together() {
    let server = Server::start(|request, _| {
        let (first, last) = asked(request);
        part(first, last, LENGTH)
    })
    .await;
    let config = RegistryConfig {
        max_rate: 4 * LENGTH as u64,
        ..hasty()
    };
    let sources = [(); 2].map(|()| server.source_with(config.clone()));
    let start = std::time::Instant::now();
    let all = sources
        .iter()
        .map(|source| collected(source, 1..LENGTH as u64));
    for bytes in futures_util::future::join_all(all).await {
        assert_eq!(bytes.unwrap(), content()[1..]);
    }
    assert!(
        start.elapsed() >= Duration::from_millis(390),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn the_pace_is_measured() {
    let server = Server::start(|request, _| {
        let (first, last) = asked(request);
        part(first, last, LENGTH)
    })
    .await;
    let source = server.source();
    let before = source.pace();
    for _ in 0..2 {
        collected(&source, 0..LENGTH as u64).await.unwrap();
    }
    let pace = source.pace();
    assert_ne!(pace.round_trip, before.round_trip);
    assert_ne!(pace.bytes_per_second, before.bytes_per_second);
    assert!(pace.bytes_per_second > 1e5, "{pace:?}");
}
