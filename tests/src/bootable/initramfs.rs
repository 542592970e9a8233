//! The initramfs: busybox, ostree's own `ostree-prepare-root`, and a few modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::product::product;
use crate::process::{command, run, workspace};

/// What the kernel may have as modules between its start and a mounted deployment.
const MODULES: [&str; 4] = ["virtio_blk", "ext4", "overlay", "erofs"];

const PREPARE_ROOT: &str = "usr/lib/ostree/ostree-prepare-root";
const PREPARE_ROOT_CONF: &str = "usr/lib/ostree/prepare-root.conf";

/// Mount points, and the directories of what is below.
const DIRECTORIES: [&str; 11] = [
    "bin",
    "dev",
    "modules",
    "proc",
    "run",
    "sys",
    "sysroot",
    "usr",
    "usr/lib",
    "usr/lib/ostree",
    "usr/lib64",
];

/// Makes the initramfs for user-mode Linux, whose kernel and modules are in the tools tree.
///
/// # Errors
/// When the tools or the tree lack something.
pub(super) fn for_uml(out: &Path, tools: &Path, tree: &Path, keys: &[&str]) -> Result<String> {
    let source = source()?;
    let inputs = [keys, &[&source]].concat();
    product(out, &inputs, |out| {
        let modules = only_directory(&tools.join("usr/lib/uml/modules"))?;
        write(out, tools, tree, &modules)
    })
}

/// All of this file's inputs that are in the source tree.
///
/// # Errors
/// When the sources are gone.
pub(super) fn source() -> Result<String> {
    let parts = [
        include_str!("initramfs.rs"),
        include_str!("cpio.rs"),
        &init()?,
    ];
    Ok(parts.concat())
}

fn init() -> Result<String> {
    let path = workspace().join("tests/guest/build/initramfs-init");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The one directory below `parent`, as that of a kernel's release is.
///
/// # Errors
/// When there is none, or another one.
pub(super) fn only_directory(parent: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(parent).with_context(|| parent.display().to_string())?;
    let first = entries.next().context("there is no kernel")??.path();
    anyhow::ensure!(
        entries.next().is_none(),
        "more than one kernel in {}",
        parent.display()
    );
    Ok(first)
}

/// Writes the initramfs of `tree` with the `modules` of one kernel.
///
/// # Errors
/// When something that belongs into it is missing.
pub(super) fn write(out: &Path, tools: &Path, tree: &Path, modules: &Path) -> Result<()> {
    let mut archive = Archive::new(zstd::Encoder::new(fs::File::create(out)?, 10)?);
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "bin")] {
        archive.symlink(link, target)?;
    }
    archive.file("init", 0o755, init()?.as_bytes())?;
    let busybox = ["usr/bin/busybox", "bin/busybox"].map(|path| tools.join(path));
    let busybox = busybox.iter().find(|path| path.exists());
    archive.file("bin/busybox", 0o755, &read(busybox.context("no busybox")?)?)?;
    archive.file(PREPARE_ROOT, 0o755, &read(&tree.join(PREPARE_ROOT))?)?;
    archive.file(
        PREPARE_ROOT_CONF,
        0o644,
        &read(&tree.join(PREPARE_ROOT_CONF))?,
    )?;
    add_libraries(&mut archive, tree)?;
    let mut order = String::new();
    for module in load_order(&read_text(&modules.join("modules.dep"))?) {
        let (name, content) = unpacked(&modules.join(&module))?;
        archive.file(&format!("modules/{name}"), 0o644, &content)?;
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.finish()?.finish()?;
    Ok(())
}

/// Adds the dynamic loader and the libraries it finds for `ostree-prepare-root`.
fn add_libraries<W: std::io::Write>(archive: &mut Archive<W>, tree: &Path) -> Result<()> {
    const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
    let mut list = command(["chroot"]);
    list.arg(tree)
        .args([LOADER, "--list"])
        .arg(format!("/{PREPARE_ROOT}"));
    let list = run(&mut list)?;
    let mut made = BTreeSet::new();
    let found = list.lines().filter_map(|line| line.split_once(" => "));
    let paths = found.filter_map(|(_, rest)| rest.split_whitespace().next());
    for path in paths.chain([LOADER]) {
        let inside = path.trim_start_matches('/');
        let inside = match inside.starts_with("usr/") {
            true => inside.to_owned(),
            false => format!("usr/{inside}"),
        };
        let (parent, _) = inside
            .rsplit_once('/')
            .context("a library in no directory")?;
        if made.insert(parent.to_owned()) && !DIRECTORIES.contains(&parent) {
            archive.directory(parent)?;
        }
        archive.file(
            &inside,
            0o755,
            &read(&tree.join(path.trim_start_matches('/')))?,
        )?;
    }
    Ok(())
}

/// The files of [`MODULES`] that are not built in, each after what it depends on.
fn load_order(modules_dep: &str) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let line = modules_dep.lines().find_map(|line| {
            let (path, needed) = line.split_once(':')?;
            let (_, file) = path.rsplit_once('/')?;
            (file.split('.').next() == Some(module)).then_some((path, needed))
        });
        let Some((path, needed)) = line else { continue };
        // What is to be loaded first is named last.
        for path in needed.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|other| other == path) {
                order.push(path.to_owned());
            }
        }
    }
    order
}

/// A module's name and content without compression: busybox's `insmod` knows none.
fn unpacked(path: &Path) -> Result<(String, Vec<u8>)> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let content = match file.rsplit_once('.') {
        Some((_, "xz")) => {
            let mut xz = command(["xz", "--decompress", "--stdout"]);
            let output = crate::process::finish(xz.arg(path))?;
            anyhow::ensure!(
                output.status.success(),
                "xz does not unpack {}",
                path.display()
            );
            output.stdout
        }
        Some((_, "zst")) => zstd::decode_all(fs::File::open(path)?)?,
        _ => read(path)?,
    };
    let name = file.split('.').next().unwrap_or_default();
    Ok((format!("{name}.ko"), content))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dep = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n\
                   kernel/fs/jbd2/jbd2.ko.xz:\n\
                   kernel/fs/erofs/erofs.ko.xz: kernel/lib/crc16.ko.xz\n\
                   kernel/fs/myext4/notext4.ko.xz:\n";
        let order = load_order(dep);
        let names: Vec<&str> = order
            .iter()
            .filter_map(|path| path.rsplit('/').next())
            .collect();
        assert_eq!(
            names,
            ["crc16.ko.xz", "jbd2.ko.xz", "ext4.ko.xz", "erofs.ko.xz"]
        );
    }
}
