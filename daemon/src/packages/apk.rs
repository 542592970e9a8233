//! apk's database: one letter, a colon and a value a line, with blank lines between packages.

use std::io::BufRead;

use super::text::Lines;
use super::{Collected, Error, Manager, Package};

const ME: Manager = Manager::Apk;

/// The fields of a package that matter.
#[derive(Default)]
struct Block {
    is_begun: bool,
    name: Option<String>,
    version: Option<String>,
    arch: Option<String>,
    origin: Option<String>,
    checksum: Option<String>,
    size: u64,
}

pub(super) fn read(input: impl BufRead) -> Result<Vec<Package>, Error> {
    let mut lines = Lines::new(ME, input);
    let mut collected = Collected::new(ME);
    let mut block = Block::default();
    loop {
        let number = lines.number + 1;
        match lines.line()? {
            Some([]) => std::mem::take(&mut block).finish(&mut collected)?,
            Some(line) => block.line(line, number)?,
            None => break,
        }
    }
    block.finish(&mut collected)?;
    Ok(collected.packages)
}

impl Block {
    fn line(&mut self, line: &[u8], number: u64) -> Result<(), Error> {
        let [field, b':', value @ ..] = line else {
            return Err(ME.malformed(format!("line {number} is no field")));
        };
        self.is_begun = true;
        match field {
            b'P' => self.name = Some(ME.word("a name", value)?),
            b'V' => self.version = Some(ME.word("a version", value)?),
            b'A' => self.arch = Some(ME.word("an architecture", value)?),
            b'o' => self.origin = Some(ME.word("an origin", value)?),
            b'C' => self.checksum = Some(ME.word("a checksum", value)?),
            b'I' => {
                let bytes = std::str::from_utf8(value).ok();
                self.size = bytes.and_then(|text| text.parse().ok()).unwrap_or(0);
            }
            // Files, owners, dependencies and whatever will come.
            _ => {}
        }
        Ok(())
    }

    fn finish(self, collected: &mut Collected) -> Result<(), Error> {
        if !self.is_begun {
            return Ok(());
        }
        collected.push(Package {
            manager: ME,
            name: ME.required("name", self.name)?,
            version: ME.required("version", self.version)?,
            arch: self.arch.unwrap_or_default(),
            source: self.origin.unwrap_or_default(),
            size: self.size,
            build: self.checksum.unwrap_or_default(),
        })
    }
}
