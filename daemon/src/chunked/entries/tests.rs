//! Tables of contents: two that are right, and what is refused of others.

use serde_json::{Value, json};

use super::super::sample::{OLD_BLOB, Sample, old_chunked, part, sha256, tar};
use super::super::{Content, Kind, Toc, parse_toc};
use super::*;

fn old() -> Toc {
    let chunked = old_chunked();
    parse_toc(part(OLD_BLOB, &chunked.toc), &chunked).unwrap()
}

/// Entries of the sample, by number.
const HOLES: usize = 8;
const ROLLING: usize = 9;

#[test]
fn the_table_of_a_real_writer() {
    let toc = old();
    assert_eq!(toc.tar_split_digest, None);
    let names: Vec<&str> = toc.entries.iter().map(|entry| &*entry.name).collect();
    let long = format!("./usr/lib/{}name", "long-".repeat(30));
    assert_eq!(
        names,
        [
            "./",
            "./usr/",
            "./usr/bin/",
            "./usr/bin/tool",
            "./usr/bin/empty",
            "./usr/bin/link",
            "./usr/bin/hard",
            &long,
            "./usr/lib/holes",
            "./usr/lib/rolling",
            "./usr/lib/<é&>",
            "./dev/null",
            "./dev/sda",
            "./run/pipe",
        ]
    );
    let kinds: Vec<&Kind> = toc.entries.iter().map(|entry| &entry.kind).collect();
    assert!(kinds[..3].iter().all(|kind| **kind == Kind::Directory));
    assert_eq!(*kinds[4], Kind::File(Content::EMPTY));
    assert_eq!(*kinds[5], Kind::Symlink("tool".into()));
    assert_eq!(*kinds[6], Kind::HardLink("./usr/bin/tool".into()));
    assert_eq!(
        (kinds[11], kinds[12], kinds[13]),
        (&Kind::Char, &Kind::Block, &Kind::Fifo)
    );
    let Kind::File(tool) = kinds[3] else { panic!() };
    assert_eq!((tool.size, tool.start, tool.end), (20, 120, 153));
    assert_eq!(tool.digest, sha256_of(b"#!/bin/sh\necho tool\n"));
    // All chunks, those of zeros too.
    let Kind::File(holes) = kinds[HOLES] else {
        panic!()
    };
    assert_eq!((holes.size, holes.start, holes.end), (20710, 551, 1313));
    let Kind::File(rolling) = kinds[ROLLING] else {
        panic!()
    };
    assert_eq!(
        (rolling.size, rolling.start, rolling.end),
        (90207, 1410, 12752)
    );

    let tool = &toc.entries[3];
    assert_eq!((tool.uid, tool.gid, tool.mode), (0, 0, 0o4755));
    assert_eq!(tool.modified, Some(1_700_000_000));
    let rolling = &toc.entries[ROLLING];
    assert_eq!((rolling.uid, rolling.gid), (1000, 70000));
    assert_eq!(
        toc.entries[7].xattrs,
        [(b"user.colour".to_vec(), b"blue".to_vec())]
    );
    assert_eq!(
        (toc.entries[11].device, toc.entries[12].device),
        ((1, 3), (8, 0))
    );
}

fn sha256_of(bytes: &[u8]) -> Option<[u8; 32]> {
    super::sha256(&sha256(bytes))
}

#[test]
fn both_writers_tell_the_same() {
    let places = |toc: &Toc| -> Vec<Entry> {
        let without_place = |entry: &Entry| {
            let mut entry = entry.clone();
            if let Kind::File(content) = &mut entry.kind {
                (content.start, content.end) = (0, 0);
            }
            entry
        };
        toc.entries.iter().map(without_place).collect()
    };
    let sample = Sample::new(&tar());
    let toc = sample.parse().unwrap();
    assert_eq!(places(&toc), places(&old()));
    assert!(toc.tar_split_digest.is_some());
    let contents = toc.entries.iter().filter_map(|entry| match &entry.kind {
        Kind::File(content) if content.size > 0 => Some(content),
        _ => None,
    });
    let contents: Vec<&Content> = contents.collect();
    assert!(contents.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert!(contents.last().unwrap().end <= sample.data.len() as u64);
}

/// What is refused when an entry of the sample is changed.
fn flaw(change: impl FnOnce(&mut Vec<Value>)) -> TocError {
    let mut sample = Sample::new(&tar());
    change(sample.toc["entries"].as_array_mut().unwrap());
    sample.parse().unwrap_err()
}

/// The number of an entry of the table, and what is set there.
type Change = (usize, &'static str, Value);

#[test]
fn what_is_refused_of_entries() {
    // In the table of the sample: 3 tool, 4 empty, 5 link, 6 hard, 9 rolling, 10 and 11 its chunks, 13 null.
    let big = json!(u64::MAX);
    let rows: Vec<(Flaw, Vec<Change>)> = vec![
        (Flaw::Name, vec![(3, "name", json!(""))]),
        (Flaw::Name, vec![(3, "name", json!("a/../../b"))]),
        (Flaw::Name, vec![(3, "name", json!("a\0b"))]),
        (Flaw::Name, vec![(3, "name", json!("a\u{fffd}b"))]),
        (Flaw::Name, vec![(3, "name", json!("a/"))]),
        (Flaw::Name, vec![(3, "name", json!("./"))]),
        (Flaw::Name, vec![(3, "name", json!("a".repeat(4096)))]),
        (Flaw::Duplicate, vec![(3, "name", json!("./usr/bin"))]),
        (Flaw::Duplicate, vec![(4, "name", json!("usr//bin/./tool"))]),
        (Flaw::Duplicate, vec![(4, "name", json!("/usr/bin/tool"))]),
        (Flaw::Duplicate, vec![(2, "name", json!("/usr"))]),
        (Flaw::Type, vec![(3, "type", json!("socket"))]),
        (Flaw::Type, vec![(3, "type", json!(""))]),
        (Flaw::Type, vec![(3, "type", json!("Reg"))]),
        (Flaw::Link, vec![(5, "linkName", json!(""))]),
        (Flaw::Link, vec![(5, "linkName", json!("a\0"))]),
        (Flaw::Link, vec![(6, "linkName", json!("../../etc/shadow"))]),
        (Flaw::Link, vec![(3, "linkName", json!("x"))]),
        (Flaw::Link, vec![(1, "linkName", json!("x"))]),
        (Flaw::Mode, vec![(3, "mode", json!(0o10755))]),
        (Flaw::Mode, vec![(3, "mode", json!(0o100_644))]),
        (Flaw::Mode, vec![(3, "mode", big.clone())]),
        (Flaw::Owner, vec![(3, "uid", json!(1u64 << 32))]),
        (Flaw::Owner, vec![(3, "gid", json!(1u64 << 32))]),
        (Flaw::Device, vec![(13, "devMajor", json!(1u64 << 32))]),
        (Flaw::Time, vec![(3, "modtime", json!("yesterday"))]),
        (
            Flaw::Xattrs,
            vec![(3, "xattrs", json!({"user.a": "no base64"}))],
        ),
        (Flaw::Xattrs, vec![(3, "xattrs", json!({"user.a": "YQ"}))]),
        (Flaw::Xattrs, vec![(3, "xattrs", json!({"": "YQ=="}))]),
        (Flaw::Xattrs, vec![(3, "xattrs", json!({"a\0": "YQ=="}))]),
        (
            Flaw::Xattrs,
            vec![(3, "xattrs", json!({"a": "AAAA".repeat(400_000)}))],
        ),
        (Flaw::NoContent, vec![(1, "size", json!(1))]),
        (Flaw::NoContent, vec![(5, "digest", json!(sha256(b"x")))]),
        (Flaw::NoContent, vec![(6, "offset", json!(200))]),
        (Flaw::NoContent, vec![(13, "chunkSize", json!(1))]),
        (Flaw::Size, vec![(3, "size", json!(1u64 << 63))]),
        (
            Flaw::Size,
            vec![(3, "size", json!(i64::MAX)), (7, "size", json!(1))],
        ),
        // More than all that is in the blob could be.
        (Flaw::Size, vec![(3, "size", json!(80_000_000))]),
        (
            Flaw::Size,
            vec![
                (3, "size", json!(40_000_000)),
                (7, "size", json!(40_000_000)),
            ],
        ),
        (Flaw::Digest, vec![(3, "digest", json!(""))]),
        (Flaw::Digest, vec![(3, "digest", json!("sha256:ABCD"))]),
        (
            Flaw::Digest,
            vec![(3, "digest", json!(sha256(b"x").to_uppercase()))],
        ),
        (
            Flaw::Digest,
            vec![(3, "digest", json!(sha256(b"x").replace("sha256", "sha512")))],
        ),
        (Flaw::Digest, vec![(4, "digest", json!(sha256(b"x")))]),
        (Flaw::Place, vec![(4, "offset", json!(200))]),
        (Flaw::Place, vec![(3, "offset", json!(0))]),
        (Flaw::Place, vec![(3, "offset", big.clone())]),
        (Flaw::Place, vec![(7, "offset", json!(1))]),
        (Flaw::Place, vec![(9, "offset", big.clone())]),
        (Flaw::Place, vec![(10, "offset", json!(1))]),
        (Flaw::Place, vec![(10, "offset", big.clone())]),
        (Flaw::Inner, vec![(3, "innerOffset", json!(5))]),
        (Flaw::Inner, vec![(10, "innerOffset", json!(5))]),
        (Flaw::Chunk, vec![(9, "chunkSize", json!(0))]),
        (Flaw::Chunk, vec![(9, "chunkSize", big)]),
        (Flaw::Chunk, vec![(9, "chunkOffset", json!(1))]),
        (Flaw::Chunk, vec![(9, "chunkDigest", json!("sha256:1"))]),
        (Flaw::Chunk, vec![(9, "chunkType", json!("ones"))]),
        (Flaw::Chunk, vec![(10, "chunkOffset", json!(40_001))]),
        (Flaw::Chunk, vec![(10, "chunkSize", json!(39_999))]),
        (Flaw::Chunk, vec![(10, "chunkSize", json!(0))]),
        (
            Flaw::Chunk,
            vec![(10, "chunkSize", json!(u64::MAX - 40_000))],
        ),
        (Flaw::Chunk, vec![(11, "chunkSize", json!(10_206))]),
        (Flaw::Chunk, vec![(11, "chunkSize", json!(10_208))]),
        (Flaw::Chunk, vec![(10, "name", json!("./usr/lib/holes"))]),
        (Flaw::Chunk, vec![(10, "size", json!(1))]),
        (Flaw::Chunk, vec![(10, "xattrs", json!({"a": "YQ=="}))]),
        (Flaw::Chunk, vec![(10, "linkName", json!("a"))]),
        (Flaw::Chunk, vec![(3, "chunkSize", json!(19))]),
    ];
    for (expected, changes) in &rows {
        let error = flaw(|entries| {
            for (at, key, value) in changes {
                entries[*at][*key] = value.clone();
            }
        });
        let is_expected = matches!(&error, TocError::Entry { flaw, .. } if flaw == expected);
        assert!(is_expected, "{changes:?} gave {error}");
    }
}

#[test]
fn what_is_refused_of_ends() {
    let data = Sample::new(&tar()).data.len();
    for (at, end) in [(3, 0), (3, 1), (9, data + 1), (3, 100_000)] {
        let error = flaw(|entries| entries[at]["endOffset"] = end.into());
        assert!(
            matches!(
                error,
                TocError::Entry {
                    flaw: Flaw::Place,
                    ..
                }
            ),
            "{error}"
        );
    }
    // Into the next file, and where a chunk is not any more.
    let error = flaw(|entries| {
        entries[3]["endOffset"] = (entries[7]["offset"].as_u64().unwrap() + 1).into();
    });
    assert!(
        matches!(
            error,
            TocError::Entry {
                flaw: Flaw::Place,
                ..
            }
        ),
        "{error}"
    );
    let error = flaw(|entries| {
        entries[9]["endOffset"] = entries[11]["offset"].clone();
    });
    assert!(
        matches!(
            error,
            TocError::Entry {
                flaw: Flaw::Place,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn chunks_need_their_file_before_them() {
    for at in [0, 4, 6] {
        let error = flaw(|entries| {
            let chunk = entries.remove(10);
            entries.insert(at, chunk);
        });
        assert!(
            matches!(
                error,
                TocError::Entry {
                    flaw: Flaw::Chunk,
                    ..
                }
            ),
            "{error}"
        );
    }
    let error = flaw(|entries| drop(entries.remove(11)));
    assert!(
        matches!(
            error,
            TocError::Entry {
                flaw: Flaw::Chunk,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn what_may_be() {
    let changes: Vec<Change> = vec![
        (4, "digest", json!(sha256(b""))),
        (3, "modtime", json!("")),
        (3, "modtime", json!("0001-01-01T00:00:00Z")),
        (3, "unknown", json!({"a": [1, null]})),
        (3, "xattrs", json!({})),
        (3, "xattrs", json!({"a": ""})),
        (3, "size", json!(60_000_000)),
        (3, "chunkSize", json!(20)),
        (3, "chunkType", json!("zeros")),
        (5, "linkName", json!("../../../x")),
        (3, "uid", json!(u32::MAX)),
    ];
    for (at, key, value) in changes {
        let mut sample = Sample::new(&tar());
        sample.toc["entries"][at][key] = value.clone();
        let toc = sample.parse();
        assert!(toc.is_ok(), "{key} {value}: {toc:?}");
        if key == "modtime" {
            assert_eq!(toc.unwrap().entries[at].modified, None);
        }
    }
}

#[test]
fn there_is_an_end_to_entries() {
    let mut builder = Builder::new(1000, 100);
    builder.most = 2;
    let mut add = |name: &'static str| {
        builder.add(RawEntry {
            kind: "dir".into(),
            name: name.into(),
            ..RawEntry::default()
        })
    };
    assert_eq!((add("a"), add("b")), (Ok(()), Ok(())));
    assert_eq!(add("c"), Err(TocError::TooMany(2)));
}

#[test]
fn there_is_an_end_to_their_memory() {
    let entry = |name: String, xattrs: usize| RawEntry {
        kind: "dir".into(),
        name: name.into(),
        xattrs: (0..xattrs)
            .map(|number| (format!("user.{number}").into(), "".into()))
            .collect(),
        ..RawEntry::default()
    };
    // Few bytes each, but many; few, but long; attributes without values.
    for (length, xattrs, few, many) in [(1, 0, 100, 2000), (4000, 0, 10, 30), (1, 200, 5, 20)] {
        let mut builder = Builder::new(1000, 100);
        builder.most_kept = 200_000;
        let mut added = 0;
        let error = loop {
            let name = format!("{added:x>length$}");
            match builder.add(entry(name, xattrs)) {
                Ok(()) => added += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error, TocError::TooLarge(200_000));
        assert!((few..many).contains(&added), "{added} of {length} {xattrs}");
    }
}
