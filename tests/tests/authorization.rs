//! Who may do what: a real polkitd decides about users who are not root.

#[cfg(test)]
mod authorization {
    use std::collections::HashMap;
    use std::os::fd::OwnedFd;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::{
        CheckOptions, InhibitOptions, ListJobsOptions, NoOptions, UpgradeOptions,
    };
    use osteward_dbus::{Error, HOST_PATH};
    use osteward_tests::bus::{Polkit, add_polkit_rule};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::job::Listener;
    use osteward_tests::logind::Logind;
    use osteward_tests::peer::connect_as;
    use osteward_tests::polkit_agent::{Agent, Asked};
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::{OTHER_UID, UNPRIVILEGED_UID};
    use zbus::{Connection, OwnedObjectPath, Variant};

    /// Cancelling is for the user `daemon` alone. Everything else is allowed whose name is in
    /// the caller's reason; without a reason, the defaults hold.
    const RULES: &str = r#"polkit.addRule(function(action, subject) {
        var prefix = "org.osteward1.";
        if (action.id.indexOf(prefix) != 0)
            return polkit.Result.NOT_HANDLED;
        var name = action.id.substring(prefix.length);
        if (name == "cancel")
            return subject.user == "daemon" ? polkit.Result.YES : polkit.Result.NO;
        var reason = action.lookup("reason");
        if (!reason)
            return polkit.Result.NOT_HANDLED;
        if (reason == "details")
            return action.lookup("kind") == "upgrade" && action.lookup("verified") == "false"
                && action.lookup("image").indexOf("os:latest") > 0
                && action.lookup("digest").indexOf("sha256:") == 0
                ? polkit.Result.YES : polkit.Result.NO;
        return reason.split(" ").indexOf(name) >= 0 ? polkit.Result.YES : polkit.Result.NO;
    });"#;

    fn layer() -> Layer {
        let content = vec![7_u8; 2_000_000];
        let layer = Layer::new().dir("usr").file("usr/filling", content);
        layer.compressed(Compression::Plain)
    }

    /// A host with something to upgrade to, and polkitd with [`RULES`].
    async fn boot() -> Result<(Polkit, Host)> {
        let host = Host::boot()?;
        host.publish(&host.next_image("2", [layer()]))?;
        add_polkit_rule(&host.sandbox, "10-test", RULES)?;
        let polkit = host.bus.start_polkit(&host.sandbox).await?;
        Ok((polkit, host))
    }

    fn because(reason: &str) -> UpgradeOptions {
        UpgradeOptions {
            reason: Some(reason.to_owned()),
            ..Default::default()
        }
    }

    fn name(answer: Result<OwnedObjectPath, Error>) -> Result<String> {
        let error = answer.err().context("it was allowed")?;
        ensure!(error.message().contains(' '), "no sentence: {error:?}");
        Ok(error.name().to_owned())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_polkit_answers_is_what_happens() -> Result<()> {
        let (_polkit, host) = boot().await?;
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let proxy = Host::proxy(&user).await?;
        let mut listener = Listener::new(&user).await?;
        let default = UpgradeOptions::default();
        let denied = "org.freedesktop.DBus.Error.AccessDenied";
        let challenge = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";
        assert_eq!(name(proxy.upgrade(&because("nothing")).await)?, denied);
        assert_eq!(name(proxy.upgrade(&default).await)?, challenge);
        // Nobody is there to type a password.
        assert_eq!(name(proxy.upgrade_interactive(&default).await)?, denied);
        let manager = Host::manager(&user).await?;
        assert_eq!(manager.list_jobs(&ListJobsOptions::default()).await?, []);
        let job = proxy.upgrade(&because("upgrade-unverified")).await?;
        let owner = Host::job(&user, &job).await?.started_by_uid().await?;
        assert_eq!(owner, UNPRIVILEGED_UID);
        listener.end(&job).await?.succeeded()?;
        Ok(())
    }

    #[tokio::test]
    async fn without_polkit_root_works_and_others_are_told_why_not() -> Result<()> {
        let host = Host::boot()?;
        host.publish(&host.next_image("2", [layer()]))?;
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let proxy = Host::proxy(&user).await?;
        for refused in [
            proxy.upgrade(&UpgradeOptions::default()).await,
            proxy.upgrade_interactive(&UpgradeOptions::default()).await,
        ] {
            let error = refused.err().context("it was allowed")?;
            assert!(matches!(error, Error::AccessDenied(_)), "{error:?}");
            assert!(
                error.message().contains("polkit does not answer"),
                "{error:?}"
            );
        }
        host.upgrade().await?.succeeded()?;
        Ok(())
    }

    /// A call of one method, with options.
    struct Call {
        /// What it needs, separated by spaces.
        needs: &'static str,
        method: &'static str,
        options: Vec<(&'static str, Variant<'static>)>,
    }

    impl Call {
        fn new(needs: &'static str, method: &'static str) -> Self {
            let options = Vec::new();
            Self {
                needs,
                method,
                options,
            }
        }

        fn with(mut self, key: &'static str, value: impl Into<Variant<'static>>) -> Self {
            self.options.push((key, value.into()));
            self
        }

        async fn say(&self, connection: &Connection, reason: &str) -> Result<(), Error> {
            let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
            for (key, value) in &self.options {
                options.insert(key, value.try_clone().map_err(Error::Bus)?);
            }
            options.insert("reason", reason.into());
            let (to, path) = (Some("org.osteward1"), HOST_PATH);
            let interface = Some("org.osteward1.Host");
            let reply = match self.method {
                "Switch" => {
                    let body = ("registry.test/os:other", options);
                    connection
                        .call_method(to, path, interface, "Switch", &body)
                        .await
                }
                "ImportArchive" => {
                    let directory = std::fs::File::open("/")
                        .map_err(|error| Error::Bus(zbus::Error::from(error)))?;
                    let body = (zbus::OwnedFd::from(OwnedFd::from(directory)), options);
                    connection
                        .call_method(to, path, interface, "ImportArchive", &body)
                        .await
                }
                "Discard" => {
                    let body = (vec!["cache"], options);
                    connection
                        .call_method(to, path, interface, "Discard", &body)
                        .await
                }
                "SetKernelArguments" => {
                    let none: Vec<&str> = Vec::new();
                    let body = (vec!["quiet"], none.clone(), none, options);
                    connection
                        .call_method(to, path, interface, "SetKernelArguments", &body)
                        .await
                }
                method => {
                    connection
                        .call_method(to, path, interface, method, &(options,))
                        .await
                }
            };
            reply.map(drop).map_err(Error::from)
        }
    }

    fn calls(known: &str) -> Vec<Call> {
        let other = format!("sha256:{}", "0".repeat(64));
        vec![
            Call::new("check", "Check"),
            Call::new("download", "Download"),
            Call::new("download", "Download").with("digest", known.to_owned()),
            Call::new("downgrade", "Download").with("digest", other.clone()),
            Call::new("downgrade", "Download").with("allow-downgrade", true),
            Call::new("upgrade-unverified", "Upgrade"),
            Call::new("upgrade-unverified", "Upgrade").with("digest", known.to_owned()),
            Call::new("upgrade-unverified", "Upgrade").with("allow-downgrade", false),
            Call::new("downgrade", "Upgrade").with("digest", other),
            Call::new("downgrade", "Upgrade").with("allow-downgrade", true),
            Call::new("upgrade-unverified apply", "Upgrade").with("apply", "reboot"),
            Call::new("switch", "Switch"),
            Call::new("switch apply", "Switch").with("apply", "reboot"),
            Call::new("switch", "ImportArchive"),
            Call::new("switch apply", "ImportArchive").with("apply", "reboot"),
            Call::new("rollback", "Rollback"),
            Call::new("rollback apply", "Rollback").with("apply", "reboot"),
            Call::new("rollback", "CancelRollback"),
            Call::new("apply", "Apply"),
            Call::new("apply ignore-inhibit", "Apply").with("ignore-inhibitors", true),
            Call::new("manage", "Discard"),
            Call::new("kargs", "SetKernelArguments"),
            Call::new("check", "Simulate"),
            Call::new("usr-overlay", "UsrOverlay"),
        ]
    }

    /// Without any one of what it needs the call is refused, in the name of that action; with
    /// all of them, and nothing else, it is let in.
    async fn needs_exactly(user: &Connection, call: &Call) -> Result<()> {
        let all: Vec<&str> = call.needs.split(' ').collect();
        for missing in &all {
            let rest: Vec<&str> = all.iter().copied().filter(|it| it != missing).collect();
            let reason = format!("nothing {}", rest.join(" "));
            let refused = call.say(user, &reason).await;
            let text = match &refused {
                Err(Error::AccessDenied(text)) => text,
                other => anyhow::bail!("without {missing}: {other:?}"),
            };
            let id = format!("org.osteward1.{missing} ");
            ensure!(text.contains(&id), "not about {missing}: {text}");
        }
        match call.say(user, call.needs).await {
            Err(error @ (Error::AccessDenied(_) | Error::InteractiveAuthorizationRequired(_))) => {
                anyhow::bail!("although allowed: {error:?}")
            }
            Err(error) if error.name().ends_with(".Failed") => Err(error.into()),
            // What it may do it may still not be able to do.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_call_needs_its_own_actions() -> Result<()> {
        let (_polkit, host) = boot().await?;
        let root = host.connect().await?;
        let mut listener = Listener::new(&root).await?;
        let check = Host::proxy(&root)
            .await?
            .check(&CheckOptions::default())
            .await?;
        let known = listener
            .end(&check)
            .await?
            .succeeded()?
            .value::<String>("digest")?;
        let logind = Logind::start(&host.bus).await?;
        logind.log_in(&[UNPRIVILEGED_UID]);
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        for call in calls(&known) {
            let what = format!("{} {:?}", call.method, call.options);
            needs_exactly(&user, &call).await.context(what)?;
        }
        logind.log_in(&[UNPRIVILEGED_UID, 1000]);
        for method in ["Upgrade", "Rollback"] {
            let needs = match method {
                "Upgrade" => "upgrade-unverified apply apply-multiple-sessions",
                _ => "rollback apply apply-multiple-sessions",
            };
            let call = Call::new(needs, method).with("apply", "reboot");
            needs_exactly(&user, &call).await.context(method)?;
        }
        let call = Call::new("apply apply-multiple-sessions", "Apply");
        needs_exactly(&user, &call).await?;
        // Not to know who is logged in counts as somebody.
        drop(logind);
        host.bus
            .wait_for_name("org.freedesktop.login1", false)
            .await?;
        needs_exactly(&user, &call).await?;
        let call = Call::new("details", "Upgrade").with("digest", known);
        let told = call.say(&user, "details").await;
        assert!(!matches!(told, Err(Error::AccessDenied(_))), "{told:?}");
        let call = Call::new("details", "Check");
        let told = call.say(&user, "details").await;
        assert!(matches!(told, Err(Error::AccessDenied(_))), "{told:?}");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everybody_may_cancel_their_own_jobs_only() -> Result<()> {
        let (_polkit, mut host) = boot().await?;
        let throttle = Relay::before(&mut host)?;
        throttle.allow(600_000);
        let root = host.connect().await?;
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let other = connect_as(&host.bus, OTHER_UID).await?;
        let mut listener = Listener::new(&root).await?;

        let own = Host::proxy(&user)
            .await?
            .upgrade(&because("upgrade-unverified"))
            .await?;
        listener.wait_for_phase(&own, "downloading").await?;
        Host::job(&user, &own).await?.cancel(&NoOptions {}).await?;
        assert_eq!(listener.end(&own).await?.state, "cancelled");

        let roots = Host::proxy(&root)
            .await?
            .upgrade(&UpgradeOptions::default())
            .await?;
        let refused = Host::job(&user, &roots).await?.cancel(&NoOptions {}).await;
        let text = match refused {
            Err(Error::AccessDenied(text)) => text,
            other => anyhow::bail!("{other:?}"),
        };
        assert!(text.contains("org.osteward1.cancel "), "{text}");
        assert_eq!(Host::job(&user, &roots).await?.state().await?, "running");
        Host::job(&other, &roots)
            .await?
            .cancel(&NoOptions {})
            .await?;
        assert_eq!(listener.end(&roots).await?.state, "cancelled");
        let late = Host::job(&root, &roots).await?.cancel(&NoOptions {}).await;
        assert!(matches!(late, Err(Error::TooLate(_))), "{late:?}");
        // Nothing is left of it that would be in the way.
        throttle.resume();
        host.upgrade().await?.succeeded()?;
        host.sandbox.fsck()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_logs_in_before_the_reboot_counts() -> Result<()> {
        let (_polkit, mut host) = boot().await?;
        let throttle = Relay::before(&mut host)?;
        throttle.allow(600_000);
        let logind = Logind::start(&host.bus).await?;
        logind.log_in(&[UNPRIVILEGED_UID]);
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let mut listener = Listener::new(&user).await?;
        let options = UpgradeOptions {
            apply: Some("reboot".into()),
            ..because("upgrade-unverified apply")
        };
        let proxy = Host::proxy(&user).await?;
        let job = proxy.upgrade(&options).await?;
        listener.wait_for_phase(&job, "downloading").await?;
        logind.log_in(&[UNPRIVILEGED_UID, 1000]);
        throttle.resume();
        let ended = listener.end(&job).await?.failed("Inhibited")?;
        ensure!(ended.error_message.contains("logged in"), "{ended:?}");
        assert_eq!(logind.reboots(), 0);
        assert!(host.sandbox.deployments()?.iter().any(|one| one.staged));

        logind.log_in(&[UNPRIVILEGED_UID]);
        let job = proxy.upgrade(&options).await?;
        listener.end(&job).await?.succeeded()?;
        assert_eq!(logind.reboots(), 1);
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn meddling_needs_its_own_actions() -> Result<()> {
        let (_polkit, mut host) = boot().await?;
        let throttle = Relay::before(&mut host)?;
        throttle.allow(600_000);
        let root = host.connect().await?;
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let other = connect_as(&host.bus, OTHER_UID).await?;
        let mut listener = Listener::new(&root).await?;
        let options = because("upgrade-unverified");
        let job = Host::proxy(&user).await?.upgrade(&options).await?;
        listener.wait_for_phase(&job, "downloading").await?;
        let no = NoOptions {};
        // Who may download may wait with it; the own job or not, raising it costs bandwidth.
        let own = Host::job(&user, &job).await?;
        for asked in [
            own.pause(&no).await,
            own.resume(&no).await,
            own.adopt(&no).await,
        ] {
            let needed = matches!(&asked, Err(Error::InteractiveAuthorizationRequired(text))
                if text.contains("org.osteward1.download "));
            assert!(needed, "{asked:?}");
        }
        let foreign = Host::job(&other, &job).await?;
        foreign.pause(&no).await?;
        foreign.resume(&no).await?;
        throttle.resume();
        listener.end(&job).await?.succeeded()?;

        let manager = Host::manager(&user).await?;
        let asked = manager.reload_config().await;
        let needed = matches!(&asked, Err(Error::InteractiveAuthorizationRequired(text))
            if text.contains("org.osteward1.reload "));
        assert!(needed, "{asked:?}");
        let what = |what: &str| InhibitOptions {
            what: Some(what.to_owned()),
        };
        let denied = manager.inhibit("me", "nothing", &what("apply")).await;
        let named = matches!(&denied, Err(Error::AccessDenied(text))
            if text.contains("org.osteward1.inhibit "));
        assert!(named, "{denied:?}");
        manager.inhibit("me", "inhibit", &what("apply")).await?;
        manager.inhibit("me", "nothing", &what("idle")).await?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_leaves_before_the_password_leaves_no_job() -> Result<()> {
        let (_polkit, host) = boot().await?;
        let mut agent = Agent::register(&host.bus, false).await?;
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let asking = Host::proxy(&user).await?;
        let call =
            tokio::spawn(
                async move { asking.upgrade_interactive(&UpgradeOptions::default()).await },
            );
        let asked = agent.hears().await?;
        let Asked::Begin {
            action,
            cookie,
            identity,
        } = asked
        else {
            anyhow::bail!("{asked:?}");
        };
        assert_eq!(action, "org.osteward1.upgrade-unverified", "{identity:?}");
        // The open question keeps nobody else from working.
        let root = host.connect().await?;
        let proxy = Host::proxy(&root).await?;
        let mut listener = Listener::new(&root).await?;
        let check = proxy.check(&CheckOptions::default()).await?;
        listener.end(&check).await?.succeeded()?;
        proxy.status(&NoOptions {}).await?;

        user.close().await?;
        let asked = agent.hears().await?;
        assert!(
            matches!(&asked, Asked::Cancel { cookie: it } if *it == cookie),
            "{asked:?}"
        );
        let manager = Host::manager(&root).await?;
        assert_eq!(
            manager.list_jobs(&ListJobsOptions::default()).await?,
            [check]
        );
        call.abort();
        host.upgrade().await?.succeeded()?;
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_gives_the_password_gets_the_job() -> Result<()> {
        let (_polkit, host) = boot().await?;
        let mut agent = Agent::register(&host.bus, true).await?;
        let user = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        let mut listener = Listener::new(&user).await?;
        let proxy = Host::proxy(&user).await?;
        let job = proxy
            .upgrade_interactive(&UpgradeOptions::default())
            .await?;
        assert!(matches!(agent.hears().await?, Asked::Begin { .. }));
        listener.end(&job).await?.succeeded()?;
        Ok(())
    }
}
