//! The daemon on the bus: thin objects in front of the engine.
//!
//! Owns the order in which the daemon appears and disappears: objects first, name last;
//! and back. Invariants: interfaces take `&self` (a `&mut self` method would block every
//! property read for its whole length); a method authorises, translates and makes one
//! engine call.

mod auth;
mod call;
mod deployment;
mod diff_etc;
mod host;
mod job;
mod manager;
mod packages;
mod parse;
mod publish;
mod translate;
mod update;

pub use deployment::Deployment;
pub use host::Host;
pub use job::Job;
pub use manager::Manager;
pub use publish::Publisher;
pub use update::Update;

use osteward_dbus::{HOST_PATH, MANAGER_PATH, ROOT_PATH};
use zbus::Connection;

use crate::engine::Engine;
use crate::observe::logind::Logind;

/// Serves all objects on `connection`. The name is the caller's to request, afterwards.
pub async fn serve(
    connection: &Connection,
    engine: Engine,
    logind: Logind,
) -> zbus::Result<Publisher> {
    let server = connection.object_server();
    let publisher = Publisher::new(connection.clone(), engine.clone());
    server.at(ROOT_PATH, zbus::fdo::ObjectManager).await?;
    server
        .at(
            MANAGER_PATH,
            Manager::new(engine.clone(), publisher.clone()),
        )
        .await?;
    server
        .at(HOST_PATH, Host::new(engine, publisher.clone(), logind))
        .await?;
    publisher.sync().await;
    tokio::spawn(publisher.clone().run());
    Ok(publisher)
}
