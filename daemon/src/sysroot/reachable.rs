//! Which objects commits need, and what all the others take.
//!
//! Owns the walk over trees that tells beforehand what a prune would free. Invariant: an
//! object that is missing (of a commit that was fetched in part) is no error; its tree is
//! walked as far as it goes, as prune does.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use ostree::prelude::*;
use ostree::{ObjectType, gio};

use super::Error;

/// An object: its kind as the ending of its file, and its checksum.
type Object = (&'static str, [u8; 32]);

/// The objects that a set of commits needs.
#[derive(Debug, Default)]
pub(super) struct Reachable(HashSet<Object>);

impl Reachable {
    /// What `commits` need.
    pub(super) fn of<'a>(
        repo: &ostree::Repo,
        commits: impl IntoIterator<Item = &'a str>,
        cancellable: &gio::Cancellable,
    ) -> Result<Self, Error> {
        let mut reachable = Self::default();
        for commit in commits {
            reachable.add_commit(repo, commit, cancellable)?;
        }
        Ok(reachable)
    }

    fn add_commit(
        &mut self,
        repo: &ostree::Repo,
        commit: &str,
        cancellable: &gio::Cancellable,
    ) -> Result<(), Error> {
        let (Some(id), Ok((variant, _))) = (parse(commit), repo.load_commit(commit)) else {
            return Ok(());
        };
        self.0.insert(("commit", id));
        if let (Some(tree), Some(meta)) = (bytes_at(&variant, 6), bytes_at(&variant, 7)) {
            self.0.insert(("dirmeta", meta));
            self.add_tree(repo, tree, cancellable)?;
        }
        Ok(())
    }

    /// A stack of its own: images may have directories inside each other without end.
    fn add_tree(
        &mut self,
        repo: &ostree::Repo,
        tree: [u8; 32],
        cancellable: &gio::Cancellable,
    ) -> Result<(), Error> {
        let mut left = vec![tree];
        while let Some(tree) = left.pop() {
            if cancellable.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if !self.0.insert(("dirtree", tree)) {
                continue;
            }
            let Ok(variant) = repo.load_variant(ObjectType::DirTree, &hex(&tree)) else {
                continue;
            };
            let files = variant.child_value(0);
            for file in files.iter() {
                self.0.extend(bytes_at(&file, 1).map(|id| ("file", id)));
            }
            let directories = variant.child_value(1);
            for directory in directories.iter() {
                left.extend(bytes_at(&directory, 1));
                self.0
                    .extend(bytes_at(&directory, 2).map(|id| ("dirmeta", id)));
            }
        }
        Ok(())
    }

    /// Bytes of all other objects of the repository at `path`.
    pub(super) fn others(&self, path: &Path) -> Result<u64, Error> {
        let unreadable = |error: std::io::Error| {
            Error::Ostree(format!("listing the objects of the repository: {error}"))
        };
        let mut bytes = 0;
        for bucket in fs::read_dir(path.join("objects")).map_err(unreadable)? {
            let bucket = bucket.map_err(unreadable)?;
            for object in fs::read_dir(bucket.path()).map_err(unreadable)? {
                let object = object.map_err(unreadable)?;
                let name = object.file_name();
                let named = parse_name(
                    &bucket.file_name().to_string_lossy(),
                    &name.to_string_lossy(),
                );
                if named.is_some_and(|named| !self.0.contains(&named)) {
                    bytes += object.metadata().map_or(0, |found| found.len());
                }
            }
        }
        Ok(bytes)
    }
}

/// `ab` and `cdef….file` as an object; `None` for what is none that prune counts.
fn parse_name(bucket: &str, name: &str) -> Option<Object> {
    let (rest, ending) = name.split_once('.')?;
    let kinds = ["file", "dirtree", "dirmeta", "commit"];
    // Objects of archives are compressed.
    let ending = if ending == "filez" { "file" } else { ending };
    let kind = kinds.into_iter().find(|kind| *kind == ending)?;
    Some((kind, parse(&format!("{bucket}{rest}"))?))
}

fn parse(checksum: &str) -> Option<[u8; 32]> {
    let digits = checksum.as_bytes();
    let mut id = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
}

fn hex(id: &[u8; 32]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_at(tuple: &ostree::glib::Variant, index: usize) -> Option<[u8; 32]> {
    tuple.child_value(index).data().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects() {
        let rest = "c".repeat(62);
        let id = parse(&format!("ab{rest}")).unwrap();
        assert_eq!(hex(&id), format!("ab{rest}"));
        for (ending, kind) in [
            ("file", Some("file")),
            ("filez", Some("file")),
            ("dirtree", Some("dirtree")),
            ("commit", Some("commit")),
            ("commitmeta", None),
        ] {
            let named = parse_name("ab", &format!("{rest}.{ending}"));
            assert_eq!(named, kind.map(|kind| (kind, id)), "{ending}");
        }
        assert_eq!(parse_name("ab", "tmp"), None);
        assert_eq!(parse_name("zz", &format!("{rest}.file")), None);
    }
}
