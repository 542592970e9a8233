//! The contract from both sides: what the daemon serves equals the XML, and the proxies
//! reach all of it. Over a socket pair, without a bus.

#[cfg(test)]
mod contract {
    mod served;

    use std::collections::{BTreeSet, HashMap};
    use std::os::fd::AsFd as _;

    use futures_util::StreamExt;
    use osteward_dbus::options::*;
    use osteward_dbus::types::{InhibitorInfo, from_dict};
    use osteward_dbus::{
        DeploymentProxy, Error, HOST_PATH, HostProxy, INTERFACES, JobProxy, MANAGER_PATH,
        ManagerProxy, UpdateProxy,
    };
    use ostewardd::service;
    use zbus::Connection;
    use zbus::object_server::SignalEmitter;
    use zbus::proxy::CacheProperties;
    use zbus_xml::{ArgDirection, Interface, Node};

    use self::served::{DEPLOYMENT, JOB, UPDATE, served};

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
        read!(manager, version api_version features busy active_job inhibitors config_warnings);
        let all = ListJobsOptions::default();
        assert_eq!(manager.list_jobs(&all).await.unwrap(), vec![]);
        assert_eq!(manager.get_history(0, &NoOptions {}).await.unwrap(), vec![]);
        manager.reload_config().await.unwrap();
        let host = HostProxy::builder(client)
            .cache_properties(no)
            .build()
            .await
            .unwrap();
        read!(host, booted_deployment staged_deployment default_deployment rollback_deployment
        rollback_queued deployments stateroot os_name os_version boot_digest tracking update_state
        update last_check last_finalize reboot_required kernel_arguments);
        host.status(&NoOptions {}).await.unwrap();
        let deployment = DeploymentProxy::builder(client).path(DEPLOYMENT);
        let deployment = deployment.cache_properties(no).build().await.unwrap();
        read!(deployment, id checksum serial stateroot state booted staged pinned locked image digest
        version timestamp labels layers size_bytes kernel_version kernel_arguments
        soft_reboot_capable unlocked
        warnings);
        let update = UpdateProxy::builder(client).path(UPDATE);
        let update = update.cache_properties(no).build().await.unwrap();
        read!(update, digest index_digest image version architecture timestamp labels annotations state
        direction download_size total_size layers_total layers_missing kernel_version diff_level);
        let (diff, total) = update.get_package_diff(0, 0, &NoOptions {}).await.unwrap();
        assert_eq!((diff.len(), total), (0, 0));
        let job = JobProxy::builder(client)
            .path(JOB)
            .cache_properties(no)
            .build()
            .await
            .unwrap();
        read!(job, kind state phase phase_index phase_count fraction bytes_done bytes_total bytes_cached
        layers_done layers_total active_layers rate eta message cancellable paused background blocked_by
        error result target created_at started_at finished_at started_by_uid started_by_label sequence);
        // The engine does not know this job: the object is the test's own.
        let no = NoOptions {};
        let answers = [
            job.cancel(&no).await,
            job.pause(&no).await,
            job.resume(&no).await,
            job.adopt(&no).await,
            job.release().await,
            job.get_log(&no).await.map(drop),
            job.stream_events(&no).await.map(drop),
        ];
        for answer in answers {
            assert!(matches!(answer, Err(Error::UnknownObject(_))), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn an_inhibitor_is_listed_until_its_descriptor_is_closed() {
        let served = served().await;
        let manager = ManagerProxy::builder(&served.client)
            .cache_properties(CacheProperties::No)
            .build()
            .await
            .unwrap();
        let apply = InhibitOptions {
            what: Some("apply".into()),
        };
        let held = manager.inhibit("me", "because", &apply).await.unwrap();
        let listed = manager.inhibitors().await.unwrap();
        let one: InhibitorInfo = from_dict(&listed[0]).unwrap();
        let said = (one.what.as_str(), one.who.as_str(), one.why.as_str());
        assert_eq!(said, ("apply", "me", "because"));
        assert!(listed.len() == 1 && one.since > 0);
        // Only a proxy that keeps properties follows them.
        let follower = ManagerProxy::new(&served.client).await.unwrap();
        let mut changes = follower.receive_inhibitors_changed().await;
        drop(held);
        // The first one told may be the holding.
        while !manager.inhibitors().await.unwrap().is_empty() {
            changes.next().await.unwrap();
        }
        let refused = manager.inhibit("", "", &apply).await;
        assert!(matches!(refused, Err(Error::InvalidArgs(_))), "{refused:?}");
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
            host.import_archive(
                std::fs::File::open("/").unwrap().as_fd().into(),
                &ImportArchiveOptions::default(),
            )
            .await,
            host.rollback(&RollbackOptions::default()).await,
            host.cancel_rollback(&CancelRollbackOptions::default())
                .await,
            host.apply(&ApplyOptions::default()).await,
            host.discard(&["cache"], &DiscardOptions::default()).await,
            host.set_kernel_arguments(
                &["quiet".to_owned()],
                &[],
                &[],
                &SetKernelArgumentsOptions::default(),
            )
            .await,
            host.simulate(&SimulateOptions::default()).await,
            host.usr_overlay(&UsrOverlayOptions::default()).await,
            deployment.set_locked(true, &ManageOptions::default()).await,
            deployment.set_pinned(true, &ManageOptions::default()).await,
            deployment.remove(&ManageOptions::default()).await,
        ];
        let changes = host.diff_etc(&DiffEtcOptions::default()).await;
        assert!(matches!(changes, Err(Error::NotBooted(_))), "{changes:?}");
        let other = zbus::ObjectPath::try_from(DEPLOYMENT).unwrap();
        let packages = deployment.diff_packages(&other, &NoOptions {}).await;
        assert!(matches!(packages, Err(Error::NotBooted(_))), "{packages:?}");
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
        let manager = ManagerProxy::new(&served.client).await.unwrap();
        let idle = InhibitOptions::default();
        drop(manager.inhibit("me", "because", &idle).await.unwrap());
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
            ("Apply", "mode", zbus::Variant::from("none")),
            ("DiffEtc", "deployment", zbus::Variant::from("/")),
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
        for wrong in ["", "a b", "ostree=/x", "a\nb", "=1"] {
            let (wrong, no) = ([wrong.to_owned()], []);
            let options = SetKernelArgumentsOptions::default();
            for (append, replace, delete) in [
                (&wrong[..], &no[..], &no[..]),
                (&no, &wrong, &no),
                (&no, &no, &wrong),
            ] {
                let answer = host.set_kernel_arguments(append, replace, delete, &options);
                let error = answer.await.unwrap_err();
                assert!(
                    matches!(error, Error::InvalidArgs(_)),
                    "{wrong:?}: {error:?}"
                );
            }
        }
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
