//! A whole host to test on: a sandbox that tracks an image of a registry, its bus, its daemon.
//!
//! The booted image is version 1, imported by the oracle as bootc would have. Images are built
//! in a layout and published to the registry under the tag that the host tracks.

use std::fs;

use anyhow::{Context, Result, ensure};
use osteward_dbus::NO_OBJECT;
use osteward_dbus::options::{CheckOptions, UpgradeOptions};
use osteward_dbus::proxies::{HostProxy, JobProxy, ManagerProxy, UpdateProxy};
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath};

use crate::bus::Bus;
use crate::daemon::{Daemon, Settings};
use crate::image::{Image, Layer, Layout, Written, os_tree};
use crate::job::{Ended, Listener};
use crate::oracle;
use crate::process::{command, run};
use crate::registry::Registry;
use crate::sandbox::{FirstDeployment, Options, STATEROOT, Sandbox};

/// Everything that a whole-system test needs, in the order in which it ends.
#[derive(Debug)]
pub struct Host {
    /// The daemon; `None` while it is stopped or killed.
    pub daemon: Option<Daemon>,
    /// The private bus.
    pub bus: Bus,
    /// The host itself.
    pub sandbox: Sandbox,
    /// The registry the host pulls from.
    pub registry: Registry,
    /// Where images are built; inside, it is `/run/share/oci`.
    pub layout: Layout,
    /// The image without content that everything builds on, for the oracle's sake.
    pub base: Written,
    /// The booted image, version 1.
    pub first: Written,
    settings: Settings,
}

impl Host {
    /// Boots a host and starts its daemon.
    ///
    /// # Errors
    /// When any part of it does not start.
    pub fn boot() -> Result<Self> {
        Self::boot_with(Settings::default())
    }

    /// As [`Host::boot`], with settings for the daemon.
    ///
    /// # Errors
    /// As [`Host::boot`].
    pub fn boot_with(settings: Settings) -> Result<Self> {
        let registry = Registry::start()?;
        let source = format!("docker://{}", registry.name("os:latest"));
        let mut built = None;
        let sandbox = Sandbox::install_with(|share| {
            let layout = Layout::create(share.join("oci"))?;
            oracle::write_base(share, &layout, "base")?;
            let base = layout.find("base")?;
            let first = Image::new("1").on(&base).layer(os_tree("1"));
            let first = first.write_as(&layout, "latest")?;
            layout.push("latest", &registry.name("os:latest"))?;
            let place = format!("oci:{}:latest", layout.path.display());
            built = Some((layout, base, first));
            let name = source.clone();
            let import = move |repo: &std::path::Path| {
                Ok(oracle::import_as(repo, &place, &name)?.merge_commit)
            };
            let origin = format!("ostree-unverified-registry:{}", registry.name("os:latest"));
            Ok(Options {
                first: FirstDeployment::Import(Box::new(import)),
                origin,
            })
        })?;
        let (layout, base, first) = built.context("no image was built")?;
        let bus = Bus::start(&sandbox)?;
        let daemon = None;
        let mut host = Self {
            daemon,
            bus,
            sandbox,
            registry,
            layout,
            base,
            first,
            settings,
        };
        host.start_daemon()?;
        Ok(host)
    }

    /// Starts the daemon, which does not run.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.daemon = Some(Daemon::start_with(
            &self.sandbox,
            &self.bus,
            &self.settings,
        )?);
        Ok(())
    }

    /// Stops the daemon, lets `change` do something to the host, and starts the daemon again.
    ///
    /// # Errors
    /// When the daemon does not end or start well, and those of `change`.
    pub fn while_stopped(&mut self, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            ensure!(daemon.stop()?.success(), "the daemon did not end well");
        }
        change(self)?;
        self.start_daemon()
    }

    /// Adds this text to the daemon's configuration. The daemon is started anew.
    ///
    /// # Errors
    /// As [`Host::while_stopped`].
    pub fn configure(&mut self, text: &str) -> Result<()> {
        self.while_stopped(|host| {
            let drop_ins = host.sandbox.inside("/etc/osteward/config.d")?;
            fs::create_dir_all(&drop_ins)?;
            fs::write(drop_ins.join("test.toml"), text).context("writing the configuration")
        })
    }

    /// Lets the booted deployment track the image `name` from now on. The daemon is started anew.
    ///
    /// # Errors
    /// As [`Host::while_stopped`]; when the deployment does not track the registry's image.
    pub fn track(&mut self, name: &str) -> Result<()> {
        self.while_stopped(|host| {
            let before = host.registry.name("os:latest");
            let booted = host.sandbox.booted()?;
            let origin = format!(
                "ostree/deploy/{STATEROOT}/deploy/{}.{}.origin",
                booted.checksum, booted.serial
            );
            let origin = host.sandbox.sysroot().join(origin);
            let text = fs::read_to_string(&origin).context("reading the origin file")?;
            ensure!(text.contains(&before), "{before} is not in {text}");
            fs::write(&origin, text.replace(&before, name)).context("writing the origin file")
        })
    }

    /// Starts the daemon anew with these variables in its environment, and with those from before.
    ///
    /// # Errors
    /// As [`Host::while_stopped`].
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        self.while_stopped(|host| {
            let variables = variables
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()));
            host.settings.environment.extend(variables);
            Ok(())
        })
    }

    /// Kills the daemon without warning.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon
            .take()
            .context("the daemon does not run")?
            .kill()
            .map(drop)
    }

    /// Stops the daemon, reboots, and starts the daemon again.
    ///
    /// # Errors
    /// When the daemon does not end well, or anything does not start.
    pub fn reboot(&mut self) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            let status = daemon.stop()?;
            anyhow::ensure!(status.success(), "the daemon ended with {status}");
        }
        self.sandbox.reboot()?;
        self.start_daemon()
    }

    /// The image on top of the one that is booted first, with these layers, not written yet.
    pub fn next_image(&self, version: &str, layers: impl IntoIterator<Item = Layer>) -> Image {
        let image = Image::new(version)
            .on(&self.first)
            .created("2025-02-01T00:00:00Z");
        layers.into_iter().fold(image, Image::layer)
    }

    /// Writes an image and gives it the tag that the host tracks.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub fn publish(&self, image: &Image) -> Result<Written> {
        let written = image.write_as(&self.layout, "latest")?;
        self.layout
            .push("latest", &self.registry.name("os:latest"))?;
        Ok(written)
    }

    /// The source of the tracked image as the repository's refs are named after it.
    pub fn source(&self) -> String {
        format!("docker://{}", self.registry.name("os:latest"))
    }

    /// What the oracle makes of the image that is tagged `latest` in the layout, in a
    /// repository of its own: checksums of the root's contents and metadata.
    ///
    /// # Errors
    /// When the oracle refuses the image.
    pub fn oracle_tree(&self) -> Result<(String, String)> {
        let dir = tempfile::tempdir_in(self.sandbox.share())?;
        let repo = dir.path().join("repo");
        run(command(["ostree", "init", "--mode=bare", "--repo"]).arg(&repo))?;
        let image = oracle::import(&repo, &format!("oci:{}:latest", self.layout.path.display()))?;
        Ok((image.root_contents, image.root_metadata))
    }

    /// The lines of a full listing, with checksums and attributes, that only one of us has of
    /// the image tagged `latest`: `-` the oracle, `+` the commit `rev` of the sandbox.
    ///
    /// # Errors
    /// When the oracle refuses the image.
    pub fn differences(&self, rev: &str) -> Result<Vec<String>> {
        let dir = tempfile::tempdir_in(self.sandbox.share())?;
        let repo = dir.path().join("repo");
        run(command(["ostree", "init", "--mode=bare", "--repo"]).arg(&repo))?;
        let image = oracle::import(&repo, &format!("oci:{}:latest", self.layout.path.display()))?;
        let repo = format!("--repo={}", repo.display());
        let theirs = run(&mut command([
            "ostree",
            "ls",
            &repo,
            "-RXC",
            &image.merge_commit,
        ]))?;
        let ours = self.sandbox.ostree(["ls", "-RXC", rev])?;
        let only = |these: &str, those: &str, sign: char| {
            let those: std::collections::HashSet<&str> = those.lines().collect();
            let lines = these.lines().filter(|line| !those.contains(line));
            lines
                .map(|line| format!("{sign} {line}"))
                .collect::<Vec<_>>()
        };
        Ok([only(&theirs, &ours, '-'), only(&ours, &theirs, '+')].concat())
    }

    /// A connection of root to the bus.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn connect(&self) -> Result<Connection> {
        self.bus.connect().await
    }

    /// The daemon's `Host` object.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn proxy(connection: &Connection) -> Result<HostProxy<'static>> {
        Ok(HostProxy::new(connection).await?)
    }

    /// The daemon's `Manager` object.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn manager(connection: &Connection) -> Result<ManagerProxy<'static>> {
        Ok(ManagerProxy::new(connection).await?)
    }

    /// A job object.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn job(connection: &Connection, path: &OwnedObjectPath) -> Result<JobProxy<'static>> {
        Ok(JobProxy::builder(connection)
            .path(path.clone())
            .build()
            .await?)
    }

    /// Asks the registry anew, and returns the bytes that the update has to fetch.
    ///
    /// # Errors
    /// When the check fails, or finds no update.
    pub async fn download_size(&self) -> Result<u64> {
        let connection = self.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Self::proxy(&connection).await?;
        let options = CheckOptions {
            max_age: Some(0),
            ..Default::default()
        };
        let job = proxy.check(&options).await?;
        listener.end(&job).await?.succeeded()?;
        let path = proxy.update().await?;
        ensure!(path.as_str() != NO_OBJECT, "no update is known");
        let update = UpdateProxy::builder(&connection).path(path);
        let update = update.cache_properties(CacheProperties::No).build().await?;
        Ok(update.download_size().await?)
    }

    /// Upgrades as root and waits for the end.
    ///
    /// # Errors
    /// When the call is refused; a job that fails is an end.
    pub async fn upgrade(&self) -> Result<Ended> {
        self.upgrade_with(&UpgradeOptions::default()).await
    }

    /// As [`Host::upgrade`], with options.
    ///
    /// # Errors
    /// As [`Host::upgrade`].
    pub async fn upgrade_with(&self, options: &UpgradeOptions) -> Result<Ended> {
        let connection = self.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let job = Self::proxy(&connection).await?.upgrade(options).await?;
        listener.end(&job).await
    }
}
