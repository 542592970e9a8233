//! ostree-ext, the code of bootc hosts, as a program of its own to compare with.
//!
//! A separate package, because it links an older generation of the ostree bindings than the
//! daemon does; it is built here, once, before its first use.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::image::{Layer, Layout};
use crate::process::{cargo, command, run, target_dir, workspace};

/// What the oracle says about an image in a repository.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Image {
    /// The commit that is deployed.
    pub merge_commit: String,
    /// The commit of the lowest layer.
    pub base_commit: String,
    /// `sha256:…` of the manifest.
    pub manifest_digest: String,
    /// Checksum of the root directory's contents.
    pub root_contents: String,
    /// Checksum of the root directory's metadata.
    pub root_metadata: String,
    /// Version from the configuration's labels.
    pub version: Option<String>,
    /// `sha256:…` of the manifest of a cached update.
    pub cached_update: Option<String>,
}

/// The oracle's program, built now if need be.
///
/// # Errors
/// When it does not build.
pub fn oracle() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build("dev", "debug").map_err(|e| format!("{e:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

/// The oracle's program as its makers would release it: for measurements.
///
/// # Errors
/// When it does not build.
pub fn released() -> Result<PathBuf> {
    build("release", "release")
}

fn build(profile: &str, directory: &str) -> Result<PathBuf> {
    let target = target_dir()?.join("oracle");
    let manifest = workspace().join("tests/oracle/Cargo.toml");
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--locked", "--profile", profile])
        .arg("--manifest-path")
        .arg(manifest);
    run(build.env("CARGO_TARGET_DIR", &target)).context("building the oracle")?;
    Ok(target.join(directory).join("ostree-ext-oracle"))
}

fn ask(words: &[&str]) -> Result<String> {
    run(command([oracle()?]).args(words))
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// Writes the tiny base that ostree-ext 0.15.3 wants below an image's layers into `layout`: an
/// ostree commit of empty `/usr` and `/var`, and the file that lets the root hold what is not in `/usr`.
/// `scratch` is used for a repository that is gone afterwards.
///
/// # Errors
/// With ostree's or the oracle's words.
pub fn write_base(scratch: &Path, layout: &Layout, tag: &str) -> Result<()> {
    let dir = tempfile::tempdir_in(scratch)?;
    let (repo, tar) = (dir.path().join("repo"), dir.path().join("base.tar"));
    run(command(["ostree", "init", "--mode=bare", "--repo"]).arg(&repo))?;
    let conf = "usr/lib/ostree/prepare-root.conf";
    // With this libostree ostree-ext turns a layer's /var into /usr/share/factory/var: the mount
    // point has to come from the base.
    let layer = Layer::new()
        .dir("var")
        .dir("usr")
        .dir("usr/lib")
        .dir("usr/lib/ostree");
    let layer = layer.file(conf, "[composefs]\nenabled = maybe\n");
    layer.write_tar(&mut std::fs::File::create(&tar)?)?;
    let words = [
        "ostree",
        "commit",
        "--no-bindings",
        "--orphan",
        "--tar-autocreate-parents",
    ];
    let repo_option = format!("--repo={}", repo.display());
    let tree = format!("--tree=tar={}", tar.display());
    let time = "--timestamp=2025-01-01T00:00:00Z";
    let commit = run(command(words).args([&repo_option, &tree, time]))?;
    encapsulate_base(&repo, commit.trim(), &layout.path, tag)
}

/// Makes the commit `commit` of `repo` the encapsulated base image `tag` of the layout `layout`.
///
/// # Errors
/// With the oracle's words.
pub fn encapsulate_base(repo: &Path, commit: &str, layout: &Path, tag: &str) -> Result<()> {
    let (repo, layout) = (path_text(repo)?, path_text(layout)?);
    ask(&["encapsulate-base", repo, commit, layout, tag]).map(drop)
}

/// As [`encapsulate_base`], with a layer for each directory's files instead of one for all.
///
/// # Errors
/// With the oracle's words.
pub fn encapsulate_chunked(repo: &Path, commit: &str, layout: &Path, tag: &str) -> Result<()> {
    let (repo, layout) = (path_text(repo)?, path_text(layout)?);
    ask(&["encapsulate-base", "--chunked", repo, commit, layout, tag]).map(drop)
}

/// Imports `image` (`docker://…`, `oci:…`) into `repo`, for a host that tracks it as such.
///
/// # Errors
/// With the oracle's words.
pub fn import(repo: &Path, image: &str) -> Result<Image> {
    import_as(repo, image, image)
}

/// As [`import`], under the name `name`: for hosts that see the image at another place.
///
/// # Errors
/// With the oracle's words.
pub fn import_as(repo: &Path, image: &str, name: &str) -> Result<Image> {
    let answer = ask(&["import", path_text(repo)?, image, "--as", name])?;
    serde_json::from_str(&answer).with_context(|| format!("not understood: {answer}"))
}

/// What ostree-ext's `query_image` finds under the name `image`, if anything.
///
/// # Errors
/// With the oracle's words: this is how bootc would fail.
pub fn query(repo: &Path, image: &str) -> Result<Option<Image>> {
    let answer = ask(&["query", path_text(repo)?, image])?;
    serde_json::from_str(&answer).with_context(|| format!("not understood: {answer}"))
}

/// All images ostree-ext finds in `repo`.
///
/// # Errors
/// With the oracle's words.
pub fn list(repo: &Path) -> Result<Vec<String>> {
    Ok(serde_json::from_str(&ask(&["list", path_text(repo)?])?)?)
}

/// Runs ostree-ext's layer collection; returns how many layers it dropped.
///
/// # Errors
/// With the oracle's words.
pub fn collect_layers(repo: &Path) -> Result<u32> {
    Ok(serde_json::from_str(&ask(&["gc", path_text(repo)?])?)?)
}

/// Runs ostree-ext's `deploy::prune` on a sysroot; returns the images and layers it dropped.
///
/// # Errors
/// With the oracle's words.
pub fn prune(sysroot: &Path) -> Result<(u32, u32)> {
    // Before the answer ostree-ext says that it waits for the sysroot lock, if it does.
    let said = ask(&["prune", path_text(sysroot)?])?;
    Ok(serde_json::from_str(
        said.lines().last().unwrap_or_default(),
    )?)
}
