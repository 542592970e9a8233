//! eStargz: every file begins a gzip member of its own, and a tar with the table of contents follows the
//! layer's, in front of a footer that tells its place.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::toc::TocEntry;
use super::{Annotations, Lie, digest};
use crate::image::entry::{Entry, Kind, write_end};
use crate::image::members::{Member, Members};

/// Most of a file that is in one gzip member.
const CHUNK: u64 = 4 << 20;

/// The name of the table of contents in its tar.
const INDEX: &str = "stargz.index.json";

pub(super) fn write<R: Read>(
    mut members: Members<R>,
    blob: impl Write,
    level: i32,
    lie: Option<&Lie>,
) -> Result<Annotations> {
    ensure!(
        !matches!(lie, Some(Lie::SetuidInBoth(_))),
        "eStargz has no tar-split"
    );
    let level = flate2::Compression::new(u32::try_from(level).context("a negative level")?);
    let mut out = Gzip::new(blob, level);
    let mut toc = Vec::new();
    while let Some(member) = members.next()? {
        out.write(&member.raw)?;
        let mut entries = write_content(&member, &mut members, &mut out)?;
        match lie.filter(|lie| lie.is_about(&member.name)) {
            Some(Lie::Hidden(_)) => continue,
            Some(lie) => lie.tell(&mut entries[0]),
            None => {}
        }
        toc.extend(entries);
    }
    out.write(&members.take_end())?;
    while let Some(padding) = members.padding()? {
        out.write(&padding)?;
    }
    let position = out.end()?;
    let index = serde_json::to_vec(&json!({"version": 1, "entries": toc}))?;
    let checksum = digest(&Sha256::digest(&index));
    let mut tar = Vec::new();
    Entry::new(INDEX, Kind::File(index), 0).write(&mut tar)?;
    write_end(&mut tar)?;
    out.write(&tar)?;
    out.end()?;
    out.raw(&footer(position))?;
    out.blob.flush().context("writing a blob")?;
    let key = "containerd.io/snapshot/stargz/toc.digest";
    Ok(Annotations::from([(key.to_owned(), checksum)]))
}

fn write_content<R: Read, W: Write>(
    member: &Member,
    members: &mut Members<R>,
    out: &mut Gzip<W>,
) -> Result<Vec<TocEntry>> {
    let mut entries = vec![TocEntry::of(member)?];
    if member.type_flag != b'0' {
        entries[0].size = 0;
        return Ok(entries);
    }
    let (mut whole, mut part) = (Sha256::new(), Sha256::new());
    let (mut position, mut in_chunk) = (0, 0);
    while let Some(mut bytes) = members.content()? {
        while !bytes.is_empty() {
            if in_chunk == 0 {
                if position > 0 {
                    entries.push(TocEntry::chunk_of(member));
                }
                let offset = out.end()?;
                if let Some(entry) = entries.last_mut() {
                    (entry.offset, entry.chunk_offset) = (offset, position);
                    // The last chunk goes to the end of the file, which 0 stands for.
                    let is_full = member.size - position >= CHUNK;
                    entry.chunk_size = if is_full { CHUNK } else { 0 };
                }
            }
            let length = (CHUNK - in_chunk).min(bytes.len() as u64);
            let (now, later) = bytes.split_at(length as usize);
            out.write(now)?;
            whole.update(now);
            part.update(now);
            (bytes, position, in_chunk) = (later, position + length, in_chunk + length);
            if in_chunk == CHUNK || position == member.size {
                in_chunk = 0;
                if let Some(entry) = entries.last_mut() {
                    entry.chunk_digest = digest(&part.finalize_reset());
                }
            }
        }
    }
    entries[0].digest = digest(&whole.finalize());
    Ok(entries)
}

/// An empty gzip member whose extra field says where the table of contents begins.
fn footer(position: u64) -> Vec<u8> {
    let head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff";
    let field = format!("{position:016x}STARGZ");
    let extra = [&b"\x1a\0SG\x16\0"[..], field.as_bytes()].concat();
    // A stored block that is the last and has no bytes; checksum and length are 0.
    let end = b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0";
    [&head[..], &extra, end].concat()
}

/// Writes gzip members one after the other, counting bytes.
struct Gzip<W> {
    blob: W,
    level: flate2::Compression,
    member: Option<GzEncoder<Vec<u8>>>,
    written: u64,
}

impl<W: Write> Gzip<W> {
    fn new(blob: W, level: flate2::Compression) -> Self {
        Self {
            blob,
            level,
            member: None,
            written: 0,
        }
    }

    /// Adds to the present member.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let level = self.level;
        let member = self
            .member
            .get_or_insert_with(|| GzEncoder::new(Vec::new(), level));
        member.write_all(bytes)?;
        let done = std::mem::take(member.get_mut());
        self.raw(&done)
    }

    /// Ends the present member; returns where the next one begins.
    fn end(&mut self) -> Result<u64> {
        if let Some(member) = self.member.take() {
            let rest = member.finish()?;
            self.raw(&rest)?;
        }
        Ok(self.written)
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.blob.write_all(bytes).context("writing a blob")?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}
