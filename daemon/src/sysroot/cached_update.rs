//! What the last check found, where bootc looks for it too.
//!
//! Owns the three `ostree-ext.cached.*` keys in the detached metadata of the tracked
//! merge commit (on-disk notes 1.2). Invariant: all three keys are written or none;
//! a record that is not whole or not readable counts as none.

use ostree::{gio, glib};

use super::{Error, Sysroot};
use crate::image::layout::Image;

const DIGEST: &str = "ostree-ext.cached.manifest-digest";
const MANIFEST: &str = "ostree-ext.cached.manifest";
const CONFIG: &str = "ostree-ext.cached.config";

pub(super) fn read(repo: &ostree::Repo, commit: &str) -> Option<Image> {
    let metadata = repo
        .read_commit_detached_metadata(commit, gio::Cancellable::NONE)
        .ok()??;
    let metadata = glib::VariantDict::new(Some(&metadata));
    let text = |key| metadata.lookup::<String>(key).ok().flatten();
    Image::from_commit_metadata(&text(DIGEST)?, &text(MANIFEST)?, &text(CONFIG)?).ok()
}

/// Remembers `update` as what `commit` (the tracked merge commit) could get; `None`: there
/// is nothing newer (any more). Other keys of the detached metadata stay. It is a cache: a
/// failure changes nothing.
pub async fn cache_update(
    sysroot: &Sysroot,
    commit: String,
    update: Option<&Image>,
) -> Result<(), Error> {
    let values = [
        (DIGEST, update.map(|image| image.digest.to_string())),
        (MANIFEST, update.map(|image| image.manifest_json.clone())),
        (CONFIG, update.map(|image| image.config_json.clone())),
    ];
    let path = sysroot.repo_path();
    sysroot.ensure_writable().await?;
    let write = move || -> Result<(), Error> {
        // A handle of its own: the sysroot thread must not wait for a disk flush.
        let repo = ostree::Repo::new_for_path(path);
        repo.open(gio::Cancellable::NONE)?;
        let old = repo.read_commit_detached_metadata(&commit, gio::Cancellable::NONE)?;
        let metadata = glib::VariantDict::new(old.as_ref());
        for (key, value) in &values {
            match value {
                Some(value) => metadata.insert(key, value.as_str()),
                None => drop(metadata.remove(key)),
            }
        }
        let metadata = metadata.end();
        if old.map_or(metadata.n_children() == 0, |old| old == metadata) {
            return Ok(());
        }
        Ok(repo.write_commit_detached_metadata(&commit, Some(&metadata), gio::Cancellable::NONE)?)
    };
    tokio::task::spawn_blocking(write)
        .await
        .map_err(|error| Error::Ostree(format!("writing the cached update: {error}")))?
}
