//! What is published beside an image, where registries list it and where they do not.

use serde_json::{Value, json};

use super::super::{Referrer, Remembered};
use super::*;

const KIND: &str = "application/vnd.example.delta.v1";

fn subject() -> Digest {
    Digest::of(b"the image")
}

fn entry(text: &str, kind: Option<&str>) -> Value {
    let mut entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(text.as_bytes()).as_str(),
        "size": text.len(),
        "annotations": {"from": text},
    });
    if let Some(kind) = kind {
        entry["artifactType"] = json!(kind);
    }
    entry
}

fn list(entries: &[Value]) -> Vec<u8> {
    bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    }))
}

fn mixed() -> Vec<u8> {
    list(&[
        entry("one", Some(KIND)),
        entry("a bill of materials", Some("application/spdx+json")),
        entry("it does not say", None),
        json!({"mediaType": "x", "digest": "sha512:12", "size": 1, "artifactType": KIND}),
    ])
}

fn names(found: &[Referrer]) -> Vec<&str> {
    let names = found.iter().map(|referrer| {
        let name = referrer.annotations["from"].as_str();
        assert_eq!(referrer.digest, Digest::of(name.as_bytes()));
        name
    });
    names.collect()
}

fn api() -> String {
    let kind = KIND.replace('/', "%2F");
    format!("/v2/ns/os/referrers/{}?artifactType={kind}", subject())
}

fn tag() -> String {
    format!("/v2/ns/os/manifests/sha256-{}", subject().hex())
}

#[tokio::test]
async fn a_registry_lists_them_itself() {
    let filtered = "oci-filters-applied: artifactType\r\n";
    for (headers, expected) in [
        (filtered, &["one", "it does not say"][..]),
        (
            "oci-filters-applied: other, artifactType\r\n",
            &["one", "it does not say"],
        ),
        ("oci-filters-applied: other\r\n", &["one"]),
        ("", &["one"]),
    ] {
        let server = Server::start(move |_, _| answer("200 OK", headers, &mixed())).await;
        let found = server.source().referrers(&subject(), KIND).await.unwrap();
        assert_eq!(names(&found), expected, "{headers}");
        assert_eq!(server.paths(), [api()]);
    }
    let server = Server::start(|_, _| ok(&list(&[]))).await;
    let found = server.source().referrers(&subject(), KIND).await.unwrap();
    assert!(found.is_empty());
    assert_eq!(server.paths(), [api()], "an empty list is an answer");
}

#[tokio::test]
async fn without_a_list_there_is_a_tag_and_the_host_is_not_asked_again() {
    for status in [
        "404 Not Found",
        "400 Bad Request",
        "405 Method Not Allowed",
        "501 Not Implemented",
        // A page for people.
        "200 OK",
    ] {
        let server = Server::start(move |request, _| match request.path == tag() {
            true => ok(&mixed()),
            false => answer(status, "", b"<html>what?</html>"),
        })
        .await;
        let config = RegistryConfig {
            remembered: Remembered::default(),
            ..hasty()
        };
        for _ in 0..2 {
            let source = server.source_with(config.clone());
            let found = source.referrers(&subject(), KIND).await.unwrap();
            assert_eq!(names(&found), ["one"], "{status}");
        }
        assert_eq!(server.paths(), [api(), tag(), tag()], "{status}");
    }
}

#[tokio::test]
async fn without_either_there_are_none() {
    let server = Server::start(|_, _| answer("404 Not Found", "", b"")).await;
    let found = server.source().referrers(&subject(), KIND).await.unwrap();
    assert!(found.is_empty());
    // A tag of that name that is something else.
    let server = Server::start(|request, _| match request.path == tag() {
        true => ok(b"[]"),
        false => answer("404 Not Found", "", b""),
    })
    .await;
    let found = server.source().referrers(&subject(), KIND).await.unwrap();
    assert!(found.is_empty());
}

#[tokio::test]
async fn pages_are_followed_for_a_while_and_never_elsewhere() {
    let server = Server::start(|request, address| {
        let page = request
            .path
            .rsplit_once("page=")
            .map_or("0", |(_, page)| page);
        let next: u32 = page.parse::<u32>().unwrap() + 1;
        let path = format!("/v2/ns/os/referrers/{}?page={next}", subject());
        // Absolute and relative ones.
        let target = match next % 2 {
            0 => format!("http://{address}{path}"),
            _ => path,
        };
        let link = format!("link: <https://x.test/>; rel=prev, <{target}>; rel=\"next\"\r\n");
        answer("200 OK", &link, &list(&[entry(page, Some(KIND))]))
    })
    .await;
    let found = server.source().referrers(&subject(), KIND).await.unwrap();
    assert_eq!(names(&found), ["0", "1", "2", "3"]);

    for elsewhere in [
        "http://elsewhere.test/v2/ns/os/referrers/x",
        "/v2/other/os/referrers/x",
        "../../../../etc",
        "http://",
    ] {
        let server = Server::start(move |_, _| {
            let link = format!("link: <{elsewhere}>; rel=\"next\"\r\n");
            answer("200 OK", &link, &list(&[entry("one", Some(KIND))]))
        })
        .await;
        let found = server.source().referrers(&subject(), KIND).await.unwrap();
        assert_eq!(names(&found), ["one"]);
        assert_eq!(server.paths(), [api()], "{elsewhere}");
    }
}

#[tokio::test]
async fn what_was_listed_counts_though_the_list_goes_on_nowhere() {
    for status in ["404 Not Found", "501 Not Implemented"] {
        let server = Server::start(move |request, _| {
            let link = format!("link: <{}&page=2>; rel=\"next\"\r\n", api());
            match request.path == api() {
                true => answer("200 OK", &link, &list(&[entry("one", Some(KIND))])),
                false => answer(status, "", b""),
            }
        })
        .await;
        let found = server.source().referrers(&subject(), KIND).await.unwrap();
        assert_eq!(names(&found), ["one"], "{status}");
        assert_eq!(server.paths(), [api(), format!("{}&page=2", api())]);
    }
}

#[tokio::test]
async fn there_are_only_so_many() {
    let many: Vec<Value> = (0..1000)
        .map(|at| entry(&at.to_string(), Some(KIND)))
        .collect();
    let server = Server::start(move |_, _| ok(&list(&many))).await;
    let found = server.source().referrers(&subject(), KIND).await.unwrap();
    assert_eq!(found.len(), 100);
}

#[tokio::test]
async fn a_refusal_or_a_breakdown_is_told_and_not_tried_again() {
    for status in ["403 Forbidden", "500 Oops", "429 Too Many Requests"] {
        let server = Server::start(move |_, _| answer(status, "", b"")).await;
        let source = server.source();
        assert!(
            source.referrers(&subject(), KIND).await.is_err(),
            "{status}"
        );
        assert_eq!(server.paths(), [api()], "{status}");
        // It may know them another time.
        assert!(source.referrers(&subject(), KIND).await.is_err());
        assert_eq!(server.paths(), [api(), api()], "{status}");
    }
}

#[tokio::test]
async fn the_manifest_of_one_is_compared() {
    let server = Server::start(|_, _| ok(b"{}")).await;
    let referrer = |content: &[u8]| Referrer {
        digest: Digest::of(content),
        annotations: Default::default(),
    };
    let source = server.source();
    let manifest = source.artifact(&referrer(b"{}")).await.unwrap();
    assert_eq!(&manifest[..], b"{}");
    let error = source.artifact(&referrer(b"[]")).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_that_is_not_to_be_had_is_asked_for_once() {
    let server = Server::start(|_, _| answer("503 Service Unavailable", "", b"")).await;
    let referrer = Referrer {
        digest: subject(),
        annotations: Default::default(),
    };
    let error = server.source().artifact(&referrer).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(server.paths().len(), 1);
}

#[tokio::test]
async fn sources_on_this_host_have_none() {
    let reference: ImageReference = "oci:/nowhere".parse().unwrap();
    let source = Source::open(&reference, &hasty()).unwrap();
    let found = source.referrers(&subject(), KIND).await.unwrap();
    assert!(found.is_empty());
}
