//! `org.osteward1.Deployment`: one object for each bootable deployment.

use std::collections::HashMap;

use osteward_dbus::types::DeploymentInfo;
use tokio::sync::watch;

/// The object; its record is kept up to date by the publisher.
#[derive(Debug)]
pub struct Deployment {
    record: watch::Receiver<DeploymentInfo>,
}

impl Deployment {
    /// An object that shows that record.
    pub fn new(record: watch::Receiver<DeploymentInfo>) -> Self {
        Self { record }
    }

    fn record(&self) -> DeploymentInfo {
        self.record.borrow().clone()
    }
}

#[zbus::interface(name = "org.osteward1.Deployment", introspection_docs = false)]
impl Deployment {
    #[zbus(property)]
    fn id(&self) -> String {
        self.record().id
    }

    #[zbus(property)]
    fn checksum(&self) -> String {
        self.record().checksum
    }

    #[zbus(property)]
    fn serial(&self) -> i32 {
        self.record().serial
    }

    #[zbus(property)]
    fn stateroot(&self) -> String {
        self.record().stateroot
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.record().state
    }

    #[zbus(property)]
    fn booted(&self) -> bool {
        self.record().booted
    }

    #[zbus(property)]
    fn staged(&self) -> bool {
        self.record().staged
    }

    #[zbus(property)]
    fn pinned(&self) -> bool {
        self.record().pinned
    }

    #[zbus(property)]
    fn locked(&self) -> bool {
        self.record().locked
    }

    #[zbus(property)]
    fn image(&self) -> String {
        self.record().image
    }

    #[zbus(property)]
    fn digest(&self) -> String {
        self.record().digest
    }

    #[zbus(property)]
    fn version(&self) -> String {
        self.record().version
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
    fn layers(&self) -> u32 {
        self.record().layers
    }

    #[zbus(property)]
    fn size_bytes(&self) -> u64 {
        self.record().size_bytes
    }

    #[zbus(property)]
    fn kernel_version(&self) -> String {
        self.record().kernel_version
    }

    #[zbus(property)]
    fn kernel_arguments(&self) -> Vec<String> {
        self.record().kernel_arguments
    }
}
