//! What is installed in images, as it was read from them: a cache, one file an image.
//!
//! Owns `packages/` in the state directory. A file is named after the digest of the image's
//! manifest, or after the commit of a deployment that came from none, and so never changes.
//! Invariants: a file is replaced whole; one that cannot be understood is as if it were not
//! there; no more than [`LIMIT`] are kept, and the oldest goes first.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Error, write_whole};
use crate::packages::Inventory;

const SCHEMA: u32 = 1;

/// How many images are kept: what is deployed on a host, and what it could get.
pub const LIMIT: usize = 8;
/// A file with more bytes was not written by us.
const LONGEST: u64 = 128 << 20;

#[derive(Serialize, Deserialize)]
struct File<I> {
    schema: u32,
    key: String,
    inventory: I,
}

fn directory(state_directory: &Path) -> PathBuf {
    state_directory.join("packages")
}

/// `None` for a key that names no file.
fn path(state_directory: &Path, key: &str) -> Option<PathBuf> {
    let hex = key.strip_prefix("sha256:").unwrap_or(key);
    let is_name = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_name.then(|| directory(state_directory).join(format!("{hex}.json")))
}

/// All that are kept, with their keys; the oldest first.
pub fn load(state_directory: &Path) -> Vec<(String, Inventory)> {
    let files = files(state_directory).into_iter();
    files.filter_map(|(_, path)| read(&path)).collect()
}

fn read(path: &Path) -> Option<(String, Inventory)> {
    let mut text = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(LONGEST).read_to_end(&mut text).ok()?;
    match serde_json::from_slice::<File<Inventory>>(&text) {
        Ok(file) if file.schema == SCHEMA => Some((file.key, file.inventory)),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "a cached list of packages is not used");
            None
        }
    }
}

/// When they were written, and where; the oldest first.
fn files(state_directory: &Path) -> Vec<(SystemTime, PathBuf)> {
    let entries = fs::read_dir(directory(state_directory))
        .into_iter()
        .flatten();
    let mut files: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            entry
                .path()
                .extension()
                .is_some_and(|ending| ending == "json")
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    files
}

/// Keeps one, on disk when it returns, and drops the oldest if there are too many.
pub fn store(state_directory: &Path, key: &str, inventory: &Inventory) -> Result<(), Error> {
    let Some(path) = path(state_directory, key) else {
        return Ok(());
    };
    let file = File {
        schema: SCHEMA,
        key: key.to_owned(),
        inventory,
    };
    let written = serde_json::to_vec(&file)
        .map_err(std::io::Error::from)
        .and_then(|text| write_whole(&path, &text));
    written.map_err(|error| Error {
        path: path.clone(),
        problem: error.to_string(),
    })?;
    let files = files(state_directory);
    let superfluous = files.len().saturating_sub(LIMIT);
    for (_, old) in files
        .iter()
        .take(superfluous)
        .filter(|(_, old)| *old != path)
    {
        // Whatever stays is dropped with the next one.
        let _ = fs::remove_file(old);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(number: usize) -> String {
        format!("sha256:{number:064x}")
    }

    fn inventory(kernel: &str) -> Inventory {
        Inventory {
            kernel: kernel.into(),
            databases: vec!["usr/x".into()],
            ..Inventory::default()
        }
    }

    fn keys(directory: &Path) -> Vec<String> {
        load(directory).into_iter().map(|(key, _)| key).collect()
    }

    /// Files that are written in one tick of the clock have no order.
    fn age(directory: &Path, key: &str, seconds: u64) {
        let file = fs::File::open(path(directory, key).unwrap()).unwrap();
        let time = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    }

    #[test]
    fn survives_a_restart_and_keeps_the_newest() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert_eq!(load(directory), []);
        for number in 0..LIMIT + 2 {
            store(directory, &key(number), &inventory(&number.to_string())).unwrap();
            age(directory, &key(number), 100 - number as u64);
        }
        let kept: Vec<_> = (2..LIMIT + 2).map(key).collect();
        assert_eq!(keys(directory), kept);
        assert_eq!(load(directory)[0].1, inventory("2"));
        // Again, and newer than all others.
        store(directory, &key(2), &inventory("again")).unwrap();
        assert_eq!(load(directory).last(), Some(&(key(2), inventory("again"))));
        assert_eq!(keys(directory).len(), LIMIT);
    }

    #[test]
    fn what_cannot_be_understood_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        store(directory, &key(1), &inventory("1")).unwrap();
        store(directory, &key(2), &inventory("2")).unwrap();
        let newer = fs::read_to_string(path(directory, &key(1)).unwrap()).unwrap();
        let newer = newer.replace("\"schema\":1", "\"schema\":2");
        fs::write(path(directory, &key(1)).unwrap(), newer).unwrap();
        fs::write(path(directory, &key(3)).unwrap(), "{\"sch").unwrap();
        fs::write(path(directory, &key(4)).unwrap(), "").unwrap();
        assert_eq!(keys(directory), [key(2)]);
        // And may be replaced.
        store(directory, &key(3), &inventory("3")).unwrap();
        assert!(keys(directory).contains(&key(3)));
    }

    #[test]
    fn no_key_leads_out_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        for key in ["", "../x", "sha256:", &format!("{}/", "a".repeat(63))] {
            store(directory.path(), key, &inventory("1")).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
