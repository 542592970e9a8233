//! Which of two versions is newer, by the rules of the package manager that they belong to.
//!
//! Invariants: every pair of strings has an answer, whatever is in them; the answers of one
//! manager are those of its own tools (checked against them in the tests). Pure.

use std::cmp::Ordering;

use super::Manager;

/// `old` against `new`.
pub(super) fn compare(manager: Manager, old: &str, new: &str) -> Ordering {
    match manager {
        Manager::Dpkg => dpkg(old, new),
        Manager::Rpm => rpm(old, new),
        Manager::Apk => apk(old, new),
    }
}

/// deb-version(7): `[epoch:]upstream[-revision]`.
fn dpkg(old: &str, new: &str) -> Ordering {
    let ((old_epoch, old), (new_epoch, new)) = (epoch(old), epoch(new));
    let ((old, old_revision), (new, new_revision)) = (revision(old), revision(new));
    compare_numbers(old_epoch, new_epoch)
        .then_with(|| dpkg_part(old, new))
        .then_with(|| dpkg_part(old_revision, new_revision))
}

/// rpm-version(7): `[epoch:]version-release`.
fn rpm(old: &str, new: &str) -> Ordering {
    let ((old_epoch, old), (new_epoch, new)) = (epoch(old), epoch(new));
    let ((old, old_release), (new, new_release)) = (revision(old), revision(new));
    compare_numbers(old_epoch, new_epoch)
        .then_with(|| rpm_part(old.as_bytes(), new.as_bytes()))
        .then_with(|| rpm_part(old_release.as_bytes(), new_release.as_bytes()))
}

/// No epoch is the epoch 0.
fn epoch(version: &str) -> (&str, &str) {
    version.split_once(':').unwrap_or(("0", version))
}

/// What follows the last hyphen; nothing if there is none.
fn revision(version: &str) -> (&str, &str) {
    version.rsplit_once('-').unwrap_or((version, ""))
}

/// Numbers of any length: without leading zeros the longer one is larger.
fn compare_numbers(old: &str, new: &str) -> Ordering {
    let (old, new) = (old.trim_start_matches('0'), new.trim_start_matches('0'));
    old.len().cmp(&new.len()).then_with(|| old.cmp(new))
}

/// The longest beginning of `text` that consists of such bytes, and the rest.
fn split_while(text: &str, is_part: impl Fn(u8) -> bool) -> (&str, &str) {
    let length = text.bytes().take_while(|byte| is_part(*byte)).count();
    // A character of several bytes can be cut apart only by a predicate that takes half of one.
    text.split_at_checked(length).unwrap_or((text, ""))
}

/// Text and numbers take turns.
fn dpkg_part(mut old: &str, mut new: &str) -> Ordering {
    let is_text = |byte: u8| !byte.is_ascii_digit();
    let is_digit = |byte: u8| byte.is_ascii_digit();
    while !old.is_empty() || !new.is_empty() {
        let (old_text, old_rest) = split_while(old, is_text);
        let (new_text, new_rest) = split_while(new, is_text);
        let (old_number, old_rest) = split_while(old_rest, is_digit);
        let (new_number, new_rest) = split_while(new_rest, is_digit);
        let order = dpkg_text(old_text.as_bytes(), new_text.as_bytes())
            .then_with(|| compare_numbers(old_number, new_number));
        if order.is_ne() {
            return order;
        }
        (old, new) = (old_rest, new_rest);
    }
    Ordering::Equal
}

/// A tilde is less than the end, the end less than letters, and letters less than the rest.
fn dpkg_text(old: &[u8], new: &[u8]) -> Ordering {
    let weight = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(other) => i32::from(*other) + 256,
    };
    let length = old.len().max(new.len());
    let mut orders = (0..length).map(|at| weight(old.get(at)).cmp(&weight(new.get(at))));
    orders
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Runs of digits and runs of letters, one at a time; anything else only separates them, but
/// for `~`, which sorts before the end, and `^`, which sorts after the end and before the rest.
fn rpm_part(mut old: &[u8], mut new: &[u8]) -> Ordering {
    loop {
        (old, new) = (rpm_skip(old), rpm_skip(new));
        let (first, second) = (old.first().copied(), new.first().copied());
        match (first, second) {
            (Some(b'~'), Some(b'~')) | (Some(b'^'), Some(b'^')) => {
                (old, new) = (&old[1..], &new[1..]);
                continue;
            }
            (Some(b'~'), _) => return Ordering::Less,
            (_, Some(b'~')) => return Ordering::Greater,
            (Some(b'^'), None) => return Ordering::Greater,
            (None, Some(b'^')) => return Ordering::Less,
            (Some(b'^'), Some(_)) => return Ordering::Less,
            (Some(_), Some(b'^')) => return Ordering::Greater,
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(_), Some(_)) => {}
        }
        let (old_run, old_rest) = rpm_run(old);
        let (new_run, new_rest) = rpm_run(new);
        let order = match (is_number(old_run), is_number(new_run)) {
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (true, true) => {
                let (old_run, new_run) = (without_zeros(old_run), without_zeros(new_run));
                old_run
                    .len()
                    .cmp(&new_run.len())
                    .then_with(|| old_run.cmp(new_run))
            }
            (false, false) => old_run.cmp(new_run),
        };
        if order.is_ne() {
            return order;
        }
        (old, new) = (old_rest, new_rest);
    }
}

fn rpm_skip(text: &[u8]) -> &[u8] {
    let counts = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'~' | b'^');
    let start = text.iter().position(counts).unwrap_or(text.len());
    &text[start..]
}

/// Digits or letters at the beginning, and the rest.
fn rpm_run(text: &[u8]) -> (&[u8], &[u8]) {
    let number = is_number(text);
    let belongs = |byte: &u8| match number {
        true => byte.is_ascii_digit(),
        false => byte.is_ascii_alphabetic(),
    };
    let end = text.iter().position(|byte| !belongs(byte));
    text.split_at(end.unwrap_or(text.len()))
}

fn is_number(run: &[u8]) -> bool {
    run.first().is_some_and(u8::is_ascii_digit)
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    let start = digits.iter().position(|digit| *digit != b'0');
    &digits[start.unwrap_or(digits.len())..]
}

/// apk-package(5): numbers with dots, a letter, `_suffix` with a number any times, `~commit`,
/// `-rREVISION`. What is not like that has no order of its own and sorts as text.
fn apk(old: &str, new: &str) -> Ordering {
    match (ApkVersion::parse(old), ApkVersion::parse(new)) {
        (Some(old), Some(new)) => old.compare(&new),
        _ => old.cmp(new),
    }
}

struct ApkVersion<'a> {
    numbers: Vec<&'a str>,
    letter: Option<u8>,
    /// Rank of the suffix and its number.
    suffixes: Vec<(i32, &'a str)>,
    revision: &'a str,
}

/// Suffixes from the oldest to the newest; those below 0 come before the release itself.
const APK_SUFFIXES: [(&str, i32); 9] = [
    ("alpha", -4),
    ("beta", -3),
    ("pre", -2),
    ("rc", -1),
    ("cvs", 1),
    ("svn", 2),
    ("git", 3),
    ("hg", 4),
    ("p", 5),
];

impl<'a> ApkVersion<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit();
        let (rest, revision) = match text.rsplit_once("-r") {
            Some((rest, revision)) if revision.bytes().all(is_digit) => (rest, revision),
            _ => (text, ""),
        };
        let rest = rest.split_once('~').map_or(rest, |(rest, _)| rest);
        let mut parts = rest.split('_');
        let mut first = parts.next()?;
        let mut letter = None;
        if let Some(last) = first.bytes().last().filter(u8::is_ascii_lowercase) {
            letter = Some(last);
            first = &first[..first.len() - 1];
        }
        let numbers: Vec<&str> = first.split('.').collect();
        let are_numbers = |number: &&str| !number.is_empty() && number.bytes().all(is_digit);
        if !numbers.iter().all(are_numbers) {
            return None;
        }
        let mut suffixes = Vec::new();
        for part in parts {
            let (word, number) = split_while(part, |byte| byte.is_ascii_lowercase());
            let (_, rank) = APK_SUFFIXES.iter().find(|(suffix, _)| *suffix == word)?;
            if !number.bytes().all(is_digit) {
                return None;
            }
            suffixes.push((*rank, number));
        }
        Some(Self {
            numbers,
            letter,
            suffixes,
            revision,
        })
    }

    fn compare(&self, new: &Self) -> Ordering {
        self.compare_all_numbers(new)
            .then_with(|| self.letter.cmp(&new.letter))
            .then_with(|| self.compare_suffixes(new))
            .then_with(|| compare_numbers(self.revision, new.revision))
    }

    /// After the first dot a number that begins with a zero is the digits of a fraction.
    fn compare_all_numbers(&self, new: &Self) -> Ordering {
        let pairs = self.numbers.iter().zip(&new.numbers).enumerate();
        for (index, (old, new)) in pairs {
            let is_fraction = index > 0 && (old.starts_with('0') || new.starts_with('0'));
            let order = if is_fraction {
                old.trim_end_matches('0').cmp(new.trim_end_matches('0'))
            } else {
                compare_numbers(old, new)
            };
            if order.is_ne() {
                return order;
            }
        }
        self.numbers.len().cmp(&new.numbers.len())
    }

    fn compare_suffixes(&self, new: &Self) -> Ordering {
        /// No suffix: after `_rc`, before `_cvs`.
        const NONE: (i32, &str) = (0, "");
        let length = self.suffixes.len().max(new.suffixes.len());
        let at = |version: &Self, index| version.suffixes.get(index).copied().unwrap_or(NONE);
        let mut orders = (0..length).map(|index| {
            let ((old, old_number), (new, new_number)) = (at(self, index), at(new, index));
            old.cmp(&new)
                .then_with(|| compare_numbers(old_number, new_number))
        });
        orders
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }
}

#[cfg(test)]
mod tests {
    use tokio::process::Command;

    use super::*;

    /// Each with a newer one.
    const DPKG: &[(&str, &str)] = &[
        ("1.0", "1.1"),
        ("1.9", "1.10"),
        ("9:1", "10:0"),
        ("1:9", "2:1"),
        ("9", "1:0"),
        ("1.0~rc1", "1.0"),
        ("1.0~rc1-1", "1.0-1"),
        ("1.0~~", "1.0~"),
        ("1.0~", "1.0"),
        ("1.0", "1.0a"),
        ("1.0a", "1.0+b1"),
        ("1.0-1", "1.0-1+b1"),
        ("1.0-1", "1.0-1.1"),
        ("1.0", "1.0-1"),
        ("1.0-1", "1.0-1-1"),
        ("2.36-9", "2.36-9+deb12u1"),
        ("2.36-9+deb12u9", "2.36-9+deb12u10"),
        ("1.2.3~bpo12+1", "1.2.3"),
        ("99999999999999999998", "99999999999999999999"),
        ("1.0.", "1.0.0.1"),
    ];

    const DPKG_EQUAL: &[(&str, &str)] = &[
        ("1.0", "0:1.0"),
        ("1.0", "1.0-0"),
        ("1.00", "1.0"),
        ("1.a00", "1.a"),
        ("1.0", "1.0"),
    ];

    async fn dpkg_agrees(old: &str, relation: &str, new: &str) -> bool {
        let answer = Command::new("dpkg")
            .args(["--compare-versions", old, relation, new])
            .status();
        answer.await.expect("dpkg is installed").success()
    }

    fn check(manager: Manager, older: &str, newer: &str) {
        let order = |old, new| compare(manager, old, new);
        assert_eq!(order(older, newer), Ordering::Less, "{older} {newer}");
        assert_eq!(order(newer, older), Ordering::Greater, "{newer} {older}");
        assert_eq!(order(older, older), Ordering::Equal, "{older}");
    }

    #[test]
    fn dpkg_orders_versions_like_this() {
        for (older, newer) in DPKG {
            check(Manager::Dpkg, older, newer);
        }
        for (one, other) in DPKG_EQUAL {
            assert_eq!(dpkg(one, other), Ordering::Equal, "{one} {other}");
        }
    }

    #[tokio::test]
    async fn dpkg_itself_agrees() {
        for (older, newer) in DPKG {
            assert!(dpkg_agrees(older, "lt", newer).await, "{older} {newer}");
        }
        for (one, other) in DPKG_EQUAL {
            assert!(dpkg_agrees(one, "eq", other).await, "{one} {other}");
        }
        // Versions out of few pieces, so that they differ late and in odd ways.
        let mut random = fastrand::Rng::with_seed(7);
        let pieces = ["0", "1", "9", "10", ".", "~", "+", "a", "b", "Z", "-"];
        let mut version = || {
            let mut text = String::from("1");
            (0..random.usize(..6)).for_each(|_| text.push_str(pieces[random.usize(..11)]));
            text.trim_end_matches('-').to_owned()
        };
        for _ in 0..200 {
            let (old, new) = (version(), version());
            let relation = match dpkg(&old, &new) {
                Ordering::Less => "lt",
                Ordering::Equal => "eq",
                Ordering::Greater => "gt",
            };
            assert!(
                dpkg_agrees(&old, relation, &new).await,
                "{old} {relation} {new}"
            );
        }
    }

    #[test]
    fn rpm_orders_versions_like_this() {
        for (older, newer) in [
            ("1.0-1", "2.0-1"),
            ("2.0-1", "2.0.1-1"),
            ("2.0.1-1", "2.0.1a-1"),
            ("5.5p1-1", "5.5p10-1"),
            ("10xyz-1", "10.1xyz-1"),
            ("xyz.4-1", "8-1"),
            ("6.0-1", "6.0.rc1-1"),
            ("10a2-1", "10b2-1"),
            ("1.0a-1", "1.0aa-1"),
            ("10.0001-1", "10.0039-1"),
            ("4.999.9-1", "5.0-1"),
            ("1.0~rc1-1", "1.0-1"),
            ("1.0~rc1~git123-1", "1.0~rc1-1"),
            ("1.0-1", "1.0^-1"),
            ("1.0-1", "1.0^git1-1"),
            ("1.0^git1-1", "1.0^git2-1"),
            ("1.0^git1-1", "1.01-1"),
            ("1.0^20160101-1", "1.0.1-1"),
            ("1.0~rc1-1", "1.0~rc1^git1-1"),
            ("1.0^git1~pre-1", "1.0^git1-1"),
            ("1.0-1.fc40", "1.0-2.fc40"),
            ("1.0-1.fc40", "1.0-1.fc41"),
            ("9-1", "1:0-1"),
            ("9:1-1", "10:1-1"),
            ("99999999999999999998-1", "99999999999999999999-1"),
        ] {
            check(Manager::Rpm, older, newer);
        }
        for (one, other) in [
            ("10.0001-1", "10.1-1"),
            ("2_0-1", "2.0-1"),
            ("a+-1", "a_-1"),
            ("+-1", "_-1"),
            ("0:1-1", "1-1"),
            ("1.1.α-1", "1.1.ββ-1"),
        ] {
            assert_eq!(rpm(one, other), Ordering::Equal, "{one} {other}");
        }
    }

    #[test]
    fn apk_orders_versions_like_this() {
        for (older, newer) in [
            ("1.2", "1.10"),
            ("1.0", "1.0.0"),
            ("1.2.3", "1.2.3a"),
            ("1.2.3a", "1.2.3b-r0"),
            ("1.2-r1", "1.2-r10"),
            ("1.2", "1.2-r1"),
            ("1.3_alpha", "1.3_alpha2"),
            ("1.3_alpha9", "1.3_beta1"),
            ("1.3_pre1-r1", "1.3_rc1"),
            ("1.3_rc8", "1.3"),
            ("1.3", "1.3_git20240101"),
            ("1.3_git20240101", "1.3_p1"),
            ("1.0_p9-r0", "1.0_p10-r0"),
            ("0.1_alpha_pre2", "0.1_alpha"),
            ("0.20070207_rc1", "1.0"),
            ("1.06-r6", "006"),
            ("1.06", "1.1"),
            ("1.02", "1.03-r1"),
            ("1.0_pre20191002222144-r0", "1.0_pre20210530193627-r0"),
            ("3.0.20060720", "20060720"),
        ] {
            check(Manager::Apk, older, newer);
        }
        assert_eq!(apk("1.2~0123abc-r1", "1.2~fedcba-r1"), Ordering::Equal);
        assert_eq!(apk("1.0", "1.0bc"), Ordering::Less);
    }

    #[test]
    fn whatever_stands_there_there_is_an_answer_and_it_is_consistent() {
        let mut random = fastrand::Rng::with_seed(11);
        let characters: Vec<char> = "01~^-_:.+aZrpß\u{0}\u{1f600}".chars().collect();
        let mut version = || -> String {
            let count = random.usize(..9);
            (0..count)
                .map(|_| characters[random.usize(..characters.len())])
                .collect()
        };
        for _ in 0..20_000 {
            let (old, new) = (version(), version());
            for manager in [Manager::Dpkg, Manager::Rpm, Manager::Apk] {
                let order = compare(manager, &old, &new);
                let reverse = compare(manager, &new, &old);
                assert_eq!(order, reverse.reverse(), "{manager:?} {old:?} {new:?}");
            }
        }
    }
}
