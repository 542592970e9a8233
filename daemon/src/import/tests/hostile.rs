//! Layers that want more than they should get: memory, disk, time.

use super::*;
use tokio::process::Command;

/// So many zeros are compressed at a time.
const PIECE: usize = 4 << 20;

/// `count` bytes of zeros between `before` and `after`, compressed in pieces of [`PIECE`] bytes,
/// and the digest of it all.
fn padded(compression: Compression, before: &[u8], count: u64, after: &[u8]) -> (Vec<u8>, Digest) {
    use sha2::{Digest as _, Sha256};
    assert_eq!(count % PIECE as u64, 0);
    let zeros = vec![0; PIECE];
    let piece = match compression {
        Compression::Gzip => {
            let best = flate2::Compression::best();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), best);
            encoder.write_all(&zeros).unwrap();
            encoder.finish().unwrap()
        }
        other => compress(other, &zeros),
    };
    let mut hasher = Sha256::new_with_prefix(before);
    let mut blob = compress(compression, before);
    for _ in 0..count / PIECE as u64 {
        hasher.update(&zeros);
        blob.extend_from_slice(&piece);
    }
    hasher.update(after);
    blob.extend(compress(compression, after));
    (blob, Digest::from_sha256(&hasher.finalize().into()))
}

/// The header of a file of that size.
fn header(path: &str, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path).unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_thousand_empty_files_are_one_object() {
    let mut tar = Tar::new();
    for number in 0..200_000 {
        tar = tar.file(&format!("usr/{}/{number}", number % 7), "");
    }
    let mut host = Host::new();
    let test = TestImage::default().layer(Compression::Gzip, tar);
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    let files: usize = tree.dirs["usr"].dirs.values().map(|d| d.files.len()).sum();
    assert_eq!(files, 200_000);
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_five_gigabytes_is_a_file_like_any_other() {
    const SIZE: u64 = 5 << 30;
    let before = header("usr/large", SIZE);
    let (blob, diff_id) = padded(Compression::Zstd, &before, SIZE, &[0; 1024]);
    // The spool has a hole, and a repository of this mode compresses: nothing of it gets to the disk.
    let mut host = Host::with_mode(ostree::RepoMode::Archive);
    let config = host.repo().copy_config();
    config.set_string("archive", "zlib-level", "1");
    host.repo().write_config(&config).unwrap();
    let test = TestImage::default().blob(Compression::Zstd, blob, diff_id);
    let imported = host.import(&test).await.unwrap();
    let id = host.tree(&imported.commit).dirs["usr"].files["large"];
    let (_, info, _) = host
        .repo()
        .load_file(&hex(&id), gio::Cancellable::NONE)
        .unwrap();
    assert_eq!(info.size() as u64, SIZE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_fit_is_refused_before_it_is_written() {
    const SIZE: u64 = 1 << 50;
    let (blob, diff_id) = padded(
        Compression::Gzip,
        &header("usr/large", SIZE),
        64 * PIECE as u64,
        &[],
    );
    let mut host = Host::new();
    let test = TestImage::default().blob(Compression::Gzip, blob, diff_id);
    let error = host.import(&test).await.unwrap_err();
    assert!(
        matches!(&error, Error::NoSpace { need: SIZE, have, .. } if *have > 0),
        "{error}"
    );
    assert_eq!(host.refs(), [guard(&test)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_without_end_after_the_tar_cost_no_memory() {
    // The same on its way through a whole daemon is measured in the system tests.
    let tar = Tar::new().file("usr/a", "a").bytes();
    let (blob, diff_id) = padded(Compression::Gzip, &tar, 256 * PIECE as u64, &[]);
    assert!(blob.len() < 2 << 20, "no bomb: {} bytes", blob.len());
    let mut host = Host::new();
    let test = TestImage::default().blob(Compression::Gzip, blob, diff_id);
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    assert_eq!(host.content(&tree, "usr/a").as_deref(), Some("a"));
}

/// A tar that GNU tar makes of a file with holes.
async fn sparse(format: &str) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("usr")).unwrap();
    let file = std::fs::File::create(dir.path().join("usr/sparse")).unwrap();
    for number in 0..9 {
        file.write_all_at(b"island", number * (1 << 20)).unwrap();
    }
    file.set_len(10 << 20).unwrap();
    let made = Command::new("tar")
        .args(["--create", "--sparse", "--owner=0", "--group=0", format])
        .arg("--directory")
        .args([dir.path().as_os_str(), "usr".as_ref()])
        .output()
        .await
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    assert!(made.stdout.len() < 1 << 20, "not sparse");
    made.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_filled_in() {
    let tar = sparse("--format=gnu").await;
    let blob = compress(Compression::Gzip, &tar);
    let test = TestImage::default().blob(Compression::Gzip, blob, Digest::of(&tar));
    let mut host = Host::new();
    let imported = host.import(&test).await.unwrap();
    let content = host.content(&host.tree(&imported.commit), "usr/sparse");
    let mut expected = vec![0; 10 << 20];
    for number in 0..9 {
        expected[number << 20..][..6].copy_from_slice(b"island");
    }
    assert_eq!(content.unwrap().into_bytes(), expected);
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_in_the_pax_way_are_refused() {
    let tar = sparse("--format=posix").await;
    let blob = compress(Compression::Gzip, &tar);
    let test = TestImage::default().blob(Compression::Gzip, blob, Digest::of(&tar));
    let error = Host::new().import(&test).await.unwrap_err();
    assert!(
        matches!(&error, Error::Layer { reason, .. } if reason.contains("sparse")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_lead_elsewhere_stay_inside() {
    let tar = Tar::new()
        .file("usr/target", "inside")
        .hard_link("usr/absolute", "/usr/target")
        .hard_link("usr/before", "usr/after")
        .file("usr/after", "later")
        .symlink("usr/out", "/etc/shadow")
        .symlink("usr/up", "../../../../etc/shadow");
    let mut host = Host::new();
    let test = TestImage::default().layer(Compression::Gzip, tar);
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    for (path, content) in [
        ("usr/absolute", "inside"),
        ("usr/before", "later"),
        ("usr/out", "-> /etc/shadow"),
        ("usr/up", "-> ../../../../etc/shadow"),
    ] {
        assert_eq!(host.content(&tree, path).as_deref(), Some(content));
    }
    for (tar, words) in [
        (
            Tar::new().hard_link("usr/a", "/etc/passwd"),
            "not in this layer",
        ),
        (
            Tar::new()
                .symlink("usr/l", "/etc")
                .file("usr/l/passwd", "x"),
            "not a directory",
        ),
        (
            Tar::new().symlink("usr/l", "/etc").dir("usr/l/d"),
            "not a directory",
        ),
    ] {
        let test = TestImage::default().layer(Compression::Gzip, tar);
        let error = Host::new().import(&test).await.unwrap_err();
        assert!(
            matches!(&error, Error::Layer { reason, .. } if reason.contains(words)),
            "{error}"
        );
    }
}
