//! Images in files of the user: opened here, read by the daemon.
//!
//! The daemon sees no home directories and no /tmp, and need not be able to read what the user can. So a
//! layout is handed over as an open file. Invariant: what cannot be opened here is left to the daemon, by its
//! absolute name.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use osteward_dbus::options::{ImportArchiveOptions, UpgradeOptions};

use crate::fail::Failure;

/// The transports whose names are paths.
const LAYOUTS: [&str; 2] = ["oci", "oci-archive"];

/// The name of an image with an absolute path, and the path; `None` if it is no layout.
fn layout(image: &str) -> Option<(String, PathBuf)> {
    let (transport, name) = image.trim().split_once(':')?;
    let (path, tag) = match name.split_once(':') {
        Some((path, tag)) => (path, format!(":{tag}")),
        None => (name, String::new()),
    };
    // A host can be called like a transport, but then a port follows.
    let is_port = path.starts_with(|c: char| c.is_ascii_digit()) && !Path::new(path).exists();
    if !LAYOUTS.contains(&transport) || path.is_empty() || is_port {
        return None;
    }
    let path = std::path::absolute(path).ok()?;
    let name = format!("{transport}:{}{tag}", path.to_str()?);
    Some((name, path))
}

/// Opens what can be handed over; anything else than a file or a directory could block.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let metadata = path.metadata()?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(io::Error::other("it is neither a file nor a directory"));
    }
    File::open(path)
}

/// The file of an `import`.
pub(crate) fn open_for_import(path: &Path) -> Result<File, Failure> {
    open(path).map_err(|error| {
        let text = format!("cannot read {}: {error}", path.display());
        Failure::new("org.osteward1.Error.ImageNotFound", text)
    })
}

/// What `osteward switch` asks for.
#[derive(Debug)]
pub(crate) enum Switch {
    /// The daemon finds the image by this name.
    Named(String),
    /// The daemon reads this file.
    Handed(File, ImportArchiveOptions),
}

impl Switch {
    /// Decides how the image gets to the daemon.
    pub(crate) fn to(image: &str, options: &UpgradeOptions) -> Self {
        let Some((name, path)) = layout(image) else {
            return Self::Named(image.to_owned());
        };
        // What is handed over is staged; there is no download of it.
        if options.download_only == Some(true) || options.from_cache == Some(true) {
            return Self::Named(name);
        }
        let Ok(file) = open(&path) else {
            return Self::Named(name);
        };
        let options = ImportArchiveOptions {
            image: Some(name),
            digest: options.digest.clone(),
            allow_downgrade: options.allow_downgrade,
            replace_staged: options.replace_staged,
            lock: options.lock,
            apply: options.apply.clone(),
            ..ImportArchiveOptions::default()
        }
        .with_common(options.common());
        Self::Handed(file, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(image: &str) -> Switch {
        let options = UpgradeOptions {
            replace_staged: Some(true),
            reason: Some("why".into()),
            ..UpgradeOptions::default()
        };
        Switch::to(image, &options)
    }

    #[test]
    fn what_is_not_to_be_staged_is_not_handed_over() {
        let download = UpgradeOptions {
            download_only: Some(true),
            ..UpgradeOptions::default()
        };
        let cached = UpgradeOptions {
            from_cache: Some(true),
            ..UpgradeOptions::default()
        };
        for options in [download, cached] {
            let switch = Switch::to("oci-archive:Cargo.toml", &options);
            let Switch::Named(name) = switch else {
                panic!("{switch:?}");
            };
            assert!(name.starts_with("oci-archive:/"), "{name}");
        }
    }

    #[test]
    fn layouts_are_handed_over_under_their_absolute_name() {
        let here = std::env::current_dir().unwrap();
        for (image, name) in [
            ("oci:src:1", format!("oci:{}/src:1", here.display())),
            (
                " oci-archive:Cargo.toml",
                format!("oci-archive:{}/Cargo.toml", here.display()),
            ),
        ] {
            let Switch::Handed(_, options) = switch(image) else {
                panic!("{image} is not handed over");
            };
            assert_eq!(options.image, Some(name));
            assert_eq!(options.replace_staged, Some(true));
            assert_eq!(options.reason.as_deref(), Some("why"));
        }
    }

    #[test]
    fn everything_else_is_named() {
        let here = std::env::current_dir().unwrap();
        for (image, name) in [
            ("quay.io/x/y:1", "quay.io/x/y:1".to_owned()),
            (
                "containers-storage:localhost/x",
                "containers-storage:localhost/x".to_owned(),
            ),
            ("oci-archive:5000/x", "oci-archive:5000/x".to_owned()),
            ("oci-archive:", "oci-archive:".to_owned()),
            ("oci:none", format!("oci:{}/none", here.display())),
            ("oci:/dev/null", "oci:/dev/null".to_owned()),
        ] {
            let Switch::Named(found) = switch(image) else {
                panic!("{image} is handed over");
            };
            assert_eq!(found, name);
        }
    }
}
