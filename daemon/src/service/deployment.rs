//! `org.osteward1.Deployment`: one object for each bootable deployment.

use std::collections::HashMap;

use osteward_dbus::Error;
use osteward_dbus::options::{ManageOptions, NoOptions};
use osteward_dbus::types::{DeploymentInfo, PackageMove};
use tokio::sync::watch;
use zbus::message::Header;
use zbus::{Connection, ObjectPath, OwnedObjectPath};

use super::auth::Action;
use super::call::Call;
use super::packages;
use super::publish::Publisher;
use crate::engine::Engine;
use crate::jobs::Request;

/// The object; its record is kept up to date by the publisher.
#[derive(Debug)]
pub struct Deployment {
    record: watch::Receiver<DeploymentInfo>,
    engine: Engine,
    publisher: Publisher,
}

impl Deployment {
    /// An object that shows that record.
    pub fn new(
        record: watch::Receiver<DeploymentInfo>,
        engine: Engine,
        publisher: Publisher,
    ) -> Self {
        Self {
            record,
            engine,
            publisher,
        }
    }

    fn record(&self) -> DeploymentInfo {
        self.record.borrow().clone()
    }

    /// Authorises a call about this deployment and makes its job.
    async fn manage(&self, call: Call<'_>, request: Request) -> Result<OwnedObjectPath, Error> {
        let about = self.record();
        let makers = (&self.engine, &self.publisher);
        let about = (about.image.as_str(), about.digest.as_str());
        call.start(makers, request, &[Action::Manage], about).await
    }
}

#[zbus::interface(name = "org.osteward1.Deployment", introspection_docs = false)]
impl Deployment {
    #[zbus(out_args("job"))]
    async fn set_locked(
        &self,
        locked: bool,
        options: ManageOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let call = Call::new(connection, header, options.common())?;
        let deployment = self.record().id;
        let request = Request::SetFinalization { deployment, locked };
        self.manage(call, request).await
    }

    #[zbus(out_args("job"))]
    async fn set_pinned(
        &self,
        pinned: bool,
        options: ManageOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let call = Call::new(connection, header, options.common())?;
        let deployment = self.record().id;
        let request = Request::SetPinned { deployment, pinned };
        self.manage(call, request).await
    }

    #[zbus(out_args("job"))]
    async fn remove(
        &self,
        options: ManageOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let call = Call::new(connection, header, options.common())?;
        self.manage(call, Request::Remove(self.record().id)).await
    }

    #[zbus(out_args("diff"))]
    async fn diff_packages(
        &self,
        other: ObjectPath<'_>,
        options: NoOptions,
    ) -> Result<Vec<PackageMove>, Error> {
        let NoOptions {} = options;
        packages::between(&self.engine, &self.record().id, &other).await
    }

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

    #[zbus(property)]
    fn soft_reboot_capable(&self) -> String {
        self.record().soft_reboot_capable
    }

    #[zbus(property)]
    fn unlocked(&self) -> String {
        self.record().unlocked
    }

    #[zbus(property)]
    fn warnings(&self) -> Vec<String> {
        self.record().warnings
    }
}
