//! `org.osteward1.Job`: running and recently finished jobs.

use osteward_dbus::Error;
use osteward_dbus::options::NoOptions;
use osteward_dbus::types::{Dict, JobInfo};
use tokio::sync::watch;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedFd, OwnedObjectPath};

use super::auth::{self, Action, Details};
use super::translate;
use crate::engine::{Engine, JobView, Order};

/// What an order needs of the user who started the job, and of others.
type Needed = (Option<Action>, Action);

/// Whoever may download may also wait with it.
const PAUSING: Needed = (Some(Action::Download), Action::Cancel);

/// The object; it shows what the engine publishes of the job.
#[derive(Debug)]
pub struct Job {
    engine: Engine,
    view: watch::Receiver<JobView>,
}

impl Job {
    /// An object for that job.
    pub fn new(engine: Engine, view: watch::Receiver<JobView>) -> Self {
        Self { engine, view }
    }

    fn record(&self) -> JobInfo {
        translate::job(&self.view.borrow())
    }

    /// Tells the job something if the caller may.
    async fn tell(
        &self,
        order: Order,
        (own, foreign): Needed,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<(), Error> {
        let _attendance = self.engine.attend();
        let (id, owner, kind) = {
            let view = self.view.borrow();
            (view.id, view.caller.uid, view.kind)
        };
        let uid = auth::uid(connection, header).await?;
        let action = if uid == owner { own } else { Some(foreign) };
        if let Some(action) = action {
            let details = Details {
                kind,
                ..Details::default()
            };
            auth::require(connection, header, &[action], &details).await?;
        }
        let told = self.engine.tell(id, order, uid).await;
        told.map_err(|error| error.to_bus())
    }
}

#[zbus::interface(name = "org.osteward1.Job", introspection_docs = false)]
impl Job {
    async fn cancel(
        &self,
        options: NoOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let NoOptions {} = options;
        self.tell(Order::Cancel, (None, Action::Cancel), &header, connection)
            .await
    }

    async fn pause(
        &self,
        options: NoOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let NoOptions {} = options;
        self.tell(Order::Pause, PAUSING, &header, connection).await
    }

    async fn resume(
        &self,
        options: NoOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let NoOptions {} = options;
        self.tell(Order::Resume, PAUSING, &header, connection).await
    }

    async fn adopt(
        &self,
        options: NoOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let NoOptions {} = options;
        let costs_bandwidth = (Some(Action::Download), Action::Download);
        self.tell(Order::Adopt, costs_bandwidth, &header, connection)
            .await
    }

    async fn release(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        let uid = auth::uid(connection, &header).await?;
        let id = self.view.borrow().id;
        let released = self.engine.tell(id, Order::Release, uid).await;
        released.map_err(|error| error.to_bus())
    }

    #[zbus(out_args("lines"))]
    async fn get_log(&self, options: NoOptions) -> Result<Vec<String>, Error> {
        let NoOptions {} = options;
        let id = self.view.borrow().id;
        let lines = self.engine.log(id).await;
        lines.map_err(|error| error.to_bus())
    }

    #[zbus(out_args("fd"))]
    async fn stream_events(&self, options: NoOptions) -> Result<OwnedFd, Error> {
        let NoOptions {} = options;
        let id = self.view.borrow().id;
        let events = self.engine.stream(id).await;
        Ok(events.map_err(|error| error.to_bus())?.into())
    }

    /// The changed properties, for clients without a property cache.
    #[zbus(signal)]
    pub async fn progress(emitter: &SignalEmitter<'_>, changed: Dict) -> zbus::Result<()>;

    /// The job reached its final state.
    #[zbus(signal)]
    pub async fn finished(
        emitter: &SignalEmitter<'_>,
        state: &str,
        error_name: &str,
        error_message: &str,
        result: Dict,
    ) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> String {
        self.record().kind
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.record().state
    }

    #[zbus(property)]
    fn phase(&self) -> String {
        self.record().phase
    }

    #[zbus(property)]
    fn phase_index(&self) -> u32 {
        self.record().phase_index
    }

    #[zbus(property)]
    fn phase_count(&self) -> u32 {
        self.record().phase_count
    }

    #[zbus(property)]
    fn fraction(&self) -> f64 {
        self.record().fraction
    }

    #[zbus(property)]
    fn bytes_done(&self) -> u64 {
        self.record().bytes_done
    }

    #[zbus(property)]
    fn bytes_total(&self) -> u64 {
        self.record().bytes_total
    }

    #[zbus(property)]
    fn bytes_cached(&self) -> u64 {
        self.record().bytes_cached
    }

    #[zbus(property)]
    fn layers_done(&self) -> u32 {
        self.record().layers_done
    }

    #[zbus(property)]
    fn layers_total(&self) -> u32 {
        self.record().layers_total
    }

    #[zbus(property)]
    fn active_layers(&self) -> Vec<(String, u64, u64)> {
        self.record().active_layers
    }

    #[zbus(property)]
    fn rate(&self) -> u64 {
        self.record().rate
    }

    #[zbus(property)]
    fn eta(&self) -> u64 {
        self.record().eta
    }

    #[zbus(property)]
    fn message(&self) -> String {
        self.record().message
    }

    #[zbus(property)]
    fn cancellable(&self) -> bool {
        self.record().cancellable
    }

    #[zbus(property)]
    fn paused(&self) -> bool {
        self.record().paused
    }

    #[zbus(property)]
    fn background(&self) -> bool {
        self.record().background
    }

    #[zbus(property)]
    fn blocked_by(&self) -> OwnedObjectPath {
        self.record().blocked_by
    }

    #[zbus(property)]
    fn error(&self) -> (String, String) {
        self.record().error
    }

    #[zbus(property)]
    fn result(&self) -> Dict {
        self.record().result
    }

    #[zbus(property)]
    fn target(&self) -> OwnedObjectPath {
        self.record().target
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn created_at(&self) -> u64 {
        self.record().created_at
    }

    #[zbus(property)]
    fn started_at(&self) -> u64 {
        self.record().started_at
    }

    #[zbus(property)]
    fn finished_at(&self) -> u64 {
        self.record().finished_at
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn started_by_uid(&self) -> u32 {
        self.record().started_by_uid
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn started_by_label(&self) -> String {
        self.record().started_by_label
    }

    #[zbus(property)]
    fn sequence(&self) -> u64 {
        self.record().sequence
    }
}
