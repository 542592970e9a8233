//! Hosts from before container images: those that follow a branch of an ostree remote, and those with packages
//! that rpm-ostree layered.

#[cfg(test)]
mod legacy_hosts {
    use std::fs;

    use anyhow::{Context, Result};
    use osteward_dbus::Error;
    use osteward_dbus::options::{
        CheckOptions, DiscardOptions, DownloadOptions, RollbackOptions, UpgradeOptions,
    };
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::Layer;
    use osteward_tests::job::{Ended, Listener};
    use zbus::OwnedObjectPath;

    const REFSPEC: &str = "elder:os/stable";

    /// A host that follows [`REFSPEC`], with no trace of a container image.
    fn elder() -> Result<Host> {
        let mut host = Host::boot()?;
        let booted = host.sandbox.booted()?.checksum;
        let tree = format!("--tree=ref={booted}");
        let words = [
            "commit",
            "--no-bindings",
            "--orphan",
            "--add-metadata-string=version=0.9",
        ];
        let commit = host
            .sandbox
            .ostree(words.into_iter().chain([tree.as_str()]))?;
        let create = format!("--create={REFSPEC}");
        host.sandbox.ostree(["refs", &create, commit.trim()])?;
        let url = "http://127.0.0.1:1/";
        host.sandbox
            .ostree(["remote", "add", "--no-gpg-verify", "elder", url])?;
        host.sandbox
            .run(["ostree", "admin", "deploy", "--os=default", REFSPEC])?;
        host.reboot()?;
        host.sandbox.run(["ostree", "admin", "undeploy", "1"])?;
        for name in host.sandbox.refs("ostree/container/")? {
            host.sandbox.ostree(["refs", "--delete", &name])?;
        }
        host.sandbox.ostree(["prune", "--refs-only"])?;
        host.reboot()?;
        Ok(host)
    }

    fn motd(text: &str) -> Layer {
        Layer::new().dir("etc").file("etc/motd", text)
    }

    /// A caller, as root.
    struct Caller {
        host: osteward_dbus::proxies::HostProxy<'static>,
        listener: Listener,
    }

    impl Caller {
        async fn new(host: &Host) -> Result<Self> {
            let connection = host.connect().await?;
            Ok(Self {
                host: Host::proxy(&connection).await?,
                listener: Listener::new(&connection).await?,
            })
        }

        async fn end(&mut self, called: Result<OwnedObjectPath, Error>) -> Result<Ended> {
            self.listener.end(&called?).await
        }
    }

    #[tokio::test]
    async fn a_branch_is_shown_and_can_be_left_and_gone_back_to() -> Result<()> {
        let mut host = elder()?;
        let words = ["status", "--json"];
        let status = client::ask(&host.sandbox, &host.bus, &words)?
            .expect(&[0])?
            .json()?;
        assert_eq!(status["tracking"]["image"], REFSPEC, "{status:#}");
        assert_eq!(status["tracking"]["transport"], "ostree", "{status:#}");
        assert_eq!(status["deployments"][0]["image"], REFSPEC, "{status:#}");
        assert_eq!(status["deployments"][0]["version"], "0.9", "{status:#}");
        assert_eq!(status["boot-digest"], "", "{status:#}");

        let mut caller = Caller::new(&host).await?;
        let called = caller.host.upgrade(&UpgradeOptions::default()).await;
        let upgrade = caller.end(called).await?;
        let called = caller.host.check(&CheckOptions::default()).await;
        let check = caller.end(called).await?;
        for ended in [upgrade, check] {
            for word in [REFSPEC, "osteward switch IMAGE"] {
                assert!(ended.error_message.contains(word), "{ended:?}");
            }
            ended.failed("NotSupported")?;
        }

        let image = host.publish(&host.next_image("2", [motd("2\n")]))?;
        let name = host.registry.name("os:latest");
        let called = caller.host.switch(&name, &UpgradeOptions::default()).await;
        let ended = caller.end(called).await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        let before = host.sandbox.booted()?.checksum;
        drop(caller);
        host.reboot()?;
        assert_eq!(host.sandbox.run(["cat", "/etc/motd"])?, "2\n");
        let deployments = host.sandbox.deployments()?;
        assert!(
            deployments
                .iter()
                .any(|d| d.rollback && d.checksum == before),
            "{deployments:?}"
        );

        let mut caller = Caller::new(&host).await?;
        let what: &[&str] = &["cache", "unreferenced"];
        let called = caller.host.discard(what, &DiscardOptions::default()).await;
        caller.end(called).await?.succeeded()?;
        assert_eq!(host.sandbox.ostree(["rev-parse", REFSPEC])?.trim(), before);
        let called = caller.host.rollback(&RollbackOptions::default()).await;
        caller.end(called).await?.succeeded()?;
        drop(caller);
        host.reboot()?;
        assert_eq!(host.sandbox.booted()?.checksum, before);
        let status = client::ask(&host.sandbox, &host.bus, &words)?
            .expect(&[0])?
            .json()?;
        assert_eq!(status["tracking"]["image"], REFSPEC, "{status:#}");
        // What ostree itself needs to go on with the branch is all there.
        host.sandbox
            .run(["ostree", "admin", "deploy", "--os=default", REFSPEC])?;
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn layered_packages_are_shown_and_not_thrown_away() -> Result<()> {
        let mut host = Host::boot()?;
        let booted = host.sandbox.booted()?;
        let path = format!(
            "ostree/deploy/default/deploy/{}.{}.origin",
            booted.checksum, booted.serial
        );
        let path = host.sandbox.sysroot().join(path);
        let origin = fs::read_to_string(&path)?;
        fs::write(&path, format!("{origin}\n[packages]\nrequested=htop;\n"))?;
        host.reboot()?;
        host.publish(&host.next_image("2", [motd("2\n")]))?;

        let words = ["status", "--json"];
        let status = client::ask(&host.sandbox, &host.bus, &words)?
            .expect(&[0])?
            .json()?;
        let warning = status["deployments"][0]["warnings"][0].as_str();
        assert!(
            warning.context("no warning")?.contains("rpm-ostree"),
            "{status:#}"
        );
        let answer = client::ask(&host.sandbox, &host.bus, &["status"])?.expect(&[0])?;
        assert!(
            answer.stdout.contains("layered by rpm-ostree"),
            "{answer:?}"
        );

        let mut caller = Caller::new(&host).await?;
        let name = host.registry.name("os:latest");
        for verb in ["upgrade", "check", "download", "switch"] {
            let called = match verb {
                "upgrade" => caller.host.upgrade(&UpgradeOptions::default()).await,
                "check" => caller.host.check(&CheckOptions::default()).await,
                "download" => caller.host.download(&DownloadOptions::default()).await,
                _ => caller.host.switch(&name, &UpgradeOptions::default()).await,
            };
            let ended = caller.end(called).await.context(verb)?;
            assert!(
                ended.error_message.contains("rpm-ostree reset"),
                "{ended:?}"
            );
            ended.failed("NotSupported")?;
        }
        assert_eq!(host.sandbox.deployments()?, [host.sandbox.booted()?]);
        // Without the layering it is a host like any other.
        fs::write(&path, origin)?;
        drop(caller);
        host.reboot()?;
        host.upgrade().await?.succeeded()?;
        host.sandbox.fsck()
    }
}
