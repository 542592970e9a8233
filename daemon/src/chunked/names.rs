//! Names in a table of contents. Pure.

use std::borrow::Cow;

/// Longest path that Linux takes, its zero byte included.
const PATH_MAX: usize = 4096;

/// Whether a name can be that of something in the root. A replacement character is what the writers of tables
/// make of a name that is not UTF-8, so the real one is not known.
pub(super) fn is_inside(name: &str) -> bool {
    is_text(name) && !name.split('/').any(|part| part == "..")
}

/// Whether a symbolic link can have this target.
pub(super) fn is_text(text: &str) -> bool {
    !text.is_empty()
        && text.len() < PATH_MAX
        && !text.contains('\0')
        && !text.contains(char::REPLACEMENT_CHARACTER)
}

/// The path that a name stands for: without `.`, without empty components; empty for the root.
pub(super) fn normal(name: &str) -> Cow<'_, str> {
    let trimmed = name.strip_prefix("./").unwrap_or(name);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    let is_plain = |part: &str| !matches!(part, "" | ".");
    if trimmed.split('/').all(is_plain) {
        return Cow::Borrowed(trimmed);
    }
    let parts: Vec<&str> = name.split('/').filter(|part| is_plain(part)).collect();
    Cow::Owned(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_path() {
        for (name, path) in [
            ("usr/bin/sh", "usr/bin/sh"),
            ("./usr/", "usr"),
            ("/usr//bin/./sh", "usr/bin/sh"),
            ("././a", "a"),
            ("a//", "a"),
            ("./", ""),
            (".", ""),
            ("/", ""),
            ("...", "..."),
        ] {
            assert_eq!(normal(name), path, "{name}");
        }
    }

    #[test]
    fn names_stay_in_the_root() {
        for name in ["a", "./", "/a/b", "a..b", "...", "é"] {
            assert!(is_inside(name), "{name}");
        }
        for name in [
            "",
            "..",
            "a/../b",
            "./..",
            "a\0b",
            "a\u{fffd}",
            &"a/".repeat(2048),
        ] {
            assert!(!is_inside(name), "{name}");
        }
        assert!(is_text("../x") && !is_text(""));
    }
}
