//! Layers of which only those files are fetched that are not here.

use std::sync::OnceLock;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::*;
use crate::chunked::sample::Sample;
use crate::delta::Patch;
use crate::import::index::INDEX_KEY;
use crate::import::objects::{Attributes, Id, S_IFLNK, file_header, sha256};
use crate::import::partial::{Reach, Stock, Terms, pull};

/// A source that has parts of layers, and counts.
struct Parts {
    blobs: HashMap<Digest, Vec<u8>>,
    /// What was asked for; all of a layer for the whole.
    asked: Mutex<Vec<Range<u64>>>,
    wholes: AtomicUsize,
    /// After so many parts …
    enough: usize,
    /// … this is what happens.
    then: fn() -> image::Error,
}

impl Parts {
    fn of(test: &TestImage) -> Arc<Self> {
        Self::until(test, usize::MAX, || image::Error::NoRanges)
    }

    fn until(test: &TestImage, enough: usize, then: fn() -> image::Error) -> Arc<Self> {
        Arc::new(Self {
            blobs: test.blobs.clone(),
            asked: Mutex::default(),
            wholes: AtomicUsize::new(0),
            enough,
            then,
        })
    }

    fn bytes(&self) -> u64 {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|range| range.end - range.start).sum()
    }

    fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn wholes(&self) -> usize {
        self.wholes.load(Ordering::Relaxed)
    }

    fn stream(&self, layer: &Layer, range: Range<u64>) -> ByteStream {
        let blob = &self.blobs[&layer.digest][range.start as usize..range.end as usize];
        let pieces: Vec<_> = blob.chunks(7000).map(Bytes::copy_from_slice).collect();
        futures_util::stream::iter(pieces.into_iter().map(Ok)).boxed()
    }
}

impl Fetch for Parts {
    fn whole(
        &self,
        layer: &Layer,
        from: u64,
    ) -> BoxFuture<'static, Result<ByteStream, image::Error>> {
        self.wholes.fetch_add(1, Ordering::Relaxed);
        self.asked.lock().unwrap().push(from..layer.size);
        let stream = self.stream(layer, from..layer.size);
        async { Ok(stream) }.boxed()
    }

    fn part(
        &self,
        layer: &Layer,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<ByteStream, image::Error>> {
        let mut asked = self.asked.lock().unwrap();
        let result = if asked.len() < self.enough {
            asked.push(range.clone());
            Ok(self.stream(layer, range))
        } else {
            Err((self.then)())
        };
        async { result }.boxed()
    }

    fn has_parts(&self) -> bool {
        true
    }

    fn connections(&self) -> usize {
        4
    }

    fn pace(&self) -> Pace {
        // Near and slow: few bytes are fetched between those that are wanted.
        Pace {
            round_trip: std::time::Duration::from_micros(1),
            bytes_per_second: 1e6,
        }
    }
}

/// Text that hardly compresses, the same for the same seed.
fn noise(seed: u64, length: usize) -> String {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let mut text = BASE64_STANDARD.encode(bytes);
    text.truncate(length);
    text
}

/// More than is decided about in memory.
const BIG: usize = 2_200_000;

/// A system of some files; in each version some of them differ.
fn system(version: u64) -> Tar {
    let mut tar = Tar::new()
        .dir("./")
        .dir("./usr/")
        .pax(&[("SCHILY.xattr.user.b", b"2"), ("SCHILY.xattr.user.a", b"1")])
        .file("./usr/bin/sh", &noise(1, 5000))
        .hard_link("./usr/bin/dash", "./usr/bin/sh")
        .symlink("./usr/bin/bash", "sh")
        .file("./usr/empty", "")
        .file("./usr/lib/big", &noise(version, BIG))
        .file("./etc/os-release", &format!("VERSION={version}"))
        // Dropped from the tree, but a part of the tar.
        .file("./dev/secret", &noise(2, 4000))
        .file("./run/version", &format!("dropped in version {version}"));
    for number in 0..150 {
        let seed = match number {
            // Neither here nor the same as others.
            7 | 70 | 71 => 1000 * version + number,
            // One content under several names.
            100..110 => 100,
            _ => 10_000 + number,
        };
        let length = 20_000 + if seed == 100 { 100 } else { number as usize };
        tar = tar.file(&format!("./usr/share/{number}"), &noise(seed, length));
    }
    // The same contents under other owners and modes, from the second version on.
    if version > 1 {
        tar = tar
            .raw(tar::EntryType::Directory, b"usr/private", 0o700)
            .owned("./usr/private/a", &noise(10_003, 20_003))
            .owned("./usr/private/new", &noise(1000 * version + 7, 20_007));
    }
    tar
}

impl Tar {
    fn owned(mut self, path: &str, content: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4750);
        header.set_uid(5);
        header.set_gid(6);
        header.set_size(content.len() as u64);
        self.0
            .append_data(&mut header, path, content.as_bytes())
            .unwrap();
        self
    }
}

impl TestImage {
    fn chunked(self, tar: Tar) -> Self {
        let tar = tar.bytes();
        self.chunked_as(&tar, |_| ())
    }

    /// The table of contents says what `change` makes of it.
    fn chunked_as(self, tar: &[u8], change: impl FnOnce(&mut Sample)) -> Self {
        let mut sample = Sample::new(tar);
        change(&mut sample);
        let (blob, chunked) = sample.blob();
        let digest = Digest::of(&blob);
        let mut test = self.blob(Compression::Zstd, blob, Digest::of(tar));
        test.chunked.insert(digest, chunked);
        test
    }
}

/// Made once for all tests.
fn version(number: usize) -> TestImage {
    static VERSIONS: [OnceLock<TestImage>; 3] = [const { OnceLock::new() }; 3];
    let made =
        VERSIONS[number - 1].get_or_init(|| TestImage::default().chunked(system(number as u64)));
    made.clone()
}

fn size(test: &TestImage) -> u64 {
    test.image().layers[0].size
}

/// The commit of the first layer.
fn layer_commit(host: &Host, test: &TestImage) -> Option<String> {
    resolve(&host.repo(), &blob_ref(&test.image().layers[0].digest)).unwrap()
}

/// What a whole pull of the image makes of its first layer; done once for all tests.
async fn whole(test: &TestImage) -> String {
    static COMMITS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let key = test.image().digest.to_string();
    let known = COMMITS.lock().unwrap().get(&key).cloned();
    if let Some(commit) = known {
        return commit;
    }
    let mut host = Host::new();
    host.import_with(test, memory(test)).await.unwrap();
    let commit = layer_commit(&host, test).unwrap();
    COMMITS.lock().unwrap().insert(key, commit.clone());
    commit
}

/// Fetched as parts, and the same as the whole.
async fn assert_partial(host: &mut Host, test: &TestImage, at_most: u64) {
    let source = Parts::of(test);
    let imported = host.import_with(test, source.clone()).await.unwrap();
    let notes = host.recorder.notes.lock().unwrap().clone();
    assert_eq!(source.wholes(), 0, "{notes:?}");
    assert_eq!(imported.bytes_fetched, source.bytes());
    assert!(source.bytes() <= at_most, "{} bytes", source.bytes());
    let told = host.recorder.bytes.load(Ordering::Relaxed);
    assert_eq!(told, source.bytes());
    assert_eq!(layer_commit(host, test).unwrap(), whole(test).await);
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_missing_is_fetched_and_the_layer_is_the_same() {
    let mut host = Host::new();
    // Nothing is here yet, so parts would save nothing.
    let first = version(1);
    let source = Parts::of(&first);
    host.import_with(&first, source.clone()).await.unwrap();
    assert_eq!((source.wholes(), source.requests()), (1, 1));
    assert_partial(&mut host, &version(2), size(&version(2)) * 6 / 10).await;
    assert_partial(&mut host, &version(3), size(&version(3)) * 6 / 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_without_an_index_find_files_at_their_paths() {
    let mut host = Host::new();
    let plain = TestImage::default().layer(Compression::Gzip, system(1));
    host.import(&plain).await.unwrap();
    assert!(!host.dir.path().join("extensions/osteward").exists());
    assert_partial(&mut host, &version(2), size(&version(2)) * 6 / 10).await;
}

/// The index that the merge commit names.
fn index_of(host: &Host, commit: &str) -> (Option<String>, std::path::PathBuf) {
    let (variant, _) = host.repo().load_commit(commit).unwrap();
    let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
    let named = metadata.lookup::<String>(INDEX_KEY).unwrap();
    let directory = host.dir.path().join("extensions/osteward/index");
    (named, directory.join(format!("{commit}.cidx")))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_written_with_its_commit_and_can_be_lost() {
    let mut host = Host::new();
    let first = version(1);
    let source = Parts::of(&first);
    let commit = host.import_with(&first, source).await.unwrap().commit;
    let (named, path) = index_of(&host, &commit);
    let bytes = std::fs::read(&path).unwrap();
    let (rest, digest) = bytes.split_last_chunk::<32>().unwrap();
    assert_eq!(named, Some(hex(digest)));
    assert_eq!(crate::import::objects::sha256(rest), *digest);
    // Each content of the tree: 150 files of which 10 are the same, and three others.
    assert_eq!((rest.len() - 16) / 104, 150 - 9 + 3);

    // Damaged: what it knew is found at the paths.
    let mut damaged = bytes.clone();
    damaged[200] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    assert_partial(&mut host, &version(2), size(&version(2)) * 6 / 10).await;
    // The first image has no name any more; its index goes with its commit.
    let repo = host.repo();
    repo.delete_object(ObjectType::Commit, &commit, gio::Cancellable::NONE)
        .unwrap();
    assert_partial(&mut host, &version(3), size(&version(3)) * 6 / 10).await;
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_fetched_is_known_before() {
    let mut host = Host::new();
    let (first, second) = (version(1), version(2));
    host.import_with(&first, Parts::of(&first)).await.unwrap();
    let source = Parts::of(&second);
    let request = PlanRequest {
        repo_path: host.dir.path().to_owned(),
        image: Arc::new(second.image()),
        fetch: source.clone(),
        deltas: Arc::default(),
        observer: host.recorder.clone(),
        cancel: CancellationToken::new(),
    };
    let (plan, fetched) = plan_by_parts(request).await.unwrap();
    assert_eq!((source.requests(), fetched), (1, source.bytes()));
    assert_eq!(plan.missing.len(), 1);
    let source = Parts::of(&second);
    let imported = host.import_with(&second, source.clone()).await.unwrap();
    // The table of contents was kept, and nothing of it is left now.
    assert_eq!(imported.bytes_fetched, plan.download_size());
    assert_eq!(host.recorder.total.lock().unwrap().1, plan.download_size());
    let tmp = std::fs::read_dir(host.dir.path().join("tmp")).unwrap();
    let names: Vec<_> = tmp.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_string_lossy().starts_with("osteward-")),
        "{names:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_before_a_failure_is_not_fetched_again() {
    let mut host = Host::new();
    let (first, second) = (version(1), version(2));
    host.import_with(&first, Parts::of(&first)).await.unwrap();
    let good = {
        let mut fresh = Host::new();
        fresh.import_with(&first, Parts::of(&first)).await.unwrap();
        let all = Parts::of(&second);
        fresh.import_with(&second, all.clone()).await.unwrap();
        all
    };
    // All but the last piece comes.
    let enough = good.requests() - 1;
    assert!(enough > 1, "{enough}");
    let source = Parts::until(&second, enough, || {
        image::Error::NotSupported("gone".into())
    });
    let failed = host.import_with(&second, source.clone()).await;
    assert!(matches!(failed, Err(Error::Fetch(_))), "{failed:?}");
    assert_eq!(layer_commit(&host, &second), None);
    let before = source.bytes();
    let source = Parts::of(&second);
    host.import_with(&second, source.clone()).await.unwrap();
    // The one that is left is asked for, and nothing else: the table of contents was kept, too.
    assert_eq!((source.wholes(), source.requests()), (0, 1));
    assert_eq!(source.bytes() + before, good.bytes());
    assert_eq!(layer_commit(&host, &second).unwrap(), whole(&second).await);
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_parts_the_whole_layer_comes() {
    // At once, and in the middle.
    for enough in [0, 2] {
        let mut host = Host::new();
        let (first, second) = (version(1), version(2));
        host.import_with(&first, Parts::of(&first)).await.unwrap();
        let source = Parts::until(&second, enough, || image::Error::NoRanges);
        let imported = host.import_with(&second, source.clone()).await.unwrap();
        assert_eq!(source.wholes(), 1);
        assert_eq!(imported.bytes_fetched, source.bytes());
        let notes = host.recorder.notes.lock().unwrap().clone();
        assert!(notes.iter().any(|n| n.contains("no parts")), "{notes:?}");
        assert_eq!(layer_commit(&host, &second).unwrap(), whole(&second).await);
        host.fsck();
    }
}

fn entry<'a>(sample: &'a mut Sample, name: &str) -> &'a mut serde_json::Value {
    let entries = sample.toc["entries"].as_array_mut().unwrap();
    let mut named = entries.iter_mut().filter(|entry| entry["name"] == name);
    named.next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_say_something_else_than_the_tar_are_not_followed() {
    type Change = fn(&mut Sample);
    let changes: [(&str, Change); 5] = [
        ("mode", |sample| {
            entry(sample, "usr/share/5")["mode"] = 0o4755.into();
        }),
        ("owner", |sample| {
            entry(sample, "usr/share/5")["uid"] = 7.into();
        }),
        ("missing entry", |sample| {
            let entries = sample.toc["entries"].as_array_mut().unwrap();
            entries.retain(|entry| entry["name"] != "usr/share/5");
        }),
        ("tar-split", |sample| {
            sample.toc["tarSplitDigest"] = Digest::of(b"other").as_str().into();
        }),
        ("no table", |sample| sample.toc = "nothing".into()),
    ];
    let mut host = Host::new();
    let first = version(1);
    host.import_with(&first, Parts::of(&first)).await.unwrap();
    for (name, change) in changes {
        let lying = TestImage::default().chunked_as(&system(2).bytes(), change);
        let source = Parts::of(&lying);
        host.import_with(&lying, source.clone()).await.unwrap();
        let notes = host.recorder.notes.lock().unwrap().clone();
        assert_eq!(source.wholes(), 1, "{name}: {notes:?}");
        assert!(
            notes.iter().any(|n| n.contains("table of contents")),
            "{name}: {notes:?}"
        );
        assert_eq!(layer_commit(&host, &lying).unwrap(), whole(&lying).await);
        // For the next one, which would find all of it here otherwise.
        host = Host::new();
        host.import_with(&first, Parts::of(&first)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_that_are_not_those_of_the_tar_are_not_followed() {
    let mut host = Host::new();
    let first = version(1);
    host.import_with(&first, Parts::of(&first)).await.unwrap();
    let swapped = TestImage::default().chunked_as(&system(2).bytes(), |sample| {
        let other = Digest::of(noise(10_003, 20_003).as_bytes());
        let entry = entry(sample, "usr/private/a");
        assert_eq!(entry["digest"], other.as_str());
        entry["digest"] = Digest::of(noise(1000, 20_003).as_bytes()).as_str().into();
    });
    // The content that the table names is nowhere, so the file comes, and is another one.
    comes_whole(&mut host, &swapped, "has the content").await;

    // Here it is somewhere.
    let same = |version: u64, content: &str| {
        let tar = system(version).file("./usr/zz", content);
        tar.file("./usr/zzz", &noise(99, 6)).bytes()
    };
    let first = TestImage::default().chunked(system(1).file("./usr/y", &noise(98, 6)));
    host.import_with(&first, Parts::of(&first)).await.unwrap();
    let lying = TestImage::default().chunked_as(&same(2, &noise(97, 6)), |sample| {
        let here = Digest::of(noise(98, 6).as_bytes());
        entry(sample, "usr/zz")["digest"] = here.as_str().into();
    });
    comes_whole(&mut host, &lying, "make a tar with the digest").await;
}

/// The tree is that of the tar, and a note says why not of the table.
async fn comes_whole(host: &mut Host, test: &TestImage, why: &str) {
    let source = Parts::of(test);
    let imported = host.import_with(test, source.clone()).await.unwrap();
    let notes = host.recorder.notes.lock().unwrap().clone();
    assert_eq!(source.wholes(), 1, "{notes:?}");
    assert!(notes.iter().any(|note| note.contains(why)), "{notes:?}");
    let told = host.recorder.bytes.load(Ordering::Relaxed);
    assert_eq!(imported.bytes_fetched, told);
    assert_eq!(host.recorder.total.lock().unwrap().1, told - table(test));
    assert_eq!(layer_commit(host, test).unwrap(), whole(test).await);
    host.fsck();
}

/// A source that lets something happen before each part, and is far away once somebody knows how near it is.
struct Meddled {
    parts: Arc<Parts>,
    paced: AtomicBool,
    meddle: Box<dyn Fn(usize) + Send + Sync>,
}

impl Fetch for Meddled {
    fn whole(
        &self,
        layer: &Layer,
        from: u64,
    ) -> BoxFuture<'static, Result<ByteStream, image::Error>> {
        self.parts.whole(layer, from)
    }

    fn part(
        &self,
        layer: &Layer,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<ByteStream, image::Error>> {
        (self.meddle)(self.parts.requests());
        self.parts.part(layer, range)
    }

    fn has_parts(&self) -> bool {
        true
    }

    fn connections(&self) -> usize {
        1
    }

    fn pace(&self) -> Pace {
        if !self.paced.swap(true, Ordering::Relaxed) {
            return self.parts.pace();
        }
        Pace {
            round_trip: std::time::Duration::from_secs(1),
            bytes_per_second: 1e9,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_planned_is_done_whatever_the_pace_is_then() {
    let mut host = Host::new();
    let (first, second) = (version(1), version(2));
    host.import_with(&first, Parts::of(&first)).await.unwrap();
    let parts = Parts::of(&second);
    let source = Meddled {
        parts: parts.clone(),
        paced: AtomicBool::new(false),
        meddle: Box::new(|_| ()),
    };
    host.import_with(&second, Arc::new(source)).await.unwrap();
    // One request for the table, which is not read again, and then what was planned.
    assert!(parts.requests() > 3, "{}", parts.requests());
    assert_eq!(
        host.recorder.total.lock().unwrap().1,
        parts.bytes() - table(&second)
    );
    assert_eq!(layer_commit(&host, &second).unwrap(), whole(&second).await);
}

/// Bytes of the first request, which brings the table of contents; they come before anything is told.
fn table(test: &TestImage) -> u64 {
    let image = test.image();
    let chunked = image.layers[0].chunked.clone().unwrap();
    let split = chunked.tar_split.unwrap();
    let end = chunked.toc.end().max(split.end());
    end - chunked.toc.offset.min(split.offset)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_between_two_slices_is_written_again() {
    let mut host = Host::new();
    let (first, second) = (version(1), version(2));
    host.import_with(&first, Parts::of(&first)).await.unwrap();
    let attributes = Attributes {
        mode: S_IFLNK | 0o777,
        ..Attributes::default_directory()
    };
    let link = sha256(&file_header(&attributes, "sh"));
    let has = |host: &Host, id: &Id| {
        let (kind, id) = (ObjectType::File, hex(id));
        let has = host.repo().has_object(kind, &id, gio::Cancellable::NONE);
        has.unwrap()
    };
    assert!(has(&host, &link));
    let path = host.dir.path().to_owned();
    let fetch: Arc<dyn Fetch> = Arc::new(Meddled {
        parts: Parts::of(&second),
        paced: AtomicBool::new(false),
        // The table, the piece of the first slice, and then there was a moment without a transaction.
        meddle: Box::new(move |requests| {
            if requests == 2 {
                let repo = open(&path, &gio::Cancellable::new()).unwrap();
                let kind = ObjectType::File;
                repo.delete_object(kind, &hex(&link), gio::Cancellable::NONE)
                    .unwrap();
            }
        }),
    });
    let observer: Arc<dyn Observer> = host.recorder.clone();
    let (path, layer) = (host.dir.path().to_owned(), second.image().layers[0].clone());
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        let cancellable = gio::Cancellable::new();
        let repo = open(&path, &cancellable).unwrap();
        let (fetched, expected) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let reach = Reach {
            runtime: &runtime,
            fetch: &fetch,
            layer: &layer,
            observer: &observer,
            fetched: &fetched,
            expected: &expected,
            stop: &CancellationToken::new(),
        };
        let terms = Terms {
            stock: &Stock::of(&repo, true).unwrap(),
            rules: PathRules::current(true),
            guess: None,
            whole: layer.size,
        };
        let mut transaction = Transaction::begin(&repo, &cancellable).unwrap();
        let slices = Slices::after(&Digest::of(b"image"), 1);
        let pulled = pull(&reach, &terms, &mut transaction, &slices).unwrap();
        transaction.commit().unwrap();
        pulled.ids
    };
    let ids = tokio::task::spawn_blocking(work).await.unwrap();
    assert!(ids.contains(&link));
    assert!(ids.iter().all(|id| has(&host, id)));
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_fails_leaves_the_parts() {
    let mut host = Host::new();
    let (first, mut second) = (version(1), version(2));
    host.import_with(&first, Parts::of(&first)).await.unwrap();
    let broken = b"<html>".to_vec();
    let patch = Patch {
        to: second.image().layers[0].digest.clone(),
        blob: Digest::of(&broken),
        size: broken.len() as u64,
    };
    second.blobs.insert(patch.blob.clone(), broken);
    host.deltas = vec![Artifact {
        source_config: first.image().config_digest,
        source: None,
        patches: vec![patch],
    }];
    let source = Parts::of(&second);
    let imported = host.import_with(&second, source.clone()).await.unwrap();
    // The delta comes whole, and the layer does not.
    assert_eq!(source.wholes(), 1);
    assert!(source.bytes() <= size(&second) * 6 / 10);
    assert_eq!(imported.bytes_fetched, source.bytes());
    assert_eq!(host.recorder.total.lock().unwrap().1, source.bytes());
    let notes = host.recorder.notes.lock().unwrap().clone();
    assert!(
        notes.len() == 1 && notes[0].contains("is left aside"),
        "{notes:?}"
    );
    assert_eq!(layer_commit(&host, &second).unwrap(), whole(&second).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_the_host_does_not_spread() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 2] = [|content| content[5] ^= 1, |content| content.truncate(100)];
    for damage in damages {
        let mut host = Host::new();
        let (first, second) = (version(1), version(2));
        let imported = host.import_with(&first, Parts::of(&first)).await;
        let tree = host.tree(&imported.unwrap().commit);
        // The same in both versions.
        let path = |name: &str| {
            let object = hex(&tree.dirs["usr"].dirs["share"].files[name]);
            let (bucket, rest) = object.split_at(2);
            let objects = host.dir.path().join("objects");
            objects.join(bucket).join(format!("{rest}.file"))
        };
        let paths = [path("20"), path("30")];
        let good = paths.each_ref().map(|path| std::fs::read(path).unwrap());
        for (path, mut content) in paths.iter().zip(good.clone()) {
            damage(&mut content);
            std::fs::write(path, content).unwrap();
        }
        // What is known to be damaged goes, so that the whole layer brings it anew.
        comes_whole(
            &mut host,
            &second,
            "2 objects of the repository are damaged",
        )
        .await;
        let now = paths.each_ref().map(|path| std::fs::read(path).unwrap());
        assert!(now == good);
    }
}
