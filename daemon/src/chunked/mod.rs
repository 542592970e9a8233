//! Layers whose files can be had one by one: what is in them, and where.
//!
//! Pure: bytes in, structs out. Invariants: a [`Toc`] matched the digest that the manifest names; its names
//! are unique and stay in the root; the content of each file lies in the blob, before table and tar-split, after
//! that of the file before it; neither its memory nor the bytes that it promises are out of proportion. The
//! format is that of containers/storage (zstd:chunked). A table that breaks a rule is refused as a whole; the
//! layer can still be fetched whole.
//!
//! A table is only what the builder says of the tar. Where it matters that both are the same, [`tar_split`]
//! compares them, and gives back the tar itself for its diff_id.

mod entries;
mod error;
mod json;
mod names;
pub mod ranges;
#[cfg(test)]
pub(crate) mod sample;
mod tar_headers;
mod tar_member;
pub mod tar_split;
mod toc;
mod unpack;

pub use self::error::{Flaw, TarSplitError, TocError};
pub use self::toc::parse_toc;
pub use self::unpack::{Unpack, unpack};
pub use crate::image::chunked::{Chunked, Part};

/// What is in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toc {
    /// In the order of the tar.
    pub entries: Vec<Entry>,
    /// sha256 of the compressed tar-split. Without it a tar-split proves nothing.
    pub tar_split_digest: Option<[u8; 32]>,
}

/// Extended attributes: names, without a zero byte at their end, and values; sorted by name, each name once.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One entry of the tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As in the tar, where it may begin with `./` or `/`, and that of a directory may end in `/`.
    pub name: Box<str>,
    /// What it is.
    pub kind: Kind,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permissions with setuid, setgid and sticky bits: at most `0o7777`.
    pub mode: u32,
    /// The extended attributes.
    pub xattrs: Xattrs,
    /// Unix seconds; `None` also for what Go writes when there is no time.
    pub modified: Option<i64>,
    /// Major and minor number; of a meaning only for devices.
    pub device: (u32, u32),
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link to this.
    Symlink(Box<str>),
    /// Another name of the file that has this one; in a lower layer, if not here.
    HardLink(Box<str>),
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// What is in a regular file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Bytes of the file.
    pub size: u64,
    /// sha256 of the file; `None` for an empty one, and for no other.
    pub digest: Option<[u8; 32]>,
    /// The first byte in the blob of the frames that hold it; 0 for an empty file.
    pub start: u64,
    /// The byte after them; 0 for an empty file.
    pub end: u64,
}
