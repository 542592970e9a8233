//! What comes out of good images: trees, attributes, refs and what other tools read.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn three_layers_become_one_tree() {
    let mut host = Host::new();
    let test = three_layers();
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    for (path, expected) in [
        ("usr/bin/sh", Some("shell two")),
        ("usr/bin/bash", Some("shell two")),
        ("usr/bin/dash", Some("shell two")),
        ("usr/etc/passwd", Some("root")),
        ("usr/etc/resolv.conf", Some("nameserver ::1")),
        ("usr/etc/hostname", None),
        ("usr/share/doc/a/b", None),
        ("usr/share/doc/.wh.a", None),
        ("bin", Some("-> usr/bin")),
        ("dev/null", None),
        ("opt/x", Some("x")),
    ] {
        assert_eq!(host.content(&tree, path).as_deref(), expected, "{path}");
    }
    assert!(tree.dirs.contains_key("tmp"));
    assert_eq!(host.content(&tree, "usr/lib/big").unwrap().len(), 5_400_000);
    let size: u64 = test.blobs.values().map(|blob| blob.len() as u64).sum();
    assert_eq!((imported.bytes_fetched, imported.layers_written), (size, 3));
    assert_eq!(host.recorder.bytes.load(Ordering::Relaxed), size);
    assert_eq!(*host.recorder.total.lock().unwrap(), (3, size, 0));
    assert_eq!(host.recorder.done.load(Ordering::Relaxed), 3);
    assert!(host.recorder.downloaded.load(Ordering::Relaxed));
    let steps = [
        MergeStep::Compose,
        MergeStep::Label,
        MergeStep::Write,
        MergeStep::Commit,
    ];
    assert_eq!(*host.recorder.steps.lock().unwrap(), steps);
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tools_find_what_they_read() {
    let mut host = Host::new();
    let test = three_layers();
    let imported = host.import(&test).await.unwrap();
    let (variant, state) = host.repo().load_commit(&imported.commit).unwrap();
    assert!(!state.contains(ostree::RepoCommitState::PARTIAL));
    let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
    let text = |key| metadata.lookup::<String>(key).unwrap().unwrap();
    let image = test.image();
    assert_eq!(text(DIGEST_KEY), image.digest.as_str());
    assert_eq!(text(MANIFEST_KEY), image.manifest_json);
    assert_eq!(text(CONFIG_KEY), image.config_json);
    assert!(text(IMPORTER_KEY).starts_with("osteward-"));
    assert_eq!(text("version"), "12.5");
    assert_eq!(ostree::commit_get_timestamp(&variant), 1_714_979_289);
    assert_eq!(ostree::commit_get_parent(&variant), None);
    let mut expected: Vec<_> = image
        .layers
        .iter()
        .map(|layer| blob_ref(&layer.digest))
        .collect();
    let guard = format!("ostree/container/baseimage/osteward/{}", image.digest.hex());
    expected.push(guard.clone());
    expected.push("ostree/container/image/docker_3A__2F__2F_localhost_3A_5000/os_3A_1".to_owned());
    expected.sort();
    assert_eq!(host.refs(), expected);
    assert_eq!(
        resolve(&host.repo(), &guard).unwrap(),
        Some(imported.commit)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_keep_their_whiteouts() {
    let mut host = Host::new();
    let test = three_layers();
    host.import(&test).await.unwrap();
    let commit = resolve(&host.repo(), &blob_ref(&test.image().layers[1].digest)).unwrap();
    let layer = host.tree(&commit.unwrap());
    assert_eq!(
        host.content(&layer, "usr/share/doc/.wh.a").as_deref(),
        Some("")
    );
    assert_eq!(
        host.content(&layer, "usr/etc/passwd").as_deref(),
        Some("root")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_twice() {
    let mut host = Host::new();
    let test = three_layers();
    let first = host.import(&test).await.unwrap();
    let nothing: Arc<dyn Fetch> = Arc::new(|_: &Layer| panic!("nothing is missing"));
    let again = host.import_with(&test, nothing.clone()).await.unwrap();
    assert_eq!(
        again,
        Imported {
            bytes_fetched: 0,
            layers_written: 0,
            ..first.clone()
        }
    );
    // The same layers under another manifest only need a merge.
    let relabelled = three_layers().label("x", "y");
    let other = host
        .import_with(&relabelled, nothing.clone())
        .await
        .unwrap();
    assert_ne!(other.commit, first.commit);
    assert_eq!(host.tree(&other.commit), host.tree(&first.commit));
    assert_eq!(other.bytes_fetched, 0);
    // The same content compressed otherwise is known by its diff_id.
    let tar = || Tar::new().file("usr/a", "a");
    host.import(&TestImage::default().layer(Compression::Gzip, tar()))
        .await
        .unwrap();
    let otherwise = TestImage::default().layer(Compression::Zstd, tar());
    assert_eq!(
        plan(&host.repo(), &otherwise.image())
            .unwrap()
            .download_size(),
        0
    );
    host.import_with(&otherwise, nothing).await.unwrap();
    assert!(
        host.refs()
            .contains(&blob_ref(&otherwise.image().layers[0].digest))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_survive() {
    let mut host = Host::new();
    let long = format!("usr/{}/{}", "l".repeat(120), "n".repeat(150));
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0];
    let tar = Tar::new()
        .pax(&[("comment", b"a global header is skipped")])
        .file("usr/first", "1")
        .pax(&[
            ("SCHILY.xattr.user.z", b"last"),
            ("SCHILY.xattr.security.capability", capability),
            ("path", b"usr/renamed"),
            ("uid", b"70000"),
        ])
        .file("usr/name", "2")
        .file(&long, "3")
        .raw(tar::EntryType::Regular, b"usr/setuid", 0o4755)
        .file("usr/twice", "old")
        .file("usr/twice", "new");
    let test = TestImage::default().layer(Compression::Gzip, tar);
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    assert_eq!(host.content(&tree, &long).as_deref(), Some("3"));
    assert_eq!(host.content(&tree, "usr/twice").as_deref(), Some("new"));
    let usr = &tree.dirs["usr"];
    let query = |name: &str| {
        host.repo()
            .query_file(&hex(&usr.files[name]), gio::Cancellable::NONE)
            .unwrap()
    };
    let (info, xattrs) = query("renamed");
    assert_eq!(info.attribute_uint32("unix::uid"), 70_000);
    let xattrs = super::objects::xattrs_from_variant(&xattrs);
    assert_eq!(
        xattrs[0],
        (b"security.capability\0".to_vec(), capability.to_vec())
    );
    assert_eq!(xattrs[1], (b"user.z\0".to_vec(), b"last".to_vec()));
    assert_eq!(query("setuid").0.attribute_uint32("unix::mode"), 0o104_755);
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_layer_is_an_empty_directory() {
    let mut host = Host::new();
    let test = TestImage::default()
        .layer(Compression::Gzip, Tar::new())
        .layer(Compression::Gzip, Tar::new().file("usr/a", "a"))
        .layer(Compression::Gzip, Tar::new());
    let imported = host.import(&test).await.unwrap();
    assert_eq!(imported.layers_written, 2, "equal layers count once");
    let tree = host.tree(&imported.commit);
    let default = super::objects::Attributes::default_directory();
    assert_eq!(tree.meta, super::objects::dirmeta(&default).0);
    assert_eq!(host.content(&tree, "usr/a").as_deref(), Some("a"));
}
