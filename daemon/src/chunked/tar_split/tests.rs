//! Tar-splits against tables of contents, and back to the tar.

use std::collections::HashMap;

use super::super::sample::{DIFF_ID, Sample, lines, part, tar, zstd};
use super::super::{Kind, Unpack, unpack};
use super::*;
use crate::image::reference::Digest;

fn split_of(text: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let raw = zstd(text);
    let digest = Sha256::digest(&raw).into();
    (raw, digest)
}

#[test]
fn a_tar_split_is_the_tar_without_its_files() {
    let tar = tar();
    let sample = Sample::new(&tar);
    let toc = sample.parse().unwrap();
    let (blob, chunked) = sample.blob();
    let place = chunked.tar_split.unwrap();
    let raw = part(&blob, &place);
    let digest = toc.tar_split_digest.unwrap();
    matches(&toc, read(raw, &digest, place.unpacked).unwrap()).unwrap();

    let files: HashMap<&str, _> = toc
        .entries
        .iter()
        .filter_map(|entry| match &entry.kind {
            Kind::File(content) => Some((&*entry.name, content)),
            _ => None,
        })
        .collect();
    let open = |name: &str| -> io::Result<Unpack<&[u8]>> {
        let content = files[name];
        let bytes = &blob[content.start as usize..content.end as usize];
        unpack(bytes, content)
    };
    let mut rebuild = Rebuild::default();
    for piece in read(raw, &digest, place.unpacked).unwrap() {
        rebuild.add(&piece.unwrap(), open).unwrap();
    }
    assert_eq!(Digest::from_sha256(&rebuild.finish()).as_str(), DIFF_ID);
}

#[test]
fn contents_have_their_size() {
    let piece = Piece::File {
        name: "a".into(),
        size: 3,
    };
    for (content, expected) in [("ab", "too short"), ("abcd", "too long")] {
        let error = Rebuild::default().add(&piece, |_| Ok(content.as_bytes()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = Rebuild::default().add::<&[u8]>(&piece, |_| Err(io::Error::other("gone")));
    assert!(matches!(error, Err(TarSplitError::Content { .. })));
    let nothing = Piece::File {
        name: "a".into(),
        size: 0,
    };
    let mut rebuild = Rebuild::default();
    rebuild
        .add::<&[u8]>(&nothing, |_| panic!("nobody has to open an empty file"))
        .unwrap();
    rebuild.add(&piece, |_| Ok(&b"abc"[..])).unwrap();
    assert_eq!(
        rebuild.finish().as_slice(),
        Sha256::digest(b"abc").as_slice()
    );
}

#[test]
fn lines_are_read_strictly() {
    let good = lines(&[
        Piece::Bytes(b"abc".to_vec()),
        Piece::File {
            name: "é".into(),
            size: 3,
        },
    ]);
    let (raw, digest) = split_of(good.as_bytes());
    let all: Vec<Piece> = read(&raw, &digest, good.len() as u64)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        all,
        [
            Piece::Bytes(b"abc".to_vec()),
            Piece::File {
                name: "é".into(),
                size: 3
            }
        ]
    );
    assert!(matches!(
        read(&raw, &[0; 32], good.len() as u64),
        Err(TarSplitError::Digest)
    ));

    let first = |raw: &[u8], digest: &[u8; 32], length: u64| {
        let mut pieces = read(raw, digest, length).unwrap();
        let error = pieces.find_map(Result::err);
        assert!(pieces.next().is_none());
        error.unwrap()
    };
    for wrong in [0, 1, good.len() as u64 - 1, good.len() as u64 + 1] {
        let error = first(&raw, &digest, wrong);
        assert!(
            matches!(error, TarSplitError::Length(length) if length == wrong),
            "{error}"
        );
    }
    for end in [&zstd(b"")[..], b"x", &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]] {
        let more = [&raw[..], end].concat();
        let digest = Sha256::digest(&more).into();
        let error = first(&more, &digest, good.len() as u64);
        assert!(matches!(error, TarSplitError::Length(_)), "{error}");
    }
    let cut = &raw[..raw.len() - 2];
    let error = first(cut, &Sha256::digest(cut).into(), good.len() as u64);
    assert!(matches!(error, TarSplitError::Packed(_)), "{error}");

    let long = format!(
        "{{\"type\":2,\"payload\":\"{}\"}}\n",
        "AAAA".repeat(1024 * 1024)
    );
    for (text, expected) in [
        (r#"{"type":2,"payload":"YWJj"}"#, "cut off"),
        (&*long, "too long"),
        ("\n", "EOF"),
        ("{}\n", "missing field `type`"),
        ("{\"type\":3}\n", "type 3 is unknown"),
        ("{\"type\":1,\"name\":\"a\",\"size\":-1}\n", "invalid value"),
        (
            "{\"type\":1,\"name\":\"a\",\"name\":\"b\"}\n",
            "duplicate field",
        ),
        (
            "{\"type\":1,\"name_raw\":\"/w==\",\"size\":1}\n",
            "not UTF-8",
        ),
        ("{\"type\":1,\"name\":\"a\",\"more\":1}\n", "unknown field"),
        ("{\"type\":2,\"payload\":\"YQ\"}\n", "padding"),
        ("{\"type\":2,\"payload\":\"?\"}\n", "nvalid"),
        ("{\"type\":2,\"payload\":null}\n", "missing"),
        (
            "{\"type\":2,\"payload\":\"YQ==\",\"size\":1}\n",
            "have a name or a size",
        ),
        (
            "{\"type\":2,\"payload\":\"YQ==\",\"name\":\"a\"}\n",
            "have a name or a size",
        ),
        ("{\"type\":2,\"payload\":\"YQ==\"} x\n", "trailing"),
    ] {
        let (raw, digest) = split_of(text.as_bytes());
        let error = first(&raw, &digest, text.len() as u64);
        let shown = error.to_string();
        let is_line = matches!(error, TarSplitError::Line { line: 1, .. });
        assert!(
            is_line && shown.contains(expected),
            "{shown} is not about {expected}"
        );
    }
}
