//! What this user can see of the host without anybody's help: files and mounts.
//!
//! Invariant: only looks, below one root directory, which is `/` except in tests.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use osteward_dbus::NO_OBJECT;
use osteward_dbus::types::Status;
use serde_json::Value;

use super::Finding;

/// Certificates of today are not valid yet on a clock before this (2026-01-01), and none is
/// any more on one after that (2100-01-01): a clock that lost its battery, or was set wrongly.
const SANE: std::ops::Range<u64> = 1_767_225_600..4_102_444_800;

/// Where the initramfs gets its program from that finds the deployment to boot.
const PREPARE_ROOT: [&str; 2] = [
    "usr/lib/ostree/ostree-prepare-root",
    "usr/libexec/ostree/ostree-prepare-root",
];
/// Credentials for registries, in the order in which they count.
const AUTH: [&str; 3] = [
    "run/ostree/auth.json",
    "etc/ostree/auth.json",
    "usr/lib/ostree/auth.json",
];

/// The host, and what time it thinks it is.
#[derive(Debug)]
pub(super) struct Host {
    root: PathBuf,
    now: u64,
}

impl Host {
    pub(super) fn new(root: &Path, now: u64) -> Self {
        let root = root.to_owned();
        Self { root, now }
    }

    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Whether ostree booted this host.
    pub(super) fn is_booted(&self) -> bool {
        self.path("run/ostree-booted").exists()
    }

    /// The kernel's command line; empty where it cannot be read.
    pub(super) fn command_line(&self) -> String {
        fs::read_to_string(self.path("proc/cmdline")).unwrap_or_default()
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.booted()];
        if self.is_booted() {
            findings.extend(self.sysroot());
            findings.push(self.prepare_root());
        }
        findings.extend(self.policy());
        findings.extend(self.credentials());
        findings.push(self.clock());
        findings
    }

    fn booted(&self) -> Finding {
        const ID: &str = "booted";
        let composefs = |word: &str| word.starts_with("composefs=");
        if self.is_booted() {
            Finding::ok(ID, "ostree booted this host")
        } else if self.command_line().split_whitespace().any(composefs) {
            Finding::fail(
                ID,
                "this host was booted by the composefs backend of bootc, not by ostree",
                "Update it with bootc; osteward cannot yet.",
            )
        } else {
            Finding::fail(
                ID,
                "ostree did not boot this host",
                "osteward works on image-based hosts, not in containers or on package-based hosts.",
            )
        }
    }

    /// Where `/sysroot` is mounted read-only that is as it should be: the daemon mounts it
    /// anew for itself. It cannot do that if the file system itself is read-only.
    fn sysroot(&self) -> Option<Finding> {
        const ID: &str = "sysroot";
        let mounts = fs::read_to_string(self.path("proc/self/mountinfo")).ok()?;
        Some(match is_writable(&mounts, "/sysroot")? {
            true => Finding::ok(ID, "the file system of /sysroot can be written to"),
            false => Finding::fail(
                ID,
                "the file system of /sysroot is read-only",
                "A read-only medium, or errors that the kernel met: `findmnt /sysroot`, `journalctl -k`.",
            ),
        })
    }

    fn prepare_root(&self) -> Finding {
        const ID: &str = "prepare-root";
        match PREPARE_ROOT.iter().find(|path| self.path(path).exists()) {
            Some(path) => Finding::ok(ID, format!("/{path} is in the image")),
            None => Finding::warn(
                ID,
                "the booted image has no ostree-prepare-root: an initramfs made from it finds no deployment",
                "Add the package to the image that boots ostree hosts (ostree-boot on Debian).",
            ),
        }
    }

    /// Not osteward's only: podman and skopeo, which help it, refuse everything without.
    fn policy(&self) -> Option<Finding> {
        const ID: &str = "policy";
        const PATH: &str = "etc/containers/policy.json";
        let next = "containers-policy.json(5) has examples.";
        match self.json(PATH) {
            Json::Missing => None,
            Json::Hidden => Some(Finding::warn(
                ID,
                format!("/{PATH} cannot be read by everybody"),
                format!("`sudo osteward doctor` can look at it. {next}"),
            )),
            Json::Wrong(why) => Some(Finding::fail(ID, format!("/{PATH}: {why}"), next)),
            Json::Is(policy) if !policy["default"].is_array() => {
                let text = format!("/{PATH} has no list `default`");
                Some(Finding::fail(ID, text, next))
            }
            Json::Is(_) => Some(Finding::ok(ID, format!("/{PATH} can be read"))),
        }
    }

    fn credentials(&self) -> Option<Finding> {
        const ID: &str = "credentials";
        let (path, found) = AUTH
            .iter()
            .map(|path| (path, self.json(path)))
            .find(|(_, found)| !matches!(found, Json::Missing))?;
        match found {
            Json::Wrong(why) => Some(Finding::fail(
                ID,
                format!("/{path}: {why}"),
                "containers-auth.json(5) has the format.",
            )),
            Json::Is(_) => Some(Finding::ok(ID, format!("/{path} can be read"))),
            // Passwords: as it should be.
            Json::Hidden | Json::Missing => None,
        }
    }

    fn json(&self, path: &str) -> Json {
        match fs::read_to_string(self.path(path)) {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(value) => Json::Is(value),
                Err(error) => Json::Wrong(error.to_string()),
            },
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Json::Missing,
                ErrorKind::PermissionDenied => Json::Hidden,
                _ => Json::Wrong(error.to_string()),
            },
        }
    }

    fn clock(&self) -> Finding {
        const ID: &str = "clock";
        let date = crate::text::date(self.now).unwrap_or_else(|| "at its beginning".to_owned());
        match SANE.contains(&self.now) {
            true => Finding::ok(ID, format!("it is {date}")),
            false => Finding::fail(
                ID,
                format!("the clock is wrong ({date}): no registry's certificate is valid"),
                "`timedatectl set-ntp true`, or `timedatectl set-time`.",
            ),
        }
    }

    /// A staged deployment that the daemon does not know is one that nothing finalizes.
    pub(super) fn leftover(&self, status: Option<&Status>) -> Option<Finding> {
        let staged = self.path("run/ostree/staged-deployment").exists();
        let known = status?.host.staged_deployment.as_str() != NO_OBJECT;
        (staged && !known).then(|| {
            Finding::warn(
                "staged",
                "/run/ostree/staged-deployment is left over from another tool",
                "`ostree admin status` tells about it; a reboot clears it away.",
            )
        })
    }
}

/// A file with JSON, as far as this user can tell.
enum Json {
    Missing,
    Hidden,
    Wrong(String),
    Is(Value),
}

/// Whether the file system that is mounted at `place` last is writable as such; `None` if
/// nothing is mounted there. `mounts` is a mountinfo file, see proc(5).
fn is_writable(mounts: &str, place: &str) -> Option<bool> {
    let options = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let here = mount.split(' ').nth(4)? == place;
        let options = file_system.split(' ').nth(2)?;
        here.then(|| options.split(',').all(|option| option != "ro"))
    };
    mounts.lines().filter_map(options).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::sample;

    /// A host of these files, in order where nothing else is said.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let all = [
            ("run/ostree-booted", ""),
            ("usr/lib/ostree/ostree-prepare-root", ""),
            (
                "proc/self/mountinfo",
                "1 0 8:1 / /sysroot ro - ext4 /dev/sda1 rw,relatime\n",
            ),
        ];
        for (path, text) in all.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::new(root.path(), sample::NOW);
        (root, host)
    }

    fn level(host: &Host, id: &str) -> Option<Level> {
        let findings = host.findings().into_iter();
        let mut found = findings.filter(|finding| finding.id == id);
        found.next().map(|finding| finding.level)
    }

    #[test]
    fn a_host_in_order() {
        let (_root, host) = host(&[]);
        let findings = host.findings();
        assert!(
            findings.iter().all(|one| one.level == Level::Ok),
            "{findings:?}"
        );
        assert_eq!(findings.len(), 4, "{findings:?}");
    }

    #[test]
    fn a_host_that_ostree_did_not_boot() {
        let (root, host) = host(&[("proc/cmdline", "ro composefs=abc")]);
        fs::remove_file(root.path().join("run/ostree-booted")).unwrap();
        let told = host.booted();
        assert!(told.level == Level::Fail && told.text.contains("composefs"));
        assert_eq!(level(&host, "sysroot"), None);
        fs::write(root.path().join("proc/cmdline"), "ro").unwrap();
        assert!(!host.booted().text.contains("composefs"));
    }

    #[test]
    fn a_read_only_file_system_and_an_image_without_prepare_root() {
        let (root, host) = host(&[(
            "proc/self/mountinfo",
            "1 0 8:1 / /sysroot rw - ext4 /dev/sda1 rw\n2 0 8:1 / /sysroot ro - iso9660 /dev/sr0 ro,x\n",
        )]);
        fs::remove_file(root.path().join(PREPARE_ROOT[0])).unwrap();
        assert_eq!(level(&host, "sysroot"), Some(Level::Fail));
        assert_eq!(level(&host, "prepare-root"), Some(Level::Warn));
    }

    #[test]
    fn mounts() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a ro\n2 1 8:2 / /sysroot ro,x shared:1 - xfs /dev/b rw,ro2\n";
        assert_eq!(is_writable(mounts, "/"), Some(false));
        assert_eq!(is_writable(mounts, "/sysroot"), Some(true));
        assert_eq!(is_writable(mounts, "/boot"), None);
        assert_eq!(is_writable("odd\n1 2 - \n", "/"), None);
    }

    #[test]
    fn files_of_json() {
        let policy = "etc/containers/policy.json";
        for (text, expected) in [
            ("{", Level::Fail),
            ("{}", Level::Fail),
            (r#"{"default": []}"#, Level::Ok),
        ] {
            let (_root, host) = host(&[(policy, text)]);
            assert_eq!(level(&host, "policy"), Some(expected), "{text}");
        }
        let (_root, broken) = host(&[(AUTH[1], "{]"), (AUTH[2], "{}")]);
        assert_eq!(level(&broken, "credentials"), Some(Level::Fail));
        let (_root, directory) = host(&[("etc/containers/policy.json/x", "")]);
        assert_eq!(level(&directory, "policy"), Some(Level::Fail));
    }

    #[test]
    fn clocks() {
        for (now, expected) in [
            (0, Level::Fail),
            (SANE.start - 1, Level::Fail),
            (sample::NOW, Level::Ok),
            (SANE.end, Level::Fail),
        ] {
            assert_eq!(
                Host::new(Path::new("/"), now).clock().level,
                expected,
                "{now}"
            );
        }
    }

    #[test]
    fn what_nobody_finalizes_is_left_over() {
        let (_root, host) = host(&[("run/ostree/staged-deployment", "")]);
        let idle = sample::status("idle");
        assert_eq!(host.leftover(Some(&idle)).unwrap().level, Level::Warn);
        assert_eq!(host.leftover(Some(&sample::staged())), None);
        assert_eq!(host.leftover(None), None);
    }
}
