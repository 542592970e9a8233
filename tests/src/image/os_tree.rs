//! The smallest tree that libostree deploys and that the harness can use as a root.

use super::layer::Layer;

/// Release of the kernel that the tree pretends to have.
pub const KERNEL: &str = "6.1.0-osteward";

/// Mount points and the directories every root has. libostree makes the deployment's root
/// immutable, so nothing can be added there later.
const DIRECTORIES: [&str; 18] = [
    "boot",
    "dev",
    "etc",
    "proc",
    "run",
    "sys",
    "sysroot",
    "tmp",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/sbin",
    "usr/lib/modules",
    "usr/lib/ostree",
    "usr/share",
    "var",
    "etc/osteward",
];

const LINKS: [(&str, &str); 10] = [
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
    ("ostree", "sysroot/ostree"),
    ("home", "var/home"),
    ("opt", "var/opt"),
    ("root", "var/roothome"),
    ("srv", "var/srv"),
    ("mnt", "var/mnt"),
];

/// A layer that is a whole, if useless, operating system called `Osteward Test OS {version}`.
pub fn os_tree(version: &str) -> Layer {
    let mut layer = Layer::new();
    for directory in DIRECTORIES {
        layer = layer.dir(directory);
    }
    for (link, target) in LINKS {
        layer = layer.symlink(link, target);
    }
    let release = format!(
        "NAME=\"Osteward Test OS\"\nID=osteward-test\nVERSION_ID={version}\n\
         PRETTY_NAME=\"Osteward Test OS {version}\"\n"
    );
    let modules = format!("usr/lib/modules/{KERNEL}");
    layer
        .dir(&modules)
        .file(
            &format!("{modules}/vmlinuz"),
            format!("kernel of {version}\n"),
        )
        .file(
            &format!("{modules}/initramfs.img"),
            format!("initramfs of {version}\n"),
        )
        .file("usr/lib/os-release", release)
        // ostree-ext drops what is outside /usr from layers unless the root may hold it.
        .file(
            "usr/lib/ostree/prepare-root.conf",
            "[composefs]\nenabled = maybe\n",
        )
        .symlink("etc/os-release", "../usr/lib/os-release")
        .file("etc/fstab", "# nothing\n")
        .file("etc/motd", format!("Welcome to version {version}\n"))
}
