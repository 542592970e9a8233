//! SELinux labels: what the image's own policy says of every path of the merged tree.
//!
//! The label is an extended attribute and so a part of an object's identity; an object is
//! read and written again only where its label differs. Invariants: the same path gets the
//! same label in a layer and in the merged tree, so both share their objects; without a
//! policy in the image nothing is touched.

use std::collections::HashMap;
use std::io::Read;

use ostree::prelude::*;
use ostree::{ObjectType, gio, glib};

use super::error::{During, Error};
use super::objects::{
    Attributes, Id, Payload, S_IFLNK, S_IFMT, Xattrs, file_header, hex, parse_dirmeta,
    xattrs_from_variant,
};
use super::transaction::{Transaction, tmp_dir};
use super::tree::Dir;

/// Where a policy lies in a tree of ostree.
const POLICY: [&str; 3] = ["usr", "etc", "selinux"];
/// The extended attribute, with its NUL.
const XATTR: &[u8] = b"security.selinux\0";

/// A policy, and what it made of the objects so far.
pub(crate) struct Labeller {
    policy: ostree::SePolicy,
    /// (object, label) → the object with that label.
    files: HashMap<(Id, String), Id>,
    dirs: HashMap<(Id, String), Id>,
    /// Attributes of objects that were looked at.
    modes: HashMap<Id, Known>,
    directories: HashMap<Id, Attributes>,
}

#[derive(Clone)]
struct Known {
    mode: u32,
    label: Option<String>,
}

impl Labeller {
    /// The policy in `root`, if it has one that is enabled.
    pub(crate) fn load(
        transaction: &mut Transaction<'_>,
        root: &Dir,
    ) -> Result<Option<Self>, Error> {
        let Some(selinux) = root.dir(&POLICY) else {
            return Ok(None);
        };
        // libostree compiles a policy out of a commit; only this subtree matters for it.
        let commit = write_policy_commit(transaction, selinux)?;
        let cancellable = transaction.cancellable().clone();
        let policy = ostree::SePolicy::from_commit(transaction.repo(), &commit, Some(&cancellable))
            .during("loading the SELinux policy of the image")?;
        if policy.name().is_none_or(|name| name.is_empty()) {
            return Ok(None);
        }
        Ok(Some(Self {
            policy,
            files: HashMap::new(),
            dirs: HashMap::new(),
            modes: HashMap::new(),
            directories: HashMap::new(),
        }))
    }

    /// Labels everything in `dir`, which is the root of a tree.
    pub(crate) fn label_tree(
        &mut self,
        transaction: &mut Transaction<'_>,
        dir: &mut Dir,
    ) -> Result<(), Error> {
        self.label_dir(transaction, dir, &mut String::new())
    }

    /// `path` is without the final slash, and so empty for the root.
    fn label_dir(
        &mut self,
        transaction: &mut Transaction<'_>,
        dir: &mut Dir,
        path: &mut String,
    ) -> Result<(), Error> {
        if transaction.cancellable().is_cancelled() {
            return Err(Error::Cancelled);
        }
        let own = if path.is_empty() { "/" } else { path.as_str() };
        dir.meta = self.label_dirmeta(transaction, dir.meta, own)?;
        let length = path.len();
        for (name, id) in &mut dir.files {
            path.push('/');
            path.push_str(name);
            *id = self.label_file(transaction, *id, path)?;
            path.truncate(length);
        }
        for (name, child) in &mut dir.dirs {
            path.push('/');
            path.push_str(name);
            self.label_dir(transaction, child, path)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn lookup(
        &self,
        path: &str,
        mode: u32,
        cancellable: &gio::Cancellable,
    ) -> Result<Option<String>, Error> {
        let label = self.policy.label(path, mode, Some(cancellable));
        Ok(label
            .during("looking up an SELinux label")?
            .map(String::from))
    }

    fn label_dirmeta(
        &mut self,
        transaction: &mut Transaction<'_>,
        id: Id,
        path: &str,
    ) -> Result<Id, Error> {
        let attributes = match self.directories.get(&id) {
            Some(attributes) => attributes.clone(),
            None => {
                let variant = transaction
                    .repo()
                    .load_variant(ObjectType::DirMeta, &hex(&id))
                    .during("loading a directory's metadata")?;
                let attributes = parse_dirmeta(&variant)?;
                self.directories.insert(id, attributes.clone());
                attributes
            }
        };
        let label = self.lookup(path, attributes.mode, transaction.cancellable())?;
        let Some(label) = label else { return Ok(id) };
        if let Some(labelled) = self.dirs.get(&(id, label.clone())) {
            return Ok(*labelled);
        }
        let attributes = with_label(attributes, &label);
        let labelled = transaction.dirmeta(&attributes)?;
        self.dirs.insert((id, label), labelled);
        Ok(labelled)
    }

    fn label_file(
        &mut self,
        transaction: &mut Transaction<'_>,
        id: Id,
        path: &str,
    ) -> Result<Id, Error> {
        let known = match self.modes.get(&id) {
            Some(known) => known.clone(),
            None => {
                let known = inspect(transaction, &id)?;
                self.modes.insert(id, known.clone());
                known
            }
        };
        let label = self.lookup(path, known.mode, transaction.cancellable())?;
        let Some(label) = label else { return Ok(id) };
        if known.label.as_ref() == Some(&label) {
            return Ok(id);
        }
        if let Some(labelled) = self.files.get(&(id, label.clone())) {
            return Ok(*labelled);
        }
        let labelled = rewrite(transaction, &id, &label)?;
        self.files.insert((id, label), labelled);
        Ok(labelled)
    }
}

impl std::fmt::Debug for Labeller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Labeller").finish_non_exhaustive()
    }
}

fn write_policy_commit(transaction: &mut Transaction<'_>, selinux: &Dir) -> Result<String, Error> {
    let meta = transaction.dirmeta(&Attributes::default_directory())?;
    let mut subtree = selinux.clone();
    for name in POLICY.iter().rev() {
        let mut parent = Dir::new(meta);
        parent.dirs.insert((*name).into(), subtree);
        subtree = parent;
    }
    let metadata = glib::VariantDict::new(None).end();
    transaction.write_commit(&subtree, None, &metadata, 0)
}

fn inspect(transaction: &Transaction<'_>, id: &Id) -> Result<Known, Error> {
    let (info, xattrs) = transaction
        .repo()
        .query_file(&hex(id), Some(transaction.cancellable()))
        .during("looking at a file object")?;
    let label = xattrs_from_variant(&xattrs)
        .into_iter()
        .find(|(name, _)| name == XATTR)
        .map(|(_, value)| label_text(&value));
    Ok(Known {
        mode: info.attribute_uint32("unix::mode"),
        label,
    })
}

/// The value ends with a NUL; a value that is not text is no label that a policy gives.
fn label_text(value: &[u8]) -> String {
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

fn with_label(mut attributes: Attributes, label: &str) -> Attributes {
    attributes.xattrs = label_xattrs(attributes.xattrs, label);
    attributes
}

fn label_xattrs(mut xattrs: Xattrs, label: &str) -> Xattrs {
    xattrs.retain(|(name, _)| name != XATTR);
    xattrs.push((XATTR.to_vec(), [label.as_bytes(), b"\0"].concat()));
    xattrs.sort();
    xattrs
}

/// Writes the object again with the label.
fn rewrite(transaction: &Transaction<'_>, id: &Id, label: &str) -> Result<Id, Error> {
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
        let new = label_xattrs(old, "system_u:object_r:bin_t:s0");
        let names: Vec<_> = new.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(
            names,
            [b"security.capability\0".as_slice(), XATTR, b"user.x\0"]
        );
        assert_eq!(label_text(&new[1].1), "system_u:object_r:bin_t:s0");
    }
}
