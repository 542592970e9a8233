//! The daemon's objects, one of every interface, behind a socket pair.
//!
//! Invariant: the engine is the real one, on a host without ostree.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use osteward_dbus::types::{DeploymentInfo, UpdateInfo};
use ostewardd::engine::{Caller, Engine, JobId, JobView, OsRelease, Parts, RunState};
use ostewardd::jobs::progress::{Progress, phases};
use ostewardd::observe::logind::Logind;
use ostewardd::observe::systemd::Systemd;
use ostewardd::service;
use ostewardd::sysroot::Sysroot;
use tokio::sync::{mpsc, watch};
use zbus::message::Type;
use zbus::{Connection, MessageStream, connection};

pub(super) const DEPLOYMENT: &str = "/org/osteward1/deployment/d_0_0";
pub(super) const UPDATE: &str = "/org/osteward1/update/sha256_0";
pub(super) const JOB: &str = "/org/osteward1/job/1";

fn deployment() -> DeploymentInfo {
    DeploymentInfo {
        id: "d_0_0".into(),
        checksum: "0".repeat(64),
        serial: 0,
        stateroot: "default".into(),
        state: "booted".into(),
        booted: true,
        staged: false,
        pinned: false,
        locked: false,
        image: String::new(),
        digest: String::new(),
        version: String::new(),
        timestamp: 0,
        labels: HashMap::new(),
        layers: 0,
        size_bytes: 0,
        kernel_version: String::new(),
        kernel_arguments: vec![],
        soft_reboot_capable: String::new(),
        unlocked: String::new(),
        warnings: vec![],
    }
}

fn update() -> UpdateInfo {
    UpdateInfo {
        digest: String::new(),
        index_digest: String::new(),
        image: String::new(),
        version: String::new(),
        architecture: String::new(),
        timestamp: 0,
        labels: HashMap::new(),
        annotations: HashMap::new(),
        state: String::new(),
        direction: String::new(),
        download_size: 0,
        total_size: 0,
        layers_total: 0,
        layers_missing: 0,
        kernel_version: String::new(),
        diff_level: String::new(),
    }
}

fn job() -> JobView {
    JobView {
        id: JobId(1),
        kind: "upgrade",
        writes: true,
        state: RunState::Running,
        reading: Progress::new(phases::UPGRADE).read(),
        rate: 0,
        error: None,
        facts: vec![],
        paused: false,
        background: false,
        blocked_by: None,
        created_at: 0,
        started_at: None,
        finished_at: None,
        caller: Caller::default(),
        sequence: 1,
    }
}

/// The real engine on a host without ostree, with one object of every interface.
pub(super) struct Served {
    pub(super) server: Connection,
    pub(super) client: Connection,
    pub(super) called: Arc<Mutex<BTreeSet<(String, String)>>>,
    _directory: tempfile::TempDir,
}

pub(super) async fn served() -> Served {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guid = zbus::Guid::generate();
    let server = connection::Builder::unix_stream(ours)
        .server(guid)
        .p2p()
        .build();
    let client = connection::Builder::unix_stream(theirs).p2p().build();
    let (server, client) = tokio::try_join!(server, client).unwrap();
    // Answers with an error when the daemon asks this side for logind.
    client.object_server();
    let directory = tempfile::tempdir().unwrap();
    let parts = Parts {
        sysroot: Sysroot::spawn(directory.path()).unwrap(),
        root: directory.path().to_owned(),
        config: Ok(ostewardd::config::Config::default()),
        warnings: vec![],
        os: OsRelease::default(),
        logind: Logind::new(server.clone()),
        systemd: Systemd::new(server.clone()),
        state_directory: directory.path().join("state"),
        runtime_directory: directory.path().join("run"),
    };
    let engine = Engine::spawn(parts, mpsc::channel(1).1);
    let called = record_calls(&server);
    let publisher = service::serve(&server, engine.clone(), Logind::new(server.clone()))
        .await
        .unwrap();
    let objects = server.object_server();
    let job = service::Job::new(engine.clone(), watch::channel(job()).1);
    objects.at(JOB, job).await.unwrap();
    let record = watch::channel(deployment()).1;
    objects
        .at(
            DEPLOYMENT,
            service::Deployment::new(record, engine.clone(), publisher),
        )
        .await
        .unwrap();
    objects
        .at(
            UPDATE,
            service::Update::new(watch::channel(update()).1, engine.clone()),
        )
        .await
        .unwrap();
    Served {
        server,
        client,
        called,
        _directory: directory,
    }
}

fn record_calls(server: &Connection) -> Arc<Mutex<BTreeSet<(String, String)>>> {
    let called = Arc::new(Mutex::new(BTreeSet::new()));
    let (record, mut messages) = (called.clone(), MessageStream::from(server));
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if message.message_type() != Type::MethodCall {
                continue;
            }
            let header = message.header();
            let interface = header.interface().unwrap().to_string();
            let member = header.member().unwrap().to_string();
            let property = (interface == "org.freedesktop.DBus.Properties" && member == "Get")
                .then(|| message.body().deserialize::<(String, String)>().unwrap());
            record
                .lock()
                .unwrap()
                .insert(property.unwrap_or((interface, member)));
        }
    });
    called
}
