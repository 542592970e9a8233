//! Version 1's big layers, which stay the same when osteward changes: a tiny base if ostree-ext is
//! to import it, the packages in gzip, and the kernel in zstd.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Installer;
use super::product::product;
use crate::image::{Compression, Image, Layer, Layout, paths_below, with_parents};
use crate::oracle::write_base;

/// The tag of the image of these layers in their layout.
pub(super) const TAG: &str = "layers";

const MODULES: &str = "usr/lib/modules";

/// A layout with the big layers.
pub(super) struct BigLayers {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The product's key.
    pub(super) key: String,
}

/// Makes the layers of `tree`.
///
/// # Errors
/// When the tree cannot be read, or with the oracle's words.
pub(super) fn of_tree(
    out: &Path,
    tree: &Path,
    tree_key: &str,
    installer: Installer,
) -> Result<BigLayers> {
    let inputs = [tree_key, include_str!("layers.rs")];
    let key = product(out, &inputs, |out| {
        let layout = Layout::create(out)?;
        let found = paths_below(tree, |_| true)?;
        let (kernel, packages): (Vec<&str>, Vec<&str>) = found
            .iter()
            .map(|(path, _)| path.as_str())
            .partition(|path| path.starts_with(MODULES));
        let layer = |paths, compression| {
            let layer = Layer::new().compressed(compression).quickly();
            layer.add_from(tree, &with_parents(paths))
        };
        let mut image = Image::new("0");
        if installer == Installer::Bootc {
            write_base(out, &layout, "base")?;
            image = image.on(&layout.find("base")?);
        }
        image
            .layer(layer(packages, Compression::Gzip)?)
            .layer(layer(kernel, Compression::Zstd)?)
            .write_as(&layout, TAG)
            .map(drop)
    })?;
    let path = out.to_owned();
    Ok(BigLayers { path, key })
}
