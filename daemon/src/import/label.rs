//! SELinux labels: what the image's own policy says of every path of the merged tree.
//!
//! The label is an extended attribute and so a part of an object's identity; an object is
//! written again only where its label differs. Looking a label up is what takes the time, so
//! it is not done for what some tree is known to have at the same path under the same policy.
//! Invariants: the same path gets the same label in a layer and in the merged tree, so both
//! share their objects; without a policy in the image nothing is touched.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use ostree::prelude::*;
use ostree::{ObjectType, gio};

use super::error::{During, Error};
use super::guess::Guess;
use super::objects::{
    Attributes, Id, Payload, S_IFLNK, S_IFMT, Xattrs, file_header, hex, parse_dirmeta,
    xattrs_from_variant,
};
use super::policy::{Carried, POLICY, Policy};
use super::transaction::{Transaction, tmp_dir};
use super::tree::Dir;

/// The extended attribute, with its NUL.
const XATTR: &[u8] = b"security.selinux\0";

/// What labels took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Look-ups in the policy of the image, for layers and for the merge.
    pub looked_up: u32,
    /// File objects whose attributes were read for the merge, once each.
    pub inspected: u32,
    /// File objects that the merge read and wrote again with another label.
    pub rewritten: u32,
}

/// A policy, and what it made of the objects so far.
pub(crate) struct Labeller {
    policy: Arc<Policy>,
    /// (object, label) → the object with that label.
    files: HashMap<(Id, Option<String>), Id>,
    dirs: HashMap<(Id, Option<String>), Id>,
    /// Attributes of objects that were looked at.
    seen: HashMap<Id, Seen>,
    directories: HashMap<Id, Attributes>,
    /// All labels of the tree at hand are the policy's.
    pure: bool,
    inspected: u32,
    rewritten: u32,
}

/// What matters of a file object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) label: Option<String>,
}

impl Labeller {
    /// With the policy in `root`, if it has one that is enabled; it is not compiled again when
    /// it is that of the guess.
    pub(crate) fn load(
        transaction: &Transaction<'_>,
        root: &Dir,
        guess: Option<&Guess>,
    ) -> Result<Option<Self>, Error> {
        let Some(selinux) = root.dir(&POLICY) else {
            return Ok(None);
        };
        let (repo, cancellable) = (transaction.repo(), transaction.cancellable());
        let Some(carried) = Carried::of(repo, selinux, cancellable)? else {
            return Ok(None);
        };
        let policy = match guess.filter(|guess| guess.key() == carried.key()) {
            Some(guess) => Some(guess.policy().clone()),
            None => carried.compile()?.map(Arc::new),
        };
        Ok(policy.map(Self::new))
    }

    /// With a policy that is compiled already.
    pub(crate) fn new(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            files: HashMap::new(),
            dirs: HashMap::new(),
            seen: HashMap::new(),
            directories: HashMap::new(),
            pure: true,
            inspected: 0,
            rewritten: 0,
        }
    }

    /// Which policy it is, see [`Carried::key`].
    pub(crate) fn key(&self) -> &str {
        self.policy.key()
    }

    /// What it took so far, with all look-ups in the policy.
    pub(crate) fn took(&self) -> Labels {
        Labels {
            looked_up: self.policy.look_ups(),
            inspected: self.inspected,
            rewritten: self.rewritten,
        }
    }

    /// Labels everything in `dir`, which is the root of a tree, but for what one of the trees
    /// in `right` has at the same path: they have the labels of this policy. Where this policy
    /// wants no label, those that are there stay, but for those that the `former` one gave.
    ///
    /// Tells whether nothing in `dir` that is not in `right` has kept a label in this way.
    pub(crate) fn label_tree(
        &mut self,
        transaction: &mut Transaction<'_>,
        dir: &mut Dir,
        right: &[&Dir],
        former: Option<&Policy>,
    ) -> Result<bool, Error> {
        self.pure = true;
        self.label_dir(transaction, dir, &mut String::new(), right, former)?;
        Ok(self.pure)
    }

    /// `path` is without the final slash, and so empty for the root.
    fn label_dir(
        &mut self,
        transaction: &mut Transaction<'_>,
        dir: &mut Dir,
        path: &mut String,
        right: &[&Dir],
        former: Option<&Policy>,
    ) -> Result<(), Error> {
        if transaction.cancellable().is_cancelled() {
            return Err(Error::Cancelled);
        }
        if right.iter().all(|right| right.meta != dir.meta) {
            let own = if path.is_empty() { "/" } else { path.as_str() };
            dir.meta = self.label_dirmeta(transaction, dir.meta, own, former)?;
        }
        let length = path.len();
        for (name, id) in &mut dir.files {
            if right.iter().any(|right| right.files.get(name) == Some(id)) {
                continue;
            }
            path.push('/');
            path.push_str(name);
            *id = self.label_file(transaction, *id, path, former)?;
            path.truncate(length);
        }
        for (name, child) in &mut dir.dirs {
            let below: Vec<_> = right
                .iter()
                .filter_map(|right| right.dirs.get(name))
                .collect();
            path.push('/');
            path.push_str(name);
            self.label_dir(transaction, child, path, &below, former)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn label_dirmeta(
        &mut self,
        transaction: &mut Transaction<'_>,
        id: Id,
        path: &str,
        former: Option<&Policy>,
    ) -> Result<Id, Error> {
        let attributes = match self.directories.get(&id) {
            Some(attributes) => attributes.clone(),
            None => {
                let attributes = directory(transaction.repo(), &id)?;
                self.directories.insert(id, attributes.clone());
                attributes
            }
        };
        let has = label_of(&attributes.xattrs);
        let wants = self.wanted(path, attributes.mode, has.as_ref(), former)?;
        if wants == has {
            return Ok(id);
        }
        if let Some(labelled) = self.dirs.get(&(id, wants.clone())) {
            return Ok(*labelled);
        }
        let labelled = transaction.dirmeta(&with_label(attributes, wants.as_deref()))?;
        self.dirs.insert((id, wants), labelled);
        Ok(labelled)
    }

    fn label_file(
        &mut self,
        transaction: &Transaction<'_>,
        id: Id,
        path: &str,
        former: Option<&Policy>,
    ) -> Result<Id, Error> {
        let seen = self.look_at(transaction, id)?;
        let wants = self.wanted(path, seen.mode, seen.label.as_ref(), former)?;
        self.set_label(transaction, id, wants)
    }

    /// What matters of the file `id`.
    pub(crate) fn look_at(&mut self, transaction: &Transaction<'_>, id: Id) -> Result<Seen, Error> {
        if let Some(seen) = self.seen.get(&id) {
            return Ok(seen.clone());
        }
        let seen = inspect(transaction.repo(), &id)?;
        self.inspected += 1;
        self.seen.insert(id, seen.clone());
        Ok(seen)
    }

    /// The file `id` with this label and no other.
    pub(crate) fn set_label(
        &mut self,
        transaction: &Transaction<'_>,
        id: Id,
        label: Option<String>,
    ) -> Result<Id, Error> {
        let Seen { mode, label: has } = self.look_at(transaction, id)?;
        if label == has {
            return Ok(id);
        }
        let key = (id, label);
        if let Some(labelled) = self.files.get(&key) {
            return Ok(*labelled);
        }
        let labelled = rewrite(transaction, &id, key.1.as_deref())?;
        self.rewritten += 1;
        let label = key.1.clone();
        self.seen.insert(labelled, Seen { mode, label });
        self.files.insert(key, labelled);
        Ok(labelled)
    }

    /// The label that an object should have which has one, or none, now.
    fn wanted(
        &mut self,
        path: &str,
        mode: u32,
        has: Option<&String>,
        former: Option<&Policy>,
    ) -> Result<Option<String>, Error> {
        let label = self.policy.label(path, mode)?;
        match (label, has, former) {
            (None, Some(has), Some(former)) => {
                let given = former.label(path, mode)?;
                let stays = Some(has.clone()).filter(|has| given.as_ref() != Some(has));
                self.pure &= stays.is_none();
                Ok(stays)
            }
            (None, has, _) => {
                self.pure &= has.is_none();
                Ok(has.cloned())
            }
            (label, _, _) => Ok(label),
        }
    }
}

impl std::fmt::Debug for Labeller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Labeller").finish_non_exhaustive()
    }
}

/// The attributes of the directory `id`.
pub(crate) fn directory(repo: &ostree::Repo, id: &Id) -> Result<Attributes, Error> {
    let variant = repo
        .load_variant(ObjectType::DirMeta, &hex(id))
        .during("loading a directory's metadata")?;
    parse_dirmeta(&variant)
}

/// What matters of the file object `id`.
pub(crate) fn inspect(repo: &ostree::Repo, id: &Id) -> Result<Seen, Error> {
    let (info, xattrs) = repo
        .query_file(&hex(id), gio::Cancellable::NONE)
        .during("looking at a file object")?;
    Ok(Seen {
        mode: info.attribute_uint32("unix::mode"),
        label: label_of(&xattrs_from_variant(&xattrs)),
    })
}

/// The label among extended attributes.
pub(crate) fn label_of(xattrs: &Xattrs) -> Option<String> {
    xattrs
        .iter()
        .find(|(name, _)| name == XATTR)
        .map(|(_, value)| label_text(value))
}

/// The value ends with a NUL; a value that is not text is no label that a policy gives.
fn label_text(value: &[u8]) -> String {
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

/// The attributes with this label and no other.
pub(crate) fn with_label(mut attributes: Attributes, label: Option<&str>) -> Attributes {
    attributes.xattrs = label_xattrs(attributes.xattrs, label);
    attributes
}

fn label_xattrs(mut xattrs: Xattrs, label: Option<&str>) -> Xattrs {
    xattrs.retain(|(name, _)| name != XATTR);
    let value = label.map(|label| [label.as_bytes(), b"\0"].concat());
    xattrs.extend(value.map(|value| (XATTR.to_vec(), value)));
    xattrs.sort();
    xattrs
}

/// Writes the object again with this label and no other.
fn rewrite(transaction: &Transaction<'_>, id: &Id, label: Option<&str>) -> Result<Id, Error> {
    let (repo, cancellable) = (transaction.repo(), transaction.cancellable());
    let (stream, info, xattrs) = repo
        .load_file(&hex(id), Some(cancellable))
        .during("reading a file object")?;
    let attributes = Attributes {
        uid: info.attribute_uint32("unix::uid"),
        gid: info.attribute_uint32("unix::gid"),
        mode: info.attribute_uint32("unix::mode"),
        xattrs: label_xattrs(xattrs_from_variant(&xattrs), label),
    };
    let payload = if attributes.mode & S_IFMT == S_IFLNK {
        let target = info.symlink_target().unwrap_or_default();
        let target = target.to_str().unwrap_or_default();
        Payload::Memory(file_header(&attributes, target))
    } else {
        let header = file_header(&attributes, "");
        let length = u64::try_from(info.size()).unwrap_or(0);
        let mut content: Box<dyn Read> = match stream {
            Some(stream) => Box::new(stream.into_read()),
            None => Box::new(std::io::empty()),
        };
        Payload::read(header, length, &mut content, &tmp_dir(repo))
            .during("reading a file object")?
    };
    payload.write(repo, cancellable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_replaces_the_old_one_and_keeps_the_order() {
        let old: Xattrs = vec![
            (b"security.capability\0".to_vec(), vec![1]),
            (XATTR.to_vec(), b"old\0".to_vec()),
            (b"user.x\0".to_vec(), vec![2]),
        ];
        let new = label_xattrs(old, Some("system_u:object_r:bin_t:s0"));
        let names: Vec<_> = new.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(
            names,
            [b"security.capability\0".as_slice(), XATTR, b"user.x\0"]
        );
        assert_eq!(
            label_of(&new).as_deref(),
            Some("system_u:object_r:bin_t:s0")
        );
        let none = label_xattrs(new, None);
        assert_eq!((none.len(), label_of(&none)), (2, None));
    }
}
