//! The tar of a layer out of a tar-diff, versions 1 and 2, and the files of an older image.
//!
//! A tar-diff is a list of operations in one Zstandard stream: bytes as they are, and bytes from the files of
//! the older image as they are, with differences added, or as the dictionary of a frame. It is applied as it
//! is read: the next operation is looked at when the tar of the last one was taken.
//!
//! Invariants: only files that [`SourceFiles`] gives are read, and only within them; no more than the limit is
//! made or unpacked, and what makes nothing is limited, too; the tar ends only where the tar-diff does.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take};

use super::memory::Memory;
use super::patch_frame::PatchFrame;

/// How a tar-diff begins, by version.
const HEADERS: [&[u8; 8]; 2] = [b"tardf1\n\0", b"tardf2\n\0"];
/// The longest name of a file, as others take it, too.
const NAME_BYTES: u64 = 4096;
/// Largest window of the stream of operations, as its logarithm: 32 MiB, which the highest level of the usual
/// tool has.
const WINDOW_LOG_MAX: u32 = 25;
/// Bytes of a file that differences are added to at a time.
const CHUNK: usize = 64 << 10;
/// What any operation costs, opening a file costs more, and every tar-diff may cost beside what it makes: in
/// bytes that could be copied meanwhile.
const OPERATION_WORK: u64 = 64;
const OPEN_WORK: u64 = 2048;
const ANY_WORK: u64 = 16 << 20;

/// The files of the image that a delta starts from.
pub trait SourceFiles {
    /// Opens a regular file at its beginning, by its path in the image, relative to the root; `None` if there is
    /// none.
    ///
    /// # Errors
    /// Whatever kept it from being opened.
    fn open(&mut self, path: &str) -> io::Result<Option<File>>;

    /// Is asked again and again while a tar-diff is applied.
    ///
    /// # Errors
    /// When it should not be any more.
    fn go_on(&mut self) -> io::Result<()>;
}

/// Why a tar-diff cannot be applied. It is the source of an [`io::Error`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarDiffError {
    /// The first bytes are others.
    #[error("it is no tar-diff of version 1 or 2")]
    Header,
    /// A later version, or nonsense.
    #[error("it has the operation {0}, which is not known")]
    Operation(u8),
    /// A number that is longer than any.
    #[error("it has a number of more than 64 bits")]
    Number,
    /// A name that no file of a layer has.
    #[error("it names a file {0:?}")]
    Name(String),
    /// A file that the image does not have, or no regular one.
    #[error("it needs the file {0:?}, which the older image does not have")]
    Missing(String),
    /// An operation on a file before the first was opened.
    #[error("it reads from a file before it opens one")]
    NoFile,
    /// A position behind the end of the file.
    #[error("it reads behind the end of {0:?}")]
    Outside(String),
    /// It ends within an operation.
    #[error("it is cut off")]
    Truncated,
    /// It makes more than a layer of this size can have.
    #[error("what it makes has more than {0} bytes, far more than the layer should")]
    TooLong(u64),
    /// It keeps the host busy without making anything.
    #[error("it takes far more work than a layer of at most {0} bytes should")]
    TooMuchWork(u64),
    /// The frame of a file is damaged, or something follows it.
    #[error("it has a file that cannot be decompressed")]
    Frame,
    /// The dictionary and window of a file do not fit.
    #[error("it needs {need} bytes of memory for one file, more than the {limit} allowed")]
    Memory {
        /// Bytes of dictionary and window.
        need: u64,
        /// Bytes for all files at a time.
        limit: u64,
    },
}

impl From<TarDiffError> for io::Error {
    fn from(error: TarDiffError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// What is left of the current operation.
enum Operation {
    /// The header comes first.
    Header,
    /// There is none: the next one follows.
    Done,
    /// Bytes as they are.
    Data(u64),
    /// Bytes of the file as they are.
    Copy(u64),
    /// Bytes of the file with the differences that follow.
    Add(u64),
    /// A file as a frame.
    Frame(Box<PatchFrame>),
    /// No more operations.
    End,
}

/// The file that operations are about.
struct Current {
    path: String,
    file: File,
    length: u64,
}

impl Current {
    /// Fills some of the buffer, which is not empty.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer)? {
            0 => Err(TarDiffError::Outside(self.path.clone()).into()),
            count => Ok(count),
        }
    }
}

/// The tar that a tar-diff leads to.
pub struct TarDiff<R: BufRead, S> {
    /// Limited to one byte more than there may be of them.
    operations: BufReader<Take<zstd::Decoder<'static, R>>>,
    /// 1 or 2.
    version: usize,
    files: S,
    memory: Memory,
    current: Option<Current>,
    operation: Operation,
    /// Bytes that may still be made.
    left: u64,
    /// Work that may still be done besides.
    work: u64,
    limit: u64,
    chunk: Box<[u8]>,
}

impl<R: BufRead, S: SourceFiles> TarDiff<R, S> {
    /// Applies `diff` to `files`. The tar must not have more than `limit` bytes, and the operations no more than
    /// twice that: what names a file is shorter than the header that the tar has for it.
    ///
    /// # Errors
    /// Where the decoder cannot be made; what is wrong with the tar-diff is told when it is read.
    pub fn new(diff: R, files: S, limit: u64, memory: &Memory) -> io::Result<Self> {
        let mut decoder = zstd::Decoder::with_buffer(diff)?;
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        let most = limit.saturating_mul(2).saturating_add(CHUNK as u64 + 1);
        Ok(TarDiff {
            operations: BufReader::with_capacity(CHUNK, decoder.take(most)),
            version: 0,
            files,
            memory: memory.clone(),
            current: None,
            operation: Operation::Header,
            left: limit,
            work: limit.saturating_mul(2).saturating_add(ANY_WORK),
            limit,
            chunk: Box::default(),
        })
    }

    /// What the tar-diff is read from.
    pub fn get_mut(&mut self) -> &mut R {
        self.operations.get_mut().get_mut().get_mut()
    }

    /// What the tar-diff was read from, behind all that was looked at.
    pub fn into_inner(self) -> R {
        self.operations.into_inner().into_inner().finish()
    }

    /// The bytes before the stream of operations.
    fn header(&mut self) -> io::Result<()> {
        let mut header = [0; 8];
        self.get_mut().read_exact(&mut header).map_err(cut)?;
        let known = HEADERS.iter().position(|known| **known == header);
        self.version = 1 + known.ok_or(TarDiffError::Header)?;
        Ok(())
    }

    /// Charges work before it is done.
    fn spend(&mut self, work: u64) -> Result<(), TarDiffError> {
        let left = self.work.checked_sub(work);
        self.work = left.ok_or(TarDiffError::TooMuchWork(self.limit))?;
        Ok(())
    }

    /// The next operation; those that make nothing are carried out.
    fn next(&mut self) -> io::Result<Operation> {
        let Some(code) = self.operations.fill_buf().map_err(cut)?.first().copied() else {
            return Ok(Operation::End);
        };
        self.spend(OPERATION_WORK)?;
        self.operations.consume(1);
        let size = self.number()?;
        Ok(match code {
            0 => Operation::Data(size),
            1 => {
                self.open(size)?;
                Operation::Done
            }
            2 => {
                self.current()?;
                Operation::Copy(size)
            }
            3 => {
                self.current()?;
                Operation::Add(size)
            }
            4 => {
                self.seek(size)?;
                Operation::Done
            }
            5 if self.version == 2 => self.frame(size)?,
            _ => return Err(TarDiffError::Operation(code).into()),
        })
    }

    /// Seven bits a byte, the lowest first.
    fn number(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.operations.read_exact(&mut byte).map_err(cut)?;
            let bits = u64::from(byte[0] & 0x7f);
            if bits > u64::MAX >> shift {
                break;
            }
            number |= bits << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(TarDiffError::Number.into())
    }

    fn open(&mut self, size: u64) -> io::Result<()> {
        if size > NAME_BYTES {
            let shown = format!("of {size} bytes");
            return Err(TarDiffError::Name(shown).into());
        }
        let mut name = vec![0; usize::try_from(size).unwrap_or_default()];
        self.operations.read_exact(&mut name).map_err(cut)?;
        let path = match String::from_utf8(name) {
            Ok(path) if is_plain(&path) => path,
            Ok(path) => return Err(TarDiffError::Name(path).into()),
            Err(error) => {
                let shown = String::from_utf8_lossy(error.as_bytes()).into_owned();
                return Err(TarDiffError::Name(shown).into());
            }
        };
        self.spend(OPEN_WORK)?;
        // Not two at a time.
        self.current = None;
        let Some(file) = self.files.open(&path)? else {
            return Err(TarDiffError::Missing(path).into());
        };
        let length = file.metadata()?.len();
        self.current = Some(Current { path, file, length });
        Ok(())
    }

    fn current(&mut self) -> Result<&mut Current, TarDiffError> {
        self.current.as_mut().ok_or(TarDiffError::NoFile)
    }

    fn seek(&mut self, position: u64) -> io::Result<()> {
        let current = self.current()?;
        if position > current.length {
            return Err(TarDiffError::Outside(current.path.clone()).into());
        }
        current.file.seek(SeekFrom::Start(position)).map(drop)
    }

    fn frame(&mut self, size: u64) -> io::Result<Operation> {
        let current = self.current.as_mut().ok_or(TarDiffError::NoFile)?;
        if size == 0 {
            // What compressors make of nothing.
            current.file.seek(SeekFrom::End(0))?;
            return Ok(Operation::Done);
        }
        // All of the file is read first, however little comes of it.
        let left = self.work.checked_sub(current.length);
        self.work = left.ok_or(TarDiffError::TooMuchWork(self.limit))?;
        let begun = PatchFrame::begin(&mut self.operations, size, &mut current.file, &self.memory);
        begun.map(|frame| Operation::Frame(Box::new(frame)))
    }

    /// As much of the operation as fits; 0 when there is no more of it.
    fn make(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len();
        let count = match &mut self.operation {
            Operation::Header | Operation::Done | Operation::End => 0,
            Operation::Data(0) | Operation::Copy(0) | Operation::Add(0) => 0,
            Operation::Data(left) => {
                let buffer = &mut buffer[..fitting(*left, room)];
                let count = self.operations.read(buffer).map_err(cut)?;
                if count == 0 {
                    return Err(TarDiffError::Truncated.into());
                }
                *left -= count as u64;
                count
            }
            Operation::Copy(left) => {
                let buffer = &mut buffer[..fitting(*left, room)];
                let current = self.current.as_mut().ok_or(TarDiffError::NoFile)?;
                let count = current.read(buffer)?;
                *left -= count as u64;
                count
            }
            Operation::Add(left) => {
                if self.chunk.is_empty() {
                    self.chunk = vec![0; CHUNK].into();
                }
                let most = fitting(*left, room).min(CHUNK);
                let current = self.current.as_mut().ok_or(TarDiffError::NoFile)?;
                let count = current.read(&mut self.chunk[..most])?;
                let buffer = &mut buffer[..count];
                self.operations.read_exact(buffer).map_err(cut)?;
                for (byte, old) in buffer.iter_mut().zip(&self.chunk) {
                    *byte = byte.wrapping_add(*old);
                }
                *left -= count as u64;
                count
            }
            Operation::Frame(frame) => {
                let files = &mut self.files;
                frame.read(&mut self.operations, buffer, &mut || files.go_on())?
            }
        };
        let left = self.left.checked_sub(count as u64);
        self.left = left.ok_or(TarDiffError::TooLong(self.limit))?;
        Ok(count)
    }

    /// Fills some of the buffer; 0 at the end.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.files.go_on()?;
            match self.make(buffer)? {
                0 => {}
                count => return Ok(count),
            }
            match self.operation {
                Operation::End => return Ok(0),
                Operation::Header => {
                    self.header()?;
                    self.operation = Operation::Done;
                }
                _ => {
                    // What a frame took is free before the next one asks for it.
                    self.operation = Operation::Done;
                    self.operation = self.next()?;
                }
            }
        }
    }
}

impl<R: BufRead, S: SourceFiles> Read for TarDiff<R, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let filled = self.fill(buffer);
        // Where the operations end by the limit they end too early, too.
        if !matches!(filled, Ok(1..)) && self.operations.get_ref().limit() == 0 {
            return Err(TarDiffError::TooLong(self.limit).into());
        }
        filled
    }
}

impl<R: BufRead, S> std::fmt::Debug for TarDiff<R, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarDiff")
            .field("version", &self.version)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// As many of the bytes that are left as there is room for.
fn fitting(left: u64, room: usize) -> usize {
    usize::try_from(left).map_or(room, |left| left.min(room))
}

/// Whether a path is as a layer has it: relative, and nowhere but downwards.
fn is_plain(path: &str) -> bool {
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    path.split('/').all(is_name)
}

pub(super) fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarDiffError::Truncated.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
