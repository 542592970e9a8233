//! The package databases of an image that is not here, as far as its upper layers tell.
//!
//! A file of an image is that of the uppermost layer which has it. So layers are looked at from
//! the top: those that are here in the repository, and small ones are fetched, until every
//! database is found. Invariants: nothing is written to the repository; a fetched layer counts
//! only after its digests were compared; a layer that hides a database, or is too large to be
//! fetched, ends the search without an answer.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ostree::gio;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::error::{During, Error};
use super::feed::Feed;
use super::installed::Found;
use super::objects::hex;
use super::path::{PathRules, Place, place, text};
use super::pipeline::blame;
use super::stream::{HeaderBudget, TarStream};
use super::tar_layer::ReadError;
use super::transaction::{is_complete, load_tree, open, resolve};
use super::tree::{Dir, OPAQUE, WHITEOUT};
use super::{Fetch, Observer, Stop, blocking, commit_files};
use crate::image::layer::{Layer, LayerKind};
use crate::image::layout::Image;
use crate::image::reference::blob_ref;
use crate::packages::{Form, Inventory, limits};

/// Most bytes that a fetched layer may unpack to.
const UNPACKED: u64 = 4 << 30;

/// Where to look, and for what.
pub struct Peek {
    /// The ostree repository.
    pub repo_path: PathBuf,
    /// The image.
    pub image: Arc<Image>,
    /// The databases, as [`Inventory::databases`] of an image like it has them.
    pub databases: Vec<String>,
    /// Gives the layers' bytes.
    pub fetch: Arc<dyn Fetch>,
    /// Most compressed bytes to fetch.
    pub at_most: u64,
    /// A directory for temporary files.
    pub scratch: PathBuf,
    /// Stops it.
    pub cancel: CancellationToken,
}

impl std::fmt::Debug for Peek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peek")
            .field("image", &self.image.digest)
            .field("databases", &self.databases)
            .finish_non_exhaustive()
    }
}

/// What is installed in the image; `None` when only a download can tell. The kernel stays
/// unknown.
///
/// # Errors
/// Those of fetching a layer, and [`Error::Packages`] for what was found.
pub async fn peek(peek: Peek) -> Result<Option<Inventory>, Error> {
    let stop = Stop::new(&peek.cancel);
    let (token, cancellable) = (stop.token.clone(), stop.cancellable.clone());
    let runtime = Handle::current();
    blocking(move || {
        let search = Search {
            peek: &peek,
            stop: token,
            cancellable,
            runtime,
        };
        search.run()
    })
    .await
}

/// A database that is looked for.
struct Wanted<'a> {
    path: &'a str,
    form: Form,
    found: Option<File>,
}

/// What one layer shows of a file.
enum Sight {
    /// It has it.
    File(File),
    /// Whatever is below is not seen.
    Hidden,
    /// Nothing.
    Nothing,
}

struct Search<'a> {
    peek: &'a Peek,
    stop: CancellationToken,
    cancellable: gio::Cancellable,
    runtime: Handle,
}

impl Search<'_> {
    fn run(&self) -> Result<Option<Inventory>, Error> {
        let Some(mut wanted) = wanted(&self.peek.databases) else {
            return Ok(None);
        };
        let repo = open(&self.peek.repo_path, &self.cancellable)?;
        let mut room = self.peek.at_most;
        for layer in self.peek.image.layers.iter().rev() {
            let missing: Vec<_> = wanted
                .iter_mut()
                .filter(|one| one.found.is_none())
                .collect();
            if missing.is_empty() {
                break;
            }
            if layer.kind != LayerKind::Plain {
                return Ok(None);
            }
            let paths: Vec<&str> = missing.iter().map(|one| one.path).collect();
            let commit = resolve(&repo, &blob_ref(&layer.digest))?;
            let sights = match commit {
                Some(commit) if is_complete(&repo, &commit, &self.cancellable)? => {
                    let tree = load_tree(&repo, &commit)?;
                    let sights = paths.iter().map(|path| self.in_tree(&repo, &tree, path));
                    sights.collect::<Result<Vec<_>, _>>()?
                }
                _ if layer.size <= room => {
                    room -= layer.size;
                    self.in_blob(layer, &paths)?
                }
                _ => return Ok(None),
            };
            for (one, sight) in missing.into_iter().zip(sights) {
                match sight {
                    Sight::File(file) => one.found = Some(file),
                    Sight::Hidden => return Ok(None),
                    Sight::Nothing => {}
                }
            }
        }
        let mut found = Found::default();
        for one in wanted {
            match one.found {
                Some(file) => found.read(one.form, one.path.to_owned(), &file)?,
                None => return Ok(None),
            }
        }
        Ok(Some(found.inventory(false)))
    }

    /// In a layer that is in the repository.
    fn in_tree(&self, repo: &ostree::Repo, root: &Dir, path: &str) -> Result<Sight, Error> {
        let (mut dir, mut hidden) = (root, false);
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let has_whiteout = |dir: &Dir, name: &str| {
            let whiteout = format!("{WHITEOUT}{name}");
            dir.files.contains_key(whiteout.as_str())
        };
        for parent in parents.split('/') {
            hidden |= dir.files.contains_key(OPAQUE);
            hidden |= has_whiteout(dir, parent) || dir.files.contains_key(parent);
            match dir.dirs.get(parent) {
                Some(below) => dir = below,
                None if hidden => return Ok(Sight::Hidden),
                None => return Ok(Sight::Nothing),
            }
        }
        hidden |= dir.files.contains_key(OPAQUE);
        hidden |= has_whiteout(dir, name) || dir.dirs.contains_key(name);
        let open = |name: &str| match dir.files.get(name) {
            Some(id) => commit_files::open_object(repo, &hex(id), &self.cancellable),
            None => Ok(None),
        };
        let log = open(&format!("{name}-wal"))?;
        let log = log.and_then(|log| Some(log.metadata().ok()?.len()));
        Ok(match open(name)? {
            Some(file) if log.unwrap_or(0) == 0 => Sight::File(file),
            None if !hidden && !dir.files.contains_key(name) => Sight::Nothing,
            _ => Sight::Hidden,
        })
    }

    /// In a layer that is fetched for it.
    fn in_blob(&self, layer: &Layer, paths: &[&str]) -> Result<Vec<Sight>, Error> {
        let observer: Arc<dyn Observer> = Arc::new(Silent);
        let fetch = &self.peek.fetch;
        let feed = Feed::open(&self.runtime, fetch, layer, &observer, &self.stop, None);
        let stream = TarStream::new(feed, layer.compression)?;
        let budget = stream.budget();
        let mut archive = tar::Archive::new(stream);
        let mut scan = Scan {
            scratch: &self.peek.scratch,
            rules: PathRules::current(true),
            files: paths.iter().map(|path| Scanned::new(path)).collect(),
        };
        let read = scan.read(&mut archive, &budget);
        let stream = archive.into_inner();
        match read {
            Ok(()) => stream.finish(layer)?,
            Err(error) => return Err(blame(error, stream, layer)),
        };
        let sights = scan.files.into_iter().map(Scanned::sight);
        sights
            .collect::<io::Result<_>>()
            .during("reading a temporary file")
    }
}

/// What to look for; `None` if some of it is not one file.
fn wanted(databases: &[String]) -> Option<Vec<Wanted<'_>>> {
    let form = |path: &str| match path.rsplit_once('/')?.1 {
        "status" => Some(Form::DpkgStatus),
        "rpmdb.sqlite" => Some(Form::RpmSqlite),
        "installed" => Some(Form::ApkInstalled),
        _ => None,
    };
    if databases.is_empty() {
        return None;
    }
    let wanted = databases.iter().map(|path| {
        Some(Wanted {
            path,
            form: form(path)?,
            found: None,
        })
    });
    wanted.collect()
}

/// The tar of a layer, read for a few files.
struct Scan<'a> {
    scratch: &'a Path,
    rules: PathRules,
    files: Vec<Scanned<'a>>,
}

/// One of the files, as far as the tar was read.
struct Scanned<'a> {
    path: &'a str,
    file: Option<File>,
    hidden: bool,
    /// Only if it is not in this layer itself.
    opaque: bool,
}

impl Scan<'_> {
    fn read(
        &mut self,
        archive: &mut tar::Archive<TarStream>,
        budget: &HeaderBudget,
    ) -> Result<(), ReadError> {
        let mut unpacked: u64 = 0;
        let mut entries = archive.entries()?;
        loop {
            budget.headers();
            let Some(entry) = entries.next() else {
                return Ok(());
            };
            budget.content();
            let mut entry = entry?;
            unpacked = unpacked.saturating_add(entry.size());
            if unpacked > UNPACKED {
                let reason = format!("it unpacks to more than {UNPACKED} bytes");
                return Err(ReadError::Rule(reason));
            }
            self.entry(&mut entry)?;
            io::copy(&mut entry, &mut io::sink())?;
        }
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), ReadError> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let Place::At(parts) = place(text(&raw)?, self.rules)? else {
            return Ok(());
        };
        let path = parts.join("/");
        let (size, is_file) = (entry.size(), kind.is_file() || kind.is_contiguous());
        for scanned in &mut self.files {
            if path == scanned.path && is_file {
                if size > limits::FILE {
                    return Err(ReadError::Rule(format!("{path} has {size} bytes")));
                }
                fs::create_dir_all(self.scratch)?;
                let mut file = tempfile::tempfile_in(self.scratch)?;
                io::copy(entry, &mut file)?;
                scanned.file = Some(file);
            } else {
                scanned.pass(&path, kind.is_dir(), size);
            }
        }
        Ok(())
    }
}

impl<'a> Scanned<'a> {
    fn new(path: &'a str) -> Self {
        Self {
            path,
            file: None,
            hidden: false,
            opaque: false,
        }
    }

    /// An entry that is not the file itself.
    fn pass(&mut self, path: &str, is_directory: bool, size: u64) {
        let is_below = |parent: &str| match self.path.strip_prefix(parent) {
            Some(rest) => parent.is_empty() || rest.starts_with('/'),
            None => false,
        };
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let is_log = path.strip_suffix("-wal") == Some(self.path) && size > 0;
        if name == OPAQUE {
            self.opaque |= is_below(parent);
        } else if let Some(name) = name.strip_prefix(WHITEOUT) {
            let target = match parent {
                "" => name.to_owned(),
                parent => format!("{parent}/{name}"),
            };
            self.hidden |= target == self.path || is_below(&target);
        } else if path == self.path || (is_below(path) && !is_directory) || is_log {
            self.hidden = true;
        }
    }

    fn sight(self) -> io::Result<Sight> {
        Ok(match self.file {
            _ if self.hidden => Sight::Hidden,
            Some(mut file) => {
                file.rewind()?;
                Sight::File(file)
            }
            None if self.opaque => Sight::Hidden,
            None => Sight::Nothing,
        })
    }
}

/// Nobody is told: what is looked at here is not the download.
struct Silent;

impl Observer for Silent {}
