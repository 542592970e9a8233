//! Facts about the host, and the few requests that are made of it.

pub mod logind;
pub mod systemd;
