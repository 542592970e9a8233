//! A real Debian tree of more than 1 GB as an image: in 60 layers, and in one.
//!
//! Made from the distribution's packages by mmdebstrap and kept in the build directory under
//! the hash of its recipe, so that it is made once. Invariant: both images hold the same tree,
//! and a layout found there is complete, because it is renamed into place last.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::image::{Compression, Image, Layer, Layout, paths_below, with_parents};
use crate::process::{command, require_root, run, target_dir};

/// Layers of the image `sixty`.
pub const LAYERS: usize = 60;

/// The version of both images.
pub const VERSION: &str = "12-big";

/// What makes the tree: a kernel, compilers and interpreters are big and have many small files.
const PACKAGES: &str = "base-files,bash,coreutils,linux-image-amd64,golang-1.19-go,openjdk-17-jre-headless,libllvm14,\
     g++,git,python3,perl,systemd,dbus,polkitd,locales,vim";

/// Raise when the way from packages to layers changes.
const RECIPE: u32 = 4;

/// Mount points, and a link, that every image for ostree has.
const MOUNT_POINTS: [&str; 8] = ["boot", "dev", "proc", "run", "sys", "sysroot", "tmp", "var"];

/// The layout with the tags `sixty` (gzip, zstd and plain layers in turn) and `one` (zstd).
///
/// # Errors
/// When mmdebstrap is not installed, finds no packages, or what it makes is too small.
pub fn big_image() -> Result<Layout> {
    require_root()?;
    let parent = target_dir()?.join("big-image");
    fs::create_dir_all(&parent)?;
    let lock = File::create(parent.join("lock"))?;
    lock.lock()
        .context("waiting for another test that makes the big image")?;
    let recipe = format!("{RECIPE} {} {PACKAGES}", codename()?);
    let finished = parent.join(key(&parent, &recipe)?);
    if !finished.exists() {
        let scratch = tempfile::Builder::new()
            .prefix("making-")
            .tempdir_in(&parent)?;
        let tree = scratch.path().join("tree");
        bootstrap(&tree)?;
        make_bootable(&tree)?;
        let layout = scratch.path().join("oci");
        write_images(&tree, &Layout::create(&layout)?)?;
        fs::rename(layout, &finished)?;
    }
    Layout::create(finished)
}

fn key(dir: &Path, recipe: &str) -> Result<String> {
    let file = dir.join("recipe");
    fs::write(&file, recipe)?;
    Ok(crate::image::sha256_of_file(&file)?[..16].to_owned())
}

/// The code name of the distribution this machine runs.
fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release")?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .context("the host is no Debian: no VERSION_CODENAME")?
        .trim_matches('"')
        .to_owned())
}

/// The machine's own package sources for that code name.
fn apt_sources(codename: &str) -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.retain(|file| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mut lines = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'));
        lines.any(|line| line.split_whitespace().any(|word| word == codename))
    });
    ensure!(
        !files.is_empty(),
        "no apt source of this machine is for {codename}"
    );
    Ok(files)
}

fn bootstrap(tree: &Path) -> Result<()> {
    let codename = codename()?;
    let include = format!("--include={PACKAGES}");
    let mut mmdebstrap = command(["mmdebstrap", "--quiet", "--mode=root", "--variant=extract"]);
    mmdebstrap.args([
        &include,
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    ]);
    mmdebstrap
        .arg(&codename)
        .arg(tree)
        .args(apt_sources(&codename)?);
    run(&mut mmdebstrap).map(drop)
}

/// Puts the kernel where ostree looks for it, and makes the mount points.
pub(crate) fn make_bootable(tree: &Path) -> Result<()> {
    for point in MOUNT_POINTS {
        fs::create_dir_all(tree.join(point))?;
    }
    if !tree.join("ostree").exists() {
        symlink("sysroot/ostree", tree.join("ostree"))?;
    }
    let modules = tree.join("usr/lib/modules");
    let release = fs::read_dir(&modules)
        .context("the tree has no kernel modules in /usr")?
        .next()
        .context("the tree has no kernel")??
        .file_name();
    let kernel = tree
        .join("boot")
        .join(format!("vmlinuz-{}", release.display()));
    let home = modules.join(&release);
    fs::rename(&kernel, home.join("vmlinuz")).with_context(|| kernel.display().to_string())?;
    fs::write(
        home.join("initramfs.img"),
        "not a real one: nothing here boots a machine\n",
    )?;
    for other in fs::read_dir(tree.join("boot"))? {
        fs::remove_file(other?.path())?;
    }
    fs::create_dir_all(tree.join("usr/lib/ostree"))?;
    fs::write(
        tree.join("usr/lib/ostree/prepare-root.conf"),
        "[composefs]\nenabled = maybe\n",
    )?;
    Ok(())
}

fn write_images(tree: &Path, layout: &Layout) -> Result<()> {
    let paths: Vec<(String, u64)> = paths_below(tree, |path| path != "dev")?
        .into_iter()
        .map(|(path, meta)| (path, if meta.is_file() { meta.size() } else { 0 }))
        .collect();
    let total: u64 = paths.iter().map(|(_, size)| size).sum();
    ensure!(total > 1 << 30, "the tree is only {total} bytes");
    let all: Vec<String> = paths.iter().map(|(path, _)| path.clone()).collect();
    let one = Layer::new()
        .compressed(Compression::Zstd)
        .add_from(tree, &all)?;
    Image::new(VERSION).layer(one).write_as(layout, "one")?;
    // Mostly plain, so that what is pulled is more than 1 GB as well, not only what is written.
    let kinds = [
        Compression::Gzip,
        Compression::Plain,
        Compression::Zstd,
        Compression::Plain,
        Compression::Plain,
    ];
    let mut image = Image::new(VERSION);
    for (number, part) in split(&paths, total).into_iter().enumerate() {
        let layer = Layer::new().compressed(kinds[number % kinds.len()]);
        image = image.layer(layer.add_from(tree, &with_parents(part.iter().map(String::as_str)))?);
    }
    let sixty = image.write_as(layout, "sixty")?;
    ensure!(
        sixty.size > 1 << 30,
        "the image is only {} bytes to pull",
        sixty.size
    );
    Ok(())
}

/// Cuts the paths into [`LAYERS`] runs of about the same weight, counting files as well as bytes.
fn split(paths: &[(String, u64)], total: u64) -> Vec<Vec<String>> {
    const FILE: u64 = 4096;
    let weight = total + FILE * paths.len() as u64;
    let mut parts = vec![Vec::new(); LAYERS];
    let mut before = 0;
    for (path, size) in paths {
        let part = (before * LAYERS as u64 / weight) as usize;
        parts[part.min(LAYERS - 1)].push(path.clone());
        before += size + FILE;
    }
    parts
}
