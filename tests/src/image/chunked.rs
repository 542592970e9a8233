//! Writes the forms of a layer that carry a table of contents: zstd:chunked and eStargz.
//!
//! Owns their formats as builders write them. Invariants: the tar is read once and never held as a whole; the
//! same tar, level and style give the same blob; what is unpacked from the blob is the tar byte by byte (with
//! [`Style::Old`] up to its second zero block, with [`Style::Stargz`] with the table of contents behind it); a
//! table of contents says what is true, unless it was told a [`Lie`].

mod frames;
mod splitter;
mod stargz;
mod tar_split;
mod toc;

use std::collections::BTreeMap;
use std::io::{Read, Write};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use self::frames::Frames;
use self::splitter::{Piece, Splitter};
use self::tar_split::TarSplit;
use self::toc::{Toc, TocEntry};
use super::members::{Member, Members};

/// Of the layer's descriptor in a manifest.
pub type Annotations = BTreeMap<String, String>;

/// Which builder's form is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// zstd:chunked as podman and skopeo of 2024 and later write it.
    Modern,
    /// zstd:chunked as those of Debian 12 write it: other names of annotations, no tar-split, and no padding
    /// after the two zero blocks that end the tar.
    Old,
    /// eStargz: members of gzip instead of frames of zstd.
    Stargz,
}

/// What a table of contents says that is not so; the text is the name of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lie {
    /// That the file has other content.
    Digest(String),
    /// That the file lies beyond the end of the blob.
    Outside(String),
    /// That the member is setuid; the tar-split denies it.
    Setuid(String),
    /// That the member is setuid; the tar-split says so too, but the tar does not.
    SetuidInBoth(String),
    /// Nothing of the member; the tar-split has it.
    Hidden(String),
}

impl Lie {
    fn is_about(&self, member: &str) -> bool {
        let (Self::Digest(name)
        | Self::Outside(name)
        | Self::Setuid(name)
        | Self::SetuidInBoth(name)
        | Self::Hidden(name)) = self;
        name == member
    }

    /// What the table of contents has instead of `entry`, the first one of a member.
    fn tell(&self, entry: &mut TocEntry) {
        match self {
            Self::Digest(_) => entry.digest = digest(&Sha256::digest(b"something else")),
            Self::Outside(_) => {
                let length = entry.end_offset - entry.offset;
                entry.offset = 1 << 40;
                entry.end_offset = entry.offset + length;
            }
            Self::Setuid(_) | Self::SetuidInBoth(_) => entry.mode |= 0o4000,
            Self::Hidden(_) => {}
        }
    }
}

/// Compresses a tar into a blob with a table of contents; `level` is that of the style's compressor.
///
/// # Errors
/// When reading or writing fails, or the tar has what real writers refuse or no builder of images writes:
/// members of unknown types, a name twice, sparse files, names that are not UTF-8.
pub fn compress(tar: impl Read, blob: impl Write, level: i32, style: Style) -> Result<Annotations> {
    compress_with(tar, blob, level, style, None)
}

/// As [`compress`], with a table of contents that lies.
///
/// # Errors
/// As [`compress`].
pub fn compress_with(
    tar: impl Read,
    blob: impl Write,
    level: i32,
    style: Style,
    lie: Option<&Lie>,
) -> Result<Annotations> {
    let mut members = Members::new(tar);
    if style == Style::Stargz {
        return stargz::write(members, blob, level, lie);
    }
    let mut frames = Frames::new(blob, level)?;
    let mut toc = Toc::new(level)?;
    let mut split = TarSplit::new(level)?;
    while let Some(member) = members.next()? {
        let lie = lie.filter(|lie| lie.is_about(&member.name));
        frames.write(&member.raw)?;
        split.headers(&member.raw, matches!(lie, Some(Lie::SetuidInBoth(_))))?;
        let (content, crc) = write_content(&mut members, &mut frames)?;
        split.file(&member.name, member.size, crc)?;
        let mut entries = entries(&member, content, style)?;
        match lie {
            Some(Lie::Hidden(_)) => continue,
            Some(lie) => lie.tell(&mut entries[0]),
            None => {}
        }
        for entry in &entries {
            toc.push(entry)?;
        }
    }
    let end = members.take_end();
    frames.write(&end)?;
    split.headers(&end, false)?;
    if style == Style::Modern {
        while let Some(padding) = members.padding()? {
            frames.write(&padding)?;
            split.headers(&padding, false)?;
        }
    }
    finish(frames, toc, split, style)
}

/// A file of the blob, and the places where its chunks begin.
#[derive(Default)]
struct Content {
    /// Where its frames begin and end; 0 for a file without content.
    start: u64,
    end: u64,
    digest: String,
    chunks: Vec<Chunk>,
}

struct Chunk {
    offset: u64,
    position: u64,
    size: u64,
    digest: String,
    is_zeros: bool,
}

/// Writes what follows the headers of the present member, each chunk as a frame; also gives its CRC.
fn write_content<R: Read, W: Write>(
    members: &mut Members<R>,
    frames: &mut Frames<W>,
) -> Result<(Content, [u8; 8])> {
    let mut content = Content::default();
    let (mut crc, mut whole, mut part) = (tar_split::Crc::default(), Sha256::new(), Sha256::new());
    let (mut position, mut written) = (0, 0);
    let mut splitter = Splitter::default();
    let mut piece = |piece: Piece<'_>| -> Result<()> {
        if content.start == 0 {
            content.start = frames.end()?;
            content.end = content.start;
        }
        piece.each_run(|bytes| {
            whole.update(bytes);
            part.update(bytes);
            written += bytes.len() as u64;
            frames.write(bytes)
        })?;
        if piece.ends_chunk() {
            content.chunks.push(Chunk {
                offset: content.end,
                position,
                size: written - position,
                digest: digest(&part.finalize_reset()),
                is_zeros: matches!(piece, Piece::Zeros(_)),
            });
            content.end = frames.end()?;
            position = written;
        }
        Ok(())
    };
    while let Some(bytes) = members.content()? {
        crc.update(bytes);
        splitter.feed(bytes, &mut piece)?;
    }
    splitter.finish(&mut piece)?;
    if content.start > 0 {
        content.digest = digest(&whole.finalize());
    }
    Ok((content, crc.finish()))
}

/// The entry of a member, and those of its chunks when there are more than one.
fn entries(member: &Member, content: Content, style: Style) -> Result<Vec<TocEntry>> {
    let mut first = TocEntry::of(member)?;
    if style == Style::Old {
        first.accessed.get_or_insert_with(toc::year_one);
        first.changed.get_or_insert_with(toc::year_one);
    }
    (first.user, first.group) = Default::default();
    first.digest = content.digest;
    (first.offset, first.end_offset) = (content.start, content.end);
    let mut entries = vec![first];
    if content.chunks.len() > 1 {
        for _ in 1..content.chunks.len() {
            entries.push(TocEntry::chunk_of(member));
        }
        for (entry, chunk) in entries.iter_mut().zip(content.chunks) {
            entry.offset = chunk.offset;
            entry.chunk_offset = chunk.position;
            entry.chunk_size = chunk.size;
            entry.chunk_digest = chunk.digest;
            entry.chunk_type = if chunk.is_zeros { "zeros" } else { "" };
        }
    }
    Ok(entries)
}

/// Ends the stream and appends table of contents, tar-split and footer, each in a skippable frame.
fn finish<W: Write>(
    mut frames: Frames<W>,
    toc: Toc,
    split: TarSplit,
    style: Style,
) -> Result<Annotations> {
    frames.end()?;
    let split = split.finish()?;
    let tar_split_digest = digest(&Sha256::digest(&split.compressed));
    let is_old = style == Style::Old;
    let toc = toc.finish((!is_old).then_some(tar_split_digest.as_str()))?;
    let offset = frames.skippable(&toc.compressed)?;
    let (length, unpacked) = (toc.compressed.len() as u64, toc.unpacked);
    let prefix = match is_old {
        true => "io.containers.zstd-chunked",
        false => "io.github.containers.zstd-chunked",
    };
    let checksum = digest(&Sha256::digest(&toc.compressed));
    let mut annotations = Annotations::from([
        (format!("{prefix}.manifest-checksum"), checksum),
        (
            format!("{prefix}.manifest-position"),
            format!("{offset}:{length}:{unpacked}:1"),
        ),
    ]);
    let mut footer = vec![offset, length, unpacked, 1];
    if !is_old {
        let offset = frames.skippable(&split.compressed)?;
        let (length, unpacked) = (split.compressed.len() as u64, split.unpacked);
        annotations.insert(
            format!("{prefix}.tarsplit-position"),
            format!("{offset}:{length}:{unpacked}"),
        );
        footer.extend([offset, length, unpacked]);
    }
    let mut footer: Vec<u8> = footer.into_iter().flat_map(u64::to_le_bytes).collect();
    footer.extend(if is_old { b"GnUlInUx" } else { b"GNUlInUx" });
    frames.skippable(&footer)?;
    frames.flush().context("writing a blob")?;
    Ok(annotations)
}

/// `sha256:…` of a hash.
fn digest(hash: &[u8]) -> String {
    format!("sha256:{}", super::hashing::hex(hash))
}
