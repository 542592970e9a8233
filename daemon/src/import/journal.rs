//! What was learned of contents since the last index was written: records, only ever appended.
//!
//! Invariants: a record is whole or left out, because each carries a check of its own; the
//! journal may lack anything and name objects that are gone; only an import opens it to write,
//! of which there is one at a time, and who plans beside it only reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use super::index::{RECORD, Record};
use super::objects::sha256;

/// Its name in the directory of the indexes.
pub(super) const NAME: &str = "journal";
/// Bytes of the check behind each record.
const CHECK: usize = 8;
const STEP: usize = RECORD + CHECK;
/// A longer one is begun anew.
const LONGEST: u64 = 64 * 1024 * 1024;
/// Records are handed to the system when their objects have this many bytes together …
const BYTES: u64 = 1024 * 1024;
/// … or are this many.
const RECORDS: usize = 128;

/// The journal, open at its end.
pub(super) struct Journal {
    file: File,
    waiting: Vec<u8>,
    weight: u64,
}

impl Journal {
    /// Reads what it has, and changes nothing; another may be writing.
    pub(super) fn read(directory: &Path) -> Vec<Record> {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let file = File::open(directory.join(NAME))?;
            file.take(LONGEST).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let (steps, _) = bytes.as_chunks::<STEP>();
        steps.iter().filter_map(checked).collect()
    }

    /// Opens it and reads what it has; without a journal things are only learned again.
    pub(super) fn open(directory: &Path) -> (Option<Self>, Vec<Record>) {
        match Self::try_open(directory) {
            Ok((journal, records)) => (Some(journal), records),
            Err(error) => {
                tracing::debug!(%error, "there is no journal of contents");
                (None, Vec::new())
            }
        }
    }

    fn try_open(directory: &Path) -> io::Result<(Self, Vec<Record>)> {
        fs::create_dir_all(directory)?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(directory.join(NAME))?;
        let length = file.metadata()?.len();
        if length > LONGEST {
            file.set_len(0)?;
        }
        let mut bytes = Vec::new();
        (&mut file).take(LONGEST).read_to_end(&mut bytes)?;
        let (steps, torn) = bytes.as_chunks::<STEP>();
        if !torn.is_empty() {
            // Whoever wrote it was stopped in the middle.
            file.set_len((bytes.len() - torn.len()) as u64)?;
        }
        let journal = Self {
            file,
            waiting: Vec::new(),
            weight: 0,
        };
        Ok((journal, steps.iter().filter_map(checked).collect()))
    }

    /// Appends a record, soon.
    pub(super) fn append(&mut self, record: &Record) {
        let bytes = record.to_bytes();
        self.waiting.extend_from_slice(&bytes);
        self.waiting.extend_from_slice(&sha256(&bytes)[..CHECK]);
        self.weight += record.size;
        if self.weight >= BYTES || self.waiting.len() >= RECORDS * STEP {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.weight = 0;
        let waiting = std::mem::take(&mut self.waiting);
        if let Err(error) = self.file.write_all(&waiting) {
            tracing::debug!(%error, "the journal of contents lacks something");
        }
    }

    /// Makes it survive a power cut.
    pub(super) fn sync(&mut self) {
        self.flush();
        if let Err(error) = self.file.sync_data() {
            tracing::debug!(%error, "the journal of contents is not durable");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.flush();
    }
}

fn checked(step: &[u8; STEP]) -> Option<Record> {
    let (record, check) = step.split_first_chunk::<RECORD>()?;
    (sha256(record)[..CHECK] == *check).then(|| Record::from_bytes(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u8) -> Record {
        Record {
            content: [number; 32],
            header: [1; 32],
            size: u64::from(number),
            object: [number + 100; 32],
        }
    }

    #[test]
    fn what_was_appended_is_read_again_and_damage_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let (journal, records) = Journal::open(&path);
        assert!(records.is_empty());
        let nowhere = directory.path().join("nowhere");
        assert!(Journal::read(&nowhere).is_empty() && !nowhere.exists());
        let mut journal = journal.unwrap();
        let all: Vec<Record> = (0..50).map(record).collect();
        all.iter().for_each(|record| journal.append(record));
        drop(journal);
        assert_eq!(Journal::open(&path).1, all);

        // Stopped in the middle of a record, and another damaged.
        let file = path.join(NAME);
        let mut bytes = fs::read(&file).unwrap();
        bytes[3 * STEP + 70] ^= 1;
        bytes.truncate(bytes.len() - 5);
        fs::write(&file, &bytes).unwrap();
        // Who only reads leaves what another may still be writing.
        let read = Journal::read(&path);
        assert_eq!(fs::read(&file).unwrap(), bytes);
        let (journal, records) = Journal::open(&path);
        assert_eq!(read, records);
        assert!(fs::read(&file).unwrap().len() < bytes.len());
        let whole = |record: &Record| record.size != 3 && record.size != 49;
        let expected: Vec<Record> = all.iter().copied().filter(whole).collect();
        assert_eq!(records, expected);
        let mut journal = journal.unwrap();
        journal.append(&record(60));
        journal.sync();
        assert_eq!(Journal::open(&path).1.last(), Some(&record(60)));

        let long = fs::OpenOptions::new().write(true).open(&file).unwrap();
        long.set_len(LONGEST + 1).unwrap();
        assert!(Journal::open(&path).1.is_empty());
    }
}
