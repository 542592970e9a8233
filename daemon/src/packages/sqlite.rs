//! The rows of one table of an SQLite database (<https://sqlite.org/fileformat2.html>).
//!
//! Reading a table from its first page to its last is a small part of that format, and all that
//! a package database needs. SQLite itself would be a C library that works on a file from
//! outside in a process of root, where a view or a trigger can stand for a table. Invariants:
//! every page is read at most once, so that pages which refer to each other end; lengths are
//! checked before anything is allocated for them.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::{Error, Manager, limits};

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// The file begins with this many bytes that belong to no page's tree.
const FILE_HEADER: usize = 100;
const INTERIOR_TABLE: u8 = 5;
const LEAF_TABLE: u8 = 13;
/// Deeper trees do not exist: each level multiplies the rows.
const DEPTH: usize = 24;

/// No table of packages has more rows: some of them are no packages.
const ROWS: usize = 2 * limits::PACKAGES;

/// A column of a row, as far as it matters.
enum Column<'a> {
    Integer(i64),
    Bytes(&'a [u8]),
    Other,
}

/// What becomes of the payload of a row.
type EachRow<'a> = dyn FnMut(&Database<'_>, &[u8]) -> Result<(), Error> + 'a;

/// A database that is only read.
struct Database<'a> {
    manager: Manager,
    file: &'a File,
    page_size: usize,
    /// What of a page can be used.
    usable: usize,
    pages: u32,
    seen: HashSet<u32>,
}

/// Calls `each` with the second column of every row of `table`, which are bytes.
pub(super) fn each_row(
    manager: Manager,
    file: &File,
    table: &str,
    mut each: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut database = Database::open(manager, file)?;
    let mut root = None;
    // Page 1 is the table of tables: type, name, table, first page, SQL.
    database.walk(1, &mut |database, payload| {
        let columns = database.columns(payload, 4)?;
        if let [
            Column::Bytes(kind),
            Column::Bytes(name),
            _,
            Column::Integer(page),
        ] = &columns[..]
            && *kind == b"table"
            && *name == table.as_bytes()
        {
            root = u32::try_from(*page).ok();
        }
        Ok(())
    })?;
    let root = root.ok_or_else(|| manager.malformed(format!("there is no table {table}")))?;
    database.walk(
        root,
        &mut |database, payload| match database.columns(payload, 2)?.pop() {
            Some(Column::Bytes(blob)) => each(blob),
            _ => Err(manager.malformed("a row has no content")),
        },
    )
}

impl<'a> Database<'a> {
    fn open(manager: Manager, file: &'a File) -> Result<Self, Error> {
        let length = file.metadata().map_err(|error| manager.io(&error))?.len();
        let mut header = [0; FILE_HEADER];
        file.read_exact_at(&mut header, 0)
            .map_err(|_| manager.malformed("it is shorter than its header"))?;
        if header[..16] != *MAGIC {
            return Err(manager.malformed("it is no SQLite database"));
        }
        let page_size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65536,
            size if size.is_power_of_two() && size >= 512 => usize::from(size),
            size => return Err(manager.malformed(format!("it has pages of {size} bytes"))),
        };
        let usable = page_size - usize::from(header[20]);
        if usable < 480 {
            return Err(manager.malformed("its pages leave no room for content"));
        }
        let encoding = u32::from_be_bytes([header[56], header[57], header[58], header[59]]);
        if encoding > 1 {
            return Err(manager.malformed("its text is not UTF-8"));
        }
        if length > limits::FILE {
            return Err(manager.too_large(format!("{length} bytes")));
        }
        let pages = length / page_size as u64;
        let promised = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
        if u64::from(promised) > pages {
            let reason = format!("it has {pages} pages of {promised}");
            return Err(manager.malformed(reason));
        }
        Ok(Self {
            manager,
            file,
            page_size,
            usable,
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
            seen: HashSet::new(),
        })
    }

    /// Page `number`, from 1, which nothing has referred to before.
    fn page(&mut self, number: u32) -> Result<Vec<u8>, Error> {
        if number == 0 || number > self.pages {
            let reason = format!("page {number} of {} is referred to", self.pages);
            return Err(self.manager.malformed(reason));
        }
        if !self.seen.insert(number) {
            return Err(self
                .manager
                .malformed(format!("page {number} is used twice")));
        }
        let mut page = vec![0; self.page_size];
        let offset = u64::from(number - 1) * self.page_size as u64;
        self.file
            .read_exact_at(&mut page, offset)
            .map_err(|error| self.manager.io(&error))?;
        Ok(page)
    }

    /// Calls `row` with the payload of every row of the table that begins at page `root`.
    fn walk(&mut self, root: u32, row: &mut EachRow<'_>) -> Result<(), Error> {
        let mut left = vec![(root, 0)];
        let mut rows = 0;
        while let Some((number, depth)) = left.pop() {
            if depth > DEPTH {
                return Err(self.manager.malformed("its tree is too deep"));
            }
            let page = self.page(number)?;
            let start = if number == 1 { FILE_HEADER } else { 0 };
            let kind = page[start];
            let header = match kind {
                INTERIOR_TABLE => 12,
                LEAF_TABLE => 8,
                _ => return Err(self.broken(number)),
            };
            let count = usize::from(self.number16(&page, start + 3)?);
            let mut children = Vec::new();
            if kind == LEAF_TABLE {
                rows += count;
            }
            if rows > ROWS {
                return Err(self.manager.too_large(format!("over {ROWS} rows")));
            }
            for index in 0..count {
                let cell = self.number16(&page, start + header + 2 * index)?;
                let cell = page
                    .get(usize::from(cell)..self.usable)
                    .ok_or_else(|| self.broken(number))?;
                if kind == INTERIOR_TABLE {
                    children.push((self.number32(cell, 0)?, depth + 1));
                } else {
                    let payload = self.payload(cell)?;
                    row(self, &payload)?;
                }
            }
            if kind == INTERIOR_TABLE {
                children.push((self.number32(&page, start + 8)?, depth + 1));
            }
            // The first child is the next one.
            left.extend(children.into_iter().rev());
        }
        Ok(())
    }

    /// What a cell of a leaf holds, together with the pages it goes on in.
    fn payload(&mut self, cell: &[u8]) -> Result<Vec<u8>, Error> {
        let (length, rest) = self.varint(cell)?;
        let (_row_id, rest) = self.varint(rest)?;
        let file = u64::from(self.pages) * self.page_size as u64;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > limits::RECORD {
            return Err(self.manager.too_large(format!("a row of {length} bytes")));
        }
        if length as u64 > file {
            return Err(self.manager.malformed("a row is longer than the file"));
        }
        let local = self.local(length);
        let here = rest.get(..local).ok_or_else(|| self.cut())?;
        let mut payload = Vec::with_capacity(length);
        payload.extend_from_slice(here);
        let mut next = match local < length {
            true => self.number32(rest, local)?,
            false => 0,
        };
        while payload.len() < length {
            let page = self.page(next)?;
            let count = (length - payload.len()).min(self.usable - 4);
            payload.extend_from_slice(&page[4..4 + count]);
            next = self.number32(&page, 0)?;
        }
        Ok(payload)
    }

    /// How much of a payload of that length is in the cell itself.
    fn local(&self, length: usize) -> usize {
        let most = self.usable - 35;
        if length <= most {
            return length;
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let even = least + (length - least) % (self.usable - 4);
        if even <= most { even } else { least }
    }

    /// The first `count` columns of a row, or fewer.
    fn columns<'b>(&self, payload: &'b [u8], count: usize) -> Result<Vec<Column<'b>>, Error> {
        let (header, rest) = self.varint(payload)?;
        let header = usize::try_from(header).unwrap_or(usize::MAX);
        let before = payload.len() - rest.len();
        if header < before || header > payload.len() {
            return Err(self.cut());
        }
        let (mut kinds, mut values) = (&payload[before..header], &payload[header..]);
        let mut columns = Vec::new();
        while columns.len() < count && !kinds.is_empty() {
            let (kind, other_kinds) = self.varint(kinds)?;
            let length = match kind {
                0 | 8 | 9 => 0,
                1..=4 => kind as usize,
                5 => 6,
                6 | 7 => 8,
                10 | 11 => return Err(self.cut()),
                _ => usize::try_from((kind - 12) / 2).unwrap_or(usize::MAX),
            };
            let (value, other_values) =
                values.split_at_checked(length).ok_or_else(|| self.cut())?;
            columns.push(match kind {
                1..=6 => Column::Integer(integer(value)),
                8 | 9 => Column::Integer(kind as i64 - 8),
                12.. => Column::Bytes(value),
                _ => Column::Other,
            });
            (kinds, values) = (other_kinds, other_values);
        }
        Ok(columns)
    }

    /// Seven bits a byte, the most significant first; all eight of the ninth.
    fn varint<'b>(&self, bytes: &'b [u8]) -> Result<(u64, &'b [u8]), Error> {
        let mut value = 0;
        for (index, byte) in bytes.iter().take(9).enumerate() {
            if index == 8 {
                return Ok(((value << 8) | u64::from(*byte), &bytes[9..]));
            }
            value = (value << 7) | u64::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                return Ok((value, &bytes[index + 1..]));
            }
        }
        Err(self.cut())
    }

    fn number16(&self, bytes: &[u8], at: usize) -> Result<u16, Error> {
        let bytes = bytes
            .get(at..at + 2)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map(u16::from_be_bytes).ok_or_else(|| self.cut())
    }

    fn number32(&self, bytes: &[u8], at: usize) -> Result<u32, Error> {
        let bytes = bytes
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or_else(|| self.cut())
    }

    fn broken(&self, page: u32) -> Error {
        self.manager
            .malformed(format!("page {page} is not of a table"))
    }

    fn cut(&self) -> Error {
        self.manager.malformed("a row ends too early")
    }
}

/// A signed number in up to eight bytes.
fn integer(bytes: &[u8]) -> i64 {
    let start = match bytes.first() {
        Some(first) if *first >= 0x80 => -1,
        _ => 0,
    };
    bytes
        .iter()
        .fold(start, |value, byte| (value << 8) | i64::from(*byte))
}
