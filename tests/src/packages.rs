//! Package databases made by the package managers themselves, of packages without content.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::image::paths_below;
use crate::process::{command, finish, run};

/// Version by name and architecture, as a package manager lists them.
pub type Installed = BTreeMap<(String, String), String>;

/// Reads such a list: name, architecture and version in each line.
///
/// # Errors
/// With a line that is something else.
pub fn installed(list: &str) -> Result<Installed> {
    let lines = list.lines().map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        let [name, arch, version] = words[..] else {
            anyhow::bail!("{line:?} is no package");
        };
        Ok(((name.to_owned(), arch.to_owned()), version.to_owned()))
    });
    lines.collect()
}

/// A root directory that dpkg installs into.
#[derive(Debug)]
pub struct Dpkg {
    directory: TempDir,
}

impl Dpkg {
    /// Nothing is installed.
    ///
    /// # Errors
    /// When the file system or dpkg does not play along.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let dpkg = Self { directory };
        for part in ["info", "updates"] {
            fs::create_dir_all(dpkg.admin().join(part))?;
        }
        fs::write(dpkg.admin().join("status"), "")?;
        for arch in ["amd64", "arm64", "i386"] {
            run(dpkg.dpkg().args(["--add-architecture", arch]))?;
        }
        Ok(dpkg)
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn admin(&self) -> PathBuf {
        self.root().join("var/lib/dpkg")
    }

    fn dpkg(&self) -> Command {
        let mut command = command([
            "dpkg",
            "--log=/dev/null",
            "--force-not-root",
            "--force-depends",
        ]);
        command.arg(format!("--root={}", self.root().display()));
        command
    }

    /// Builds and installs packages, each with a configuration file: name, architecture, version.
    ///
    /// # Errors
    /// When dpkg refuses them.
    pub fn install(&self, packages: &[(&str, &str, &str)]) -> Result<()> {
        let mut built = Vec::new();
        for (index, (name, arch, version)) in packages.iter().enumerate() {
            let tree = self.directory.path().join("tree");
            let file = self.directory.path().join(format!("{index}.deb"));
            fs::create_dir_all(tree.join("DEBIAN"))?;
            fs::create_dir_all(tree.join("etc"))?;
            let multi = if *arch == "all" {
                ""
            } else {
                "Multi-Arch: same\n"
            };
            let control = format!(
                "Package: {name}\nVersion: {version}\nArchitecture: {arch}\n{multi}Source: src-{name}\n\
                 Installed-Size: {}\nMaintainer: nobody <nobody@example.org>\nDescription: none\n",
                10 + index
            );
            fs::write(tree.join("DEBIAN/control"), control)?;
            let configuration = format!("etc/{name}.conf");
            fs::write(tree.join(&configuration), "")?;
            fs::write(tree.join("DEBIAN/conffiles"), format!("/{configuration}\n"))?;
            run(command(["dpkg-deb", "--build", "--root-owner-group"]).args([&tree, &file]))?;
            fs::remove_dir_all(&tree)?;
            built.push(file);
        }
        run(self.dpkg().arg("--install").args(built)).map(drop)
    }

    /// Removes a package; its configuration, and so its entry in the database, stays.
    ///
    /// # Errors
    /// When dpkg refuses.
    pub fn remove(&self, name: &str) -> Result<()> {
        run(self.dpkg().args(["--remove", name])).map(drop)
    }

    /// The database file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn database(&self) -> Result<Vec<u8>> {
        fs::read(self.admin().join("status")).context("reading dpkg's database")
    }

    /// What is installed, by dpkg's own account.
    ///
    /// # Errors
    /// When dpkg-query fails.
    pub fn list(&self) -> Result<Installed> {
        let admin = format!("--admindir={}", self.admin().display());
        let format = "-f=${db:Status-Status} ${Package} ${Architecture} ${Version}\\n";
        let list = run(&mut command(["dpkg-query", &admin, "--show", format]))?;
        let there = list
            .lines()
            .filter_map(|line| line.strip_prefix("installed "));
        installed(&there.collect::<Vec<_>>().join("\n"))
    }
}

/// Whether rpm takes one version for older than another.
///
/// # Errors
/// When rpm cannot be run.
pub fn rpm_is_older(one: &str, other: &str) -> Result<bool> {
    let compare = format!("%{{lua: print(rpm.vercmp('{one}', '{other}'))}}");
    let answer = run(&mut command(["rpm", "--eval", &compare]))?;
    Ok(answer.trim() == "-1")
}

/// Whether dpkg takes one version for older than another.
///
/// # Errors
/// When dpkg cannot be run.
pub fn dpkg_is_older(one: &str, other: &str) -> Result<bool> {
    let answer = finish(&mut command([
        "dpkg",
        "--compare-versions",
        one,
        "lt",
        other,
    ]))?;
    Ok(answer.status.success())
}

/// A root directory that rpm thinks it installs into.
#[derive(Debug)]
pub struct Rpm {
    directory: TempDir,
}

impl Rpm {
    /// Nothing is installed.
    ///
    /// # Errors
    /// When the file system or rpm does not play along.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let rpm = Self { directory };
        fs::create_dir(rpm.root())?;
        run(rpm.rpm().arg("--initdb"))?;
        Ok(rpm)
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn rpm(&self) -> Command {
        let words = [
            "rpm",
            "--dbpath",
            "/rpm",
            "--define",
            "_db_backend sqlite",
            "--root",
        ];
        let mut command = command(words);
        command.arg(self.root());
        command
    }

    /// Builds and installs packages: name, architecture, epoch, version, release.
    ///
    /// # Errors
    /// When rpm refuses them.
    pub fn install(&self, packages: &[(&str, &str, u32, &str, &str)]) -> Result<()> {
        let within = |name: &str| self.directory.path().join(name);
        let define = |name: &str, path: &Path| format!("{name} {}", path.display());
        let (top, built) = (within("top"), within("built"));
        if built.exists() {
            fs::remove_dir_all(&built)?;
        }
        for (name, arch, epoch, version, release) in packages {
            let spec = within("package.spec");
            let epoch = match epoch {
                0 => String::new(),
                epoch => format!("Epoch: {epoch}\n"),
            };
            let text = format!(
                "Name: {name}\n{epoch}Version: {version}\nRelease: {release}\n\
                 Summary: none\nLicense: none\n%description\nnone\n%files\n"
            );
            fs::write(&spec, text)?;
            let mut build = command(["rpmbuild", "-bb", "--quiet", "--target", arch]);
            build.arg("--define").arg(define("_topdir", &top));
            build.arg("--define").arg(define("_rpmdir", &built));
            run(build.arg(spec))?;
        }
        let files = paths_below(&built, |_| true)?;
        let files = files.iter().map(|(path, _)| built.join(path));
        let files = files.filter(|path| path.extension().is_some_and(|it| it == "rpm"));
        let words = [
            "--upgrade",
            "--oldpackage",
            "--justdb",
            "--nodeps",
            "--ignorearch",
        ];
        run(self.rpm().args(words).args(files)).map(drop)
    }

    /// Removes a package.
    ///
    /// # Errors
    /// When rpm refuses.
    pub fn remove(&self, name: &str) -> Result<()> {
        run(self.rpm().args(["--erase", "--justdb", "--nodeps", name])).map(drop)
    }

    /// The database file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn database(&self) -> Result<Vec<u8>> {
        fs::read(self.root().join("rpm/rpmdb.sqlite")).context("reading rpm's database")
    }

    /// What is installed, by rpm's own account.
    ///
    /// # Errors
    /// When rpm fails.
    pub fn list(&self) -> Result<Installed> {
        let format = "%{name} %{arch} %{evr}\\n";
        let list = run(self
            .rpm()
            .args(["--query", "--all", "--queryformat", format]))?;
        installed(&list)
    }
}
