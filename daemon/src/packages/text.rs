//! Databases that are text: lines, and blank lines between packages.
//!
//! Invariant: no more than one line, of bounded length, is in memory.

use std::io::{BufRead, Read as _};

use super::{Error, Manager, limits};

/// The lines of a text, one at a time.
pub(super) struct Lines<R> {
    manager: Manager,
    input: std::io::Take<R>,
    line: Vec<u8>,
    /// The number of the line, from 1.
    pub(super) number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(manager: Manager, input: R) -> Self {
        Self {
            manager,
            // One byte more shows that there was more.
            input: input.take(limits::TEXT + 1),
            line: Vec::new(),
            number: 0,
        }
    }

    /// The next line without its end; `None` after the last one.
    pub(super) fn line(&mut self) -> Result<Option<&[u8]>, Error> {
        self.line.clear();
        let mut line = (&mut self.input).take(limits::LINE as u64 + 1);
        let count = line.read_until(b'\n', &mut self.line);
        let count = count.map_err(|error| self.manager.io(&error))?;
        if count > limits::LINE {
            return Err(self
                .manager
                .too_large(format!("a line of over {} bytes", limits::LINE)));
        }
        if self.input.limit() == 0 {
            return Err(self
                .manager
                .too_large(format!("over {} bytes", limits::TEXT)));
        }
        if count == 0 {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(self.line.strip_suffix(b"\n").unwrap_or(&self.line)))
    }
}
