//! What is asked for again, and what is not.

use std::collections::HashMap;
use std::time::{Instant, SystemTime};

use super::*;
use crate::image::{Listener, Notice};

/// What comes instead of these bytes.
type Failure = fn(&[u8]) -> Answer;

/// Answers the first requests for a path from the list, and the later ones with the image.
async fn after(first: Vec<Failure>) -> Server {
    let given = small();
    let asked: Mutex<HashMap<String, usize>> = Mutex::default();
    Server::start(move |request, _| {
        let mut asked = asked.lock().unwrap();
        let count = asked.entry(request.path.clone()).or_default();
        *count += 1;
        let right = served(&given, &request.path);
        match first.get(*count - 1) {
            Some(failure) => failure(body(&right)),
            None => right,
        }
    })
    .await
}

fn body(answer: &Answer) -> &[u8] {
    let mut ends = answer.bytes.windows(4);
    let head = ends.position(|end| end == b"\r\n\r\n").unwrap();
    &answer.bytes[head + 4..]
}

fn half(body: &[u8], then: Then) -> Answer {
    partial(body.len(), &body[..body.len() / 2], then)
}

fn patient() -> (RegistryConfig, Arc<Mutex<Vec<Notice>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = heard.clone();
    let config = RegistryConfig {
        backoff: Backoff {
            give_up: Duration::from_secs(60),
            ..hasty().backoff
        },
        listener: Listener::new(move |notice| sink.lock().unwrap().push(notice.clone())),
        ..hasty()
    };
    (config, heard)
}

#[tokio::test]
async fn what_may_pass_is_asked_for_again() {
    let failures: [Failure; 8] = [
        |_| answer("408 Request Timeout", "", b""),
        |_| answer("429 Too Many Requests", "", b""),
        |_| answer("500 Internal Server Error", "", b""),
        |_| answer("502 Bad Gateway", "", b"<html>"),
        |_| answer("503 Service Unavailable", "retry-after: 0\r\n", b""),
        |_| answer("504 Gateway Timeout", "retry-after: soon\r\n", b""),
        |body| half(body, Then::Close),
        |body| half(body, Then::Reset),
    ];
    for (number, failure) in failures.into_iter().enumerate() {
        let server = after(vec![failure, failure]).await;
        let (config, heard) = patient();
        let source = server.source_with(config);
        let found = source.resolve(None).await.unwrap();
        let stream = source.blob(&found.layers[0], 0).await.unwrap();
        assert_eq!(&blob::collect(stream).await.unwrap()[..], b"the one layer");
        assert_eq!(server.count("/v2/ns/os/manifests/1"), 3, "{number}");
        let heard = heard.lock().unwrap();
        let waits = |notice: &&Notice| matches!(notice, Notice::Waiting { .. });
        // Manifest, configuration and layer.
        assert_eq!(heard.iter().filter(waits).count(), 6, "{number}: {heard:?}");
        assert_eq!(heard.len(), 9, "{number}: {heard:?}");
        assert_eq!(
            heard[2].to_string(),
            format!("{} answers again", server.address)
        );
    }
}

#[tokio::test]
async fn silence_in_the_middle_is_not_waited_out() {
    let stall: Failure = |body| half(body, Then::Stall);
    let server = after(vec![stall, stall]).await;
    let (patient, heard) = patient();
    let config = RegistryConfig {
        read_timeout: Duration::from_millis(300),
        ..patient
    };
    let source = server.source_with(config);
    let found = source.resolve(None).await.unwrap();
    let stream = source.blob(&found.layers[0], 0).await.unwrap();
    assert_eq!(&blob::collect(stream).await.unwrap()[..], b"the one layer");
    // At least, since a slow machine can be silent too.
    assert!(server.count("/v2/ns/os/manifests/1") >= 3);
    let heard = heard.lock().unwrap();
    let silent = |notice: &&Notice| notice.to_string().contains("nothing arrived for 300ms");
    assert!(heard.iter().filter(silent).count() >= 6, "{heard:?}");
}

#[tokio::test]
async fn what_was_refused_is_not() {
    for status in [
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "501 Not Implemented",
    ] {
        let server = Server::start(move |_, _| answer(status, "retry-after: 0\r\n", b"")).await;
        let (config, heard) = patient();
        let error = server.source_with(config).resolve(None).await.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        assert_eq!(server.paths().len(), 1, "{status}");
        assert!(heard.lock().unwrap().is_empty(), "{status}");
    }
}

#[tokio::test]
async fn a_registry_that_never_recovers_is_given_up() {
    let body = br#"{"errors":[{"message":"the disk is full"}]}"#;
    let server = Server::start(move |_, _| answer("500 Internal Server Error", "", body)).await;
    let error = server.source().resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert!(server.paths().len() > 1);
    let none = RegistryConfig {
        backoff: Backoff {
            give_up: Duration::ZERO,
            ..hasty().backoff
        },
        ..hasty()
    };
    let before = server.paths().len();
    assert!(server.source_with(none).resolve(None).await.is_err());
    assert_eq!(server.paths().len(), before + 1);
}

#[tokio::test]
async fn the_registry_says_when_to_come_back() {
    let in_a_second: Failure = |_| {
        // A date has whole seconds: the second after the next one is at least one away.
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
        answer(
            "503 Service Unavailable",
            &format!("retry-after: {date}\r\n"),
            b"",
        )
    };
    let seconds: Failure = |_| answer("429 Too Many Requests", "retry-after: 1\r\n", b"");
    for failure in [in_a_second, seconds] {
        let server = after(vec![failure]).await;
        let (config, _) = patient();
        let start = Instant::now();
        // Not the configuration too, which would double the time.
        let source = server.source_with(config);
        let asked = source.document(None).await;
        assert!(asked.is_ok(), "{asked:?}");
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(900), "{waited:?}");
        assert_eq!(server.count("/v2/ns/os/manifests/1"), 2);
    }
    let server = after(vec![|_| {
        answer("429 Too Many Requests", "retry-after: 86400\r\n", b"")
    }])
    .await;
    let (config, heard) = patient();
    let error = server.source_with(config).resolve(None).await.unwrap_err();
    assert!(
        error.to_string().contains("left alone for 86400 s"),
        "{error}"
    );
    assert!(heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_token_server_that_is_overloaded_is_waited_for() {
    let given = Arc::new(small());
    let asked = Mutex::new(0);
    let server = Server::start(move |request, address| {
        if request.path.starts_with("/token?") {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            if *asked < 3 {
                return answer("503 Service Unavailable", "", b"");
            }
        }
        with_token(&given, request, address, true)
    })
    .await;
    let (config, heard) = patient();
    assert!(server.source_with(config).resolve(None).await.is_ok());
    let text = heard.lock().unwrap()[0].to_string();
    assert!(text.contains("its token server answers 503"), "{text}");
}
