//! Where the table of contents of a layer is, as annotations of its descriptor tell.
//!
//! Pure. Invariant: the parts of a [`Chunked`] lie in the blob, do not overlap, and are short enough to be
//! read. Annotations that break a rule cost nothing but the saving: the layer is then fetched whole.
//! The format is that of containers/storage, `pkg/chunked/internal/minimal`. Footers of blobs are never read,
//! since no digest in the manifest covers them. eStargz is recognised, and left alone: it has no tar-split, so
//! nothing would prove the whole tar.

use std::collections::HashMap;

use super::layer::Compression;
use super::reference::Digest;

/// Longest table of contents that is read, in bytes, decompressed: that of a system of 44,000 files has a third
/// of it. The reference reader goes up to 150 MiB, but has no daemon's memory to keep to.
pub const MAX_TOC: u64 = 64 * 1024 * 1024;
/// Longest table of contents or tar-split as it is in the blob, in bytes.
pub const MAX_PACKED: u64 = 24 * 1024 * 1024;
/// Longest tar-split, in bytes, decompressed. It is read as a stream.
pub const MAX_TAR_SPLIT: u64 = 2 * 1024 * 1024 * 1024;
/// What precedes a part of a zstd:chunked blob: the magic number and the length of a skippable frame.
pub const SKIPPABLE_HEADER: u64 = 8;

/// What the annotations of today begin with …
const PREFIX: &str = "io.github.containers.zstd-chunked.";
/// … and what those of writers before 2022 do, Debian 12's among them.
const OLD_PREFIX: &str = "io.containers.zstd-chunked.";
const CHECKSUM: &str = "manifest-checksum";
const POSITION: &str = "manifest-position";
const TAR_SPLIT: &str = "tarsplit-position";
/// The only type of table that was ever written.
const TYPE_CRFS: u64 = 1;
const STARGZ_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// A part of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its first byte in the blob.
    pub offset: u64,
    /// Its bytes in the blob.
    pub length: u64,
    /// Its bytes decompressed.
    pub unpacked: u64,
}

impl Part {
    /// The first byte after it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Where the table of contents of a zstd:chunked layer is, and what proves it: each file is in zstd frames of
/// its own, the table in a skippable frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunked {
    /// The table of contents.
    pub toc: Part,
    /// sha256 of the compressed table.
    pub toc_digest: Digest,
    /// The bytes of the tar that are not content of files. What proves it is in the table.
    pub tar_split: Option<Part>,
    /// Annotated under the old names. Such writers knew no tar-split, and dropped the end of the tar.
    pub old_writer: bool,
}

impl Chunked {
    /// Reads the annotations of a layer of `blob_size` bytes.
    ///
    /// # Errors
    /// Why the annotations are of no use, for the log.
    pub fn of(
        annotations: Option<&HashMap<String, String>>,
        blob_size: u64,
        compression: Compression,
    ) -> Result<Option<Chunked>, String> {
        let Some(annotations) = annotations else {
            return Ok(None);
        };
        if annotations.contains_key(STARGZ_DIGEST) {
            return Err("it is eStargz, where nothing proves the whole tar".to_owned());
        }
        let Some((zstd, old_writer)) = zstd_chunked(annotations)? else {
            return Ok(None);
        };
        if compression != Compression::Zstd {
            return Err("zstd:chunked is annotated, but the layer is not zstd".to_owned());
        }
        zstd.into_chunked(blob_size, old_writer).map(Some)
    }
}

/// The annotations of zstd:chunked, as they are.
#[derive(PartialEq, Eq)]
struct Annotated<'a> {
    checksum: Option<&'a str>,
    position: Option<&'a str>,
    tar_split: Option<&'a str>,
}

/// What is annotated as zstd:chunked, and whether only under the old names.
fn zstd_chunked(
    annotations: &HashMap<String, String>,
) -> Result<Option<(Annotated<'_>, bool)>, String> {
    let under = |prefix: &str| {
        let get = |name| annotations.get(&format!("{prefix}{name}"));
        let found = Annotated {
            checksum: get(CHECKSUM).map(String::as_str),
            position: get(POSITION).map(String::as_str),
            tar_split: get(TAR_SPLIT).map(String::as_str),
        };
        (found.checksum.is_some() || found.position.is_some()).then_some(found)
    };
    match (under(PREFIX), under(OLD_PREFIX)) {
        (Some(new), Some(old))
            if new.checksum != old.checksum
                || new.position != old.position
                || (old.tar_split.is_some() && new.tar_split != old.tar_split) =>
        {
            Err("the old and the new zstd:chunked annotations differ".to_owned())
        }
        (Some(new), _) => Ok(Some((new, false))),
        (None, Some(old)) => Ok(Some((old, true))),
        (None, None) => Ok(None),
    }
}

impl Annotated<'_> {
    fn into_chunked(self, blob_size: u64, old_writer: bool) -> Result<Chunked, String> {
        let (Some(checksum), Some(position)) = (self.checksum, self.position) else {
            return Err("a zstd:chunked annotation is missing".to_owned());
        };
        let [offset, length, unpacked, kind] = numbers(position)?;
        if kind != TYPE_CRFS {
            return Err(format!(
                "the table of contents is of the unknown type {kind}"
            ));
        }
        let part = |offset, length, unpacked| Part {
            offset,
            length,
            unpacked,
        };
        let toc = part(offset, length, unpacked);
        check("table of contents", &toc, blob_size, MAX_TOC)?;
        let tar_split = self.tar_split.map(numbers).transpose()?;
        let tar_split = tar_split.map(|[offset, length, unpacked]| part(offset, length, unpacked));
        if let Some(tar_split) = &tar_split {
            check("tar-split", tar_split, blob_size, MAX_TAR_SPLIT)?;
            // Each is in a frame of its own.
            let apart = |first: &Part, second: &Part| {
                first.end() <= second.offset.saturating_sub(SKIPPABLE_HEADER)
            };
            if !apart(&toc, tar_split) && !apart(tar_split, &toc) {
                return Err("the table of contents and the tar-split overlap".to_owned());
            }
        }
        Ok(Chunked {
            toc,
            toc_digest: digest(checksum)?,
            tar_split,
            old_writer,
        })
    }
}

/// Refuses a part that is not in the blob, or too long to be read.
fn check(what: &str, part: &Part, blob_size: u64, longest: u64) -> Result<(), String> {
    let end = part.offset.checked_add(part.length);
    if part.offset <= SKIPPABLE_HEADER || end.is_none_or(|end| end > blob_size) {
        return Err(format!("the {what} is said to be outside of the layer"));
    }
    if part.length == 0 || part.unpacked == 0 {
        return Err(format!("the {what} is said to be empty"));
    }
    if part.length > MAX_PACKED || part.unpacked > longest {
        let (packed, unpacked) = (part.length, part.unpacked);
        return Err(format!(
            "the {what} is too long: {packed} bytes, {unpacked} decompressed"
        ));
    }
    Ok(())
}

/// Exactly `N` decimal numbers with colons between them.
fn numbers<const N: usize>(text: &str) -> Result<[u64; N], String> {
    let refused = || {
        let shown: String = text.chars().take(100).collect();
        format!("{shown:?} is not a position in a layer")
    };
    let number = |text: &str| {
        // `parse` takes a sign, too.
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| text.parse().ok()).flatten()
    };
    let numbers: Option<Vec<u64>> = text.split(':').map(number).collect();
    numbers
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or_else(refused)
}

fn digest(text: &str) -> Result<Digest, String> {
    text.parse()
        .map_err(|error| format!("the digest of the table of contents is of no use: {error}"))
}

#[cfg(test)]
mod tests;
