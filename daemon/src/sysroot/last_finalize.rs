//! How the last finalization ended, as far as it failed.
//!
//! libostree writes why a finalization failed to a stamp in `/boot`, for
//! `ostree-boot-complete.service` to report and to remove early at the next boot. Owns where
//! it is looked for: there, and in the copy that our tmpfiles line makes of it before.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// In the order of looking: what failed since this boot, what failed before it.
const STAMPS: [&str; 2] = [
    "boot/ostree/finalize-failure.stamp",
    "run/osteward/finalize-failure.stamp",
];
/// libostree writes one line; a longer text is not one of its.
const LONGEST: u64 = 4096;

/// A finalization that failed: the host goes on with what it ran before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinalizeFailure {
    /// libostree's words.
    pub message: String,
    /// Unix seconds; 0 if unknown.
    pub time: u64,
}

/// The failure of the last finalization; `None` if it did not fail.
pub(super) fn failure(root: &Path) -> Option<FinalizeFailure> {
    STAMPS.iter().find_map(|stamp| read(&root.join(stamp)))
}

fn read(stamp: &Path) -> Option<FinalizeFailure> {
    let mut message = Vec::new();
    let file = fs::File::open(stamp).ok()?;
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    file.take(LONGEST).read_to_end(&mut message).ok()?;
    let time = modified
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Some(FinalizeFailure {
        message: String::from_utf8_lossy(&message).trim().to_owned(),
        time: time.map_or(0, |time| time.as_secs()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newer_stamp_counts_and_none_is_no_failure() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(failure(root.path()), None);
        for (stamp, text) in STAMPS.iter().zip(["now\n", "before"]).rev() {
            let path = root.path().join(stamp);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let time = UNIX_EPOCH + Duration::from_secs(7);
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
            let expected = FinalizeFailure {
                message: text.trim().into(),
                time: 7,
            };
            assert_eq!(failure(root.path()), Some(expected));
        }
    }

    #[test]
    fn no_stamp_is_longer_than_a_line() {
        let root = tempfile::tempdir().unwrap();
        let stamp = root.path().join(STAMPS[0]);
        fs::create_dir_all(stamp.parent().unwrap()).unwrap();
        fs::write(&stamp, "x".repeat(1 << 20)).unwrap();
        let failed = failure(root.path()).unwrap();
        assert_eq!(failed.message.len() as u64, LONGEST);
    }
}
