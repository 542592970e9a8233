//! The harness of osteward's whole-system tests, and of `make demo`.
//!
//! Everything here is real except the machine: libostree on a real file system, a real
//! `dbus-daemon`, polkitd, registry and OCI images. Invariants: a harness object that goes out
//! of scope, also by a panic, takes its processes, mounts and files with it; waiting is for an
//! event (a datagram, a line, a signal, the end of a process), never for time to pass.

pub mod authority;
pub mod bench;
pub mod big_image;
pub mod bootable;
pub mod bus;
pub mod chance;
pub mod client;
pub mod containers;
pub mod crowd;
pub mod daemon;
pub mod host;
pub mod image;
pub mod job;
pub mod logind;
pub mod machine;
pub mod oracle;
pub mod packages;
pub mod peer;
pub mod polkit_agent;
pub mod process;
pub mod registry;
pub mod relay;
pub mod sandbox;
pub mod served;
pub mod settled;
pub mod small_disk;
pub mod suite;
pub mod systemd;
pub mod turnstile;
pub mod watched;
pub mod witness;
