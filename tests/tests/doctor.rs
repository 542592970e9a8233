//! `osteward doctor` on hosts where one thing after the other is broken.

#[cfg(test)]
mod doctor {
    use std::fs;
    use std::sync::{Arc, Mutex};

    use anyhow::{Context, Result, ensure};
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::logind::Logind;
    use osteward_tests::sandbox::UNPRIVILEGED_UID;
    use serde_json::Value;
    use zbus::{Connection, OwnedObjectPath};

    /// What the doctor said: the exit code, and of each finding its level.
    #[derive(Debug)]
    struct Said {
        code: i32,
        findings: Vec<Value>,
    }

    impl Said {
        fn levels(&self, id: &str) -> Vec<&str> {
            let findings = self.findings.iter().filter(|one| one["id"] == id);
            findings.filter_map(|one| one["level"].as_str()).collect()
        }

        /// That `id` has this level, that it is the only failure if it is one, and what to do.
        fn expect(&self, id: &str, level: &str) -> Result<()> {
            ensure!(
                self.levels(id).contains(&level),
                "{id} is not {level}: {self:#?}"
            );
            ensure!(self.code == i32::from(level == "fail"), "{id}: {self:#?}");
            let others = self.findings.iter();
            let others = others.filter(|one| one["level"] == "fail" && one["id"] != id);
            ensure!(others.count() == 0, "more than {id} fails: {self:#?}");
            let next = |one: &&Value| one["level"] != "ok" && one["next"].is_null();
            ensure!(
                !self.findings.iter().any(|one| next(&one)),
                "no advice: {self:#?}"
            );
            Ok(())
        }
    }

    fn examine(host: &Host) -> Result<Said> {
        let user = Some(UNPRIVILEGED_UID);
        let answer = client::ask_as(&host.sandbox, &host.bus, user, &["doctor", "--json"])?;
        let answer = answer.expect(&[0, 1])?;
        let document = answer.json()?;
        assert_eq!(document["healthy"], answer.code == 0, "{document:#}");
        let findings = document["findings"].as_array().context("findings")?;
        Ok(Said {
            code: answer.code,
            findings: findings.clone(),
        })
    }

    #[tokio::test]
    async fn files_of_the_host_are_broken_one_by_one() -> Result<()> {
        let host = Host::boot()?;
        examine(&host)?.expect("booted", "ok")?;
        examine(&host)?.expect("sysroot", "ok")?;
        examine(&host)?.expect("prepare-root", "warn")?;
        let etc = |path: &str| host.sandbox.inside(path);
        for (id, path, wrong) in [
            ("policy", "/etc/containers/policy.json", "{"),
            ("credentials", "/etc/ostree/auth.json", "]"),
        ] {
            let file = etc(path)?;
            fs::create_dir_all(file.parent().context("a directory")?)?;
            fs::write(&file, wrong)?;
            examine(&host)?.expect(id, "fail")?;
            fs::remove_file(&file)?;
        }
        host.sandbox
            .run(["mount", "-t", "tmpfs", "-o", "ro", "none", "/sysroot"])?;
        examine(&host)?.expect("sysroot", "fail")?;
        host.sandbox.run(["umount", "/sysroot"])?;
        host.sandbox.run(["rm", "/run/ostree-booted"])?;
        examine(&host)?.expect("booted", "fail")
    }

    #[tokio::test]
    async fn what_the_daemon_met_is_told() -> Result<()> {
        let mut host = Host::boot()?;
        examine(&host)?.expect("configuration", "ok")?;
        host.configure("[registry]\ninsecur = []\n")?;
        examine(&host)?.expect("configuration", "fail")?;
        host.configure("[registry]\nretry_time = \"0s\"\n")?;
        let stray = host.sandbox.inside("/etc/osteward/config.d/README")?;
        host.while_stopped(|_| fs::write(&stray, "x").context("writing a stray file"))?;
        examine(&host)?.expect("configuration", "warn")?;
        examine(&host)?.expect("registry", "ok")?;
        host.track("127.0.0.1:1/os:latest")?;
        client::ask(&host.sandbox, &host.bus, &["check"])?.expect(&[1])?;
        examine(&host)?.expect("registry", "fail")?;
        host.kill_daemon()?;
        examine(&host)?.expect("daemon", "fail")
    }

    type Unit = (
        String,
        String,
        String,
        String,
        String,
        String,
        OwnedObjectPath,
        u32,
        String,
        OwnedObjectPath,
    );

    /// The part of systemd that says which units there are.
    struct Units {
        active: Arc<Mutex<Vec<String>>>,
        finalizer: Arc<Mutex<Option<&'static str>>>,
    }

    #[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
    impl Units {
        fn list_units_by_patterns(&self, _states: Vec<String>, patterns: Vec<String>) -> Vec<Unit> {
            let active = self.active.lock().unwrap();
            let asked = active.iter().filter(|name| patterns.contains(name));
            let none = OwnedObjectPath::default;
            let text = String::new;
            asked
                .map(|name| {
                    let name = name.clone();
                    (
                        name,
                        text(),
                        "loaded".into(),
                        "active".into(),
                        text(),
                        text(),
                        none(),
                        0,
                        text(),
                        none(),
                    )
                })
                .collect()
        }

        fn list_unit_files_by_patterns(
            &self,
            _states: Vec<String>,
            patterns: Vec<String>,
        ) -> Vec<(String, String)> {
            let name = "ostree-finalize-staged.service";
            let state = *self.finalizer.lock().unwrap();
            let asked = patterns.iter().any(|pattern| pattern == name);
            let file = format!("/usr/lib/systemd/system/{name}");
            let found = state.filter(|_| asked);
            found
                .map(|state| (file, state.to_owned()))
                .into_iter()
                .collect()
        }
    }

    async fn systemd(host: &Host, units: Units) -> Result<Connection> {
        let connection = host.bus.connect().await?;
        connection
            .object_server()
            .at("/org/freedesktop/systemd1", units)
            .await?;
        connection.request_name("org.freedesktop.systemd1").await?;
        Ok(connection)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn neighbours_that_are_missing_or_compete_are_told() -> Result<()> {
        let host = Host::boot()?;
        examine(&host)?.expect("polkit", "warn")?;
        examine(&host)?.expect("logind", "warn")?;
        examine(&host)?.expect("units", "warn")?;
        let _logind = Logind::start(&host.bus).await?;
        let _polkit = host.bus.start_polkit(&host.sandbox).await?;
        let active = Arc::new(Mutex::new(Vec::new()));
        let finalizer = Arc::new(Mutex::new(Some("static")));
        let units = Units {
            active: Arc::clone(&active),
            finalizer: Arc::clone(&finalizer),
        };
        let _systemd = systemd(&host, units).await?;
        let blocking = |host: &Host| tokio::task::block_in_place(|| examine(host));
        for id in ["polkit", "logind", "finalizer", "competing-updater"] {
            blocking(&host)?.expect(id, "ok")?;
        }
        active
            .lock()
            .unwrap()
            .push("bootc-fetch-apply-updates.timer".into());
        blocking(&host)?.expect("competing-updater", "warn")?;
        for state in [Some("masked"), None] {
            *finalizer.lock().unwrap() = state;
            blocking(&host)?.expect("finalizer", "fail")?;
        }
        Ok(())
    }
}
