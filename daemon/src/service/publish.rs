//! Keeps the bus objects equal to what the engine knows.
//!
//! Owns which objects exist and what was last said about them. Invariants: one
//! `PropertiesChanged` for all that changed at one moment; an object is there before its
//! path is given out; of a finished job the order is: the host's new state, the job's
//! final properties, `Finished`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use osteward_dbus::types::{self, DeploymentInfo, Dict, UpdateInfo};
use osteward_dbus::{HOST_PATH, MANAGER_PATH};
use tokio::sync::{Mutex, watch};
use tokio_util::task::TaskTracker;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedObjectPath, Variant};

use super::deployment::Deployment;
use super::job::Job;
use super::manager::{self, Manager};
use super::translate;
use super::update::Update;
use crate::engine::{Engine, JobId, JobView, Status};

/// A handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    connection: Connection,
    engine: Engine,
    known: Arc<Mutex<Known>>,
    /// One task for each job that is not over.
    followers: TaskTracker,
}

/// What the bus has been told.
#[derive(Debug, Default)]
struct Known {
    host: Dict,
    manager: Dict,
    deployments: HashMap<OwnedObjectPath, watch::Sender<DeploymentInfo>>,
    updates: HashMap<OwnedObjectPath, watch::Sender<UpdateInfo>>,
    jobs: BTreeMap<JobId, watch::Receiver<JobView>>,
}

impl Publisher {
    /// A publisher that has told nothing yet.
    pub fn new(connection: Connection, engine: Engine) -> Self {
        Self {
            connection,
            engine,
            known: Arc::default(),
            followers: TaskTracker::new(),
        }
    }

    /// Follows the engine until it ends.
    pub async fn run(self) {
        let mut status = self.engine.watch();
        while status.changed().await.is_ok() {
            self.sync().await;
        }
    }

    /// Returns when the end of every job has been told, once all of them are over.
    pub async fn last_words(&self) {
        self.followers.close();
        self.followers.wait().await;
    }

    /// Tells the bus what the engine knows now.
    pub async fn sync(&self) {
        let mut known = self.known.lock().await;
        let status = self.engine.status();
        if let Err(error) = self.tell(&mut known, &status).await {
            tracing::warn!(%error, "the bus objects may be behind");
        }
    }

    async fn tell(&self, known: &mut Known, status: &Status) -> zbus::Result<()> {
        self.tell_jobs(known, status).await?;
        let deployments = status
            .snapshot()
            .map(|s| s.deployments.as_slice())
            .unwrap_or_default();
        let wanted = deployments
            .iter()
            .map(|deployment| {
                (
                    translate::deployment_path(&deployment.id),
                    translate::deployment(status, deployment),
                )
            })
            .collect();
        let object = |record| Deployment::new(record, self.engine.clone(), self.clone());
        self.tell_records(&mut known.deployments, wanted, object)
            .await?;
        let wanted = translate::update(status).into_iter().collect();
        let object = |record| Update::new(record, self.engine.clone());
        self.tell_records(&mut known.updates, wanted, object)
            .await?;
        let host = pascal(types::to_dict(&translate::host(status))?);
        self.tell_changes(HOST_PATH, "org.osteward1.Host", &mut known.host, host)
            .await?;
        let manager = Dict::from([
            (
                "Features".to_owned(),
                Variant::from(manager::features(status)).try_into()?,
            ),
            ("Busy".to_owned(), status.active_job().is_some().into()),
            (
                "ActiveJob".to_owned(),
                Variant::from(manager::active_job(status)).try_into()?,
            ),
            (
                "Inhibitors".to_owned(),
                Variant::from(translate::inhibitors(status)?).try_into()?,
            ),
            (
                "ConfigWarnings".to_owned(),
                Variant::from(status.warnings.clone()).try_into()?,
            ),
        ]);
        self.tell_changes(
            MANAGER_PATH,
            "org.osteward1.Manager",
            &mut known.manager,
            manager,
        )
        .await
    }

    /// Makes the objects of one interface equal to `wanted`.
    async fn tell_records<R, I>(
        &self,
        known: &mut HashMap<OwnedObjectPath, watch::Sender<R>>,
        wanted: HashMap<OwnedObjectPath, R>,
        object: impl Fn(watch::Receiver<R>) -> I,
    ) -> zbus::Result<()>
    where
        R: Clone + PartialEq + serde::Serialize + zbus::Type,
        I: zbus::object_server::Interface,
    {
        let gone: Vec<_> = known
            .keys()
            .filter(|path| !wanted.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            known.remove(&path);
            self.connection
                .object_server()
                .remove::<I, _>(&path)
                .await?;
        }
        for (path, record) in wanted {
            let Some(told) = known.get(&path) else {
                let (sender, receiver) = watch::channel(record);
                self.connection
                    .object_server()
                    .at(&path, object(receiver))
                    .await?;
                known.insert(path, sender);
                continue;
            };
            let mut before = pascal(types::to_dict(&*told.borrow())?);
            if told.send_if_modified(|told| std::mem::replace(told, record.clone()) != record) {
                let now = pascal(types::to_dict(&record)?);
                self.tell_changes(path.as_str(), I::name().as_str(), &mut before, now)
                    .await?;
            }
        }
        Ok(())
    }

    async fn tell_jobs(&self, known: &mut Known, status: &Status) -> zbus::Result<()> {
        let server = self.connection.object_server();
        let manager = SignalEmitter::new(&self.connection, MANAGER_PATH)?;
        let gone: Vec<JobId> = known
            .jobs
            .keys()
            .filter(|id| !status.jobs.iter().any(|(job, _)| job == *id))
            .copied()
            .collect();
        for id in gone {
            let path = translate::job_path(id);
            server.remove::<Job, _>(&path).await?;
            let Some(view) = known.jobs.remove(&id) else {
                continue;
            };
            let (kind, state, error) = {
                let view = view.borrow();
                let error = view.error.clone().unwrap_or_default().0;
                (view.kind, view.state.name(), error)
            };
            Manager::job_removed(&manager, path.into(), kind, state, &error).await?;
        }
        for (id, view) in &status.jobs {
            if known.jobs.contains_key(id) {
                continue;
            }
            let path = translate::job_path(*id);
            let told = translate::job(&view.borrow());
            server
                .at(&path, Job::new(self.engine.clone(), view.clone()))
                .await?;
            Manager::job_added(&manager, path.clone().into(), &told.kind).await?;
            known.jobs.insert(*id, view.clone());
            let told = pascal(types::to_dict(&told)?);
            self.followers
                .spawn(self.clone().follow(path, view.clone(), told));
        }
        Ok(())
    }

    /// Tells of a job's changes until it is over. The engine paces them.
    /// Boxed, because it calls [`Publisher::sync`], which starts it.
    fn follow(
        self,
        path: OwnedObjectPath,
        mut view: watch::Receiver<JobView>,
        mut told: Dict,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut phase = None;
            loop {
                let now = view.borrow_and_update().clone();
                // `Host.UpdateState` follows the phase of the job.
                if now.state.is_final() || now.reading.phase != phase {
                    phase = now.reading.phase;
                    self.sync().await;
                }
                if let Err(error) = self.tell_job(&path, &now, &mut told).await {
                    tracing::warn!(%error, "cannot tell of a job's progress");
                }
                if now.state.is_final() || view.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    async fn tell_job(
        &self,
        path: &OwnedObjectPath,
        view: &JobView,
        told: &mut Dict,
    ) -> zbus::Result<()> {
        let now = pascal(types::to_dict(&translate::job(view))?);
        let changed = difference(told, &now)?;
        let emitter = SignalEmitter::new(&self.connection, path)?;
        self.tell_changes(path.as_str(), "org.osteward1.Job", told, now)
            .await?;
        if !changed.is_empty() {
            Job::progress(&emitter, changed).await?;
        }
        if view.state.is_final() {
            let (name, message) = view.error.clone().unwrap_or_default();
            let result = translate::result(view);
            Job::finished(&emitter, view.state.name(), &name, &message, result).await?;
        }
        Ok(())
    }

    /// One `PropertiesChanged` for all that differs; `told` then is `now`. The first
    /// call only remembers: whoever reads later reads `now` anyway.
    async fn tell_changes(
        &self,
        path: &str,
        interface: &str,
        told: &mut Dict,
        now: Dict,
    ) -> zbus::Result<()> {
        let changed = if told.is_empty() {
            Dict::new()
        } else {
            difference(told, &now)?
        };
        *told = now;
        if changed.is_empty() {
            return Ok(());
        }
        let emitter = SignalEmitter::new(&self.connection, path)?;
        let values = changed
            .iter()
            .map(|(name, value)| Ok((name.as_str(), value.try_clone()?.into())))
            .collect::<zbus::Result<HashMap<&str, Variant<'_>>>>()?;
        let name = InterfaceName::try_from(interface)?;
        zbus::fdo::Properties::properties_changed(&emitter, name, values, Default::default()).await
    }
}

/// The entries of `now` that are not in `told`.
fn difference(told: &Dict, now: &Dict) -> zbus::Result<Dict> {
    now.iter()
        .filter(|(name, value)| told.get(*name) != Some(value))
        .map(|(name, value)| Ok((name.clone(), value.try_clone()?)))
        .collect()
}

fn pascal(dict: Dict) -> Dict {
    dict.into_iter()
        .map(|(key, value)| (types::property_name(&key), value))
        .collect()
}
