//! The operations of a tar-diff, in one Zstandard stream behind its header.
//!
//! Invariant: bytes that follow each other as they are become one operation, up to a limit.

use std::io::Write;

use anyhow::{Context, Result};

const HEADER: &[u8; 8] = b"tardf1\n\0";

const DATA: u8 = 0;
const OPEN: u8 = 1;
const COPY: u8 = 2;
const SEEK: u8 = 4;

/// Most bytes that are held back.
const HELD: usize = 1 << 20;

/// A tar-diff that is being written.
pub(super) struct Operations<W: Write> {
    out: zstd::Encoder<'static, W>,
    /// Bytes as they are that were not written yet.
    data: Vec<u8>,
    /// The file that is open, and the position in it.
    open: Option<(String, u64)>,
}

impl<W: Write> Operations<W> {
    pub(super) fn new(mut out: W, level: i32) -> Result<Self> {
        out.write_all(HEADER).context("writing a tar-diff")?;
        Ok(Self {
            out: zstd::Encoder::new(out, level)?,
            data: Vec::new(),
            open: None,
        })
    }

    /// These bytes come next.
    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(HELD) {
            if self.data.len() + part.len() > HELD {
                self.write_data()?;
            }
            self.data.extend_from_slice(part);
        }
        Ok(())
    }

    /// So many bytes of a file come next.
    pub(super) fn copy(&mut self, path: &str, from: u64, length: u64) -> Result<()> {
        self.write_data()?;
        let mut position = match self.open.take() {
            Some((open, position)) if open == path => position,
            _ => {
                self.operation(OPEN, path.len() as u64)?;
                self.out.write_all(path.as_bytes())?;
                0
            }
        };
        if position != from {
            self.operation(SEEK, from)?;
            position = from;
        }
        self.operation(COPY, length)?;
        self.open = Some((path.to_owned(), position + length));
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.write_data()?;
        self.out.finish().context("ending a tar-diff")?;
        Ok(())
    }

    fn write_data(&mut self) -> Result<()> {
        let data = std::mem::take(&mut self.data);
        if !data.is_empty() {
            self.operation(DATA, data.len() as u64)?;
            self.out.write_all(&data)?;
        }
        Ok(())
    }

    /// The number has seven bits in a byte, the lowest first.
    fn operation(&mut self, code: u8, mut number: u64) -> Result<()> {
        let mut bytes = vec![code];
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        self.out.write_all(&bytes).context("writing a tar-diff")
    }
}

/// What the tar-diff makes of files.
#[cfg(test)]
pub(super) fn apply(diff: &[u8], file: impl Fn(&str) -> Vec<u8>) -> Vec<u8> {
    let diff = diff.strip_prefix(HEADER).unwrap();
    let operations = zstd::decode_all(diff).unwrap();
    let (mut rest, mut made) = (&operations[..], Vec::new());
    let (mut open, mut position) = (Vec::new(), 0);
    while let Some((code, numbered)) = rest.split_first() {
        let length = 1 + numbered.iter().position(|byte| byte & 0x80 == 0).unwrap();
        let (number, behind) = numbered.split_at(length);
        let number = number
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7f));
        let (bytes, behind) = behind.split_at(match *code {
            DATA | OPEN => number,
            _ => 0,
        });
        rest = behind;
        match *code {
            DATA => made.extend_from_slice(bytes),
            OPEN => (open, position) = (file(std::str::from_utf8(bytes).unwrap()), 0),
            SEEK => position = number,
            COPY => {
                made.extend_from_slice(&open[position..position + number]);
                position += number;
            }
            other => panic!("operation {other}"),
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_twice() {
        let mut diff = Vec::new();
        let mut operations = Operations::new(&mut diff, 3).unwrap();
        operations.data(b"one ").unwrap();
        operations.data(b"two ").unwrap();
        operations.copy("usr/file", 0, 5).unwrap();
        operations.data(b" and ").unwrap();
        operations.copy("usr/file", 5, 3).unwrap();
        operations.copy("usr/file", 1, 200).unwrap();
        operations.finish().unwrap();
        let written = zstd::decode_all(&diff[8..]).unwrap();
        let expected = [
            &b"\x00\x08one two \x01\x08usr/file\x02\x05\x00\x05 and \x02\x03\x04\x01\x02"[..],
            &[0xc8, 0x01],
        ];
        assert_eq!(written, expected.concat());
        let made = apply(&diff, |_| (0..=255).collect());
        assert!(made.starts_with(b"one two \x00\x01\x02\x03\x04 and \x05\x06\x07\x01\x02"));
        assert_eq!(made.len(), 8 + 5 + 5 + 3 + 200);
    }
}
