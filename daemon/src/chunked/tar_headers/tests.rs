//! Tars that differ from the table, or that could be read in two ways.

use super::super::Toc;
use super::super::sample::{Sample, pax, pieces, small_tar, tar};
use super::super::tar_split::{Piece, matches};
use super::*;

/// Extensions before a header, by type.
type Before = Vec<(u8, Vec<u8>)>;
/// What is done to a tar.
type Bend = Box<dyn FnOnce(&mut Vec<Piece>)>;

fn given(pieces: Vec<Piece>) -> impl Iterator<Item = Result<Piece, TarSplitError>> {
    pieces.into_iter().map(Ok)
}

/// The table of a tar of one file, and its pieces.
fn small(change: impl FnOnce(&mut tar::Header), before: &[(u8, &[u8])]) -> (Toc, Vec<Piece>) {
    let tar = small_tar(change, before);
    (Sample::new(&tar).parse().unwrap(), pieces(&tar))
}

/// The table for the plain file, and the pieces of a tar that differs from it.
fn changed(
    change: impl FnOnce(&mut tar::Header),
    before: &[(u8, &[u8])],
) -> Result<(), TarSplitError> {
    let (toc, _) = small(|_| (), &[]);
    let tar = small_tar(change, before);
    // By hand: what reads tars in the tests may refuse it.
    let start = tar.len() - 2048 + 512;
    let pieces = vec![
        Piece::Bytes(tar[..start].to_vec()),
        Piece::File {
            name: "a".into(),
            size: 12,
        },
        Piece::Bytes(tar[start + 12..].to_vec()),
    ];
    matches(&toc, given(pieces))
}

#[test]
fn the_pieces_may_be_cut_anywhere() {
    let (toc, whole) = small(|_| (), &[(b'x', &pax("comment", "nothing"))]);
    for step in [1, 7, 511, 513] {
        let mut pieces = Vec::new();
        for piece in &whole {
            match piece {
                Piece::Bytes(bytes) => {
                    pieces.extend(bytes.chunks(step).map(|bytes| Piece::Bytes(bytes.to_vec())));
                }
                file => pieces.push(file.clone()),
            }
        }
        matches(&toc, given(pieces)).unwrap();
    }
}

#[test]
fn what_differs_is_seen() {
    changed(|_| (), &[]).unwrap();
    changed(|_| (), &[(b'x', &pax("mtime", "7.25"))]).unwrap();
    changed(|header| header.set_uid(9), &[(b'x', &pax("uid", "0"))]).unwrap();
    let both = [pax("uid", "0"), pax("path", "a"), pax("size", "12")].concat();
    changed(|_| (), &[(b'x', &both)]).unwrap();
    type Change = Box<dyn FnOnce(&mut tar::Header)>;
    let header: Vec<(&str, Change)> = vec![
        ("the name", Box::new(|header| header.set_path("b").unwrap())),
        (
            "the name",
            Box::new(|header| header.set_path("a/").unwrap()),
        ),
        (
            "the type",
            Box::new(|header| header.set_entry_type(tar::EntryType::Directory)),
        ),
        (
            "the type",
            Box::new(|header| header.set_entry_type(tar::EntryType::Fifo)),
        ),
        (
            "the type",
            Box::new(|header| header.set_entry_type(tar::EntryType::GNUSparse)),
        ),
        (
            "the type",
            Box::new(|header| header.set_entry_type(tar::EntryType::Continuous)),
        ),
        (
            "the type",
            Box::new(|header| header.set_entry_type(tar::EntryType::XGlobalHeader)),
        ),
        (
            "the type",
            Box::new(|header| header.set_entry_type(tar::EntryType::Link)),
        ),
        ("the size", Box::new(|header| header.set_size(13))),
        ("the size", Box::new(|header| header.set_size(0))),
        ("the mode", Box::new(|header| header.set_mode(0o4644))),
        ("the mode", Box::new(|header| header.set_mode(0o100_644))),
        ("the owner", Box::new(|header| header.set_uid(1))),
        ("the owner", Box::new(|header| header.set_gid(1))),
        ("the time", Box::new(|header| header.set_mtime(8))),
    ];
    for (expected, change) in header {
        let error = changed(change, &[]).unwrap_err();
        let is_expected =
            matches!(&error, TarSplitError::Differs { what, .. } if what.starts_with(expected));
        assert!(is_expected, "{error} is not about {expected}");
    }
    for (expected, key, value) in [
        ("the name", "path", "b"),
        ("the size", "size", "13"),
        ("the owner", "uid", "1"),
        ("the owner", "gid", "1"),
        ("the time", "mtime", "8.5"),
        ("the time", "mtime", "-1.5"),
        ("the extended attributes", "SCHILY.xattr.user.a", "b"),
    ] {
        let error = changed(|_| (), &[(b'x', &pax(key, value))]).unwrap_err();
        let is_expected =
            matches!(&error, TarSplitError::Differs { what, .. } if what.starts_with(expected));
        assert!(is_expected, "{error} is not about {expected}");
    }
}

#[test]
fn what_readers_could_take_for_two_things_is_refused() {
    let (one, two) = (pax("path", "a"), pax("mtime", "7"));
    let rows: Vec<(&str, Before)> = vec![
        (
            "two long names",
            vec![(b'L', b"a\0".to_vec()), (b'x', one.clone())],
        ),
        ("repeated", vec![(b'x', one.clone()), (b'x', two.clone())]),
        (
            "repeated",
            vec![(b'L', b"a\0".to_vec()), (b'L', b"b\0".to_vec())],
        ),
        (
            "record is repeated",
            vec![(b'x', [&one[..], &pax("path", "b")].concat())],
        ),
        ("empty", vec![(b'x', pax("path", ""))]),
        ("zero bytes", vec![(b'x', pax("path", "a\0b"))]),
        ("zero bytes", vec![(b'L', b"a\0b\0".to_vec())]),
        ("zero bytes", vec![(b'L', b"\0".to_vec())]),
        ("not supported", vec![(b'x', pax("GNU.sparse.size", "5"))]),
        ("not supported", vec![(b'x', pax("hdrcharset", "BINARY"))]),
        ("malformed", vec![(b'x', pax("", "a"))]),
        ("malformed", vec![(b'x', pax("SCHILY.xattr.", "a"))]),
        ("malformed", vec![(b'x', b"9 path=a\n\n".to_vec())]),
        ("malformed", vec![(b'x', b"99 path=a\n".to_vec())]),
        ("malformed", vec![(b'x', b"3 path=a\n".to_vec())]),
        ("malformed", vec![(b'x', b"path=a\n".to_vec())]),
        ("malformed", vec![(b'x', b"9 pathaa\n".to_vec())]),
        ("malformed", vec![(b'x', b"8 path=aa".to_vec())]),
        ("number", vec![(b'x', pax("size", "0x12"))]),
        ("number", vec![(b'x', pax("uid", "-1"))]),
        ("a time is no number", vec![(b'x', pax("mtime", "7.x"))]),
        ("a time is no number", vec![(b'x', pax("mtime", "now"))]),
        ("too long", vec![(b'x', Vec::new())]),
        ("too long", vec![(b'L', vec![b'a'; 1024 * 1024 + 1])]),
    ];
    for (expected, before) in rows {
        let before: Vec<(u8, &[u8])> = before
            .iter()
            .map(|(kind, data)| (*kind, &data[..]))
            .collect();
        let error = changed(|_| (), &before).unwrap_err();
        let is_expected =
            matches!(&error, TarSplitError::Tar { reason, .. } if reason.contains(expected));
        assert!(is_expected, "{error} is not about {expected}");
    }
}

/// One file and something done to its bytes.
fn bent(bend: impl FnOnce(&mut Vec<Piece>)) -> TarSplitError {
    let (toc, mut pieces) = small(|_| (), &[]);
    bend(&mut pieces);
    matches(&toc, given(pieces)).unwrap_err()
}

fn bytes(piece: &mut Piece) -> &mut Vec<u8> {
    match piece {
        Piece::Bytes(bytes) => bytes,
        Piece::File { .. } => panic!("a file is no bytes"),
    }
}

/// Sets a byte of a header, and its checksum right again.
fn set(header: &mut [u8], at: usize, byte: u8) {
    header[at] = byte;
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn broken_tars_are_refused() {
    let rows: Vec<(&str, Bend)> = vec![
        ("checksum", Box::new(|pieces| bytes(&mut pieces[0])[3] ^= 1)),
        (
            "uncommon",
            Box::new(|pieces| set(bytes(&mut pieces[0]), 257, b'U')),
        ),
        (
            "uncommon",
            Box::new(|pieces| {
                let header = bytes(&mut pieces[0]);
                header[508..511].copy_from_slice(b"tar");
                set(header, 511, 0);
            }),
        ),
        (
            "uncommon",
            Box::new(|pieces| {
                let header = bytes(&mut pieces[0]);
                header[257..265].copy_from_slice(b"ustar  \0");
                set(header, 345, b'p');
            }),
        ),
        (
            "follows its end",
            Box::new(|pieces| *bytes(&mut pieces[2]).last_mut().unwrap() = 1),
        ),
        (
            "follows its end",
            Box::new(|pieces| {
                let header = bytes(&mut pieces[0]).clone();
                bytes(&mut pieces[2]).extend(header);
            }),
        ),
        ("out of place", Box::new(|pieces| drop(pieces.remove(0)))),
        (
            "content should be",
            Box::new(|pieces| drop(pieces.remove(1))),
        ),
        (
            "out of place",
            Box::new(|pieces| {
                let file = pieces[1].clone();
                pieces.push(file);
            }),
        ),
        (
            "out of place",
            Box::new(|pieces| {
                pieces[1] = Piece::File {
                    name: "a".into(),
                    size: 11,
                };
            }),
        ),
        (
            "out of place",
            Box::new(|pieces| {
                pieces[1] = Piece::File {
                    name: "b".into(),
                    size: 12,
                };
            }),
        ),
        ("cut off", Box::new(|pieces| drop(pieces.remove(2)))),
        (
            "cut off",
            Box::new(|pieces| bytes(&mut pieces[2]).truncate(499)),
        ),
        (
            "cut off",
            Box::new(|pieces| bytes(&mut pieces[2]).truncate(501)),
        ),
        ("cut off", Box::new(|pieces| pieces.truncate(1))),
    ];
    for (expected, bend) in rows {
        let error = bent(bend);
        let is_expected =
            matches!(&error, TarSplitError::Tar { reason, .. } if reason.contains(expected));
        assert!(is_expected, "{error} is not about {expected}");
    }
    let error = bent(|pieces| {
        // The header of a symbolic link whose extension comes last.
        let header = bytes(&mut pieces[0]).clone();
        let mut extension = header;
        set(&mut extension, 156, b'L');
        let padding = bytes(&mut pieces[2]);
        padding.truncate(500);
        padding.extend(extension);
        padding.extend(b"a name");
        padding.resize(500 + 1024, 0);
        padding.extend([0; 1024]);
    });
    let is_expected = matches!(&error, TarSplitError::Tar { .. });
    assert!(is_expected, "{error}");
}

#[test]
fn neither_has_more_entries() {
    let (toc, pieces) = small(|_| (), &[]);
    let mut more = toc.clone();
    let mut entry = toc.entries[0].clone();
    entry.name = "b".into();
    more.entries.push(entry);
    let error = matches(&more, given(pieces.clone())).unwrap_err();
    assert!(
        matches!(&error, TarSplitError::Differs { name, .. } if name == "b"),
        "{error}"
    );
    let none = Toc {
        entries: Vec::new(),
        ..toc.clone()
    };
    let error = matches(&none, given(pieces.clone())).unwrap_err();
    assert!(
        matches!(&error, TarSplitError::Differs { name, .. } if name == "a"),
        "{error}"
    );

    // A tar without blocks of zeros at its end is one, too.
    let mut short = pieces;
    bytes(&mut short[2]).truncate(500);
    matches(&toc, given(short)).unwrap();
}

#[test]
fn targets_and_devices_are_compared() {
    let full = tar();
    let sample = Sample::new(&full);
    let toc = sample.parse().unwrap();
    matches(&toc, given(pieces(&full))).unwrap();
    for (at, expected) in [
        (5, "the target"),
        (6, "the target"),
        (11, "the device"),
        (12, "the device"),
    ] {
        let mut other = toc.clone();
        let entry = &mut other.entries[at];
        match &mut entry.kind {
            Kind::Symlink(target) | Kind::HardLink(target) => *target = "elsewhere".into(),
            _ => entry.device.1 += 1,
        }
        let error = matches(&other, given(pieces(&full))).unwrap_err();
        let is_expected =
            matches!(&error, TarSplitError::Differs { what, .. } if *what == expected);
        assert!(is_expected, "{at}: {error}");
    }
}

#[test]
fn no_changed_byte_of_a_header_goes_unseen() {
    let full = tar();
    let toc = Sample::new(&full).parse().unwrap();
    let whole = pieces(&full);
    let mut random = fastrand::Rng::with_seed(12);
    for _ in 0..1500 {
        let mut bent = whole.clone();
        let at = random.usize(..bent.len());
        let Piece::Bytes(bytes) = &mut bent[at] else {
            continue;
        };
        // The header of the entry is the last block of its piece; padding before it means nothing.
        let Some(start) = bytes
            .len()
            .checked_sub(BLOCK)
            .filter(|_| at + 1 < whole.len())
        else {
            continue;
        };
        let place = random.usize(..BLOCK);
        // What ends the number of the checksum is no part of it.
        if (154..156).contains(&place) {
            continue;
        }
        bytes[start + place] ^= 1 << random.u8(..8);
        let result = matches(&toc, given(bent));
        assert!(result.is_err(), "piece {at}");
    }
}
