//! Standard output, whose reader may have had enough (`osteward log | head -1`).
//!
//! Owns every write to it. Invariant: a reader that has left ends this process quietly, with
//! the code that a shell gives to SIGPIPE, which Rust's runtime ignores; a job that was started goes on.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// 128 and the number of SIGPIPE.
const READER_LEFT: i32 = 141;

/// Writes to standard output, all of it at once.
pub(crate) fn write(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) else {
        return;
    };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(READER_LEFT);
    }
    eprintln!("error: cannot write to standard output: {error}");
    std::process::exit(1);
}

/// As `print!`.
macro_rules! out {
    ($($text:tt)*) => {
        $crate::output::write(format_args!($($text)*))
    };
}

/// As `println!`.
macro_rules! outln {
    () => {
        $crate::output::write(format_args!("\n"))
    };
    ($($text:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($text)*)))
    };
}

pub(crate) use {out, outln};
