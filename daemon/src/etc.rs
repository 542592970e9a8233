//! What was changed in `/etc`, and what an update will make of it.
//!
//! Owns libostree's rule for "changed" (`ostree admin config-diff`): a path is compared with
//! the same one below `/usr/etc`, by kind, permissions, owner and content, never by time or
//! extended attributes. Invariants: nothing is written; no link is followed; what disappears
//! while it is looked at counts as not there.

mod conflicts;

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

pub use conflicts::{Conflict, Outcome, conflicts};

/// What was done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The image has nothing there.
    Added,
    /// The image has something there, and the host has not.
    Removed,
    /// Both have something there, and not the same.
    Modified,
}

impl Kind {
    /// The word of the API.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Added => "added",
            Kind::Removed => "removed",
            Kind::Modified => "modified",
        }
    }
}

/// One path that is not as the image has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Below `/etc`.
    pub path: PathBuf,
    /// What was done to it.
    pub kind: Kind,
}

/// Whose eyes are looked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Everything.
    All,
    /// Not into directories that only their owners may list.
    Public,
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A regular file of that size.
    File(Attributes, u64),
    /// A directory.
    Directory(Attributes),
    /// A symbolic link to there. It has an owner, but permissions of its own it has not.
    Link(PathBuf, u32, u32),
    /// Anything else: a socket, a device, a pipe.
    Other(Attributes),
}

/// Permissions and owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The lowest twelve bits.
    pub mode: u32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A tree of configuration files, on disk or in a commit.
pub trait Tree {
    /// What is at `path`, which is relative; `None` if nothing.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>>;

    /// The content of the regular file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>>;
}

/// A directory on disk.
#[derive(Debug, Clone)]
pub struct Directory(pub PathBuf);

impl Tree for Directory {
    fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        let path = self.0.join(path);
        let Some(metadata) = found(fs::symlink_metadata(&path))? else {
            return Ok(None);
        };
        if metadata.is_symlink() {
            let target = found(fs::read_link(&path))?;
            return Ok(target.map(|target| Entry::Link(target, metadata.uid(), metadata.gid())));
        }
        Ok(Some(described(&metadata)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read>> {
        Ok(Box::new(open_file(&self.0.join(path))?))
    }
}

/// `None` for what is not there, or not there any more.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

fn described(metadata: &Metadata) -> Entry {
    let attributes = Attributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    if metadata.is_dir() {
        Entry::Directory(attributes)
    } else if metadata.is_file() {
        Entry::File(attributes, metadata.len())
    } else {
        Entry::Other(attributes)
    }
}

/// Should a pipe or a link have taken the file's place, it is not waited for or followed.
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(path)
}

/// Whether two trees have the same at `path`.
fn is_same(
    path: &Path,
    one: (&dyn Tree, &Option<Entry>),
    other: (&dyn Tree, &Option<Entry>),
) -> io::Result<bool> {
    if one.1 != other.1 {
        return Ok(false);
    }
    if !matches!(one.1, Some(Entry::File(..))) {
        return Ok(true);
    }
    let open = |tree: &dyn Tree| found(tree.open(path));
    match (open(one.0)?, open(other.0)?) {
        (Some(one), Some(other)) => same_content(one, other),
        (one, other) => Ok(one.is_none() && other.is_none()),
    }
}

fn same_content(mut one: Box<dyn Read>, mut other: Box<dyn Read>) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let (read_left, read_right) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
        if left[..read_left] != right[..read_right] {
            return Ok(false);
        }
        if read_left == 0 {
            return Ok(true);
        }
    }
}

fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What was changed below `current` since it was made from `defaults`, in the order of the
/// paths. Of a directory that was removed only itself is told, of one that was added
/// everything in it. Blocks.
///
/// # Errors
/// When a directory or a file cannot be read.
pub fn changes(defaults: &Path, current: &Path, sight: Sight) -> io::Result<Vec<Change>> {
    let mut walk = Walk {
        defaults: Directory(defaults.to_owned()),
        current: Directory(current.to_owned()),
        sight,
        found: Vec::new(),
    };
    walk.compare(Path::new(""))?;
    walk.found.sort();
    Ok(walk.found)
}

struct Walk {
    defaults: Directory,
    current: Directory,
    sight: Sight,
    found: Vec<Change>,
}

impl Walk {
    fn tell(&mut self, kind: Kind, path: PathBuf) {
        self.found.push(Change { path, kind });
    }

    /// Compares what is in a directory that both have.
    fn compare(&mut self, directory: &Path) -> io::Result<()> {
        let names = names(&self.defaults.0.join(directory))?;
        for name in &names {
            let path = directory.join(name);
            let before = self.defaults.entry(&path)?;
            let now = self.current.entry(&path)?;
            if now.is_none() {
                self.tell(Kind::Removed, path);
                continue;
            }
            if !is_same(&path, (&self.defaults, &before), (&self.current, &now))? {
                self.tell(Kind::Modified, path.clone());
            }
            if let (Some(Entry::Directory(_)), Some(Entry::Directory(attributes))) = (before, now)
                && self.may_see(attributes)
            {
                self.compare(&path)?;
            }
        }
        self.add(directory, &names)
    }

    /// Tells what is in a directory but for `known` (in byte order), and everything below.
    fn add(&mut self, directory: &Path, known: &[OsString]) -> io::Result<()> {
        for name in self::names(&self.current.0.join(directory))? {
            if known.binary_search(&name).is_ok() {
                continue;
            }
            let path = directory.join(name);
            let Some(entry) = self.current.entry(&path)? else {
                continue;
            };
            self.tell(Kind::Added, path.clone());
            if let Entry::Directory(attributes) = entry
                && self.may_see(attributes)
            {
                self.add(&path, &[])?;
            }
        }
        Ok(())
    }

    fn may_see(&self, directory: Attributes) -> bool {
        self.sight == Sight::All || directory.mode & 0o5 == 0o5
    }
}

/// The names in a directory, in byte order.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let Some(entries) = found(fs::read_dir(directory))? else {
        return Ok(Vec::new());
    };
    let names = entries.map(|entry| Ok(entry?.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn chmod(root: &Path, path: &str, mode: u32) {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The same twice, changed by `change` the second time.
    fn told(change: impl FnOnce(&Path), sight: Sight) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let (defaults, current) = (root.path().join("usr/etc"), root.path().join("etc"));
        for etc in [&defaults, &current] {
            write(etc, "a.conf", "a\n");
            write(etc, "b.conf", "b\n");
            write(etc, "d/inner/x", "x\n");
            write(etc, "d/y", "y\n");
            write(etc, "secret/known", "1\n");
            chmod(etc, "secret", 0o750);
            symlink("a.conf", etc.join("link")).unwrap();
        }
        change(&current);
        let changes = changes(&defaults, &current, sight).unwrap();
        let line =
            |change: Change| format!("{} {}", change.kind.name(), change.path.to_string_lossy());
        changes.into_iter().map(line).collect()
    }

    #[test]
    fn nothing_was_done() {
        let touch = |etc: &Path| {
            let file = File::open(etc.join("a.conf")).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
        };
        assert_eq!(told(touch, Sight::All), Vec::<String>::new());
        assert_eq!(told(|_| {}, Sight::Public), Vec::<String>::new());
    }

    #[test]
    fn files_links_permissions_and_kinds() {
        let change = |etc: &Path| {
            write(etc, "a.conf", "A\n");
            chmod(etc, "b.conf", 0o600);
            fs::remove_file(etc.join("link")).unwrap();
            symlink("b.conf", etc.join("link")).unwrap();
            fs::remove_file(etc.join("d/y")).unwrap();
            fs::create_dir(etc.join("d/y")).unwrap();
            write(etc, "d/y/below", "");
            chmod(etc, "d/inner", 0o700);
            write(etc, "d/inner/x", "much longer than before\n");
        };
        assert_eq!(
            told(change, Sight::All),
            [
                "modified a.conf",
                "modified b.conf",
                "modified d/inner",
                "modified d/inner/x",
                "modified d/y",
                "modified link",
            ]
        );
    }

    #[test]
    fn directories_that_come_and_go() {
        let change = |etc: &Path| {
            fs::remove_dir_all(etc.join("d")).unwrap();
            write(etc, "new/deep/file", "");
            symlink("/nowhere", etc.join("new/dangling")).unwrap();
        };
        assert_eq!(
            told(change, Sight::All),
            [
                "removed d",
                "added new",
                "added new/dangling",
                "added new/deep",
                "added new/deep/file",
            ]
        );
    }

    #[test]
    fn what_only_its_owner_may_list_is_not_told_to_everyone() {
        let change = |etc: &Path| {
            write(etc, "secret/new", "");
            fs::remove_file(etc.join("secret/known")).unwrap();
            write(etc, "own/wifi", "");
            chmod(etc, "own", 0o700);
        };
        assert_eq!(told(change, Sight::Public), ["added own"]);
        assert_eq!(
            told(change, Sight::All),
            [
                "added own",
                "added own/wifi",
                "removed secret/known",
                "added secret/new",
            ]
        );
    }

    #[test]
    fn contents_are_compared_to_their_ends() {
        let big = "x".repeat(200 << 10);
        let other = format!("{}y", &big[1..]);
        let differs = |etc: &Path| write(etc, "a.conf", &other);
        assert_eq!(told(differs, Sight::All), ["modified a.conf"]);
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "one/f", &big);
        write(root.path(), "two/f", &big);
        let changes = changes(
            &root.path().join("one"),
            &root.path().join("two"),
            Sight::All,
        );
        assert_eq!(changes.unwrap(), []);
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let change = |etc: &Path| {
            fs::remove_file(etc.join("a.conf")).unwrap();
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
            rustix::fs::mknodat(rustix::fs::CWD, etc.join("a.conf"), kind, mode, 0).unwrap();
        };
        assert_eq!(told(change, Sight::All), ["modified a.conf"]);
    }
}
