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
use super::guess::{Guess, labelled_by};
use super::index::{Contents, INDEX_KEY, NewIndex};
use super::label::{Labeller, Labels};
use super::objects::{Attributes, Id, S_IFLNK, S_IFMT, S_IFREG, hex};
use super::path::PathRules;
use super::transaction::{Transaction, load_tree, resolve};
use super::tree::{Dir, EmptyWhiteout, lay};
use super::{
    CONFIG_KEY, DIGEST_KEY, IMPORTER_KEY, MANIFEST_KEY, MergeStep, Observer, POLICY_KEY, importer,
    prepare_root, slices,
};
use crate::image::layer::{Layer, LayerKind};
use crate::image::layout::Image;
use crate::image::reference::{Digest, ImageReference, blob_ref, guard_ref, image_ref};

/// Files that container builders leave behind empty.
const LEFTOVERS: [&str; 2] = ["hostname", "resolv.conf"];

/// What a merge did.
#[derive(Debug)]
pub(crate) struct Merged {
    /// Checksum of the merge commit.
    pub(crate) commit: String,
    /// What its labels took.
    pub(crate) labels: Labels,
}

/// What is known beforehand.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    /// What labels files may have.
    pub(crate) guess: Option<&'a Guess>,
    /// What is in files, if images like this one can share them.
    pub(crate) contents: Option<&'a Contents>,
}

/// Writes the merge commit of `image`, whose layers are all in the repository,
/// with labels by the guess.
///
/// # Errors
/// [`Error::Raced`] when a layer was removed by another tool meanwhile.
pub(crate) fn merge(
    repo: &ostree::Repo,
    image: &Image,
    imgref: &ImageReference,
    Known { guess, contents }: Known<'_>,
    observer: &dyn Observer,
    cancellable: &gio::Cancellable,
) -> Result<Merged, Error> {
    // While the transaction is open nobody can prune; so first open it, then look.
    let mut transaction = Transaction::begin(repo, cancellable)?;
    observer.merging(MergeStep::Compose);
    let base = base_commit(repo, image)?;
    let mut layers = plain_layers(repo, image)?;
    let mut root = compose(&mut transaction, base.as_deref(), &layers)?;
    observer.merging(MergeStep::Label);
    let mut labels = Labels::default();
    let mut policy = None;
    if let Some(mut labeller) = Labeller::load(&transaction, &root, guess)? {
        let relabelled = relabel_layers(&mut transaction, &mut labeller, &mut layers, guess)?;
        if relabelled.is_new {
            root = compose(&mut transaction, base.as_deref(), &layers)?;
        }
        let reference = guess.filter(|guess| guess.key() == labeller.key());
        let reference = reference.and_then(Guess::reference);
        // What is in the tree is mostly that of the uppermost layers.
        let layers = layers.distinct.iter().rev().map(|layer| &layer.tree);
        let right: Vec<_> = layers.chain(reference).collect();
        let is_pure = labeller.label_tree(&mut transaction, &mut root, &right, None)?;
        policy = Some(labeller.key().to_owned()).filter(|_| is_pure && relabelled.is_pure);
        labels = labeller.took();
        tracing::debug!(?labels, "the files have their labels");
    }
    observer.merging(MergeStep::Write);
    let timestamp = image.created.unwrap_or_else(now);
    let index = contents.and_then(|contents| contents.of_tree(&root));
    let metadata = metadata(image, policy.as_deref(), index.as_ref());
    let commit = transaction.write_commit(&root, base.as_deref(), &metadata, timestamp)?;
    if let (Some(contents), Some(index)) = (contents, &index)
        && let Err(error) = contents.write(index, &commit)
    {
        tracing::warn!(%error, "what is in the files of the image is not remembered");
    }
    slices::remove(&transaction, &image.digest)?;
    transaction.set_ref(&image_ref(imgref), &commit);
    transaction.set_ref(&guard_ref(&image.digest), &commit);
    observer.merging(MergeStep::Commit);
    transaction.commit()?;
    if let Some(contents) = contents {
        contents.tidy(repo, cancellable);
    }
    Ok(Merged { commit, labels })
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

/// What other tools read of a merge commit, a version for boot menus, and whose labels it has.
fn metadata(image: &Image, policy: Option<&str>, index: Option<&NewIndex>) -> glib::Variant {
    let mut metadata = BTreeMap::from([
        (DIGEST_KEY.to_owned(), image.digest.as_str().to_variant()),
        (MANIFEST_KEY.to_owned(), image.manifest_json.to_variant()),
        (CONFIG_KEY.to_owned(), image.config_json.to_variant()),
        (IMPORTER_KEY.to_owned(), importer().to_variant()),
    ]);
    if let Some(version) = image.version() {
        metadata.insert("version".to_owned(), version.to_variant());
    }
    if let Some(policy) = policy {
        metadata.insert(POLICY_KEY.to_owned(), policy.to_variant());
    }
    if let Some(index) = index {
        metadata.insert(INDEX_KEY.to_owned(), index.digest().to_variant());
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

/// What decides where files of the image go, once its base is here. Images without an ostree base are made
/// for hosts that show all of them.
///
/// # Errors
/// [`Error::Raced`] when the base is not here.
pub(crate) fn rules(
    repo: &ostree::Repo,
    image: &Image,
    cancellable: &gio::Cancellable,
) -> Result<PathRules, Error> {
    let allow_nonusr = match base_commit(repo, image)? {
        Some(base) => prepare_root::allows_nonusr(repo, &base, cancellable)?,
        None => true,
    };
    Ok(PathRules::current(allow_nonusr))
}

fn layer_commit(repo: &ostree::Repo, layer: &Layer) -> Result<String, Error> {
    resolve(repo, &blob_ref(&layer.digest))?.ok_or_else(|| {
        Error::Raced(format!(
            "layer {} was removed by another program during the import",
            layer.digest
        ))
    })
}

/// The layers of files, in the order of the manifest.
struct PlainLayers {
    /// Each once.
    distinct: Vec<PlainLayer>,
    /// All, as positions among them.
    order: Vec<usize>,
}

/// A plan takes a layer for whole without looking at all of it. So one that is not is marked: then the next
/// plan looks, and what is missing is fetched again.
fn doubt(repo: &ostree::Repo, commit: &str, layer: &Layer, error: Error) -> Error {
    if matches!(error, Error::Cancelled) {
        return error;
    }
    tracing::warn!(%error, layer = %layer.digest, "a layer of the repository is damaged");
    match repo.mark_commit_partial(commit, true) {
        Ok(()) => Error::Raced(format!(
            "layer {} in the repository is damaged ({error}) and is looked at anew",
            layer.digest
        )),
        Err(_) => error,
    }
}

struct PlainLayer {
    digest: Digest,
    commit: String,
    tree: Dir,
}

fn plain_layers(repo: &ostree::Repo, image: &Image) -> Result<PlainLayers, Error> {
    let mut layers = PlainLayers {
        distinct: Vec::new(),
        order: Vec::new(),
    };
    for layer in &image.layers {
        // A chunk layer counts too: other tools refuse images of which a ref is missing.
        let commit = layer_commit(repo, layer)?;
        if layer.kind != LayerKind::Plain {
            continue;
        }
        let known = |known: &PlainLayer| known.digest == layer.digest;
        let position = layers.distinct.iter().position(known);
        layers.order.push(position.unwrap_or(layers.distinct.len()));
        if position.is_none() {
            layers.distinct.push(PlainLayer {
                digest: layer.digest.clone(),
                tree: load_tree(repo, &commit)
                    .map_err(|error| doubt(repo, &commit, layer, error))?,
                commit,
            });
        }
    }
    Ok(layers)
}

fn compose(
    transaction: &mut Transaction<'_>,
    base: Option<&str>,
    layers: &PlainLayers,
) -> Result<Dir, Error> {
    let (repo, cancellable) = (transaction.repo(), transaction.cancellable().clone());
    let mut root = base.map(|base| load_tree(repo, base)).transpose()?;
    let mut is_symlink = |id: &Id| is_type(repo, id, S_IFLNK, &cancellable).map_err(Trouble::Other);
    for position in &layers.order {
        let PlainLayer { digest, tree, .. } = &layers.distinct[*position];
        cancellable
            .set_error_if_cancelled()
            .during("merging layers")?;
        lay(&mut root, tree, &mut is_symlink).map_err(|trouble| match trouble {
            Trouble::Whiteout(empty) => Error::Layer {
                digest: digest.clone(),
                reason: empty.to_string(),
            },
            Trouble::Other(error) => error,
        })?;
    }
    let mut root = root.ok_or_else(|| Error::Image("it has no layers".into()))?;
    remove_leftovers(repo, &mut root, &cancellable)?;
    if base.is_none() {
        add_var(transaction, &mut root)?;
    }
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

/// What became of the layers.
struct Relabelled {
    /// Some have another tree than before.
    is_new: bool,
    /// All labels are the policy's.
    is_pure: bool,
}

/// Points the layers' refs at commits whose files carry the final labels, so that layers and
/// merge share their objects. Layers that are known to have them are not looked at.
fn relabel_layers(
    transaction: &mut Transaction<'_>,
    labeller: &mut Labeller,
    layers: &mut PlainLayers,
    guess: Option<&Guess>,
) -> Result<Relabelled, Error> {
    let repo = transaction.repo();
    let (right, wrong): (Vec<_>, Vec<_>) = guess
        .into_iter()
        .partition(|guess| guess.key() == labeller.key());
    let right: Vec<_> = right.into_iter().filter_map(Guess::reference).collect();
    let former = wrong.first().map(|guess| &**guess.policy());
    let (mut is_new, mut is_pure) = (false, true);
    for layer in &mut layers.distinct {
        let mark = labelled_by(repo, &layer.commit);
        if mark.as_deref() == Some(labeller.key()) {
            continue;
        }
        let old = layer.tree.clone();
        let is_mine = labeller.label_tree(transaction, &mut layer.tree, &right, former)?;
        is_new |= layer.tree != old;
        is_pure &= is_mine;
        let policy = is_mine.then_some(labeller.key());
        if layer.tree == old && mark.as_deref() == policy {
            continue;
        }
        let (variant, _) = repo
            .load_commit(&layer.commit)
            .during("loading a layer's commit")?;
        let timestamp = ostree::commit_get_timestamp(&variant);
        let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
        metadata.remove(POLICY_KEY);
        if let Some(policy) = policy {
            metadata.insert(POLICY_KEY, policy);
        }
        let relabelled = transaction.write_commit(&layer.tree, None, &metadata.end(), timestamp)?;
        transaction.set_ref(&blob_ref(&layer.digest), &relabelled);
    }
    Ok(Relabelled { is_new, is_pure })
}
