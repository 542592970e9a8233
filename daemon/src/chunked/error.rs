//! Why a table of contents or a tar-split is refused.

/// Why a table of contents is of no use. The layer can still be fetched whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TocError {
    /// It is not the one that the manifest names.
    #[error("the table of contents has the digest {found} instead of {expected}")]
    Digest {
        /// As the manifest says.
        expected: String,
        /// Of what came.
        found: String,
    },
    /// It cannot be decompressed, or is followed by something.
    #[error("the table of contents cannot be decompressed: {0}")]
    Packed(String),
    /// It is longer or shorter than announced.
    #[error("the table of contents is not of the announced {0} bytes")]
    Length(u64),
    /// It is not JSON, or of other types than the format has.
    #[error("the table of contents cannot be read: {0}")]
    Json(String),
    /// It is of another version of the format.
    #[error("the table of contents is of the unknown version {0}")]
    Version(u64),
    /// It has more entries than are read.
    #[error("the table of contents has more than {0} entries")]
    TooMany(usize),
    /// Its entries are too long, or have too much beside their names.
    #[error("the table of contents takes more than {0} bytes of memory")]
    TooLarge(usize),
    /// What it names as the digest of the tar-split is none.
    #[error("the table of contents has no proper digest of the tar-split")]
    TarSplitDigest,
    /// An entry breaks a rule.
    #[error("the table of contents says of {name:?} what cannot be: {flaw}")]
    Entry {
        /// Its name, shortened.
        name: String,
        /// The rule.
        flaw: Flaw,
    },
}

/// The rule that an entry of a table of contents breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Names are not empty, have no zero bytes, and stay in the root.
    #[error("the name is empty, too long, or not one of a file in the root")]
    Name,
    /// Each path is there once, however it is spelt.
    #[error("the name is there twice")]
    Duplicate,
    /// One of the seven types.
    #[error("the type is unknown")]
    Type,
    /// Links have a target, nothing else has; that of a hard link stays in the root.
    #[error("the target of the link is missing, too long, or outside of the root")]
    Link,
    /// At most `0o7777`.
    #[error("the mode has more than permissions")]
    Mode,
    /// They fit 32 bits.
    #[error("the owner or the group is too large")]
    Owner,
    /// They fit 32 bits.
    #[error("the number of the device is too large")]
    Device,
    /// RFC 3339.
    #[error("the time is none")]
    Time,
    /// Base64, and no more than a file system takes.
    #[error("the extended attributes are too large, or not base64")]
    Xattrs,
    /// Only files have content.
    #[error("something that is no file has content")]
    NoContent,
    /// All files together are not far more than what the blob can hold.
    #[error("the size is too large for what is in the layer")]
    Size,
    /// Files that are not empty have a sha256.
    #[error("the digest is missing, or not sha256")]
    Digest,
    /// Between the files before it and the table.
    #[error("the place is outside of the layer's files, or overlaps another")]
    Place,
    /// Chunks follow their file, in order and without gaps.
    #[error("the chunks do not add up to a file")]
    Chunk,
    /// Each file begins with a frame.
    #[error("it shares its compression with others, which is not supported")]
    Inner,
}

/// Why a tar-split is of no use, or not of this table of contents.
#[derive(Debug, thiserror::Error)]
pub enum TarSplitError {
    /// It is not the one that the table of contents names.
    #[error("the tar-split has another digest than the table of contents says")]
    Digest,
    /// It cannot be decompressed.
    #[error("the tar-split cannot be decompressed: {0}")]
    Packed(#[source] std::io::Error),
    /// It is longer or shorter than announced, or is followed by something.
    #[error("the tar-split is not of the announced {0} bytes")]
    Length(u64),
    /// A line of it is too long, or says nothing known.
    #[error("line {line} of the tar-split cannot be read: {reason}")]
    Line {
        /// From 1.
        line: u64,
        /// Why.
        reason: String,
    },
    /// The tar itself is not one that every reader reads alike.
    #[error("the tar is broken or ambiguous after {after:?}: {reason}")]
    Tar {
        /// The last entry that was read, shortened; empty at the beginning.
        after: String,
        /// Why.
        reason: &'static str,
    },
    /// The tar and the table of contents differ.
    #[error("{name:?} is not the same in the tar and in the table of contents: {what}")]
    Differs {
        /// The entry, shortened.
        name: String,
        /// In what.
        what: &'static str,
    },
    /// The content of a file could not be had, or is of another length.
    #[error("the content of {name:?} cannot be read: {source}")]
    Content {
        /// The file, shortened.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

/// As much of a name as an error or a log line should show.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 200;
    if name.chars().nth(MOST).is_none() {
        return name.to_owned();
    }
    name.chars().take(MOST).chain(['…']).collect()
}
