//! Content digests.
//!
//! Pure. Invariant: a [`Digest`] is always `sha256:` and 64 lowercase hexadecimal digits, so it can be
//! part of a path or a URL, and is never a shortened one.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::reference::ReferenceError;

/// A sha256 content digest: `sha256:` and 64 lowercase hexadecimal digits, nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    const ALGORITHM: &str = "sha256:";

    /// The digest of these bytes. It hashes them here and now: only for small things.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::from_sha256(&Sha256::digest(bytes).into())
    }

    /// The digest with this hash, for those who hashed a stream themselves.
    pub fn from_sha256(hash: &[u8; 32]) -> Digest {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(Self::ALGORITHM.len() + 64);
        text.push_str(Self::ALGORITHM);
        for byte in hash {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        Digest(text)
    }

    /// The whole digest, algorithm included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal digits alone.
    pub fn hex(&self) -> &str {
        &self.0[Self::ALGORITHM.len()..]
    }
}

impl FromStr for Digest {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Digest, ReferenceError> {
        let canonical = text.strip_prefix(Digest::ALGORITHM).is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if canonical {
            Ok(Digest(text.to_owned()))
        } else {
            Err(ReferenceError::Digest(text.chars().take(200).collect()))
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_have_one_spelling() {
        let digest = Digest::of(b"");
        assert_eq!(digest.as_str(), format!("sha256:{HEX}"));
        assert_eq!(digest.hex(), HEX);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in [
            String::new(),
            HEX.to_owned(),
            format!("sha256:{}", &HEX[1..]),
            format!("sha256:{HEX}0"),
            format!("sha256:{}", HEX.to_uppercase()),
            format!("sha512:{HEX}{HEX}"),
            format!("sha256:../{}", &HEX[3..]),
            format!(" sha256:{HEX}"),
        ] {
            assert!(
                matches!(bad.parse::<Digest>(), Err(ReferenceError::Digest(_))),
                "{bad}"
            );
        }
    }
}
