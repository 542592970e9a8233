//! Tar-diffs made by hand from the description of the format.

use std::collections::HashMap;
use std::io::Write as _;

use super::super::made::{Op, frame, tar_diff};
use super::*;

struct Files {
    files: HashMap<&'static str, Vec<u8>>,
    /// How often it still goes on.
    patience: u64,
}

impl SourceFiles for Files {
    fn go_on(&mut self) -> io::Result<()> {
        let left = self.patience.checked_sub(1);
        self.patience = left.ok_or_else(|| io::Error::other("enough"))?;
        Ok(())
    }

    fn open(&mut self, path: &str) -> io::Result<Option<File>> {
        let Some(content) = self.files.get(path) else {
            return Ok(None);
        };
        let mut file = tempfile::tempfile()?;
        file.write_all(content)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Some(file))
    }
}

/// Bytes that do not compress, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

fn files() -> Files {
    let looks_special = [&[0x37_u8, 0xa4, 0x30, 0xec][..], &noise(6, 5000)].concat();
    Files {
        files: HashMap::from([
            ("usr/bin/tool", b"0123456789".to_vec()),
            ("etc/empty", Vec::new()),
            ("usr/lib/big", noise(1, 300_000)),
            ("usr/share/dictionary", looks_special),
        ]),
        patience: u64::MAX,
    }
}

const LIMIT: u64 = 1 << 20;

/// What it makes, read by pieces of `piece` bytes.
fn apply_by(piece: usize, diff: &[u8], limit: u64, memory: &Memory) -> io::Result<Vec<u8>> {
    let mut tar = TarDiff::new(diff, files(), limit, memory)?;
    let (mut all, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match tar.read(&mut buffer)? {
            0 => break,
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
    assert_eq!(tar.read(&mut buffer)?, 0, "the end stays the end");
    assert!(tar.into_inner().is_empty(), "it was read to its end");
    Ok(all)
}

fn apply(diff: &[u8]) -> io::Result<Vec<u8>> {
    apply_by(1000, diff, LIMIT, &Memory::default())
}

fn refusal(error: &io::Error) -> &TarDiffError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.unwrap_or_else(|| panic!("not told apart: {error:?}"))
}

#[test]
fn each_operation_does_what_the_format_says() {
    use Op::*;
    let cases: &[(&[Op], &[u8])] = &[
        (&[], b""),
        (
            &[Data(b"ab".to_vec()), Data(Vec::new()), Data(b"c".to_vec())],
            b"abc",
        ),
        (&[Open("usr/bin/tool"), Copy(10)], b"0123456789"),
        (
            &[
                Open("usr/bin/tool"),
                Copy(3),
                Copy(2),
                Seek(1),
                Copy(2),
                Seek(10),
                Copy(0),
            ],
            b"0123412",
        ),
        // Opened anew it begins anew.
        (
            &[Open("usr/bin/tool"), Copy(3), Open("usr/bin/tool"), Copy(1)],
            b"0120",
        ),
        // Bytes are added without carry, and the position moves on.
        (
            &[Open("usr/bin/tool"), Seek(2), Add(vec![1, 255, 0]), Copy(1)],
            b"3245",
        ),
        (&[Open("usr/bin/tool"), Add(vec![208])], &[0]),
        (
            &[
                Open("etc/empty"),
                Copy(0),
                Add(Vec::new()),
                Seek(0),
                Data(b"x".to_vec()),
            ],
            b"x",
        ),
    ];
    for (at, (ops, expected)) in cases.iter().enumerate() {
        for version in [1, 2] {
            let made = apply(&tar_diff(version, ops)).unwrap();
            assert_eq!(made, *expected, "case {at}");
        }
    }
}

#[test]
fn frames_use_the_whole_file_and_leave_it_at_its_end() {
    let old = files().files["usr/lib/big"].clone();
    let mut new = old.clone();
    new.splice(1000..1010, b"something else".iter().copied());
    let patch = frame(&old, &new);
    assert!(patch.len() < 1000, "{} bytes", patch.len());
    let ops = [
        Op::Open("usr/lib/big"),
        Op::Seek(7),
        Op::Dict(patch),
        Op::Copy(0),
        Op::Seek(0),
        Op::Copy(1),
        Op::Open("etc/empty"),
        Op::Dict(frame(b"", b"from nothing")),
        Op::Dict(Vec::new()),
    ];
    let expected = [&new[..], &old[..1], b"from nothing"].concat();
    let diff = tar_diff(2, &ops);
    for piece in [13, 4096, 1 << 20] {
        let made = apply_by(piece, &diff, LIMIT, &Memory::default()).unwrap();
        assert!(made == expected, "by {piece}");
    }
    let cursor = [&ops[..3], &[Op::Copy(1)]].concat();
    let error = apply(&tar_diff(2, &cursor)).unwrap_err();
    assert_eq!(
        refusal(&error),
        &TarDiffError::Outside("usr/lib/big".into())
    );
}

#[test]
fn what_it_is_cut_into_does_not_matter() {
    let big = files().files["usr/lib/big"].clone();
    let differences = noise(2, 200_000);
    let ops = [
        Op::Data(noise(3, 150_000)),
        Op::Open("usr/lib/big"),
        Op::Seek(50_000),
        Op::Add(differences.clone()),
        Op::Seek(1),
        Op::Copy(299_999),
    ];
    let sums = big[50_000..].iter().zip(&differences);
    let sums: Vec<u8> = sums.map(|(old, more)| old.wrapping_add(*more)).collect();
    let expected = [&noise(3, 150_000)[..], &sums, &big[1..]].concat();
    let diff = tar_diff(1, &ops);
    for piece in [511, 70_000, 1 << 20] {
        let made = apply_by(piece, &diff, LIMIT, &Memory::default()).unwrap();
        assert!(made == expected, "by {piece}");
    }
}

#[test]
fn hostile_ones_are_told_apart() {
    use Op::*;
    let old = files().files["usr/lib/big"].clone();
    let patch = frame(&old, &old);
    let outside = || TarDiffError::Outside("usr/bin/tool".into());
    let named = |name: &str| TarDiffError::Name(name.into());
    let cases: &[(&[Op], TarDiffError)] = &[
        (&[Raw(vec![6, 0])], TarDiffError::Operation(6)),
        (&[Raw(vec![255, 0])], TarDiffError::Operation(255)),
        (&[Raw(vec![0])], TarDiffError::Truncated),
        (&[Raw(vec![0, 0x80])], TarDiffError::Truncated),
        (&[Raw(vec![0, 5, 1, 2])], TarDiffError::Truncated),
        (&[Raw(vec![1, 5, b'u'])], TarDiffError::Truncated),
        (
            &[Open("usr/bin/tool"), Raw(vec![3, 5, 1, 2])],
            TarDiffError::Truncated,
        ),
        (
            &[Raw([&[0][..], &[0xff; 9], &[2]].concat())],
            TarDiffError::Number,
        ),
        (
            &[Raw([&[0][..], &[0x80; 10], &[1]].concat())],
            TarDiffError::Number,
        ),
        (
            &[Raw([&[0][..], &[0xff; 9], &[1]].concat())],
            TarDiffError::Truncated,
        ),
        (&[Copy(0)], TarDiffError::NoFile),
        (&[Add(vec![1])], TarDiffError::NoFile),
        (&[Seek(0)], TarDiffError::NoFile),
        (&[Dict(patch.clone())], TarDiffError::NoFile),
        (&[Open("usr/bin/tool"), Copy(11)], outside()),
        (&[Open("usr/bin/tool"), Copy(u64::MAX)], outside()),
        (&[Open("usr/bin/tool"), Add(vec![0; 11])], outside()),
        (&[Open("usr/bin/tool"), Seek(11)], outside()),
        (&[Open("usr/bin/tool"), Seek(u64::MAX)], outside()),
        (
            &[Open("usr/bin/other")],
            TarDiffError::Missing("usr/bin/other".into()),
        ),
        (&[Open("")], named("")),
        (&[Open("/etc/shadow")], named("/etc/shadow")),
        (&[Open("../etc/shadow")], named("../etc/shadow")),
        (&[Open("usr/./x")], named("usr/./x")),
        (&[Open("usr//x")], named("usr//x")),
        (&[Open("usr/\0")], named("usr/\0")),
        (&[Raw(vec![1, 1, 0xff])], named("\u{fffd}")),
        (
            &[Raw([&[1, 0x81, 0x20][..], &[b'x'; 4097]].concat())],
            named("of 4097 bytes"),
        ),
        (
            &[Open("usr/lib/big"), Dict(b"no frame at all, no".to_vec())],
            TarDiffError::Frame,
        ),
        (
            &[Open("usr/lib/big"), Dict(patch[..patch.len() - 1].to_vec())],
            TarDiffError::Truncated,
        ),
        (
            &[Open("usr/lib/big"), Dict([&patch[..], b"x"].concat())],
            TarDiffError::Frame,
        ),
        (
            &[Open("usr/lib/big"), Dict(patch[..3].to_vec())],
            TarDiffError::Frame,
        ),
        (
            &[Open("usr/lib/big"), Raw(vec![5, 99, 0x28, 0xb5])],
            TarDiffError::Truncated,
        ),
        (
            &[Data(vec![0; 1 << 20]), Data(vec![0])],
            TarDiffError::TooLong(LIMIT),
        ),
    ];
    for (at, (ops, expected)) in cases.iter().enumerate() {
        let error = apply(&tar_diff(2, ops)).unwrap_err();
        assert_eq!(refusal(&error), expected, "case {at}");
    }
    // Version 1 has no such operation.
    let ops = [Open("usr/lib/big"), Dict(patch)];
    let error = apply(&tar_diff(1, &ops)).unwrap_err();
    assert_eq!(refusal(&error), &TarDiffError::Operation(5));
}

#[test]
fn bombs_end_at_the_limit() {
    let copies = [
        &[Op::Open("usr/lib/big")][..],
        &vec![[Op::Seek(0), Op::Copy(300_000)]; 1000].concat(),
    ];
    let error = apply(&tar_diff(1, &copies.concat())).unwrap_err();
    assert_eq!(refusal(&error), &TarDiffError::TooLong(LIMIT));
    // More operations than there are bytes for.
    let idle = Op::Raw([0, 0].repeat(2 << 20));
    let error = apply_by(1000, &tar_diff(1, &[idle]), 1000, &Memory::default()).unwrap_err();
    assert_eq!(refusal(&error), &TarDiffError::TooLong(1000));
    let zeros = frame(b"", &vec![0; 4 << 20]);
    let error = apply(&tar_diff(2, &[Op::Open("etc/empty"), Op::Dict(zeros)])).unwrap_err();
    assert_eq!(refusal(&error), &TarDiffError::TooLong(LIMIT));
}

#[test]
fn work_that_makes_nothing_ends_at_a_limit() {
    let empty = frame(&files().files["usr/lib/big"], b"");
    let frames = [&[Op::Open("usr/lib/big")][..], &vec![Op::Dict(empty); 200]].concat();
    let opens = vec![Op::Open("usr/bin/tool"); 20_000];
    let seeks = [&[Op::Open("usr/bin/tool")][..], &vec![Op::Seek(1); 500_000]].concat();
    // Few bytes, which would keep the host busy.
    for (name, ops) in [("frames", frames), ("opens", opens), ("seeks", seeks)] {
        let diff = tar_diff(2, &ops);
        assert!(diff.len() < 20_000, "{name}: {} bytes", diff.len());
        let error = apply_by(1000, &diff, 4 * LIMIT, &Memory::default()).unwrap_err();
        let expected = TarDiffError::TooMuchWork(4 * LIMIT);
        assert_eq!(refusal(&error), &expected, "{name}");
    }
}

#[test]
fn it_stops_when_it_is_told_to() {
    let nothing = vec![Op::Data(Vec::new()); 1000];
    let large = {
        // No output for a long time: blocks of nothing, of which none is the last.
        let header = [0x28_u8, 0xb5, 0x2f, 0xfd, 0x00, 0x00];
        let blocks = [0_u8; 3].repeat(1 << 20);
        vec![
            Op::Open("etc/empty"),
            Op::Dict([&header[..], &blocks].concat()),
        ]
    };
    for (name, ops, patience) in [("operations", nothing, 500), ("a frame", large, 20)] {
        let diff = tar_diff(2, &ops);
        let files = Files {
            patience,
            ..files()
        };
        let mut tar = TarDiff::new(&diff[..], files, 4 * LIMIT, &Memory::default()).unwrap();
        let error = tar.read(&mut [0; 100]).unwrap_err();
        assert_eq!(error.to_string(), "enough", "{name}");
        assert_eq!(tar.files.patience, 0, "{name}");
    }
}

#[test]
fn a_file_is_only_bytes_whatever_it_looks_like() {
    let old = files().files["usr/share/dictionary"].clone();
    let new = [&old[..3000], b"in between", &old[3000..]].concat();
    let patch = frame(&old, &new);
    assert!(patch.len() < 1000, "{} bytes", patch.len());
    let ops = [Op::Open("usr/share/dictionary"), Op::Dict(patch)];
    assert!(apply(&tar_diff(2, &ops)).unwrap() == new);
}

#[test]
fn what_does_not_fit_into_memory_is_refused() {
    let old = files().files["usr/lib/big"].clone();
    let ops = [Op::Open("usr/lib/big"), Op::Dict(frame(&old, &old))];
    let diff = tar_diff(2, &ops);
    let (need, limit) = (300_000 + (1 << 20), 1_000_000);
    let error = apply_by(1000, &diff, LIMIT, &Memory::of(limit)).unwrap_err();
    assert_eq!(refusal(&error), &TarDiffError::Memory { need, limit });
    let made = apply_by(1000, &diff, LIMIT, &Memory::of(need)).unwrap();
    assert!(made == old);
    // A second one gets what the first gave back.
    let twice = [&ops[..], &ops[..]].concat();
    let made = apply_by(1000, &tar_diff(2, &twice), LIMIT, &Memory::of(need)).unwrap();
    assert_eq!(made.len(), 600_000);
}

#[test]
fn other_bytes_are_no_tar_diff() {
    for (bytes, expected) in [
        (&b"tardf3\n\0rest"[..], TarDiffError::Header),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0", TarDiffError::Header),
        (b"tardf1\n", TarDiffError::Truncated),
        (b"", TarDiffError::Truncated),
    ] {
        let error = apply(bytes).unwrap_err();
        assert_eq!(refusal(&error), &expected);
    }
    let whole = tar_diff(1, &[Op::Data(noise(4, 1000))]);
    for cut in 8..whole.len() {
        match apply(&whole[..cut]) {
            // Nothing follows the header: a stream of no frames.
            Ok(made) => assert_eq!((cut, made.len()), (8, 0)),
            Err(error) => assert_eq!(refusal(&error), &TarDiffError::Truncated, "at {cut}"),
        }
    }
    let trailing = [&whole[..], b"more"].concat();
    assert!(apply(&trailing).is_err());
}
