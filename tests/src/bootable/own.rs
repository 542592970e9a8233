//! What is ours on version 1: osteward as `make install` leaves it, and the lab's own files.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::image::{Layer, paths_below};
use crate::process::{binary_dir, command, run, workspace};

/// Files of `tests/guest` that are installed under names of their own: the agent and its unit.
const FILES: [(&str, &str, u32); 2] = [
    ("agent", "usr/lib/lab/agent", 0o755),
    (
        "osteward-agent.service",
        "usr/lib/systemd/system/osteward-agent.service",
        0o644,
    ),
];

/// A directory with these files, and what tells their content from others.
pub(super) struct Own {
    /// The directory.
    pub(super) path: PathBuf,
    /// The layer that it is.
    pub(super) layer: Layer,
    /// Digest of the layer's tar.
    pub(super) key: String,
}

/// Installs everything into `out`, anew each time: it takes less time than to find out whether
/// it has to be done.
///
/// # Errors
/// When osteward was not built, or a file is missing.
pub(super) fn stage(out: &Path) -> Result<Own> {
    if out.exists() {
        fs::remove_dir_all(out)?;
    }
    fs::create_dir_all(out)?;
    let mut install = command(["make", "--no-print-directory", "install", "PREFIX=/usr"]);
    install.arg(format!("DESTDIR={}", out.display()));
    install.arg(format!("programs={}", binary_dir()?.display()));
    run(install.current_dir(workspace())).context("installing osteward into the image")?;
    // What a debugger wants would be most of the layer.
    let programs = ["usr/libexec/ostewardd", "usr/bin/osteward"].map(|path| out.join(path));
    run(command(["strip", "--strip-debug"]).args(programs))?;
    let guest = workspace().join("tests/guest");
    run(command(["cp", "-rP", "--"])
        .arg(guest.join("root/."))
        .arg(out))?;
    for (name, target, mode) in FILES {
        let target = out.join(target);
        let parent = target.parent().context("a file in no directory")?;
        fs::create_dir_all(parent)?;
        fs::copy(guest.join(name), &target).with_context(|| format!("copying {name}"))?;
        fs::set_permissions(&target, PermissionsExt::from_mode(mode))?;
    }
    let wanted = out.join("usr/lib/systemd/system/multi-user.target.wants");
    std::os::unix::fs::symlink(
        "../osteward-agent.service",
        wanted.join("osteward-agent.service"),
    )?;
    let layer = layer_of(out)?;
    let key = layer.diff_id()?;
    let path = out.to_owned();
    Ok(Own { path, layer, key })
}

/// Modes are set here, so that neither umask nor file system has a say in the image.
fn layer_of(dir: &Path) -> Result<Layer> {
    let paths = paths_below(dir, |_| true)?;
    for (path, meta) in &paths {
        let executable = meta.is_dir() || meta.permissions().mode() & 0o100 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        if !meta.is_symlink() {
            fs::set_permissions(dir.join(path), PermissionsExt::from_mode(mode))?;
        }
    }
    let paths: Vec<String> = paths.into_iter().map(|(path, _)| path).collect();
    run(command([OsStr::new("chown"), OsStr::new("-hR"), OsStr::new("0:0")]).arg(dir))?;
    Layer::new().quickly().add_from(dir, &paths)
}
