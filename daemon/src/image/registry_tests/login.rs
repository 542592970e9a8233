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
