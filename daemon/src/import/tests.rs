//! Whole imports into real repositories, from images that are built here.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use futures_util::{FutureExt as _, StreamExt as _};
use ostree::ObjectType;
use serde_json::json;
use tokio_util::bytes::Bytes;

use super::objects::hex;
use super::transaction::load_tree;
use super::tree::Dir;
use super::*;
use crate::image::layout::Compression;

/// A tar in the making.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: tar::EntryType, path: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        if link.is_empty() {
            self.0.append_data(&mut header, path, content).unwrap();
        } else {
            self.0.append_link(&mut header, path, link).unwrap();
        }
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.entry(tar::EntryType::Regular, path, "", content.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.entry(tar::EntryType::Directory, path, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, path, target, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, path, target, b"")
    }

    /// The next entry gets these PAX records.
    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self
    }

    /// A header that the builder would refuse to make.
    fn raw(mut self, kind: tar::EntryType, path: &[u8], mode: u32) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_cksum();
        self.0.append(&header, std::io::empty()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn compress(compression: Compression, tar: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Plain => tar.to_vec(),
        Compression::Gzip => {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => {
            let mut blob = zstd::encode_all(tar, 1).unwrap();
            // A skippable frame, as chunked blobs have at their end.
            blob.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
            blob
        }
    }
}

/// An image and the blobs that a registry would serve.
#[derive(Default)]
struct TestImage {
    layers: Vec<serde_json::Value>,
    diff_ids: Vec<String>,
    blobs: HashMap<Digest, Vec<u8>>,
    labels: BTreeMap<String, String>,
}

impl TestImage {
    fn layer(self, compression: Compression, tar: Tar) -> Self {
        let tar = tar.bytes();
        let diff_id = Digest::of(&tar);
        self.blob(compression, compress(compression, &tar), diff_id)
    }

    fn blob(mut self, compression: Compression, blob: Vec<u8>, diff_id: Digest) -> Self {
        let suffix = match compression {
            Compression::Plain => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        let digest = Digest::of(&blob);
        self.layers.push(json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
            "digest": digest.as_str(),
            "size": blob.len(),
        }));
        self.diff_ids.push(diff_id.as_str().to_owned());
        self.blobs.insert(digest, blob);
        self
    }

    fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    fn image(&self) -> Image {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "2024-05-06T07:08:09Z",
            "config": { "Labels": self.labels },
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
        })
        .to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(config.as_bytes()).as_str(),
                "size": config.len(),
            },
            "layers": self.layers,
        })
        .to_string();
        let digest = Digest::of(manifest.as_bytes());
        Image::parse(digest, None, manifest.as_bytes(), config.as_bytes()).unwrap()
    }
}

#[derive(Default)]
struct Recorder {
    total: Mutex<(u32, u64, u64)>,
    bytes: AtomicU64,
    done: AtomicUsize,
    downloaded: AtomicBool,
    steps: Mutex<Vec<MergeStep>>,
}

impl Observer for Recorder {
    fn total(&self, layers: u32, bytes_to_fetch: u64, bytes_cached: u64) {
        *self.total.lock().unwrap() = (layers, bytes_to_fetch, bytes_cached);
    }
    fn bytes(&self, _: &Digest, delta: u64) {
        self.bytes.fetch_add(delta, Ordering::Relaxed);
    }
    fn layer_started(&self, _: &Layer) {}
    fn layer_done(&self, _: &Layer) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
    fn downloaded(&self) {
        assert!(!self.downloaded.swap(true, Ordering::Relaxed), "told twice");
    }
    fn merging(&self, step: MergeStep) {
        self.steps.lock().unwrap().push(step);
    }
}

struct Host {
    dir: tempfile::TempDir,
    recorder: Arc<Recorder>,
    cancel: CancellationToken,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(dir.path());
        repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE)
            .unwrap();
        let config = repo.copy_config();
        config.set_string("core", "min-free-space-percent", "0");
        repo.write_config(&config).unwrap();
        Self {
            dir,
            recorder: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }

    fn repo(&self) -> ostree::Repo {
        open(self.dir.path(), &gio::Cancellable::new()).unwrap()
    }

    fn refs(&self) -> Vec<String> {
        let refs = self.repo().list_refs(None, gio::Cancellable::NONE).unwrap();
        let mut refs: Vec<_> = refs.into_keys().collect();
        refs.sort();
        refs
    }

    async fn import(&mut self, test: &TestImage) -> Result<Imported, Error> {
        self.import_with(test, memory(test)).await
    }

    async fn import_with(&mut self, test: &TestImage, fetch: Fetch) -> Result<Imported, Error> {
        self.recorder = Arc::default();
        let request = ImportRequest {
            repo_path: self.dir.path().to_owned(),
            image: Arc::new(test.image()),
            imgref: "docker://localhost:5000/os:1".parse().unwrap(),
            fetch,
            observer: self.recorder.clone(),
            cancel: self.cancel.clone(),
            parallel_layers: 3,
        };
        import(request).await
    }

    /// Every object hashes to its name.
    fn fsck(&self) {
        let repo = self.repo();
        let mut count = 0;
        for bucket in std::fs::read_dir(self.dir.path().join("objects")).unwrap() {
            let bucket = bucket.unwrap();
            for object in std::fs::read_dir(bucket.path()).unwrap() {
                let name = object.unwrap().file_name().into_string().unwrap();
                let (stem, kind) = name.split_once('.').unwrap();
                let kind = match kind {
                    "file" => ObjectType::File,
                    "dirtree" => ObjectType::DirTree,
                    "dirmeta" => ObjectType::DirMeta,
                    "commit" => ObjectType::Commit,
                    _ => continue,
                };
                let id = format!("{}{stem}", bucket.file_name().into_string().unwrap());
                repo.fsck_object(kind, &id, gio::Cancellable::NONE).unwrap();
                count += 1;
            }
        }
        assert!(count > 0);
        // Nothing is left half done either.
        let marks = std::fs::read_dir(self.dir.path().join("state")).unwrap();
        assert_eq!(marks.count(), 0);
    }

    fn content(&self, dir: &Dir, path: &str) -> Option<String> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent: Vec<_> = parent.split('/').filter(|part| !part.is_empty()).collect();
        let id = dir.dir(&parent)?.files.get(name)?;
        let (stream, info, _) = self
            .repo()
            .load_file(&hex(id), gio::Cancellable::NONE)
            .unwrap();
        match stream {
            Some(stream) => {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut stream.into_read(), &mut text).unwrap();
                Some(text)
            }
            None => info
                .symlink_target()
                .map(|target| format!("-> {}", target.display())),
        }
    }

    fn tree(&self, commit: &str) -> Dir {
        load_tree(&self.repo(), commit).unwrap()
    }
}

/// Serves blobs in small pieces.
fn memory(test: &TestImage) -> Fetch {
    let blobs = Arc::new(test.blobs.clone());
    Arc::new(move |layer: &Layer| {
        let blob = Bytes::from(blobs[&layer.digest].clone());
        async move {
            let pieces: Vec<_> = blob.chunks(1000).map(Bytes::copy_from_slice).collect();
            Ok(futures_util::stream::iter(pieces.into_iter().map(Ok)).boxed())
        }
        .boxed()
    })
}

fn three_layers() -> TestImage {
    let big = "osteward ".repeat(600_000);
    TestImage::default()
        .label("containers.bootc", "1")
        .label("org.opencontainers.image.version", "12.5")
        .layer(
            Compression::Gzip,
            Tar::new()
                .dir("./")
                .dir("./usr/")
                .file("./usr/bin/sh", "shell one")
                .file("./usr/share/doc/a/b", "doc")
                .file("./usr/lib/big", &big)
                .file("./etc/hostname", "")
                .file("./etc/resolv.conf", "nameserver ::1")
                .symlink("./bin", "usr/bin")
                .file("./dev/null", "dropped")
                .dir("./tmp/"),
        )
        .layer(
            Compression::Zstd,
            Tar::new()
                .file("usr/bin/sh", "shell two")
                .hard_link("usr/bin/bash", "usr/bin/sh")
                .hard_link("usr/bin/dash", "/usr/bin/bash")
                .file("usr/share/doc/.wh.a", "")
                .file("etc/passwd", "root"),
        )
        .layer(
            Compression::Plain,
            Tar::new()
                .dir("usr/share/doc/")
                .file("usr/share/doc/.wh..wh..opq", "")
                .file("opt/x", "x"),
        )
}

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
    expected.push("ostree/container/baseimage/osteward/0".to_owned());
    expected.push("ostree/container/image/docker_3A__2F__2F_localhost_3A_5000/os_3A_1".to_owned());
    expected.sort();
    assert_eq!(host.refs(), expected);
    assert_eq!(
        resolve(&host.repo(), &guard_ref()).unwrap(),
        Some(imported.commit)
    );
    drop_placeholder(&host.repo()).unwrap();
    drop_placeholder(&host.repo()).unwrap();
    assert_eq!(resolve(&host.repo(), &guard_ref()).unwrap(), None);
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
    let nothing: Fetch = Arc::new(|_: &Layer| panic!("nothing is missing"));
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
        assert_eq!(host.refs(), [guard_ref()], "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_the_configuration_does_not_promise_is_refused() {
    let blob = compress(Compression::Gzip, &Tar::new().file("usr/a", "a").bytes());
    let test = TestImage::default().blob(Compression::Gzip, blob, Digest::of(b"another tar"));
    let mut host = Host::new();
    let error = host.import(&test).await.unwrap_err();
    assert!(matches!(error, Error::DiffIdMismatch { .. }), "{error}");
    assert_eq!(host.refs(), [guard_ref()]);
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
    let failure: Fetch = Arc::new(move |layer: &Layer| {
        if layer.digest == failing {
            async { Err(image::Error::Cancelled) }.boxed()
        } else {
            good(layer)
        }
    });
    let mut host = Host::new();
    let request = |host: &Host, fetch| ImportRequest {
        repo_path: host.dir.path().to_owned(),
        image: Arc::new(test.image()),
        imgref: "oci:/x".parse().unwrap(),
        fetch,
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
    let endless: Fetch = Arc::new(move |_: &Layer| {
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
async fn changed_objects_of_the_images_own_repository_reach_their_links() {
    let object = "sysroot/ostree/repo/objects/ab/cdef.file";
    let modified = |kind, path: &str, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(17);
        header.set_size(content.len() as u64);
        (header, path.to_owned(), link.to_owned(), content.to_vec())
    };
    let mut builder = Tar::new();
    for (mut header, path, link, content) in [
        modified(tar::EntryType::Regular, object, "", b"changed"),
        modified(tar::EntryType::Link, "usr/a", object, b""),
        modified(tar::EntryType::Link, "etc/b", object, b""),
        modified(
            tar::EntryType::Link,
            "usr/c",
            "sysroot/ostree/repo/objects/other",
            b"",
        ),
    ] {
        if link.is_empty() {
            builder
                .0
                .append_data(&mut header, path, content.as_slice())
                .unwrap();
        } else {
            builder.0.append_link(&mut header, path, link).unwrap();
        }
    }
    let mut host = Host::new();
    let test = TestImage::default().layer(Compression::Gzip, builder);
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    assert_eq!(host.content(&tree, "usr/a").as_deref(), Some("changed"));
    assert_eq!(host.content(&tree, "usr/etc/b").as_deref(), Some("changed"));
    assert_eq!(host.content(&tree, "usr/c"), None);
    assert!(!tree.dirs.contains_key("sysroot"));
}

/// The tar of an object layer.
struct Objects(Tar);

impl Objects {
    fn path(id: &str, suffix: &str) -> String {
        format!(
            "sysroot/ostree/repo/objects/{}/{}.{suffix}",
            &id[..2],
            &id[2..]
        )
    }

    fn metadata(self, id: &str, kind: &str, variant: &glib::Variant) -> Self {
        let path = Self::path(id, kind);
        Self(
            self.0
                .entry(tar::EntryType::Regular, &path, "", variant.data()),
        )
    }

    /// A file without attributes, in the current format or in the older one.
    fn file(self, id: &str, content: &[u8], old: bool) -> Self {
        let none = super::objects::xattrs_variant(&Vec::new());
        let xattrs = hex(&super::objects::sha256(none.data()));
        let (stored, link) = if old {
            (
                format!("sysroot/ostree/repo/xattrs/{xattrs}"),
                Self::path(id, "file.xattrs"),
            )
        } else {
            (
                Self::path(&xattrs, "file-xattrs"),
                Self::path(id, "file-xattrs-link"),
            )
        };
        let tar = self
            .0
            .entry(tar::EntryType::Regular, &stored, "", none.data());
        let tar = tar.hard_link(&link, &stored);
        Self(tar.entry(
            tar::EntryType::Regular,
            &Self::path(id, "file"),
            "",
            content,
        ))
    }
}

/// A commit of `/usr/lib/<name>` in a repository of its own, and its layers: commit and chunk.
fn encapsulated(name: &str, damaged: bool) -> (String, TestImage) {
    let source = Host::new();
    let repo = source.repo();
    let cancellable = gio::Cancellable::new();
    let attributes = super::objects::Attributes {
        mode: super::objects::S_IFREG | 0o644,
        ..super::objects::Attributes::default_directory()
    };
    let mut transaction = Transaction::begin(&repo, &cancellable).unwrap();
    let file = |content: &str| {
        let mut bytes = super::objects::file_header(&attributes, "");
        bytes.extend_from_slice(content.as_bytes());
        super::objects::Payload::Memory(bytes)
            .write(&repo, &cancellable)
            .unwrap()
    };
    let (one, two) = (file("one"), file("two"));
    let default = super::objects::Attributes::default_directory();
    let meta = transaction.dirmeta(&default).unwrap();
    let mut lib = Dir::new(meta);
    lib.files.insert(name.into(), one);
    lib.files.insert("two".into(), two);
    let mut usr = Dir::new(meta);
    usr.dirs.insert("lib".into(), lib.clone());
    let mut root = Dir::new(meta);
    root.dirs.insert("usr".into(), usr.clone());
    let commit = transaction
        .write_commit(&root, None, &no_metadata(), 5)
        .unwrap();
    let trees = [&root, &usr, &lib].map(|dir| hex(&transaction.dirtree(dir).unwrap()));
    transaction.commit().unwrap();
    let load = |kind, id: &str| repo.load_variant(kind, id).unwrap();
    let mut first = Objects(Tar::new().dir("sysroot/"))
        .metadata(&commit, "commit", &load(ObjectType::Commit, &commit))
        .metadata(
            &hex(&meta),
            "dirmeta",
            &load(ObjectType::DirMeta, &hex(&meta)),
        );
    for tree in &trees {
        first = first.metadata(tree, "dirtree", &load(ObjectType::DirTree, tree));
    }
    first = first.file(&hex(&two), b"two", false);
    let content: &[u8] = if damaged { b"0ne" } else { b"one" };
    let chunk = Objects(Tar::new())
        .file(&hex(&one), content, true)
        .0
        .bytes();
    let last = Digest::of(&chunk);
    let image = TestImage::default()
        .label("ostree.final-diffid", last.as_str())
        .layer(Compression::Gzip, first.0)
        .blob(Compression::Gzip, compress(Compression::Gzip, &chunk), last);
    (commit, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encapsulated_base_comes_back_as_the_commit_it_was() {
    let (base, image) = encapsulated("one", false);
    let test = image.layer(
        Compression::Zstd,
        Tar::new()
            .file("usr/lib/three", "three")
            .file("usr/lib/.wh.two", "")
            .file("opt/x", "x"),
    );
    let mut host = Host::new();
    let imported = host.import(&test).await.unwrap();
    let layers = test.image().layers;
    let commit = |index: usize| resolve(&host.repo(), &blob_ref(&layers[index].digest)).unwrap();
    assert_eq!(commit(0), Some(base.clone()));
    let chunk = host.tree(&commit(1).unwrap());
    let name = chunk.files.keys().next().unwrap();
    assert_eq!(hex(&chunk.files[name]), **name);
    let tree = host.tree(&imported.commit);
    assert_eq!(host.content(&tree, "usr/lib/one").as_deref(), Some("one"));
    assert_eq!(host.content(&tree, "usr/lib/two"), None);
    assert_eq!(
        host.content(&tree, "usr/lib/three").as_deref(),
        Some("three")
    );
    assert!(!tree.dirs.contains_key("opt"), "this base does not show it");
    let (variant, _) = host.repo().load_commit(&imported.commit).unwrap();
    assert_eq!(
        ostree::commit_get_parent(&variant).as_deref(),
        Some(base.as_str())
    );
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_fails_the_base() {
    let (base, test) = encapsulated("one", true);
    let mut host = Host::new();
    let error = host.import(&test).await.unwrap_err();
    assert!(
        matches!(&error, Error::Layer { reason, .. } if reason.contains("is really")),
        "{error}"
    );
    assert_eq!(host.refs(), [guard_ref()]);
    assert!(host.repo().load_commit(&base).is_err());
    host.fsck();
}

/// The security labels of a file and of the directory that holds it.
fn label(host: &Host, tree: &Dir, path: &[&str], name: &str) -> (Option<String>, String) {
    let repo = host.repo();
    let dir = tree.dir(path).unwrap();
    let find = |xattrs: glib::Variant| {
        super::objects::xattrs_from_variant(&xattrs)
            .into_iter()
            .find(|(name, _)| name == b"security.selinux\0")
            .map(|(_, value)| String::from_utf8(value).unwrap())
    };
    let file = repo
        .query_file(&hex(&dir.files[name]), gio::Cancellable::NONE)
        .unwrap()
        .1;
    let dir = repo
        .load_variant(ObjectType::DirMeta, &hex(&dir.meta))
        .unwrap();
    (find(file), find(dir.child_value(3)).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_of_the_image_labels_the_tree_and_its_layers() {
    let contexts = "/.* system_u:object_r:default_t:s0\n\
                    /usr/bin(/.*)? system_u:object_r:bin_t:s0\n\
                    /usr/share/plain -- <<none>>\n";
    let policy = Tar::new()
        .file(
            "etc/selinux/config",
            "SELINUX=enforcing\nSELINUXTYPE=tiny\n",
        )
        .file("etc/selinux/tiny/contexts/files/file_contexts", contexts)
        .file("etc/selinux/tiny/policy/policy.33", "not read")
        .file("usr/share/plain", "plain")
        .file("usr/bin/large", &"x".repeat(3_000_000));
    let test = TestImage::default()
        .layer(
            Compression::Gzip,
            Tar::new()
                .file("usr/bin/a", "same")
                .file("usr/lib/a", "same"),
        )
        .layer(Compression::Gzip, policy)
        .layer(
            Compression::Gzip,
            Tar::new().file("usr/bin/b", "b").symlink("usr/bin/l", "b"),
        );
    let mut host = Host::new();
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    let bin = "system_u:object_r:bin_t:s0\0";
    let default = "system_u:object_r:default_t:s0\0";
    for (path, name, file, dir) in [
        ("bin", "a", Some(bin), bin),
        ("bin", "large", Some(bin), bin),
        ("bin", "l", Some(bin), bin),
        ("lib", "a", Some(default), default),
        ("share", "plain", None, default),
    ] {
        let found = label(&host, &tree, &["usr", path], name);
        assert_eq!(
            found,
            (file.map(str::to_owned), dir.to_owned()),
            "{path}/{name}"
        );
    }
    for layer in &test.image().layers {
        let commit = resolve(&host.repo(), &blob_ref(&layer.digest))
            .unwrap()
            .unwrap();
        let layer = host.tree(&commit);
        for (name, id) in &layer.dirs["usr"].dirs["bin"].files {
            assert_eq!(tree.dirs["usr"].dirs["bin"].files[name], *id, "{name}");
        }
    }
    host.fsck();
    // Labels that are right already cost nothing.
    let again = host.import(&test.label("x", "y")).await.unwrap();
    assert_eq!(host.tree(&again.commit), tree);
}
