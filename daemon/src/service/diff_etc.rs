//! `Host.DiffEtc`: what was changed in `/etc`, looked up while the caller waits.
//!
//! Invariants: it needs no lock and no thread of libostree's; nobody gets to know a name in a
//! directory that it could not list itself; a crowd that asks waits for one another, and not the
//! daemon for it.

use osteward_dbus::Error;
use osteward_dbus::options::DiffEtcOptions;
use tokio::sync::Semaphore;

use super::translate;
use crate::engine::{Look, Status};
use crate::etc::{self, Sight};
use crate::sysroot::{Deployment, Slot};

/// How many look at a time: each of them reads much of `/etc`.
static PLACES: Semaphore = Semaphore::const_new(2);

/// The changes as the API has them.
pub(super) async fn changes(
    status: &Status,
    options: &DiffEtcOptions,
    uid: u32,
) -> Result<Vec<(String, String)>, Error> {
    let deployment = deployment(status, options)?;
    let (defaults, current) = (
        deployment.directory.join("usr/etc"),
        deployment.directory.join("etc"),
    );
    let sight = if uid == 0 { Sight::All } else { Sight::Public };
    let _place = PLACES.acquire().await;
    let look = move || etc::changes(&defaults, &current, sight);
    let found = tokio::task::spawn_blocking(look).await;
    let found = found.map_err(|error| Error::Failed(format!("internal error: {error}")))?;
    let found = found.map_err(|error| Error::Failed(format!("/etc cannot be read: {error}")))?;
    let told = found.into_iter().map(|change| {
        let path = change.path.to_string_lossy().into_owned();
        (change.kind.name().to_owned(), path)
    });
    Ok(told.collect())
}

/// The deployment that is meant, which must have an `/etc` of its own.
fn deployment<'a>(status: &'a Status, options: &DiffEtcOptions) -> Result<&'a Deployment, Error> {
    let snapshot = match &status.look {
        Look::Seen(snapshot) => snapshot,
        Look::Broken(why) => return Err(Error::Failed(format!("the sysroot: {why}"))),
        Look::NotYet | Look::NotBooted => return Err(not_booted()),
    };
    let Some(path) = &options.deployment else {
        return snapshot.booted().ok_or_else(not_booted);
    };
    let mut all = snapshot.deployments.iter();
    let deployment = all.find(|known| translate::deployment_path(&known.id) == *path);
    match deployment {
        None => Err(Error::UnknownObject(format!(
            "{} is no deployment (any more)",
            path.as_str()
        ))),
        Some(staged) if staged.slot == Slot::Staged => Err(Error::NotSupported(
            "what is staged gets its /etc when the host shuts down; Simulate tells of conflicts"
                .into(),
        )),
        Some(deployment) => Ok(deployment),
    }
}

fn not_booted() -> Error {
    Error::NotBooted(
        "this host was not booted by ostree; osteward only works on an image-based host".into(),
    )
}
