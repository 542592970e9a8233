//! The running half of a sandbox: a mount and PID namespace rooted in one deployment.
//!
//! Invariants: all mounts are in a private namespace, which the kernel takes down with the last
//! process in it; the namespace's first process stands outside the chroot, which is how
//! `systemctl` sees that there is no service manager to talk to ("running in chroot, ignoring").

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::{command, innermost};

/// Where the built binaries are seen inside.
pub(super) const BIN: &str = "/run/osteward-bin";
/// Where [`super::Sandbox::share`] is seen inside.
pub(super) const SHARE: &str = "/run/share";

/// Mounts what ostree-prepare-root and systemd mount on a booted host, says `ready`, then waits
/// for its standard input to close. `/sysroot` stays writable, unlike there: to make it so,
/// libostree 2022.7 remounts the file system and not only the mount, which here is the
/// machine's own, and fails now and then when two sandboxes do it at once.
const BOOT: &str = r#"
set -eu
trap '' HUP INT QUIT
D=$1 T=$2 STATEROOT=$3 SHARE=$4 MEET=$5 BIN=$6
mount --bind "$D" "$D"
mount --bind "$T" "$D/sysroot"
mount --bind "$T/boot" "$D/boot"
mount --bind "$T/ostree/deploy/$STATEROOT/var" "$D/var"
mkdir -p "$D/var/home" "$D/var/opt" "$D/var/roothome" "$D/var/srv" "$D/var/mnt" "$D/var/lib"
mount --bind /usr "$D/usr"
mount -o remount,bind,ro "$D/usr"
mount --rbind /dev "$D/dev"
mount -t proc proc "$D/proc"
mount -t tmpfs -o mode=1777 tmpfs "$D/tmp"
mount -t tmpfs -o mode=755 tmpfs "$D/run"
mkdir -p "$D/run/ostree" "$D/run/share" "$D/run/osteward-bin" "$D$MEET"
: >"$D/run/ostree-booted"
mount --bind "$SHARE" "$D/run/share"
mount --bind "$BIN" "$D/run/osteward-bin"
mount --bind "$MEET" "$D$MEET"
for file in passwd group nsswitch.conf; do
    [ -e "$D/etc/$file" ] || : >"$D/etc/$file"
    mount --bind "$MEET/etc/$file" "$D/etc/$file"
done
mkdir -p "$D/etc/polkit-1/rules.d"
mount --bind "$MEET/polkit/rules.d" "$D/etc/polkit-1/rules.d"
if [ -d "$D/usr/share/polkit-1/actions" ]; then
    mount --bind "$MEET/polkit/actions" "$D/usr/share/polkit-1/actions"
fi
echo ready
while read -r line; do :; done
"#;

/// What a namespace is made of.
#[derive(Debug)]
pub(super) struct Mounts<'a> {
    /// The deployment that becomes the root.
    pub(super) deployment: &'a Path,
    /// The physical sysroot.
    pub(super) sysroot: &'a Path,
    /// The name of the stateroot whose `/var` is used.
    pub(super) stateroot: &'a str,
    /// Host directory seen at [`SHARE`].
    pub(super) share: &'a Path,
    /// Host directory seen at the same path inside, for sockets.
    pub(super) meet: &'a Path,
    /// Host directory seen at [`BIN`].
    pub(super) bin: &'a Path,
}

/// A running namespace; dropping it kills everything inside, at once, as a power cut would.
#[derive(Debug)]
pub(super) struct Namespace {
    unshare: Child,
    first: u32,
    root: PathBuf,
}

impl Namespace {
    /// Mounts everything and waits until that is done.
    ///
    /// # Errors
    /// With the shell's words when a mount fails.
    pub(super) fn boot(mounts: &Mounts<'_>) -> Result<Self> {
        let mut unshare = command(["unshare", "--mount", "--pid", "--fork", "--kill-child"])
            .args(["--propagation", "private", "sh", "-c", BOOT, "boot"])
            .args([mounts.deployment, mounts.sysroot])
            .arg(mounts.stateroot)
            .args([mounts.share, mounts.meet, mounts.bin])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let stdout = unshare.stdout.take().context("unshare has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let first = innermost(unshare.id())?;
        let namespace = Self {
            unshare,
            first,
            root: mounts.deployment.to_owned(),
        };
        ensure!(
            line == "ready\n",
            "the sandbox did not boot: its mounts failed (see above)"
        );
        Ok(namespace)
    }

    /// A command in the namespaces and the root of the sandbox, with a clean environment.
    pub(super) fn enter<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let path = format!("PATH={BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin");
        let mut enter = command(["nsenter", "--target", &self.first.to_string()]);
        enter
            .args(["--mount", "--pid", "--", "chroot"])
            .arg(&self.root);
        enter
            .args(["env", "-i", &path, "LC_ALL=C.UTF-8", "HOME=/"])
            .args(words);
        enter
    }

    /// As [`Namespace::enter`], but with the host's process ids (and a `/proc` of those), for
    /// services that look up their callers by the process id the bus names.
    pub(super) fn enter_mounts<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> Command {
        const SCRIPT: &str = r#"mount -t proc proc "$1/proc" && exec chroot "$@""#;
        let mut enter = command(["nsenter", "--target", &self.first.to_string()]);
        enter.args([
            "--mount",
            "--",
            "unshare",
            "--mount",
            "--propagation",
            "private",
        ]);
        enter
            .args(["sh", "-c", SCRIPT, "enter"])
            .arg(&self.root)
            .args(words);
        enter
    }

    /// The root directory inside, with all that is mounted there.
    pub(super) fn seen_from_host(&self) -> PathBuf {
        let root = self.root.strip_prefix("/").unwrap_or(&self.root);
        Path::new("/proc")
            .join(self.first.to_string())
            .join("root")
            .join(root)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.unshare.stdin.take());
        // The first process of a PID namespace ends only when all others are gone, and the
        // mounts go with it. A failed wait means it was gone before.
        let _ended = self.unshare.wait();
    }
}
