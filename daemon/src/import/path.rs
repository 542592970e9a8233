//! Where an entry of a layer goes in the tree that ostree stores. Pure.
//!
//! The rules are those of bootc hosts: `etc` becomes `usr/etc`, what lies beneath the
//! directories of the running system is dropped, and content outside `usr` is kept only for
//! hosts that can show it.

/// Directories that the running system fills; only they themselves are kept.
const RUNTIME: [&str; 5] = ["run", "tmp", "proc", "sys", "dev"];
/// Prefix of the entries that a layer built on an encapsulated commit repeats.
pub(crate) const REPOSITORY: &str = "sysroot/ostree/repo/";
/// Where libostree before 2024.3 wants the initial content of `/var`.
const FACTORY_VAR: [&str; 4] = ["usr", "share", "factory", "var"];

/// What depends on the host and on the base of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathRules {
    /// Keep top-level directories other than `usr`, `etc` and `var`.
    pub(crate) allow_nonusr: bool,
    /// Keep `var` where it is (libostree 2024.3 and later copy it into a new stateroot).
    pub(crate) retain_var: bool,
}

impl PathRules {
    /// The rules for the libostree that runs now.
    pub(crate) fn current(allow_nonusr: bool) -> Self {
        Self {
            allow_nonusr,
            retain_var: ostree::check_version(2024, 3),
        }
    }
}

/// Where an entry goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Path from the root, one element a component; empty for the root itself.
    At(Vec<Box<str>>),
    /// Nowhere; the name is what is counted in the log.
    Dropped(Box<str>),
}

/// A path that no rule can make safe.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPath {
    #[error("the path {0:?} is not UTF-8")]
    NotUtf8(String),
    #[error("the path {0:?} leaves the root with \"..\"")]
    Outside(String),
    #[error("the path {0:?} contains a zero byte")]
    Zero(String),
    #[error("the path {0:?}… is too long")]
    TooLong(String),
}

/// Longest path that Linux takes.
const PATH_MAX: usize = 4096;
/// Longest name that the file systems of Linux take.
const NAME_MAX: usize = 255;
/// Most directories inside each other: trees are walked by recursion, here and in libostree.
pub(crate) const DEPTH_MAX: usize = 256;

/// The text of a path or link target.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, BadPath> {
    if bytes.len() >= PATH_MAX {
        return Err(BadPath::TooLong(
            String::from_utf8_lossy(&bytes[..64]).into_owned(),
        ));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| BadPath::NotUtf8(String::from_utf8_lossy(bytes).into_owned()))?;
    if text.contains('\0') {
        return Err(BadPath::Zero(text.replace('\0', "\\0")));
    }
    Ok(text)
}

/// The components of a path; leading `/` and `./` do not count.
fn components(path: &str) -> Result<Vec<&str>, BadPath> {
    let parts: Vec<_> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return Err(BadPath::Outside(path.to_owned()));
    }
    if parts.len() > DEPTH_MAX || parts.iter().any(|part| part.len() > NAME_MAX) {
        return Err(BadPath::TooLong(path.chars().take(64).collect()));
    }
    Ok(parts)
}

/// The path without leading `/` and `./`, for comparison with [`REPOSITORY`].
pub(crate) fn relative(path: &str) -> Result<String, BadPath> {
    Ok(components(path)?.join("/"))
}

/// Applies the rules to the path of an entry or to the target of a hard link.
pub(crate) fn place(path: &str, rules: PathRules) -> Result<Place, BadPath> {
    let parts = components(path)?;
    let Some((&top, below)) = parts.split_first() else {
        return Ok(Place::At(Vec::new()));
    };
    let top: &[&str] = match top {
        "usr" => &["usr"],
        "etc" => &["usr", "etc"],
        "var" if !rules.retain_var => &FACTORY_VAR,
        "var" => &["var"],
        _ if RUNTIME.contains(&top) => match below.first() {
            Some(first) => return Ok(Place::Dropped((*first).into())),
            None => &[top],
        },
        _ if rules.allow_nonusr => &[top],
        _ => return Ok(Place::Dropped(top.into())),
    };
    Ok(Place::At(
        top.iter()
            .chain(below)
            .map(|part| Box::from(*part))
            .collect(),
    ))
}

/// A path for messages and label look-ups: absolute, from its components.
pub(crate) fn display(parts: &[Box<str>]) -> String {
    if parts.is_empty() {
        "/".to_owned()
    } else {
        format!("/{}", parts.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: PathRules = PathRules {
        allow_nonusr: true,
        retain_var: true,
    };
    const OLD: PathRules = PathRules {
        allow_nonusr: false,
        retain_var: false,
    };

    fn at(path: &str, rules: PathRules) -> String {
        match place(path, rules).unwrap() {
            Place::At(parts) => display(&parts),
            Place::Dropped(name) => format!("dropped {name}"),
        }
    }

    #[test]
    fn the_table_of_rules() {
        for (input, modern, old) in [
            ("./usr/bin/sh", "/usr/bin/sh", "/usr/bin/sh"),
            ("/usr//lib/./x/", "/usr/lib/x", "/usr/lib/x"),
            ("etc/passwd", "/usr/etc/passwd", "/usr/etc/passwd"),
            ("etc", "/usr/etc", "/usr/etc"),
            ("etcetera/x", "/etcetera/x", "dropped etcetera"),
            ("etc/.wh.x", "/usr/etc/.wh.x", "/usr/etc/.wh.x"),
            (".wh.etc", "/.wh.etc", "dropped .wh.etc"),
            ("var/lib/x", "/var/lib/x", "/usr/share/factory/var/lib/x"),
            ("run", "/run", "/run"),
            ("dev/null", "dropped null", "dropped null"),
            ("tmp/a/b", "dropped a", "dropped a"),
            ("opt/x", "/opt/x", "dropped opt"),
            ("./", "/", "/"),
            ("/", "/", "/"),
        ] {
            assert_eq!(at(input, ALL), modern, "{input}");
            assert_eq!(at(input, OLD), old, "{input}");
        }
    }

    #[test]
    fn bad_paths_are_refused() {
        for path in ["usr/../etc", "../x", "a/.."] {
            assert_eq!(place(path, ALL), Err(BadPath::Outside(path.to_owned())));
        }
        assert!(matches!(text(b"a\xff"), Err(BadPath::NotUtf8(_))));
        assert!(matches!(text(b"a\0b"), Err(BadPath::Zero(_))));
        assert!(matches!(text(&[b'a'; 5000]), Err(BadPath::TooLong(_))));
        for path in ["a/".repeat(DEPTH_MAX + 1), "n".repeat(NAME_MAX + 1)] {
            assert!(matches!(place(&path, ALL), Err(BadPath::TooLong(_))));
        }
        assert!(place(&"n".repeat(NAME_MAX), ALL).is_ok());
        assert_eq!(at("usr/a..b/...", ALL), "/usr/a..b/...");
    }
}
