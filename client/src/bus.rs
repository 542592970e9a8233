//! The connection to the daemon.
//!
//! Owns how the bus is reached and how a method is called: with or without leave to ask
//! for a password, never with a time limit, since only a password dialog is slow.
//! Everything the client does goes through here; it never looks at the host itself.

use osteward_dbus::options::NoOptions;
use osteward_dbus::types::{Dict, Status};
use osteward_dbus::{DeploymentProxy, HostProxy, JobProxy, NO_OBJECT};
use zbus::connection::Builder;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath};

use crate::fail::Failure;
use crate::request::Request;

/// A connection, and whether calls on it may lead to a password dialog.
#[derive(Debug, Clone)]
pub(crate) struct Bus {
    /// The connection itself, for those who listen.
    pub(crate) connection: Connection,
    /// Let polkit ask the user.
    pub(crate) interactive: bool,
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
            Request::Switch(image, options) => {
                call!(ask, host, switch | switch_interactive, image, options)
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
            Request::SetLocked(locked, options) => {
                let deployment = self.staged(&host).await?;
                call!(
                    ask,
                    deployment,
                    set_locked | set_locked_interactive,
                    *locked,
                    options
                )
            }
            Request::Discard(what, options) => {
                call!(ask, host, discard | discard_interactive, what, options)
            }
        };
        Ok(path?)
    }

    /// What is staged.
    async fn staged(&self, host: &HostProxy<'_>) -> Result<DeploymentProxy<'_>, Failure> {
        let path = host.staged_deployment().await?;
        if path.as_str() == NO_OBJECT {
            let text = "nothing is staged, so there is nothing to lock or unlock";
            return Err(Failure::new("org.osteward1.Error.NoUpdate", text));
        }
        let proxy = DeploymentProxy::builder(&self.connection).path(path);
        Ok(proxy.cache_properties(CacheProperties::No).build().await?)
    }

    /// `Job.Cancel` on the job at `path`.
    pub(crate) async fn cancel(&self, path: &OwnedObjectPath) -> Result<(), Failure> {
        let job = JobProxy::builder(&self.connection)
            .path(path.clone())
            .build()
            .await?;
        Ok(call!(
            self.interactive,
            job,
            cancel | cancel_interactive,
            &NoOptions {}
        )?)
    }
}
