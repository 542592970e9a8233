//! The pristine disk: what an installer would have left on a machine.
//!
//! Owns the disk's layout and its first deployment. The disk has a GPT with a BIOS-boot
//! partition for GRUB and one ext4 file system for everything else, `/boot` included. In its
//! repository stands version 1, as ostree-ext imports it or as a plain commit; the deployment is
//! made by the image's own `ostree`, because it alone knows which ComposeFS metadata its
//! `ostree-prepare-root` will want.
//!
//! Invariant: all mounts are in a private namespace, which the kernel takes down together with
//! this process, and the loop device with it.

use std::env::consts::ARCH;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Suite;
use super::grub::{self, BiosBoot};
use crate::image::Layout;
use crate::oracle;
use crate::process::{command, run};

/// Bytes of the disk: version 1 leaves about 500 MB free, room for some updates and too little
/// for the image that is meant not to fit.
const DISK_SIZE: u64 = 896 << 20;
/// Where the root file system starts, in bytes from the start of the disk.
pub(crate) const ROOT_OFFSET: u64 = ROOT_START * SECTOR;
/// The root file system's UUID, the same on every disk: equal inputs give equal boot entries.
const ROOT_UUID: &str = "05730a2d-0571-4e2a-9d1b-6f7374657761";
/// The stateroot of a bootc host.
const STATEROOT: &str = "default";
const TAG: &str = "v1";

const SECTOR: u64 = 512;
const BIOS_BOOT: BiosBoot = BiosBoot {
    first: 2048,
    sectors: ROOT_START - 2048,
};
const ROOT_START: u64 = 4096;
/// Sectors that the backup of the partition table takes at the end of the disk.
const GPT_TAIL: u64 = 33;
/// File system blocks, in bytes.
const BLOCK: u64 = 4096;

/// Kernel arguments of the installation; `rw` because a read-only `/sysroot` is the business of
/// `ostree-prepare-root`. `quiet` and `mitigations=off` save time, most of all where the machine
/// is emulated. An emulated timer may not tick in the moment in which the kernel looks whether it
/// does, if the host has no time for it then; the kernel takes it for broken and panics, unless it
/// does not look. Under KVM it never does; the other machines' kernels do not know the word.
const INSTALL_KARGS: [&str; 5] = [
    "rw",
    "console=ttyS0,115200",
    "quiet",
    "mitigations=off",
    "no_timer_check",
];

/// What becomes version 1 of the disk.
pub(crate) enum System<'a> {
    /// The image with the tag `v1` of this layout, on an ostree base (see [`oracle::write_base`]).
    Image(&'a Layout),
    /// These root trees, one over the other.
    Trees(&'a [&'a Path]),
}

/// Makes the disk `out` for version 1 of `suite`, `system`. Its kernel arguments are read from its
/// root tree, `tree`. `base` is a chrootable tree of the same suite, only read, that has its
/// `ostree`.
///
/// # Errors
/// With the words of whatever program failed; `out` is worth nothing then.
pub(crate) fn build(
    out: &Path,
    tools: &Path,
    base: &Path,
    tree: &Path,
    system: &System<'_>,
    suite: Suite,
) -> Result<()> {
    // Beside the disk, so that trees can be linked and not copied.
    let scratch = tempfile::tempdir_in(out.parent().context("a disk in no directory")?)?;
    let scratch = scratch.path();
    partition(out)?;
    let file = File::options().read(true).write(true).open(out)?;
    grub::embed(&file, BIOS_BOOT, ROOT_UUID, tools, scratch)?;
    drop(file);
    make_root(out, tools)?;
    let mounted = Mounted::mount(out, base, scratch)?;
    install(&mounted, tree, system, suite, scratch)?;
    grub::configure(&mounted.root())?;
    mounted.unmount()
}

/// A program of the tools tree, to be run where it stands: its loader and libraries are named, so
/// it needs neither a chroot nor a new libc on this machine, and sees this machine's paths.
pub(crate) fn tool(tools: &Path, path: &str) -> Command {
    let mut tool = command([tools.join("lib64/ld-linux-x86-64.so.2")]);
    tool.arg("--library-path")
        .arg(tools.join("usr/lib/x86_64-linux-gnu"))
        .arg(tools.join(path));
    tool
}

fn partition(disk: &Path) -> Result<()> {
    File::create(disk)
        .and_then(|file| file.set_len(DISK_SIZE))
        .context("creating a disk image")?;
    let bios = format!("--new=1:{}:{}", BIOS_BOOT.first, ROOT_START - 1);
    let root = format!("--new=2:{ROOT_START}:0");
    let mut sgdisk = command(["sgdisk", "--set-alignment=1", &bios, "--typecode=1:ef02"]);
    sgdisk.args([&root, "--typecode=2:8304", "--change-name=2:root"]);
    run(sgdisk.arg(disk))
        .map(drop)
        .context("partitioning a disk")
}

fn make_root(disk: &Path, tools: &Path) -> Result<()> {
    let bytes = (DISK_SIZE / SECTOR - GPT_TAIL - ROOT_START) * SECTOR;
    let mut mke2fs = tool(tools, "usr/sbin/mke2fs");
    // No feature that is younger than the oldest kernel these tests meet, nor reserved blocks:
    // what counts as full is ostree's to say.
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-L", "root", "-U", ROOT_UUID])
        .args(["-b", &BLOCK.to_string(), "-m", "0", "-J", "size=16"])
        .args(["-O", "^orphan_file,^metadata_csum_seed"])
        .arg("-E")
        .arg(format!("offset={ROOT_OFFSET},lazy_itable_init=0"))
        .arg(disk)
        .arg(format!("{}k", bytes / BLOCK * BLOCK / 1024));
    run(&mut mke2fs)
        .map(drop)
        .context("making the root file system")
}

/// Makes the mounted file system a sysroot with one deployment.
fn install(
    mounted: &Mounted,
    tree: &Path,
    system: &System<'_>,
    suite: Suite,
    scratch: &Path,
) -> Result<()> {
    mounted.guest(["ostree", "admin", "init-fs", "--modern", "/mnt"])?;
    for (key, value) in [
        ("sysroot.bootloader", "none"),
        ("sysroot.bootprefix", "true"),
        ("sysroot.readonly", "true"),
        // For the time of the installation: a disk that is not whole is thrown away.
        ("core.fsync", "false"),
    ] {
        mounted.repo(["config", "set", key, value])?;
    }
    mounted.guest(["ostree", "admin", "--sysroot=/mnt", "os-init", STATEROOT])?;
    let commit = match system {
        System::Image(layout) => import(mounted, layout, suite, scratch)?,
        System::Trees(trees) => commit(mounted, trees, scratch)?,
    };
    let mut deploy = vec![
        "ostree".to_owned(),
        "admin".to_owned(),
        "--sysroot=/mnt".to_owned(),
        "deploy".to_owned(),
        format!("--os={STATEROOT}"),
        format!("--origin-file={SCRATCH}/origin"),
        format!("--karg=root=UUID={ROOT_UUID}"),
    ];
    let kargs = INSTALL_KARGS.map(str::to_owned).into_iter();
    deploy.extend(
        kargs
            .chain(image_kargs(tree)?)
            .map(|karg| format!("--karg={karg}")),
    );
    deploy.push(commit);
    mounted.guest(deploy).context("deploying version 1")?;
    mounted.repo(["config", "unset", "core.fsync"])
}

/// Imports the image as ostree-ext does, and writes the origin of its deployment; returns the
/// commit.
fn import(mounted: &Mounted, layout: &Layout, suite: Suite, scratch: &Path) -> Result<String> {
    let reference = suite.reference(TAG);
    let place = format!("oci:{}:{TAG}", layout.path.display());
    let repo = mounted.root().join("ostree/repo");
    let image = oracle::import_as(&repo, &place, &format!("docker://{reference}"))
        .context("importing version 1")?;
    let origin =
        format!("[origin]\ncontainer-image-reference=ostree-unverified-registry:{reference}\n");
    fs::write(scratch.join("origin"), origin)?;
    Ok(image.merge_commit)
}

/// Lays root trees over each other, with `/etc` where ostree wants an image's, and without the
/// devices, which it does not take.
const LAY: &str = r#"
set -eu
root=$1
shift
mkdir "$root"
for tree; do cp -alf "$tree/." "$root"; done
find "$root/dev" -mindepth 1 -delete
mv "$root/etc" "$root/usr/etc""#;

/// Commits trees to a branch, and writes the origin of its deployment; returns the branch.
fn commit(mounted: &Mounted, trees: &[&Path], scratch: &Path) -> Result<String> {
    const BRANCH: &str = "lab/os";
    let mut lay = command(["sh", "-c", LAY, "lay"]);
    run(lay.arg(scratch.join("root")).args(trees)).context("laying out version 1")?;
    let branch = format!("--branch={BRANCH}");
    let root = format!("{SCRATCH}/root");
    mounted
        .repo([
            "commit",
            "--bootable",
            "--add-metadata-string=version=1",
            &branch,
            &root,
        ])
        .context("committing version 1")?;
    fs::write(
        scratch.join("origin"),
        format!("[origin]\nrefspec={BRANCH}\n"),
    )?;
    Ok(BRANCH.to_owned())
}

/// One file of `/usr/lib/bootc/kargs.d`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct KargsFile {
    kargs: Vec<String>,
    match_architectures: Option<Vec<String>>,
}

/// The kernel arguments that the image itself brings, in the order of their files' names.
fn image_kargs(tree: &Path) -> Result<Vec<String>> {
    let dir = tree.join("usr/lib/bootc/kargs.d");
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|file| file.extension() == Some(OsStr::new("toml")));
    files.sort();
    let mut kargs = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let read: KargsFile =
            toml::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
        let architectures = read.match_architectures;
        if architectures.is_none_or(|names| names.iter().any(|name| name == ARCH)) {
            kargs.extend(read.kargs);
        }
    }
    Ok(kargs)
}

/// Where the scratch directory is seen in the chroot.
const SCRATCH: &str = "/run/scratch";

/// Mounts the disk's root file system at `/mnt` of a tree, with what `ostree` needs around it,
/// says `ready`, and waits for its standard input to close.
const MOUNT: &str = r#"
set -eu
trap '' HUP INT QUIT
disk=$1 offset=$2 tree=$3 scratch=$4 seen=$5
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
mount -t tmpfs tmpfs "$tree/run"
mkdir "$tree$seen"
mount --bind "$scratch" "$tree$seen"
mount -o "loop,offset=$offset" "$disk" "$tree/mnt"
echo ready
while read -r line; do :; done
"#;

/// A disk whose root file system is mounted in a namespace of its own, below a tree that can be
/// chrooted into. Dropping it undoes the mounts.
#[derive(Debug)]
struct Mounted {
    holder: Child,
    tree: PathBuf,
}

impl Mounted {
    fn mount(disk: &Path, tree: &Path, scratch: &Path) -> Result<Self> {
        let tree = fs::canonicalize(tree).with_context(|| format!("no {}", tree.display()))?;
        let mut holder = command(["unshare", "--mount", "--propagation", "private"])
            .args(["sh", "-c", MOUNT, "mount"])
            .arg(disk)
            .arg(ROOT_OFFSET.to_string())
            .args([tree.as_path(), scratch])
            .arg(SCRATCH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let stdout = holder.stdout.take().context("unshare has no output")?;
        let mounted = Self { holder, tree };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(
            line == "ready\n",
            "the disk could not be mounted (see above)"
        );
        Ok(mounted)
    }

    /// The root file system, seen from outside of the namespace.
    fn root(&self) -> PathBuf {
        let tree = self.tree.strip_prefix("/").unwrap_or(&self.tree);
        let namespace = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        namespace.join(tree).join("mnt")
    }

    fn enter(&self) -> Command {
        let target = self.holder.id().to_string();
        command(["nsenter", "--mount", "--target", &target, "--"])
    }

    /// Runs a program of the tree, which sees the root file system at `/mnt`.
    fn guest<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<()> {
        let mut chroot = self.enter();
        chroot.arg("chroot").arg(&self.tree);
        chroot.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        run(chroot.arg("LC_ALL=C.UTF-8").args(words)).map(drop)
    }

    /// Runs the tree's `ostree --repo=…` with these words.
    fn repo<const N: usize>(&self, words: [&str; N]) -> Result<()> {
        self.guest(["ostree", "--repo=/mnt/ostree/repo"].iter().chain(&words))
    }

    /// Takes the file system down properly: the disk is complete only then.
    fn unmount(self) -> Result<()> {
        run(self.enter().arg("umount").arg(self.tree.join("mnt")))
            .map(drop)
            .context("unmounting the disk")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // The shell cannot outlast its end of the pipe, and the mounts end with it; a failed wait
        // means that it was gone before.
        let _ended = self.holder.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kargs_of(files: &[(&str, &str)]) -> Result<Vec<String>> {
        let tree = tempfile::tempdir()?;
        let dir = tree.path().join("usr/lib/bootc/kargs.d");
        fs::create_dir_all(&dir)?;
        for (name, text) in files {
            fs::write(dir.join(name), text)?;
        }
        image_kargs(tree.path())
    }

    #[test]
    fn kernel_arguments_come_in_the_order_of_their_files() {
        let read = kargs_of(&[
            ("20-b.toml", r#"kargs = ["b=1"]"#),
            ("10-a.toml", r#"kargs = ["a", "a=2"]"#),
            ("README", "not one of them"),
        ]);
        assert_eq!(read.unwrap(), ["a", "a=2", "b=1"]);
    }

    #[test]
    fn kernel_arguments_of_another_architecture_are_left_out() {
        let other = "kargs = [\"x\"]\nmatch-architectures = [\"s390x\"]";
        let own = format!("kargs = [\"y\"]\nmatch-architectures = [\"{ARCH}\"]");
        let read = kargs_of(&[("1.toml", other), ("2.toml", &own)]);
        assert_eq!(read.unwrap(), ["y"]);
    }

    #[test]
    fn an_odd_file_of_kernel_arguments_is_refused() {
        let error = kargs_of(&[("1.toml", "kargz = []")]).unwrap_err();
        assert!(format!("{error:#}").contains("1.toml"), "{error:#}");
    }

    #[test]
    fn an_image_may_have_no_kernel_arguments() {
        let tree = tempfile::tempdir().unwrap();
        assert!(image_kargs(tree.path()).unwrap().is_empty());
    }
}
