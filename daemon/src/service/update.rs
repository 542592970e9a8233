//! `org.osteward1.Update`: one object for each known candidate.

use std::collections::HashMap;

use osteward_dbus::Error;
use osteward_dbus::options::NoOptions;
use osteward_dbus::types::{PackageChange, UpdateInfo};
use tokio::sync::watch;

use super::packages;
use crate::engine::Engine;

/// The object; its record is kept up to date by the publisher.
#[derive(Debug)]
pub struct Update {
    record: watch::Receiver<UpdateInfo>,
    engine: Engine,
}

impl Update {
    /// An object that shows that record.
    pub fn new(record: watch::Receiver<UpdateInfo>, engine: Engine) -> Self {
        Self { record, engine }
    }

    fn record(&self) -> UpdateInfo {
        self.record.borrow().clone()
    }
}

#[zbus::interface(name = "org.osteward1.Update", introspection_docs = false)]
impl Update {
    #[zbus(out_args("diff", "total"))]
    async fn get_package_diff(
        &self,
        offset: u64,
        max: u32,
        options: NoOptions,
    ) -> Result<(Vec<PackageChange>, u64), Error> {
        let NoOptions {} = options;
        let status = self.engine.status();
        Ok(packages::of_update(
            &status,
            &self.record().digest,
            offset,
            max,
        ))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn digest(&self) -> String {
        self.record().digest
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn index_digest(&self) -> String {
        self.record().index_digest
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn image(&self) -> String {
        self.record().image
    }

    #[zbus(property)]
    fn version(&self) -> String {
        self.record().version
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn architecture(&self) -> String {
        self.record().architecture
    }

    #[zbus(property)]
    fn timestamp(&self) -> u64 {
        self.record().timestamp
    }

    #[zbus(property)]
    fn labels(&self) -> HashMap<String, String> {
        self.record().labels
    }

    #[zbus(property)]
    fn annotations(&self) -> HashMap<String, String> {
        self.record().annotations
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.record().state
    }

    #[zbus(property)]
    fn direction(&self) -> String {
        self.record().direction
    }

    #[zbus(property)]
    fn download_size(&self) -> u64 {
        self.record().download_size
    }

    #[zbus(property)]
    fn total_size(&self) -> u64 {
        self.record().total_size
    }

    #[zbus(property)]
    fn layers_total(&self) -> u32 {
        self.record().layers_total
    }

    #[zbus(property)]
    fn layers_missing(&self) -> u32 {
        self.record().layers_missing
    }

    #[zbus(property)]
    fn kernel_version(&self) -> String {
        self.record().kernel_version
    }

    #[zbus(property)]
    fn diff_level(&self) -> String {
        self.record().diff_level
    }
}
