//! The document and the frame around it.

use super::super::sample::{Sample, part, sha256, small_tar, tar, zstd};
use super::super::{Chunked, Flaw, Kind, Part};
use super::*;

/// A table with this JSON.
fn parse_json(json: &str) -> Result<Toc, TocError> {
    let sample = Sample::new(&small_tar(|_| (), &[]));
    let (blob, chunked) = sample.blob_with(json.as_bytes(), b"x");
    parse_toc(part(&blob, &chunked.toc), &chunked)
}

#[test]
fn the_document_is_read_strictly() {
    assert_eq!(
        parse_json(r#"{"entries":[],"version":1}"#).unwrap().entries,
        []
    );
    let digest = sha256(b"");
    let with_digest = format!(r#"{{"version":1,"entries":[],"tarSplitDigest":"{digest}"}}"#);
    assert!(parse_json(&with_digest).unwrap().tar_split_digest.is_some());
    for (json, expected) in [
        (" ", "EOF"),
        ("[]", "invalid type"),
        (r#"{"version":1}"#, "missing field `entries`"),
        (r#"{"version":1,"entries":[]} x"#, "trailing characters"),
        (r#"{"version":1,"entries":[]}{}"#, "trailing characters"),
        (r#"{"version":1,"entries":null}"#, "invalid type: null"),
        (
            r#"{"version":1,"version":1,"entries":[]}"#,
            "duplicate field `version`",
        ),
        (
            r#"{"version":1,"entries":[],"entries":[]}"#,
            "duplicate field `entries`",
        ),
        (
            r#"{"version":1,"entries":[],"Entries":[]}"#,
            "in another case",
        ),
        (
            r#"{"version":1,"entries":[{"type":"dir","name":"a","name":"b"}]}"#,
            "duplicate field `name`",
        ),
        (
            r#"{"version":1,"entries":[{"type":"dir","name":"a","NAME":"b"}]}"#,
            "in another case",
        ),
        (
            "{\"version\":1,\"entries\":[{\"lin\u{212a}Name\":\"b\"}]}",
            "in another case",
        ),
        (
            r#"{"version":1,"entries":[{"type":"dir","name":1}]}"#,
            "invalid type: integer",
        ),
        (
            r#"{"version":1,"entries":[{"type":"dir","name":null}]}"#,
            "invalid type: null",
        ),
        (
            r#"{"version":1,"entries":[{"type":"dir","uid":-1}]}"#,
            "invalid value: integer `-1`",
        ),
        (
            r#"{"version":1,"entries":[{"type":"reg","size":-1}]}"#,
            "invalid value: integer `-1`",
        ),
        (
            r#"{"version":1,"entries":[{"type":"reg","size":1.5}]}"#,
            "invalid type: floating",
        ),
        (
            r#"{"version":1,"entries":[{"type":"reg","offset":99999999999999999999}]}"#,
            "invalid type",
        ),
        (
            r#"{"version":1,"entries":[{"xattrs":{"a":1}}]}"#,
            "invalid type",
        ),
        (
            &*format!(
                r#"{{"version":1,"entries":[{{"xattrs":{{"a":""{}}}}}]}}"#,
                r#","a":"""#.repeat(256)
            ),
            "too many extended attributes",
        ),
        (
            r#"{"version":1,"entries":[{"type":"dir","accesstime":1}]}"#,
            "invalid type",
        ),
    ] {
        let error = parse_json(json).unwrap_err();
        let is_expected = matches!(&error, TocError::Json(text) if text.contains(expected));
        assert!(is_expected, "{json} gave {error}");
    }
    for (json, version) in [
        (r#"{"entries":[]}"#, 0),
        (r#"{"version":2,"entries":[]}"#, 2),
    ] {
        assert_eq!(parse_json(json), Err(TocError::Version(version)));
    }
    let json = r#"{"version":1,"entries":[],"tarSplitDigest":"md5:1"}"#;
    assert_eq!(parse_json(json), Err(TocError::TarSplitDigest));
    let twice = r#"{"version":1,"entries":[{"type":"dir","name":"a","xattrs":{"u":"","u":""}}]}"#;
    assert!(matches!(
        parse_json(twice),
        Err(TocError::Entry {
            flaw: Flaw::Xattrs,
            ..
        })
    ));
}

#[test]
fn the_frame_is_what_was_announced() {
    let sample = Sample::new(&tar());
    let (blob, chunked) = sample.blob();
    let raw = part(&blob, &chunked.toc).to_vec();
    let proven = |raw: &[u8], unpacked: u64| {
        let chunked = Chunked {
            toc_digest: sha256(raw).parse().unwrap(),
            toc: Part {
                unpacked,
                ..chunked.toc
            },
            ..chunked.clone()
        };
        parse_toc(raw, &chunked)
    };
    let length = chunked.toc.unpacked;
    assert!(proven(&raw, length).is_ok());
    for wrong in [length - 1, length + 1, 0, u64::MAX] {
        assert_eq!(proven(&raw, wrong), Err(TocError::Length(wrong)));
    }
    let twice = [&raw[..], &zstd(b"")].concat();
    let skippable = [&raw[..], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]].concat();
    let cut = &raw[..raw.len() - 1];
    for wrong in [
        &twice[..],
        &skippable,
        &[&raw[..], b"x"].concat(),
        cut,
        b"",
        b"no frame",
    ] {
        let error = proven(wrong, length).unwrap_err();
        assert!(
            matches!(error, TocError::Packed(_) | TocError::Length(_)),
            "{error}"
        );
    }
    let mut damaged = raw.clone();
    damaged[20] ^= 1;
    assert!(matches!(
        parse_toc(&damaged, &chunked),
        Err(TocError::Digest { .. })
    ));
}

#[test]
fn what_is_accepted_keeps_the_promises_whatever_was_changed() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut accepted = 0;
    let sample = Sample::new(&tar());
    let json = sample.toc.to_string().into_bytes();
    for _ in 0..3000 {
        let mut json = json.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..json.len());
            // Mostly digits, or hardly anything would be JSON.
            json[at] = match json[at] {
                b'0'..=b'9' => random.u8(b'0'..=b'9'),
                _ if random.u8(..8) == 0 => random.u8(b' '..=b'~'),
                same => same,
            };
        }
        let (blob, chunked) = sample.blob_with(&json, b"x");
        let Ok(toc) = parse_toc(part(&blob, &chunked.toc), &chunked) else {
            continue;
        };
        accepted += 1;
        let mut free = 1;
        for entry in &toc.entries {
            assert!(entry.mode <= 0o7777);
            let Kind::File(content) = &entry.kind else {
                continue;
            };
            assert_eq!(content.digest.is_some(), content.size > 0);
            if content.size > 0 {
                assert!(
                    free <= content.start && content.start < content.end,
                    "{entry:?}"
                );
                assert!(content.end <= sample.data.len() as u64, "{entry:?}");
                free = content.end;
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
}

#[test]
fn files_lie_before_table_and_tar_split() {
    let sample = Sample::new(&tar());
    let (blob, chunked) = sample.blob();
    let toc = parse_toc(part(&blob, &chunked.toc), &chunked).unwrap();
    let ends = toc.entries.iter().filter_map(|entry| match &entry.kind {
        Kind::File(content) => Some(content.end),
        _ => None,
    });
    // What precedes the tar-split is not of a file either.
    let end = ends.max().unwrap() + 8;
    for (offset, is_right) in [(end, true), (end - 1, false)] {
        let split = chunked.tar_split.map(|split| Part { offset, ..split });
        let before = Chunked {
            tar_split: split,
            ..chunked.clone()
        };
        let found = parse_toc(part(&blob, &before.toc), &before);
        let is_flaw = |error: &TocError| {
            matches!(
                error,
                TocError::Entry {
                    flaw: Flaw::Place,
                    ..
                }
            )
        };
        assert_eq!(found.is_ok(), is_right, "{offset}: {found:?}");
        assert!(found.err().as_ref().is_none_or(is_flaw), "{offset}");
    }
}
