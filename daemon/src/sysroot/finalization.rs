//! The finalization lock: what keeps a staged deployment from becoming the next boot.
//!
//! Owns where the lock is written. libostree since 2023.8 has a key in the record of the
//! staged deployment, and goes on honouring the file that older versions (and rpm-ostree)
//! use. Invariants: a deployment counts as locked if either says so, because its
//! finalization looks at both; a lock is there before the deployment that it is meant for,
//! so that no instant and no kill leaves that deployment unlocked.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ostree::glib;
use tokio_util::sync::CancellationToken;

use super::deploy::{matches, reload};
use super::{Error, Lock, Symbols};

pub(super) const RECORD: &str = "run/ostree/staged-deployment";
const FILE: &str = "run/ostree/staged-deployment-locked";
const KEY: &str = "locked";

/// Whether what is staged below `root` is kept from finalization. Read from disk: libostree's
/// copy does not notice when another tool changes it.
pub(super) fn is_locked(root: &Path, symbols: &Symbols) -> bool {
    root.join(FILE).exists() || (symbols.knows_finalization_key() && has_key(root))
}

fn has_key(root: &Path) -> bool {
    let Ok(record) = fs::read(root.join(RECORD)) else {
        return false;
    };
    let record = glib::Variant::from_data_with_type(record, glib::VariantTy::VARDICT);
    let record = glib::VariantDict::new(Some(&record));
    record.lookup::<bool>(KEY).ok().flatten() == Some(true)
}

/// Whether a lock can be made below `root`, as far as that can be told without making one.
pub(super) fn can_be_made(root: &Path, symbols: &Symbols) -> bool {
    let file = root.join(FILE);
    let there = file
        .ancestors()
        .find(|path| path.symlink_metadata().is_ok());
    let is_writable = |path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    symbols.knows_finalization_key() || there.is_some_and(is_writable)
}

/// The lock of a deployment that is about to be staged.
#[derive(Debug)]
pub(super) struct Coming {
    file: PathBuf,
    wanted: bool,
    /// We made the file, so it goes if the staging comes to nothing.
    made: bool,
}

impl Coming {
    /// Before the staging.
    pub(super) fn prepare(root: &Path, symbols: &Symbols, wanted: bool) -> Result<Self, Error> {
        let file = root.join(FILE);
        let made = wanted && !symbols.knows_finalization_key() && make(&file)?;
        Ok(Self { file, wanted, made })
    }

    /// After the staging: a lock that an earlier deployment left behind must not hold the
    /// new one. If it does all the same the deployment stays locked, which loses nothing.
    pub(super) fn staged(self) {
        if !self.wanted {
            remove(&self.file).unwrap_or_else(|error| {
                tracing::warn!(%error, "what is staged stays locked");
            });
        }
    }

    /// After a staging that failed.
    pub(super) fn failed(self) {
        if self.made
            && let Err(error) = remove(&self.file)
        {
            tracing::warn!(%error, "a finalization lock without purpose stays behind");
        }
    }
}

/// Makes the file; returns whether it was not there.
fn make(file: &Path) -> Result<bool, Error> {
    let cannot = |error: std::io::Error| {
        Error::CannotLock(format!("{} cannot be made: {error}", file.display()))
    };
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).map_err(cannot)?;
    }
    let was_there = file.exists();
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o640);
    options.open(file).map_err(cannot)?;
    Ok(!was_there)
}

fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::CannotLock(format!(
            "{} cannot be removed: {error}",
            file.display()
        ))),
        _ => Ok(()),
    }
}

impl Lock {
    /// Locks or unlocks the finalization of the staged deployment `id`. Cannot be cancelled.
    pub async fn set_finalization(&self, id: String, locked: bool) -> Result<(), Error> {
        let (root, symbols) = (self.sysroot.root.clone(), self.sysroot.symbols);
        self.change(&CancellationToken::new(), move |sysroot, _| {
            // libostree toggles the state that it has in memory.
            reload(sysroot);
            let staged = sysroot.staged_deployment().filter(|d| matches(d, &id));
            let staged = staged.ok_or_else(|| {
                Error::NoDeployment(format!(
                    "deployment {id} is not staged any more; look at the status and try again"
                ))
            })?;
            let file = root.join(FILE);
            if symbols.knows_finalization_key() {
                if has_key(&root) != locked {
                    symbols.change_finalization(sysroot, &staged)?;
                }
            } else if locked {
                make(&file)?;
            }
            if !locked {
                remove(&file)?;
            }
            reload(sysroot);
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(locked: Option<bool>, file: bool) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/ostree")).unwrap();
        let record = glib::VariantDict::new(None);
        record.insert("target", "x");
        if let Some(locked) = locked {
            record.insert(KEY, locked);
        }
        fs::write(root.path().join(RECORD), record.end().data()).unwrap();
        if file {
            make(&root.path().join(FILE)).unwrap();
        }
        root
    }

    #[test]
    fn either_place_locks() {
        let (old, new) = (Symbols::of_2022_7(), Symbols::of_2023_8());
        for (key, file, in_old, in_new) in [
            (None, false, false, false),
            (Some(false), false, false, false),
            // What an older libostree does not read, it does not obey.
            (Some(true), false, false, true),
            (None, true, true, true),
            (Some(false), true, true, true),
        ] {
            let root = root_with(key, file);
            assert_eq!(is_locked(root.path(), &old), in_old, "{key:?} {file}");
            assert_eq!(is_locked(root.path(), &new), in_new, "{key:?} {file}");
        }
        let nothing = tempfile::tempdir().unwrap();
        assert!(!is_locked(nothing.path(), &old) && !is_locked(nothing.path(), &new));
    }

    #[test]
    fn a_failed_staging_takes_back_only_its_own_lock() {
        let old = Symbols::of_2022_7();
        for already in [false, true] {
            let root = root_with(None, already);
            let coming = Coming::prepare(root.path(), &old, true).unwrap();
            assert!(is_locked(root.path(), &old), "before the deployment");
            coming.failed();
            assert_eq!(is_locked(root.path(), &old), already);
        }
    }

    #[test]
    fn a_lock_that_was_left_behind_does_not_hold_the_next_deployment() {
        let old = Symbols::of_2022_7();
        let root = root_with(None, true);
        Coming::prepare(root.path(), &old, false).unwrap().staged();
        assert!(!is_locked(root.path(), &old));
        Coming::prepare(root.path(), &old, true).unwrap().staged();
        assert!(is_locked(root.path(), &old));
    }

    #[test]
    fn whether_a_lock_can_be_made_is_known_before() {
        let (old, new) = (Symbols::of_2022_7(), Symbols::of_2023_8());
        let root = root_with(None, false);
        assert!(can_be_made(root.path(), &old));
        make(&root.path().join(FILE)).unwrap();
        assert!(can_be_made(root.path(), &old), "there is one");
        remove(&root.path().join(FILE)).unwrap();
        std::os::unix::fs::symlink("/no/such/directory", root.path().join(FILE)).unwrap();
        assert!(!can_be_made(root.path(), &old));
        assert!(can_be_made(root.path(), &new), "it has a key instead");
    }

    #[test]
    fn a_lock_that_cannot_be_made_is_an_error() {
        let blocked = tempfile::tempdir().unwrap();
        fs::write(blocked.path().join("run"), "").unwrap();
        let error = Coming::prepare(blocked.path(), &Symbols::of_2022_7(), true).unwrap_err();
        assert!(matches!(error, Error::CannotLock(_)), "{error}");
    }
}
