//! What a layer lacks, and how it is fetched: in pieces of the blob, several at a time.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::wanted::{Content, Wanted};
use super::{Reach, Setback};
use crate::chunked::{self, ranges};
use crate::image::Pace;
use crate::import::error::Error;
use crate::import::objects::{Id, Payload, hex};
use crate::import::write_pool::{self, Hashing, Slot, WritePool};

/// Requests of one layer at a time, mostly: what ranges are made for.
const CONNECTIONS: usize = 4;
/// A range of several files ends when it has this many bytes, so that all connections have work. Some servers
/// cut each connection after 8 MiB, headers included.
const RANGE: u64 = (8 << 20) - (64 << 10);

/// What the smallest file takes on a disk, in bytes.
const BLOCK: u64 = 4096;

/// Files that are fetched together, and the range of the blob that they are in.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    /// In the order of the blob; they do not overlap.
    files: Vec<Missing>,
}

/// One content that is missing, and the first object that it is for.
#[derive(Clone, Copy, Debug)]
struct Missing {
    content: Content,
    target: usize,
}

impl Piece {
    /// Bytes of its files.
    pub(super) fn unpacked(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.content.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// What it takes, for the size of a slice: files have names and inodes, too.
    pub(super) fn weight(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.content.size.max(BLOCK));
        sizes.fold(0, u64::saturating_add)
    }

    /// The objects that are there when it was fetched.
    pub(super) fn targets(&self) -> impl Iterator<Item = usize> {
        self.files.iter().map(|file| file.target)
    }
}

/// The bytes between two files that are cheaper to fetch than to leave out, at that pace.
pub(super) fn gap(pace: Pace) -> u64 {
    ranges::gap(pace.round_trip, pace.bytes_per_second, CONNECTIONS)
}

/// The pieces that bring what is neither in the repository nor `elsewhere`, each content once, together
/// with up to `gap` bytes between two of them.
pub(super) fn pieces(wanted: &Wanted, elsewhere: &[Option<Id>], gap: u64) -> Vec<Piece> {
    let mut contents: HashMap<Id, Missing> = HashMap::new();
    for (index, target) in wanted.targets.iter().enumerate() {
        if let (Some(content), None, None) = (target.content, target.id, elsewhere[index]) {
            let missing = Missing {
                content,
                target: index,
            };
            contents.entry(content.digest).or_insert(missing);
        }
    }
    let mut files: Vec<Missing> = contents.into_values().collect();
    files.sort_unstable_by_key(|file| file.content.start);
    let parts: Vec<_> = files
        .iter()
        .map(|file| (file.content.start, file.content.end))
        .collect();
    let merged = ranges::plan(&parts, gap);
    let mut merged = merged.into_iter().peekable();
    let mut pieces: Vec<Piece> = Vec::new();
    for file in files {
        let Content { start, end, .. } = file.content;
        while merged.next_if(|(_, to)| *to <= start).is_some() {}
        let follows = merged.peek().is_some_and(|(from, _)| *from < start);
        match pieces.last_mut() {
            Some(piece) if follows && end - piece.range.start <= RANGE => {
                piece.range.end = end;
                piece.files.push(file);
            }
            _ => pieces.push(Piece {
                range: start..end,
                files: vec![file],
            }),
        }
    }
    pieces
}

/// Fetches the pieces, compares each file, and hands it to `pool`; tells the slots of targets.
pub(super) fn fetch(
    reach: &Reach<'_>,
    pieces: &[Piece],
    wanted: &Wanted,
    pool: &mut WritePool<'_>,
) -> Result<Vec<(usize, Slot)>, Setback> {
    let fetching = Fetching {
        reach: *reach,
        wanted,
        tmp: pool.tmp().to_owned(),
        pool: Mutex::new(pool),
        queue: Mutex::new(pieces.iter()),
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let count = reach.fetch.connections().max(1).min(pieces.len());
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(|| fetching.run())).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut slots = Vec::new();
    let mut setbacks = Vec::new();
    for result in results {
        match result {
            Ok(Ok(found)) => slots.extend(found),
            Ok(Err(setback)) => setbacks.push(setback),
            Err(_) => setbacks.push(Setback::Failed(Error::Ostree {
                context: "fetching parts of a layer",
                text: "a thread panicked".into(),
            })),
        }
    }
    // Some of them are only told to stop; what matters is why.
    let is_cause = |setback: &Setback| !matches!(setback, Setback::Failed(Error::Cancelled));
    let cause = setbacks.iter().position(is_cause).unwrap_or(0);
    if setbacks.is_empty() {
        Ok(slots)
    } else {
        Err(setbacks.swap_remove(cause))
    }
}

struct Fetching<'a, 'pool, 'scope> {
    reach: Reach<'a>,
    wanted: &'a Wanted,
    tmp: PathBuf,
    pool: Mutex<&'pool mut WritePool<'scope>>,
    queue: Mutex<std::slice::Iter<'a, Piece>>,
}

impl Fetching<'_, '_, '_> {
    fn run(&self) -> Result<Vec<(usize, Slot)>, Setback> {
        let mut slots = Vec::new();
        let next = || {
            let queue = self.queue.lock();
            queue.unwrap_or_else(PoisonError::into_inner).next()
        };
        while let Some(piece) = next() {
            if let Err(setback) = self.piece(piece, &mut slots) {
                // Nobody begins with anything else.
                let queue = self.queue.lock();
                *queue.unwrap_or_else(PoisonError::into_inner) = [].iter();
                return Err(setback);
            }
        }
        Ok(slots)
    }

    fn piece(&self, piece: &Piece, slots: &mut Vec<(usize, Slot)>) -> Result<(), Setback> {
        let mut arriving = self.reach.open(piece.range.clone())?;
        let mut at = piece.range.start;
        for file in &piece.files {
            let Content { start, end, .. } = file.content;
            let header = self.wanted.targets[file.target].header.clone();
            let between = start.saturating_sub(at);
            let read =
                io::copy(&mut (&mut arriving).take(between), &mut io::sink()).and_then(|_| {
                    let mut packed = (&mut arriving).take(end - start);
                    let read = self.file(header, &file.content, &mut packed);
                    // Whatever its frames end with.
                    io::copy(&mut packed, &mut io::sink())?;
                    read
                });
            at = end;
            let (payload, found) = match read {
                Ok(read) => read,
                Err(error) => return Err(arriving.explain(error)),
            };
            if found != file.content.digest {
                return Err(self.other_content(file, found));
            }
            let content = write_pool::Content::Known {
                content: found,
                header: self.wanted.targets[file.target].header_id,
                size: file.content.size,
            };
            let pool = self.pool.lock();
            let mut pool = pool.unwrap_or_else(PoisonError::into_inner);
            let slot = pool.push_with(payload, content);
            // The writers say why when they are joined.
            let slot = slot.map_err(|_| Setback::Failed(Error::Cancelled))?;
            slots.push((file.target, slot));
        }
        Ok(())
    }

    fn file(
        &self,
        header: Vec<u8>,
        content: &Content,
        packed: &mut impl Read,
    ) -> io::Result<(Payload, Id)> {
        let wanted = chunked::Content {
            size: content.size,
            digest: Some(content.digest),
            start: content.start,
            end: content.end,
        };
        let mut unpacked = Hashing::new(chunked::unpack(packed, &wanted)?);
        let payload = Payload::read(header, content.size, &mut unpacked, &self.tmp)?;
        // Only at its end it is known to be no longer.
        if unpacked.read(&mut [0])? > 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a file is longer than it should be",
            ));
        }
        Ok((payload, unpacked.finish()))
    }

    fn other_content(&self, file: &Missing, found: Id) -> Setback {
        let (expected, found) = (hex(&file.content.digest), hex(&found));
        let digest = &self.reach.layer.digest;
        tracing::warn!(%digest, expected, found, "a file of a layer has another content than its table says");
        Setback::Whole(format!(
            "a file in it has the content {found} instead of {expected}"
        ))
    }
}
