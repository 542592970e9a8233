//! Typed proxies, one file an interface.
//!
//! Owns how Rust clients call the daemon. The traits are written by hand after the XML,
//! and tests hold them against it. A method that needs authorisation exists twice: the
//! plain one fails with [`crate::Error::InteractiveAuthorizationRequired`] where polkit
//! wants a password; the `…_interactive` one lets polkit's agent ask for it, and may then
//! take as long as a person does. Use it only when somebody sits in front.

pub mod deployment;
pub mod host;
pub mod job;
pub mod manager;
pub mod update;

pub use deployment::DeploymentProxy;
pub use host::HostProxy;
pub use job::JobProxy;
pub use manager::ManagerProxy;
pub use update::UpdateProxy;
