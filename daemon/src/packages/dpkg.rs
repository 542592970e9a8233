//! dpkg's database: stanzas of `Field: value` lines, with blank lines between them.

use std::io::BufRead;

use super::text::Lines;
use super::{Collected, Error, Manager, Package};

const ME: Manager = Manager::Dpkg;

/// What a package without a `Status` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsaid {
    /// In a `status.d` only what is installed has a file.
    Installed,
    /// In `status`, something that was only asked for.
    NotInstalled,
}

/// The states in which the files of a package are there.
const PRESENT: [&[u8]; 5] = [
    b"installed",
    b"unpacked",
    b"half-configured",
    b"triggers-awaited",
    b"triggers-pending",
];

/// The fields of a stanza that matter.
#[derive(Default)]
struct Stanza {
    is_begun: bool,
    name: Option<String>,
    version: Option<String>,
    arch: Option<String>,
    source: Option<String>,
    size: u64,
    present: Option<bool>,
}

pub(super) fn read(input: impl BufRead, unsaid: Unsaid) -> Result<Vec<Package>, Error> {
    let mut lines = Lines::new(ME, input);
    let mut collected = Collected::new(ME);
    let mut stanza = Stanza::default();
    loop {
        let number = lines.number + 1;
        match lines.line()? {
            Some(line) if line.trim_ascii().is_empty() => {
                std::mem::take(&mut stanza).finish(unsaid, &mut collected)?;
            }
            Some(line) => stanza.line(line, number)?,
            None => break,
        }
    }
    stanza.finish(unsaid, &mut collected)?;
    Ok(collected.packages)
}

impl Stanza {
    fn line(&mut self, line: &[u8], number: u64) -> Result<(), Error> {
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            // It goes on with the value of a field; none of those that matter has two lines.
            return match self.is_begun {
                true => Ok(()),
                false => Err(ME.malformed(format!("line {number} belongs to no field"))),
            };
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let Some((field, value)) = colon.map(|at| (&line[..at], line[at + 1..].trim_ascii()))
        else {
            return Err(ME.malformed(format!("line {number} is no field")));
        };
        self.is_begun = true;
        match field.to_ascii_lowercase().as_slice() {
            b"package" => self.name = Some(ME.word("a name", value)?),
            b"version" => self.version = Some(ME.word("a version", value)?),
            b"architecture" => self.arch = Some(ME.word("an architecture", value)?),
            // `name (version)`, where the version is left out if it is the same.
            b"source" => {
                let name = value.split(|byte| *byte == b' ').next().unwrap_or_default();
                self.source = Some(ME.word("a source", name)?);
            }
            b"installed-size" => {
                let kibibytes = std::str::from_utf8(value).ok();
                let kibibytes: Option<u64> = kibibytes.and_then(|text| text.parse().ok());
                self.size = kibibytes.unwrap_or(0).saturating_mul(1024);
            }
            b"status" => {
                let state = value
                    .rsplit(|byte| *byte == b' ')
                    .next()
                    .unwrap_or_default();
                self.present = Some(PRESENT.contains(&state));
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(self, unsaid: Unsaid, collected: &mut Collected) -> Result<(), Error> {
        if !self.is_begun {
            return Ok(());
        }
        let name = ME.required("name", self.name)?;
        if !self.present.unwrap_or(unsaid == Unsaid::Installed) {
            return Ok(());
        }
        collected.push(Package {
            manager: ME,
            version: ME.required("version", self.version)?,
            arch: self.arch.unwrap_or_default(),
            source: self.source.unwrap_or_else(|| name.clone()),
            size: self.size,
            build: String::new(),
            name,
        })
    }
}
