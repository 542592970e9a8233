//! Blobs that come in two parts: what was kept, and what is fetched.

use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::super::error::Error;
use super::super::feed::{Feed, Received};
use super::super::{Fetch, MergeStep, Observer};
use super::*;
use crate::image::layer::{Compression, LayerKind};
use crate::image::{self, ByteStream};

const SIZE: usize = 300_000;

/// Small enough that each of them matters.
const TERMS: Terms = Terms {
    small: 1000,
    write: 4096,
    flush: 50_000,
    look: 10_000,
    reserve: 0,
};

/// A source that has one blob, and may break off.
struct Served {
    blob: Vec<u8>,
    breaks_at: Option<usize>,
    asked: Mutex<Vec<u64>>,
}

impl Fetch for Served {
    fn whole(&self, _: &Layer, from: u64) -> BoxFuture<'static, Result<ByteStream, image::Error>> {
        self.asked.lock().unwrap().push(from);
        let end = self.breaks_at.unwrap_or(self.blob.len());
        let rest = &self.blob[from as usize..end];
        let mut pieces: Vec<_> = rest
            .chunks(1777)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        if self.breaks_at.is_some() {
            pieces.push(Err(image::Error::NotSupported("it broke".to_owned())));
        }
        async move { Ok(futures_util::stream::iter(pieces).boxed()) }.boxed()
    }
}

/// Counts what is said to be fetched.
#[derive(Default)]
struct Counter(Mutex<u64>);

impl Observer for Counter {
    fn total(&self, _: u32, _: u64, _: u64) {}
    fn bytes(&self, _: &Digest, delta: u64) {
        *self.0.lock().unwrap() += delta;
    }
    fn layer_started(&self, _: &Layer) {}
    fn layer_done(&self, _: &Layer) {}
    fn downloaded(&self) {}
    fn merging(&self, _: MergeStep) {}
    fn more(&self, _: u64) {}
    fn note(&self, _: String) {}
}

struct Place {
    tmp: tempfile::TempDir,
    blob: Vec<u8>,
    layer: Layer,
}

/// What came of reading a blob.
struct Outcome {
    content: Vec<u8>,
    end: Result<Received, Error>,
    asked: Vec<u64>,
    told: u64,
}

impl Place {
    fn new(size: usize) -> Self {
        let mut dice = fastrand::Rng::with_seed(size as u64);
        let blob: Vec<u8> = std::iter::repeat_with(|| dice.u8(..)).take(size).collect();
        let layer = Layer {
            index: 0,
            digest: Digest::of(&blob),
            size: size as u64,
            compression: Compression::Plain,
            transfer: Transfer::Blob,
            diff_id: Digest::of(&blob),
            kind: LayerKind::Plain,
            chunked: None,
            not_chunked: None,
        };
        Self {
            tmp: tempfile::tempdir().unwrap(),
            blob,
            layer,
        }
    }

    fn path(&self) -> PathBuf {
        path_of(self.tmp.path(), &self.layer.digest)
    }

    /// As an earlier attempt leaves it.
    fn leave(&self, content: &[u8]) {
        fs::write(self.path(), content).unwrap();
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn open(&self) -> Option<PartialBlob> {
        PartialBlob::open_in(self.tmp.path(), &self.layer, TERMS)
    }

    /// Reads the blob from `partial` and a source that breaks off there, if anywhere.
    async fn read(&self, partial: Option<PartialBlob>, breaks_at: Option<usize>) -> Outcome {
        let served = Arc::new(Served {
            blob: self.blob.clone(),
            breaks_at,
            asked: Mutex::default(),
        });
        let counter = Arc::new(Counter::default());
        let (fetch, observer): (Arc<dyn Fetch>, Arc<dyn Observer>) =
            (served.clone(), counter.clone());
        let (runtime, layer) = (Handle::current(), self.layer.clone());
        let read = move || {
            let cancel = CancellationToken::new();
            let mut feed = Feed::open(&runtime, &fetch, &layer, &observer, &cancel, partial);
            let mut content = Vec::new();
            let read = feed.read_to_end(&mut content);
            let end = match read {
                Ok(_) => feed.finish(),
                Err(error) => Err(feed.take_failure().unwrap_or(Error::Io {
                    context: "reading",
                    source: error,
                })),
            };
            (content, end)
        };
        let (content, end) = tokio::task::spawn_blocking(read).await.unwrap();
        let asked = served.asked.lock().unwrap().clone();
        let told = *counter.0.lock().unwrap();
        Outcome {
            content,
            end,
            asked,
            told,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_at_any_byte() {
    let mut dice = fastrand::Rng::with_seed(7);
    let mut cuts = vec![0, 1, 999, 4095, 4096, 4097, SIZE / 2, SIZE - 1, SIZE];
    cuts.extend(std::iter::repeat_with(|| dice.usize(..SIZE)).take(24));
    for cut in cuts {
        let place = Place::new(SIZE);
        if cut > 0 {
            place.leave(&place.blob[..cut]);
        }
        let partial = place.open().unwrap();
        assert_eq!(partial.kept(), cut as u64);
        let outcome = place.read(Some(partial), None).await;
        assert!(outcome.content == place.blob, "cut at {cut}");
        let received = outcome.end.unwrap();
        let rest = (SIZE - cut) as u64;
        assert_eq!((received.fetched, outcome.told), (rest, rest));
        let expected = if cut == SIZE {
            vec![]
        } else {
            vec![cut as u64]
        };
        assert_eq!(outcome.asked, expected);
        // All of it, until somebody says that it is not needed any more.
        assert!(
            fs::read(place.path()).unwrap() == place.blob,
            "cut at {cut}"
        );
        drop(received);
        remove(place.tmp.path(), &place.layer.digest);
        assert_eq!(fs::read_dir(place.tmp.path()).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_before_a_break_is_kept() {
    let place = Place::new(SIZE);
    let mut before = 0;
    for broken in [1, 4096, 100_001, 250_000] {
        let outcome = place.read(place.open(), Some(broken)).await;
        assert!(matches!(outcome.end, Err(Error::Fetch(_))));
        assert_eq!(outcome.asked, [before]);
        assert!(fs::read(place.path()).unwrap() == place.blob[..broken]);
        let mode = fs::metadata(place.path()).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600);
        before = broken as u64;
    }
    let outcome = place.read(place.open(), None).await;
    assert_eq!(outcome.end.unwrap().fetched, SIZE as u64 - before);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_are_found_out() {
    for at in [0, 70_000, 149_999] {
        let place = Place::new(SIZE);
        let mut half = place.blob[..SIZE / 2].to_vec();
        half[at] ^= 1;
        place.leave(&half);
        let outcome = place.read(place.open(), None).await;
        let refused = matches!(outcome.end, Err(Error::DigestMismatch { .. }));
        assert!(refused, "changed at {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_read_again_is_fetched() {
    let place = Place::new(SIZE);
    place.leave(&place.blob[..200_000]);
    let partial = place.open().unwrap();
    let other = fs::OpenOptions::new().write(true).open(place.path());
    other.unwrap().set_len(123_456).unwrap();
    let outcome = place.read(Some(partial), None).await;
    assert_eq!(outcome.asked, [123_456]);
    assert!(outcome.end.is_ok() && outcome.content == place.blob);
    assert!(fs::read(place.path()).unwrap() == place.blob);
}

#[test]
fn nothing_but_an_own_file_is_used() {
    let place = Place::new(SIZE);
    let path = place.path();
    let secret = place.tmp.path().join("secret");
    let fresh = |what: &str| {
        let partial = place.open().unwrap();
        assert_eq!(partial.kept(), 0, "{what}");
        drop(partial);
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(is_ours(&found, SIZE as u64) && found.len() == 0, "{what}");
        assert_eq!(fs::read(&secret).unwrap(), b"secret", "{what}");
        fs::remove_file(&path).unwrap();
    };
    fs::write(&secret, "secret").unwrap();
    symlink(&secret, &path).unwrap();
    fresh("a symbolic link");
    symlink(place.tmp.path().join("nowhere"), &path).unwrap();
    fresh("a link to nothing");
    fs::hard_link(&secret, &path).unwrap();
    fresh("a hard link");
    fs::write(&path, &place.blob[..9]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fresh("a file that others can read");
    place.leave(&vec![0; SIZE + 1]);
    fresh("more than the blob has");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    fresh("a pipe");
    fs::create_dir(&path).unwrap();
    assert!(place.open().is_none());
}

#[test]
fn one_writer_at_a_time() {
    let place = Place::new(SIZE);
    let first = place.open().unwrap();
    assert!(place.open().is_none());
    assert!(place.path().exists());
    drop(first);
    assert!(place.open().is_some());
}

#[test]
fn what_is_small_or_made_here_is_not_kept() {
    for size in [0, 1000] {
        assert!(Place::new(size).open().is_none());
    }
    let mut place = Place::new(SIZE);
    place.layer.transfer = Transfer::Tar;
    assert!(place.open().is_none());
    assert_eq!(fs::read_dir(place.tmp.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_the_first_to_go_when_the_disk_is_full() {
    // Already when it is opened.
    let place = Place::new(SIZE);
    place.leave(&place.blob[..SIZE / 2]);
    let full = Terms {
        reserve: u64::MAX,
        ..TERMS
    };
    assert!(PartialBlob::open_in(place.tmp.path(), &place.layer, full).is_none());
    assert!(!place.path().exists());

    // When the room goes away later, and when a write fails: the blob comes all the same.
    type Trouble = fn(&mut PartialBlob);
    let troubles: [Trouble; 2] = [
        |partial| partial.terms.reserve = u64::MAX,
        |partial| partial.file = File::open(&partial.path).unwrap(),
    ];
    for trouble in troubles {
        place.leave(&place.blob[..SIZE / 2]);
        let mut partial = place.open().unwrap();
        trouble(&mut partial);
        let outcome = place.read(Some(partial), None).await;
        assert!(outcome.content == place.blob);
        assert!(outcome.end.unwrap().partial.is_none());
        assert!(!place.path().exists());
    }
}

#[test]
fn a_file_that_is_given_up_occupies_nothing_although_it_is_open() {
    let place = Place::new(SIZE);
    place.leave(&place.blob[..SIZE / 2]);
    let partial = place.open().unwrap();
    let still = partial.file.try_clone().unwrap();
    partial.give_up(&io::ErrorKind::StorageFull.into());
    assert_eq!(still.metadata().unwrap().blocks(), 0);
    assert!(still.read_at(&mut [0], 0).is_ok_and(|count| count == 0));
}
