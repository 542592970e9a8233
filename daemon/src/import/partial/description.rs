//! What a layer says is in it: its table of contents and its tar-split, proven and kept for a
//! while, so that what a check looked at need not be fetched again by the upgrade.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{Reach, Setback};
use crate::chunked::{self, Chunked, Part, Toc, tar_split};
use crate::image::chunked::MAX_PACKED;
use crate::import::error::available;
use crate::import::transaction::tmp_dir;

/// What kept tables are called in the repository's `tmp`, where libostree removes what nobody
/// touched for a day.
pub(crate) const KEPT: &str = "osteward-toc-";
/// Most bytes of all that are kept.
const KEPT_BYTES: u64 = 256 * 1024 * 1024;
/// Room that is left when one is kept.
const RESERVE: u64 = 64 * 1024 * 1024;
/// As many bytes between table and tar-split are fetched along with both.
const BETWEEN: u64 = 64 * 1024;

/// The table of contents, and the rest of the tar.
pub(super) struct Description {
    pub(super) toc: Toc,
    /// As it is in the blob; the table of contents has its digest.
    pub(super) tar_split: Vec<u8>,
}

/// Reads what was kept of the description in the repository, or fetches it and, if it is of any use,
/// keeps it.
pub(super) fn describe(
    reach: &Reach<'_>,
    chunked: &Chunked,
    split: &Part,
    repo: &ostree::Repo,
) -> Result<Description, Setback> {
    let tmp = tmp_dir(repo);
    if let Some(bytes) = kept(chunked, split, &tmp) {
        let length = usize::try_from(chunked.toc.length).unwrap_or(usize::MAX);
        let (toc, rest) = bytes.split_at(length.min(bytes.len()));
        if let Ok(description) = parse(chunked, split, toc, rest) {
            return Ok(description);
        }
        forget(&tmp, chunked);
    }
    let mut parts = Vec::new();
    for range in ranges(&chunked.toc, split) {
        parts.push((range.start, reach.bytes(range)?));
    }
    let bytes_of = |wanted: &Part| {
        let mut found = parts.iter().map(|(start, part)| cut(part, *start, wanted));
        found.find(|bytes| !bytes.is_empty()).unwrap_or_default()
    };
    let (toc, rest) = (bytes_of(&chunked.toc), bytes_of(split));
    let description = parse(chunked, split, toc, rest)?;
    if available(repo) >= RESERVE.saturating_add((toc.len() + rest.len()) as u64) {
        keep(chunked, [toc, rest], &tmp);
    }
    Ok(description)
}

/// The bytes of a part, out of those of the blob from `start` on; none if they are not all there.
fn cut<'a>(bytes: &'a [u8], start: u64, part: &Part) -> &'a [u8] {
    let place = |at: u64| usize::try_from(at.checked_sub(start)?).ok();
    match (place(part.offset), place(part.end())) {
        (Some(from), Some(to)) => bytes.get(from..to).unwrap_or_default(),
        _ => &[],
    }
}

/// One range if both are beside each other, as all writers have it.
fn ranges(toc: &Part, split: &Part) -> Vec<Range<u64>> {
    let whole = toc.offset.min(split.offset)..toc.end().max(split.end());
    if whole.end - whole.start <= toc.length + split.length + BETWEEN {
        return vec![whole];
    }
    vec![toc.offset..toc.end(), split.offset..split.end()]
}

fn parse(
    chunked: &Chunked,
    split: &Part,
    toc: &[u8],
    tar_split: &[u8],
) -> Result<Description, Setback> {
    let wrong = |what: String| Setback::Whole(format!("its table of contents {what}"));
    if toc.len() as u64 != chunked.toc.length || tar_split.len() as u64 != split.length {
        return Err(wrong("is not all there".to_owned()));
    }
    let toc = chunked::parse_toc(toc, chunked);
    let toc = toc.map_err(|error| wrong(format!("is refused: {error}")))?;
    let Some(digest) = toc.tar_split_digest else {
        return Err(wrong("names no tar-split".to_owned()));
    };
    // Read later; what is damaged on the way is known now.
    tar_split::read(tar_split, &digest, split.unpacked)
        .map_err(|error| wrong(format!("comes with a tar-split that is refused: {error}")))?;
    Ok(Description {
        toc,
        tar_split: tar_split.to_vec(),
    })
}

/// Bytes that [`describe`] fetches, if nothing is kept.
pub(super) fn cost(chunked: &Chunked, split: &Part) -> u64 {
    let ranges = ranges(&chunked.toc, split);
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Whether something is kept.
pub(super) fn is_kept(chunked: &Chunked, tmp: &Path) -> bool {
    path(tmp, chunked).exists()
}

fn path(tmp: &Path, chunked: &Chunked) -> PathBuf {
    tmp.join(format!("{KEPT}{}", chunked.toc_digest.hex()))
}

fn kept(chunked: &Chunked, split: &Part, tmp: &Path) -> Option<Vec<u8>> {
    let path = path(tmp, chunked);
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&path)
        .ok()?;
    let length = chunked.toc.length + split.length;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() != length || length > 2 * MAX_PACKED {
        forget(tmp, chunked);
        return None;
    }
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Where it cannot be kept, it is fetched again.
fn keep(chunked: &Chunked, parts: [&[u8]; 2], tmp: &Path) {
    let write = || -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length as u64 + all_kept(tmp) > KEPT_BYTES {
            return Ok(());
        }
        let mut file = tempfile::NamedTempFile::new_in(tmp)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.persist(path(tmp, chunked))?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::debug!(%error, "a table of contents is not kept");
    }
}

fn all_kept(tmp: &Path) -> u64 {
    let entries = fs::read_dir(tmp).into_iter().flatten().flatten();
    let kept = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(KEPT));
    let lengths = kept.filter_map(|entry| entry.metadata().ok());
    lengths.map(|metadata| metadata.len()).sum()
}

/// Removes what was kept: the layer is here, or it is of no use.
pub(super) fn forget(tmp: &Path, chunked: &Chunked) {
    if let Err(error) = fs::remove_file(path(tmp, chunked))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "a kept table of contents stays");
    }
}
