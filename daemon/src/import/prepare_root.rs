//! What the base of an image says about the root of its hosts.

use ostree::prelude::*;
use ostree::{gio, glib};

use super::error::{During, Error};

/// A longer prepare-root.conf is read this far, in bytes.
const LARGEST: usize = 64 * 1024;

/// Whether the base keeps content outside `/usr`: its `prepare-root.conf` mounts the root as
/// an overlay (`root.transient`, `composefs.enabled`).
pub(crate) fn allows_nonusr(
    repo: &ostree::Repo,
    base: &str,
    cancellable: &gio::Cancellable,
) -> Result<bool, Error> {
    let (root, _) = repo
        .read_commit(base, Some(cancellable))
        .during("reading the base")?;
    for path in [
        "etc/ostree/prepare-root.conf",
        "usr/lib/ostree/prepare-root.conf",
    ] {
        let file = root.resolve_relative_path(path);
        if file.query_exists(Some(cancellable)) {
            let text = read(repo, &file, cancellable).during("reading prepare-root.conf")?;
            return Ok(is_overlay(&text));
        }
    }
    Ok(false)
}

/// The content of a small file of a commit. By its object: the stream that an
/// `OstreeRepoFile` opens is none of GIO's file streams, which `load_contents` takes it for.
fn read(
    repo: &ostree::Repo,
    file: &gio::File,
    cancellable: &gio::Cancellable,
) -> Result<String, glib::Error> {
    let Some(object) = file.downcast_ref::<ostree::RepoFile>() else {
        return Ok(String::new());
    };
    let (stream, _, _) = repo.load_file(&object.checksum(), Some(cancellable))?;
    let mut text = Vec::new();
    while let Some(stream) = &stream {
        let bytes = stream.read_bytes(4096, Some(cancellable))?;
        if bytes.is_empty() || text.len() > LARGEST {
            break;
        }
        text.extend_from_slice(&bytes);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
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
