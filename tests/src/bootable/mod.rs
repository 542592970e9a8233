//! A Debian that boots, with osteward on it: as a tree, as OCI images, and on a disk.
//!
//! Everything lands in [`work_dir`], one product beside the other, and is made once: a product
//! stands under its own name only when it is complete, with the key of all that it was made
//! from beside it. Invariants: nobody writes to a product that stands (machines copy it), no
//! mount outlives the step that needed it, and one process builds at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

mod bound;
mod cpio;
pub(crate) mod debian;
pub(crate) mod disk;
mod grub;
mod initramfs;
mod layers;
mod own;
pub(crate) mod product;
pub(crate) mod registry_data;
mod tree;
mod versions;

pub use registry_data::stock;
pub use versions::pulse;

use crate::image::Layout;
use crate::oracle::oracle;
use crate::process::{build_binaries, require_root, target_dir};

/// The registry as every machine reaches it.
pub const REGISTRY: &str = "10.0.2.2:5000";

/// A Debian release that the guests are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Debian 14, with ComposeFS.
    Forky,
    /// Debian 13, whose libostree was built without ComposeFS.
    Trixie,
    /// Debian 12, whose libostree knows no ComposeFS.
    Bookworm,
}

impl Suite {
    /// The name that Debian's archive has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forky => "forky",
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }

    /// The suite of that name.
    ///
    /// # Errors
    /// When there is none; the text has the names.
    pub fn from_name(name: &str) -> Result<Self> {
        [Self::Forky, Self::Trixie, Self::Bookworm]
            .into_iter()
            .find(|suite| suite.name() == name)
            .with_context(|| format!("no suite {name:?}: take forky, trixie or bookworm"))
    }

    /// Whether its deployments are mounted by ComposeFS.
    pub fn composefs(self) -> bool {
        self == Self::Forky
    }

    /// The repository of its images in a registry.
    pub fn repository(self) -> &'static str {
        match self {
            Self::Forky => "lab/os",
            Self::Trixie => "lab/trixie",
            Self::Bookworm => "lab/bookworm",
        }
    }

    /// The image `tag` as machines name it, such as `10.0.2.2:5000/lab/os:v1`.
    pub fn reference(self, tag: &str) -> String {
        format!("{REGISTRY}/{}:{tag}", self.repository())
    }
}

/// What put version 1 on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installer {
    /// An image, as ostree-ext imports it: the host looks like any bootc host, and tracks it.
    Bootc,
    /// The tree, as `ostree commit` takes it: the host tracks nothing that osteward can upgrade,
    /// and nobody has to wait for ostree-ext to be compiled.
    Ostree,
}

/// All that machines of one suite are made of.
#[derive(Clone, Debug)]
pub struct Bootable {
    /// The Debian release.
    pub suite: Suite,
    /// Unpacked programs that need not be installed: QEMU, user-mode Linux, GRUB, busybox. A
    /// root to `chroot` into.
    pub tools: PathBuf,
    /// Version 1's root, but for what its top layer has: osteward and the test's own files.
    pub tree: PathBuf,
    /// The images, tagged `v1` to `v4`, `broken`, `no-init`, `no-kernel`, `arm64` and, on forky,
    /// `big`, `podman`, `bound` and `app`, which is no host's but what `bound` is bound to.
    pub layout: Layout,
    /// A whole disk with version 1 deployed. Never written to.
    pub disk: PathBuf,
    /// Version 1's initramfs with user-mode Linux's modules instead.
    pub uml_initramfs: PathBuf,
    /// The images as a registry keeps them; see [`stock`].
    registry: PathBuf,
    /// Keeps what machines use while they run from being made anew.
    _held: Arc<Vec<File>>,
}

/// Where products and machines are kept: `boot` in cargo's build directory.
///
/// # Errors
/// When it cannot be made.
pub fn work_dir() -> Result<PathBuf> {
    let dir = target_dir()?.join("boot");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// Makes what is missing of the suite's products, and tells standard error how long it took.
/// The osteward in them is what [`binary_dir`](crate::process::binary_dir) has.
///
/// Waits for other processes: for one that makes products, and, when a product has to be made
/// anew, for those that use the old one.
///
/// # Errors
/// When not root, when another program that this needs is missing or fails, or Debian's
/// archive is out of reach.
pub fn prepare(suite: Suite, installer: Installer) -> Result<Bootable> {
    require_root()?;
    let started = Instant::now();
    let work = work_dir()?;
    let made = loop {
        let lock = product::lock(&work)?;
        match make(suite, installer, &work) {
            Ok(made) => break made,
            // Whoever uses it may want to make another suite's products before it ends.
            Err(error) => {
                drop(lock);
                error.downcast::<product::InUse>()?.wait()?;
            }
        }
    };
    let seconds = started.elapsed().as_secs_f32();
    eprintln!("{} is ready after {seconds:.1} s", suite.name());
    Ok(made)
}

fn make(suite: Suite, installer: Installer, work: &Path) -> Result<Bootable> {
    let name = suite.name();
    let at = |product: &str| work.join(format!("{product}-{name}"));
    // Images differ as well: only ostree-ext needs, and makes, a base of its own kind.
    let variant = |product: &str| match installer {
        Installer::Bootc => at(product),
        Installer::Ostree => at(&format!("{product}-plain")),
    };
    let (tools, base, tree) = (work.join("tools"), at("base"), at("tree"));
    // One suite's guests are enough to have bound images.
    let podman = (suite == Suite::Forky && installer == Installer::Bootc).then(|| at("podman"));
    let uml_initramfs = at("uml-initramfs");
    let (layout, registry) = (variant("oci"), variant("registry"));
    let disk = variant("disk").with_extension("raw");

    let (tools_key, base_key, podman_key) =
        make_what_takes_long(&tools, &base, podman.as_deref(), suite, installer)?;
    let tree_key = tree::make(&tree, suite, (&tools, &tools_key), (&base, &base_key))?;
    initramfs::for_uml(&uml_initramfs, &tools, &tree, &[&tools_key, &tree_key])?;
    let big = layers::of_tree(&variant("layers"), &tree, &tree_key, installer)?;
    let own = own::stage(&variant("own"))?;
    let podman = podman.as_deref().zip(podman_key.as_deref());
    let big = (big.path.as_path(), big.key.as_str());
    let images_key = versions::make(&layout, suite, &tree, big, &own, podman)?;
    let layout = Layout::create(layout)?;
    registry_data::make(&registry, &layout, suite, &images_key)?;
    // The other images' changes are nothing to the disk.
    let first = layout.find("v1")?.digest;
    let sources = concat!(include_str!("disk.rs"), include_str!("grub.rs"));
    let inputs = [&tools_key, &base_key, &tree_key, &first, sources];
    product::product(&disk, &inputs, |out| {
        let system = match installer {
            Installer::Bootc => disk::System::Image(&layout),
            Installer::Ostree => disk::System::Trees(&[&tree, &own.path]),
        };
        disk::build(out, &tools, &base, &tree, &system, suite)
    })?;

    let mut held = Vec::new();
    for product in [
        &tools,
        &tree,
        &layout.path,
        &disk,
        &uml_initramfs,
        &registry,
    ] {
        held.push(product::hold(product)?);
    }
    Ok(Bootable {
        suite,
        tools,
        tree,
        layout,
        disk,
        uml_initramfs,
        registry,
        _held: Arc::new(held),
    })
}

/// The trees of packages, for which the keys are returned, and the programs, side by side: cargo
/// needs the processors, and Debian's archive mostly the network.
fn make_what_takes_long(
    tools: &Path,
    base: &Path,
    podman: Option<&Path>,
    suite: Suite,
    installer: Installer,
) -> Result<(String, String, Option<String>)> {
    std::thread::scope(|scope| {
        let programs = scope.spawn(|| product::step("programs", || build_programs(installer)));
        let tools_key = scope.spawn(|| debian::tools(tools));
        let podman_key = podman.map(|podman| scope.spawn(move || debian::podman(podman, suite)));
        let base_key = debian::base(base, suite);
        let tools_key = joined(tools_key.join())?;
        let podman_key = podman_key.map(|made| joined(made.join())).transpose()?;
        joined(programs.join())?;
        Ok((tools_key, base_key?, podman_key))
    })
}

/// What goes into the images, and what writes them.
fn build_programs(installer: Installer) -> Result<()> {
    build_binaries()?;
    match installer {
        Installer::Bootc => oracle().map(drop),
        Installer::Ostree => Ok(()),
    }
}

fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
}
