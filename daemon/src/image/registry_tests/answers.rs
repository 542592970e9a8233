//! Registries that answer with the wrong thing, too much, too little or nothing.

use super::*;

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
    let error = source.blob(&layer(b"x", 1), 0).await.err().unwrap();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(!error.is_retryable());
}

fn layer(content: &[u8], size: u64) -> Layer {
    let given = image(host_architecture(), &[], &[content]);
    let found = crate::image::layout::Image::parse(
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
        ..hasty()
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
    match source.blob(layer, 0).await {
        Ok(stream) => blob::collect(stream).await.unwrap_err(),
        Err(error) => error,
    }
}

#[tokio::test]
async fn connections_that_break_or_stall_are_worth_another_try() {
    for then in [Then::Close, Then::Reset, Then::Stall] {
        let server = Server::start(move |_, _| partial(10, b"12345", then)).await;
        let source = server.source_with(curt());
        let error = first_error(&source, &layer(b"1234567890", 10)).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.is_retryable());
    }
    let server = Server::start(|_, _| Answer {
        bytes: Vec::new(),
        then: Then::Stall,
    })
    .await;
    let source = server.source_with(curt());
    let error = source.resolve(None).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { reason, .. } if reason == "no answer for 300ms"),
        "{error}"
    );

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference: ImageReference = format!("docker://{address}/os").parse().unwrap();
    let source = Source::open(&reference, &hasty()).unwrap();
    let error = source.resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn bytes_before_a_break_arrive() {
    let server = Server::start(|_, _| partial(10, b"12345", Then::Close)).await;
    let mut stream = server
        .source()
        .blob(&layer(b"1234567890", 10), 0)
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
async fn nonsense_is_told_apart_from_no_answer() {
    for status in [
        "206 Partial Content",
        "304 Not Modified",
        "418 I'm a teapot",
    ] {
        let server = Server::start(move |_, _| answer(status, "", b"<html>")).await;
        let error = server.source().resolve(None).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert_eq!(server.paths().len(), 1, "{status}");
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
    let stream = source.blob(&layer(b"moved", 5), 0).await.unwrap();
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
