//! tar-split: all of a tar but the content of its files, as lines of JSON.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::Serialize;

use super::frames::{Frames, Packed};

const FILE: u8 = 1;
const BYTES: u8 = 2;

/// The field of a tar header that holds the mode, and the one that holds the checksum.
const MODE: std::ops::Range<usize> = 100..108;
const CHECKSUM: std::ops::Range<usize> = 148..156;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    payload: Option<String>,
    position: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The lines, compressed as they come.
pub(super) struct TarSplit {
    packed: Frames<Vec<u8>>,
    lines: u64,
    names: HashSet<String>,
}

impl TarSplit {
    pub(super) fn new(level: i32) -> Result<Self> {
        Ok(Self {
            packed: Frames::new(Vec::new(), level)?,
            lines: 0,
            names: HashSet::new(),
        })
    }

    /// Bytes of the tar as they are, or with a setuid bit in the last header.
    pub(super) fn headers(&mut self, raw: &[u8], setuid: bool) -> Result<()> {
        if raw.is_empty() {
            return Ok(());
        }
        let mut raw = raw.to_vec();
        if setuid {
            set_setuid(&mut raw)?;
        }
        self.line(BYTES, "", 0, Some(&raw))
    }

    /// The place of a member's content, which may be empty.
    pub(super) fn file(&mut self, name: &str, size: u64, crc: [u8; 8]) -> Result<()> {
        let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
        let clean = parts.collect::<Vec<_>>().join("/");
        ensure!(self.names.insert(clean), "{name} is in the tar twice");
        self.line(FILE, name, size, (size > 0).then_some(crc.as_slice()))
    }

    fn line(&mut self, kind: u8, name: &str, size: u64, payload: Option<&[u8]>) -> Result<()> {
        let line = Line {
            kind,
            name,
            size,
            payload: payload.map(|bytes| BASE64_STANDARD.encode(bytes)),
            position: self.lines,
        };
        self.lines += 1;
        self.packed.write(&serde_json::to_vec(&line)?)?;
        self.packed.write(b"\n")
    }

    pub(super) fn finish(self) -> Result<Packed> {
        self.packed.pack()
    }
}

fn set_setuid(raw: &mut [u8]) -> Result<()> {
    let (_, header) = raw.split_at_mut(raw.len().saturating_sub(512));
    let mode = String::from_utf8_lossy(&header[MODE]).into_owned();
    let mode = u32::from_str_radix(mode.trim_matches(['\0', ' ']), 8)? | 0o4000;
    header[MODE].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    header[CHECKSUM].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(())
}

/// CRC-64 of ISO 3309, with all bits inverted before and after.
#[derive(Default)]
pub(super) struct Crc(u64);

impl Crc {
    const TABLE: [u64; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut value, mut bit) = (byte as u64, 0);
            while bit < 8 {
                let carry = if value & 1 == 1 { 0xd8 << 56 } else { 0 };
                value = (value >> 1) ^ carry;
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let mut crc = !self.0;
        for byte in bytes {
            crc = Self::TABLE[usize::from(*byte ^ crc as u8)] ^ (crc >> 8);
        }
        self.0 = !crc;
    }

    pub(super) fn finish(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::Crc;

    /// The check value that the catalogue of CRC algorithms gives for CRC-64/GO-ISO.
    #[test]
    fn the_crc_is_the_one_of_the_format() {
        let mut crc = Crc::default();
        crc.update(b"1234");
        crc.update(b"56789");
        assert_eq!(crc.finish(), 0xb909_56c7_75a4_1001_u64.to_be_bytes());
        assert_eq!(Crc::default().finish(), [0; 8]);
    }
}
