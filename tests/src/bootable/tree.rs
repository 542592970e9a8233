//! A Debian tree as the root of a bootable container image, and running scripts in such trees.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Suite;
use super::initramfs;
use super::product::product;
use crate::process::{command, run, workspace};

/// Makes `out` from the `base` tree: what belongs to the machine is gone, the kernel and its
/// initramfs are where ostree looks for them, users and the lab's own package are there. `tools` and `base` come with their keys.
///
/// # Errors
/// With the words of what fails in there.
pub(super) fn make(
    out: &Path,
    suite: Suite,
    tools: (&Path, &str),
    base: (&Path, &str),
) -> Result<String> {
    let script = build_script("tree")?;
    let initramfs_source = initramfs::source()?;
    let inputs = [
        suite.name(),
        tools.1,
        base.1,
        &script,
        &initramfs_source,
        include_str!("tree.rs"),
    ];
    product(out, &inputs, |out| {
        run(command(["cp", "-a", "--reflink=auto", "--"]).args([base.0, out]))?;
        let composefs = if suite.composefs() { "yes" } else { "no" };
        run_in(out, &format!("COMPOSEFS={composefs}\n{script}"))?;
        for point in ["dev", "proc", "run", "sys", "tmp"] {
            fs::create_dir_all(out.join(point))?;
        }
        let kernel = initramfs::only_directory(&out.join("usr/lib/modules"))?;
        initramfs::write(&kernel.join("initramfs.img"), tools.0, out, &kernel)
    })
}

/// The text of `tests/guest/build/{name}.sh`.
///
/// # Errors
/// When there is no such script.
pub(super) fn build_script(name: &str) -> Result<String> {
    let path = workspace().join(format!("tests/guest/build/{name}.sh"));
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Runs a shell script in the tree `root`, with devices and empty `/run` and `/tmp`, whose
/// mounts end with it.
fn run_in(root: &Path, script: &str) -> Result<()> {
    in_namespace(&format!("root=$1\n{ENTER}"), &[root], script)
}

/// Runs a shell script in a tree made of `lower` trees, topmost first, and leaves what it
/// changed in the new directory `changes`, as overlayfs writes it down.
///
/// # Errors
/// With the words of what fails in there.
pub(super) fn run_over(lower: &[&Path], changes: &Path, script: &str) -> Result<()> {
    fs::create_dir_all(changes)?;
    let scratch = tempfile::tempdir_in(changes.parent().context("no parent")?)?;
    let lower: Vec<String> = lower
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let outside = format!("lower=$1 scratch=$2 changes=$3\n{OVERLAY}\n{ENTER}\n{KEEP}");
    let lower = lower.join(":");
    in_namespace(
        &outside,
        &[Path::new(&lower), scratch.path(), changes],
        script,
    )
}

/// In a file system of its own, because overlayfs cannot write to all kinds.
const OVERLAY: &str = r#"
    mount -t tmpfs -o mode=755 tmpfs "$scratch"
    mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
    root=$scratch/root
    layers="lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work"
    mount -t overlay -o "$layers" overlay "$root""#;

const KEEP: &str = r#"
    cp -a "$scratch/upper/." "$changes""#;

const ENTER: &str = r#"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
        /bin/sh -euc "$script""#;

fn in_namespace(outside: &str, arguments: &[&Path], script: &str) -> Result<()> {
    let outside = format!("script=$1\nshift\n{outside}");
    let mut unshare = command(["unshare", "--mount", "--propagation", "private"]);
    unshare.args(["sh", "-euc", &outside, "in-tree", script]);
    run(unshare.args(arguments)).map(drop)
}
