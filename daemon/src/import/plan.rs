//! Which layers of an image are here already.
//!
//! A layer is here if the ref of its blob points at a commit that loads, or if a layer of a
//! stored image has the same content in another compression. Invariant: content is taken for
//! the same only where this program compared it with its `diff_id` when it came in.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use ostree::prelude::*;
use ostree::{gio, glib};

use super::error::{During, Error};
use super::partial_blob;
use super::patched::Patched;
use super::transaction::{is_complete, resolve};
use super::{CONFIG_KEY, DIFF_ID_KEY, DIGEST_KEY, MANIFEST_KEY};
use crate::image::layer::{Layer, LayerKind};
use crate::image::layout::Image;
use crate::image::reference::{Digest, IMAGE_PREFIX, blob_ref};

/// Which layers an import would fetch; each digest once, in the order of the manifest.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the repository.
    pub present: Vec<Layer>,
    /// To be fetched.
    pub missing: Vec<Layer>,
    /// Bytes of these that an interrupted attempt left, but for those that are fetched by parts.
    pub kept: u64,
    /// Bytes to fetch of those of them that are fetched by parts.
    pub parts: BTreeMap<Digest, u64>,
    /// How those of them are made that a delta is used for.
    pub(crate) deltas: BTreeMap<Digest, Patched>,
}

impl Plan {
    /// Bytes to fetch.
    pub fn download_size(&self) -> u64 {
        self.needed_size().saturating_sub(self.kept)
    }

    /// Bytes that need not be fetched.
    pub fn cached_size(&self) -> u64 {
        let here = total(&self.present).saturating_add(self.kept);
        here.saturating_add(self.missing_size().saturating_sub(self.needed_size()))
    }

    /// Compressed bytes of all layers that are not in the repository.
    pub fn missing_size(&self) -> u64 {
        total(&self.missing)
    }

    /// Compressed bytes of what is not in the repository of these layers.
    pub(crate) fn needed_size(&self) -> u64 {
        let sizes = self.missing.iter().map(|layer| self.size_of(layer));
        sizes.fold(0, u64::saturating_add)
    }

    /// Bytes of the layer that are fetched, if nothing was kept of it.
    pub(crate) fn size_of(&self, layer: &Layer) -> u64 {
        if let Some(patched) = self.deltas.get(&layer.digest) {
            return patched.size();
        }
        let part = self.parts.get(&layer.digest);
        part.map_or(layer.size, |part| layer.size.min(*part))
    }

    /// The layer is fetched by parts, which takes so many bytes; `kept` of it are of no use then.
    pub(crate) fn by_parts(&mut self, layer: &Layer, bytes: u64, kept: u64) {
        self.parts.insert(layer.digest.clone(), bytes);
        self.kept = self.kept.saturating_sub(kept);
    }

    /// The layer is made by a delta; what was `kept` of it is of no use then.
    pub(crate) fn by_delta(&mut self, layer: &Layer, patched: Patched, kept: u64) {
        self.deltas.insert(layer.digest.clone(), patched);
        if !self.parts.contains_key(&layer.digest) {
            self.kept = self.kept.saturating_sub(kept);
        }
    }
}

/// The sizes are the manifest's, and so anything.
fn total(layers: &[Layer]) -> u64 {
    let sizes = layers.iter().map(|layer| layer.size);
    sizes.fold(0, u64::saturating_add)
}

/// Compares an image with the repository. Writes nothing, but removes the mark "partial" of a
/// commit that turns out to be whole.
///
/// # Errors
/// [`Error::Ostree`] when the repository cannot be read.
pub fn plan(repo: &ostree::Repo, image: &Image) -> Result<Plan, Error> {
    survey(repo, image, &gio::Cancellable::new()).map(|survey| survey.plan)
}

/// [`plan`], with a handle of its own to the repository at `path`. Blocks.
///
/// # Errors
/// [`Error::Ostree`] when the repository cannot be read.
pub fn plan_at(path: &Path, image: &Image) -> Result<Plan, Error> {
    let repo = ostree::Repo::new_for_path(path);
    repo.open(gio::Cancellable::NONE)
        .during("opening the repository")?;
    plan(&repo, image)
}

/// A plan, and what it found.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) plan: Plan,
    /// Blob refs to create: the same content is here under another digest.
    pub(crate) aliases: Vec<(Digest, String)>,
}

/// [`plan`], with the commits of layers that are known by their content.
pub(crate) fn survey(
    repo: &ostree::Repo,
    image: &Image,
    cancellable: &gio::Cancellable,
) -> Result<Survey, Error> {
    let mut survey = Survey::default();
    let mut by_content = None;
    for layer in image.unique_layers() {
        if let Some(commit) = resolve(repo, &blob_ref(&layer.digest))?
            && is_complete(repo, &commit, cancellable)?
        {
            survey.plan.present.push(layer.clone());
            continue;
        }
        let by_content = match &mut by_content {
            Some(known) => known,
            none => none.insert(verified_contents(repo)?),
        };
        match by_content.get(&layer.diff_id) {
            Some(commit)
                if layer.kind == LayerKind::Plain && is_complete(repo, commit, cancellable)? =>
            {
                survey.aliases.push((layer.digest.clone(), commit.clone()));
                survey.plan.present.push(layer.clone());
            }
            _ => survey.plan.missing.push(layer.clone()),
        }
    }
    let path = repo.path().path().unwrap_or_default();
    let kept = |layer: &Layer| partial_blob::kept(&path, layer);
    survey.plan.kept = survey.plan.missing.iter().map(kept).sum();
    Ok(survey)
}

/// `diff_id` → commit, of all plain layers of stored images that we wrote ourselves.
fn verified_contents(repo: &ostree::Repo) -> Result<HashMap<Digest, String>, Error> {
    let mut contents = HashMap::new();
    for commit in image_commits(repo)? {
        // One broken image must not keep others from being imported.
        let Some(image) = stored_image(repo, &commit) else {
            continue;
        };
        for layer in image.layers {
            if layer.kind == LayerKind::Plain
                && layer.diff_id != layer.digest
                && let Some(commit) = resolve(repo, &blob_ref(&layer.digest))?
                && content_of(repo, &commit).as_deref() == Some(layer.diff_id.as_str())
            {
                contents.insert(layer.diff_id, commit);
            }
        }
    }
    Ok(contents)
}

/// Commits that may carry a manifest: pulled images, deployments, and what is kept for them.
pub(crate) fn image_commits(repo: &ostree::Repo) -> Result<Vec<String>, Error> {
    let mut commits = Vec::new();
    for prefix in [
        IMAGE_PREFIX,
        "ostree/container/baseimage",
        "ostree/0",
        "ostree/1",
    ] {
        let refs = repo
            .list_refs_ext(
                Some(prefix),
                ostree::RepoListRefsExtFlags::NONE,
                gio::Cancellable::NONE,
            )
            .during("listing the stored images")?;
        commits.extend(refs.into_values());
    }
    commits.sort();
    commits.dedup();
    Ok(commits)
}

/// Commits of whole images, by the digest of the configuration and by that of the manifest.
///
/// # Errors
/// When the repository cannot be read.
pub(crate) fn stored_images(repo: &ostree::Repo) -> Result<HashMap<Digest, String>, Error> {
    let mut stored = HashMap::new();
    for commit in image_commits(repo)? {
        let Ok((_, state)) = repo.load_commit(&commit) else {
            continue;
        };
        let Some(image) = stored_image(repo, &commit) else {
            continue;
        };
        // What guards half of an image has its manifest, and nothing else of it.
        let is_guard = image.config_json == "null";
        if !is_guard && !state.contains(ostree::RepoCommitState::PARTIAL) {
            stored.insert(image.config_digest, commit.clone());
            stored.insert(image.digest, commit);
        }
    }
    Ok(stored)
}

/// The image that a merge commit was made from.
pub(crate) fn stored_image(repo: &ostree::Repo, commit: &str) -> Option<Image> {
    let (variant, _) = repo.load_commit(commit).ok()?;
    let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
    let text = |key| metadata.lookup::<String>(key).ok().flatten();
    let config = text(CONFIG_KEY).unwrap_or_else(|| "null".to_owned());
    Image::from_commit_metadata(&text(DIGEST_KEY)?, &text(MANIFEST_KEY)?, &config).ok()
}

/// The digest of a layer's content, from the commit that we wrote when we had compared it. What an
/// image's configuration says of its layers is only what it says.
pub(crate) fn content_of(repo: &ostree::Repo, commit: &str) -> Option<String> {
    let (variant, _) = repo.load_commit(commit).ok()?;
    let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
    metadata.lookup::<String>(DIFF_ID_KEY).ok().flatten()
}

/// Whether every layer's ref resolves to a commit that loads.
pub(crate) fn has_all_layers(
    repo: &ostree::Repo,
    image: &Image,
    cancellable: &gio::Cancellable,
) -> Result<bool, Error> {
    for layer in image.unique_layers() {
        match resolve(repo, &blob_ref(&layer.digest))? {
            Some(commit) if is_complete(repo, &commit, cancellable)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}
