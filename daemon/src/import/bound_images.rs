//! The container images that an image of a host is bound to (on-disk notes 1.10).
//!
//! `/usr/lib/bootc/bound-images.d` has links to quadlet files, and each of those names an image that must be
//! on the host when it boots. Invariant: what other tools on the host would refuse is refused here, and
//! before anything is staged.

use std::path::Path;

use ostree::gio;

use super::commit_files::CommitFiles;
use super::error::{During, Error};
use super::transaction::open;
use crate::image::ref_name::IMAGE_PREFIX;

/// Where the links are.
const DIRECTORY: &str = "usr/lib/bootc/bound-images.d";
/// Refs by which tools hold on to images beside those of deployments.
const BASEIMAGES: &str = "ostree/container/baseimage";

/// The images that `commit` is bound to, as they are written there; each once, in order. Blocks.
///
/// # Errors
/// [`Error::Image`] for a link or a file that makes no sense; [`Error::Ostree`] when the repository cannot be
/// read.
pub fn bound_images(repo_path: &Path, commit: &str) -> Result<Vec<String>, Error> {
    let cancellable = gio::Cancellable::new();
    let repo = open(repo_path, &cancellable)?;
    of_commit(&repo, commit, &cancellable)
}

/// The images that any of `commits`, or any image in the repository, is bound to; each once. Blocks.
///
/// # Errors
/// As [`bound_images`].
pub fn all_bound_images(repo_path: &Path, mut commits: Vec<String>) -> Result<Vec<String>, Error> {
    let cancellable = gio::Cancellable::new();
    let repo = open(repo_path, &cancellable)?;
    for prefix in [IMAGE_PREFIX, BASEIMAGES] {
        let flags = ostree::RepoListRefsExtFlags::NONE;
        let refs = repo.list_refs_ext(Some(prefix), flags, Some(&cancellable));
        let refs = refs.during("listing the images")?;
        commits.extend(refs.into_values().map(|commit| commit.to_string()));
    }
    commits.sort();
    commits.dedup();
    let mut images = Vec::new();
    for commit in commits {
        for image in of_commit(&repo, &commit, &cancellable)? {
            if !images.contains(&image) {
                images.push(image);
            }
        }
    }
    Ok(images)
}

fn of_commit(
    repo: &ostree::Repo,
    commit: &str,
    cancellable: &gio::Cancellable,
) -> Result<Vec<String>, Error> {
    let files = CommitFiles::as_host(repo, commit, cancellable)?;
    let mut images = Vec::new();
    for (name, is_link) in files.names(DIRECTORY)?.unwrap_or_default() {
        let refuse = |reason: &str| Error::Image(format!("/{DIRECTORY}/{name} {reason}"));
        if !is_link {
            return Err(refuse("is no symbolic link"));
        }
        let section = match name.rsplit_once('.') {
            Some((_, "image")) => "Image",
            Some((_, "container")) => "Container",
            _ => return Err(refuse("ends in neither .image nor .container")),
        };
        let text = files.text(&format!("{DIRECTORY}/{name}"))?;
        let text = text.ok_or_else(|| refuse("leads to no file"))?;
        let image = image_of(&text, section).map_err(|reason| refuse(&reason))?;
        if !images.contains(&image) {
            images.push(image);
        }
    }
    Ok(images)
}

/// The value of `Image=` in that section of a quadlet file.
fn image_of(unit: &str, section: &str) -> Result<String, String> {
    if value(unit, "Image", "AuthFile").is_some() && section == "Image" {
        return Err("has an AuthFile=, which bound images cannot have".to_owned());
    }
    let image = value(unit, section, "Image")
        .filter(|image| !image.is_empty())
        .ok_or_else(|| format!("has no Image= in its [{section}] section"))?;
    let image = without_specifiers(image)?;
    let image = image.strip_prefix("docker://").unwrap_or(&image).to_owned();
    // It becomes an argument of podman.
    if image.starts_with('-') || image.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("names {image:?}, which is no image"));
    }
    Ok(image)
}

/// The last value of a key in systemd's syntax; those that are read here never span lines.
fn value<'a>(unit: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let mut inside = false;
    let mut found = None;
    for line in unit.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            inside = name == section;
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
        {
            found = Some(value.trim());
        }
    }
    found
}

/// `%%` is a percent sign; everything else after one would depend on the host.
fn without_specifiers(value: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        if character == '%' && characters.next() != Some('%') {
            return Err(format!(
                "has a specifier in {value:?}, which bound images cannot have"
            ));
        }
        text.push(character);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_from_quadlet_files() {
        let unit = "# comment\n[Unit]\nImage=no\n[Container]\n;Image=no\nImage = old\nImage=quay.io/a/b:1\n";
        assert_eq!(image_of(unit, "Container").unwrap(), "quay.io/a/b:1");
        for (unit, image) in [
            ("[Image]\nImage=quay.io/100%%:1", "quay.io/100%:1"),
            ("[Image]\nImage=docker://quay.io/a", "quay.io/a"),
        ] {
            assert_eq!(image_of(unit, "Image").unwrap(), image);
        }
    }

    #[test]
    fn what_other_tools_refuse_is_refused() {
        for (unit, section, words) in [
            ("[Image]\n", "Image", "no Image="),
            ("[Image]\nImage=\n", "Image", "no Image="),
            ("Image=quay.io/a\n", "Image", "no Image="),
            ("[Container]\nImage=a\n", "Image", "no Image="),
            ("[Image]\nImage=a\nAuthFile=/x\n", "Image", "AuthFile"),
            ("[Image]\nImage=quay.io/%a\n", "Image", "specifier"),
            ("[Image]\nImage=quay.io/a%\n", "Image", "specifier"),
            ("[Image]\nImage=--help\n", "Image", "no image"),
            ("[Image]\nImage=a b\n", "Image", "no image"),
        ] {
            let reason = image_of(unit, section).unwrap_err();
            assert!(reason.contains(words), "{unit:?}: {reason}");
        }
    }
}
