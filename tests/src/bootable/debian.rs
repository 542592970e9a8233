//! Debian's archive: the tools tree and each suite's packages, by mmdebstrap.

use std::path::Path;

use anyhow::{Context, Result};

use super::Suite;
use super::product::product;
use crate::process::{command, run};

/// Programs that run in a `chroot`, because the host has others, or none: a GRUB that reads BLS
/// entries, user-mode Linux, QEMU, and what initramfs and disks are made with.
const TOOLS: &[&str] = &[
    "bash",
    "busybox-static",
    "coreutils",
    "e2fsprogs",
    "grep",
    "grub-pc-bin",
    "grub2-common",
    "kmod",
    "libc-bin",
    "qemu-system-x86",
    "seabios",
    "sed",
    "user-mode-linux",
];

/// The suite whose packages the tools are, whatever the guest's.
const TOOLS_SUITE: Suite = Suite::Forky;

/// What a guest needs to boot, and what osteward needs on it.
const GUEST: &[&str] = &[
    "ca-certificates",
    "dbus",
    // Satisfies the kernel's wish for an initramfs builder; the initramfs here is our own.
    "dracut",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libglib2.0-bin",
    "libostree-1-1",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "login",
    "ostree",
    "ostree-boot",
    "passwd",
    "polkitd",
    "systemd",
    "systemd-sysv",
    "udev",
    "util-linux",
];

/// Directories of `/usr/share` that are not unpacked: nobody reads manuals in a test.
const LEFT_OUT: [&str; 6] = ["doc", "info", "lintian", "locale", "man", "bash-completion"];

/// What mmdebstrap is told to have `/bin` and its kin in `/usr`.
const MERGED_USR: &str = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr";

/// Makes the tools tree.
///
/// # Errors
/// With mmdebstrap's words.
pub(super) fn tools(out: &Path) -> Result<String> {
    let inputs = [include_str!("debian.rs")];
    product(out, &inputs, |out| {
        let mut words = vec!["--variant=extract".to_owned()];
        words.push(format!("--include={}", TOOLS.join(",")));
        bootstrap(TOOLS_SUITE, &words, out)?;
        for point in ["dev", "media", "mnt", "proc", "root", "run", "sys", "tmp"] {
            std::fs::create_dir_all(out.join(point))?;
        }
        Ok(())
    })
}

/// Makes a suite's packages into a tree, all installed.
///
/// # Errors
/// With mmdebstrap's words.
pub(super) fn base(out: &Path, suite: Suite) -> Result<String> {
    let inputs = [suite.name(), include_str!("debian.rs")];
    product(out, &inputs, |out| {
        let mut words = vec!["--variant=minbase".to_owned()];
        words.push(format!("--include={}", GUEST.join(",")));
        words.push("--dpkgopt=force-unsafe-io".into());
        let left_out = LEFT_OUT.map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*"));
        words.extend(left_out);
        if suite == Suite::Bookworm {
            // Later releases have no other layout.
            words.push(MERGED_USR.into());
        }
        bootstrap(suite, &words, out)
    })
}

/// Makes a tree of podman's packages and of all that they depend on, none of them installed.
///
/// # Errors
/// With mmdebstrap's words.
pub(super) fn podman(out: &Path, suite: Suite) -> Result<String> {
    let inputs = [suite.name(), include_str!("debian.rs")];
    product(out, &inputs, |out| {
        let words = [
            "--variant=extract",
            "--include=podman",
            "--aptopt=APT::Install-Recommends \"false\"",
        ];
        bootstrap(suite, &words.map(str::to_owned), out)
    })
}

/// Unpacks packages, separated by commas, and all that they depend on, with `hook` run by a shell
/// on the tree (`$1`) while the archives are still in its apt cache. None of them is installed.
///
/// # Errors
/// With mmdebstrap's words.
pub(crate) fn unpack(suite: Suite, packages: &str, hook: &str, out: &Path) -> Result<()> {
    let mut words = vec!["--variant=extract".to_owned()];
    words.push(format!("--include={packages}"));
    words.push(format!("--extract-hook={hook}"));
    if suite == Suite::Bookworm {
        words.push(MERGED_USR.into());
    }
    bootstrap(suite, &words, out)
}

fn bootstrap(suite: Suite, words: &[String], out: &Path) -> Result<()> {
    let mut mmdebstrap = command(["mmdebstrap", "--quiet", "--mode=root"]);
    mmdebstrap
        .args(words)
        .arg("--aptopt=Acquire::Languages \"none\"")
        // A mirror that stands still is past the date its Release files are valid until. The
        // signatures are verified as ever.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .arg(suite.name())
        .arg(out)
        .arg(mirror())
        // Kernel packages build no initramfs then.
        .env("INITRD", "No");
    run(&mut mmdebstrap)
        .context("making a Debian tree (OSTEWARD_DEBIAN_MIRROR names another mirror)")?;
    Ok(())
}

/// `OSTEWARD_DEBIAN_MIRROR`, the mirror that a Debian host itself uses, or everybody's.
fn mirror() -> String {
    let named = std::env::var("OSTEWARD_DEBIAN_MIRROR").ok();
    let targets = [
        "apt-get",
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
    ];
    // Without apt there is no mirror to learn of.
    let listed = run(&mut command(targets)).unwrap_or_default();
    named
        .or_else(|| first_debian(&listed))
        .unwrap_or_else(|| "http://deb.debian.org/debian".into())
}

/// The address in the first line that is labelled as Debian's main archive.
fn first_debian(targets: &str) -> Option<String> {
    let uri = targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian "))?;
    Some(uri.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_and_nobody_elses() {
        let targets = "Node Source https://deb.example.com/node\n\
                       Debian-Security http://one.example/debian-security/\n\
                       Debian http://two.example/debian/\n\
                       Debian http://three.example/debian/\n";
        assert_eq!(first_debian(targets).unwrap(), "http://two.example/debian");
        assert_eq!(first_debian("Ubuntu http://four.example/ubuntu/\n"), None);
    }
}
