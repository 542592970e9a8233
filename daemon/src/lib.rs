//! The daemon of osteward, as a library so that its parts can be tested.
//!
//! One upgrade, from top to bottom:
//! 1. `service` receives `Host.Upgrade`, parses the options, asks polkit;
//! 2. `engine` asks `state` whether it may start, and starts the job;
//! 3. `jobs::upgrade` takes a snapshot from the `sysroot` thread;
//! 4. `image` resolves the reference to a manifest, for this machine's platform;
//! 5. the job decides: nothing to do, refused, or pull;
//! 6. `import` streams the missing layers into the repository, several at once;
//! 7. `import` composes the root tree in memory and writes the merge commit;
//! 8. the `sysroot` thread stages it under the lock that all ostree tools share;
//! 9. `engine` looks at the sysroot again and publishes; `service` tells the bus.

pub mod chunked;
pub mod config;
pub mod delta;
pub mod engine;
pub mod error;
pub mod etc;
pub mod image;
pub mod import;
pub mod inhibit;
pub mod jobs;
pub mod kargs;
pub mod lifetime;
pub mod observe;
pub mod packages;
pub mod record;
pub mod report;
pub mod service;
pub mod state;
pub mod sysroot;
