//! Removing what nothing needs: images, layers, deployment directories, objects.
//!
//! Owns the rule of what is kept (on-disk notes 1.11): every deployment and its image,
//! every image under a `baseimage` ref, whoever put it there, and all their layers.
//! Invariants: runs under the sysroot lock and never beside an import; a ref that cannot
//! be understood is kept; the booted, staged, pinned and rollback deployments are never
//! candidates, because only deployments that are off the list lose their files.

use std::collections::{HashMap, HashSet};

use ostree::prelude::FileExt;
use ostree::{gio, glib};
use tokio_util::sync::CancellationToken;

use super::deploy::matches;
use super::reachable::Reachable;
use super::{Error, Lock, snapshot};
use crate::image::reference::{
    BASEIMAGE_PREFIX, BLOB_PREFIX, Digest, IMAGE_PREFIX, ImageReference, OriginReference, blob_ref,
    guard_ref, image_ref, unescape_ref,
};

/// Refs that any tool may use to keep an image (ours are below this too).
const BASEIMAGES: &str = "ostree/container/baseimage";

/// Which undeployed images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageCleanup {
    /// What no deployment and no baseimage ref holds.
    Unreferenced,
    /// Also what osteward has downloaded but not staged.
    Downloaded,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Image refs.
    pub images: usize,
    /// Layer refs.
    pub layers: usize,
    /// Bytes of objects.
    pub bytes: u64,
}

/// When objects are looked for that nothing needs: that walks every tree in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// Whatever was done.
    Always,
    /// When a commit has lost its last ref; for those who have written no objects themselves.
    IfRefsWent,
}

impl Lock {
    /// Removes the images and layers that `which` says, then what only they held.
    pub async fn clean_up(
        &self,
        which: ImageCleanup,
        prune: Prune,
        cancel: &CancellationToken,
    ) -> Result<Discarded, Error> {
        self.change(cancel, move |sysroot, cancellable| {
            let repo = sysroot.repo();
            let before = named_commits(&repo, cancellable)?;
            let doomed = doomed_refs(&repo, &Deployed::of(sysroot, &[]), which)?;
            for name in doomed.refs() {
                repo.set_ref_immediate(None, name, None, Some(cancellable))?;
            }
            for (name, commit) in &doomed.set_back {
                repo.set_ref_immediate(None, name, Some(commit), Some(cancellable))?;
            }
            // Without the prune that sysroot.cleanup() would do: ours counts the bytes.
            sysroot.prepare_cleanup(Some(cancellable))?;
            if prune == Prune::IfRefsWent && before.is_subset(&named_commits(&repo, cancellable)?) {
                return Ok(doomed.discarded(0));
            }
            let flags = ostree::RepoPruneFlags::REFS_ONLY;
            let bytes = repo.prune(flags, 0, Some(cancellable))?.2;
            Ok(doomed.discarded(bytes))
        })
        .await
    }

    /// What [`Lock::clean_up`] would remove if the deployments that `without` names by id
    /// were off the list.
    pub async fn preview_clean_up(
        &self,
        which: ImageCleanup,
        without: Vec<String>,
        cancel: &CancellationToken,
    ) -> Result<Discarded, Error> {
        self.look(cancel, move |sysroot, cancellable| {
            let repo = sysroot.repo();
            let deployed = Deployed::of(sysroot, &without);
            let doomed = doomed_refs(&repo, &deployed, which)?;
            let kept = kept_commits(&repo, &deployed, &doomed)?;
            let kept = kept.iter().map(String::as_str);
            let reachable = Reachable::of(&repo, kept, cancellable)?;
            let path = repo.path().path().unwrap_or_default();
            Ok(doomed.discarded(reachable.others(&path)?))
        })
        .await
    }

    /// Lets go of the ref that kept the download of that manifest alive until it was staged.
    pub async fn release_download(
        &self,
        manifest: &Digest,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let guard = guard_ref(manifest);
        self.change(cancel, move |sysroot, cancellable| {
            let repo = sysroot.repo();
            Ok(repo.set_ref_immediate(None, &guard, None, Some(cancellable))?)
        })
        .await
    }
}

/// All commits that refs name.
fn named_commits(
    repo: &ostree::Repo,
    cancellable: &gio::Cancellable,
) -> Result<HashSet<String>, Error> {
    let refs = repo.list_refs(None, Some(cancellable))?;
    Ok(refs.into_values().collect())
}

struct Doomed {
    /// Our own baseimage refs, when downloads go too.
    downloads: Vec<String>,
    images: Vec<String>,
    /// Refs of deployed images that point at a download, and the commit that is deployed.
    set_back: Vec<(String, String)>,
    layers: Vec<String>,
}

impl Doomed {
    /// The refs that go.
    fn refs(&self) -> impl Iterator<Item = &String> {
        let images = self.downloads.iter().chain(&self.images);
        images.chain(&self.layers)
    }

    fn discarded(&self, bytes: u64) -> Discarded {
        Discarded {
            images: self.images.len() + self.set_back.len(),
            layers: self.layers.len(),
            bytes,
        }
    }
}

/// What no clean-up may touch.
#[derive(Debug, Default)]
struct Deployed {
    commits: Vec<String>,
    /// Image ref → the commit that is deployed of it.
    images: HashMap<String, String>,
}

impl Deployed {
    fn of(sysroot: &ostree::Sysroot, without: &[String]) -> Self {
        let mut deployed = Self::default();
        // The booted one last: of several of one image it is the one that counts.
        let deployments = sysroot.deployments();
        for deployment in deployments.iter().chain(&sysroot.booted_deployment()) {
            if without.iter().any(|id| matches(deployment, id)) {
                continue;
            }
            let commit = deployment.csum().to_string();
            if let Some(image) = origin_image_ref(deployment) {
                deployed.images.insert(image, commit.clone());
            }
            deployed.commits.push(commit);
        }
        deployed
    }
}

type Refs = std::collections::HashMap<String, String>;

fn refs_below(repo: &ostree::Repo, prefix: &str) -> Result<Refs, Error> {
    let prefix = Some(prefix.trim_end_matches('/')).filter(|prefix| !prefix.is_empty());
    Ok(repo.list_refs_ext(
        prefix,
        ostree::RepoListRefsExtFlags::NONE,
        gio::Cancellable::NONE,
    )?)
}

/// The commits that would still have a ref. libostree's own refs of deployments follow these.
fn kept_commits(
    repo: &ostree::Repo,
    deployed: &Deployed,
    doomed: &Doomed,
) -> Result<Vec<String>, Error> {
    let going: HashSet<&String> = doomed.refs().collect();
    let mut kept = deployed.commits.clone();
    for (name, commit) in refs_below(repo, "")? {
        let of_deployments = name.starts_with("ostree/0/") || name.starts_with("ostree/1/");
        let is_set_back = doomed
            .set_back
            .iter()
            .any(|(set_back, _)| *set_back == name);
        if !of_deployments && !is_set_back && !going.contains(&name) {
            kept.push(commit);
        }
    }
    Ok(kept)
}

fn doomed_refs(
    repo: &ostree::Repo,
    deployed: &Deployed,
    which: ImageCleanup,
) -> Result<Doomed, Error> {
    let mut roots = deployed.commits.clone();
    let mut downloads = Vec::new();
    for (name, commit) in refs_below(repo, BASEIMAGES)? {
        if which == ImageCleanup::Downloaded && name.starts_with(BASEIMAGE_PREFIX) {
            downloads.push(name);
        } else {
            roots.push(commit);
        }
    }
    roots.extend(refs_below(repo, "rpmostree/base")?.into_values());
    let (mut images, mut set_back) = (Vec::new(), Vec::new());
    for (name, commit) in refs_below(repo, IMAGE_PREFIX)? {
        match (deployed.images.get(&name), which) {
            _ if roots.contains(&commit) || !is_understood(&name) => roots.push(commit),
            (Some(_), ImageCleanup::Unreferenced) => roots.push(commit),
            (Some(old), ImageCleanup::Downloaded) => set_back.push((name, old.clone())),
            (None, _) => images.push(name),
        }
    }
    let needed: HashSet<String> = roots
        .iter()
        .flat_map(|commit| layer_refs(repo, commit))
        .collect();
    let layers = refs_below(repo, BLOB_PREFIX)?
        .into_keys()
        .filter(|name| is_layer(name) && !needed.contains(name))
        .collect();
    Ok(Doomed {
        downloads,
        images,
        set_back,
        layers,
    })
}

/// Whether the name is that of an image that osteward could have pulled; other tools know
/// more transports, and what their images are for.
fn is_understood(name: &str) -> bool {
    let escaped = name
        .strip_prefix(IMAGE_PREFIX)
        .and_then(|name| name.strip_prefix('/'));
    escaped
        .and_then(|escaped| unescape_ref(escaped).ok())
        .is_some_and(|image| image.parse::<ImageReference>().is_ok())
}

/// Whether the name is that of a layer that osteward could have fetched; by other algorithms other
/// tools name theirs, and which image needs those is not known here.
fn is_layer(name: &str) -> bool {
    let escaped = name
        .strip_prefix(BLOB_PREFIX)
        .and_then(|name| name.strip_prefix('/'));
    escaped
        .and_then(|escaped| unescape_ref(escaped).ok())
        .is_some_and(|digest| digest.parse::<Digest>().is_ok())
}

fn origin_image_ref(deployment: &ostree::Deployment) -> Option<String> {
    let origin = deployment.origin()?;
    let text = origin.string("origin", super::deploy::ORIGIN_KEY).ok()?;
    let origin: OriginReference = text.parse().ok()?;
    Some(image_ref(&origin.image.canonical()))
}

/// The layer refs of the manifest that a commit carries; a placeholder of a download
/// carries only a manifest, without a configuration.
fn layer_refs(repo: &ostree::Repo, commit: &str) -> Vec<String> {
    if let Some(image) = snapshot::image_of(repo, commit) {
        return image
            .layers
            .iter()
            .map(|layer| blob_ref(&layer.digest))
            .collect();
    }
    let Ok((variant, _)) = repo.load_commit(commit) else {
        return Vec::new();
    };
    let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
    let Ok(Some(manifest)) = metadata.lookup::<String>("ostree.manifest") else {
        return Vec::new();
    };
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap_or_default();
    let layers = manifest["layers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    layers
        .iter()
        .filter_map(|layer| layer["digest"].as_str()?.parse::<Digest>().ok())
        .map(|digest| blob_ref(&digest))
        .collect()
}

#[cfg(test)]
mod tests {
    use ostree::prelude::*;

    use super::*;

    const NOTHING: Option<&gio::Cancellable> = gio::Cancellable::NONE;

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    fn name(image: &str) -> String {
        image_ref(&format!("docker://r.test/{image}").parse().unwrap())
    }

    /// A commit under `name` that carries a manifest of these layers, whose refs it makes.
    fn commit(repo: &ostree::Repo, name: &str, layers: &[&str]) -> String {
        let info = gio::FileInfo::new();
        for (key, value) in [("uid", 0), ("gid", 0), ("mode", 0o040_755)] {
            info.set_attribute_uint32(&format!("unix::{key}"), value);
        }
        let layers: Vec<Digest> = layers.iter().map(|layer| digest(layer)).collect();
        let manifest: Vec<_> = layers
            .iter()
            .map(|layer| serde_json::json!({"digest": layer.as_str()}))
            .collect();
        let metadata = glib::VariantDict::new(None);
        let manifest = serde_json::json!({ "layers": manifest }).to_string();
        metadata.insert("ostree.manifest", manifest.as_str());
        metadata.insert("name", name);
        let transaction = repo.auto_transaction(NOTHING).unwrap();
        let meta = ostree::create_directory_metadata(&info, None);
        let meta = repo.write_metadata(ostree::ObjectType::DirMeta, None, &meta, NOTHING);
        let tree = ostree::MutableTree::new();
        tree.set_metadata_checksum(&meta.unwrap().to_hex());
        let root = repo.write_mtree(&tree, NOTHING).unwrap();
        let root = root.downcast::<ostree::RepoFile>().unwrap();
        let commit = repo
            .write_commit(None, None, None, Some(&metadata.end()), &root, NOTHING)
            .unwrap();
        repo.transaction_set_ref(None, name, Some(&commit));
        for layer in &layers {
            repo.transaction_set_ref(None, &blob_ref(layer), Some(&commit));
        }
        transaction.commit(NOTHING).unwrap();
        commit.to_string()
    }

    #[test]
    fn what_goes_and_what_stays() {
        let directory = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(directory.path());
        repo.create(ostree::RepoMode::BareUser, NOTHING).unwrap();
        let booted = commit(&repo, "ostree/0/1/0", &["both", "booted"]);
        let tracked = commit(&repo, &name("os"), &["both", "new"]);
        let ours = guard_ref(&digest("manifest"));
        repo.set_ref_immediate(None, &ours, Some(&tracked), NOTHING)
            .unwrap();
        commit(&repo, &name("old"), &["old"]);
        commit(&repo, &format!("{BASEIMAGES}/bootc/0"), &["bootc"]);
        commit(&repo, "rpmostree/base/0", &["rpm"]);
        let foreign = format!("{IMAGE_PREFIX}/docker-daemon_3A_localhost/os");
        commit(&repo, &foreign, &["foreign"]);
        // Of another algorithm, which no reference here is read with.
        commit(&repo, &format!("{BLOB_PREFIX}/sha512_3A_00"), &["both"]);
        let deployed = Deployed {
            commits: vec![booted.clone()],
            images: HashMap::from([(name("os"), booted.clone())]),
        };

        let doomed = doomed_refs(&repo, &deployed, ImageCleanup::Unreferenced).unwrap();
        assert_eq!(doomed.images, [name("old")]);
        assert_eq!(doomed.layers, [blob_ref(&digest("old"))]);
        assert!(doomed.downloads.is_empty() && doomed.set_back.is_empty());

        let doomed = doomed_refs(&repo, &deployed, ImageCleanup::Downloaded).unwrap();
        assert_eq!(doomed.images, [name("old")]);
        assert_eq!(doomed.downloads, [ours]);
        assert_eq!(doomed.set_back, [(name("os"), booted)]);
        let layers: HashSet<_> = doomed.layers.into_iter().collect();
        let expected = ["old", "new"].map(|layer| blob_ref(&digest(layer)));
        assert_eq!(layers, HashSet::from(expected));
    }
}
