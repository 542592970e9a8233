//! The contract from both sides: what the daemon serves equals the XML, and the proxies
//! reach all of it. Over a socket pair, without a bus.

#[cfg(test)]
mod contract {
    use std::collections::{BTreeSet, HashMap};
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, Mutex};

    use futures_util::StreamExt;
    use osteward_dbus::options::*;
    use osteward_dbus::types::{DeploymentInfo, UpdateInfo};
    use osteward_dbus::{
        DeploymentProxy, Error, HOST_PATH, HostProxy, INTERFACES, JobProxy, MANAGER_PATH,
        ManagerProxy, UpdateProxy,
    };
    use ostewardd::engine::{Caller, Engine, JobId, JobView, OsRelease, Parts, RunState};
    use ostewardd::jobs::progress::{Progress, phases};
    use ostewardd::observe::logind::Logind;
    use ostewardd::observe::systemd::Systemd;
    use ostewardd::service;
    use ostewardd::sysroot::Sysroot;
    use tokio::sync::{mpsc, watch};
    use zbus::message::Type;
    use zbus::object_server::SignalEmitter;
    use zbus::proxy::CacheProperties;
    use zbus::{Connection, MessageStream, connection};
    use zbus_xml::{ArgDirection, Interface, Node};

    const DEPLOYMENT: &str = "/org/osteward1/deployment/d_0_0";
    const UPDATE: &str = "/org/osteward1/update/sha256_0";
    const JOB: &str = "/org/osteward1/job/1";

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
        }
    }

    fn job() -> JobView {
        JobView {
            id: JobId(1),
            kind: "upgrade",
            state: RunState::Running,
            reading: Progress::new(phases::UPGRADE).read(),
            rate: 0,
            error: None,
            facts: vec![],
            created_at: 0,
            finished_at: None,
            caller: Caller::default(),
            sequence: 1,
        }
    }

    /// The real engine on a host without ostree, with one object of every interface.
    struct Served {
        server: Connection,
        client: Connection,
        called: Arc<Mutex<BTreeSet<(String, String)>>>,
        _directory: tempfile::TempDir,
    }

    async fn served() -> Served {
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
                service::Deployment::new(record, engine, publisher),
            )
            .await
            .unwrap();
        objects
            .at(UPDATE, service::Update::new(watch::channel(update()).1))
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

    fn in_contract(name: &str) -> Interface<'static> {
        let (_, xml) = INTERFACES
            .iter()
            .find(|(interface, _)| *interface == name)
            .unwrap();
        let node = Node::from_reader(xml.as_bytes()).unwrap();
        node.interfaces()
            .iter()
            .find(|interface| interface.name() == name)
            .unwrap()
            .clone()
    }

    /// Everything that a client could depend on, one line a fact.
    fn facts(interface: &Interface<'_>) -> BTreeSet<String> {
        let mut facts = BTreeSet::new();
        for method in interface.methods() {
            let arguments: Vec<String> = method
                .args()
                .iter()
                .map(|argument| {
                    let out = argument.direction() == Some(ArgDirection::Out);
                    let direction = if out { "out" } else { "in" };
                    format!(
                        "{direction} {} {}",
                        argument.name().unwrap_or("?"),
                        argument.ty()
                    )
                })
                .collect();
            facts.insert(format!(
                "method {}({})",
                method.name(),
                arguments.join(", ")
            ));
        }
        for signal in interface.signals() {
            let arguments: Vec<String> = signal
                .args()
                .iter()
                .map(|argument| format!("{} {}", argument.name().unwrap_or("?"), argument.ty()))
                .collect();
            facts.insert(format!(
                "signal {}({})",
                signal.name(),
                arguments.join(", ")
            ));
        }
        for property in interface.properties() {
            let emits = property
                .annotations()
                .iter()
                .find(|a| a.name() == "org.freedesktop.DBus.Property.EmitsChangedSignal")
                .map_or("true", |annotation| annotation.value());
            let (name, ty) = (property.name(), property.ty());
            facts.insert(format!(
                "property {name} {ty} {:?} emits={emits}",
                property.access()
            ));
        }
        facts
    }

    #[tokio::test]
    async fn what_is_served_is_what_the_xml_says() {
        let served = served().await;
        for (name, path) in [
            ("org.osteward1.Manager", MANAGER_PATH),
            ("org.osteward1.Host", HOST_PATH),
            ("org.osteward1.Deployment", DEPLOYMENT),
            ("org.osteward1.Update", UPDATE),
            ("org.osteward1.Job", JOB),
        ] {
            let interface = Some("org.freedesktop.DBus.Introspectable");
            let reply = served
                .client
                .call_method(None::<&str>, path, interface, "Introspect", &())
                .await
                .unwrap();
            let xml: String = reply.body().deserialize().unwrap();
            let node = Node::from_reader(xml.as_bytes()).unwrap();
            let is = node
                .interfaces()
                .iter()
                .find(|interface| interface.name() == name)
                .unwrap();
            let (is, should) = (facts(is), facts(&in_contract(name)));
            let missing: Vec<_> = should.difference(&is).collect();
            let extra: Vec<_> = is.difference(&should).collect();
            assert!(
                missing.is_empty() && extra.is_empty(),
                "{name}: missing {missing:#?}, extra {extra:#?}"
            );
        }
        assert_eq!(
            INTERFACES.len(),
            5,
            "a new interface needs its line in these tests"
        );
    }

    /// Reads properties through a proxy; their values are the daemon's business elsewhere.
    macro_rules! read {
    ($proxy:expr, $($property:ident)+) => { $( $proxy.$property().await.unwrap(); )+ };
}

    async fn read_everything(client: &Connection) {
        let no = CacheProperties::No;
        let manager = ManagerProxy::builder(client)
            .cache_properties(no)
            .build()
            .await
            .unwrap();
        read!(manager, version api_version features busy active_job config_warnings);
        assert_eq!(manager.list_jobs(&NoOptions {}).await.unwrap(), vec![]);
        let host = HostProxy::builder(client)
            .cache_properties(no)
            .build()
            .await
            .unwrap();
        read!(host, booted_deployment staged_deployment default_deployment rollback_deployment
        rollback_queued deployments stateroot os_name os_version boot_digest tracking update_state
        update last_check reboot_required);
        host.status(&NoOptions {}).await.unwrap();
        let deployment = DeploymentProxy::builder(client).path(DEPLOYMENT);
        let deployment = deployment.cache_properties(no).build().await.unwrap();
        read!(deployment, id checksum serial stateroot state booted staged pinned locked image digest
        version timestamp labels layers size_bytes kernel_version kernel_arguments);
        let update = UpdateProxy::builder(client).path(UPDATE);
        let update = update.cache_properties(no).build().await.unwrap();
        read!(update, digest index_digest image version architecture timestamp labels annotations state
        direction download_size total_size layers_total layers_missing);
        let job = JobProxy::builder(client)
            .path(JOB)
            .cache_properties(no)
            .build()
            .await
            .unwrap();
        read!(job, kind state phase phase_index phase_count fraction bytes_done bytes_total bytes_cached
        layers_done layers_total active_layers rate eta message cancellable error result target
        created_at finished_at started_by_uid started_by_label sequence);
        // The engine does not know this job: the object is the test's own.
        assert!(matches!(
            job.cancel(&NoOptions {}).await,
            Err(Error::UnknownObject(_))
        ));
    }

    /// On a host without ostree every operation says so, by name.
    async fn ask_for_everything(client: &Connection) {
        let host = HostProxy::new(client).await.unwrap();
        let deployment = DeploymentProxy::builder(client).path(DEPLOYMENT);
        let deployment = deployment.build().await.unwrap();
        // Until the first look at the sysroot nothing can be refused; its end is announced.
        while host.reboot_required().await.unwrap() != "unknown" {}
        let answers = [
            host.check(&CheckOptions::default()).await,
            host.download(&DownloadOptions::default()).await,
            host.upgrade(&UpgradeOptions::default()).await,
            host.switch("example.org/os:1", &UpgradeOptions::default())
                .await,
            host.rollback(&RollbackOptions::default()).await,
            host.cancel_rollback(&CancelRollbackOptions::default())
                .await,
            host.apply(&ApplyOptions::default()).await,
            host.discard(&["cache"], &DiscardOptions::default()).await,
            deployment.set_locked(true, &ManageOptions::default()).await,
        ];
        for answer in answers {
            match answer {
                Err(Error::NotBooted(_)) => {}
                // Let in before the first look: then the job itself says so.
                Ok(job) => wait_for_not_booted(client, &job).await,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn wait_for_not_booted(client: &Connection, path: &zbus::ObjectPath<'_>) {
        let job = JobProxy::builder(client)
            .path(path.to_owned())
            .cache_properties(CacheProperties::No);
        let job = job.build().await.unwrap();
        let mut finished = job.receive_finished().await.unwrap();
        if job.state().await.unwrap() == "running" {
            finished.next().await.unwrap();
        }
        assert_eq!(
            job.error().await.unwrap().0,
            "org.osteward1.Error.NotBooted"
        );
    }

    #[tokio::test]
    async fn the_proxies_reach_every_member() {
        let served = served().await;
        read_everything(&served.client).await;
        ask_for_everything(&served.client).await;
        let called = served.called.lock().unwrap().clone();
        let mut unreached = Vec::new();
        for (name, _) in INTERFACES {
            let interface = in_contract(name);
            let methods = interface.methods().map(|method| method.name().to_string());
            let properties = interface
                .properties()
                .map(|property| property.name().to_string());
            let members = methods
                .chain(properties)
                .map(|member| ((*name).to_owned(), member));
            unreached.extend(members.filter(|member| !called.contains(member)));
        }
        assert_eq!(unreached, vec![]);
    }

    #[tokio::test]
    async fn the_proxies_hear_every_signal() {
        let served = served().await;
        let emitter = SignalEmitter::new(&served.server, JOB).unwrap();
        let job = JobProxy::builder(&served.client)
            .path(JOB)
            .build()
            .await
            .unwrap();
        let manager = ManagerProxy::new(&served.client).await.unwrap();
        let (mut progress, mut finished) = (
            job.receive_progress().await.unwrap(),
            job.receive_finished().await.unwrap(),
        );
        let (mut added, mut removed) = (
            manager.receive_job_added().await.unwrap(),
            manager.receive_job_removed().await.unwrap(),
        );
        service::Job::progress(&emitter, HashMap::new())
            .await
            .unwrap();
        service::Job::finished(&emitter, "failed", "name", "text", HashMap::new())
            .await
            .unwrap();
        let emitter = SignalEmitter::new(&served.server, MANAGER_PATH).unwrap();
        let path = || zbus::ObjectPath::try_from(JOB).unwrap();
        service::Manager::job_added(&emitter, path(), "upgrade")
            .await
            .unwrap();
        service::Manager::job_removed(&emitter, path(), "upgrade", "failed", "name")
            .await
            .unwrap();
        assert!(
            progress
                .next()
                .await
                .unwrap()
                .args()
                .unwrap()
                .changed()
                .is_empty()
        );
        let finished = finished.next().await.unwrap();
        let finished = finished.args().unwrap();
        assert_eq!(
            (*finished.state(), *finished.error_name()),
            ("failed", "name")
        );
        assert_eq!(
            *added.next().await.unwrap().args().unwrap().kind(),
            "upgrade"
        );
        assert_eq!(
            *removed.next().await.unwrap().args().unwrap().error_name(),
            "name"
        );
        let signals: usize = INTERFACES
            .iter()
            .map(|(name, _)| in_contract(name).signals().count())
            .sum();
        assert_eq!(signals, 4, "a new signal needs its line in this test");
    }

    #[tokio::test]
    async fn unknown_options_and_bad_values_are_invalid_args() {
        let served = served().await;
        let call = |member: &'static str, key: &'static str, value: zbus::Variant<'static>| {
            let client = served.client.clone();
            async move {
                let body = (HashMap::from([(key, value)]),);
                let interface = Some("org.osteward1.Host");
                let call = client.call_method(None::<&str>, HOST_PATH, interface, member, &body);
                Error::from(call.await.unwrap_err())
            }
        };
        for (member, key, value) in [
            ("Upgrade", "dry-run", zbus::Variant::from(true)),
            ("Upgrade", "digest", zbus::Variant::from(7u32)),
            ("Upgrade", "digest", zbus::Variant::from("sha256:12")),
            ("Upgrade", "apply", zbus::Variant::from("maybe")),
            ("Status", "verbose", zbus::Variant::from(true)),
            (
                "Check",
                "client-label",
                zbus::Variant::from("x".repeat(129)),
            ),
        ] {
            let error = call(member, key, value).await;
            assert!(
                matches!(error, Error::InvalidArgs(_)),
                "{member} {key}: {error:?}"
            );
        }
        let host = HostProxy::new(&served.client).await.unwrap();
        for image in [
            "",
            "fedora",
            "oci:",
            "docker://UPPER/x",
            "example.org/x@sha256:12",
        ] {
            let error = host
                .switch(image, &UpgradeOptions::default())
                .await
                .unwrap_err();
            assert!(matches!(error, Error::InvalidArgs(_)), "{image}: {error:?}");
        }
    }
}
