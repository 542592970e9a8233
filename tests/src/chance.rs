//! Chance that can be repeated: numbers from the environment, seeds that are told, and dice that
//! begin with one.

use std::fmt::Display;
use std::io::Write as _;

use anyhow::{Context, Result};

/// A line for whoever reads the log, past the capture of tests that pass. It begins with the
/// name of the test, which is that of libtest's thread for it.
///
/// # Errors
/// When standard output is closed.
pub fn tell(text: impl Display) -> Result<()> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    writeln!(std::io::stdout(), "{test}: {text}").context("writing to standard output")
}

/// The number in an environment variable, or `default`.
///
/// # Errors
/// When it is none.
pub fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(default),
    }
}

/// The number in an environment variable, which repeats a run, or one that nobody chose. Tells
/// which it is.
///
/// # Errors
/// As [`number`] and [`tell`].
pub fn seed(variable: &str) -> Result<u64> {
    let seed = number(variable, fastrand::u64(..1_000_000))?;
    tell(format_args!("{variable}={seed}"))?;
    Ok(seed)
}

/// splitmix64: the same seed, the same rolls.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    /// Yes or no.
    pub fn coin(&mut self) -> bool {
        self.roll(2) == 0
    }

    /// Bytes that no compression makes fewer.
    pub fn noise(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        fastrand::Rng::with_seed(self.roll(u64::MAX)).fill(&mut bytes);
        bytes
    }
}
