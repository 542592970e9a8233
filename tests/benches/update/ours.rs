//! osteward: the daemon of the release build on a host made for the occasion, over its bus.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use osteward_dbus::options::{CheckOptions, DownloadOptions, UpgradeOptions};
use osteward_tests::bench::report::Run;
use osteward_tests::bench::usage::{Meter, Usage};
use osteward_tests::host::Host;
use osteward_tests::job::{Ended, Listener};

use crate::Bench;

/// The daemon is to be there whenever it is measured.
const CONFIGURATION: &str = "[daemon]\nidle_timeout = \"0s\"\n";

/// What the daemon is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Look for something new.
    Check,
    /// Pull, up to the commit that would be deployed.
    Download,
    /// Stage what was pulled.
    Stage,
    /// Pull what is missing and stage it, whichever version it is.
    Upgrade,
}

/// A host.
pub(crate) struct Ours {
    pub(crate) host: Host,
}

impl Ours {
    /// Boots a host whose image is tiny, and lets it track another.
    pub(crate) fn boot(reference: &str) -> Result<Self> {
        let mut host = Host::boot()?;
        host.configure(CONFIGURATION)?;
        host.track(reference)?;
        Ok(Self { host })
    }

    /// Has the daemon do it, to the end.
    pub(crate) async fn run(&self, task: Task) -> Result<Ended> {
        Ok(self.watched(task).await?.0)
    }

    /// Has the daemon do it, and measures that.
    pub(crate) async fn measure(&self, bench: &Bench, task: Task) -> Result<Run> {
        let before = bench.before()?;
        let (_, usage) = self.watched(task).await?;
        bench.since(before, usage)
    }

    /// Has the daemon stage what the registry has, and measures that: to the end, and to the moment in
    /// which it is staged.
    pub(crate) async fn measure_staging(&self, bench: &Bench) -> Result<(Run, Run)> {
        let (before, begun) = (bench.before()?, Instant::now());
        let (ended, usage) = self.watched(Task::Upgrade).await?;
        let run = bench.since(before, usage)?;
        let mut phases = ended.phases.iter().zip(&ended.entered);
        let staged = phases.rfind(|(phase, _)| *phase == "cleaning");
        let (_, staged) = staged.context("nothing was staged")?;
        let mut first = run;
        first.wall = (*staged - begun).as_secs_f64();
        Ok((run, first))
    }

    async fn watched(&self, task: Task) -> Result<(Ended, Usage)> {
        let daemon = self
            .host
            .daemon
            .as_ref()
            .context("the daemon does not run")?;
        let connection = self.host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let meter = Meter::start(daemon.pid())?;
        let job = match task {
            Task::Check => {
                proxy
                    .check(&CheckOptions {
                        max_age: Some(0),
                        ..Default::default()
                    })
                    .await?
            }
            Task::Download => proxy.download(&DownloadOptions::default()).await?,
            Task::Stage | Task::Upgrade => {
                let options = UpgradeOptions {
                    from_cache: Some(task == Task::Stage),
                    allow_downgrade: Some(true),
                    replace_staged: Some(true),
                    ..Default::default()
                };
                proxy.upgrade(&options).await?
            }
        };
        let ended = listener.end(&job).await?;
        let usage = meter.stop()?;
        Ok((ended.succeeded()?, usage))
    }

    /// Starts to pull and returns at once.
    pub(crate) async fn begin_download(&self) -> Result<()> {
        let connection = self.host.connect().await?;
        Host::proxy(&connection)
            .await?
            .download(&DownloadOptions::default())
            .await?;
        Ok(())
    }

    /// Boots what is staged; returns the checksums of its root.
    pub(crate) fn reboot(&mut self) -> Result<(String, String)> {
        self.host.reboot()?;
        let booted = self.host.sandbox.booted()?;
        self.host.sandbox.root_tree(&booted.checksum)
    }

    /// The checksums of the root of what is staged.
    pub(crate) fn staged_tree(&self) -> Result<(String, String)> {
        let deployments = self.host.sandbox.deployments()?;
        let staged = deployments.iter().find(|deployment| deployment.staged);
        self.host
            .sandbox
            .root_tree(&staged.context("nothing is staged")?.checksum)
    }
}

/// Fails unless both have made the same tree.
pub(crate) fn compare(
    what: &str,
    ours: &(String, String),
    theirs: &(String, String),
) -> Result<()> {
    ensure!(
        ours == theirs,
        "the trees of {what} differ: {ours:?}, with ostree-ext {theirs:?}"
    );
    Ok(())
}
