//! A host that libostree takes for booted, without a machine.
//!
//! Owns a sysroot on disk and the namespaces "booted" from it. Invariants: the running root is
//! always the deployment that the default boot entry named at the last [`Sandbox::reboot`];
//! nothing of it is left behind by any end, not even the harness being killed (save files).

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

mod namespace;
pub mod refs;
mod sysroot;

use crate::image::Layout;
use crate::process::{binary_dir, finish, require_root, run, target_dir};
use namespace::{Mounts, Namespace};
use sysroot::Sysroot;

/// The stateroot of every sandbox.
pub const STATEROOT: &str = "default";

/// A user without privileges: `nobody`. The bus, outside, must know it as well: dbus-daemon
/// refuses users whose groups it cannot look up.
pub const UNPRIVILEGED_UID: u32 = 65_534;

/// Another one: `daemon`.
pub const OTHER_UID: u32 = 1;

/// Imports into the repository it is given; returns the commit to deploy.
pub type Import<'a> = Box<dyn Fn(&Path) -> Result<String> + 'a>;

/// What the first deployment is made of.
pub enum FirstDeployment<'a> {
    /// [`crate::image::os_tree`] of that version, as a plain commit without image metadata.
    Tree(&'a str),
    /// An image of a layout, by tag, written in bootc's on-disk format by the harness.
    Image(&'a Layout, &'a str),
    /// Whatever the function, an oracle's import for one, commits to the repository.
    Import(Import<'a>),
}

impl fmt::Debug for FirstDeployment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(version) => write!(f, "Tree({version})"),
            Self::Image(layout, tag) => write!(f, "Image({}:{tag})", layout.path.display()),
            Self::Import(_) => write!(f, "Import"),
        }
    }
}

/// How a sandbox is installed.
#[derive(Debug)]
pub struct Options<'a> {
    /// The first deployment.
    pub first: FirstDeployment<'a>,
    /// `container-image-reference` of its origin, as `ostree-unverified-registry:NAME`.
    pub origin: String,
}

/// One line of `ostree admin status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Commit.
    pub checksum: String,
    /// Serial number among deployments of that commit.
    pub serial: u32,
    /// It is the running one.
    pub booted: bool,
    /// It waits for shutdown to be finalized.
    pub staged: bool,
    /// It will be booted next.
    pub pending: bool,
    /// It stands behind the booted one.
    pub rollback: bool,
}

/// An image-based host in a directory.
#[derive(Debug)]
pub struct Sandbox {
    // In the order of dropping: processes and mounts, then files.
    namespace: Option<Namespace>,
    sysroot: Sysroot,
    root: PathBuf,
    meet: TempDir,
    scratch: TempDir,
}

impl Sandbox {
    /// A sandbox of the tiny tree, version 1, that tracks `origin`.
    ///
    /// # Errors
    /// As [`Sandbox::install`].
    pub fn tiny(origin: &str) -> Result<Self> {
        let origin = origin.to_owned();
        Self::install(&Options {
            first: FirstDeployment::Tree("1"),
            origin,
        })
    }

    /// Makes a sysroot and boots it.
    ///
    /// # Errors
    /// When not root, or a tool is missing or fails; the text is the tool's.
    pub fn install(options: &Options<'_>) -> Result<Self> {
        Self::install_over(scratch_dir()?, options)
    }

    /// As [`Sandbox::install`], with images put into the share first by `prepare`.
    ///
    /// # Errors
    /// Those of `prepare`, and of [`Sandbox::install`].
    pub fn install_with<'a>(prepare: impl FnOnce(&Path) -> Result<Options<'a>>) -> Result<Self> {
        let scratch = scratch_dir()?;
        let options = prepare(&scratch.path().join("share"))?;
        Self::install_over(scratch, &options)
    }

    fn install_over(scratch: TempDir, options: &Options<'_>) -> Result<Self> {
        // Sockets have names of at most 107 bytes, which a build directory may well exceed.
        let meet = tempfile::Builder::new()
            .prefix("osteward-")
            .tempdir_in("/run")?;
        fs::set_permissions(meet.path(), fs::Permissions::from_mode(0o755))?;
        write_accounts(meet.path())?;
        link_polkit_actions(meet.path())?;
        let path = scratch.path().join("sysroot");
        let mut sandbox = Self {
            namespace: None,
            sysroot: Sysroot { path: path.clone() },
            root: PathBuf::new(),
            meet,
            scratch,
        };
        sandbox.sysroot = Sysroot::install(&path, options)?;
        sandbox.boot()?;
        Ok(sandbox)
    }

    fn boot(&mut self) -> Result<()> {
        self.root = self.sysroot.default_deployment()?;
        self.namespace = Some(Namespace::boot(&Mounts {
            deployment: &self.root,
            sysroot: &self.sysroot.path,
            stateroot: STATEROOT,
            share: &self.share(),
            meet: self.meet.path(),
            bin: &binary_dir()?,
        })?);
        Ok(())
    }

    /// Shuts down as systemd would, finalizing what is staged, and boots the default entry.
    /// The caller stops its daemon first; other processes are killed.
    ///
    /// # Errors
    /// When finalization fails or there is nothing to boot.
    pub fn reboot(&mut self) -> Result<()> {
        if self.exists("/run/ostree/staged-deployment") {
            self.run(["ostree", "admin", "finalize-staged"])
                .context("finalizing at shutdown")?;
        }
        self.power_cut()
    }

    /// Kills everything without finalization, and boots the default entry.
    ///
    /// # Errors
    /// When there is nothing to boot.
    pub fn power_cut(&mut self) -> Result<()> {
        self.namespace = None;
        self.boot()
    }

    /// A directory of the host for images and other files, seen inside as [`SHARE`].
    pub fn share(&self) -> PathBuf {
        self.scratch.path().join("share")
    }

    /// A directory that has this same path inside and outside: the place of sockets.
    pub fn meet(&self) -> &Path {
        self.meet.path()
    }

    /// The physical sysroot, as the host sees it.
    pub fn sysroot(&self) -> &Path {
        &self.sysroot.path
    }

    /// The repository, as the host sees it.
    pub fn repo(&self) -> PathBuf {
        self.sysroot.repo_path()
    }

    /// A path inside as the host can reach it, also in `/run`.
    ///
    /// # Errors
    /// When the sandbox is not running.
    pub fn inside(&self, path: &str) -> Result<PathBuf> {
        let path = path.trim_start_matches('/');
        Ok(self.running()?.seen_from_host().join(path))
    }

    /// Whether a path exists inside.
    pub fn exists(&self, path: &str) -> bool {
        self.inside(path)
            .is_ok_and(|path| path.symlink_metadata().is_ok())
    }

    fn running(&self) -> Result<&Namespace> {
        self.namespace
            .as_ref()
            .context("the sandbox is not running")
    }

    /// A command inside, as root.
    ///
    /// # Errors
    /// When the sandbox is not running.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Command> {
        Ok(self.running()?.enter(words))
    }

    /// A command inside, as another user without capabilities.
    ///
    /// # Errors
    /// When the sandbox is not running.
    pub fn command_as<S: AsRef<OsStr>>(
        &self,
        uid: u32,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let user = [format!("--reuid={uid}"), format!("--regid={uid}")];
        let mut command = self.running()?.enter(["setpriv"]);
        command
            .args(user)
            .args(["--clear-groups", "--"])
            .args(words);
        Ok(command)
    }

    /// A command in the root of the sandbox, but among the processes of the host.
    ///
    /// # Errors
    /// When the sandbox is not running.
    pub fn command_among_host_processes<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        Ok(self.running()?.enter_mounts(words))
    }

    /// Runs a command inside to its end; returns its standard output.
    ///
    /// # Errors
    /// When it fails, with all it wrote.
    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        run(&mut self.command(words)?)
    }

    /// Runs `ostree --repo=…` on the sandbox's repository from the host.
    ///
    /// # Errors
    /// When it fails.
    pub fn ostree<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        self.sysroot.repo(words)
    }

    /// The deployments as `ostree admin status` has them, in boot order.
    ///
    /// # Errors
    /// When that fails or cannot be understood.
    pub fn deployments(&self) -> Result<Vec<Deployment>> {
        let status = self.run(["ostree", "admin", "status"])?;
        let prefix = format!("{STATEROOT} ");
        let mut deployments = Vec::new();
        for line in status.lines() {
            let Some(rest) = line.trim_start_matches(['*', ' ']).strip_prefix(&prefix) else {
                continue;
            };
            let name = rest.split_whitespace().next().unwrap_or_default();
            let (checksum, serial) = name
                .rsplit_once('.')
                .context("a deployment without serial")?;
            deployments.push(Deployment {
                checksum: checksum.to_owned(),
                serial: serial.parse()?,
                booted: line.starts_with('*'),
                staged: rest.contains("(staged)"),
                pending: rest.contains("(pending)"),
                rollback: rest.contains("(rollback)"),
            });
        }
        Ok(deployments)
    }

    /// The booted deployment.
    ///
    /// # Errors
    /// When libostree does not take the sandbox for booted.
    pub fn booted(&self) -> Result<Deployment> {
        let deployments = self.deployments()?;
        match deployments.into_iter().find(|deployment| deployment.booted) {
            Some(booted) => Ok(booted),
            None => bail!("libostree does not take the sandbox for booted"),
        }
    }

    /// Takes the sysroot lock as another tool would, waiting for it; dropping the file gives it
    /// back. libostree's lock belongs to an open file, ours to this process: the kernel lets
    /// them exclude each other, but not two of ours.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub fn hold_lock(&self) -> Result<fs::File> {
        let path = self.sysroot().join("ostree/lock");
        let file = fs::File::options().create(true).append(true).open(path)?;
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive)
            .context("taking the sysroot lock")?;
        Ok(file)
    }

    /// Fails unless `ostree fsck` finds the repository whole.
    ///
    /// # Errors
    /// With what fsck found.
    pub fn fsck(&self) -> Result<()> {
        self.ostree(["fsck", "--quiet"]).map(drop)
    }

    /// The refs of the repository that begin with `prefix`.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub fn refs(&self, prefix: &str) -> Result<Vec<String>> {
        let refs = self.ostree(["refs"])?;
        Ok(refs
            .lines()
            .filter(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .collect())
    }

    /// The checksums of the root directory's contents and metadata of a commit or ref.
    ///
    /// # Errors
    /// When there is no such commit.
    pub fn root_tree(&self, rev: &str) -> Result<(String, String)> {
        let listing = self.ostree(["ls", "-C", "-d", rev, "/"])?;
        let words: Vec<&str> = listing.split_whitespace().collect();
        match words[..] {
            [_, _, _, _, contents, metadata, ..] => Ok((contents.into(), metadata.into())),
            _ => bail!("cannot understand `ostree ls`: {listing}"),
        }
    }

    /// Whether a command succeeds inside.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn succeeds<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<bool> {
        Ok(finish(&mut self.command(words)?)?.status.success())
    }
}

/// Where [`Sandbox::share`] is seen inside.
pub const SHARE: &str = namespace::SHARE;

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.namespace = None;
        if let Err(error) = self.sysroot.remove() {
            eprintln!("left behind: {}: {error:#}", self.scratch.path().display());
        }
    }
}

/// A directory below the build directory: a real file system, where ostree can set attributes.
/// Where sandboxes are made, if not below the target directory.
static PLACE: OnceLock<PathBuf> = OnceLock::new();

/// Makes all sandboxes of this process in `directory`, which another file system may be mounted over.
///
/// # Errors
/// When another was chosen before.
pub fn make_in(directory: &Path) -> Result<()> {
    let chosen = PLACE.get_or_init(|| directory.to_owned());
    ensure!(chosen == directory, "sandboxes are in {}", chosen.display());
    Ok(())
}

fn scratch_dir() -> Result<TempDir> {
    require_root()?;
    let parent = match PLACE.get() {
        Some(place) => place.clone(),
        None => target_dir()?.join("sandbox"),
    };
    fs::create_dir_all(&parent)?;
    let scratch = tempfile::Builder::new().prefix("s-").tempdir_in(parent)?;
    fs::create_dir(scratch.path().join("share"))?;
    Ok(scratch)
}

/// Accounts as the services inside need them, with the host's numbers.
fn write_accounts(meet: &Path) -> Result<()> {
    let etc = meet.join("etc");
    fs::create_dir(&etc)?;
    for file in ["passwd", "group"] {
        let host = fs::read_to_string(Path::new("/etc").join(file))?;
        let wanted = [
            "root:",
            "daemon:",
            "polkitd:",
            "messagebus:",
            "nobody:",
            "nogroup:",
        ];
        let known = |line: &&str| wanted.iter().any(|name| line.starts_with(name));
        let lines: Vec<&str> = host.lines().filter(known).collect();
        fs::write(etc.join(file), lines.join("\n") + "\n")?;
    }
    fs::write(
        etc.join("nsswitch.conf"),
        "passwd: files\ngroup: files\nhosts: files dns\n",
    )?;
    Ok(())
}

/// The polkit files that are seen inside: our actions, and rules for tests to add.
fn link_polkit_actions(meet: &Path) -> Result<()> {
    let (actions, rules) = (meet.join("polkit/actions"), meet.join("polkit/rules.d"));
    fs::create_dir_all(&actions)?;
    fs::create_dir_all(&rules)?;
    // polkit's own, where its defaults are; every other service's is hidden.
    let polkit = Path::new("/usr/share/polkit-1/actions/org.freedesktop.policykit.policy");
    let mut files = vec![polkit.to_owned()];
    for entry in fs::read_dir(crate::process::workspace().join("systemd-units"))? {
        files.push(entry?.path());
    }
    for file in files
        .iter()
        .filter(|file| file.extension() == Some(OsStr::new("policy")))
    {
        if let Some(name) = file.file_name()
            && file.exists()
        {
            fs::copy(file, actions.join(name))?;
        }
    }
    Ok(())
}
