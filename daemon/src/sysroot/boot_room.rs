//! Room in `/boot`: what finalization is going to write there, and what it will find free.
//!
//! Owns the estimate. Finalization comes at shutdown, when nobody can be told any more; so
//! what cannot fit is refused before. Invariants: a kernel that is in `/boot` already needs no
//! room; what libostree itself makes room of counts as free; nothing is refused on a guess.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ostree::gio;
use ostree::prelude::*;

use super::{Error, Sysroot, free_bytes};

/// The kernel that is to be in `/boot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// One that is there, or nobody knows: only the boot entries count.
    There,
    /// Not there, and as large as that of the booted deployment.
    LikeBooted,
    /// That of a commit.
    Of(String),
}

/// What is needed and what there is, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootRoom {
    /// Bytes that finalization writes, at least.
    pub need: u64,
    /// Bytes that it can write.
    pub have: u64,
    /// The directory.
    pub place: PathBuf,
}

impl BootRoom {
    /// An error unless there is enough.
    pub fn suffices(&self) -> Result<(), Error> {
        if self.need <= self.have {
            return Ok(());
        }
        Err(Error::NoSpace {
            need: self.need,
            have: self.have,
            place: self.place.display().to_string(),
            cause: "the boot loader's files would not fit when the update is finalized".into(),
        })
    }
}

impl Sysroot {
    /// The room in `/boot` for one more deployment with that kernel.
    pub async fn boot_room(&self, kernel: Kernel) -> Result<BootRoom, Error> {
        self.call(move |owner| {
            let sysroot = owner.current()?;
            room(&sysroot, &owner.root, &kernel)
        })
        .await
    }
}

impl Sysroot {
    /// Whether the kernel of a commit, with all that the boot loader takes with it, is the one
    /// that the booted deployment has.
    pub async fn has_booted_kernel(&self, commit: String) -> Result<bool, Error> {
        self.call(move |owner| {
            let sysroot = owner.current()?;
            let booted = sysroot.booted_deployment().ok_or(Error::NotBooted)?;
            let repo = sysroot.repo();
            Ok(kernel_of(&repo, &booted.csum()) == kernel_of(&repo, &commit))
        })
        .await
    }
}

/// What a file takes at least.
const BLOCK: u64 = 4096;
/// The boot directory's files of a kernel (libostree looks for these names).
const FILES: [&str; 6] = [
    "vmlinuz",
    "initramfs.img",
    "initramfs",
    "devicetree",
    "aboot.img",
    ".vmlinuz.hmac",
];

fn room(sysroot: &ostree::Sysroot, root: &Path, kernel: &Kernel) -> Result<BootRoom, Error> {
    let repo = sysroot.repo();
    let place = root.join("boot");
    // The entries of all deployments are written anew, into a new directory, and the booted
    // and the new one are among them.
    let entries = (sysroot.deployments().len() as u64 + 2) * 2 * BLOCK;
    let kernel = match kernel {
        Kernel::There => 0,
        Kernel::LikeBooted => {
            let booted = sysroot.booted_deployment().ok_or(Error::NotBooted)?;
            size(&kernel_of(&repo, &booted.csum()))
        }
        Kernel::Of(commit) => {
            let new = kernel_of(&repo, commit);
            let there = |deployment: &ostree::Deployment| {
                !deployment.is_staged() && kernel_of(&repo, &deployment.csum()) == new
            };
            if sysroot.deployments().iter().any(there) {
                0
            } else {
                size(&new)
            }
        }
    };
    Ok(BootRoom {
        need: entries + kernel,
        have: free_bytes(&place) + reclaimable(sysroot, root, &place),
        place,
    })
}

/// A file that goes to `/boot`: its name, the object's checksum, its size.
type KernelFile = (PathBuf, String, u64);

fn size(kernel: &BTreeSet<KernelFile>) -> u64 {
    let sizes = kernel
        .iter()
        .map(|(_, _, size)| size.next_multiple_of(BLOCK));
    sizes.sum()
}

/// The kernel of a commit. A commit without one has none here either: libostree says so.
fn kernel_of(repo: &ostree::Repo, commit: &str) -> BTreeSet<KernelFile> {
    let mut files = BTreeSet::new();
    let Ok((root, _)) = repo.read_commit(commit, gio::Cancellable::NONE) else {
        return files;
    };
    let modules = root.resolve_relative_path("usr/lib/modules");
    for version in children(&modules) {
        let vmlinuz = version.child("vmlinuz");
        if !vmlinuz.query_exists(gio::Cancellable::NONE) {
            continue;
        }
        for name in FILES {
            add(&version.child(name), Path::new(name), &mut files);
        }
        let trees = version.child("dtb");
        for tree in children(&trees) {
            let name = tree.basename().unwrap_or_default();
            add(&tree, &Path::new("dtb").join(name), &mut files);
        }
    }
    files
}

fn children(directory: &gio::File) -> Vec<gio::File> {
    let flags = gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS;
    // libostree aborts the process when it is to list what is there and no directory.
    if directory.query_file_type(flags, gio::Cancellable::NONE) != gio::FileType::Directory {
        return Vec::new();
    }
    let listed = directory.enumerate_children("standard::name", flags, gio::Cancellable::NONE);
    let Ok(listed) = listed else {
        return Vec::new();
    };
    // Of what is no directory libostree's enumerator has only errors, and no end of them.
    listed
        .map_while(Result::ok)
        .map(|child| directory.child(child.name()))
        .collect()
}

fn add(file: &gio::File, name: &Path, files: &mut BTreeSet<KernelFile>) {
    let flags = gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS;
    let Ok(info) = file.query_info("standard::size", flags, gio::Cancellable::NONE) else {
        return;
    };
    let Some(object) = file.downcast_ref::<ostree::RepoFile>() else {
        return;
    };
    let size = u64::try_from(info.size()).unwrap_or(0);
    files.insert((name.to_owned(), object.checksum().to_string(), size));
}

/// Since 2023.8 libostree removes the kernels of deployments that go anyway before it writes
/// the new one, if `/boot` is a file system of its own and would be too small otherwise.
fn reclaimable(sysroot: &ostree::Sysroot, root: &Path, boot: &Path) -> u64 {
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    if !ostree::check_version(2023, 8) || device(boot) == device(&root.join("ostree/repo")) {
        return 0;
    }
    let Some(booted) = sysroot.booted_deployment() else {
        return 0;
    };
    let deployments = sysroot.deployments();
    let stays = |deployment: &&ostree::Deployment| {
        deployment.equal(&booted)
            || deployment.is_pinned()
            || deployment.osname() != booted.osname()
    };
    let kept: BTreeSet<String> = deployments
        .iter()
        .filter(stays)
        .map(|deployment| format!("{}-{}", deployment.osname(), deployment.bootcsum()))
        .collect();
    going(&boot.join("ostree"), &kept)
}

/// The sizes of the kernels' directories that are not among `kept`.
fn going(directory: &Path, kept: &BTreeSet<String>) -> u64 {
    let kernels = fs::read_dir(directory).into_iter().flatten().flatten();
    let going = kernels.filter(|kernel| {
        kernel.file_type().is_ok_and(|kind| kind.is_dir())
            && !kept.contains(&*kernel.file_name().to_string_lossy())
    });
    going
        .flat_map(|kernel| fs::read_dir(kernel.path()).into_iter().flatten().flatten())
        .filter_map(|file| file.metadata().ok())
        .map(|file| file.len().next_multiple_of(BLOCK))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_numbers() {
        let place = PathBuf::from("/boot");
        let room = |need, have| BootRoom {
            need,
            have,
            place: place.clone(),
        };
        assert!(room(7, 7).suffices().is_ok());
        let error = room(8, 7).suffices().unwrap_err();
        let Error::NoSpace {
            need, have, place, ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((*need, *have, place.as_str()), (8, 7, "/boot"));
        let text = error.to_string();
        assert!(text.contains("8 bytes") && text.contains("/boot"), "{text}");
    }

    #[test]
    fn what_is_no_directory_has_no_kernels() {
        let directory = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(directory.path().join("repo"));
        let nothing = gio::Cancellable::NONE;
        repo.create(ostree::RepoMode::BareUser, nothing).unwrap();
        let tree = directory.path().join("tree");
        let modules = tree.join("usr/lib/modules/6.1");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("vmlinuz"), vec![0; 10]).unwrap();
        std::os::unix::fs::symlink("nowhere", modules.join("dtb")).unwrap();
        let commit = |tree: &Path| {
            let mutable = ostree::MutableTree::new();
            let tree = gio::File::for_path(tree);
            let transaction = repo.auto_transaction(nothing).unwrap();
            repo.write_directory_to_mtree(&tree, &mutable, None, nothing)
                .unwrap();
            let root = repo.write_mtree(&mutable, nothing).unwrap();
            let root = root.downcast::<ostree::RepoFile>().unwrap();
            let commit = repo.write_commit(None, None, None, None, &root, nothing);
            transaction.commit(nothing).unwrap();
            commit.unwrap()
        };
        let kernel = kernel_of(&repo, &commit(&tree));
        let names: Vec<&Path> = kernel.iter().map(|(name, ..)| name.as_path()).collect();
        assert_eq!(names, [Path::new("vmlinuz")]);

        fs::remove_dir_all(tree.join("usr/lib/modules")).unwrap();
        fs::write(tree.join("usr/lib/modules"), "a file").unwrap();
        assert!(kernel_of(&repo, &commit(&tree)).is_empty());
    }

    #[test]
    fn only_kernels_that_go_can_make_room() {
        let boot = tempfile::tempdir().unwrap();
        for (name, bytes) in [("os-a", 5000), ("os-b", 1), ("other-c", 4096)] {
            fs::create_dir(boot.path().join(name)).unwrap();
            fs::write(boot.path().join(name).join("vmlinuz"), vec![0; bytes]).unwrap();
        }
        fs::write(boot.path().join("finalize-failure.stamp"), "x").unwrap();
        let kept = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(going(boot.path(), &kept(&[])), 4 * BLOCK);
        assert_eq!(going(boot.path(), &kept(&["os-a", "other-c"])), BLOCK);
        assert_eq!(going(&boot.path().join("missing"), &kept(&[])), 0);
    }
}
