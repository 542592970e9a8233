//! Layers made of directories on disk.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result};

use super::entry::{Entry, Kind};
use super::layer::Layer;

/// What overlayfs notes about its own work.
const OVERLAY: &str = "trusted.overlay.";

impl Layer {
    /// Adds the `paths` below the directory `root`, parents before children, with owners and
    /// extended attributes: files, symbolic links, directories, and hard links where an earlier
    /// path is the same file. Sockets, pipes and devices are left out.
    ///
    /// # Errors
    /// When a path cannot be examined.
    pub fn add_from(mut self, root: &Path, paths: &[String]) -> Result<Self> {
        let mut seen: HashMap<(u64, u64), String> = HashMap::new();
        for path in paths {
            let source = root.join(path);
            let meta = fs::symlink_metadata(&source)
                .with_context(|| format!("examining {}", source.display()))?;
            let kind = if meta.is_dir() {
                Kind::Directory
            } else if meta.is_symlink() {
                let target = fs::read_link(&source)?;
                Kind::Symlink(target.to_string_lossy().into_owned())
            } else if !meta.is_file() {
                continue;
            } else if let Some(first) = seen.get(&(meta.dev(), meta.ino())) {
                Kind::Hardlink(first.clone())
            } else {
                if meta.nlink() > 1 {
                    seen.insert((meta.dev(), meta.ino()), path.clone());
                }
                Kind::FileFrom(source.clone(), meta.len())
            };
            let is_link = matches!(kind, Kind::Hardlink(_));
            self = self.entry(Entry::new(path, kind, meta.mode() & 0o7777));
            self = self.owner(meta.uid(), meta.gid());
            if !is_link {
                for (name, value) in attributes(&source)? {
                    if !name.starts_with(OVERLAY) {
                        self = self.xattr(&name, &value);
                    }
                }
            }
        }
        Ok(self)
    }

    /// Adds what overlayfs keeps in an upper directory: all that is there, and whiteouts for
    /// what its signs for removed files and replaced directories say.
    ///
    /// # Errors
    /// When a path cannot be examined.
    pub fn add_changes(self, upper: &Path) -> Result<Self> {
        let paths = paths_below(upper, |_| true)?;
        let paths: Vec<String> = paths.into_iter().map(|(path, _)| path).collect();
        let mut layer = self.add_from(upper, &paths)?;
        for path in &paths {
            let source = upper.join(path);
            let meta = fs::symlink_metadata(&source)?;
            if meta.file_type().is_char_device() && meta.rdev() == 0 {
                layer = layer.whiteout(path);
            } else if meta.is_dir() {
                let opaque = (format!("{OVERLAY}opaque"), b"y".to_vec());
                if attributes(&source)?.contains(&opaque) {
                    layer = layer.opaque(path);
                }
            }
        }
        Ok(layer)
    }
}

/// All paths below `root` with their metadata, in order and parents first; a directory's
/// content only if `enter` says so.
///
/// # Errors
/// When a directory cannot be read. Names that are not UTF-8 are left out.
pub fn paths_below(root: &Path, enter: impl Fn(&str) -> bool) -> Result<Vec<(String, Metadata)>> {
    let mut found = Vec::new();
    collect(root, "", &enter, &mut found)?;
    Ok(found)
}

fn collect(
    root: &Path,
    dir: &str,
    enter: &impl Fn(&str) -> bool,
    found: &mut Vec<(String, Metadata)>,
) -> Result<()> {
    let listed = fs::read_dir(root.join(dir)).with_context(|| format!("listing {dir}"))?;
    let mut entries: Vec<_> = listed.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = match dir {
            "" => name,
            dir => format!("{dir}/{name}"),
        };
        let meta = entry.metadata()?;
        found.push((path.clone(), meta.clone()));
        if meta.is_dir() && enter(&path) {
            collect(root, &path, enter, found)?;
        }
    }
    Ok(())
}

/// Paths with the directories above them, as every builder writes them.
pub fn with_parents<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut all: BTreeSet<&str> = BTreeSet::new();
    for mut path in paths {
        while all.insert(path)
            && let Some((parent, _)) = path.rsplit_once('/')
        {
            path = parent;
        }
    }
    all.into_iter().map(str::to_owned).collect()
}

/// The extended attributes of a file, or of a link itself, in order.
fn attributes(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let about = || format!("reading attributes of {}", path.display());
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        other => other.with_context(about)?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let name = std::str::from_utf8(name).with_context(about)?;
        if name.is_empty() {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).with_context(about)?;
        value.truncate(length);
        found.push((name.to_owned(), value));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FileType, Mode, XattrFlags, lsetxattr};

    use super::*;
    use crate::process::{command, run};

    #[test]
    fn overlayfs_signs_become_whiteouts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("etc/replaced")).unwrap();
        fs::write(at("etc/replaced/new"), "new").unwrap();
        fs::hard_link(at("etc/replaced/new"), at("etc/same")).unwrap();
        let set = |path: &str, name: &str, value: &[u8]| {
            lsetxattr(at(path), name, value, XattrFlags::empty()).unwrap();
        };
        set("etc/replaced", "trusted.overlay.opaque", b"y");
        set("etc/replaced/new", "trusted.lab", b"kept");
        let gone = at("etc/gone");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &gone,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();

        let layer = Layer::new().add_changes(dir.path()).unwrap();
        let tar = tempfile::NamedTempFile::new().unwrap();
        layer.write_tar(&mut tar.as_file()).unwrap();
        let listed = run(command(["tar", "-tf"]).arg(tar.path())).unwrap();
        let mut names: Vec<&str> = listed.lines().collect();
        names.sort_unstable();
        let expected = [
            "etc/",
            "etc/.wh.gone",
            "etc/replaced/",
            "etc/replaced/.wh..wh..opq",
            "etc/replaced/new",
            "etc/same",
        ];
        assert_eq!(names, expected);
        let bytes = fs::read(tar.path()).unwrap();
        let has = |text: &str| {
            bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        assert!(has("SCHILY.xattr.trusted.lab=kept"));
        assert!(!has("trusted.overlay"));
    }

    #[test]
    fn parents_come_first_and_once() {
        assert_eq!(with_parents(["a/b/c", "a/d"]), ["a", "a/b", "a/b/c", "a/d"]);
    }
}
