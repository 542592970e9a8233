//! What the base of an image says about the root of its hosts.

use ostree::{gio, glib};

use super::commit_files::CommitFiles;
use super::error::Error;

/// Whether the base keeps content outside `/usr`: its `prepare-root.conf` mounts the root as
/// an overlay (`root.transient`, `composefs.enabled`).
pub(crate) fn allows_nonusr(
    repo: &ostree::Repo,
    base: &str,
    cancellable: &gio::Cancellable,
) -> Result<bool, Error> {
    let files = CommitFiles::open(repo, base, cancellable)?;
    for path in [
        "etc/ostree/prepare-root.conf",
        "usr/lib/ostree/prepare-root.conf",
    ] {
        if let Some(text) = files.text(path)? {
            return Ok(is_overlay(&text));
        }
    }
    Ok(false)
}

fn is_overlay(config: &str) -> bool {
    let file = glib::KeyFile::new();
    if let Err(error) = file.load_from_data(config, glib::KeyFileFlags::NONE) {
        tracing::warn!(%error, "the image's prepare-root.conf cannot be read");
        return false;
    }
    let transient = file.boolean("root", "transient").unwrap_or(false);
    let composefs = file.string("composefs", "enabled").unwrap_or_default();
    transient || ["yes", "true", "1", "maybe", "signed", "verity"].contains(&composefs.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_bases_keep_content_outside_usr() {
        for (config, expected) in [
            ("[root]\ntransient=true\n", true),
            ("[composefs]\nenabled=verity\n", true),
            ("[composefs]\nenabled=maybe\n", true),
            ("[composefs]\nenabled=no\n", false),
            ("[root]\ntransient=false\n", false),
            ("", false),
            ("not a key file", false),
        ] {
            assert_eq!(is_overlay(config), expected, "{config:?}");
        }
    }
}
