//! The contract between `ostewardd` and its clients.
//!
//! Owns the names, the documented interface XML, the proxies, the types that travel
//! and the error vocabulary; no logic, no ostree. The XML files beside this crate are
//! the API document and are installed to `/usr/share/dbus-1/interfaces`.
//!
//! Compatibility: members, option keys and result keys are only ever added. Options are
//! strict (an unknown key is `InvalidArgs`), results are open (ignore keys and string
//! values that you do not know). A breaking change would be `org.osteward2`, served
//! beside this one.

pub mod error;
pub mod options;
pub mod proxies;
pub mod types;

pub use error::Error;
pub use proxies::{DeploymentProxy, HostProxy, JobProxy, ManagerProxy, UpdateProxy};

/// The well-known bus name of the daemon.
pub const BUS_NAME: &str = "org.osteward1";
/// The object root; it carries `org.freedesktop.DBus.ObjectManager` and nothing else.
pub const ROOT_PATH: &str = "/org/osteward1";
/// The object of `org.osteward1.Manager`.
pub const MANAGER_PATH: &str = "/org/osteward1/Manager";
/// The object of `org.osteward1.Host`.
pub const HOST_PATH: &str = "/org/osteward1/Host";
/// Deployment objects are children of this path. Never parse the last element.
pub const DEPLOYMENT_PREFIX: &str = "/org/osteward1/deployment";
/// Update objects are children of this path.
pub const UPDATE_PREFIX: &str = "/org/osteward1/update";
/// Job objects are children of this path.
pub const JOB_PREFIX: &str = "/org/osteward1/job";
/// The value of "no object" in properties of type `o`.
pub const NO_OBJECT: &str = "/";
/// `Manager.ApiVersion`: counts additions within `org.osteward1`.
pub const API_VERSION: u32 = 1;
/// The value of a `t` property whose quantity is not known.
pub const UNKNOWN: u64 = u64::MAX;

/// The interface documents, by interface name.
pub const INTERFACES: &[(&str, &str)] = &[
    (
        "org.osteward1.Manager",
        include_str!("../org.osteward1.Manager.xml"),
    ),
    (
        "org.osteward1.Host",
        include_str!("../org.osteward1.Host.xml"),
    ),
    (
        "org.osteward1.Deployment",
        include_str!("../org.osteward1.Deployment.xml"),
    ),
    (
        "org.osteward1.Update",
        include_str!("../org.osteward1.Update.xml"),
    ),
    (
        "org.osteward1.Job",
        include_str!("../org.osteward1.Job.xml"),
    ),
];
