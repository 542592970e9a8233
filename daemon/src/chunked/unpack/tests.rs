//! Contents of blobs that real writers or the tests made.

use std::io::ErrorKind;

use super::super::sample::{OLD_BLOB, Sample, old_chunked, part, sha256, tar, zstd};
use super::super::{Kind, Toc, parse_toc};
use super::*;
use crate::image::reference::Digest;

/// Every file of a blob has the digest that its table says.
fn check(blob: &[u8], toc: &Toc) {
    let mut files = 0;
    for entry in &toc.entries {
        let Kind::File(content) = &entry.kind else {
            continue;
        };
        let bytes = &blob[content.start as usize..content.end as usize];
        let mut file = Vec::new();
        unpack(bytes, content)
            .unwrap()
            .read_to_end(&mut file)
            .unwrap();
        assert_eq!(file.len() as u64, content.size, "{}", entry.name);
        let digest = content
            .digest
            .map(|digest| Digest::from_sha256(&digest).to_string());
        let expected = (content.size > 0).then(|| sha256(&file));
        assert_eq!(digest, expected, "{}", entry.name);
        files += 1;
    }
    assert_eq!(files, 6);
}

#[test]
fn the_files_of_a_real_writer() {
    let chunked = old_chunked();
    let toc = parse_toc(part(OLD_BLOB, &chunked.toc), &chunked).unwrap();
    check(OLD_BLOB, &toc);
}

#[test]
fn the_files_of_a_sample() {
    let sample = Sample::new(&tar());
    let (blob, _) = sample.blob();
    check(&blob, &sample.parse().unwrap());
}

fn content(size: u64) -> Content {
    Content {
        size,
        digest: Some([1; 32]),
        start: 1,
        end: 2,
    }
}

fn read(bytes: &[u8], size: u64) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    unpack(bytes, &content(size))?.read_to_end(&mut file)?;
    Ok(file)
}

#[test]
fn a_file_has_its_size() {
    let frames = [zstd(b"one "), zstd(b""), zstd(b"two")].concat();
    assert_eq!(read(&frames, 7).unwrap(), b"one two");
    let kind = |bytes: &[u8], size| read(bytes, size).unwrap_err().kind();
    assert_eq!(kind(&frames, 8), ErrorKind::UnexpectedEof);
    assert_eq!(kind(&frames, 6), ErrorKind::InvalidData);
    let cut = &frames[..frames.len() - 1];
    assert_eq!(kind(cut, 7), ErrorKind::UnexpectedEof);
    assert!(read(b"no frame", 7).is_err());
    assert_eq!(read(b"", 0).unwrap(), b"");
}

#[test]
fn a_frame_takes_no_more_memory_than_writers_need() {
    for (log, is_read) in [(10, true), (WINDOW_LOG, true), (WINDOW_LOG + 1, false)] {
        // A window of that size, and one block of plain bytes, the last one.
        let header = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (log as u8 - 10) << 3];
        let frame = [&header[..], &[7 << 3 | 1, 0, 0], b"content"].concat();
        let found = read(&frame, 7);
        assert_eq!(found.is_ok_and(|file| file == b"content"), is_read, "{log}");
    }
}

#[test]
fn nothing_is_read_after_the_end() {
    let frame = zstd(b"content");
    let mut file = unpack(&frame[..], &content(7)).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(file.read(&mut []).unwrap(), 0);
    assert_eq!(file.read(&mut buffer).unwrap(), 7);
    assert_eq!(file.read(&mut buffer).unwrap(), 0);
    assert_eq!(file.read(&mut buffer).unwrap(), 0);
}
