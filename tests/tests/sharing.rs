//! One job and many who look on: what everybody is told, in which order, and who must not wait.

#[cfg(test)]
mod sharing {
    use std::collections::HashMap;
    use std::time::Instant;

    use anyhow::{Context, Result};
    use futures_util::future::{join_all, try_join_all};
    use osteward_dbus::options::{
        CheckOptions, DiscardOptions, ListJobsOptions, NoOptions, RollbackOptions, UpgradeOptions,
    };
    use osteward_dbus::types::Dict;
    use osteward_dbus::{Error, HOST_PATH, MANAGER_PATH, ROOT_PATH};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::job::Listener;
    use osteward_tests::peer::connect_as;
    use osteward_tests::relay::Relay;
    use osteward_tests::sandbox::{OTHER_UID, UNPRIVILEGED_UID};
    use osteward_tests::witness::{JOB, Witness, all, get, is, word};
    use rustix::fs::{FlockOperation, fcntl_lock};
    use zbus::fdo::ObjectManagerProxy;
    use zbus::{Connection, Message, OwnedObjectPath};

    /// More than the manifests need, and less than the first layer of [`plain`].
    const A_BIT_OF_A_LAYER: u64 = 600_000;

    async fn upgrade(connection: &Connection) -> Result<OwnedObjectPath, Error> {
        let host = osteward_dbus::HostProxy::new(connection)
            .await
            .map_err(Error::Bus)?;
        host.upgrade(&UpgradeOptions::default()).await
    }

    /// An uncompressed layer of about 1.5 MB.
    fn plain(seed: u8) -> Layer {
        let mut layer = Layer::new().dir("usr").compressed(Compression::Plain);
        for number in 0..30_u8 {
            let mut content = vec![seed; 50_000];
            content[0] = number;
            layer = layer.file(&format!("usr/{seed}-{number}"), content);
        }
        layer
    }

    fn publish(host: &Host, version: &str) -> Result<()> {
        host.publish(&host.next_image(version, (0..4).map(plain)))
            .map(drop)
    }

    /// What a client reads that comes while the job is downloading.
    async fn join(late: &Witness, job: &OwnedObjectPath) -> Result<Dict> {
        let objects = ObjectManagerProxy::new(&late.connection, "org.osteward1", ROOT_PATH)
            .await?
            .get_managed_objects()
            .await?;
        for interface in ["Manager", "Host", "Deployment", "Update", "Job"] {
            let name = format!("org.osteward1.{interface}");
            let having = objects
                .values()
                .filter(|object| object.keys().any(|it| it.as_str() == name));
            assert_eq!(having.count(), 1, "{interface}: {objects:?}");
        }
        let joined = all(&late.connection, job, JOB).await?;
        assert_eq!(word(&joined, "State")?, "running");
        assert_eq!(word(&joined, "Phase")?, "downloading");
        Ok(joined)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_observers_see_the_same_job_whoever_started_it() -> Result<()> {
        let mut host = Host::boot()?;
        publish(&host, "2")?;
        let mut throttle = Relay::before(&mut host)?;
        throttle.allow(A_BIT_OF_A_LAYER);
        let mut early = Witness::new(host.connect().await?).await?;
        let mut others = Vec::new();
        for uid in [UNPRIVILEGED_UID, OTHER_UID] {
            others.push(Witness::new(connect_as(&host.bus, uid).await?).await?);
        }
        let initiator = host.connect().await?;
        let begun = Instant::now();
        let job = upgrade(&initiator).await?;
        initiator.close().await?;

        let known = early.wait_for_bytes(&job).await?;
        // Nothing more comes through, so whoever joins now is late and yet in time.
        let mut late = Witness::new(connect_as(&host.bus, OTHER_UID).await?).await?;
        let joined = join(&late, &job).await?;
        // Slow enough for many updates.
        throttle.pace(2 << 20);

        let first = early.follow(&job, known);
        let third = late.follow(&job, joined);
        let seconds = join_all(
            others
                .iter_mut()
                .map(|witness| witness.follow(&job, Dict::new())),
        );
        let (first, third, seconds) = tokio::join!(first, third, seconds);
        let elapsed = begun.elapsed().as_secs_f64();
        let stories = seconds
            .into_iter()
            .chain([third, first])
            .collect::<Result<Vec<_>>>();
        let mut stories = stories?;
        let first = stories.pop().context("no story")?;
        assert_eq!(first.finished.0, "succeeded", "{first:?}");
        assert_eq!(word(&first.properties, "State")?, "succeeded");
        assert_eq!(first.properties.get("Fraction"), Some(&1.0.into()));
        for story in &stories {
            assert_eq!(story.properties, first.properties);
            assert_eq!(story.finished, first.finished);
            let most = 5.0 * elapsed + 2.0;
            assert!(
                story.progress_signals as f64 <= most,
                "{story:?} in {elapsed} s"
            );
            assert!(story.progress_signals >= 1);
        }
        // It can still be read by somebody who heard of nothing.
        let afterwards = connect_as(&host.bus, UNPRIVILEGED_UID).await?;
        assert_eq!(all(&afterwards, &job, JOB).await?, first.properties);
        let manager = Host::manager(&afterwards).await?;
        assert_eq!(manager.list_jobs(&ListJobsOptions::default()).await?, [job]);
        Ok(())
    }

    /// Something to ask for: an object, its interface, and one property or all of them.
    type Question = (String, &'static str, Option<&'static str>);

    async fn readable(connection: &Connection, job: &OwnedObjectPath) -> Result<Vec<Question>> {
        let host = "org.osteward1.Host";
        let told = all(connection, HOST_PATH, host).await?;
        let path = |name: &str| -> Result<String> {
            let value = told.get(name).context("no such property")?.try_clone()?;
            Ok(OwnedObjectPath::try_from(value)?.to_string())
        };
        Ok(vec![
            (HOST_PATH.into(), host, None),
            (HOST_PATH.into(), host, Some("UpdateState")),
            (HOST_PATH.into(), host, Some("Status()")),
            (MANAGER_PATH.into(), "org.osteward1.Manager", None),
            (path("BootedDeployment")?, "org.osteward1.Deployment", None),
            (path("Update")?, "org.osteward1.Update", None),
            (job.to_string(), JOB, None),
            (job.to_string(), JOB, Some("BytesDone")),
            (job.to_string(), JOB, Some("ActiveLayers")),
        ])
    }

    async fn read(connection: &Connection, question: &Question) -> Result<()> {
        let (path, interface, name) = question;
        match name {
            None => all(connection, path, interface).await.map(drop),
            Some("Status()") => {
                let host = Host::proxy(connection).await?;
                Ok(host.status(&NoOptions {}).await.map(drop)?)
            }
            Some(name) => get(connection, path, (interface, name)).await.map(drop),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reads_are_answered_during_an_upgrade_and_a_foreign_lock() -> Result<()> {
        let mut host = Host::boot()?;
        publish(&host, "2")?;
        let throttle = Relay::before(&mut host)?;
        throttle.allow(A_BIT_OF_A_LAYER);
        let root = host.connect().await?;
        let mut witness = Witness::new(root.clone()).await?;
        let job = upgrade(&root).await?;
        let known = witness.wait_for_bytes(&job).await?;
        // As libostree itself locks: not flock(2).
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(host.sandbox.sysroot().join("ostree/lock"))?;
        fcntl_lock(&lock, FlockOperation::LockExclusive)?;
        let readable = readable(&root, &job).await?;
        let mut readers = Vec::new();
        for uid in [0, 0, UNPRIVILEGED_UID, OTHER_UID] {
            readers.push(connect_as(&host.bus, uid).await?);
        }
        let reads = (0..200).map(|number| {
            let reader = &readers[number % readers.len()];
            read(reader, &readable[number % readable.len()])
        });
        try_join_all(reads).await?;
        // The job was under way all the time: it cannot go on.
        assert_eq!(word(&all(&root, &job, JOB).await?, "State")?, "running");
        fcntl_lock(&lock, FlockOperation::Unlock)?;
        throttle.resume();
        let ended = witness.follow(&job, known).await?;
        assert_eq!(ended.finished.0, "succeeded", "{ended:?}");
        Ok(())
    }

    async fn active_job(connection: &Connection) -> Result<OwnedObjectPath> {
        let property = ("org.osteward1.Manager", "ActiveJob");
        let active = get(connection, MANAGER_PATH, property).await?;
        Ok(OwnedObjectPath::try_from(active)?)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_job_writes_and_others_join_it_or_are_refused() -> Result<()> {
        let mut host = Host::boot()?;
        publish(&host, "2")?;
        let throttle = Relay::before(&mut host)?;
        throttle.allow(A_BIT_OF_A_LAYER);
        let connection = host.connect().await?;
        let mut witness = Witness::new(connection.clone()).await?;
        let job = upgrade(&connection).await?;
        let known = witness.wait_for_bytes(&job).await?;

        let other = host.connect().await?;
        assert_eq!(upgrade(&other).await?, job, "the same call joins it");
        let proxy = Host::proxy(&other).await?;
        let different = UpgradeOptions {
            allow_downgrade: Some(true),
            ..Default::default()
        };
        let image = "oci:/run/share/oci:latest";
        let refusals = [
            proxy.upgrade(&different).await,
            proxy.switch(image, &UpgradeOptions::default()).await,
            proxy.rollback(&RollbackOptions::default()).await,
            proxy.cancel_rollback(&Default::default()).await,
            proxy.discard(&["cache"], &DiscardOptions::default()).await,
        ];
        for refused in refusals {
            let named = matches!(&refused, Err(Error::Busy(text)) if text.contains(job.as_str()));
            assert!(named, "{refused:?}");
        }
        assert_eq!(active_job(&other).await?, job);
        throttle.resume();
        let ended = witness.follow(&job, known).await?;
        assert_eq!(ended.finished.0, "succeeded", "{ended:?}");
        assert_eq!(active_job(&other).await?.as_str(), "/");
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn checks_run_beside_an_upgrade_and_are_shared() -> Result<()> {
        let mut host = Host::boot()?;
        publish(&host, "2")?;
        let throttle = Relay::before(&mut host)?;
        throttle.allow(A_BIT_OF_A_LAYER);
        let connection = host.connect().await?;
        let mut witness = Witness::new(connection.clone()).await?;
        let job = upgrade(&connection).await?;
        let known = witness.wait_for_bytes(&job).await?;

        let other = host.connect().await?;
        let options = CheckOptions::default();
        let proxy = Host::proxy(&connection).await?;
        let check = proxy.check(&options).await?;
        let again = Host::proxy(&other).await?.check(&options).await?;
        assert_eq!(check, again);
        assert_ne!(check, job);
        for path in [&check, &job] {
            assert_eq!(word(&all(&other, path, JOB).await?, "State")?, "running");
        }
        let mut listener = Listener::new(&other).await?;
        throttle.resume();
        listener.end(&check).await?.succeeded()?;
        let ended = witness.follow(&job, known).await?;
        assert_eq!(ended.finished.0, "succeeded", "{ended:?}");
        assert_ne!(proxy.check(&options).await?, check);
        Ok(())
    }

    /// Little to fetch and much to write; and then all directories are to be merged.
    fn airy(seed: u8) -> Layer {
        let mut layer = Layer::new().dir("usr");
        for number in 0..3000_u32 {
            let directory = format!("usr/d{number}");
            let mut content = vec![seed; 4000];
            content[..4].copy_from_slice(&number.to_le_bytes());
            layer = layer
                .dir(&directory)
                .file(&format!("{directory}/{seed}"), content);
        }
        layer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_phase_of_a_large_image_is_seen() -> Result<()> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", (0..3).map(airy)))?;
        let throttle = Relay::before(&mut host)?;
        throttle.hold();
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = upgrade(&connection).await?;
        listener.wait_for_phase(&job, "resolving").await?;
        throttle.allow(20_000);
        listener.wait_for_phase(&job, "downloading").await?;
        throttle.resume();
        let ended = listener.end(&job).await?.succeeded()?;
        let seen: Vec<&str> = ended.phases.iter().map(String::as_str).collect();
        for phase in ["importing", "merging", "staging"] {
            assert!(seen.contains(&phase), "{phase} was not seen: {seen:?}");
        }
        Ok(())
    }

    /// The signals in short: member, and the path they are about.
    fn told(messages: &[Message]) -> Result<Vec<(String, String)>> {
        let mut told = Vec::new();
        for message in messages {
            let header = message.header();
            let member = header.member().context("no member")?.to_string();
            let path = match member.as_str() {
                "InterfacesAdded" => {
                    let (path, _): (OwnedObjectPath, HashMap<String, Dict>) =
                        message.body().deserialize()?;
                    path.to_string()
                }
                "InterfacesRemoved" => {
                    let (path, _): (OwnedObjectPath, Vec<String>) = message.body().deserialize()?;
                    path.to_string()
                }
                "JobAdded" => {
                    let (path, _): (OwnedObjectPath, String) = message.body().deserialize()?;
                    path.to_string()
                }
                _ => header.path().context("no path")?.to_string(),
            };
            told.push((member, path));
        }
        Ok(told)
    }

    /// All signals until the job has finished.
    async fn story(witness: &mut Witness, job: &OwnedObjectPath) -> Result<Vec<(String, String)>> {
        let mut messages = Vec::new();
        loop {
            let message = witness.next().await?;
            let over = is(&message, job, "Finished");
            messages.push(message);
            if over {
                return told(&messages);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn objects_come_and_go_in_order() -> Result<()> {
        let host = Host::boot()?;
        host.publish(&host.next_image("2", [plain(1)]))?;
        let connection = host.connect().await?;
        let mut witness = Witness::new(connection.clone()).await?;
        let job = upgrade(&connection).await?;
        let heard = story(&mut witness, &job).await?;
        let at = |member: &str, path: &str| {
            let found = heard
                .iter()
                .position(|(m, p)| m == member && p.starts_with(path));
            found.with_context(|| format!("no {member} of {path} in {heard:#?}"))
        };
        let added = at("InterfacesAdded", &job)?;
        assert!(added < at("JobAdded", &job)?);
        at("InterfacesAdded", "/org/osteward1/update/")?;
        let deployed = at("InterfacesAdded", "/org/osteward1/deployment/")?;
        let last = heard
            .iter()
            .rposition(|(m, p)| m == "PropertiesChanged" && p == HOST_PATH);
        let last = last.context("the host did not change")?;
        assert!(
            deployed < last && last < at("Finished", &job)?,
            "{heard:#?}"
        );
        let now = all(&connection, HOST_PATH, "org.osteward1.Host").await?;
        assert_eq!(word(&now, "UpdateState")?, "staged");
        let staged = now
            .get("StagedDeployment")
            .context("no property")?
            .try_clone()?;
        let staged = OwnedObjectPath::try_from(staged)?;
        // Nothing about the host is told late.
        let late = told(&witness.rest())?;
        assert!(!late.iter().any(|(_, path)| path == HOST_PATH), "{late:#?}");
        objects_go(&host, &mut witness, &staged).await
    }

    async fn objects_go(host: &Host, witness: &mut Witness, staged: &str) -> Result<()> {
        let proxy = Host::proxy(&witness.connection).await?;
        let discard = proxy
            .discard(&["staged"], &DiscardOptions::default())
            .await?;
        let heard = story(witness, &discard).await?;
        let gone = ("InterfacesRemoved".to_owned(), staged.to_string());
        assert!(heard.contains(&gone), "{heard:#?}");

        host.publish(&host.next_image("3", [plain(2)]))?;
        let check = proxy.check(&CheckOptions::default()).await?;
        let heard = story(witness, &check).await?;
        for member in ["InterfacesAdded", "InterfacesRemoved"] {
            let update = |(m, path): &(String, String)| {
                m == member && path.starts_with("/org/osteward1/update/")
            };
            assert_eq!(
                heard.iter().filter(|it| update(it)).count(),
                1,
                "{member}: {heard:#?}"
            );
        }
        Ok(())
    }
}
