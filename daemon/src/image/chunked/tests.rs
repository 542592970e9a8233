//! Annotations: those of all writers, and what is not believed.

use super::*;

const DIGEST: &str = "sha256:6d3bf9114ba139fd6e8adef1bee9289860e206ff0469937faf9b01cabc54a944";
const OTHER: &str = "sha256:7b1dc1f57e328b5b29ec43fe57c99f6a8abc3e545611b5c72871c6f3a74a97e6";
const SIZE: u64 = 100_000_000;

fn of(annotations: &[(String, &str)], compression: Compression) -> Result<Option<Chunked>, String> {
    let annotations = annotations
        .iter()
        .map(|(key, value)| (key.clone(), (*value).to_owned()));
    Chunked::of(Some(&annotations.collect()), SIZE, compression)
}

/// The annotations of zstd:chunked under a prefix.
fn zstd<'a>(
    prefix: &str,
    digest: &'a str,
    toc: &'a str,
    split: Option<&'a str>,
) -> Vec<(String, &'a str)> {
    let mut all = vec![
        (format!("{prefix}manifest-checksum"), digest),
        (format!("{prefix}manifest-position"), toc),
    ];
    all.extend(split.map(|split| (format!("{prefix}tarsplit-position"), split)));
    all
}

fn part(offset: u64, length: u64, unpacked: u64) -> Part {
    Part {
        offset,
        length,
        unpacked,
    }
}

#[test]
fn the_annotations_of_all_writers() {
    for none in [None, Some(&HashMap::new())] {
        assert_eq!(Chunked::of(none, SIZE, Compression::Zstd), Ok(None));
    }
    assert_eq!(
        of(&[("org.example".to_owned(), "x")], Compression::Gzip),
        Ok(None)
    );

    let split = Some("2008:50:900");
    let new = of(
        &zstd(PREFIX, DIGEST, "1000:1000:5000:1", split),
        Compression::Zstd,
    )
    .unwrap()
    .unwrap();
    let expected = Chunked {
        toc: part(1000, 1000, 5000),
        toc_digest: DIGEST.parse().unwrap(),
        tar_split: Some(part(2008, 50, 900)),
        old_writer: false,
    };
    assert_eq!(new, expected);
    let old = of(
        &zstd(OLD_PREFIX, DIGEST, "1000:1000:5000:1", None),
        Compression::Zstd,
    )
    .unwrap();
    let expected_old = Chunked {
        tar_split: None,
        old_writer: true,
        ..expected.clone()
    };
    assert_eq!(old, Some(expected_old));
    // Under both names, the same.
    let mut both = zstd(PREFIX, DIGEST, "1000:1000:5000:1", split);
    both.extend(zstd(OLD_PREFIX, DIGEST, "1000:1000:5000:1", None));
    assert_eq!(of(&both, Compression::Zstd), Ok(Some(expected)));
}

#[test]
fn positions_are_in_the_layer() {
    let refused = |toc: &str, split: Option<&str>| {
        of(&zstd(PREFIX, DIGEST, toc, split), Compression::Zstd).unwrap_err()
    };
    for (toc, split, expected) in [
        ("", None, "not a position"),
        ("1000:1000:5000", None, "not a position"),
        ("1000:1000:5000:1:1", None, "not a position"),
        ("+1000:1000:5000:1", None, "not a position"),
        ("-1:1000:5000:1", None, "not a position"),
        (" 1000:1000:5000:1", None, "not a position"),
        ("1000:1000:5000:1\n", None, "not a position"),
        ("1000::5000:1", None, "not a position"),
        ("0x10:1000:5000:1", None, "not a position"),
        ("99999999999999999999:1000:5000:1", None, "not a position"),
        ("1000:1000:5000:2", None, "unknown type 2"),
        ("0:1000:5000:1", None, "outside of the layer"),
        ("8:1000:5000:1", None, "outside of the layer"),
        ("99999001:1000:5000:1", None, "outside of the layer"),
        (
            "18446744073709551615:1000:5000:1",
            None,
            "outside of the layer",
        ),
        (
            "1000:18446744073709551615:5000:1",
            None,
            "outside of the layer",
        ),
        ("1000:0:5000:1", None, "empty"),
        ("1000:1000:0:1", None, "empty"),
        ("1000:25165825:5000:1", None, "too long"),
        ("1000:1000:67108865:1", None, "too long"),
        ("1000:1000:5000:1", Some("2007:50:900"), "overlap"),
        ("1000:1000:5000:1", Some("1500:50:900"), "overlap"),
        ("1000:1000:5000:1", Some("950:43:900"), "overlap"),
        ("1000:1000:5000:1", Some("2008:50"), "not a position"),
        ("1000:1000:5000:1", Some("2008:50:900:1"), "not a position"),
        (
            "1000:1000:5000:1",
            Some("99999990:50:900"),
            "outside of the layer",
        ),
        ("1000:1000:5000:1", Some("2008:0:900"), "empty"),
        ("1000:1000:5000:1", Some("2008:25165825:900"), "too long"),
        ("1000:1000:5000:1", Some("2008:50:2147483649"), "too long"),
    ] {
        let reason = refused(toc, split);
        assert!(reason.contains(expected), "{toc} {split:?}: {reason}");
    }
    for (toc, split) in [
        ("9:1000:5000:1", None),
        ("99999000:1000:5000:1", None),
        ("1000:25165824:67108864:1", None),
        ("1000:1000:5000:1", Some("942:50:900")),
    ] {
        let found = of(&zstd(PREFIX, DIGEST, toc, split), Compression::Zstd);
        assert!(matches!(found, Ok(Some(_))), "{toc} {split:?}: {found:?}");
    }
}

#[test]
fn annotations_that_contradict_are_not_used() {
    let good = || zstd(PREFIX, DIGEST, "1000:1000:5000:1", None);
    let refused = |all: Vec<(String, &str)>, compression| of(&all, compression).unwrap_err();
    for (other, toc, split) in [
        (OTHER, "1000:1000:5000:1", None),
        (DIGEST, "1000:1000:5001:1", None),
        (DIGEST, "1000:1000:5000:1", Some("2008:50:900")),
    ] {
        let both = [good(), zstd(OLD_PREFIX, other, toc, split)].concat();
        assert!(refused(both, Compression::Zstd).contains("differ"));
    }
    for missing in 0..2 {
        let mut one = good();
        one.remove(missing);
        assert!(refused(one, Compression::Zstd).contains("missing"));
    }
    // Whatever else is annotated: it is no zstd:chunked.
    let stargz = vec![(STARGZ_DIGEST.to_owned(), OTHER)];
    assert!(refused(stargz.clone(), Compression::Gzip).contains("it is eStargz"));
    let both = [good(), stargz].concat();
    assert!(refused(both, Compression::Zstd).contains("it is eStargz"));
    for compression in [Compression::Gzip, Compression::Plain] {
        assert!(refused(good(), compression).contains("not zstd"));
    }
    let bad_digest = zstd(PREFIX, "md5", "1000:1000:5000:1", None);
    assert!(refused(bad_digest, Compression::Zstd).contains("of no use"));
}
