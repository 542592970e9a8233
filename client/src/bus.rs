//! The connection to the daemon.
//!
//! Owns how the bus is reached and how a method is called: with or without leave to ask
//! for a password, never with a time limit, since only a password dialog is slow.
//! Everything the client does goes through here; it never looks at the host itself (only `doctor` does).

use std::os::fd::{AsFd as _, OwnedFd};

use osteward_dbus::options::{DiffEtcOptions, InhibitOptions, ManageOptions, NoOptions};
use osteward_dbus::types::{Dict, PackageChange, PackageMove, Status};
use osteward_dbus::{DeploymentProxy, HostProxy, JobProxy, ManagerProxy, UpdateProxy};
use zbus::connection::Builder;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath};

use crate::fail::Failure;
use crate::handover::{Switch, open_for_import};
use crate::pick;
use crate::request::{Change, Request};

/// A connection, and whether calls on it may lead to a password dialog.
#[derive(Debug, Clone)]
pub(crate) struct Bus {
    /// The connection itself, for those who listen.
    pub(crate) connection: Connection,
    /// Let polkit ask the user.
    pub(crate) interactive: bool,
}

/// What a job can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// `Job.Cancel`
    Cancel,
    /// `Job.Pause`
    Pause,
    /// `Job.Resume`
    Resume,
    /// `Job.Adopt`
    Adopt,
}

/// The plain method, or the one that lets polkit ask.
macro_rules! call {
    ($ask:expr, $proxy:ident, $plain:ident | $interactive:ident, $($argument:expr),+) => {
        if $ask { $proxy.$interactive($($argument),+).await } else { $proxy.$plain($($argument),+).await }
    };
}

impl Bus {
    /// Connects to the bus at `address`, or to the system bus.
    pub(crate) async fn connect(address: Option<&str>, interactive: bool) -> Result<Self, Failure> {
        let (builder, which) = match address {
            Some(address) => (Builder::address(address), format!("the bus at {address}")),
            None => (Builder::system(), "the system bus".to_owned()),
        };
        let connection = builder
            .build()
            .await
            .map_err(|error| Failure::no_bus(&which, &error))?;
        Ok(Self {
            connection,
            interactive,
        })
    }

    /// `Host.Status`: the document as it came and the same in types.
    pub(crate) async fn status(&self) -> Result<(Dict, Status), Failure> {
        let host = HostProxy::new(&self.connection).await?;
        let document = host.status(&NoOptions {}).await?;
        let status = Status::from_dict(&document)?;
        Ok((document, status))
    }

    /// Starts the job that is asked for, or joins the one that does it already.
    pub(crate) async fn start(&self, request: &Request) -> Result<OwnedObjectPath, Failure> {
        let host = HostProxy::new(&self.connection).await?;
        let ask = self.interactive;
        let path = match request {
            Request::Check(options) => call!(ask, host, check | check_interactive, options),
            Request::Download(options) => {
                call!(ask, host, download | download_interactive, options)
            }
            Request::Upgrade(options) => call!(ask, host, upgrade | upgrade_interactive, options),
            Request::Switch(image, options) => match Switch::to(image, options) {
                Switch::Named(image) => {
                    call!(ask, host, switch | switch_interactive, &image, options)
                }
                Switch::Handed(file, options) => call!(
                    ask,
                    host,
                    import_archive | import_archive_interactive,
                    file.as_fd().into(),
                    &options
                ),
            },
            Request::Import(path, options) => {
                let file = open_for_import(path)?;
                call!(
                    ask,
                    host,
                    import_archive | import_archive_interactive,
                    file.as_fd().into(),
                    options
                )
            }
            Request::Rollback(options) => {
                call!(ask, host, rollback | rollback_interactive, options)
            }
            Request::CancelRollback(options) => {
                call!(
                    ask,
                    host,
                    cancel_rollback | cancel_rollback_interactive,
                    options
                )
            }
            Request::Apply(options) => call!(ask, host, apply | apply_interactive, options),
            Request::Manage(which, change, options) => self.manage(which, *change, options).await?,
            Request::Discard(what, options) => {
                call!(ask, host, discard | discard_interactive, what, options)
            }
            Request::Kargs {
                append,
                replace,
                delete,
                options,
            } => call!(
                ask,
                host,
                set_kernel_arguments | set_kernel_arguments_interactive,
                append,
                replace,
                delete,
                options
            ),
            Request::Simulate(options) => {
                call!(ask, host, simulate | simulate_interactive, options)
            }
            Request::UsrOverlay(options) => {
                call!(ask, host, usr_overlay | usr_overlay_interactive, options)
            }
        };
        Ok(path?)
    }

    /// `Host.DiffEtc` of the deployment that `which` names now.
    pub(crate) async fn diff_etc(&self, which: &str) -> Result<Vec<(String, String)>, Failure> {
        let options = DiffEtcOptions {
            deployment: Some(pick::deployment(&self.status().await?.1, which)?),
        };
        let host = HostProxy::new(&self.connection).await?;
        Ok(host.diff_etc(&options).await?)
    }

    /// `Update.GetPackageDiff` of the update at `path`, all of it.
    pub(crate) async fn package_diff(
        &self,
        path: &OwnedObjectPath,
    ) -> Result<Vec<PackageChange>, Failure> {
        let update = UpdateProxy::builder(&self.connection).path(path.clone());
        let update = update.cache_properties(CacheProperties::No).build().await?;
        let mut all = Vec::new();
        loop {
            let offset = all.len() as u64;
            let (some, total) = update.get_package_diff(offset, 0, &NoOptions {}).await?;
            let is_last = some.is_empty();
            all.extend(some);
            if is_last || all.len() as u64 >= total {
                return Ok(all);
            }
        }
    }

    /// `Deployment.DiffPackages` of two deployments.
    pub(crate) async fn packages_between(
        &self,
        old: &OwnedObjectPath,
        new: &OwnedObjectPath,
    ) -> Result<Vec<PackageMove>, Failure> {
        let proxy = DeploymentProxy::builder(&self.connection).path(old.clone());
        let proxy = proxy.cache_properties(CacheProperties::No).build().await?;
        Ok(proxy.diff_packages(new, &NoOptions {}).await?)
    }

    /// A method of the deployment that `which` names now.
    async fn manage(
        &self,
        which: &str,
        change: Change,
        options: &ManageOptions,
    ) -> Result<Result<OwnedObjectPath, osteward_dbus::Error>, Failure> {
        let path = pick::deployment(&self.status().await?.1, which)?;
        let proxy = DeploymentProxy::builder(&self.connection).path(path);
        let proxy = proxy.cache_properties(CacheProperties::No).build().await?;
        let ask = self.interactive;
        Ok(match change {
            Change::Lock(on) => call!(ask, proxy, set_locked | set_locked_interactive, on, options),
            Change::Pin(on) => call!(ask, proxy, set_pinned | set_pinned_interactive, on, options),
            Change::Remove => call!(ask, proxy, remove | remove_interactive, options),
        })
    }

    /// Tells the job at `path` something.
    pub(crate) async fn tell(&self, path: &OwnedObjectPath, order: Order) -> Result<(), Failure> {
        let job = self.job(path).await?;
        let (ask, no) = (self.interactive, &NoOptions {});
        Ok(match order {
            Order::Cancel => call!(ask, job, cancel | cancel_interactive, no),
            Order::Pause => call!(ask, job, pause | pause_interactive, no),
            Order::Resume => call!(ask, job, resume | resume_interactive, no),
            Order::Adopt => call!(ask, job, adopt | adopt_interactive, no),
        }?)
    }

    /// `Job.GetLog` of the job at `path`.
    pub(crate) async fn log(&self, path: &OwnedObjectPath) -> Result<Vec<String>, Failure> {
        Ok(self.job(path).await?.get_log(&NoOptions {}).await?)
    }

    /// `Job.StreamEvents` of the job at `path`.
    pub(crate) async fn events(&self, path: &OwnedObjectPath) -> Result<OwnedFd, Failure> {
        let events = self.job(path).await?.stream_events(&NoOptions {}).await?;
        Ok(events.into())
    }

    /// `Manager.GetHistory`, the newest first.
    pub(crate) async fn history(&self, max: u32) -> Result<Vec<Dict>, Failure> {
        let manager = self.manager().await?;
        Ok(manager.get_history(max, &NoOptions {}).await?)
    }

    /// `Manager.Inhibit`; it holds as long as the descriptor and this connection are open.
    pub(crate) async fn inhibit(
        &self,
        who: &str,
        why: &str,
        what: &str,
    ) -> Result<OwnedFd, Failure> {
        let manager = self.manager().await?;
        let options = InhibitOptions {
            what: Some(what.to_owned()),
        };
        let held = call!(
            self.interactive,
            manager,
            inhibit | inhibit_interactive,
            who,
            why,
            &options
        );
        Ok(held?.into())
    }

    /// `Manager.Inhibitors`.
    pub(crate) async fn inhibitors(&self) -> Result<Vec<Dict>, Failure> {
        Ok(self.manager().await?.inhibitors().await?)
    }

    /// `Manager.Features` and `Manager.ConfigWarnings`.
    pub(crate) async fn abilities(&self) -> Result<(Vec<String>, Vec<String>), Failure> {
        let manager = self.manager().await?;
        Ok((manager.features().await?, manager.config_warnings().await?))
    }

    /// `Manager.ReloadConfig`.
    pub(crate) async fn reload(&self) -> Result<(), Failure> {
        let manager = self.manager().await?;
        Ok(if self.interactive {
            manager.reload_config_interactive().await
        } else {
            manager.reload_config().await
        }?)
    }

    async fn manager(&self) -> Result<ManagerProxy<'_>, Failure> {
        let manager = ManagerProxy::builder(&self.connection);
        Ok(manager
            .cache_properties(CacheProperties::No)
            .build()
            .await?)
    }

    async fn job(&self, path: &OwnedObjectPath) -> Result<JobProxy<'_>, Failure> {
        let job = JobProxy::builder(&self.connection).path(path.clone());
        Ok(job.cache_properties(CacheProperties::No).build().await?)
    }
}
