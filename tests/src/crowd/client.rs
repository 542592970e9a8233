//! One client of a crowd.

use std::time::Instant;

use anyhow::{Result, ensure};
use osteward_dbus::options::{
    ApplyOptions, CancelRollbackOptions, CheckOptions, Common, DiffEtcOptions, DiscardOptions,
    DownloadOptions, InhibitOptions, ListJobsOptions, ManageOptions, NoOptions, RollbackOptions,
    SetKernelArgumentsOptions, SimulateOptions, UpgradeOptions,
};
use osteward_dbus::{
    DeploymentProxy, Error, HostProxy, JobProxy, ManagerProxy, NO_OBJECT, ROOT_PATH, UpdateProxy,
};
use zbus::fdo::ObjectManagerProxy;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedFd, OwnedObjectPath};

use super::{Square, Waits, is_excuse};
use crate::bus::Bus;
use crate::chance::Dice;
use crate::peer::connect_as;

/// The kernel argument that comes and goes.
const ARGUMENT: &str = "crowd=1";

/// What was got, or nothing if the daemon had a reason to refuse that a crowd can cause.
fn fine<T>(kind: &str, answer: Result<T, Error>) -> Result<Option<T>> {
    let error = match answer {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    ensure!(
        is_excuse(kind, &error),
        "{kind}: {}: {error:?}",
        error.name()
    );
    ensure!(error.message().contains(' '), "no sentence: {error:?}");
    Ok(None)
}

/// As [`fine`], of a property. If its object goes while it is being looked up, it is the
/// interface that is missing.
fn fine_property<T>(kind: &str, answer: Result<T, Error>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.name().ends_with(".UnknownInterface") => Ok(None),
        answer => fine(kind, answer),
    }
}

fn terms(dice: &mut Dice) -> Common {
    Common {
        on_busy: Some(if dice.roll(4) == 0 { "fail" } else { "queue" }.into()),
        background: dice.coin().then_some(true),
        priority: dice.coin().then(|| dice.roll(11) as i32 - 5),
        ..Common::default()
    }
}

fn replacing(dice: &mut Dice) -> UpgradeOptions {
    UpgradeOptions {
        replace_staged: Some(true),
        ..UpgradeOptions::default().with_common(terms(dice))
    }
}

/// A connection to the bus, and what its owner holds open.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    host: HostProxy<'static>,
    manager: ManagerProxy<'static>,
    held: Vec<OwnedFd>,
}

impl Client {
    /// One of the user `uid`, which keeps no copies of properties.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn new(bus: &Bus, uid: u32) -> Result<Self> {
        let connection = connect_as(bus, uid).await?;
        let no = CacheProperties::No;
        let host = HostProxy::builder(&connection).cache_properties(no);
        let manager = ManagerProxy::builder(&connection).cache_properties(no);
        Ok(Self {
            host: host.build().await?,
            manager: manager.build().await?,
            connection,
            held: Vec::new(),
        })
    }

    /// The job at `path`.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn job(&self, path: OwnedObjectPath) -> Result<JobProxy<'static>> {
        let job = JobProxy::builder(&self.connection).path(path);
        Ok(job.cache_properties(CacheProperties::No).build().await?)
    }

    async fn deployment(&self, path: OwnedObjectPath) -> Result<DeploymentProxy<'static>> {
        let deployment = DeploymentProxy::builder(&self.connection).path(path);
        let deployment = deployment.cache_properties(CacheProperties::No);
        Ok(deployment.build().await?)
    }

    /// The path of any deployment.
    async fn any(&self, dice: &mut Dice) -> Result<OwnedObjectPath> {
        let mut all = self.host.deployments().await?;
        ensure!(!all.is_empty(), "a host without a deployment");
        Ok(all.swap_remove(dice.roll(all.len() as u64) as usize))
    }

    /// The job that writes, or "/".
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn active_job(&self) -> Result<OwnedObjectPath> {
        Ok(self.manager.active_job().await?)
    }

    /// Reads what is answered from memory: the state, everything on one go, and each job.
    ///
    /// # Errors
    /// When something cannot be read that nobody can have removed.
    pub async fn read(&self, waits: &Waits) -> Result<()> {
        let no = NoOptions {};
        waits.of("Status", self.host.status(&no)).await?;
        waits.of("a property", self.host.update_state()).await?;
        waits.of("a property", self.manager.active_job()).await?;
        let history = self.manager.get_history(5, &no);
        waits.of("GetHistory", history).await?;
        let objects = ObjectManagerProxy::new(&self.connection, "org.osteward1", ROOT_PATH).await?;
        let objects = objects.get_managed_objects();
        waits.of("GetManagedObjects", objects).await?;
        let jobs = ListJobsOptions::default();
        let jobs = waits.of("ListJobs", self.manager.list_jobs(&jobs)).await?;
        // The oldest may be forgotten since, and the newest are still on their way.
        let (oldest, newest) = (jobs.first(), jobs.iter().rev().take(2));
        for path in oldest.into_iter().chain(newest).cloned() {
            let job = self.job(path).await?;
            fine("job", waits.of("GetLog", job.get_log(&no)).await)?;
            fine_property("job", waits.of("a property", job.fraction()).await)?;
        }
        Ok(())
    }

    /// Looks at what an update, or the host's own work, changes; on the disk, if need be.
    async fn look(&self, dice: &mut Dice, waits: &Waits) -> Result<()> {
        let no = NoOptions {};
        match dice.roll(3) {
            0 => {
                let deployment = dice.coin().then_some(self.any(dice).await?);
                let changes = self.host.diff_etc(&DiffEtcOptions { deployment }).await;
                fine("diff-etc", changes).map(drop)
            }
            1 => {
                let other = self.any(dice).await?;
                let deployment = self.deployment(self.any(dice).await?).await?;
                let packages = deployment.diff_packages(&other, &no).await;
                fine("diff-packages", packages).map(drop)
            }
            _ => {
                let path = self.host.update().await?;
                if path.as_str() == NO_OBJECT {
                    return Ok(());
                }
                let update = UpdateProxy::builder(&self.connection).path(path);
                let update = update.cache_properties(CacheProperties::No).build().await?;
                let packages = update.get_package_diff(0, 0, &no);
                let packages = waits.of("GetPackageDiff", packages).await;
                fine("package-diff", packages).map(drop)
            }
        }
    }

    /// Asks for some job; the book gets to know of it.
    ///
    /// # Errors
    /// When it is refused for something else than what a crowd can cause.
    pub async fn ask(&self, dice: &mut Dice, square: &Square) -> Result<()> {
        let (kind, answer) = match dice.roll(3) {
            0 => self.ask_to_look(dice).await,
            1 => self.ask_for_image(dice, &square.elsewhere).await,
            _ => self.ask_for_change(dice).await?,
        };
        if let Some(job) = fine(kind, answer)? {
            square.book.give(&job, kind);
        }
        Ok(())
    }

    /// Jobs that change nothing that boots.
    async fn ask_to_look(&self, dice: &mut Dice) -> Asked {
        match dice.roll(4) {
            0 => {
                let options = CheckOptions::default().with_common(terms(dice));
                ("check", self.host.check(&options).await)
            }
            1 => {
                let options = SimulateOptions::default().with_common(terms(dice));
                ("simulate", self.host.simulate(&options).await)
            }
            _ => {
                let options = DownloadOptions {
                    allow_downgrade: Some(dice.coin()),
                    ..DownloadOptions::default().with_common(terms(dice))
                };
                ("download", self.host.download(&options).await)
            }
        }
    }

    /// Jobs that stage something.
    async fn ask_for_image(&self, dice: &mut Dice, elsewhere: &str) -> Asked {
        match dice.roll(5) {
            0 | 1 => ("upgrade", self.host.upgrade(&replacing(dice)).await),
            2 => {
                let options = replacing(dice);
                ("switch", self.host.switch(elsewhere, &options).await)
            }
            _ => {
                let options = SetKernelArgumentsOptions::default().with_common(terms(dice));
                let (one, none) = (vec![ARGUMENT.to_owned()], Vec::new());
                let (append, delete) = if dice.coin() {
                    (one, none)
                } else {
                    (none, one)
                };
                let answer = self
                    .host
                    .set_kernel_arguments(&append, &[], &delete, &options);
                ("kargs", answer.await)
            }
        }
    }

    /// Jobs on what is deployed.
    async fn ask_for_change(&self, dice: &mut Dice) -> Result<Asked> {
        let manage = ManageOptions::default().with_common(terms(dice));
        Ok(match dice.roll(7) {
            0 => {
                let options = RollbackOptions {
                    discard_staged: Some(dice.coin()),
                    ..RollbackOptions::default().with_common(terms(dice))
                };
                ("rollback", self.host.rollback(&options).await)
            }
            1 => {
                let options = CancelRollbackOptions::default().with_common(terms(dice));
                ("cancel-rollback", self.host.cancel_rollback(&options).await)
            }
            2 => {
                // Nobody is there who could reboot the host.
                let options = ApplyOptions::default().with_common(terms(dice));
                ("apply", self.host.apply(&options).await)
            }
            3 => {
                let booted = self.host.booted_deployment().await?;
                let booted = self.deployment(booted).await?;
                ("pin", booted.set_pinned(dice.coin(), &manage).await)
            }
            4 => {
                let any = self.deployment(self.any(dice).await?).await?;
                ("lock", any.set_locked(dice.coin(), &manage).await)
            }
            5 => {
                let any = self.deployment(self.any(dice).await?).await?;
                ("remove", any.remove(&manage).await)
            }
            _ => {
                let options = DiscardOptions {
                    dry_run: Some(dice.coin()),
                    ..DiscardOptions::default().with_common(terms(dice))
                };
                let what = ["staged", "cache", "unreferenced"][dice.roll(3) as usize];
                ("discard", self.host.discard(&[what], &options).await)
            }
        })
    }

    /// Meddles with somebody's job.
    async fn meddle(&mut self, dice: &mut Dice, path: OwnedObjectPath) -> Result<()> {
        let (job, no) = (self.job(path).await?, NoOptions {});
        match dice.roll(6) {
            0 => fine("cancel", job.cancel(&no).await).map(drop),
            1 => fine("pause", job.pause(&no).await).map(drop),
            2 => fine("resume", job.resume(&no).await).map(drop),
            3 => fine("adopt", job.adopt(&no).await).map(drop),
            4 => fine("release", job.release().await).map(drop),
            _ => {
                let pipe = fine("stream", job.stream_events(&no).await)?;
                // Half of the pipes are never read, and kept.
                self.held.extend(pipe.filter(|_| dice.coin()));
                Ok(())
            }
        }
    }

    async fn inhibit(&mut self, dice: &mut Dice) -> Result<()> {
        let what = if dice.coin() { "idle" } else { "apply" };
        let options = InhibitOptions {
            what: Some(what.to_owned()),
        };
        let fd = self.manager.inhibit("crowd", "there are many", &options);
        self.held.extend(fine("inhibit", fd.await)?);
        if dice.coin() {
            self.held.clear();
        }
        Ok(())
    }

    /// Does all of this at random, as long as there is time.
    ///
    /// # Errors
    /// With the first answer that a crowd does not explain.
    pub async fn live(mut self, square: &Square, mut dice: Dice, until: Instant) -> Result<()> {
        while Instant::now() < until {
            match dice.roll(12) {
                0..=4 => self.ask(&mut dice, square).await?,
                5..=7 => {
                    if let Some(job) = square.book.any(&mut dice) {
                        self.meddle(&mut dice, job).await?;
                    }
                }
                8 => self.read(&square.waits).await?,
                9 => self.look(&mut dice, &square.waits).await?,
                10 => fine("reload", self.manager.reload_config().await).map(drop)?,
                _ => self.inhibit(&mut dice).await?,
            }
        }
        Ok(())
    }

    /// Resumes whatever is paused.
    ///
    /// # Errors
    /// When that is refused for another reason than that it is too late.
    pub async fn resume_all(&self) -> Result<()> {
        let active = ListJobsOptions {
            active: Some(true),
            kind: None,
        };
        for path in self.manager.list_jobs(&active).await? {
            let job = self.job(path).await?;
            fine("resume", job.resume(&NoOptions {}).await)?;
        }
        Ok(())
    }
}

/// The kind of a job that was asked for, and the answer.
type Asked = (&'static str, Result<OwnedObjectPath, Error>);
