//! GRUB for BIOS machines, put into a disk image without installing anything.
//!
//! Owns the boot sector, the core image in the BIOS-boot partition and `grub.cfg`. The core
//! image carries all of its modules, so nothing but `grub.cfg` is read from the file system, and
//! that names no kernel: `blscfg` offers the entries that libostree writes, newest first, each
//! time the machine starts. It exists in GRUB 2.14 and later.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::disk::tool;
use crate::process::run;

const SECTOR: usize = 512;
/// What the core image has to do: find the partition on a GPT disk, read ext4 and boot entries,
/// load a kernel, and talk over the serial line.
const MODULES: [&str; 14] = [
    "biosdisk",
    "part_gpt",
    "ext2",
    "search",
    "search_fs_uuid",
    "normal",
    "configfile",
    "linux",
    "blsuki",
    "serial",
    "terminal",
    "test",
    "reboot",
    "halt",
];
/// Directory of `grub.cfg` in the root file system.
const PREFIX: &str = "boot/grub2";
const CONFIG: &str = "\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set default=0
set timeout=0
blscfg --path ($root)/boot/loader/entries
";

/// Where the core image goes, in sectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct BiosBoot {
    pub(super) first: u64,
    pub(super) sectors: u64,
}

/// Makes `disk` start GRUB, which takes its configuration from the file system `root_uuid`.
/// The partition table is there already and stays. `scratch` is for files that nobody needs later.
///
/// # Errors
/// When the tools tree has no GRUB, or its core image does not fit.
pub(super) fn embed(
    disk: &File,
    place: BiosBoot,
    root_uuid: &str,
    tools: &Path,
    scratch: &Path,
) -> Result<()> {
    let modules = tools.join("usr/lib/grub/i386-pc");
    let boot = fs::read(modules.join("boot.img")).context("reading GRUB's boot sector")?;
    let core = core_image(root_uuid, tools, scratch)?;
    ensure!(
        core.len() as u64 <= place.sectors * SECTOR as u64,
        "GRUB's core image has {} bytes, too many for its partition",
        core.len()
    );
    let mut first = [0; SECTOR];
    disk.read_exact_at(&mut first, 0)
        .context("reading the disk's first sector")?;
    disk.write_all_at(&boot_sector(&first, &boot, place.first)?, 0)?;
    disk.write_all_at(&chained(core, place.first)?, place.first * SECTOR as u64)
        .context("writing GRUB's core image")
}

/// Writes `grub.cfg` into the mounted root file system.
///
/// # Errors
/// When it is not writable.
pub(super) fn configure(root: &Path) -> Result<()> {
    let dir = root.join(PREFIX);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("grub.cfg"), CONFIG).context("writing grub.cfg")
}

fn core_image(root_uuid: &str, tools: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let (early, core) = (scratch.join("early.cfg"), scratch.join("core.img"));
    let script = format!(
        "search --no-floppy --fs-uuid --set=root {root_uuid}\nset prefix=($root)/{PREFIX}\n"
    );
    fs::write(&early, script)?;
    let mut mkimage = tool(tools, "usr/bin/grub-mkimage");
    mkimage
        .args(["--format=i386-pc", "--prefix", &format!("/{PREFIX}")])
        .arg("--directory")
        .arg(tools.join("usr/lib/grub/i386-pc"))
        .arg("--config")
        .arg(early)
        .arg("--output")
        .arg(&core)
        .args(MODULES);
    run(&mut mkimage).context("making GRUB's core image")?;
    fs::read(core).context("reading GRUB's core image")
}

/// GRUB's boot code for a hard disk, with the identity and the partition table of `old`.
fn boot_sector(old: &[u8; SECTOR], boot: &[u8], core: u64) -> Result<[u8; SECTOR]> {
    /// Where the boot code ends; the disk's signature and the table follow.
    const CODE_END: usize = 0x1b8;
    /// The sector of the core image, as a little-endian `u64`.
    const CORE_SECTOR: usize = 0x5c;
    /// A jump that makes the code probe for a floppy, which a hard disk does not want.
    const FLOPPY_JUMP: usize = 0x66;
    const NOP: u8 = 0x90;
    let code = boot
        .get(..CODE_END)
        .filter(|_| boot.len() == SECTOR)
        .context("GRUB's boot sector is not a sector")?;
    let mut new = *old;
    new[..CODE_END].copy_from_slice(code);
    new[CORE_SECTOR..CORE_SECTOR + 8].copy_from_slice(&core.to_le_bytes());
    new[FLOPPY_JUMP..FLOPPY_JUMP + 2].fill(NOP);
    Ok(new)
}

/// The core image in whole sectors, whose first one is told where the others are: right behind.
fn chained(mut core: Vec<u8>, first: u64) -> Result<Vec<u8>> {
    /// The one block of the first sector's list: start `u64`, length in sectors `u16`.
    const BLOCK: usize = 0x1f4;
    core.resize(core.len().next_multiple_of(SECTOR), 0);
    let rest = u16::try_from(core.len() / SECTOR)?
        .checked_sub(1)
        .filter(|rest| *rest > 0)
        .context("GRUB's core image is a single sector")?;
    core[BLOCK..BLOCK + 8].copy_from_slice(&(first + 1).to_le_bytes());
    core[BLOCK + 8..BLOCK + 10].copy_from_slice(&rest.to_le_bytes());
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_sector_keeps_the_partition_table() {
        let mut old = [0xaa; SECTOR];
        old[..4].fill(1);
        let boot = [0x55; SECTOR];
        let new = boot_sector(&old, &boot, 0x0102_0304).unwrap();
        assert_eq!(new[..0x5c], [0x55; 0x5c]);
        assert_eq!(new[0x5c..0x64], [4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(new[0x64..0x69], [0x55, 0x55, 0x90, 0x90, 0x55]);
        assert_eq!(new[0x1b8..], old[0x1b8..]);
    }

    #[test]
    fn the_boot_sector_is_no_other_file() {
        let old = [0; SECTOR];
        assert!(boot_sector(&old, &[0; 100], 1).is_err());
        assert!(boot_sector(&old, &[0; 1024], 1).is_err());
    }

    #[test]
    fn the_first_core_sector_names_the_rest() {
        let core = chained(vec![7; 3 * SECTOR - 10], 2048).unwrap();
        assert_eq!(core.len(), 3 * SECTOR);
        assert_eq!(core[0x1f4..0x1fc], 2049_u64.to_le_bytes());
        assert_eq!(core[0x1fc..0x1fe], 2_u16.to_le_bytes());
        assert_eq!(core[0x1fe..0x200], [7, 7]);
        assert!(chained(vec![7; SECTOR], 2048).is_err());
    }
}
