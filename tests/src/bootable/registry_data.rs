//! Images as `docker-registry` keeps them on disk, without having pushed them: a run starts
//! with a full registry at once, and the blobs are the layout's own files.
//!
//! The format is that of the registry's file system driver: blobs by digest, and in each
//! repository one link file for every blob, manifest and tag it has.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::product::product;
use super::{Bootable, Suite};
use crate::image::delta::Delta;
use crate::image::{Layout, Written};
use crate::process::{command, run};

const ROOT: &str = "docker/registry/v2";

/// Makes `out` the data directory of a registry that has the suite's images, by their tags.
///
/// # Errors
/// When the layout is incomplete.
pub(super) fn make(out: &Path, layout: &Layout, suite: Suite, images_key: &str) -> Result<String> {
    let inputs = [images_key, include_str!("registry_data.rs")];
    product(out, &inputs, |out| {
        for tag in layout.tags()? {
            keep(out, suite.repository(), &tag, layout, &layout.find(&tag)?)?;
        }
        Ok(())
    })
}

/// Gives an image of a layout a name in the data directory `data`, also while the registry runs: it
/// reads the files of tags anew each time.
///
/// # Errors
/// When the layout is incomplete, or on another file system.
pub(crate) fn keep(
    data: &Path,
    repository: &str,
    tag: &str,
    layout: &Layout,
    image: &Written,
) -> Result<()> {
    let blobs = image.layers.iter().chain([&image.config_digest]);
    keep_manifest(data, repository, layout, &image.digest, blobs)?;
    name(data, repository, tag, &image.digest)
}

/// As [`keep`], with what is beside an image, under the tag where it is looked for.
///
/// # Errors
/// As [`keep`].
pub(crate) fn keep_delta(
    data: &Path,
    repository: &str,
    layout: &Layout,
    delta: &Delta,
) -> Result<()> {
    keep_manifest(data, repository, layout, &delta.manifest, &delta.blobs)?;
    keep_manifest(data, repository, layout, &delta.list, [])?;
    name(data, repository, &delta.tag, &delta.list)
}

/// Without a name.
fn keep_manifest<'a>(
    data: &Path,
    repository: &str,
    layout: &Layout,
    manifest: &str,
    blobs: impl IntoIterator<Item = &'a String>,
) -> Result<()> {
    let root = data.join(ROOT);
    let repository = root.join("repositories").join(repository);
    for digest in blobs {
        keep_blob(&root, layout, digest)?;
        link(&repository.join("_layers"), digest)?;
    }
    keep_blob(&root, layout, manifest)?;
    link(&repository.join("_manifests/revisions"), manifest)
}

/// Lets a tag mean a manifest that is there.
fn name(data: &Path, repository: &str, tag: &str, manifest: &str) -> Result<()> {
    let repository = data.join(ROOT).join("repositories").join(repository);
    let tag = repository.join("_manifests/tags").join(tag);
    link(&tag.join("index"), manifest)?;
    write_link(&tag.join("current"), manifest)
}

/// Fills the data directory `data` of a registry that does not run yet with the images of all
/// `bootables`. The directory may be changed afterwards; blobs never are.
///
/// # Errors
/// When the directory is not writable.
pub fn stock(data: &Path, bootables: &[&Bootable]) -> Result<()> {
    for bootable in bootables {
        // Link files are overwritten in place when a tag moves, so they are copied; a blob has
        // its digest for a name.
        let (from, to) = (bootable.registry.join(ROOT), data.join(ROOT));
        for (part, how) in [("blobs", "-aln"), ("repositories", "-a")] {
            let (from, to) = (from.join(part), to.join(part));
            fs::create_dir_all(&to)?;
            run(command(["cp", how, "--"]).arg(from.join(".")).arg(&to))
                .context("filling the registry")?;
        }
    }
    Ok(())
}

fn keep_blob(root: &Path, layout: &Layout, digest: &str) -> Result<()> {
    let hex = digest.trim_start_matches("sha256:");
    let prefix = hex.get(..2).context("an odd digest")?;
    let directory = root.join("blobs/sha256").join(prefix).join(hex);
    let data = directory.join("data");
    if !data.exists() {
        fs::create_dir_all(&directory)?;
        fs::hard_link(layout.blob(digest), data).with_context(|| format!("keeping {digest}"))?;
    }
    Ok(())
}

/// Notes below `directory` that it has `digest`.
fn link(directory: &Path, digest: &str) -> Result<()> {
    let hex = digest.trim_start_matches("sha256:");
    write_link(&directory.join("sha256").join(hex), digest)
}

fn write_link(directory: &Path, digest: &str) -> Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("link"), digest).with_context(|| directory.display().to_string())
}
