//! A Debian tree of more than a gigabyte, and which package brought which of its files.
//!
//! Unpacked from Debian's archive once. Invariant: nothing is in it that an import would leave out
//! (mount points are empty), so that every file of it becomes an object.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use crate::big_image::make_bootable;
use crate::bootable::{Suite, debian, product::product};
use crate::image::paths_below;
use crate::process::{command, run};

/// A kernel, a desktop, compilers and interpreters: big files, and many small ones.
const PACKAGES: &str = "base-files,bash,coreutils,linux-image-amd64,golang-1.19-go,openjdk-17-jre-headless,\
     libllvm14,g++,git,python3,perl,systemd,dbus,polkitd,locales,vim,network-manager,podman,gnome-shell";

/// The release that the packages are of, whatever this machine runs.
const SUITE: Suite = Suite::Bookworm;

/// Writes beside the tree what each archive says that it brings.
const LIST: &str = r#"for deb in "$1"/var/cache/apt/archives/*.deb; do
    echo "package $(dpkg-deb -f "$deb" Package)"
    dpkg-deb -I "$deb" md5sums 2>/dev/null || true
done >"$1.packages""#;

/// Directories that are mount points on an ostree host, or whose content belongs to the machine.
const EMPTY: [&str; 6] = ["dev", "proc", "run", "sys", "tmp", "var"];

/// Fewer bytes are no realistic image.
const LEAST: u64 = 1_300_000_000;

/// The tree.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Its root.
    pub root: PathBuf,
    /// What tells it from any other.
    pub key: String,
    /// All paths in it, sorted by package.
    pub files: Vec<Member>,
}

/// A path of the tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The package that brought it; empty for directories and links.
    pub package: String,
    /// Without a slash at its beginning.
    pub path: String,
    /// Bytes, if it is a regular file and not another name of an earlier one.
    pub size: u64,
    /// It is a regular file with one name.
    pub is_plain: bool,
}

/// The tree, made below `images` if need be, with that share of its files.
///
/// # Errors
/// When Debian's archive is out of reach, or no program to unpack it is installed.
pub fn debian_tree(images: &Path, scale: f64) -> Result<Tree> {
    let out = images.join("debian");
    let inputs = [PACKAGES, SUITE.name(), LIST, include_str!("tree.rs")];
    let mut key = product(&out, &inputs, |out| {
        fs::create_dir_all(out)?;
        let root = out.join("tree");
        debian::unpack(SUITE, PACKAGES, LIST, &root)?;
        for directory in EMPTY {
            run(command(["rm", "-rf", "--one-file-system", "--"]).arg(root.join(directory)))?;
        }
        make_bootable(&root)
    })?;
    let root = out.join("tree");
    let owners = owners(&fs::read_to_string(out.join("tree.packages"))?);
    let mut seen = HashSet::new();
    let mut files: Vec<Member> = paths_below(&root, |_| true)?
        .into_iter()
        .map(|(path, meta)| Member {
            package: owners.get(&path).cloned().unwrap_or_default(),
            // Of several names of one file, the first has its bytes.
            size: match meta.is_file() && seen.insert(meta.ino()) {
                true => meta.size(),
                false => 0,
            },
            is_plain: meta.is_file() && meta.nlink() == 1,
            path,
        })
        .collect();
    let total: u64 = files.iter().map(|file| file.size).sum();
    ensure!(total >= LEAST, "the tree has only {total} bytes");
    if scale < 1.0 {
        key = format!("{key} {scale}");
        files.retain(|file| !file.is_plain || is_needed(&file.path) || chance(&file.path) < scale);
    }
    files.sort();
    Ok(Tree { root, key, files })
}

/// Whether the tree could not be deployed without it.
fn is_needed(path: &str) -> bool {
    let names = [
        "vmlinuz",
        "initramfs.img",
        "os-release",
        "prepare-root.conf",
    ];
    names.iter().any(|name| path.ends_with(name))
}

/// A number from 0 up to 1 that a text always has.
pub(super) fn chance(text: &str) -> f64 {
    let hash = Sha256::digest(text);
    let number = hash[..4]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    f64::from(number) / (f64::from(u32::MAX) + 1.0)
}

/// Paths with their packages, from what [`LIST`] writes.
fn owners(list: &str) -> HashMap<String, String> {
    let mut package = "";
    let mut owners = HashMap::new();
    for line in list.lines() {
        if let Some(name) = line.strip_prefix("package ") {
            package = name;
        } else if let Some((_, path)) = line.split_once("  ") {
            owners.insert(in_usr(path), package.to_owned());
        }
    }
    owners
}

/// Where a file is when `/bin` and its kin are links into `/usr`.
fn in_usr(path: &str) -> String {
    let moved = ["bin/", "lib/", "lib64/", "sbin/"];
    match moved.iter().any(|directory| path.starts_with(directory)) {
        true => format!("usr/{path}"),
        false => path.to_owned(),
    }
}

impl Tree {
    /// Bytes of all regular files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Cuts the paths into runs of about the same weight, counting files as well as bytes: at most
    /// `count`, and fewer where one file weighs more than a run.
    pub fn split(&self, count: usize) -> Vec<&[Member]> {
        const FILE: u64 = 4096;
        let weights = self.files.iter().map(|file| file.size + FILE);
        let total: u64 = weights.clone().sum();
        let numbers: Vec<u64> = weights
            .scan(0, |before, weight| {
                let number = *before * count as u64 / total;
                *before += weight;
                Some(number)
            })
            .collect();
        let bounds = (0..=count as u64).map(|run| numbers.partition_point(|number| *number < run));
        let bounds: Vec<usize> = bounds.collect();
        let runs = bounds.windows(2).map(|ends| &self.files[ends[0]..ends[1]]);
        runs.filter(|run| !run.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(path: &str, size: u64) -> Member {
        Member {
            package: String::new(),
            path: path.to_owned(),
            size,
            is_plain: true,
        }
    }

    #[test]
    fn runs_are_about_as_heavy_and_miss_nothing() {
        let mut files: Vec<Member> = (0..100).map(|n| member(&format!("{n:03}"), 1000)).collect();
        files.insert(50, member("050-big", 200_000));
        let (root, key) = (PathBuf::new(), String::new());
        let tree = Tree { root, key, files };
        let runs = tree.split(10);
        assert!(runs.len() < 10, "{}", runs.len());
        assert_eq!(runs.concat(), tree.files);
        assert_eq!(tree.split(1), [&tree.files[..]]);
    }

    #[test]
    fn packages_own_what_they_list() {
        let list = "package bash\n0123  bin/bash\n4567  usr/share/doc/bash/README\npackage none\n";
        let owners = owners(list);
        assert_eq!(owners["usr/bin/bash"], "bash");
        assert_eq!(owners["usr/share/doc/bash/README"], "bash");
        assert_eq!(owners.len(), 2);
    }

    #[test]
    fn chances_are_even() {
        let lucky = (0..1000).filter(|n| chance(&n.to_string()) < 0.25).count();
        assert!((200..300).contains(&lucky), "{lucky}");
    }
}
