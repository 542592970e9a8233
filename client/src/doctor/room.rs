//! Whether an update would find room, in the repository and in `/boot`.
//!
//! Owns the estimate of somebody without privileges. The daemon, which can look into images,
//! decides before a download; here the next kernel is taken to be as large as this one.
//! Invariant: nothing fails on a guess that the daemon would not fail on.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use osteward_dbus::UNKNOWN;
use osteward_dbus::types::UpdateInfo;

use super::Finding;
use super::host::Host;
use crate::text::bytes;

/// What a file takes at least.
const BLOCK: u64 = 4096;
/// What goes to `/boot` of a kernel's directory.
const KERNEL: [&str; 5] = [
    "vmlinuz",
    "initramfs.img",
    "initramfs",
    "devicetree",
    "aboot.img",
];
/// Boot entries of a few deployments, which are written anew.
const ENTRIES: u64 = 16 * BLOCK;
/// What libostree keeps free where the repository says nothing else, in percent.
const RESERVE: u64 = 3;
const NEXT: &str = "`osteward discard cache unreferenced --dry-run` tells how much that frees; \
                    without --dry-run it does.";

pub(super) fn findings(host: &Host, update: Option<&UpdateInfo>) -> Vec<Finding> {
    let repository = host.path("sysroot/ostree/repo");
    let boot = host.path("boot");
    let mut findings = Vec::new();
    if let Some(disk) = Disk::at(&repository) {
        let config = fs::read_to_string(repository.join("config")).unwrap_or_default();
        findings.push(in_repository(disk, reserve(&config, disk.size), update));
    }
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    if device(&boot) != device(&repository)
        && let Some(disk) = Disk::at(&boot)
    {
        let need = ENTRIES + kernel(&host.path("usr/lib/modules"));
        let others = other_kernels(&boot.join("ostree"), &host.command_line());
        findings.push(in_boot(disk.free, need, others));
    }
    findings
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy)]
struct Disk {
    size: u64,
    free: u64,
}

impl Disk {
    fn at(path: &Path) -> Option<Self> {
        let found = rustix::fs::statvfs(path).ok()?;
        Some(Self {
            size: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }
}

fn in_repository(disk: Disk, reserve: u64, update: Option<&UpdateInfo>) -> Finding {
    const ID: &str = "repository-space";
    let have = disk.free.saturating_sub(reserve);
    // Unpacked it is more; by how much nobody knows before.
    let need = update
        .filter(|update| matches!(update.state.as_str(), "available" | "downloading"))
        .map(|update| update.download_size)
        .filter(|size| *size != UNKNOWN)
        .unwrap_or_default();
    let text = format!("{} free besides libostree's reserve", bytes(have));
    if have == 0 {
        let text = format!(
            "full: {} free, of which libostree keeps {}",
            bytes(disk.free),
            bytes(reserve)
        );
        return Finding::fail(ID, text, NEXT);
    }
    match need {
        0 => Finding::ok(ID, text),
        need if need > have => Finding::fail(
            ID,
            format!("{text}, the update needs {} and more", bytes(need)),
            NEXT,
        ),
        need => Finding::ok(
            ID,
            format!("{text}, the update is {} to download", bytes(need)),
        ),
    }
}

fn in_boot(have: u64, need: u64, others: u64) -> Finding {
    const ID: &str = "boot-space";
    let text = format!(
        "{} free in /boot, one more kernel needs {}",
        bytes(have),
        bytes(need)
    );
    if need <= have {
        Finding::ok(ID, text)
    } else if need <= have.saturating_add(others) {
        Finding::warn(
            ID,
            format!(
                "{text}; it fits when older ones go, which take {}",
                bytes(others)
            ),
            "`osteward status` shows what is pinned; `osteward remove rollback` makes room by hand.",
        )
    } else {
        Finding::fail(
            ID,
            text,
            "Remove what others put into /boot, or unpin and `osteward remove` a deployment.",
        )
    }
}

/// What libostree leaves free of a disk of `size`, as the repository's configuration has it.
fn reserve(config: &str, size: u64) -> u64 {
    let value = |key: &str| {
        let lines = config.lines().filter_map(|line| line.split_once('='));
        let mut found = lines.filter(|(name, _)| name.trim() == key);
        found.next_back().map(|(_, value)| value.trim())
    };
    let percent = || {
        let percent = value("min-free-space-percent").and_then(|text| text.parse().ok());
        size / 100 * percent.unwrap_or(RESERVE)
    };
    let unit = |text: &str| {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match &text[digits.len()..] {
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            "TB" => 1 << 40,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(factor)
    };
    value("min-free-space-size")
        .and_then(unit)
        .unwrap_or_else(percent)
}

/// The size of the largest kernel below `modules`, with what the boot loader takes with it.
fn kernel(modules: &Path) -> u64 {
    let versions = fs::read_dir(modules).into_iter().flatten().flatten();
    let sizes = versions
        .map(|version| version.path())
        .filter(|version| version.join("vmlinuz").exists())
        .map(|version| {
            let files = KERNEL.iter().map(|name| version.join(name));
            files.map(|file| size(&file)).sum::<u64>()
        });
    sizes.max().unwrap_or_default()
}

/// The sizes of all kernels in `/boot/ostree` but the one that runs.
fn other_kernels(directory: &Path, command_line: &str) -> u64 {
    let running = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("ostree="))
        .and_then(booted_kernel);
    // Without knowing which one stays, none is counted as one that goes.
    let Some(running) = running else { return 0 };
    let kernels = fs::read_dir(directory).into_iter().flatten().flatten();
    kernels
        .filter(|kernel| kernel.file_name() != running.as_str())
        .flat_map(|kernel| fs::read_dir(kernel.path()).into_iter().flatten().flatten())
        .map(|file| size(&file.path()))
        .sum()
}

/// `/ostree/boot.1/os/CHECKSUM/0` boots the kernel in `/boot/ostree/os-CHECKSUM`.
fn booted_kernel(argument: &str) -> Option<String> {
    let mut parts = argument.trim_start_matches('/').split('/').skip(2);
    Some(format!("{}-{}", parts.next()?, parts.next()?))
}

fn size(file: &Path) -> u64 {
    let metadata = fs::metadata(file).ok().filter(fs::Metadata::is_file);
    metadata.map_or(0, |file| file.len().next_multiple_of(BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::sample;

    #[test]
    fn the_reserve_is_the_repositorys() {
        let cases = [
            ("[core]\n", 3),
            ("[core]\nmin-free-space-percent = 10\n", 10),
            ("[core]\nmin-free-space-percent=odd\n", 3),
            ("[core]\nmin-free-space-size=2MB\n", 2 << 20),
            (
                "[core]\nmin-free-space-size=2\nmin-free-space-percent=0\n",
                0,
            ),
        ];
        for (config, expected) in cases {
            assert_eq!(reserve(config, 100), expected, "{config}");
        }
    }

    #[test]
    fn a_repository_is_full_at_its_reserve_and_too_small_for_a_known_update() {
        let disk = Disk {
            size: 1 << 40,
            free: 1 << 30,
        };
        let mut update = sample::update("available", 'c');
        update.download_size = 2 << 30;
        let level =
            |reserve, update: Option<&UpdateInfo>| in_repository(disk, reserve, update).level;
        assert_eq!(level(0, None), Level::Ok);
        assert_eq!(level(1 << 30, None), Level::Fail);
        assert_eq!(level(0, Some(&update)), Level::Fail);
        update.state = "staged".into();
        assert_eq!(level(0, Some(&update)), Level::Ok);
        update.state = "available".into();
        update.download_size = UNKNOWN;
        assert_eq!(level(0, Some(&update)), Level::Ok);
    }

    #[test]
    fn boot_has_room_or_gets_it_or_has_none() {
        assert_eq!(in_boot(100, 100, 0).level, Level::Ok);
        assert_eq!(in_boot(60, 100, 40).level, Level::Warn);
        let full = in_boot(60, 100, 39);
        assert_eq!(full.level, Level::Fail);
        assert!(full.text.contains("60 B") && full.text.contains("100 B"));
    }

    #[test]
    fn kernels_are_measured() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, size: usize| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; size]).unwrap();
        };
        write("modules/6.1/vmlinuz", 5000);
        write("modules/6.1/initramfs.img", 1);
        write("modules/6.1/modules.dep", 100_000);
        write("modules/6.2/initramfs.img", 100_000);
        assert_eq!(kernel(&root.path().join("modules")), 3 * BLOCK);
        write("boot/os-aa/vmlinuz", 1);
        write("boot/os-bb/vmlinuz", 5000);
        let boot = root.path().join("boot");
        let line = "rw ostree=/ostree/boot.1/os/aa/0 quiet";
        assert_eq!(other_kernels(&boot, line), 2 * BLOCK);
        assert_eq!(other_kernels(&boot, "rw"), 0);
    }
}
