//! A layer as the tests describe it, and its blob.
//!
//! Invariant: the digests of a [`Blob`] are those of what was written, unless the layer was
//! told to lie about them.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::entry::{Entry, Kind, LongNames, write_end};

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// gzip, the default of most builders.
    #[default]
    Gzip,
    /// zstd.
    Zstd,
    /// Not at all.
    Plain,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
        }
    }
}

/// A layer in the making: methods add members, or change the last one added.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: Vec<Entry>,
    compression: Compression,
    false_diff_id: bool,
    quickly: bool,
}

impl Layer {
    /// An empty gzip layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, compressed in another way.
    #[must_use]
    pub fn compressed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Adds a member as it is.
    #[must_use]
    pub fn entry(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }

    /// Adds a directory of mode 0755.
    #[must_use]
    pub fn dir(self, path: &str) -> Self {
        self.entry(Entry::new(path, Kind::Directory, 0o755))
    }

    /// Adds a regular file of mode 0644.
    #[must_use]
    pub fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.entry(Entry::new(path, Kind::File(content.into()), 0o644))
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Entry::new(path, Kind::Symlink(target.into()), 0o777))
    }

    /// Adds a hard link to `target`, a name as in the archive.
    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(Entry::new(path, Kind::Hardlink(target.into()), 0o644))
    }

    /// Adds a character device.
    #[must_use]
    pub fn device(self, path: &str, major: u32, minor: u32) -> Self {
        self.entry(Entry::new(path, Kind::CharDevice(major, minor), 0o600))
    }

    /// Adds a named pipe.
    #[must_use]
    pub fn fifo(self, path: &str) -> Self {
        self.entry(Entry::new(path, Kind::Fifo, 0o600))
    }

    /// Adds the whiteout that hides `path` of the layers below.
    #[must_use]
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').map_or(("", path), |(p, n)| (p, n));
        let slash = if parent.is_empty() { "" } else { "/" };
        self.file(&format!("{parent}{slash}.wh.{name}"), "")
    }

    /// Marks a directory opaque: what the layers below have in it is hidden.
    #[must_use]
    pub fn opaque(self, directory: &str) -> Self {
        self.file(&format!("{directory}/.wh..wh..opq"), "")
    }

    /// Changes the mode of the last member.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        self.change(|entry| entry.mode = mode)
    }

    /// Changes the owner and group of the last member.
    #[must_use]
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.change(|entry| entry.owner = (uid, gid))
    }

    /// Adds an extended attribute to the last member.
    #[must_use]
    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        self.change(|entry| entry.xattrs.push((name.into(), value.into())))
    }

    /// Writes the last member's name, if too long for the header, as a PAX record.
    #[must_use]
    pub fn pax_name(self) -> Self {
        self.change(|entry| entry.long_names = LongNames::Pax)
    }

    /// Makes the image's configuration give another diff_id for this layer.
    #[must_use]
    pub fn lie_about_diff_id(mut self) -> Self {
        self.false_diff_id = true;
        self
    }

    fn change(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        if let Some(last) = self.entries.last_mut() {
            change(last);
        }
        self
    }

    /// Has the layer compressed in little time rather than to few bytes.
    #[must_use]
    pub fn quickly(mut self) -> Self {
        self.quickly = true;
        self
    }

    /// Writes the plain tar.
    ///
    /// # Errors
    /// When `out` fails or a file on disk cannot be read.
    pub fn write_tar(&self, mut out: &mut impl Write) -> Result<()> {
        for entry in &self.entries {
            entry.write(&mut out)?;
        }
        write_end(&mut out)
    }

    /// Writes the blob into `dir` under its digest's hexadecimal name.
    ///
    /// # Errors
    /// When the directory is not writable or a file on disk cannot be read.
    pub fn write_blob(&self, dir: &Path) -> Result<Blob> {
        let partial = tempfile::NamedTempFile::new_in(dir).context("creating a blob")?;
        let compressed = Hashing::new(BufWriter::new(partial));
        let (compressed, mut diff_id) = self.compress(compressed)?;
        let (writer, digest, size) = compressed.finish();
        let partial = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        if self.false_diff_id {
            diff_id = flip(&diff_id);
        }
        let path = dir.join(&digest);
        partial.persist(&path).context("naming a blob")?;
        // Temporary files are for their owner only, but registries and daemons read this one.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        Ok(Blob {
            media_type: self.compression.media_type(),
            digest: format!("sha256:{digest}"),
            diff_id: format!("sha256:{diff_id}"),
            size,
        })
    }

    /// `sha256:…` of the plain tar.
    ///
    /// # Errors
    /// When a file on disk cannot be read.
    pub fn diff_id(&self) -> Result<String> {
        Ok(format!("sha256:{}", self.hash_tar(io::sink())?.1))
    }

    fn compress<W: Write>(&self, out: W) -> Result<(W, String)> {
        let (gzip, zstd) = if self.quickly { (1, 1) } else { (6, 3) };
        Ok(match self.compression {
            Compression::Plain => self.hash_tar(out)?,
            Compression::Gzip => {
                let level = flate2::Compression::new(gzip);
                let (gzip, id) = self.hash_tar(flate2::write::GzEncoder::new(out, level))?;
                (gzip.finish()?, id)
            }
            Compression::Zstd => {
                let (zstd, id) = self.hash_tar(zstd::Encoder::new(out, zstd)?)?;
                (zstd.finish()?, id)
            }
        })
    }

    fn hash_tar<W: Write>(&self, out: W) -> Result<(W, String)> {
        let mut tar = BufWriter::new(Hashing::new(out));
        self.write_tar(&mut tar)?;
        let (out, id, _) = tar
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .finish();
        Ok((out, id))
    }
}

/// A layer that was written.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Media type of the layer's descriptor.
    pub media_type: &'static str,
    /// `sha256:…` of the blob, as the manifest says.
    pub digest: String,
    /// `sha256:…` of the tar, as the configuration says.
    pub diff_id: String,
    /// Bytes of the blob.
    pub size: u64,
}

impl Blob {
    /// Reads a manifest's layer and the configuration's diff_id for it.
    pub(super) fn from_json(layer: &Value, diff_id: &Value) -> Option<Self> {
        let kinds = [Compression::Gzip, Compression::Zstd, Compression::Plain];
        let named = layer["mediaType"].as_str()?;
        Some(Self {
            media_type: kinds
                .map(Compression::media_type)
                .into_iter()
                .find(|t| *t == named)?,
            digest: layer["digest"].as_str()?.to_owned(),
            diff_id: diff_id.as_str()?.to_owned(),
            size: layer["size"].as_u64()?,
        })
    }
}

/// Another digest than `hex`, of the same length.
fn flip(hex: &str) -> String {
    let first = if hex.starts_with('0') { '1' } else { '0' };
    format!("{first}{}", &hex[1..])
}

/// Lower-case hexadecimal SHA-256 of a file.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Hashing::new(io::sink());
    io::copy(&mut file, &mut hash)?;
    Ok(hash.finish().1)
}

/// Passes bytes on, counting and hashing them.
pub(super) struct Hashing<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            hash: Sha256::new(),
            size: 0,
        }
    }

    pub(super) fn finish(self) -> (W, String, u64) {
        (self.out, hex(&self.hash.finalize()), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.out.write(data)?;
        self.hash.update(&data[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
