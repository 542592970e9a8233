//! Labels before the image is whole: the policy of an image that is here already.
//!
//! Most upgrades do not change the policy. So layers are written with the labels that it gives,
//! and their objects need not be written again. It stays a guess: the policy of the image itself
//! decides in the end, and corrects what it labels otherwise. Invariant: a label comes from the
//! policy, or from a tree that is known to have its labels.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ostree::{gio, glib};

use super::error::Error;
use super::label::{Seen, directory, inspect, label_of, with_label};
use super::objects::{Attributes, Id, S_IFDIR, S_IFMT};
use super::plan::image_commits;
use super::policy::{Carried, POLICY, Policy};
use super::transaction::{load_tree, load_tree_at, resolve};
use super::tree::Dir;
use super::{POLICY_KEY, open};
use crate::image::reference::{ImageReference, image_ref};

/// A policy that the image may have; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Guess {
    guessed: Arc<Guessed>,
    /// Something of one layer kept a label of its own, because the policy wants none there. What other
    /// layers did must not matter, or the same layer were not always the same commit.
    has_others: Arc<AtomicBool>,
}

struct Guessed {
    policy: Arc<Policy>,
    /// The tree of the image that the policy is of, if it has the labels of the policy.
    reference: Option<Reference>,
}

/// A tree with the labels of a policy, and what of it was looked at.
struct Reference {
    tree: Dir,
    objects: Mutex<Objects>,
}

/// A handle of its own, and what was seen through it. Nobody waits for another's look.
struct Objects {
    repo: ostree::Repo,
    files: HashMap<Id, Option<Seen>>,
    directories: HashMap<Id, Option<Seen>>,
}

impl Guess {
    /// The policy of the image that was stored last under the name, else of the newest image
    /// that has one. There is none in a repository without such an image, nor when something
    /// is wrong with it: nothing depends on it.
    pub(crate) fn load(
        repo: &ostree::Repo,
        imgref: &ImageReference,
        cancellable: &gio::Cancellable,
    ) -> Option<Self> {
        let commits = match candidates(repo, imgref) {
            Ok(commits) => commits,
            Err(error) => {
                tracing::debug!(%error, "no stored image was looked at for a policy");
                return None;
            }
        };
        commits.iter().find_map(|commit| {
            let guess = Self::of(repo, commit, cancellable);
            guess.unwrap_or_else(|error| {
                tracing::debug!(%error, commit, "the policy of a stored image is not used");
                None
            })
        })
    }

    fn of(
        repo: &ostree::Repo,
        commit: &str,
        cancellable: &gio::Cancellable,
    ) -> Result<Option<Self>, Error> {
        let Some(selinux) = load_tree_at(repo, commit, &POLICY)? else {
            return Ok(None);
        };
        let Some(carried) = Carried::of(repo, &selinux, cancellable)? else {
            return Ok(None);
        };
        let Some(policy) = carried.compile()? else {
            return Ok(None);
        };
        let reference = if labelled_by(repo, commit).as_deref() == Some(policy.key()) {
            Some(Reference::of(repo, commit, cancellable)?)
        } else {
            None
        };
        let policy = Arc::new(policy);
        Ok(Some(Self {
            guessed: Arc::new(Guessed { policy, reference }),
            has_others: Arc::default(),
        }))
    }

    /// The same for one layer, of which something has a label of its own already or not.
    pub(crate) fn of_layer(&self, has_others: bool) -> Self {
        Self {
            guessed: self.guessed.clone(),
            has_others: Arc::new(AtomicBool::new(has_others)),
        }
    }

    /// Whether something kept a label of its own.
    pub(crate) fn has_others(&self) -> bool {
        self.has_others.load(Ordering::Relaxed)
    }

    /// The policy.
    pub(crate) fn policy(&self) -> &Arc<Policy> {
        &self.guessed.policy
    }

    /// Which policy it is, see [`Carried::key`].
    pub(crate) fn key(&self) -> &str {
        self.guessed.policy.key()
    }

    /// What a layer may say of its labels whose files and directories all had their attributes
    /// from here, see [`labelled_by`].
    pub(crate) fn mark(&self) -> Option<&str> {
        (!self.has_others()).then_some(self.key())
    }

    /// A tree that has the labels of the policy.
    pub(crate) fn reference(&self) -> Option<&Dir> {
        self.guessed
            .reference
            .as_ref()
            .map(|reference| &reference.tree)
    }

    /// The label for what an image brings to `path` without a label of its own: absolute, and as
    /// the tree of ostree has it (`/usr/etc`); `mode` matters for its file type. `None` if it
    /// should have none.
    ///
    /// # Errors
    /// When the policy cannot be asked.
    pub(crate) fn label(&self, path: &str, mode: u32) -> Result<Option<String>, Error> {
        let reference = self.guessed.reference.as_ref();
        let seen = reference.and_then(|reference| reference.at(path));
        match seen.filter(|seen| seen.mode & S_IFMT == mode & S_IFMT) {
            Some(seen) => Ok(seen.label),
            None => self.policy().label(path, mode),
        }
    }

    /// The attributes of what an image brings to `path`, with the label for it.
    ///
    /// # Errors
    /// When the policy cannot be asked.
    pub(crate) fn attributes(
        &self,
        path: &str,
        attributes: Attributes,
    ) -> Result<Attributes, Error> {
        let label = self.label(path, attributes.mode)?;
        if label.is_some() {
            return Ok(with_label(attributes, label.as_deref()));
        }
        // One of its own stays where the policy wants none.
        if label_of(&attributes.xattrs).is_some() {
            self.has_others.store(true, Ordering::Relaxed);
        }
        Ok(attributes)
    }
}

impl Reference {
    fn of(
        repo: &ostree::Repo,
        commit: &str,
        cancellable: &gio::Cancellable,
    ) -> Result<Self, Error> {
        use ostree::prelude::FileExt as _;
        let path = repo.path().path().unwrap_or_default();
        let objects = Objects {
            repo: open(&path, cancellable)?,
            files: HashMap::new(),
            directories: HashMap::new(),
        };
        Ok(Self {
            tree: load_tree(repo, commit)?,
            objects: Mutex::new(objects),
        })
    }

    /// What is at `path`. What another program removed meanwhile is not there.
    fn at(&self, path: &str) -> Option<Seen> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if let Some(dir) = self.tree.dir(&parts) {
            let look = |repo: &ostree::Repo| {
                let attributes = directory(repo, &dir.meta).ok()?;
                Some(Seen {
                    mode: attributes.mode | S_IFDIR,
                    label: label_of(&attributes.xattrs),
                })
            };
            return self.seen(&dir.meta, |objects| &mut objects.directories, look);
        }
        let (name, parents) = parts.split_last()?;
        let id = self.tree.dir(parents)?.files.get(*name)?;
        let look = |repo: &ostree::Repo| inspect(repo, id).ok();
        self.seen(id, |objects| &mut objects.files, look)
    }

    /// What is remembered of an object among `those`, else what `look` finds.
    fn seen(
        &self,
        id: &Id,
        those: fn(&mut Objects) -> &mut HashMap<Id, Option<Seen>>,
        look: impl FnOnce(&ostree::Repo) -> Option<Seen>,
    ) -> Option<Seen> {
        let lock = || self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let repo = {
            let mut objects = lock();
            if let Some(seen) = those(&mut objects).get(id) {
                return seen.clone();
            }
            objects.repo.clone()
        };
        let seen = look(&repo);
        those(&mut lock()).insert(*id, seen.clone());
        seen
    }
}

impl std::fmt::Debug for Guessed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guessed")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// Commits of images, the likeliest first.
fn candidates(repo: &ostree::Repo, imgref: &ImageReference) -> Result<Vec<String>, Error> {
    let mut rest = Vec::new();
    for commit in image_commits(repo)? {
        // One broken image must not keep others from being used.
        if let Ok((variant, _)) = repo.load_commit(&commit) {
            rest.push((ostree::commit_get_timestamp(&variant), commit));
        }
    }
    rest.sort_by(|one, other| other.cmp(one));
    let first = resolve(repo, &image_ref(imgref))?;
    Ok(first
        .into_iter()
        .chain(rest.into_iter().map(|(_, commit)| commit))
        .collect())
}

/// The policy whose labels the tree of a commit has, and no others, see [`Carried::key`]; only
/// commits that we wrote tell.
pub(crate) fn labelled_by(repo: &ostree::Repo, commit: &str) -> Option<String> {
    let (variant, _) = repo.load_commit(commit).ok()?;
    let metadata = glib::VariantDict::new(Some(&variant.child_value(0)));
    metadata.lookup::<String>(POLICY_KEY).ok().flatten()
}
