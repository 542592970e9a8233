//! Which images jobs are fetching, so that one job leaves alone what another comes back to.
//!
//! Owns one image a job, from before its first layer until the job has ended, however often it
//! is paused or makes way in between. Invariant: in memory only, because jobs are; what an
//! earlier process began is nobody's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::image::reference::Digest;

/// The images of all jobs; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Downloads(Arc<Mutex<BTreeMap<u64, Digest>>>);

impl Downloads {
    /// The place of a job in it, by its number.
    pub fn of(&self, job: u64) -> Download {
        let all = self.clone();
        Download { all, job }
    }

    /// That job has ended, and comes back to nothing.
    pub fn ended(&self, job: u64) {
        self.images().remove(&job);
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<u64, Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one job says of itself, and sees of others.
#[derive(Debug, Clone)]
pub struct Download {
    all: Downloads,
    job: u64,
}

impl Download {
    /// It fetches the image with that manifest from now on, and no other. Returns the images
    /// that other jobs come back to.
    pub(super) fn begin(&self, manifest: &Digest) -> Vec<Digest> {
        self.all.images().insert(self.job, manifest.clone());
        self.others()
    }

    /// The images that other jobs come back to.
    pub(super) fn others(&self) -> Vec<Digest> {
        let images = self.all.images();
        let others = images.iter().filter(|(job, _)| **job != self.job);
        others.map(|(_, manifest)| manifest.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_keeps_one_image_until_it_has_ended() {
        let [old, new, other] = ["old", "new", "other"].map(|text| Digest::of(text.as_bytes()));
        let downloads = Downloads::default();
        assert!(downloads.of(1).begin(&old).is_empty());
        assert_eq!(downloads.of(3).others(), std::slice::from_ref(&old));
        assert_eq!(downloads.of(2).begin(&other), [old]);
        // It was interrupted, and meanwhile there is something newer.
        assert_eq!(downloads.of(1).begin(&new), std::slice::from_ref(&other));
        assert_eq!(downloads.of(2).begin(&other), [new]);
        downloads.ended(1);
        assert!(downloads.of(2).begin(&other).is_empty());
    }
}
