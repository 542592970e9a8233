//! The merge: all layers of an image flattened into the commit that gets deployed.
//!
//! Composed from directory objects in memory; no file is read unless its label changes.
//! Invariant: the image's ref, the guard against other tools' clean-up and relabelled layer
//! refs change in one transaction with the commit, or not at all.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use ostree::gio;
use ostree::glib;
use ostree::prelude::*;

use super::error::{During, Error};
use super::label::Labeller;
use super::objects::{Attributes, Id, S_IFLNK, S_IFMT, S_IFREG, hex};
use super::transaction::{Transaction, load_tree, resolve};
use super::tree::{Dir, EmptyWhiteout, lay};
use super::{CONFIG_KEY, DIGEST_KEY, IMPORTER_KEY, MANIFEST_KEY, MergeStep, Observer, importer};
use crate::image::layer::{Layer, LayerKind};
use crate::image::layout::Image;
use crate::image::reference::{ImageReference, blob_ref, guard_ref, image_ref};

/// Files that container builders leave behind empty.
const LEFTOVERS: [&str; 2] = ["hostname", "resolv.conf"];

/// Writes the merge commit of `image`, whose layers are all in the repository.
///
/// # Errors
/// [`Error::Raced`] when a layer was removed by another tool meanwhile.
pub(crate) fn merge(
    repo: &ostree::Repo,
    image: &Image,
    imgref: &ImageReference,
    observer: &dyn Observer,
    cancellable: &gio::Cancellable,
) -> Result<String, Error> {
    // While the transaction is open nobody can prune; so first open it, then look.
    let mut transaction = Transaction::begin(repo, cancellable)?;
    observer.merging(MergeStep::Compose);
    let base = base_commit(repo, image)?;
    let layers = plain_layers(repo, image)?;
    let mut root = compose(repo, base.as_deref(), &layers, cancellable)?;
    if base.is_none() {
        add_var(&mut transaction, &mut root)?;
    }
    observer.merging(MergeStep::Label);
    if let Some(mut labeller) = Labeller::load(&mut transaction, &root)? {
        labeller.label_tree(&mut transaction, &mut root)?;
        relabel_layers(&mut transaction, &mut labeller, &layers)?;
    }
    observer.merging(MergeStep::Write);
    let timestamp = image.created.unwrap_or_else(now);
    let commit = transaction.write_commit(&root, base.as_deref(), &metadata(image), timestamp)?;
    transaction.set_ref(&image_ref(imgref), &commit);
    transaction.set_ref(&guard_ref(&image.digest), &commit);
    observer.merging(MergeStep::Commit);
    transaction.commit()?;
    Ok(commit)
}

/// A host cannot boot without `/var` to mount the stateroot's on. With libostree before
/// 2024.3 the content of `/var` goes to the factory directory and nothing else makes it; an
/// ostree base brings its own.
fn add_var(transaction: &mut Transaction<'_>, root: &mut Dir) -> Result<(), Error> {
    if !root.dirs.contains_key("var") && !root.files.contains_key("var") {
        let meta = transaction.dirmeta(&Attributes::default_directory())?;
        root.dirs.insert("var".into(), Dir::new(meta));
    }
    Ok(())
}

/// What other tools read of a merge commit, and a version for boot menus.
fn metadata(image: &Image) -> glib::Variant {
    let mut metadata = BTreeMap::from([
        (DIGEST_KEY.to_owned(), image.digest.as_str().to_variant()),
        (MANIFEST_KEY.to_owned(), image.manifest_json.to_variant()),
        (CONFIG_KEY.to_owned(), image.config_json.to_variant()),
        (IMPORTER_KEY.to_owned(), importer().to_variant()),
    ]);
    if let Some(version) = image.version() {
        metadata.insert("version".to_owned(), version.to_variant());
    }
    metadata.to_variant()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The commit of the ostree base, for images that have one.
pub(crate) fn base_commit(repo: &ostree::Repo, image: &Image) -> Result<Option<String>, Error> {
    let base = image
        .layers
        .iter()
        .find(|layer| layer.kind == LayerKind::Commit);
    base.map(|layer| layer_commit(repo, layer)).transpose()
}

fn layer_commit(repo: &ostree::Repo, layer: &Layer) -> Result<String, Error> {
    resolve(repo, &blob_ref(&layer.digest))?.ok_or_else(|| {
        Error::Raced(format!(
            "layer {} was removed by another program during the import",
            layer.digest
        ))
    })
}

/// Layers of files with their commits, in the order of the manifest, repetitions included.
fn plain_layers<'image>(
    repo: &ostree::Repo,
    image: &'image Image,
) -> Result<Vec<(&'image Layer, String)>, Error> {
    let plain = image
        .layers
        .iter()
        .filter(|layer| layer.kind == LayerKind::Plain);
    let layers = plain
        .map(|layer| Ok((layer, layer_commit(repo, layer)?)))
        .collect();
    // A chunk layer counts too: other tools refuse images of which a ref is missing.
    for layer in &image.layers {
        layer_commit(repo, layer)?;
    }
    layers
}

fn compose(
    repo: &ostree::Repo,
    base: Option<&str>,
    layers: &[(&Layer, String)],
    cancellable: &gio::Cancellable,
) -> Result<Dir, Error> {
    let mut root = base.map(|base| load_tree(repo, base)).transpose()?;
    let mut is_symlink = |id: &Id| is_type(repo, id, S_IFLNK, cancellable).map_err(Trouble::Other);
    for (layer, commit) in layers {
        cancellable
            .set_error_if_cancelled()
            .during("laying layers over each other")?;
        let upper = load_tree(repo, commit)?;
        lay(&mut root, &upper, &mut is_symlink).map_err(|trouble| match trouble {
            Trouble::Whiteout(empty) => Error::Layer {
                digest: layer.digest.clone(),
                reason: empty.to_string(),
            },
            Trouble::Other(error) => error,
        })?;
    }
    let mut root = root.ok_or_else(|| Error::Image("it has no layers".into()))?;
    remove_leftovers(repo, &mut root, cancellable)?;
    Ok(root)
}

/// Either kind of trouble while layers are laid over each other.
enum Trouble {
    Whiteout(EmptyWhiteout),
    Other(Error),
}

impl From<EmptyWhiteout> for Trouble {
    fn from(empty: EmptyWhiteout) -> Self {
        Self::Whiteout(empty)
    }
}

fn is_type(
    repo: &ostree::Repo,
    id: &Id,
    file_type: u32,
    cancellable: &gio::Cancellable,
) -> Result<bool, Error> {
    let (info, _) = repo
        .query_file(&hex(id), Some(cancellable))
        .during("looking at a file object")?;
    Ok(info.attribute_uint32("unix::mode") & S_IFMT == file_type)
}

fn remove_leftovers(
    repo: &ostree::Repo,
    root: &mut Dir,
    cancellable: &gio::Cancellable,
) -> Result<(), Error> {
    let Some(etc) = root.dir_mut(&["usr", "etc"]) else {
        return Ok(());
    };
    for name in LEFTOVERS {
        let Some(id) = etc.files.get(name) else {
            continue;
        };
        let (info, _) = repo
            .query_file(&hex(id), Some(cancellable))
            .during("looking at a file object")?;
        let is_regular = info.attribute_uint32("unix::mode") & S_IFMT == S_IFREG;
        if is_regular && info.size() == 0 {
            etc.files.remove(name);
        }
    }
    Ok(())
}

/// Points the layers' refs at commits whose files carry the final labels, so that layers and
/// merge share their objects.
fn relabel_layers(
    transaction: &mut Transaction<'_>,
    labeller: &mut Labeller,
    layers: &[(&Layer, String)],
) -> Result<(), Error> {
    let mut done = BTreeMap::new();
    for (layer, commit) in layers {
        if done.insert(&layer.digest, ()).is_some() {
            continue;
        }
        let old = load_tree(transaction.repo(), commit)?;
        let mut new = old.clone();
        labeller.label_tree(transaction, &mut new)?;
        if new == old {
            continue;
        }
        let (variant, _) = transaction
            .repo()
            .load_commit(commit)
            .during("loading a layer's commit")?;
        let timestamp = ostree::commit_get_timestamp(&variant);
        let relabelled =
            transaction.write_commit(&new, None, &variant.child_value(0), timestamp)?;
        transaction.set_ref(&blob_ref(&layer.digest), &relabelled);
    }
    Ok(())
}
