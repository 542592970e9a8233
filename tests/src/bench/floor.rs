//! Floors: the least that has to be done with an image's layers, step by step, with the crates that
//! the daemon has.
//!
//! Invariants: each step but the last does all that the one before it does; what is written are objects
//! under the names and with the bytes that libostree gives them, but in one place, without a transaction.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod object;

use object::{Objects, buffer};

/// Layers that are worked on at a time: as many as there are processors where this was tuned.
const THREADS: usize = 2;

/// How far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// Bytes come from the registry.
    Fetch,
    /// The blob's digest is computed.
    Digest,
    /// The blob is decompressed.
    Decompress,
    /// The tar's digest is computed.
    DiffId,
    /// Each file's object identity is computed.
    Hash,
    /// Each file that is not there is written.
    Write,
    /// As that, but the tar's digest is not computed: what is left to do for those who believe it.
    WriteUnproven,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Fetch,
        Self::Digest,
        Self::Decompress,
        Self::DiffId,
        Self::Hash,
        Self::Write,
        Self::WriteUnproven,
    ];

    fn hashes_tar(self) -> bool {
        self >= Self::DiffId && self != Self::WriteUnproven
    }

    fn writes(self) -> bool {
        self >= Self::Write
    }

    /// What it adds to the one before, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Digest => "+ digest of the blob",
            Self::Decompress => "+ decompress",
            Self::DiffId => "+ digest of the tar",
            Self::Hash => "+ hash every file",
            Self::Write => "+ write every file once",
            Self::WriteUnproven => "the same without the digest of the tar",
        }
    }
}

/// What a floor has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// How far to go.
    pub step: Step,
    /// `ADDRESS:PORT/name` of the repository, by plain HTTP.
    pub repository: String,
    /// `sha256:…` of the layers to fetch.
    pub layers: Vec<String>,
    /// Where objects are kept; what is there already is not written again.
    pub objects: PathBuf,
}

impl Task {
    /// Does it; returns how many bytes have come.
    ///
    /// # Errors
    /// When the registry has no such layer, or its bytes are wrong.
    pub fn run(&self) -> Result<u64> {
        let queue = Mutex::new(VecDeque::from(self.layers.clone()));
        let objects = Objects::open(&self.objects)?;
        let work = || -> Result<u64> {
            let (mut bytes, mut buffer) = (0, buffer());
            loop {
                let mut queue = queue
                    .lock()
                    .map_err(|_| anyhow!("another thread panicked"))?;
                let Some(layer) = queue.pop_front() else {
                    return Ok(bytes);
                };
                drop(queue);
                bytes += self
                    .layer(&layer, &objects, &mut buffer)
                    .with_context(|| layer.clone())?;
            }
        };
        let bytes = std::thread::scope(|scope| -> Result<u64> {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_fold(0, |sum, thread| {
                let bytes = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
                Ok(sum + bytes)
            })
        })?;
        if self.step.writes() {
            objects.sync()?;
        }
        Ok(bytes)
    }

    fn layer(&self, digest: &str, objects: &Objects, buffer: &mut [u8]) -> Result<u64> {
        let hashes = self.step >= Step::Digest;
        let mut blob = Hashed::new(get(&self.repository, digest)?, hashes);
        let size = if self.step < Step::Decompress {
            io::copy(&mut blob, &mut io::sink())?
        } else {
            let mut blob = BufReader::with_capacity(256 << 10, &mut blob);
            let magic = blob.fill_buf()?.get(..4).context("an empty blob")?;
            match magic {
                [0x1f, 0x8b, ..] => {
                    let tar = flate2::bufread::MultiGzDecoder::new(&mut blob);
                    self.tar(tar, objects, buffer)?;
                }
                [0x28, 0xb5, 0x2f, 0xfd] | [0x50, 0x2a, 0x4d, 0x18] => {
                    self.tar(zstd::Decoder::with_buffer(&mut blob)?, objects, buffer)?;
                }
                _ => bail!("neither gzip nor zstd"),
            }
            io::copy(&mut blob, &mut io::sink())?
        };
        let (bytes, hash) = blob.finish();
        ensure!(bytes >= size, "fewer bytes than were read");
        if hashes {
            ensure!(
                digest == format!("sha256:{}", object::hex(&hash)),
                "the blob's bytes are wrong"
            );
        }
        Ok(bytes)
    }

    fn tar(&self, tar: impl Read, objects: &Objects, buffer: &mut [u8]) -> Result<()> {
        let mut tar = Hashed::new(tar, self.step.hashes_tar());
        if self.step < Step::Hash {
            io::copy(&mut tar, &mut io::sink())?;
            return Ok(());
        }
        let mut archive = tar::Archive::new(&mut tar);
        for entry in archive.entries()? {
            objects.add(&mut entry?, self.step.writes(), buffer)?;
        }
        io::copy(&mut tar, &mut io::sink())?;
        Ok(())
    }
}

/// Runs the task that is written in a file, in a process of its own.
///
/// # Errors
/// Those of [`Task::run`].
pub fn run_file(path: &Path) -> Result<()> {
    let task: Task = serde_json::from_reader(File::open(path)?)?;
    let bytes = task.run()?;
    println!("{bytes}");
    Ok(())
}

/// A blob, as the registry sends it.
fn get(repository: &str, digest: &str) -> Result<impl Read> {
    let (host, name) = repository.split_once('/').context("no repository")?;
    let mut connection = TcpStream::connect(host).context("asking the registry")?;
    let ask = format!(
        "GET /v2/{name}/blobs/{digest} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(ask.as_bytes())?;
    let mut answer = BufReader::with_capacity(256 << 10, connection);
    let (mut line, mut length) = (String::new(), None);
    answer.read_line(&mut line)?;
    ensure!(line.contains(" 200 "), "the registry answers {line}");
    while line != "\r\n" {
        line.clear();
        ensure!(
            answer.read_line(&mut line)? > 0,
            "the answer ends in its head"
        );
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse()?);
        }
    }
    Ok(answer.take(length.context("an answer without length")?))
}

/// Counts, and may hash, what is read.
struct Hashed<R> {
    from: R,
    hash: Option<Sha256>,
    bytes: u64,
}

impl<R: Read> Hashed<R> {
    fn new(from: R, hashes: bool) -> Self {
        Self {
            from,
            hash: hashes.then(Sha256::new),
            bytes: 0,
        }
    }

    fn finish(self) -> (u64, [u8; 32]) {
        (
            self.bytes,
            self.hash.map_or([0; 32], |hash| hash.finalize().into()),
        )
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..read]);
        }
        self.bytes += read as u64;
        Ok(read)
    }
}
