//! The JSON of a table of contents, entry by entry, with nothing kept that is not asked for.
//!
//! Invariants: each field at most once; no field in another case than the format's, since readers in Go take
//! any; nothing after the document.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::error::TocError;

/// Most extended attributes of an entry: more than any file has, and few enough to be held before they are
/// looked at.
const MAX_XATTRS: usize = 256;

/// An entry as it is written; 0 and the empty text where a field is missing, as the writers mean it.
#[derive(Default)]
pub(super) struct RawEntry<'a> {
    pub(super) kind: Cow<'a, str>,
    pub(super) name: Cow<'a, str>,
    pub(super) link: Cow<'a, str>,
    pub(super) mode: u64,
    pub(super) size: u64,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) modified: Cow<'a, str>,
    pub(super) dev_major: u64,
    pub(super) dev_minor: u64,
    pub(super) xattrs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    pub(super) digest: Cow<'a, str>,
    pub(super) offset: u64,
    pub(super) end_offset: u64,
    pub(super) inner_offset: u64,
    pub(super) chunk_size: u64,
    pub(super) chunk_offset: u64,
    pub(super) chunk_digest: Cow<'a, str>,
    pub(super) chunk_type: Cow<'a, str>,
}

/// What is beside the entries.
#[derive(Default)]
pub(super) struct Rest {
    pub(super) version: u64,
    pub(super) tar_split_digest: Option<String>,
}

/// Hands each entry to `entry`, in order.
///
/// # Errors
/// [`TocError::Json`], and the first error of `entry`.
pub(super) fn read<'a>(
    json: &'a [u8],
    entry: &mut dyn FnMut(RawEntry<'a>) -> Result<(), TocError>,
) -> Result<Rest, TocError> {
    // Once for all texts in it.
    let json = std::str::from_utf8(json).map_err(|error| TocError::Json(error.to_string()))?;
    let mut refused = None;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let document = Document {
        entry,
        refused: &mut refused,
    };
    let rest = document
        .deserialize(&mut deserializer)
        .and_then(|rest| deserializer.end().map(|()| rest));
    match (rest, refused) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(TocError::Json(error.to_string())),
        (Ok(rest), None) => Ok(rest),
    }
}

/// A text that is copied only where it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Document<'f, 'a> {
    entry: &'f mut dyn FnMut(RawEntry<'a>) -> Result<(), TocError>,
    refused: &'f mut Option<TocError>,
}

impl<'a> DeserializeSeed<'a> for Document<'_, 'a> {
    type Value = Rest;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Rest, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Document<'_, 'a> {
    type Value = Rest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<Rest, A::Error> {
        const VERSION: usize = 0;
        const ENTRIES: usize = 1;
        let mut seen = Seen::new(&["version", "entries", "tarSplitDigest"]);
        let mut rest = Rest::default();
        while let Some(Text(key)) = map.next_key()? {
            match seen.field(&key)? {
                Some(VERSION) => rest.version = map.next_value()?,
                Some(ENTRIES) => map.next_value_seed(Entries(&mut self))?,
                Some(_) => rest.tar_split_digest = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        seen.require(ENTRIES)?;
        Ok(rest)
    }
}

struct Entries<'d, 'f, 'a>(&'d mut Document<'f, 'a>);

impl<'a> DeserializeSeed<'a> for Entries<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'a> Visitor<'a> for Entries<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(entry) = list.next_element::<RawEntry<'a>>()? {
            if let Err(error) = (self.0.entry)(entry) {
                *self.0.refused = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for RawEntry<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

/// The fields of an entry, in the order of their writers, at the places that the constants name.
const FIELDS: [&str; 21] = [
    "type",
    "name",
    "linkName",
    "mode",
    "size",
    "uid",
    "gid",
    "modtime",
    "accesstime",
    "changetime",
    "devMajor",
    "devMinor",
    "xattrs",
    "digest",
    "offset",
    "endOffset",
    "chunkSize",
    "chunkOffset",
    "chunkDigest",
    "chunkType",
    "innerOffset",
];
const TYPE: usize = 0;
const NAME: usize = 1;
const LINK: usize = 2;
const MODE: usize = 3;
const SIZE: usize = 4;
const UID: usize = 5;
const GID: usize = 6;
const MODIFIED: usize = 7;
const DEV_MAJOR: usize = 10;
const DEV_MINOR: usize = 11;
const XATTRS: usize = 12;
const DIGEST: usize = 13;
const OFFSET: usize = 14;
const END_OFFSET: usize = 15;
const CHUNK_SIZE: usize = 16;
const CHUNK_OFFSET: usize = 17;
const CHUNK_DIGEST: usize = 18;
const CHUNK_TYPE: usize = 19;
const INNER_OFFSET: usize = 20;

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = RawEntry<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut seen = Seen::new(&FIELDS);
        let mut entry = RawEntry::default();
        while let Some(Text(key)) = map.next_key()? {
            let Some(field) = seen.field(&key)? else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            match field {
                TYPE => entry.kind = map.next_value::<Text<'de>>()?.0,
                NAME => entry.name = map.next_value::<Text<'de>>()?.0,
                LINK => entry.link = map.next_value::<Text<'de>>()?.0,
                MODE => entry.mode = map.next_value()?,
                SIZE => entry.size = map.next_value()?,
                UID => entry.uid = map.next_value()?,
                GID => entry.gid = map.next_value()?,
                MODIFIED => entry.modified = map.next_value::<Text<'de>>()?.0,
                DEV_MAJOR => entry.dev_major = map.next_value()?,
                DEV_MINOR => entry.dev_minor = map.next_value()?,
                XATTRS => entry.xattrs = map.next_value::<Pairs<'de>>()?.0,
                DIGEST => entry.digest = map.next_value::<Text<'de>>()?.0,
                OFFSET => entry.offset = map.next_value()?,
                END_OFFSET => entry.end_offset = map.next_value()?,
                INNER_OFFSET => entry.inner_offset = map.next_value()?,
                CHUNK_SIZE => entry.chunk_size = map.next_value()?,
                CHUNK_OFFSET => entry.chunk_offset = map.next_value()?,
                CHUNK_DIGEST => entry.chunk_digest = map.next_value::<Text<'de>>()?.0,
                CHUNK_TYPE => entry.chunk_type = map.next_value::<Text<'de>>()?.0,
                // The two times that nobody keeps.
                _ => drop(map.next_value::<Text<'de>>()?),
            }
        }
        Ok(entry)
    }
}

/// The members of an object of texts.
struct Pairs<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some((Text(key), Text(value))) = map.next_entry()? {
                    if pairs.len() == MAX_XATTRS {
                        return Err(A::Error::custom("too many extended attributes"));
                    }
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

/// Which fields of an object were there.
struct Seen {
    fields: &'static [&'static str],
    seen: u32,
    /// Where the next one is looked for first: writers keep an order.
    next: usize,
}

impl Seen {
    fn new(fields: &'static [&'static str]) -> Self {
        Self {
            fields,
            seen: 0,
            next: 0,
        }
    }

    /// The number of the field with this key; `None` for one that the format does not have.
    fn field<E: serde::de::Error>(&mut self, key: &str) -> Result<Option<usize>, E> {
        let count = self.fields.len();
        let found = (self.next..count)
            .chain(0..self.next)
            .find(|at| self.fields[*at] == key);
        let Some(at) = found else {
            // Lower case as Go has it: the Kelvin sign is a k, too.
            let lower = key.to_lowercase();
            if self
                .fields
                .iter()
                .any(|field| field.eq_ignore_ascii_case(&lower))
            {
                let reason = format_args!("{key:?} is a field in another case");
                return Err(E::custom(reason));
            }
            return Ok(None);
        };
        if self.seen & (1 << at) != 0 {
            return Err(E::duplicate_field(self.fields[at]));
        }
        self.seen |= 1 << at;
        self.next = at + 1;
        Ok(Some(at))
    }

    fn require<E: serde::de::Error>(&self, at: usize) -> Result<(), E> {
        if self.seen & (1 << at) != 0 {
            return Ok(());
        }
        Err(E::missing_field(self.fields[at]))
    }
}
