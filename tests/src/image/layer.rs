//! A layer as the tests describe it, and its blob.
//!
//! Invariant: the digests of a [`Blob`] are those of what was written, unless the layer was
//! told to lie about them.

use std::fs;
use std::io::{self, BufReader, BufWriter, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::chunked::{self, Annotations, Lie, Style};
use super::entry::{Entry, Kind, LongNames, write_end};
use super::hashing::{Counting, Hashing};

/// What GNU tar writes at once.
const RECORD: u64 = 20 * 512;

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
    /// With a table of contents; annotations of the manifest say where.
    Chunked(Style),
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Self::Gzip | Self::Chunked(Style::Stargz) => {
                "application/vnd.oci.image.layer.v1.tar+gzip"
            }
            Self::Zstd | Self::Chunked(Style::Modern | Style::Old) => {
                "application/vnd.oci.image.layer.v1.tar+zstd"
            }
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
    in_records: bool,
    lie: Option<Lie>,
    annotations: Annotations,
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

    /// Makes the table of contents lie, of a layer that has one.
    #[must_use]
    pub fn lie(mut self, lie: Lie) -> Self {
        self.lie = Some(lie);
        self
    }

    /// Sets an annotation of the layer in the manifest, whatever the compression says there.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// Fills the tar up to a multiple of 10,240 bytes at its end, as GNU tar does.
    #[must_use]
    pub fn in_records(mut self) -> Self {
        self.in_records = true;
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
    pub fn write_tar(&self, out: &mut impl Write) -> Result<()> {
        let mut out = Counting { out, size: 0 };
        for entry in &self.entries {
            entry.write(&mut out)?;
        }
        write_end(&mut out)?;
        if self.in_records {
            let over = (out.size % RECORD) as usize;
            out.write_all(&[0; RECORD as usize][over..])?;
        }
        Ok(())
    }

    /// Writes the blob into `dir` under its digest's hexadecimal name.
    ///
    /// # Errors
    /// When the directory is not writable or a file on disk cannot be read.
    pub fn write_blob(&self, dir: &Path) -> Result<Blob> {
        let partial = tempfile::NamedTempFile::new_in(dir).context("creating a blob")?;
        let compressed = Hashing::new(BufWriter::new(partial));
        let (compressed, mut diff_id, mut annotations) = match self.compression {
            Compression::Chunked(style) => self.compress_chunked(compressed, style, dir)?,
            _ => {
                let (compressed, diff_id) = self.compress(compressed)?;
                (compressed, diff_id, Annotations::new())
            }
        };
        annotations.extend(self.annotations.clone());
        let (writer, digest, size) = compressed.finish();
        let partial = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        if self.compression == Compression::Chunked(Style::Stargz) {
            // The table of contents is in the tar, too.
            let blob = BufReader::new(partial.reopen()?);
            let mut tar = Hashing::new(io::sink());
            io::copy(&mut flate2::bufread::MultiGzDecoder::new(blob), &mut tar)?;
            diff_id = tar.finish().1;
        }
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
            annotations,
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
            Compression::Plain | Compression::Chunked(_) => self.hash_tar(out)?,
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

    /// Writes the tar to a file of `dir` first, because it is read, and not written, piece by piece.
    fn compress_chunked<W: Write>(
        &self,
        mut out: W,
        style: Style,
        dir: &Path,
    ) -> Result<(W, String, Annotations)> {
        let (mut tar, diff_id) = self.hash_tar(tempfile::tempfile_in(dir)?)?;
        tar.rewind()?;
        let level = if self.quickly { 1 } else { 3 };
        let lie = self.lie.as_ref();
        let annotations = chunked::compress_with(BufReader::new(tar), &mut out, level, style, lie)?;
        Ok((out, diff_id, annotations))
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
    /// Of the layer's descriptor.
    pub annotations: Annotations,
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
            annotations: match layer.get("annotations") {
                Some(annotations) => serde_json::from_value(annotations.clone()).ok()?,
                None => Annotations::new(),
            },
        })
    }

    /// Its descriptor in a manifest.
    pub(super) fn to_json(&self) -> Value {
        let Self {
            media_type,
            digest,
            size,
            ..
        } = self;
        let mut layer = json!({"mediaType": media_type, "digest": digest, "size": size});
        if !self.annotations.is_empty() {
            layer["annotations"] = json!(self.annotations);
        }
        layer
    }
}

/// Another digest than `hex`, of the same length.
fn flip(hex: &str) -> String {
    let first = if hex.starts_with('0') { '1' } else { '0' };
    format!("{first}{}", &hex[1..])
}
