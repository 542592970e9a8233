//! `org.osteward1.Manager`: what the daemon is and which jobs it has.

use osteward_dbus::options::NoOptions;
use osteward_dbus::{API_VERSION, Error};
use zbus::object_server::SignalEmitter;
use zbus::{ObjectPath, OwnedObjectPath};

use super::translate;
use crate::engine::{Engine, Status};

/// What this version can do beside the always-there members of the API.
const FEATURES: [&str; 2] = ["switch", "finalization-lock"];

/// The object.
#[derive(Debug)]
pub struct Manager {
    engine: Engine,
}

impl Manager {
    /// The object in front of that engine.
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

/// `Features`: ours, and what the running libostree adds.
pub(super) fn features(status: &Status) -> Vec<String> {
    let libostree = status
        .snapshot()
        .map(|snapshot| snapshot.features.as_slice());
    FEATURES
        .iter()
        .chain(libostree.unwrap_or_default())
        .map(|name| (*name).to_owned())
        .collect()
}

/// `ActiveJob`: the job that holds the write slot.
pub(super) fn active_job(status: &Status) -> OwnedObjectPath {
    status
        .active_job()
        .map_or_else(translate::no_object, translate::job_path)
}

#[zbus::interface(name = "org.osteward1.Manager", introspection_docs = false)]
impl Manager {
    #[zbus(out_args("jobs"))]
    fn list_jobs(&self, options: NoOptions) -> Result<Vec<OwnedObjectPath>, Error> {
        let NoOptions {} = options;
        Ok(self
            .engine
            .status()
            .jobs
            .iter()
            .map(|(id, _)| translate::job_path(*id))
            .collect())
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
