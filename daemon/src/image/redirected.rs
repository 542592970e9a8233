//! Where the blobs of a repository are: in the registry, or where it led to when it was asked.
//!
//! Owns addresses that are mostly signed, which makes them secrets for as long as they are valid. Invariants:
//! no address is shown to anybody; one that did not work is not used again; of many that want the same blob
//! at once one asks where it is, and only if it does not find out the others do.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reqwest::Url;

use super::reference::Digest;

/// The blobs of one repository.
#[derive(Default)]
pub(super) struct Redirected(Mutex<HashMap<Digest, Arc<Blob>>>);

impl fmt::Debug for Redirected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redirected")
    }
}

impl Redirected {
    /// What is known of this blob.
    pub(super) fn of(&self, blob: &Digest) -> Arc<Blob> {
        let mut blobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.entry(blob.clone()).or_default().clone()
    }
}

#[derive(Default)]
enum Place {
    #[default]
    Unknown,
    Here,
    There(Url),
}

/// One blob.
#[derive(Default)]
pub(super) struct Blob {
    place: Mutex<Place>,
    /// Held by whoever finds out.
    asking: tokio::sync::Mutex<()>,
}

impl Blob {
    /// Where the registry led to.
    pub(super) fn there(&self) -> Option<Url> {
        match &*self.place() {
            Place::There(url) => Some(url.clone()),
            Place::Unknown | Place::Here => None,
        }
    }

    /// Whether the registry itself has it.
    pub(super) fn is_here(&self) -> bool {
        matches!(*self.place(), Place::Here)
    }

    /// Who comes first is to find out where it is, until it drops what it gets. All others are kept until then,
    /// and wait for nobody else: a server that hangs would hold up one after the other.
    pub(super) async fn ask(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.is_here() {
            return None;
        }
        if let Ok(asking) = self.asking.try_lock() {
            return Some(asking);
        }
        drop(self.asking.lock().await);
        None
    }

    /// It is there; `None`: in the registry itself.
    pub(super) fn found(&self, there: Option<&Url>) {
        *self.place() = there.map_or(Place::Here, |url| Place::There(url.clone()));
    }

    /// It is not there, or not any more. What somebody else found meanwhile stays.
    pub(super) fn lost(&self, there: &Url) {
        let mut place = self.place();
        if matches!(&*place, Place::There(url) if url == there) {
            *place = Place::Unknown;
        }
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_only_what_was_tried() {
        let [old, new] = ["https://a.test/?signature=hunter2", "https://b.test/"]
            .map(|url| Url::parse(url).unwrap());
        let known = Redirected::default();
        let blob = known.of(&Digest::of(b"blob"));
        blob.found(Some(&old));
        assert!(!format!("{known:?}").contains("hunter2"));
        assert_eq!(known.of(&Digest::of(b"blob")).there(), Some(old.clone()));
        assert_eq!(known.of(&Digest::of(b"other")).there(), None);
        blob.found(Some(&new));
        blob.lost(&old);
        assert_eq!(blob.there(), Some(new.clone()));
        blob.lost(&new);
        assert!(blob.there().is_none() && !blob.is_here());
        blob.found(None);
        blob.lost(&new);
        assert!(blob.is_here());
    }
}
