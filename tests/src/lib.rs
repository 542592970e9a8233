//! The harness of osteward's whole-system tests, and of `make demo`.
//!
//! Everything here is real except the machine: libostree on a real file system, a real
//! `dbus-daemon`, polkitd, registry and OCI images. Invariants: a harness object that goes out
//! of scope, also by a panic, takes its processes, mounts and files with it; waiting is for an
//! event (a datagram, a line, a signal, the end of a process), never for time to pass.

pub mod big_image;
pub mod bootable;
pub mod bus;
pub mod client;
pub mod daemon;
pub mod host;
pub mod image;
pub mod job;
pub mod logind;
pub mod machine;
pub mod oracle;
pub mod peer;
pub mod process;
pub mod registry;
pub mod sandbox;
pub mod slow_registry;
pub mod suite;
pub mod throttle;
pub mod turnstile;
pub mod witness;
