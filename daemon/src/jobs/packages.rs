//! Which packages are in an image: read once, remembered, compared.
//!
//! Owns [`Packages`], the memory that jobs fill and everybody reads, and the step of check,
//! download and upgrade that fills it. Invariants: nothing here makes a job fail, since nobody
//! asked for it; a list is read from the commit where there is one, whatever was seen of the
//! image before; databases are read by one thread at a time, whoever asks.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::Job;
use super::source::Found;
use crate::error::Error;
use crate::image::reference::{Digest, Transport};
use crate::import::{self, Peek};
use crate::packages::{Difference, Inventory, compare};
use crate::record::inventories;
use crate::sysroot::{Deployment, Snapshot};

/// Lists by key, the newest last.
type Known = Arc<VecDeque<(String, Arc<Inventory>)>>;

/// The packages of images, as far as they were read; cheap to clone.
#[derive(Debug, Clone)]
pub struct Packages {
    state_directory: PathBuf,
    repo_path: PathBuf,
    known: watch::Sender<Known>,
    reading: Arc<tokio::sync::Mutex<()>>,
    last: Arc<Mutex<Option<Compared>>>,
}

/// The last comparison that was asked for.
#[derive(Debug)]
struct Compared {
    old: Arc<Inventory>,
    new: Arc<Inventory>,
    difference: Arc<Difference>,
}

/// What a deployment's list is kept under: the digest of its image, or else its commit.
pub fn key(deployment: &Deployment) -> &str {
    let digest = deployment.digest().map(Digest::as_str);
    digest.unwrap_or(&deployment.checksum)
}

impl Packages {
    /// A memory with nothing in it.
    pub fn new(state_directory: &Path, repo_path: PathBuf) -> Self {
        Self {
            state_directory: state_directory.to_owned(),
            repo_path,
            known: watch::channel(Known::default()).0,
            reading: Arc::default(),
            last: Arc::default(),
        }
    }

    /// Remembers what an earlier process has read. Blocks.
    pub fn load(&self) {
        for (key, inventory) in inventories::load(&self.state_directory) {
            self.keep(&key, Arc::new(inventory));
        }
    }

    /// Fires when something was read.
    pub fn changes(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// The list of that key, if it was read.
    pub fn get(&self, key: &str) -> Option<Arc<Inventory>> {
        let known = self.known.borrow();
        let found = known.iter().find(|(other, _)| other == key);
        found.map(|(_, inventory)| inventory.clone())
    }

    /// How two lists differ, if both were read and there is something to compare.
    pub fn difference(&self, old: &str, new: &str) -> Option<Arc<Difference>> {
        let lists = (self.get(old)?, self.get(new)?);
        let is_empty = |inventory: &Inventory| inventory.databases.is_empty();
        (!is_empty(&lists.0) && !is_empty(&lists.1)).then(|| self.compare(lists.0, lists.1))
    }

    /// Whoever asks mostly asks for the same again.
    fn compare(&self, old: Arc<Inventory>, new: Arc<Inventory>) -> Arc<Difference> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &*last
            && Arc::ptr_eq(&last.old, &old)
            && Arc::ptr_eq(&last.new, &new)
        {
            return last.difference.clone();
        }
        let difference = Arc::new(compare(&old, &new));
        *last = Some(Compared {
            old,
            new,
            difference: difference.clone(),
        });
        difference
    }

    /// How two deployments differ, read if need be.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a deployment without a database that is known, and
    /// [`Error::Import`] for one that cannot be read.
    pub async fn between(
        &self,
        old: &Deployment,
        new: &Deployment,
    ) -> Result<Arc<Difference>, Error> {
        let lists = (
            self.of_deployment(old).await?,
            self.of_deployment(new).await?,
        );
        for (deployment, inventory) in [(old, &lists.0), (new, &lists.1)] {
            if inventory.databases.is_empty() {
                return Err(Error::NotSupported(format!(
                    "deployment {} has no package database of dpkg, rpm or apk",
                    deployment.id
                )));
            }
        }
        Ok(Arc::new(compare(&lists.0, &lists.1)))
    }

    async fn of_deployment(&self, deployment: &Deployment) -> Result<Arc<Inventory>, Error> {
        self.of_commit(key(deployment), &deployment.checksum).await
    }

    /// What is installed in a commit.
    async fn of_commit(&self, key: &str, commit: &str) -> Result<Arc<Inventory>, Error> {
        let _one_at_a_time = self.reading.lock().await;
        if let Some(known) = self.get(key).filter(|known| known.whole) {
            return Ok(known);
        }
        let (path, commit) = (self.repo_path.clone(), commit.to_owned());
        let read = blocking(move || Ok(import::installed(&path, &commit)?)).await?;
        Ok(self.add(key, read).await)
    }

    /// Remembers a list, also on disk as far as that is possible.
    async fn add(&self, key: &str, inventory: Inventory) -> Arc<Inventory> {
        let inventory = Arc::new(inventory);
        self.keep(key, inventory.clone());
        let (directory, key, list) = (
            self.state_directory.clone(),
            key.to_owned(),
            inventory.clone(),
        );
        let store = move || Ok(inventories::store(&directory, &key, &list)?);
        if let Err(error) = blocking(store).await {
            tracing::debug!(%error, "the list of packages is not cached");
        }
        inventory
    }

    fn keep(&self, key: &str, inventory: Arc<Inventory>) {
        self.known.send_modify(|known| {
            let known = Arc::make_mut(known);
            known.retain(|(other, _)| other != key);
            known.push_back((key.to_owned(), inventory));
            while known.len() > inventories::LIMIT {
                known.pop_front();
            }
        });
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::Internal(error.to_string()))?
}

/// Reads what can be read of an image that was found, before it is downloaded.
pub(super) async fn look_ahead(job: &Job, snapshot: &Snapshot, found: &Found) {
    told(try_look_ahead(job, snapshot, found).await);
}

/// Reads what is in an image that was pulled.
pub(super) async fn look_at_pulled(job: &Job, snapshot: &Snapshot, digest: &Digest, commit: &str) {
    told(try_look_at_pulled(job, snapshot, digest, commit).await);
}

/// It is good to know, no more.
fn told(result: Result<(), Error>) {
    match result {
        Err(error) if !error.is_cancelled() => {
            tracing::warn!(%error, "which packages differ is not known");
        }
        Ok(()) | Err(_) => {}
    }
}

async fn try_look_at_pulled(
    job: &Job,
    snapshot: &Snapshot,
    digest: &Digest,
    commit: &str,
) -> Result<(), Error> {
    let Some(booted) = snapshot.booted() else {
        return Ok(());
    };
    job.progress.say("reading which packages differ");
    job.packages.of_deployment(booted).await?;
    job.packages.of_commit(digest.as_str(), commit).await?;
    Ok(())
}

async fn try_look_ahead(job: &Job, snapshot: &Snapshot, found: &Found) -> Result<(), Error> {
    let digest = &found.image.digest;
    let Some(booted) = snapshot.booted() else {
        return Ok(());
    };
    let is_whole = |known: &Arc<Inventory>| known.whole;
    let known = job.packages.get(digest.as_str());
    if known.as_ref().is_some_and(is_whole) {
        job.packages.of_deployment(booted).await?;
        return Ok(());
    }
    let (path, wanted) = (job.sysroot.repo_path(), digest.clone());
    let commit = blocking(move || Ok(import::commit_of(&path, &wanted)?)).await?;
    if let Some(commit) = commit {
        return try_look_at_pulled(job, snapshot, digest, &commit).await;
    }
    let booted = job.packages.of_deployment(booted).await?;
    if known.is_some() {
        return Ok(());
    }
    let seen = peek(job, found, &booted).await?;
    if let Some(seen) = seen {
        job.packages.add(digest.as_str(), seen).await;
    }
    Ok(())
}

/// What the upper layers of an image tell that is not here.
async fn peek(job: &Job, found: &Found, booted: &Inventory) -> Result<Option<Inventory>, Error> {
    let transport = found.origin.image.transport();
    if transport == Transport::ContainersStorage {
        // Its layers have to be brought out as a whole first.
        return Ok(None);
    }
    job.progress.say("looking which packages differ");
    let looked = import::peek(Peek {
        repo_path: job.sysroot.repo_path(),
        image: found.image.clone(),
        databases: booted.databases.clone(),
        fetch: Arc::new(found.source.clone()),
        at_most: job.config.max_peek_size,
        scratch: job.packages.state_directory.clone(),
        cancel: job.cancel.clone(),
    });
    Ok(looked.await?)
}
