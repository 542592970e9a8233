//! Images for a host that needs another image beside its own: one that has podman, one on top
//! of it that is bound to a container image, and that image.

use std::path::Path;

use anyhow::{Context, Result};

use super::Suite;
use crate::image::{Compression, Image, Layer, Layout, paths_below, with_parents};

/// What podman needs to pull images and to know those it has: it looks for a runtime and for a
/// network even then, but nothing is run.
const PODMAN: [&str; 6] = [
    "etc/containers/",
    "usr/bin/conmon",
    "usr/bin/crun",
    "usr/bin/podman",
    "usr/lib/podman/netavark",
    "usr/share/containers/",
];

/// Shared libraries, of which the host has most.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu/";

/// Where an image says what it is bound to, by links to files that systemd understands.
const BOUND: &str = "usr/lib/bootc/bound-images.d";
const UNITS: &str = "usr/share/containers/systemd";

/// Writes the images `podman`, `bound` and `app` into a layout that has `v1`. `podman` is the
/// tree of its packages, and `tree` that of version 1.
///
/// # Errors
/// When a tree cannot be read, or the layout is not writable.
pub(super) fn write(layout: &Layout, suite: Suite, podman: &Path, tree: &Path) -> Result<()> {
    let found = paths_below(podman, |_| true).context("podman's packages")?;
    let missing = found.iter().filter(|(path, meta)| {
        !meta.is_dir() && is_wanted(path) && tree.join(path).symlink_metadata().is_err()
    });
    let missing = with_parents(missing.map(|(path, _)| path.as_str()));
    // It is made anew with every osteward, and compressing it takes longer than anything else.
    let plain = Layer::new().compressed(Compression::Plain);
    let able = Image::new("podman")
        .on(&layout.find("v1")?)
        .created("2025-01-02T00:00:00Z")
        .layer(plain.add_from(podman, &missing)?)
        .write_as(layout, "podman")?;
    Image::new("app")
        .layer(Layer::new().dir("app").file("app/name", "app\n"))
        .write_as(layout, "app")?;
    let unit = format!("[Image]\nImage={}\n", suite.reference("app"));
    let binding = Layer::new()
        .dir(BOUND)
        .dir(UNITS)
        .file(&format!("{UNITS}/app.image"), unit)
        .symlink(
            &format!("{BOUND}/app.image"),
            &format!("/{UNITS}/app.image"),
        );
    Image::new("bound")
        .on(&able)
        .created("2025-01-03T00:00:00Z")
        .layer(binding)
        .write_as(layout, "bound")
        .map(drop)
}

fn is_wanted(path: &str) -> bool {
    let library = path.strip_prefix(LIBRARIES);
    library.is_some_and(|name| name.contains(".so.") && !name.contains('/'))
        || PODMAN.iter().any(|wanted| match wanted.ends_with('/') {
            true => path.starts_with(wanted),
            false => path == *wanted,
        })
}

#[cfg(test)]
mod tests {
    use super::is_wanted;

    #[test]
    fn only_what_pulls_is_wanted() {
        for path in [
            "usr/bin/podman",
            "etc/containers/policy.json",
            "usr/lib/x86_64-linux-gnu/libsubid.so.6",
        ] {
            assert!(is_wanted(path), "{path}");
        }
        for path in [
            "usr/lib/cni/dhcp",
            "usr/bin/bash",
            "usr/lib/x86_64-linux-gnu/libcrun.a",
            "usr/lib/x86_64-linux-gnu/gconv/UTF-32.so",
        ] {
            assert!(!is_wanted(path), "{path}");
        }
    }
}
