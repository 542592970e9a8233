//! What is installed in an image, out of the databases of its package managers, and how two
//! images differ. Pure: it is given open files and lists.
//!
//! A database is a file that somebody else wrote, and is read before anybody has verified the
//! image. Invariants: nothing in it can make the reader panic, recurse without end, or keep
//! more than the [`limits`]; whatever is wrong with it is an [`Error`]; no C code parses it.

mod apk;
mod difference;
mod dpkg;
mod rpm;
mod sqlite;
mod text;
mod version;

use std::fs::File;
use std::io::BufReader;

use serde::{Deserialize, Serialize};

pub use difference::{Change, Difference, Row, compare};

/// What a database may have at most. Those of large desktops stay an order of magnitude below.
pub mod limits {
    /// Packages in an image.
    pub const PACKAGES: usize = 100_000;
    /// Bytes of a name, an architecture or a version.
    pub const FIELD: usize = 512;
    /// Bytes of all that is kept of a database.
    pub const KEPT: usize = 32 << 20;
    /// Bytes of a binary database.
    pub const FILE: u64 = 2 << 30;
    /// Bytes of one line of a text.
    pub const LINE: usize = 1 << 20;
    /// Bytes of a text.
    pub const TEXT: u64 = 256 << 20;
    /// Bytes of one package's record in a binary database.
    pub const RECORD: usize = 64 << 20;
}

/// Why a database could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not follow its format.
    #[error("the package database of {manager} is damaged: {reason}")]
    Malformed {
        /// Whose it is.
        manager: Manager,
        /// Where, and what is wrong.
        reason: String,
    },
    /// It is larger than anything that is read.
    #[error("the package database of {manager} has {what}, which is more than is read")]
    TooLarge {
        /// Whose it is.
        manager: Manager,
        /// What there is too much of.
        what: String,
    },
    /// It has a format that is not read.
    #[error("the package database of {manager} is not read: {reason}")]
    Unsupported {
        /// Whose it is.
        manager: Manager,
        /// What it is.
        reason: String,
    },
    /// The system could not read the file.
    #[error("the package database of {manager} cannot be read: {reason}")]
    Io {
        /// Whose it is.
        manager: Manager,
        /// The system's words.
        reason: String,
    },
}

/// A package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// Debian's.
    Dpkg,
    /// Red Hat's.
    Rpm,
    /// Alpine's.
    Apk,
}

impl Manager {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Manager::Dpkg => "dpkg",
            Manager::Rpm => "rpm",
            Manager::Apk => "apk",
        }
    }
}

impl std::fmt::Display for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Whose it is.
    pub manager: Manager,
    /// Its name.
    pub name: String,
    /// Its architecture, in the words of its manager.
    pub arch: String,
    /// Its version, complete with epoch and revision.
    pub version: String,
    /// The source it was built from; empty if unknown.
    pub source: String,
    /// Bytes when installed; 0 if unknown.
    pub size: u64,
    /// What tells builds of one version apart; empty if nothing does.
    pub build: String,
}

/// What is installed in an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The packages, sorted.
    pub packages: Vec<Package>,
    /// The release of the kernel; empty if there is none, or it is not known.
    pub kernel: String,
    /// The files it was read from, relative to the root of the image.
    pub databases: Vec<String>,
    /// All of the image was there to be looked at.
    pub whole: bool,
}

/// The form of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// dpkg's `status`.
    DpkgStatus,
    /// One file of a `status.d`, as images without dpkg have it.
    DpkgPart,
    /// rpm's SQLite database.
    RpmSqlite,
    /// apk's `installed`.
    ApkInstalled,
}

/// The packages in an open database.
///
/// # Errors
/// Any [`enum@Error`].
pub fn read(form: Form, file: &File) -> Result<Vec<Package>, Error> {
    match form {
        Form::DpkgStatus => dpkg::read(BufReader::new(file), dpkg::Unsaid::NotInstalled),
        Form::DpkgPart => dpkg::read(BufReader::new(file), dpkg::Unsaid::Installed),
        Form::RpmSqlite => rpm::read(file),
        Form::ApkInstalled => apk::read(BufReader::new(file)),
    }
}

impl Manager {
    fn malformed(self, reason: impl Into<String>) -> Error {
        Error::Malformed {
            manager: self,
            reason: reason.into(),
        }
    }

    fn too_large(self, what: impl Into<String>) -> Error {
        Error::TooLarge {
            manager: self,
            what: what.into(),
        }
    }

    fn io(self, error: &std::io::Error) -> Error {
        Error::Io {
            manager: self,
            reason: error.to_string(),
        }
    }

    /// A name, an architecture or a version: one word without anything that could drive a
    /// terminal or a parser of what is printed.
    fn word(self, what: &str, value: &[u8]) -> Result<String, Error> {
        if value.len() > limits::FIELD {
            return Err(self.too_large(format!("{what} of {} bytes", value.len())));
        }
        let text = std::str::from_utf8(value)
            .map_err(|_| self.malformed(format!("{what} is not UTF-8")))?;
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(self.malformed(format!("{what} {text:?} is not one word")));
        }
        Ok(text.to_owned())
    }

    fn required(self, what: &str, value: Option<String>) -> Result<String, Error> {
        value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| self.malformed(format!("a package has no {what}")))
    }
}

/// The packages of one database on their way in.
struct Collected {
    manager: Manager,
    packages: Vec<Package>,
    bytes: usize,
}

impl Collected {
    fn new(manager: Manager) -> Self {
        Self {
            manager,
            packages: Vec::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, package: Package) -> Result<(), Error> {
        if self.packages.len() >= limits::PACKAGES {
            let what = format!("more than {} packages", limits::PACKAGES);
            return Err(self.manager.too_large(what));
        }
        let Package {
            name,
            arch,
            version,
            source,
            build,
            ..
        } = &package;
        let texts = [name, arch, version, source, build];
        self.bytes += texts.map(String::len).iter().sum::<usize>();
        if self.bytes > limits::KEPT {
            let what = format!("over {} bytes of names and versions", limits::KEPT);
            return Err(self.manager.too_large(what));
        }
        self.packages.push(package);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
