//! What `make bench` is made of: images of realistic sizes, what programs use, floors, the report.
//!
//! Invariants: images depend only on Debian's packages and on the code here, and are made once;
//! nothing here asserts anything about time.

pub mod change;
pub mod delta;
pub mod files;
pub mod floor;
pub mod ideal;
pub mod images;
pub mod plot;
pub mod report;
pub mod shelf;
pub mod tree;
pub mod usage;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::process::target_dir;

/// Where images are kept and results written: `bench` in cargo's build directory.
///
/// # Errors
/// When it cannot be made.
pub fn work_dir() -> Result<PathBuf> {
    let dir = target_dir()?.join("bench");
    fs::create_dir_all(dir.join("images"))
        .with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// The share of all files that images have: `BENCH_SCALE`, or all of them.
///
/// # Errors
/// When it is no number above 0 and up to 1.
pub fn scale() -> Result<f64> {
    let scale: f64 = number_of("BENCH_SCALE", 1.0)?;
    ensure!(scale > 0.0 && scale <= 1.0, "BENCH_SCALE is not in (0, 1]");
    Ok(scale)
}

/// How often each thing is measured: `ROUNDS`, or five times.
///
/// # Errors
/// When it is no number from 1 to 30: each round's update has a day of January.
pub fn rounds() -> Result<usize> {
    let rounds = number_of("ROUNDS", 5)?;
    ensure!((1..=30).contains(&rounds), "ROUNDS is not in 1 to 30");
    Ok(rounds)
}

fn number_of<T>(variable: &str, default: T) -> Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(variable) {
        Ok(text) if !text.is_empty() => text.parse().with_context(|| format!("{variable}={text}")),
        _ => Ok(default),
    }
}
