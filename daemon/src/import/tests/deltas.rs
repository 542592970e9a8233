//! Layers that a delta beside the image leads to.

use super::*;
use crate::delta::Patch;
use crate::delta::made::{Op, difference, tar_diff};

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

fn old_files() -> HashMap<&'static str, Vec<u8>> {
    HashMap::from([
        ("usr/bin/tool", noise(1, 40_000)),
        ("usr/lib/library", noise(2, 300_000)),
        ("usr/lib/firmware", noise(3, 50_000)),
        ("etc/settings", noise(4, 3_000)),
        ("usr/share/gone", noise(5, 9_000)),
    ])
}

fn tar(files: &[(&str, &[u8])]) -> Tar {
    let mut tar = Tar::new().dir("./").dir("./usr/");
    for (path, content) in files {
        tar = tar.entry(tar::EntryType::Regular, path, "", content);
    }
    tar
}

/// One layer, and one that stays the same.
fn image(layer: Tar) -> TestImage {
    TestImage::default()
        .label("containers.bootc", "1")
        .layer(
            Compression::Gzip,
            Tar::new().dir("usr/").file("usr/same", "same"),
        )
        .layer(Compression::Gzip, layer)
}

fn old_image() -> TestImage {
    let files = old_files();
    let mut entries: Vec<_> = files
        .iter()
        .map(|(path, content)| (*path, &content[..]))
        .collect();
    entries.sort();
    image(tar(&entries))
}

/// A moved file, one with other bytes, one that is longer, one in /etc, and a new one.
fn new_tar() -> Vec<u8> {
    let old = old_files();
    let mut library = old["usr/lib/library"].clone();
    library[1000] ^= 7;
    let mut firmware = old["usr/lib/firmware"].clone();
    firmware.splice(100..100, b"inserted".iter().copied());
    let entries: [(&str, &[u8]); 6] = [
        ("./usr/bin/renamed", &old["usr/bin/tool"]),
        ("./usr/lib/library", &library),
        ("./usr/lib/firmware", &firmware),
        ("./etc/settings", &old["etc/settings"]),
        ("./usr/lib/new", b"new"),
        ("./usr/lib/empty", b""),
    ];
    tar(&entries).bytes()
}

fn new_image() -> TestImage {
    let tar = new_tar();
    let diff_id = Digest::of(&tar);
    TestImage::default()
        .label("containers.bootc", "1")
        .layer(
            Compression::Gzip,
            Tar::new().dir("usr/").file("usr/same", "same"),
        )
        .blob(
            Compression::Gzip,
            compress(Compression::Gzip, &tar),
            diff_id,
        )
}

/// Adds a blob that leads from `old` to the last layer of `new`.
fn publish(new: &mut TestImage, old: &TestImage, diff: Vec<u8>) -> Artifact {
    let (from, image) = (old.image(), new.image());
    let patch = Patch {
        to: image.layers.last().unwrap().digest.clone(),
        blob: Digest::of(&diff),
        size: diff.len() as u64,
    };
    new.blobs.insert(patch.blob.clone(), diff);
    Artifact {
        source_config: from.config_digest,
        source: None,
        patches: vec![patch],
    }
}

fn good_diff() -> Vec<u8> {
    tar_diff(2, &difference(&old_files(), &new_tar()))
}

/// The tree of the new image where no delta is.
async fn fetched_tree() -> Dir {
    let mut host = Host::new();
    let imported = host.import(&new_image()).await.unwrap();
    host.tree(&imported.commit)
}

fn last_size(test: &TestImage) -> u64 {
    test.image().layers.last().unwrap().size
}

#[tokio::test]
async fn a_delta_makes_the_layer_itself() {
    let mut host = Host::new();
    let (old, mut new) = (old_image(), new_image());
    host.import(&old).await.unwrap();
    let diff = good_diff();
    let size = diff.len() as u64;
    host.deltas = vec![publish(&mut new, &old, diff)];
    assert!(size < last_size(&new) / 10, "{size} bytes");
    let layer = new.image().layers.last().unwrap().digest.clone();
    let source = {
        // The layer itself is not to be had.
        let mut blobs = new.blobs.clone();
        blobs.remove(&layer);
        memory(&TestImage {
            blobs,
            ..TestImage::default()
        })
    };
    let imported = host.import_with(&new, source).await.unwrap();
    assert_eq!(imported.bytes_fetched, size);
    assert_eq!(imported.layers_written, 1);
    assert_eq!(host.tree(&imported.commit), fetched_tree().await);
    let recorder = host.recorder.clone();
    let same = new.image().layers[0].size;
    assert_eq!(
        *recorder.total.lock().unwrap(),
        (1, size, same + last_size(&new) - size)
    );
    assert_eq!(recorder.bytes.load(Ordering::Relaxed), size);
    assert!(recorder.notes.lock().unwrap().is_empty());
    assert!(recorder.downloaded.load(Ordering::Relaxed));
    host.fsck();
    // It is the layer from now on.
    let commit = resolve(&host.repo(), &blob_ref(&layer)).unwrap().unwrap();
    let known = plan::content_of(&host.repo(), &commit).unwrap();
    assert_eq!(known, new.diff_ids[1]);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_delta_the_layer_is_fetched() {
    let expected = fetched_tree().await;
    let good = good_diff();
    let other_tar = {
        let mut ops = difference(&old_files(), &new_tar());
        ops.insert(
            0,
            Op::Data(tar(&[("./usr/evil", b"evil")]).bytes()[..1536].to_vec()),
        );
        tar_diff(1, &[&ops[..1], &[Op::Data(new_tar())]].concat())
    };
    let missing_file = tar_diff(
        1,
        &[Op::Data(new_tar()[..512].to_vec()), Op::Open("usr/nothing")],
    );
    let huge = {
        let copies = (0..300).flat_map(|_| [Op::Seek(0), Op::Copy(300_000)]);
        let ops: Vec<_> = std::iter::once(Op::Open("usr/lib/library"))
            .chain(copies)
            .collect();
        tar_diff(1, &ops)
    };
    let boast = {
        let mut header = tar::Header::new_gnu();
        header.set_path("usr/large").unwrap();
        header.set_size(1 << 50);
        header.set_cksum();
        tar_diff(1, &[Op::Data(header.as_bytes().to_vec())])
    };
    for (name, diff) in [
        ("more than there is room for", boast),
        ("cut", good[..good.len() - 10].to_vec()),
        ("no tar-diff", b"<html>".to_vec()),
        ("nothing", Vec::new()),
        ("another tar", other_tar),
        ("no such file", missing_file),
        ("no tar at all", huge),
    ] {
        let mut host = Host::new();
        let (old, mut new) = (old_image(), new_image());
        host.import(&old).await.unwrap();
        let size = diff.len() as u64;
        host.deltas = vec![publish(&mut new, &old, diff)];
        let imported = host.import(&new).await.unwrap();
        assert_eq!(host.tree(&imported.commit), expected, "{name}");
        assert_eq!(imported.bytes_fetched, size + last_size(&new), "{name}");
        let notes = host.recorder.notes.lock().unwrap().clone();
        assert_eq!(notes.len(), 1, "{name}: {notes:?}");
        assert!(notes[0].contains("is left aside"), "{}", notes[0]);
        let total = host.recorder.total.lock().unwrap().1;
        assert_eq!(total, size + last_size(&new), "{name}");
        host.fsck();
    }
}

#[tokio::test]
async fn other_bytes_than_the_delta_are_no_reason_to_fail() {
    let mut host = Host::new();
    let (old, mut new) = (old_image(), new_image());
    host.import(&old).await.unwrap();
    let good = good_diff();
    let artifact = publish(&mut new, &old, good.clone());
    // Its digest is that of the good one.
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    new.blobs.insert(Digest::of(&good), damaged);
    host.deltas = vec![artifact.clone()];
    let imported = host.import(&new).await.unwrap();
    assert_eq!(host.tree(&imported.commit), fetched_tree().await);

    // One that is gone, with everything else in its place.
    let mut host = Host::new();
    host.import(&old).await.unwrap();
    host.deltas = vec![artifact];
    let (blobs, gone) = (new.blobs.clone(), Digest::of(&good));
    let source = Arc::new(move |layer: &Layer| {
        let found = match layer.digest == gone {
            true => Err(image::Error::NotFound { what: "it".into() }),
            false => Ok(Bytes::from(blobs[&layer.digest].clone())),
        };
        let stream = found.map(|blob| futures_util::stream::iter([Ok(blob)]).boxed());
        async move { stream }.boxed()
    });
    let imported = host.import_with(&new, source).await.unwrap();
    assert_eq!(host.tree(&imported.commit), fetched_tree().await);
    assert_eq!(imported.bytes_fetched, last_size(&new));
}

#[tokio::test]
async fn only_a_delta_from_what_is_here_that_is_smaller_is_used() {
    let (old, mut new) = (old_image(), new_image());
    let good = publish(&mut new, &old, good_diff());
    let elsewhere = Artifact {
        source_config: Digest::of(b"elsewhere"),
        ..good.clone()
    };
    let by_manifest = Artifact {
        source: Some(old.image().digest),
        ..elsewhere.clone()
    };
    let large = publish(&mut new, &old, tar_diff(1, &[Op::Data(noise(9, 500_000))]));
    let middle = {
        let ops = difference(&old_files(), &new_tar());
        let more = [Op::Data(noise(7, 1000)), Op::Data(Vec::new())];
        publish(&mut new, &old, tar_diff(1, &[&ops[..], &more].concat()))
    };
    let delta = good.patches[0].size;
    let whole = last_size(&new);
    for (name, deltas, expected) in [
        ("from elsewhere", vec![elsewhere], whole),
        ("known by its manifest", vec![by_manifest], delta),
        ("larger than the layer", vec![large.clone()], whole),
        (
            "the smallest",
            vec![large, middle.clone(), good.clone(), middle],
            delta,
        ),
        ("none", Vec::new(), whole),
    ] {
        let mut host = Host::new();
        host.import(&old).await.unwrap();
        host.deltas = deltas;
        let imported = host.import(&new).await.unwrap();
        assert_eq!(imported.bytes_fetched, expected, "{name}");
    }
    // Nothing of the old image is here, or only what guards it.
    let mut host = Host::new();
    host.deltas = vec![good.clone()];
    let all = host.import(&new).await.unwrap();
    assert_eq!(all.bytes_fetched, new.image().total_size());
    let mut host = Host::new();
    let nothing = Arc::new(|_: &Layer| async { Err(image::Error::NoRanges) }.boxed());
    assert!(host.import_with(&old, nothing).await.is_err());
    assert!(host.refs().contains(&guard(&old)));
    host.deltas = vec![good];
    let all = host.import(&new).await.unwrap();
    assert_eq!(all.bytes_fetched, new.image().total_size());
}

#[tokio::test]
async fn a_check_counts_what_an_update_would_fetch() {
    let mut host = Host::new();
    let (old, mut new) = (old_image(), new_image());
    host.import(&old).await.unwrap();
    let artifact = publish(&mut new, &old, good_diff());
    let size = artifact.patches[0].size;
    let request = |deltas: &[Artifact]| PlanRequest {
        repo_path: host.dir.path().to_owned(),
        image: Arc::new(new.image()),
        fetch: memory(&new),
        deltas: deltas.into(),
        observer: host.recorder.clone(),
        cancel: CancellationToken::new(),
    };
    let (plan, fetched) = plan_by_parts(request(&[artifact])).await.unwrap();
    assert_eq!((plan.download_size(), fetched), (size, 0));
    assert_eq!(plan.missing.len(), 1);
    let (plan, _) = plan_by_parts(request(&[])).await.unwrap();
    assert_eq!(plan.download_size(), last_size(&new));
}

#[tokio::test]
async fn a_stopped_import_is_stopped_and_does_not_fetch_the_layer_instead() {
    let mut host = Host::new();
    let (old, mut new) = (old_image(), new_image());
    host.import(&old).await.unwrap();
    let artifact = publish(&mut new, &old, good_diff());
    let delta = artifact.patches[0].blob.clone();
    host.deltas = vec![artifact];
    let cancel = host.cancel.clone();
    let source = Arc::new(move |layer: &Layer| {
        assert_eq!(layer.digest, delta, "nothing else is asked for");
        let cancel = cancel.clone();
        async move {
            cancel.cancel();
            // Until it is noticed.
            std::future::pending().await
        }
        .boxed()
    });
    let error = host.import_with(&new, source).await.unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
}
