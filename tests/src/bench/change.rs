//! The next versions of the tree: which files change, and their new content.
//!
//! Invariant: a changed file is as long and about as compressible as before, but neither as a whole
//! nor at any place of it the same, as after a rebuild.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tree::{Member, Tree, chance};

/// The layers of sixty, from the third on every seventh, that version B has other files in: packages
/// that change often are put together by those who split images.
const OFTEN: (usize, usize) = (3, 7);

/// The share of such a layer's bytes that changes: 5 % of the whole.
const SHARE: f64 = 0.4;

/// Packages that version C changes.
const PACKAGES: usize = 40;

/// Bigger packages than this share of the tree are no part of a change of many packages.
const BIG: f64 = 0.01;

/// Content is changed by turning the order of blocks of this size.
const BLOCK: usize = 4096;

/// Every so many changed files, one has another name from then on.
const RENAMED: usize = 50;

/// What a version changes: paths, and what they are called from then on.
#[derive(Clone, Debug)]
pub struct Change {
    /// The directory of the new files.
    pub root: PathBuf,
    version: u8,
    /// By the old path.
    pub paths: BTreeMap<String, String>,
}

/// Version B: about 5 % of the bytes, in whole packages where layers have several.
pub fn many_bytes(tree: &Tree) -> BTreeSet<&str> {
    let (first, step) = OFTEN;
    let mut changed = BTreeSet::new();
    for run in tree
        .split(super::images::MOST_LAYERS)
        .into_iter()
        .skip(first)
        .step_by(step)
    {
        let total: u64 = run.iter().map(|file| file.size).sum();
        let mut files: Vec<&Member> = run.iter().filter(|file| file.is_plain).collect();
        let rank = |file: &Member| (chance(&file.package), chance(&file.path));
        files.sort_by(|one, other| {
            rank(one)
                .partial_cmp(&rank(other))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        let mut bytes = 0;
        for file in files {
            if bytes as f64 >= total as f64 * SHARE {
                break;
            }
            bytes += file.size;
            changed.insert(file.path.as_str());
        }
    }
    changed
}

/// Version C: all files of forty packages.
pub fn many_packages(tree: &Tree) -> BTreeSet<&str> {
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for file in tree.files.iter().filter(|file| !file.package.is_empty()) {
        *sizes.entry(&file.package).or_default() += file.size;
    }
    let most = (tree.bytes() as f64 * BIG) as u64;
    let mut packages: Vec<&str> = sizes
        .into_iter()
        .filter_map(|(package, size)| (size <= most).then_some(package))
        .collect();
    packages.sort_by(|one, other| chance(one).total_cmp(&chance(other)));
    packages.truncate(PACKAGES);
    let of_package = |file: &&Member| file.is_plain && packages.contains(&file.package.as_str());
    let changed = tree.files.iter().filter(of_package);
    changed.map(|file| file.path.as_str()).collect()
}

impl Change {
    /// A change of these files to a version, with their new content below `root`.
    pub fn new(paths: &BTreeSet<&str>, root: PathBuf, version: u8) -> Self {
        let renamed = |(number, path): (usize, &&str)| {
            let new = match number % RENAMED {
                0 => format!("{path}.{version}"),
                _ => (*path).to_owned(),
            };
            ((*path).to_owned(), new)
        };
        let paths = paths.iter().enumerate().map(renamed).collect();
        Self {
            root,
            version,
            paths,
        }
    }

    /// Writes the new content.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, tree: &Path) -> Result<()> {
        for (path, new) in &self.paths {
            let (source, target) = (tree.join(path), self.root.join(new));
            let content = fs::read(&source).with_context(|| source.display().to_string())?;
            fs::create_dir_all(target.parent().context("a path without parent")?)?;
            fs::write(&target, rebuilt(&content, self.version))?;
            let meta = fs::metadata(&source)?;
            chown(&target, Some(meta.uid()), Some(meta.gid()))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        }
        Ok(())
    }

    /// Whether any of these files changes.
    pub fn touches(&self, files: &[Member]) -> bool {
        files.iter().any(|file| self.paths.contains_key(&file.path))
    }
}

/// The content in blocks from the last to the first, each marked with the version.
fn rebuilt(content: &[u8], version: u8) -> Vec<u8> {
    let mut new = Vec::with_capacity(content.len());
    for block in content.chunks(BLOCK).rev() {
        let start = new.len();
        new.extend_from_slice(block);
        new[start] = new[start].wrapping_add(version);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rebuilt_is_as_long_and_another() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let (second, third) = (rebuilt(&text, 2), rebuilt(&text, 3));
        assert_eq!(second.len(), text.len());
        assert!(second != text && third != text && second != third);
        assert_ne!(rebuilt(b"short", 2), b"short");
        assert!(rebuilt(b"", 2).is_empty());
        let size = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap().len() as f64;
        let ratio = size(&second) / size(&text);
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn versions_change_what_they_say() {
        let member = |n: usize| Member {
            package: format!("p{:03}", n / 20),
            path: format!("usr/f{n:05}"),
            size: 10_000,
            is_plain: true,
        };
        let files: Vec<Member> = (0..4000).map(member).collect();
        let tree = Tree {
            root: PathBuf::new(),
            key: String::new(),
            files,
        };
        let share = many_bytes(&tree).len() as f64 / 4000.0;
        assert!((0.04..0.07).contains(&share), "{share}");
        assert_eq!(many_packages(&tree).len(), PACKAGES * 20);
    }
}
