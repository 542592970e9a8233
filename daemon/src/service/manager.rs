//! `org.osteward1.Manager`: what the daemon is, which jobs it has and had, who inhibits it.
//!
//! Owns the life of an inhibitor: from the call until the descriptor is closed everywhere,
//! or the caller has left the bus.

use osteward_dbus::options::{InhibitOptions, ListJobsOptions, NoOptions};
use osteward_dbus::types::{self, Dict};
use osteward_dbus::{API_VERSION, Error};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use zbus::message::Header;
use zbus::names::OwnedUniqueName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, ObjectPath, OwnedFd, OwnedObjectPath};

use super::auth::{self, Action, Details};
use super::publish::Publisher;
use super::{parse, translate};
use crate::engine::{Engine, Status};
use crate::image::here;
use crate::inhibit::{Held, Inhibitor, What};

/// What this version can do beside the always-there members of the API.
const FEATURES: [&str; 5] = ["switch", "kargs", "simulate", "diff-etc", "package-diff"];

/// The object.
#[derive(Debug)]
pub struct Manager {
    engine: Engine,
    publisher: Publisher,
}

impl Manager {
    /// The object in front of that engine.
    pub fn new(engine: Engine, publisher: Publisher) -> Self {
        Self { engine, publisher }
    }
}

/// `Features`: ours, and what the sysroot, the running libostree and the host's tools add.
pub(super) fn features(status: &Status) -> Vec<String> {
    let libostree = status
        .snapshot()
        .map(|snapshot| snapshot.features.as_slice());
    FEATURES
        .iter()
        .chain(libostree.unwrap_or_default())
        .map(|name| (*name).to_owned())
        .chain(here::features().map(str::to_owned))
        .chain(soft_reboot(status))
        .collect()
}

/// Soft reboots need libostree, its program and the service manager.
fn soft_reboot(status: &Status) -> Option<String> {
    let libostree = status.snapshot()?.features.contains(&"ostree-soft-reboot");
    (libostree && status.soft_reboots == Some(true)).then(|| "soft-reboot".to_owned())
}

/// `ActiveJob`: the job that holds the write slot.
pub(super) fn active_job(status: &Status) -> OwnedObjectPath {
    status
        .active_job()
        .map_or_else(translate::no_object, translate::job_path)
}

/// The end of the pipe that its holder keeps, after which `held` goes.
fn lend(
    connection: &Connection,
    holder: Option<OwnedUniqueName>,
    held: Held,
) -> Result<OwnedFd, Error> {
    let broken =
        |error: std::io::Error| Error::Failed(format!("no descriptor for the inhibitor: {error}"));
    let (ours, theirs) = pipe::pipe().map_err(broken)?;
    let connection = connection.clone();
    tokio::spawn(async move {
        let left = async {
            match &holder {
                Some(holder) => auth::vanished(&connection, holder).await,
                // Without a bus nobody leaves it.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Nothing is ever written, so nothing but its closing happens to a pipe.
            _ = ours.ready(Interest::ERROR) => {}
            () = left => {}
        }
        drop(held);
    });
    Ok(theirs.into_blocking_fd().map_err(broken)?.into())
}

#[zbus::interface(name = "org.osteward1.Manager", introspection_docs = false)]
impl Manager {
    #[zbus(out_args("jobs"))]
    async fn list_jobs(&self, options: ListJobsOptions) -> Result<Vec<OwnedObjectPath>, Error> {
        // In this order: every path that is given out has its object.
        let status = self.engine.status();
        self.publisher.sync().await;
        let wanted = status.jobs.iter().filter(|(_, view)| {
            let view = view.borrow();
            let active = !view.state.is_final();
            options.active.is_none_or(|wanted| wanted == active)
                && options.kind.as_deref().is_none_or(|kind| kind == view.kind)
        });
        Ok(wanted.map(|(id, _)| translate::job_path(*id)).collect())
    }

    #[zbus(out_args("entries"))]
    fn get_history(&self, max: u32, options: NoOptions) -> Result<Vec<Dict>, Error> {
        let NoOptions {} = options;
        let most = match max {
            0 => usize::MAX,
            max => max as usize,
        };
        let status = self.engine.status();
        let newest = status.history.iter().rev().take(most);
        let entries = newest.map(|entry| types::to_dict(&translate::history_entry(entry)));
        Ok(entries.collect::<zbus::Result<_>>()?)
    }

    #[zbus(out_args("fd"))]
    async fn inhibit(
        &self,
        who: String,
        why: String,
        options: InhibitOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, Error> {
        let _attendance = self.engine.attend();
        let (what, who, why) = parse::inhibitor(options, who, why)?;
        let details = Details {
            kind: "inhibit",
            reason: &why,
            ..Details::default()
        };
        let actions: &[Action] = match what {
            What::Idle => &[],
            What::Apply => &[Action::Inhibit],
        };
        let uid = auth::require(connection, &header, actions, &details).await?;
        let inhibitor = Inhibitor::new(what, who, why, uid);
        let held = self.engine.inhibitors().hold(inhibitor);
        let held = held.map_err(|error| Error::LimitsExceeded(error.to_string()))?;
        let holder = header.sender().map(|sender| sender.to_owned().into());
        lend(connection, holder, held)
    }

    async fn reload_config(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let _attendance = self.engine.attend();
        let details = Details {
            kind: "reload",
            ..Details::default()
        };
        auth::require(connection, &header, &[Action::Reload], &details).await?;
        self.engine.reload().await.map_err(|error| error.to_bus())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn api_version(&self) -> u32 {
        API_VERSION
    }

    #[zbus(property)]
    fn features(&self) -> Vec<String> {
        features(&self.engine.status())
    }

    #[zbus(property)]
    fn busy(&self) -> bool {
        self.engine.status().active_job().is_some()
    }

    #[zbus(property)]
    fn active_job(&self) -> OwnedObjectPath {
        active_job(&self.engine.status())
    }

    #[zbus(property)]
    fn inhibitors(&self) -> zbus::fdo::Result<Vec<Dict>> {
        Ok(translate::inhibitors(&self.engine.status())?)
    }

    #[zbus(property)]
    fn config_warnings(&self) -> Vec<String> {
        self.engine.status().warnings.clone()
    }

    /// A job exists.
    #[zbus(signal)]
    pub async fn job_added(
        emitter: &SignalEmitter<'_>,
        job: ObjectPath<'_>,
        kind: &str,
    ) -> zbus::Result<()>;

    /// A finished job was forgotten.
    #[zbus(signal)]
    pub async fn job_removed(
        emitter: &SignalEmitter<'_>,
        job: ObjectPath<'_>,
        kind: &str,
        state: &str,
        error_name: &str,
    ) -> zbus::Result<()>;
}
