//! Writes the manual pages and completions of osteward: `make` runs it, nothing installs it.
//!
//! Owns which pages there are: those of the client come from its command line, that of the
//! configuration from the file which is also its table in the README, and `ostewardd(8)` is
//! written by hand. An example of the package, so that what it takes to write pages is not in
//! the program that is installed.

mod page;

/// The command line, compiled once more, so that the pages cannot lag behind it.
#[path = "../../src"]
#[expect(
    dead_code,
    unused_imports,
    reason = "only the description is used, not the values"
)]
mod client {
    pub(crate) mod args;
}

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use clap::CommandFactory as _;
use clap_complete::Shell;

use client::args::Cli;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: manuals DIRECTORY");
        return ExitCode::from(2);
    };
    match write(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", Path::new(&directory).display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    // A verb that is gone has no page either.
    for old in [&man, &completions] {
        match fs::remove_dir_all(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(old)?,
        }
    }
    for (name, text) in page::of_command(Cli::command())? {
        fs::write(man.join(name), text)?;
    }
    let daemon = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../daemon");
    let version = env!("CARGO_PKG_VERSION");
    let keys = fs::read_to_string(daemon.join("osteward.toml"))?;
    let template = fs::read_to_string(daemon.join("man/osteward.toml.5.in"))?;
    let text = page::of_configuration(&template, &keys, version);
    fs::write(man.join("osteward.toml.5"), text)?;
    let template = fs::read_to_string(daemon.join("man/ostewardd.8.in"))?;
    let text = template.replace("@VERSION@", version);
    fs::write(man.join("ostewardd.8"), text)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "osteward", &completions)?;
    }
    Ok(())
}
