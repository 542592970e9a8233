//! What is refused, and what is left of it; what an interruption leaves.

use super::*;

/// Imports an image whose second layer is bad, and checks that nothing refers to it.
async fn refused(tar: Tar) -> String {
    let test = TestImage::default()
        .layer(Compression::Gzip, Tar::new().file("usr/good", "good"))
        .layer(Compression::Gzip, tar);
    let mut host = Host::new();
    let error = host.import(&test).await.unwrap_err();
    let image = test.image();
    let refs = host.refs();
    assert!(
        !refs.contains(&blob_ref(&image.layers[1].digest)),
        "{refs:?}"
    );
    assert!(
        !refs
            .iter()
            .any(|name| name.starts_with("ostree/container/image/"))
    );
    host.fsck();
    match error {
        Error::Layer { digest, reason } => {
            assert_eq!(digest, image.layers[1].digest);
            reason
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_break_a_rule_are_refused_by_name() {
    use tar::EntryType::{Block, Char, Fifo, Regular};
    for (tar, expected) in [
        (
            Tar::new().raw(Char, b"usr/node", 0o600),
            "a character device",
        ),
        (Tar::new().raw(Block, b"usr/node", 0o600), "a block device"),
        (Tar::new().raw(Fifo, b"usr/node", 0o600), "a named pipe"),
        (
            Tar::new().raw(Regular, b"usr/../../etc/shadow", 0o600),
            "..",
        ),
        (Tar::new().raw(Regular, b"usr/\xff", 0o600), "not UTF-8"),
        (
            Tar::new().hard_link("usr/a", "usr/good"),
            "not in this layer",
        ),
        (
            Tar::new()
                .pax(&[("GNU.sparse.major", b"1")])
                .file("usr/a", ""),
            "sparse",
        ),
        (Tar::new().file("usr/.wh.", ""), "names nothing"),
    ] {
        let reason = match expected {
            // Only the merge notices, so the layer itself keeps its ref.
            "names nothing" => {
                let test = TestImage::default().layer(Compression::Plain, tar);
                Host::new().import(&test).await.unwrap_err().to_string()
            }
            _ => refused(tar).await,
        };
        assert!(reason.contains(expected), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_headers_are_refused_before_they_fill_the_memory() {
    let name = "x".repeat(3_000_000);
    let tar = Tar::new()
        .pax(&[("path", name.as_bytes())])
        .file("usr/a", "");
    assert!(refused(tar).await.contains("too long"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_beneath_dev_is_dropped_not_refused() {
    let tar = Tar::new()
        .raw(tar::EntryType::Char, b"dev/null", 0o666)
        .file("usr/a", "a");
    let mut host = Host::new();
    let test = TestImage::default().layer(Compression::Gzip, tar);
    let imported = host.import(&test).await.unwrap();
    assert_eq!(
        host.content(&host.tree(&imported.commit), "usr/a")
            .as_deref(),
        Some("a")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_blobs_are_refused() {
    for damage in ["flip", "short", "long", "other", "gzip"] {
        let compression = match damage {
            "gzip" => Compression::Gzip,
            _ => Compression::Plain,
        };
        let mut test =
            TestImage::default().layer(compression, Tar::new().file("usr/a", &"a".repeat(4000)));
        for blob in test.blobs.values_mut() {
            match damage {
                "flip" => blob[1000] ^= 1,
                "gzip" => blob[20] ^= 255,
                "short" => blob.truncate(blob.len() - 512),
                "long" => blob.extend([0; 512]),
                _ => *blob = Tar::new().file("usr/b", &"b".repeat(4000)).bytes(),
            }
        }
        let mut host = Host::new();
        let error = host.import(&test).await.unwrap_err();
        assert!(
            matches!(error, Error::DigestMismatch { .. }),
            "{damage}: {error}"
        );
        assert_eq!(host.refs(), [guard(&test)], "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_the_configuration_does_not_promise_is_refused() {
    let blob = compress(Compression::Gzip, &Tar::new().file("usr/a", "a").bytes());
    let test = TestImage::default().blob(Compression::Gzip, blob, Digest::of(b"another tar"));
    let mut host = Host::new();
    let error = host.import(&test).await.unwrap_err();
    assert!(matches!(error, Error::DiffIdMismatch { .. }), "{error}");
    assert_eq!(host.refs(), [guard(&test)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_padding_at_the_end_of_a_tar_is_accepted() {
    let tar = Tar::new().file("usr/a", "a").bytes();
    let diff_id = Digest::of(&tar);
    // Two zero blocks end a tar; this one has lost both.
    let short = compress(Compression::Gzip, &tar[..tar.len() - 1024]);
    let test = TestImage::default().blob(Compression::Gzip, short, diff_id);
    let mut host = Host::new();
    let imported = host.import(&test).await.unwrap();
    assert_eq!(
        host.content(&host.tree(&imported.commit), "usr/a")
            .as_deref(),
        Some("a")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_finished_before_a_failure_is_kept() {
    let test = three_layers();
    let image = test.image();
    let broken = image.layers[1].digest.clone();
    let (good, failing) = (memory(&test), broken.clone());
    let failure: Arc<dyn Fetch> = Arc::new(move |layer: &Layer| {
        if layer.digest == failing {
            async { Err(image::Error::Cancelled) }.boxed()
        } else {
            good.whole(layer, 0)
        }
    });
    let mut host = Host::new();
    let request = |host: &Host, fetch| ImportRequest {
        repo_path: host.dir.path().to_owned(),
        image: Arc::new(test.image()),
        imgref: "oci:/x".parse().unwrap(),
        needed: Vec::new(),
        fetch,
        deltas: Arc::default(),
        observer: host.recorder.clone(),
        cancel: host.cancel.clone(),
        // One lane: the largest layer is through before the second fails.
        parallel_layers: 1,
    };
    let mut sizes: Vec<_> = image.layers.iter().collect();
    sizes.sort_by_key(|layer| std::cmp::Reverse(layer.size));
    let before = sizes
        .iter()
        .take_while(|layer| layer.digest != broken)
        .count();
    import(request(&host, failure)).await.unwrap_err();
    let plan = plan(&host.repo(), &image).unwrap();
    assert_eq!(plan.present.len(), before);
    host.fsck();
    host.recorder = Arc::default();
    let imported = import(request(&host, memory(&test))).await.unwrap();
    assert_eq!(imported.layers_written as usize, 3 - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_stops_a_fetch_that_never_ends() {
    let test = three_layers();
    let mut host = Host::new();
    let cancel = host.cancel.clone();
    let endless: Arc<dyn Fetch> = Arc::new(move |_: &Layer| {
        cancel.cancel();
        async { Ok(futures_util::stream::pending().boxed()) }.boxed()
    });
    let error = host.import_with(&test, endless).await.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    host.fsck();
    host.cancel = CancellationToken::new();
    host.import(&test).await.unwrap();
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_not_completed_is_fetched_again() {
    let mut host = Host::new();
    let test = three_layers();
    let first = host.import(&test).await.unwrap();
    let image = test.image();
    let repo = host.repo();
    let layer = resolve(&repo, &blob_ref(&image.layers[2].digest))
        .unwrap()
        .unwrap();
    // Killed after the last object, before the mark was removed: the commit is whole.
    repo.mark_commit_partial(&layer, true).unwrap();
    assert!(plan(&repo, &image).unwrap().missing.is_empty());
    // Killed before the last object.
    let lost = host.tree(&layer).dirs["opt"].files["x"];
    repo.mark_commit_partial(&layer, true).unwrap();
    repo.delete_object(ObjectType::File, &hex(&lost), gio::Cancellable::NONE)
        .unwrap();
    assert_eq!(plan(&repo, &image).unwrap().missing.len(), 1);
    let again = host.import(&test).await.unwrap();
    assert_eq!((again.commit, again.layers_written), (first.commit, 1));
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_lost_a_directory_is_fetched_again() {
    let mut host = Host::new();
    let deep = || Tar::new().file("usr/a/b/file", "content");
    let other = Tar::new().file("usr/other", "other");
    let first = TestImage::default().layer(Compression::Gzip, deep());
    let second = TestImage::default()
        .layer(Compression::Gzip, deep())
        .layer(Compression::Gzip, other);
    host.import(&first).await.unwrap();
    let (repo, image) = (host.repo(), first.image());
    let layer = resolve(&repo, &blob_ref(&image.layers[0].digest)).unwrap();
    let below = host.tree(&layer.unwrap()).dirs["usr"].dirs["a"].clone();
    let lost = {
        let cancellable = gio::Cancellable::new();
        let mut transaction = Transaction::begin(&repo, &cancellable).unwrap();
        hex(&transaction.dirtree(&below).unwrap())
    };
    repo.delete_object(ObjectType::DirTree, &lost, gio::Cancellable::NONE)
        .unwrap();
    // A plan looks at the top of it only; who merges it finds out, and sees to it that it is looked at.
    let error = host.import(&second).await.unwrap_err();
    assert!(matches!(error, Error::Raced(_)), "{error}");
    let again = host.import(&second).await.unwrap();
    assert_eq!(again.layers_written, 1);
    host.fsck();
}
