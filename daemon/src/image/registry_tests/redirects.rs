//! Blobs that are elsewhere: the registry is asked once, and its answer is nobody else's.

use super::resuming::{LENGTH, content, layer, part, patient};
use super::*;

/// A registry that wants a token, and leads to `target` with a new signature each time.
async fn registry(target: &Server) -> Server {
    let (given, target) = (small(), target.address.clone());
    let count = Mutex::new(0);
    Server::start(move |request, address| {
        let blob = request.path.contains("/blobs/") && request.authorization.is_some();
        if !blob {
            return with_token(&given, request, address, true);
        }
        let mut count = count.lock().unwrap();
        *count += 1;
        let location = format!("location: http://{target}/blob?signature=hunter{count}\r\n");
        answer("307 Temporary Redirect", &location, b"")
    })
    .await
}

fn range_of(request: &Request) -> (usize, usize) {
    let range = request.range.as_ref().unwrap();
    let (first, last) = range
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}

async fn collected(source: &Source, start: u64) -> Result<(), Error> {
    let wanted = start..start + 1000;
    let stream = source.part(&layer(), wanted.clone()).await?;
    let bytes = blob::collect(stream).await?;
    assert_eq!(bytes, content()[wanted.start as usize..wanted.end as usize]);
    Ok(())
}

/// How often the registry itself was asked for the blob, with an authorization.
fn asked(registry: &Server) -> usize {
    let requests = registry.requests.lock().unwrap();
    let let_in = |request: &&Request| request.authorization.is_some();
    let blobs = requests.iter().filter(let_in);
    blobs
        .filter(|request| request.path.contains("/blobs/"))
        .count()
}

#[tokio::test]
async fn where_a_blob_is_is_asked_once() {
    let elsewhere = Server::start(|request, _| {
        let (first, last) = range_of(request);
        // Each breaks off, so that it goes on.
        part(first, last, 600)
    })
    .await;
    let registry = registry(&elsewhere).await;
    let source = registry.source_with(patient());
    for start in [0, 5000, 700, LENGTH as u64 - 1000] {
        collected(&source, start).await.unwrap();
    }
    let at_once = [10, 20, 30, 40].map(|start| collected(&source, start));
    for done in futures_util::future::join_all(at_once).await {
        done.unwrap();
    }
    assert_eq!(asked(&registry), 1);
    let requests = elsewhere.requests.lock().unwrap();
    assert_eq!(requests.len(), 16);
    for request in &*requests {
        assert_eq!(request.authorization, None, "{request:?}");
        assert_eq!(request.path, "/blob?signature=hunter1");
    }
    assert!(!format!("{source:?}").contains("hunter"), "{source:?}");
}

#[tokio::test]
async fn nobody_is_told_who_led_there() {
    let last = Server::start(|request, _| {
        let (first, last) = range_of(request);
        part(first, last, LENGTH)
    })
    .await;
    let target = last.address.clone();
    let between = Server::start(move |_, _| {
        let location = format!("location: http://{target}/blob\r\n");
        answer("307 Temporary Redirect", &location, b"")
    })
    .await;
    let registry = registry(&between).await;
    let source = registry.source();
    collected(&source, 0).await.unwrap();
    for server in [&between, &last] {
        let requests = server.requests.lock().unwrap();
        let referers: Vec<_> = requests.iter().map(|request| &request.referer).collect();
        assert_eq!(referers, [&None::<String>]);
    }
}

#[tokio::test]
async fn many_at_once_ask_once() {
    let elsewhere = Server::start(|request, _| {
        let (first, last) = range_of(request);
        match request.path.ends_with("hunter1") && first >= 100 {
            true => answer("403 Forbidden", "", b""),
            false => part(first, last, LENGTH),
        }
    })
    .await;
    let registry = registry(&elsewhere).await;
    let source = registry.source();
    for (starts, times) in [([0, 10, 20, 30], 1), ([100, 200, 300, 400], 2)] {
        let at_once = starts.map(|start| collected(&source, start));
        for done in futures_util::future::join_all(at_once).await {
            done.unwrap();
        }
        assert_eq!(asked(&registry), times);
    }
}

#[tokio::test]
async fn nobody_waits_for_more_than_one_that_asks() {
    let registry = Server::start(|_, _| Answer {
        bytes: Vec::new(),
        then: Then::Stall,
    })
    .await;
    let silence = Duration::from_millis(500);
    let source = registry.source_with(RegistryConfig {
        response_timeout: silence,
        backoff: Backoff {
            give_up: Duration::ZERO,
            ..hasty().backoff
        },
        ..hasty()
    });
    let begin = std::time::Instant::now();
    let at_once = [0, 10, 20, 30].map(|start| collected(&source, start));
    for done in futures_util::future::join_all(at_once).await {
        let error = done.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
    assert!(begin.elapsed() < 4 * silence, "{:?}", begin.elapsed());
    assert_eq!(registry.paths().len(), 4);
}

#[tokio::test]
async fn a_place_that_does_not_have_it_any_more_is_asked_for_anew() {
    for status in [
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "410 Gone",
        "500 Internal Server Error",
        "503 Service Unavailable",
    ] {
        let elsewhere = Server::start(move |request, _| {
            let (first, last) = range_of(request);
            match request.path.ends_with("hunter1") && first > 0 {
                true => answer(status, "", b"the signature hunter1 has expired"),
                false => part(first, last, LENGTH),
            }
        })
        .await;
        let registry = registry(&elsewhere).await;
        let source = registry.source();
        for start in [0, 2000, 4000] {
            collected(&source, start).await.unwrap();
        }
        assert_eq!(asked(&registry), 2, "{status}");
        assert_eq!(elsewhere.paths().len(), 4, "{status}");
        assert!(source.has_parts(), "{status}");
    }
}

#[tokio::test]
async fn a_place_that_is_gone_is_asked_for_anew() {
    let first = Server::start(|request, _| {
        let (first, last) = range_of(request);
        part(first, last, LENGTH)
    })
    .await;
    let target = Arc::new(Mutex::new(first.address.clone()));
    let led_to = target.clone();
    let registry = Server::start(move |_, _| {
        let location = format!("location: http://{}/blob\r\n", led_to.lock().unwrap());
        answer("307 Temporary Redirect", &location, b"")
    })
    .await;
    let source = registry.source();
    collected(&source, 0).await.unwrap();
    drop(first);
    let second = Server::start(|request, _| {
        let (first, last) = range_of(request);
        part(first, last, LENGTH)
    })
    .await;
    *target.lock().unwrap() = second.address.clone();
    collected(&source, 3000).await.unwrap();
    collected(&source, 6000).await.unwrap();
    assert_eq!((registry.paths().len(), second.paths().len()), (2, 2));
}

#[tokio::test]
async fn a_place_that_is_busy_or_has_no_parts_is_the_right_one() {
    let busy = Mutex::new(0);
    let elsewhere = Server::start(move |request, _| {
        let (first, last) = range_of(request);
        let mut busy = busy.lock().unwrap();
        *busy += 1;
        match *busy {
            2 => answer("429 Too Many Requests", "", b""),
            4 => answer("501 Not Implemented", "", b""),
            _ => part(first, last, LENGTH),
        }
    })
    .await;
    let registry = registry(&elsewhere).await;
    let source = registry.source_with(patient());
    collected(&source, 0).await.unwrap();
    collected(&source, 2000).await.unwrap();
    let error = collected(&source, 4000).await.unwrap_err();
    assert!(matches!(error, Error::NoRanges), "{error}");
    assert_eq!(asked(&registry), 1);
}

#[tokio::test]
async fn a_place_that_fails_for_good_is_not_shown() {
    let elsewhere = Server::start(|_, _| answer("403 Forbidden", "", b"")).await;
    let registry = registry(&elsewhere).await;
    let source = registry.source();
    for _ in 0..2 {
        let error = collected(&source, 0).await.unwrap_err();
        let text = format!("{error} {error:?} {source:?}");
        assert!(text.contains("leads to 127.0.0.1"), "{text}");
        assert!(!text.contains("hunter"), "{text}");
    }
    assert_eq!(asked(&registry), 2);
}
