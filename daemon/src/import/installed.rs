//! The package databases in a commit: where they are, and what they say.
//!
//! Invariant: a list is complete or an error. A database that cannot be read is one, although
//! there may be another that can.

use std::fs::File;
use std::path::Path;

use ostree::gio;

use super::commit_files::CommitFiles;
use super::error::Error;
use super::plan::{image_commits, stored_image};
use super::transaction::open;
use crate::image::reference::Digest;
use crate::packages::{self, Form, Inventory, Manager, Package, limits};

/// Directories of dpkg's database. Only what is below `/usr` is of the image that runs: `/var`
/// is filled from the first image and never again, which is why image builders move it.
const DPKG: [&str; 3] = [
    "usr/lib/sysimage/dpkg",
    "var/lib/dpkg",
    // Where libostree before 2024.3 gets what an image has in /var.
    "usr/share/factory/var/lib/dpkg",
];
/// Directories of rpm's database; some are links to others.
const RPM: [&str; 4] = [
    "usr/lib/sysimage/rpm",
    "usr/share/rpm",
    "var/lib/rpm",
    "usr/share/factory/var/lib/rpm",
];
/// Directories of apk's database.
const APK: [&str; 2] = ["usr/lib/apk/db", "lib/apk/db"];

/// Directories named after the release of a kernel.
const MODULES: &str = "usr/lib/modules";

/// What is installed in `commit`; without a database that is known, nothing. Blocks.
///
/// # Errors
/// [`Error::Packages`] when a database cannot be read, [`Error::Ostree`] when the commit cannot.
pub fn installed(repo_path: &Path, commit: &str) -> Result<Inventory, Error> {
    let cancellable = gio::Cancellable::new();
    let repo = open(repo_path, &cancellable)?;
    let files = CommitFiles::open(&repo, commit, &cancellable)?;
    let mut found = Found::default();
    dpkg(&files, &mut found)?;
    rpm(&files, &mut found)?;
    apk(&files, &mut found)?;
    found.kernel = kernel(&files)?;
    Ok(found.inventory(true))
}

/// The commit of the pulled or deployed image with that digest. Blocks.
///
/// # Errors
/// [`Error::Ostree`] when the repository cannot be read.
pub fn commit_of(repo_path: &Path, digest: &Digest) -> Result<Option<String>, Error> {
    let cancellable = gio::Cancellable::new();
    let repo = open(repo_path, &cancellable)?;
    for commit in image_commits(&repo)? {
        let image = stored_image(&repo, &commit);
        if image.is_none_or(|image| image.digest != *digest) {
            continue;
        }
        // What guards a half-fetched image names it, too, but has nothing of it.
        let files = CommitFiles::open(&repo, &commit, &cancellable)?;
        if files.names("usr")?.is_some() {
            return Ok(Some(commit));
        }
    }
    Ok(None)
}

/// What was found so far.
#[derive(Default)]
pub(super) struct Found {
    packages: Vec<Package>,
    databases: Vec<String>,
    pub(super) kernel: String,
}

impl Found {
    pub(super) fn read(&mut self, form: Form, path: String, file: &File) -> Result<(), Error> {
        self.packages.extend(packages::read(form, file)?);
        self.databases.push(path);
        Ok(())
    }

    pub(super) fn inventory(self, whole: bool) -> Inventory {
        let mut packages = self.packages;
        packages.sort();
        packages.dedup();
        Inventory {
            packages,
            kernel: self.kernel,
            databases: self.databases,
            whole,
        }
    }
}

fn dpkg(files: &CommitFiles<'_>, found: &mut Found) -> Result<(), Error> {
    for directory in DPKG {
        if let Some((path, file)) = files.file(&format!("{directory}/status"))? {
            found.read(Form::DpkgStatus, path, &file)?;
        }
        let parts = format!("{directory}/status.d");
        for (name, _) in files.names(&parts)?.into_iter().flatten() {
            // Beside each there is a list of checksums.
            if name.ends_with(".md5sums") {
                continue;
            }
            if let Some((path, file)) = files.file(&format!("{parts}/{name}"))? {
                found.read(Form::DpkgPart, path, &file)?;
            }
            if found.packages.len() > limits::PACKAGES {
                let what = format!("more than {} packages", limits::PACKAGES);
                return Err(packages::Error::TooLarge {
                    manager: Manager::Dpkg,
                    what,
                }
                .into());
            }
        }
        if !found.databases.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

fn rpm(files: &CommitFiles<'_>, found: &mut Found) -> Result<(), Error> {
    let unsupported = |reason: &str| packages::Error::Unsupported {
        manager: Manager::Rpm,
        reason: reason.to_owned(),
    };
    for directory in RPM {
        if let Some((path, file)) = files.file(&format!("{directory}/rpmdb.sqlite"))? {
            let log = files.file(&format!("{path}-wal"))?;
            let length = log.and_then(|(_, log)| Some(log.metadata().ok()?.len()));
            if length.unwrap_or(0) > 0 {
                let reason = "whoever wrote it did not close it, and changes are in its log";
                return Err(unsupported(reason).into());
            }
            return found.read(Form::RpmSqlite, path, &file);
        }
        for (name, format) in [("Packages.db", "NDB"), ("Packages", "Berkeley DB")] {
            if files.file(&format!("{directory}/{name}"))?.is_some() {
                let reason = format!("it has the format {format}; only SQLite is read");
                return Err(unsupported(&reason).into());
            }
        }
    }
    Ok(())
}

fn apk(files: &CommitFiles<'_>, found: &mut Found) -> Result<(), Error> {
    for directory in APK {
        if let Some((path, file)) = files.file(&format!("{directory}/installed"))? {
            return found.read(Form::ApkInstalled, path, &file);
        }
    }
    Ok(())
}

/// The kernel is where libostree looks for it.
fn kernel(files: &CommitFiles<'_>) -> Result<String, Error> {
    for (name, _) in files.names(MODULES)?.into_iter().flatten() {
        if files.file(&format!("{MODULES}/{name}/vmlinuz"))?.is_some() {
            return Ok(name);
        }
    }
    Ok(String::new())
}
