//! Layers that came half, and the next attempt.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;

/// Serves blobs from any byte on, and remembers from which.
struct Served {
    blobs: HashMap<Digest, Vec<u8>>,
    /// Breaks off after so many bytes of a blob.
    breaks_at: Option<usize>,
    asked: Mutex<Vec<u64>>,
}

impl Served {
    fn new(test: &TestImage, breaks_at: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            blobs: test.blobs.clone(),
            breaks_at,
            asked: Mutex::default(),
        })
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().unwrap().clone()
    }
}

impl Fetch for Served {
    fn whole(
        &self,
        layer: &Layer,
        from: u64,
    ) -> BoxFuture<'static, Result<ByteStream, image::Error>> {
        self.asked.lock().unwrap().push(from);
        let blob = &self.blobs[&layer.digest];
        let end = self.breaks_at.unwrap_or(blob.len()).min(blob.len());
        let rest = &blob[(from as usize).min(end)..end];
        let pieces = rest.chunks(100_000).map(Bytes::copy_from_slice);
        let mut pieces: Vec<_> = pieces.map(Ok).collect();
        if end < blob.len() {
            pieces.push(Err(image::Error::NotSupported("it broke".to_owned())));
        }
        async move { Ok(futures_util::stream::iter(pieces).boxed()) }.boxed()
    }
}

const HALF: usize = 10 << 20;

/// An image with one layer that is worth keeping half, and a small one.
fn large(seed: u64, compression: Compression) -> TestImage {
    let mut dice = fastrand::Rng::with_seed(seed);
    let noise: Vec<u8> = std::iter::repeat_with(|| dice.u8(..))
        .take(17 << 20)
        .collect();
    let tar = Tar::new().entry(tar::EntryType::Regular, "usr/large", "", &noise);
    TestImage::default()
        .layer(compression, tar.file("usr/after", "after"))
        .layer(compression, Tar::new().file("usr/small", "small"))
}

fn kept_at(host: &Host, test: &TestImage) -> PathBuf {
    let digest = test.image().layers[0].digest.clone();
    partial_blob::path_of(&host.dir.path().join("tmp"), &digest)
}

/// What is kept of layers, of any.
fn all_kept(host: &Host) -> Vec<PathBuf> {
    let tmp = std::fs::read_dir(host.dir.path().join("tmp")).unwrap();
    let mut paths: Vec<_> = tmp.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.display().to_string().contains(partial_blob::PREFIX));
    paths
}

fn leave(host: &Host, test: &TestImage, content: &[u8]) {
    let path = kept_at(host, test);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_goes_on_where_the_last_one_broke_off() {
    let test = large(1, Compression::Zstd);
    let image = test.image();
    let (size, small) = (image.layers[0].size, image.layers[1].size);
    let mut host = Host::new();
    let broken = Served::new(&test, Some(HALF));
    host.import_with(&test, broken).await.unwrap_err();
    let kept = std::fs::metadata(kept_at(&host, &test)).unwrap();
    assert_eq!(kept.len(), HALF as u64);
    let rest = size - HALF as u64;
    let plan = plan(&host.repo(), &image).unwrap();
    let missing: u64 = plan.missing.iter().map(|layer| layer.size).sum();
    // The small one may have come through beside it.
    assert_eq!(plan.download_size(), missing - HALF as u64);
    assert_eq!(plan.cached_size(), size + small - plan.download_size());

    let served = Served::new(&test, None);
    let imported = host.import_with(&test, served.clone()).await.unwrap();
    assert!(served.asked().contains(&(HALF as u64)));
    assert_eq!(imported.bytes_fetched, missing - HALF as u64);
    let (layers, to_fetch, cached) = *host.recorder.total.lock().unwrap();
    assert_eq!(layers as usize, plan.missing.len());
    assert_eq!(to_fetch, imported.bytes_fetched);
    assert_eq!(cached, plan.cached_size());
    assert_eq!(host.recorder.bytes.load(Ordering::Relaxed), to_fetch);
    assert!(to_fetch == rest || to_fetch == rest + small);
    assert!(all_kept(&host).is_empty());
    host.fsck();
}

#[test]
fn only_what_can_be_gone_on_with_need_not_be_fetched() {
    let test = large(8, Compression::Plain);
    let image = test.image();
    let blob = &test.blobs[&image.layers[0].digest];
    let host = Host::new();
    let path = kept_at(&host, &test);
    let kept = || plan(&host.repo(), &image).unwrap().kept;
    assert_eq!(kept(), 0);
    leave(&host, &test, &blob[..HALF]);
    assert_eq!(kept(), HALF as u64);
    leave(&host, &test, &[blob.as_slice(), b"more"].concat());
    assert_eq!(kept(), 0);
    let other = host.dir.path().join("other");
    std::fs::rename(&path, &other).unwrap();
    std::fs::write(&other, &blob[..HALF]).unwrap();
    std::os::unix::fs::symlink(&other, &path).unwrap();
    assert_eq!(kept(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_came_whole_but_has_no_ref_is_not_asked_for() {
    let test = large(2, Compression::Plain);
    let image = test.image();
    let mut host = Host::new();
    leave(&host, &test, &test.blobs[&image.layers[0].digest]);
    let served = Served::new(&test, None);
    let imported = host.import_with(&test, served.clone()).await.unwrap();
    assert_eq!(served.asked(), [0], "only the small one");
    assert_eq!(imported.bytes_fetched, image.layers[1].size);
    assert_eq!(imported.layers_written, 2);
    assert!(all_kept(&host).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_bytes_that_are_not_the_blobs_cost_no_more_than_themselves() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let test = large(3, compression);
        let digest = test.image().layers[0].digest.clone();
        for at in [10, 200, HALF - 1] {
            let mut host = Host::new();
            let mut half = test.blobs[&digest][..HALF].to_vec();
            half[at] ^= 0x55;
            leave(&host, &test, &half);
            let served = Served::new(&test, None);
            let imported = host.import_with(&test, served.clone()).await.unwrap();
            let mut asked = served.asked();
            asked.sort_unstable();
            // The rest, unless the beginning was enough to see it; both layers from the start.
            asked.retain(|from| *from != HALF as u64);
            assert_eq!(asked, [0, 0], "{compression:?} changed at {at}");
            let (_, told, _) = *host.recorder.total.lock().unwrap();
            let fetched = host.recorder.bytes.load(Ordering::Relaxed);
            assert!(imported.bytes_fetched <= fetched && fetched <= told);
            let tree = host.tree(&imported.commit);
            let after = host.content(&tree, "usr/after");
            assert_eq!(after.as_deref(), Some("after"));
            assert!(all_kept(&host).is_empty());
            host.fsck();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_of_a_layer_that_turns_out_to_be_wrong() {
    // Damaged on the way, and genuine but refused.
    let mut damaged = large(4, Compression::Plain);
    let digest = damaged.image().layers[0].digest.clone();
    damaged.blobs.get_mut(&digest).unwrap()[HALF] ^= 1;
    let noise = fastrand::Rng::with_seed(5).u64(..).to_string();
    let tar = Tar::new().file("usr/large", &noise.repeat(1 << 20)).raw(
        tar::EntryType::Fifo,
        b"usr/pipe",
        0o600,
    );
    let refused = TestImage::default().layer(Compression::Plain, tar);
    for test in [damaged, refused] {
        let mut host = Host::new();
        let error = host
            .import_with(&test, Served::new(&test, None))
            .await
            .unwrap_err();
        let expected = matches!(error, Error::DigestMismatch { .. } | Error::Layer { .. });
        assert!(expected, "{error}");
        assert!(all_kept(&host).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn halves_stay_as_long_as_somebody_comes_back_to_them() {
    let (first, second) = (large(6, Compression::Plain), large(7, Compression::Plain));
    let (first_digest, second_digest) = (first.image().digest, second.image().digest);
    let mut host = Host::new();
    let halve = |test: &TestImage| Served::new(test, Some(HALF));
    host.import_with(&first, halve(&first)).await.unwrap_err();
    host.needed = vec![first_digest.clone()];
    host.import_with(&second, halve(&second)).await.unwrap_err();
    let both = all_kept(&host);
    assert_eq!(both.len(), 2, "{both:?}");

    let path = host.dir.path().to_owned();
    let count = |wanted, dry_run| discard_half_fetched(&path, &wanted, dry_run).unwrap();
    assert_eq!(count(Wanted::Guarded, false), 0);
    // Counted, but not removed.
    let one = Wanted::Only(vec![second_digest]);
    assert!(count(one.clone(), true) >= HALF as u64);
    assert_eq!(all_kept(&host).len(), 2);
    let room = leftovers::room(&host.repo()).unwrap();
    assert!(room >= error::available(&host.repo()) + 2 * HALF as u64 - (1 << 20));
    assert!(count(one, false) >= HALF as u64);
    assert_eq!(all_kept(&host), [kept_at(&host, &second)]);

    // What has another name than any digest is nobody's; a link is not followed.
    let tmp = host.dir.path().join("tmp");
    std::os::unix::fs::symlink(path.join("config"), tmp.join("osteward-blob-x")).unwrap();
    // The next import is of the first again, and nobody comes back to the second.
    host.needed.clear();
    host.import_with(&first, Served::new(&first, None))
        .await
        .unwrap();
    assert!(all_kept(&host).is_empty());
    assert!(host.dir.path().join("config").exists());
}
