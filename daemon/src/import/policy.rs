//! The SELinux policy that an image carries: which one it is, and what it says of a path.
//!
//! A policy is known by a digest of the files that decide about labels. Its checksum in
//! libostree is that of the binary policy alone, which stays the same when only the labels of
//! files change. Invariants: a policy is compiled out of copies that are gone afterwards; no
//! two are compiled at the same time, because libselinux keeps their place for the whole
//! process; looking up needs no lock.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use ostree::gio;
use ostree::prelude::*;
use sha2::{Digest as _, Sha256};

use super::error::{During, Error};
use super::objects::{Id, hex};
use super::transaction::tmp_dir;
use super::tree::Dir;

/// Where a policy lies in a tree of ostree.
pub(crate) const POLICY: [&str; 3] = ["usr", "etc", "selinux"];
/// Says which policy is in force, and whether one is.
const CONFIG: &str = "config";
/// Sources of policies: most of the bytes, and not read by libselinux.
const MODULES: &str = "modules";
/// The files that decide about labels, in the directory of the policy's name.
const LABELS: [&str; 2] = ["contexts", "files"];
/// Most bytes of a policy; that of Fedora has some 20 MB.
const POLICY_BYTES: u64 = 256 * 1024 * 1024;
/// Most bytes of its configuration, which has a few lines.
const CONFIG_BYTES: u64 = 64 * 1024;
/// Changes whenever labels of the same policy would be others than before.
const VERSION: &[u8] = b"osteward labels 1\0";

/// libselinux keeps the place of the policy for the whole process until it has read it.
static COMPILING: Mutex<()> = Mutex::new(());

/// The files of a policy in the repository, not compiled.
pub(crate) struct Carried<'repo> {
    repo: &'repo ostree::Repo,
    cancellable: gio::Cancellable,
    /// By path beneath [`POLICY`].
    files: BTreeMap<String, Id>,
    /// Some of them are symbolic links: each may decide about labels.
    has_links: bool,
    key: String,
}

impl<'repo> Carried<'repo> {
    /// The policy in `selinux`, the directory at [`POLICY`] of some tree; `None` if its
    /// configuration enables none.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub(crate) fn of(
        repo: &'repo ostree::Repo,
        selinux: &Dir,
        cancellable: &gio::Cancellable,
    ) -> Result<Option<Self>, Error> {
        let Some(config) = selinux.files.get(CONFIG) else {
            return Ok(None);
        };
        let mut carried = Self {
            repo,
            cancellable: cancellable.clone(),
            files: BTreeMap::new(),
            has_links: false,
            key: String::new(),
        };
        if !carried.is_enabled(config)? {
            return Ok(None);
        }
        collect(selinux, "", &mut carried.files);
        for id in carried.files.values() {
            carried.has_links |= matches!(carried.open(id)?, Content::Link(_));
        }
        carried.key = carried.digest()?;
        Ok(Some(carried))
    }

    /// Sixty-four hexadecimal digits; equal for policies that give equal labels.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// libostree's own test, without its copies; it has the last word on links.
    fn is_enabled(&self, config: &Id) -> Result<bool, Error> {
        let Content::File(mut stream, length) = self.open(config)? else {
            return Ok(true);
        };
        if length > CONFIG_BYTES {
            return Err(Error::Image(format!(
                "the configuration of its SELinux policy has more than {CONFIG_BYTES} bytes"
            )));
        }
        let mut text = Vec::new();
        stream.read_to_end(&mut text).during(READING)?;
        let enables = |line: &[u8]| {
            line.strip_prefix(b"SELINUX=").is_some_and(|value| {
                [b"enforcing".as_slice(), b"permissive"].iter().any(|on| {
                    let value = value.get(..on.len());
                    value.is_some_and(|value| value.eq_ignore_ascii_case(on))
                })
            })
        };
        Ok(text.split(|byte| *byte == b'\n').any(enables))
    }

    fn digest(&self) -> Result<String, Error> {
        let mut hasher = Sha256::new();
        hasher.update(VERSION);
        let mut room = POLICY_BYTES;
        for (path, id) in &self.files {
            if !self.has_links && !decides_labels(path) {
                continue;
            }
            let (kind, mut content, length) = match self.open(id)? {
                Content::File(stream, length) => (b'f', stream, length),
                Content::Link(target) => {
                    let length = target.len() as u64;
                    let target: Box<dyn Read> = Box::new(io::Cursor::new(target));
                    (b'l', target, length)
                }
            };
            room = room.checked_sub(length).ok_or_else(too_large)?;
            // Lengths go first, so that no two lists of files look the same.
            hasher.update([kind]);
            hasher.update((path.len() as u64).to_be_bytes());
            hasher.update(path);
            hasher.update(length.to_be_bytes());
            hash(&mut content, &mut hasher).during(READING)?;
        }
        Ok(hex(&hasher.finalize()))
    }

    /// The policy itself; `None` where libostree finds none enabled, or knows no SELinux.
    ///
    /// # Errors
    /// When it cannot be compiled.
    pub(crate) fn compile(self) -> Result<Option<Policy>, Error> {
        let directory = tempfile::Builder::new()
            .prefix("osteward-policy-")
            .tempdir_in(tmp_dir(self.repo))
            .during("copying an SELinux policy")?;
        let root = directory.path().join("etc/selinux");
        let mut room = POLICY_BYTES;
        for (path, id) in &self.files {
            self.copy(path, id, &root, &mut room)?;
        }
        let policy = {
            let _alone = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
            let place = gio::File::for_path(directory.path());
            ostree::SePolicy::new(&place, Some(&self.cancellable))
                .during("loading the SELinux policy of the image")?
        };
        if policy.name().is_none_or(|name| name.is_empty()) {
            return Ok(None);
        }
        Ok(Some(Policy {
            key: self.key,
            compiled: Mutex::new(policy),
            look_ups: AtomicU32::new(0),
        }))
    }

    fn copy(&self, path: &str, id: &Id, root: &Path, room: &mut u64) -> Result<(), Error> {
        const COPYING: &str = "copying an SELinux policy";
        let target = root.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).during(COPYING)?;
        }
        match self.open(id)? {
            Content::File(mut content, length) => {
                *room = room.checked_sub(length).ok_or_else(too_large)?;
                let mut file = File::create_new(&target).during(COPYING)?;
                io::copy(&mut content, &mut file).during(COPYING)?;
                // libselinux takes the newer one of a list and its compiled form; deployed
                // files are all of this time.
                file.set_modified(SystemTime::UNIX_EPOCH).during(COPYING)
            }
            // The rest of the host is none of the image's.
            Content::Link(link) if leads_out(path, &link) => Ok(()),
            Content::Link(link) => std::os::unix::fs::symlink(link, &target).during(COPYING),
        }
    }

    fn open(&self, id: &Id) -> Result<Content, Error> {
        let (stream, info, _) = self
            .repo
            .load_file(&hex(id), Some(&self.cancellable))
            .during(READING)?;
        if let Some(target) = info.symlink_target() {
            return Ok(Content::Link(target.to_string_lossy().into_owned()));
        }
        let length = u64::try_from(info.size()).unwrap_or(0);
        Ok(match stream {
            Some(stream) => Content::File(Box::new(stream.into_read()), length),
            None => Content::File(Box::new(io::empty()), 0),
        })
    }
}

/// What an object is.
enum Content {
    /// A file and its length.
    File(Box<dyn Read>, u64),
    /// A symbolic link.
    Link(String),
}

const READING: &str = "reading an SELinux policy";

fn hash(content: &mut impl Read, hasher: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn too_large() -> Error {
    Error::Image(format!(
        "its SELinux policy has more than {POLICY_BYTES} bytes"
    ))
}

/// `path` is empty, or ends in a slash.
fn collect(dir: &Dir, path: &str, files: &mut BTreeMap<String, Id>) {
    for (name, id) in &dir.files {
        files.insert(format!("{path}{name}"), *id);
    }
    for (name, child) in dir.dirs.iter().filter(|(name, _)| &***name != MODULES) {
        collect(child, &format!("{path}{name}/"), files);
    }
}

/// Whether a look-up depends on the file.
fn decides_labels(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    path == CONFIG || LABELS.iter().all(|part| parts.next() == Some(part))
}

/// Whether a link at `path` leads to something that is not beneath [`POLICY`].
fn leads_out(path: &str, target: &str) -> bool {
    let depth = path.split('/').count() - 1;
    let inside = target.split('/').try_fold(depth, |depth, part| match part {
        "" | "." => Some(depth),
        ".." => depth.checked_sub(1),
        _ => Some(depth + 1),
    });
    target.starts_with('/') || inside.is_none()
}

/// A compiled policy.
pub(crate) struct Policy {
    key: String,
    compiled: Mutex<ostree::SePolicy>,
    look_ups: AtomicU32,
}

impl Policy {
    /// Which one it is, see [`Carried::key`].
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The label of what is at `path`, absolute and as the tree of ostree has it; `mode` matters
    /// for its file type. `None` where the policy wants none.
    ///
    /// It takes up to half a millisecond, depending on libselinux.
    pub(crate) fn label(&self, path: &str, mode: u32) -> Result<Option<String>, Error> {
        self.look_ups.fetch_add(1, Ordering::Relaxed);
        // libselinux allows look-ups from several threads; the handle is only counted here.
        let policy = self
            .compiled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        policy
            .label(path, mode, gio::Cancellable::NONE)
            .during("looking up an SELinux label")
            .map(|label| label.map(String::from))
    }

    /// How often a label was looked up.
    pub(crate) fn look_ups(&self) -> u32 {
        self.look_ups.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside_the_policy() {
        for (path, target, out) in [
            ("targeted/contexts/files/a", "b", false),
            ("targeted/contexts/files/a", "../../../config", false),
            ("targeted/contexts/files/a", "../../../../passwd", true),
            ("targeted/contexts/files/a", "x/../../../../../passwd", true),
            ("targeted/contexts/files/a", "/etc/passwd", true),
            ("config", "./semanage.conf", false),
            ("config", "../passwd", true),
        ] {
            assert_eq!(leads_out(path, target), out, "{path} {target}");
        }
    }

    #[test]
    fn labels_depend_on_the_lists_of_files_and_on_what_is_in_force() {
        for (path, decides) in [
            ("config", true),
            ("targeted/contexts/files/file_contexts", true),
            ("targeted/contexts/files/file_contexts.bin", true),
            ("targeted/contexts/users/root", false),
            ("targeted/policy/policy.33", false),
            ("config/contexts/files", true),
        ] {
            assert_eq!(decides_labels(path), decides, "{path}");
        }
    }
}
