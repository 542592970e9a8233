//! A certificate authority that lives as long as a test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{command, run};

/// Keys that are made quickly.
const KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

/// The authority, in a directory of the caller.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
}

/// What a server shows, and the key to it.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority in `dir`, which is made too.
    ///
    /// # Errors
    /// With openssl's words when that fails.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let authority = Self {
            dir: dir.to_owned(),
        };
        let subject = "/CN=osteward test authority";
        authority.request("authority", &["-subj", subject])?;
        Ok(authority)
    }

    /// The certificate that a client has to trust.
    pub fn certificate(&self) -> PathBuf {
        self.file("authority").certificate
    }

    /// A certificate for a server of that name.
    ///
    /// # Errors
    /// With openssl's words when that fails.
    pub fn issue(&self, name: &str) -> Result<Certificate> {
        let Certificate { certificate, key } = self.file("authority");
        let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
        let (subject, alternative) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
        let words = [
            "-CA",
            &certificate,
            "-CAkey",
            &key,
            "-subj",
            &subject,
            "-addext",
            &alternative,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        self.request(name, &words)
    }

    fn request(&self, name: &str, words: &[&str]) -> Result<Certificate> {
        let made = self.file(name);
        let mut openssl = command(["openssl", "req", "-x509", "-days", "1"]);
        openssl.args(KEY).args(words);
        openssl.arg("-out").arg(&made.certificate);
        openssl.arg("-keyout").arg(&made.key);
        run(&mut openssl)?;
        Ok(made)
    }

    fn file(&self, name: &str) -> Certificate {
        Certificate {
            certificate: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
        }
    }
}
