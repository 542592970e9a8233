//! Whole imports into real repositories, from images that are built here.

mod databases;
mod deltas;
mod encapsulated;
mod files;
mod guards;
mod hostile;
mod labels;
mod partial;
mod refusals;
mod resuming;
mod trees;

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use ostree::ObjectType;
use serde_json::json;
use tokio_util::bytes::Bytes;

use super::objects::hex;
use super::plan::stored_image;
use super::transaction::{Transaction, load_tree, resolve};
use super::tree::Dir;
use super::*;
use crate::chunked::Chunked;
use crate::image::layer::Compression;
use crate::image::reference::{blob_ref, guard_ref};
use crate::image::{self, ByteStream, Pace};

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
#[derive(Clone, Default)]
struct TestImage {
    layers: Vec<serde_json::Value>,
    diff_ids: Vec<String>,
    blobs: HashMap<Digest, Vec<u8>>,
    labels: BTreeMap<String, String>,
    chunked: HashMap<Digest, Chunked>,
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
        let image = Image::parse(digest, None, manifest.as_bytes(), config.as_bytes());
        let mut image = image.unwrap();
        for layer in &mut image.layers {
            layer.chunked = self.chunked.get(&layer.digest).cloned();
        }
        image
    }
}

#[derive(Default)]
struct Recorder {
    total: Mutex<(u32, u64, u64)>,
    bytes: AtomicU64,
    done: AtomicUsize,
    downloaded: AtomicBool,
    steps: Mutex<Vec<MergeStep>>,
    notes: Mutex<Vec<String>>,
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
    fn more(&self, bytes: u64) {
        self.total.lock().unwrap().1 += bytes;
    }
    fn note(&self, text: String) {
        self.notes.lock().unwrap().push(text);
    }
}

struct Host {
    dir: tempfile::TempDir,
    recorder: Arc<Recorder>,
    cancel: CancellationToken,
    needed: Vec<Digest>,
    deltas: Vec<Artifact>,
}

impl Host {
    fn new() -> Self {
        Self::with_mode(ostree::RepoMode::BareUser)
    }

    fn with_mode(mode: ostree::RepoMode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(dir.path());
        repo.create(mode, gio::Cancellable::NONE).unwrap();
        let config = repo.copy_config();
        config.set_string("core", "min-free-space-percent", "0");
        repo.write_config(&config).unwrap();
        Self {
            dir,
            recorder: Arc::default(),
            cancel: CancellationToken::new(),
            needed: Vec::new(),
            deltas: Vec::new(),
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

    async fn import_with(
        &mut self,
        test: &TestImage,
        fetch: Arc<dyn Fetch>,
    ) -> Result<Imported, Error> {
        self.recorder = Arc::default();
        let request = ImportRequest {
            repo_path: self.dir.path().to_owned(),
            image: Arc::new(test.image()),
            imgref: "docker://localhost:5000/os:1".parse().unwrap(),
            needed: self.needed.clone(),
            fetch,
            deltas: self.deltas.clone().into(),
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

/// A source that has whole layers only, and from their first byte.
impl<F> Fetch for F
where
    F: Fn(&Layer) -> BoxFuture<'static, Result<ByteStream, image::Error>> + Send + Sync,
{
    fn whole(
        &self,
        layer: &Layer,
        from: u64,
    ) -> BoxFuture<'static, Result<ByteStream, image::Error>> {
        assert_eq!(from, 0, "this source begins at the beginning");
        self(layer)
    }
}

/// The ref that guards the image.
fn guard(test: &TestImage) -> String {
    guard_ref(&test.image().digest)
}

/// Serves blobs in small pieces.
fn memory(test: &TestImage) -> Arc<dyn Fetch> {
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
