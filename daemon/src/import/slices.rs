//! What keeps the files of a layer that is not complete from other tools' clean-up, so that a
//! power cut costs no more than what was written last.
//!
//! After each slice the transaction is committed and begun anew, with a commit of the objects
//! written so far under a ref beside the guard of the image (on-disk notes 1.11). Invariant:
//! nothing takes such a commit for a layer; it goes with the guard, or with the merge.

use ostree::gio;

use super::error::{During, Error};
use super::no_metadata;
use super::objects::{Attributes, Id, hex};
use super::transaction::Transaction;
use super::tree::Dir;
use crate::image::reference::{BASEIMAGE_PREFIX, Digest, guard_ref};

/// Bytes of files after which a slice ends.
const BYTES: u64 = 256 * 1024 * 1024;
/// What follows the guard's name in that of a slice.
const SLICE: &str = "-slice-";
/// Digits of the commit in the name of a slice.
const DIGITS: usize = 16;

/// Cuts what is written for one image.
#[derive(Clone, Debug)]
pub(crate) struct Slices {
    prefix: String,
    bytes: u64,
}

impl Slices {
    /// Of the image with that manifest.
    pub(crate) fn of(manifest: &Digest) -> Self {
        Self {
            prefix: format!("{}{SLICE}", guard_ref(manifest)),
            bytes: BYTES,
        }
    }

    /// Of the image with that manifest, cut after so many bytes.
    #[cfg(test)]
    pub(crate) fn after(manifest: &Digest, bytes: u64) -> Self {
        Self {
            bytes,
            ..Self::of(manifest)
        }
    }

    /// How many of the next parts, of so many bytes each, are in the next slice: at least one.
    pub(crate) fn next(&self, parts: impl Iterator<Item = u64>) -> usize {
        let mut left = self.bytes;
        let mut count = 0;
        for part in parts {
            if count > 0 && part > left {
                break;
            }
            count += 1;
            left = left.saturating_sub(part);
        }
        count
    }

    /// Makes what was written durable, and holds these objects.
    pub(crate) fn end(
        &self,
        transaction: &mut Transaction<'_>,
        objects: impl Iterator<Item = Id>,
    ) -> Result<(), Error> {
        let meta = transaction.dirmeta(&Attributes::default_directory())?;
        let mut root = Dir::new(meta);
        for object in objects {
            root.files.insert(hex(&object).into(), object);
        }
        let commit = transaction.write_commit(&root, None, &no_metadata(), 0)?;
        let digits = commit.get(..DIGITS).unwrap_or(&commit);
        transaction.set_ref(&format!("{}{digits}", self.prefix), &commit);
        transaction.renew()
    }
}

/// Whether the ref is that of a slice of the image that `guard` guards.
pub(crate) fn is_of(guard: &str, name: &str) -> bool {
    name.strip_prefix(guard)
        .is_some_and(|rest| rest.starts_with(SLICE))
}

/// Removes the slices of an image that is complete now, with the transaction.
pub(crate) fn remove(transaction: &Transaction<'_>, manifest: &Digest) -> Result<(), Error> {
    let guard = guard_ref(manifest);
    let refs = transaction
        .repo()
        .list_refs_ext(
            Some(BASEIMAGE_PREFIX),
            ostree::RepoListRefsExtFlags::NONE,
            gio::Cancellable::NONE,
        )
        .during("listing what is guarded")?;
    for name in refs.keys().filter(|name| is_of(&guard, name)) {
        transaction.remove_ref(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::objects::{Payload, S_IFREG, file_header};
    use crate::import::transaction::resolve;

    #[test]
    fn a_slice_has_some_parts_and_ends_before_it_is_too_large() {
        let slices = Slices::after(&Digest::of(b"image"), 10);
        for (parts, expected) in [
            (&[1, 2, 3][..], 3),
            (&[5, 5, 1], 2),
            (&[11, 1], 1),
            (&[1, 11], 1),
            (&[0, 0, 0], 3),
        ] {
            assert_eq!(slices.next(parts.iter().copied()), expected, "{parts:?}");
        }
    }

    #[test]
    fn what_a_slice_has_stays_until_the_image_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(directory.path());
        repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE)
            .unwrap();
        let cancellable = gio::Cancellable::new();
        let (image, other) = (Digest::of(b"image"), Digest::of(b"other"));
        let mut transaction = Transaction::begin(&repo, &cancellable).unwrap();
        let attributes = Attributes {
            mode: S_IFREG | 0o644,
            ..Attributes::default_directory()
        };
        let payload = Payload::Memory([&file_header(&attributes, "")[..], b"content"].concat());
        let object = payload.write(&repo, &cancellable).unwrap();
        let slices = Slices::of(&image);
        slices.end(&mut transaction, [object].into_iter()).unwrap();
        // Whatever becomes of what follows.
        drop(transaction);
        let prune = || {
            let flags = ostree::RepoPruneFlags::REFS_ONLY;
            repo.prune(flags, 0, gio::Cancellable::NONE).unwrap();
            let kind = ostree::ObjectType::File;
            repo.has_object(kind, &hex(&object), gio::Cancellable::NONE)
        };
        assert!(prune().unwrap());
        let refs = repo.list_refs(None, gio::Cancellable::NONE).unwrap();
        let name = refs.keys().next().unwrap();
        assert!(is_of(&guard_ref(&image), name) && !is_of(&guard_ref(&other), name));
        assert!(!is_of(&guard_ref(&image), &guard_ref(&image)));
        for (complete, is_left) in [(&other, true), (&image, false)] {
            let transaction = Transaction::begin(&repo, &cancellable).unwrap();
            remove(&transaction, complete).unwrap();
            transaction.commit().unwrap();
            assert_eq!(resolve(&repo, name).unwrap().is_some(), is_left);
        }
        assert!(!prune().unwrap());
    }
}
