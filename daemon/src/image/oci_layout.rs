//! Images in an OCI layout on this host: `index.json` and `blobs/sha256/…`, in a directory or in a tar.
//!
//! Owns which image of a layout a tag or a digest means. Invariant: only names made from validated digests
//! are opened.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use tokio::sync::OnceCell;

use super::answer::shown;
use super::layout::{LayoutError, host_architecture, verify};
use super::manifest::{Index, IndexEntry, select_platform};
use super::members::{Handed, Members};
use super::reference::{Digest, Transport};
use super::spool::Abandon;
use super::{ByteStream, Error, RawDocument, blob};

/// Where a layout is.
#[derive(Debug)]
pub(super) enum Place {
    /// A directory or an archive, as the transport says.
    Path(Transport, PathBuf),
    /// What a client has opened.
    Handed(Handed),
}

/// One image in a layout.
#[derive(Debug)]
pub(super) struct OciLayout {
    place: Place,
    tag: Option<String>,
    max_manifest_bytes: u64,
    scratch: PathBuf,
    opened: OnceCell<Members>,
}

impl OciLayout {
    /// Opens nothing yet. `scratch` is where a compressed archive is unpacked.
    pub(super) fn new(
        place: Place,
        tag: Option<&str>,
        max_manifest_bytes: u64,
        scratch: PathBuf,
    ) -> OciLayout {
        OciLayout {
            place,
            tag: tag.map(str::to_owned),
            max_manifest_bytes,
            scratch,
            opened: OnceCell::new(),
        }
    }

    /// The only image in a layout that is open already, and what messages call it.
    pub(super) fn opened(members: Members, shown: &str, max_manifest_bytes: u64) -> OciLayout {
        OciLayout {
            place: Place::Path(Transport::ContainersStorage, shown.into()),
            tag: None,
            max_manifest_bytes,
            scratch: PathBuf::new(),
            opened: OnceCell::from(members),
        }
    }

    /// Longest document that is read into memory, in bytes.
    pub(super) fn max_manifest_bytes(&self) -> u64 {
        self.max_manifest_bytes
    }

    /// The manifest or index of this digest, or the one that the tag names.
    pub(super) async fn document(&self, digest: Option<&Digest>) -> Result<RawDocument, Error> {
        let digest = match digest {
            Some(digest) => digest.clone(),
            None => self.named_document().await?,
        };
        let bytes = match self.read(&blob_name(&digest)).await {
            Err(Error::NotFound { .. }) => {
                let image = self.name();
                return Err(Error::DigestGone { image, digest });
            }
            read => read?,
        };
        verify("manifest", &digest, &bytes)?;
        Ok(RawDocument { digest, bytes })
    }

    /// These bytes of the blob of this digest, which must have `size` of them.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<ByteStream, Error> {
        let member = self.members().await?.open(&blob_name(digest)).await?;
        let digest = digest.clone();
        let wrong_size = move |actual| {
            Error::Invalid(LayoutError::BlobSize {
                digest: digest.clone(),
                expected: size,
                actual,
            })
        };
        if member.length != size {
            return Err(wrong_size(member.length));
        }
        let wanted = range.end.saturating_sub(range.start);
        let chunks = member.part(&range).chunks();
        // Where it ends, if that is before the part does.
        let wrong_size = move |read| wrong_size(range.start.saturating_add(read));
        Ok(blob::sized(chunks, wanted, wrong_size))
    }

    /// The files of the layout; the headers of an archive are read once.
    async fn members(&self) -> Result<&Members, Error> {
        self.opened.get_or_try_init(|| self.open()).await
    }

    async fn open(&self) -> Result<Members, Error> {
        let scratch = self.scratch.clone();
        match &self.place {
            Place::Path(Transport::OciArchive, path) => {
                let path = path.clone();
                reading(move |stop| Members::archive(&path, &scratch, stop)).await
            }
            Place::Handed(handed) => {
                let handed = handed.clone();
                reading(move |stop| handed.members(&scratch, stop)).await
            }
            Place::Path(_, path) => Ok(Members::directory(path)),
        }
    }

    fn name(&self) -> String {
        let place = match &self.place {
            Place::Path(transport, path) => format!("{transport}{}", path.display()),
            Place::Handed(handed) => handed.shown().display().to_string(),
        };
        match &self.tag {
            Some(tag) => format!("{place}:{tag}"),
            None => place,
        }
    }

    /// The digest that `index.json` gives for the tag, or for its only entry.
    async fn named_document(&self) -> Result<Digest, Error> {
        let bytes = self.read("index.json").await?;
        let index = Index::parse(&bytes)?;
        Ok(self.choose(&index)?.digest()?)
    }

    fn choose<'a>(&self, index: &'a Index) -> Result<&'a IndexEntry, Error> {
        let entries = &index.manifests;
        let Some(tag) = &self.tag else {
            return match &entries[..] {
                [only] => Ok(only),
                [] => Err(Error::NotFound {
                    what: format!("an image in {}", self.name()),
                }),
                _ => Err(Error::NotSupported(format!(
                    "{} holds several images; add the tag of one: {}",
                    self.name(),
                    tags(entries)
                ))),
            };
        };
        let tagged: Vec<IndexEntry> = entries
            .iter()
            .filter(|entry| entry.ref_name() == Some(tag))
            .cloned()
            .collect();
        let chosen = match &tagged[..] {
            [] => {
                let what = format!("{} (there is {})", self.name(), tags(entries));
                return Err(Error::NotFound { what });
            }
            [only] => only,
            // One tag on an image for each of several platforms.
            several => select_platform(several, host_architecture())?,
        };
        let position = entries.iter().position(|entry| entry == chosen);
        position
            .map(|at| &entries[at])
            .ok_or_else(|| Error::NotFound { what: self.name() })
    }

    async fn read(&self, name: &str) -> Result<tokio_util::bytes::Bytes, Error> {
        let member = self.members().await?.open(name).await?;
        member.read(self.max_manifest_bytes).await
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Runs `work` where it may block; it is told when nobody waits for it any more.
async fn reading(
    work: impl FnOnce(&AtomicBool) -> Result<Members, Error> + Send + 'static,
) -> Result<Members, Error> {
    let abandon = Abandon::default();
    let stop = abandon.flag();
    let done = tokio::task::spawn_blocking(move || work(&stop)).await;
    done.unwrap_or_else(|error| Err(Error::NotSupported(error.to_string())))
}

fn tags(entries: &[IndexEntry]) -> String {
    let tags: Vec<&str> = entries.iter().filter_map(IndexEntry::ref_name).collect();
    if tags.is_empty() {
        "none with a tag".to_owned()
    } else {
        shown(&tags.join(", "))
    }
}
