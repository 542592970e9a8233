//! Products: made once, and made again when anything they were made from has changed.
//!
//! Owns the rule what "complete" means: the stamp beside a product is removed before the
//! product is touched and written after it stands. A build that was interrupted has no stamp.
//! Whoever uses a product holds its stamp locked, so that it is not replaced meanwhile.

use std::error::Error;
use std::fmt::{self, Display};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::process::{command, run};

/// Held while products are made, until it is dropped.
///
/// # Errors
/// When the directory is not writable.
pub(crate) fn lock(work: &Path) -> Result<File> {
    let file = File::create(work.join("lock"))?;
    if file.try_lock().is_err() {
        eprintln!(
            "waiting for another process that builds in {}",
            work.display()
        );
        file.lock().context("waiting for another build")?;
    }
    Ok(file)
}

/// Makes `path` by `make`, which gets the name to make it under, unless it stands there made
/// from the same `inputs`. Returns the product's key, an input for what is made from it.
///
/// # Errors
/// Those of `make`, [`InUse`], and when files cannot be removed or renamed.
pub(crate) fn product(
    path: &Path,
    inputs: &[&str],
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<String> {
    let key = key_of(inputs);
    let stamp = suffixed(path, "stamp");
    if path.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
        return Ok(key);
    }
    retire(&stamp)?;
    let partial = suffixed(path, "partial");
    remove(&partial)?;
    let name = path.file_name().unwrap_or_default().display().to_string();
    step(&name, || make(&partial)).with_context(|| format!("making {}", path.display()))?;
    remove(path)?;
    fs::rename(&partial, path).with_context(|| format!("naming {}", path.display()))?;
    fs::write(&stamp, &key)?;
    Ok(key)
}

/// Keeps a product that stands from being made anew, until all that is returned is dropped.
///
/// # Errors
/// When it does not stand.
pub(super) fn hold(path: &Path) -> Result<File> {
    let stamp = suffixed(path, "stamp");
    let file = File::open(&stamp).with_context(|| format!("opening {}", stamp.display()))?;
    file.lock_shared().context("holding a product")?;
    Ok(file)
}

/// A product cannot be made anew, because it is in use.
#[derive(Debug)]
pub(super) struct InUse(File);

impl InUse {
    /// Waits until it is used no more, or not by the same.
    pub(super) fn wait(self) -> Result<()> {
        eprintln!("waiting for machines that use what is to be made anew");
        self.0.lock().context("waiting for machines to end")
    }
}

impl Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("machines use what is to be made anew")
    }
}

impl Error for InUse {}

/// Removes a product's stamp, if there is one.
///
/// # Errors
/// [`InUse`], and when it cannot be removed.
fn retire(stamp: &Path) -> Result<()> {
    let Ok(file) = File::open(stamp) else {
        return Ok(());
    };
    match file.try_lock() {
        Ok(()) => fs::remove_file(stamp).with_context(|| stamp.display().to_string()),
        Err(TryLockError::WouldBlock) => Err(InUse(file).into()),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Runs a step and tells standard error how long it took.
pub(super) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = work()?;
    eprintln!("{:>7.1} s  {name}", started.elapsed().as_secs_f32());
    Ok(result)
}

/// What tells these inputs from all others: each one's length counts as well.
fn key_of(inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Removes a file or a tree, but nothing that is mounted into it.
fn remove(path: &Path) -> Result<()> {
    run(command(["rm", "-rf", "--one-file-system", "--"]).arg(path)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path, inputs: &[&str], content: &'static str) -> Result<String> {
        product(&dir.join("thing"), inputs, |out| {
            Ok(fs::write(out, content)?)
        })
    }

    fn content(dir: &Path) -> String {
        fs::read_to_string(dir.join("thing")).unwrap()
    }

    #[test]
    fn a_product_is_made_again_only_when_an_input_changes() {
        let dir = tempfile::tempdir().unwrap();
        let first = make(dir.path(), &["a", "b"], "first").unwrap();
        assert_eq!(make(dir.path(), &["a", "b"], "unwanted").unwrap(), first);
        assert_eq!(content(dir.path()), "first");
        assert_ne!(make(dir.path(), &["a", "c"], "second").unwrap(), first);
        assert_eq!(content(dir.path()), "second");
    }

    #[test]
    fn where_one_input_ends_and_the_next_begins_matters() {
        assert_ne!(key_of(&["ab", "c"]), key_of(&["a", "bc"]));
        assert_ne!(key_of(&["a"]), key_of(&["a", ""]));
    }

    #[test]
    fn a_failed_build_leaves_no_product_that_counts() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["1"], "good").unwrap();
        let failed = product(&dir.path().join("thing"), &["2"], |out| {
            fs::write(out, "half")?;
            anyhow::bail!("no space")
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("no space"));
        make(dir.path(), &["2"], "whole").unwrap();
        assert_eq!(content(dir.path()), "whole");
        make(dir.path(), &["1"], "good again").unwrap();
        assert_eq!(content(dir.path()), "good again");
    }

    #[test]
    fn a_product_in_use_is_replaced_only_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["1"], "old").unwrap();
        let held = hold(&dir.path().join("thing")).unwrap();
        let also_held = hold(&dir.path().join("thing")).unwrap();
        make(dir.path(), &["1"], "unwanted").unwrap();
        let refused = make(dir.path(), &["2"], "new").unwrap_err();
        let refused = refused.downcast::<InUse>().unwrap();
        assert_eq!(content(dir.path()), "old");
        drop((held, also_held));
        refused.wait().unwrap();
        make(dir.path(), &["2"], "new").unwrap();
        assert_eq!(content(dir.path()), "new");
    }

    #[test]
    fn a_product_that_somebody_removed_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["1"], "good").unwrap();
        fs::remove_file(dir.path().join("thing")).unwrap();
        make(dir.path(), &["1"], "new").unwrap();
        assert_eq!(content(dir.path()), "new");
    }
}
