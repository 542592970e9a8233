//! Tokens and passwords: asked for once, sent where they belong, told to nobody.

use super::*;

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
        let config = if anonymous { hasty() } else { config };
        let source = server.source_with(config);
        let found = source.resolve(None).await.unwrap();
        let streams =
            futures_util::future::join_all((0..4).map(|_| source.blob(&found.layers[0], 0))).await;
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
        futures_util::future::join_all((0..3).map(|_| source.blob(&found.layers[0], 0))).await;
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
        ..hasty()
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
async fn a_registry_that_accepts_no_token_is_asked_twice() {
    let server = Server::start(|request, address| {
        if request.path.starts_with("/token?") {
            return ok(br#"{"token":"sesame"}"#);
        }
        let challenge = format!("www-authenticate: Bearer realm=\"http://{address}/token\"\r\n");
        answer("401 Unauthorized", &challenge, b"")
    })
    .await;
    let error = server.source().resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Auth { .. }), "{error}");
    assert_eq!(server.count("/v2/ns/os/manifests/1"), 2);
    assert_eq!(server.paths().len(), 3);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_led_nowhere_else() {
    let given = Arc::new(small());
    let (image, moves) = (given.clone(), Arc::new(Mutex::new(false)));
    let moved = moves.clone();
    let server = Server::start(move |request, address| {
        if request.path == "/token" && *moved.lock().unwrap() {
            return answer("307 Temporary Redirect", "location: /elsewhere\r\n", b"");
        }
        if request.path == "/token" {
            return ok(br#"{"access_token":"sesame"}"#);
        }
        with_token(&image, request, address, false)
    })
    .await;
    let file = r#"{"auths":{"HOST":{"auth":"PHRva2VuPjo=","identitytoken":"hunter2"}}}"#;
    let (_directory, config) = auth_file(&server, file);
    assert!(
        server
            .source_with(config.clone())
            .resolve(None)
            .await
            .is_ok()
    );
    let requests = server.requests.lock().unwrap().clone();
    let asked = requests
        .iter()
        .find(|request| request.path == "/token")
        .unwrap();
    assert_eq!((&*asked.method, &asked.authorization), ("POST", &None));
    assert_eq!(
        asked.body,
        "scope=repository%3Ans%2Fos%3Apull&service=here&grant_type=refresh_token\
         &refresh_token=hunter2&client_id=osteward"
    );

    *moves.lock().unwrap() = true;
    let error = server.source_with(config).resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert_eq!(server.count("/elsewhere"), 0);
}

#[tokio::test]
async fn token_servers_that_misbehave_are_told_apart() {
    for (realm, said, expected) in [
        ("http://auth.test/token", "", "not behind TLS"),
        ("http://ADDRESS/token", "{}", "is no token"),
        ("http://ADDRESS/token", "<html>", "is no token"),
        ("http://ADDRESS/long", "", "longer than the 65536 bytes"),
    ] {
        let server = Server::start(
            move |request, address| match request.path.split('?').next() {
                Some("/token") => ok(said.as_bytes()),
                Some("/long") => partial(1 << 30, &[b' '; 100], Then::Stall),
                _ => {
                    let realm = realm.replace("ADDRESS", address);
                    let header = format!("www-authenticate: Bearer realm=\"{realm}\"\r\n");
                    answer("401 Unauthorized", &header, b"")
                }
            },
        )
        .await;
        let error = server.source().resolve(None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.is_retryable(), "{error}");
    }
}

#[tokio::test]
async fn new_credentials_count_at_once() {
    let given = small();
    let server =
        Server::start(move |request, address| with_token(&given, request, address, false)).await;
    let (directory, config) = auth_file(&server, "{}");
    let source = server.source_with(config);
    let error = source.resolve(None).await.unwrap_err();
    assert!(matches!(error, Error::Auth { .. }), "{error}");
    let host = &server.address;
    let file = format!(r#"{{"auths":{{"{host}":{{"auth":"{ALICE}"}}}}}}"#);
    std::fs::write(directory.path().join("auth.json"), file).unwrap();
    assert!(source.resolve(None).await.is_ok());
}
