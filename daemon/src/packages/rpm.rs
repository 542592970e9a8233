//! rpm's database: a table of headers, and in each header the tags of one package.
//!
//! A header is an index of tags, 16 bytes each, and a store that they point into; all numbers
//! are big-endian.

use std::fs::File;

use super::{Collected, Error, Manager, Package, sqlite};

const ME: Manager = Manager::Rpm;
const TABLE: &str = "Packages";
/// rpm's own limit.
const TAGS: usize = 0xffff;

/// The tags that matter.
mod tag {
    pub(super) const SHA1_HEADER: u32 = 269;
    pub(super) const SHA256_HEADER: u32 = 273;
    pub(super) const NAME: u32 = 1000;
    pub(super) const VERSION: u32 = 1001;
    pub(super) const RELEASE: u32 = 1002;
    pub(super) const EPOCH: u32 = 1003;
    pub(super) const BUILD_TIME: u32 = 1006;
    pub(super) const SIZE: u32 = 1009;
    pub(super) const ARCH: u32 = 1022;
    pub(super) const SOURCE_RPM: u32 = 1044;
    pub(super) const LONG_SIZE: u32 = 5009;
}

/// The types of their values.
mod kind {
    pub(super) const INT32: u32 = 4;
    pub(super) const INT64: u32 = 5;
    pub(super) const STRING: u32 = 6;
    pub(super) const I18N_STRING: u32 = 9;
}

pub(super) fn read(file: &File) -> Result<Vec<Package>, Error> {
    let mut collected = Collected::new(ME);
    sqlite::each_row(ME, file, TABLE, |blob| match package(blob)? {
        Some(package) => collected.push(package),
        None => Ok(()),
    })?;
    Ok(collected.packages)
}

/// The package of a header; `None` for the keys that rpm keeps among its packages.
fn package(blob: &[u8]) -> Result<Option<Package>, Error> {
    let header = Header::parse(blob)?;
    let name = ME.required("name", header.text(tag::NAME)?)?;
    if name == "gpg-pubkey" {
        return Ok(None);
    }
    let version = ME.required("version", header.text(tag::VERSION)?)?;
    let release = ME.required("release", header.text(tag::RELEASE)?)?;
    let version = match header.number(tag::EPOCH)? {
        None | Some(0) => format!("{version}-{release}"),
        Some(epoch) => format!("{epoch}:{version}-{release}"),
    };
    let size = match header.number(tag::LONG_SIZE)? {
        Some(size) => size,
        None => header.number(tag::SIZE)?.unwrap_or(0),
    };
    Ok(Some(Package {
        manager: ME,
        name,
        arch: header.text(tag::ARCH)?.unwrap_or_default(),
        version,
        source: source(&header.text(tag::SOURCE_RPM)?.unwrap_or_default()),
        size,
        build: header.build()?,
    }))
}

/// `glibc` of `glibc-2.40-3.fc41.src.rpm`.
fn source(file: &str) -> String {
    let name = file.rsplitn(3, '-').nth(2);
    name.unwrap_or_default().to_owned()
}

struct Header<'a> {
    index: &'a [[u8; 16]],
    store: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(blob: &'a [u8]) -> Result<Self, Error> {
        let cut = || ME.malformed("a header ends too early");
        let (count, rest) = blob.split_first_chunk().ok_or_else(cut)?;
        let (length, rest) = rest.split_first_chunk().ok_or_else(cut)?;
        let (count, length) = (u32::from_be_bytes(*count), u32::from_be_bytes(*length));
        let (count, length) = (count as usize, length as usize);
        if count > TAGS {
            return Err(ME.too_large(format!("a package with {count} tags")));
        }
        let (index, rest) = rest.split_at_checked(count * 16).ok_or_else(cut)?;
        let store = rest.get(..length).ok_or_else(cut)?;
        let (index, _) = index.as_chunks();
        Ok(Self { index, store })
    }

    /// The type of a tag's value and the store from where it begins.
    fn find(&self, tag: u32) -> Result<Option<(u32, &'a [u8])>, Error> {
        let numbers = |entry: &[u8; 16]| {
            let (numbers, _) = entry.as_chunks::<4>();
            [0, 1, 2].map(|at| u32::from_be_bytes(numbers[at]))
        };
        let found = self
            .index
            .iter()
            .map(numbers)
            .find(|[found, ..]| *found == tag);
        let Some([_, kind, offset]) = found else {
            return Ok(None);
        };
        let value = self.store.get(offset as usize..);
        let value = value.ok_or_else(|| ME.malformed(format!("tag {tag} is out of its header")))?;
        Ok(Some((kind, value)))
    }

    fn text(&self, tag: u32) -> Result<Option<String>, Error> {
        let value = match self.find(tag)? {
            Some((kind::STRING | kind::I18N_STRING, value)) => value,
            Some((kind, _)) => return Err(unexpected(tag, kind)),
            None => return Ok(None),
        };
        let end = value.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| ME.malformed(format!("tag {tag} has no end")))?;
        ME.word(&format!("tag {tag}"), &value[..end]).map(Some)
    }

    fn number(&self, tag: u32) -> Result<Option<u64>, Error> {
        let cut = || ME.malformed(format!("tag {tag} is out of its header"));
        match self.find(tag)? {
            Some((kind::INT32, value)) => {
                let bytes = value.first_chunk().ok_or_else(cut)?;
                Ok(Some(u32::from_be_bytes(*bytes).into()))
            }
            Some((kind::INT64, value)) => {
                let bytes = value.first_chunk().ok_or_else(cut)?;
                Ok(Some(u64::from_be_bytes(*bytes)))
            }
            Some((kind, _)) => Err(unexpected(tag, kind)),
            None => Ok(None),
        }
    }

    /// The digest of the package's own header, else the time it was built.
    fn build(&self) -> Result<String, Error> {
        for tag in [tag::SHA256_HEADER, tag::SHA1_HEADER] {
            if let Some(digest) = self.text(tag)? {
                return Ok(digest);
            }
        }
        let time = self.number(tag::BUILD_TIME)?;
        Ok(time.map(|time| time.to_string()).unwrap_or_default())
    }
}

fn unexpected(tag: u32, kind: u32) -> Error {
    ME.malformed(format!("tag {tag} is of the type {kind}"))
}
