//! What is known of registries beyond one source: it is made for a job, and a process has many.
//!
//! Owns no secret: how a registry wants to be asked, not what it was told. Invariants: all of it can be
//! forgotten at any time, which costs requests and nothing else; what a registry seems not to have is looked
//! for again after a while, since one answer of one of its machines can be wrong.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;

use super::pace::Meter;
use super::reference::ImageReference;
use super::throttle::Throttle;
use super::token::Challenge;

/// How long a registry counts as one that lacks something.
const BELIEVED: Duration = Duration::from_secs(3600);

/// What sources that share it know together. Clones share it too.
#[derive(Clone, Default)]
pub struct Remembered(Arc<All>);

#[derive(Default)]
struct All {
    hosts: Mutex<HashMap<String, Arc<Host>>>,
    throttle: Throttle,
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembered")
    }
}

impl Remembered {
    /// Where the registry of this image sent for tokens to read it with: the address, and the service that it
    /// is asked for. Nothing of it is secret.
    pub fn token_server(&self, image: &ImageReference) -> Option<(String, Option<String>)> {
        let reference = image.in_registry()?;
        let host = self.host(reference.registry());
        match host.challenge(reference.repository())? {
            Challenge::Bearer { realm, service } => Some((realm.into(), service)),
            Challenge::Basic => None,
        }
    }

    /// An earlier process was sent there ([`Remembered::token_server`]).
    pub fn expect_token_server(
        &self,
        image: &ImageReference,
        (realm, service): (String, Option<String>),
    ) {
        if let Some(reference) = image.in_registry()
            && let Some(realm) = Url::parse(&realm).ok().filter(Url::has_host)
        {
            let challenge = Challenge::Bearer { realm, service };
            let host = self.host(reference.registry());
            host.set_challenge(reference.repository(), Some(challenge));
        }
    }

    /// What is known of a registry, `HOST[:PORT]`.
    pub(super) fn host(&self, registry: &str) -> Arc<Host> {
        let mut hosts = self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.entry(registry.to_owned()).or_default().clone()
    }

    /// What all transfers share.
    pub(super) fn throttle(&self) -> &Throttle {
        &self.0.throttle
    }
}

/// Since when something seems to be missing.
#[derive(Debug, Default)]
struct Lack(Mutex<Option<Instant>>);

impl Lack {
    fn is_known(&self, now: Instant) -> bool {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| now.saturating_duration_since(since) < BELIEVED)
    }

    /// It was looked for and not found. Tells whether that is news.
    fn found(&self, now: Instant) -> bool {
        let is_news = !self.is_known(now);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        is_news
    }
}

/// One registry.
#[derive(Debug, Default)]
pub(super) struct Host {
    without_ranges: Lack,
    without_referrers: Lack,
    /// How fast it is.
    pub(super) meter: Meter,
    /// How it asked for an authorization, by repository.
    challenges: Mutex<HashMap<String, Challenge>>,
}

impl Host {
    /// Whether it makes sense to ask for a part of a blob.
    pub(super) fn knows_ranges(&self) -> bool {
        !self.without_ranges.is_known(Instant::now())
    }

    /// A part was not understood. Tells whether that is news.
    pub(super) fn has_no_ranges(&self) -> bool {
        self.without_ranges.found(Instant::now())
    }

    /// Whether it may list what is published beside an image.
    pub(super) fn knows_referrers(&self) -> bool {
        !self.without_referrers.is_known(Instant::now())
    }

    /// It has no such list.
    pub(super) fn has_no_referrers(&self) {
        self.without_referrers.found(Instant::now());
    }

    /// How it asked for an authorization for this repository last.
    pub(super) fn challenge(&self, repository: &str) -> Option<Challenge> {
        self.challenges().get(repository).cloned()
    }

    /// How it asks now; `None`: nobody knows.
    pub(super) fn set_challenge(&self, repository: &str, challenge: Option<Challenge>) {
        let mut challenges = self.challenges();
        match challenge {
            Some(challenge) => challenges.insert(repository.to_owned(), challenge),
            None => challenges.remove(repository),
        };
    }

    fn challenges(&self) -> MutexGuard<'_, HashMap<String, Challenge>> {
        self.challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_looked_for_again() {
        let (lack, start) = (Lack::default(), Instant::now());
        assert!(!lack.is_known(start));
        assert!(lack.found(start));
        assert!(!lack.found(start));
        assert!(lack.is_known(start + BELIEVED / 2));
        let later = start + BELIEVED;
        assert!(!lack.is_known(later));
        assert!(lack.found(later) && lack.is_known(later));
    }
}
