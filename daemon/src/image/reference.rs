//! What an image is called: digests, transports and references.
//!
//! Pure. Invariants: a [`Digest`] is always `sha256:` and 64 lowercase hexadecimal digits, so it can be
//! part of a path or a URL; an [`ImageReference`] keeps the user's spelling, because refs and origin
//! files are compared as strings with what other tools wrote, and never holds a control character.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use oci_client::Reference;
use sha2::{Digest as _, Sha256};

pub use super::origin::{OriginReference, SignatureSource, parse_user_input};
pub use super::ref_name::{
    BASEIMAGE_PREFIX, BLOB_PREFIX, IMAGE_PREFIX, blob_ref, escape_ref, image_ref, unescape_ref,
};

/// Longer input is refused before anything looks at it; the longest legal reference has about 600.
const MAX_REFERENCE_LENGTH: usize = 4096;

/// Transports of other tools that can stand in an origin file, none of which is served here.
pub(super) const FOREIGN_TRANSPORTS: [&str; 5] = [
    "oci-archive",
    "docker-archive",
    "docker-daemon",
    "containers-storage",
    "dir",
];

/// Why a name was not understood. All of these are the caller's to correct.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not a sha256 digest in its one canonical spelling.
    #[error("{0:?} is not a digest; write \"sha256:\" and 64 lowercase hexadecimal digits")]
    Digest(String),
    /// Not a reference in any known form.
    #[error("{input:?} is not an image reference: {reason}")]
    Syntax {
        /// What was given.
        input: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name without a registry, which would mean different images on different hosts.
    #[error(
        "{0:?} does not say which registry it is in; write it out as HOST/REPOSITORY[:TAG], \
         for example quay.io/example/os:latest"
    )]
    ShortName(String),
    /// A transport that exists, but not here.
    #[error("images from {0:?} are not supported; use \"docker://\" or \"oci:\"")]
    Transport(String),
    /// Not (part of) the name of an ostree ref.
    #[error("{0:?} cannot be part of the name of an ostree ref")]
    Ref(String),
}

pub(super) fn syntax(input: &str, reason: impl Into<String>) -> ReferenceError {
    ReferenceError::Syntax {
        input: input.chars().take(200).collect(),
        reason: reason.into(),
    }
}

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

/// How an image gets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `docker://NAME`: a registry.
    Registry,
    /// `oci:DIRECTORY[:TAG]`: an OCI image layout on this host.
    OciDir,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Registry => "docker://",
            Transport::OciDir => "oci:",
        })
    }
}

/// A transport and a name: the part of a reference that says where the bytes are.
///
/// `Display` gives the transport form (`docker://NAME`, `oci:PATH[:TAG]`), which is what refs are named after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    transport: Transport,
    /// As the user wrote it: compared and stored as is.
    name: String,
    /// What the name means in a registry; `None` for directories.
    registry: Option<Reference>,
}

impl ImageReference {
    pub(super) fn registry(name: &str) -> Result<ImageReference, ReferenceError> {
        check_characters(name)?;
        let parsed: Reference = name
            .parse()
            .map_err(|error: oci_client::ParseError| syntax(name, error.to_string()))?;
        if let Some(digest) = parsed.digest() {
            digest.parse::<Digest>()?;
        }
        Ok(ImageReference {
            transport: Transport::Registry,
            name: name.to_owned(),
            registry: Some(parsed),
        })
    }

    fn directory(name: &str) -> Result<ImageReference, ReferenceError> {
        check_characters(name)?;
        let (path, tag) = split_directory(name);
        if path.is_empty() {
            return Err(syntax(name, "the path of the directory is missing"));
        }
        if tag.is_some_and(|tag| tag.is_empty() || tag.contains(char::is_whitespace)) {
            return Err(syntax(
                name,
                "the tag after the path is empty or has spaces",
            ));
        }
        Ok(ImageReference {
            transport: Transport::OciDir,
            name: name.to_owned(),
            registry: None,
        })
    }

    /// Which transport.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The name as it was written, without the transport.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag if one was written; a registry name without tag and digest means `latest`.
    pub fn tag(&self) -> Option<&str> {
        match &self.registry {
            // The parser fills in "latest"; the user's spelling tells the difference.
            Some(parsed) => parsed.tag().filter(|_| {
                self.without_digest()
                    .rsplit('/')
                    .next()
                    .is_some_and(|last| last.contains(':'))
            }),
            None => split_directory(&self.name).1,
        }
    }

    /// The digest that the name is pinned to, if any.
    pub fn digest(&self) -> Option<Digest> {
        self.registry.as_ref()?.digest()?.parse().ok()
    }

    /// The registry as `HOST[:PORT]`; `None` for a directory.
    pub fn registry_host(&self) -> Option<&str> {
        self.registry.as_ref().map(Reference::registry)
    }

    /// What the name means in a registry, every default filled in; `None` for a directory.
    pub(super) fn in_registry(&self) -> Option<&Reference> {
        self.registry.as_ref()
    }

    /// The directory and the tag in it; `None` for a registry.
    pub fn oci_dir(&self) -> Option<(&Path, Option<&str>)> {
        let (path, tag) = split_directory(&self.name);
        (self.transport == Transport::OciDir).then(|| (Path::new(path), tag))
    }

    /// The same repository pinned to this digest, without tag. A directory stays as it is: there the
    /// digest selects inside the index.
    pub fn with_digest(&self, digest: &Digest) -> ImageReference {
        let Some(parsed) = &self.registry else {
            return self.clone();
        };
        let pinned = Reference::with_digest(
            parsed.registry().to_owned(),
            parsed.repository().to_owned(),
            digest.to_string(),
        );
        ImageReference {
            transport: Transport::Registry,
            name: format!("{}@{digest}", self.repository_as_written()),
            registry: Some(pinned),
        }
    }

    /// The form that is pulled and that refs are named after: of a tag and a digest only the digest stays.
    pub fn canonical(&self) -> ImageReference {
        match self.digest() {
            Some(digest) => self.with_digest(&digest),
            None => self.clone(),
        }
    }

    fn without_digest(&self) -> &str {
        self.name.split('@').next().unwrap_or(&self.name)
    }

    fn repository_as_written(&self) -> &str {
        let name = self.without_digest();
        match self.tag() {
            Some(tag) => name
                .strip_suffix(tag)
                .and_then(|name| name.strip_suffix(':'))
                .unwrap_or(name),
            None => name,
        }
    }

    /// Whether the name itself says which registry it means, instead of leaving it to a default.
    pub(super) fn is_qualified(&self) -> bool {
        match self.name.split_once('/') {
            Some((host, _)) => host.contains(['.', ':']) || host == "localhost",
            None => false,
        }
    }
}

/// Splits `PATH[:TAG]` where other tools split it: at the first colon.
fn split_directory(name: &str) -> (&str, Option<&str>) {
    match name.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (name, None),
    }
}

/// Names end up in key files, refs and log lines, so nothing that could break a line gets in.
pub(super) fn check_characters(name: &str) -> Result<(), ReferenceError> {
    if name.is_empty() {
        return Err(syntax(name, "it is empty"));
    }
    if name.len() > MAX_REFERENCE_LENGTH {
        return Err(syntax(name, "it is too long"));
    }
    if name.contains(char::is_control) {
        return Err(syntax(name, "it has control characters"));
    }
    Ok(())
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    /// Reads `docker://NAME`, `registry:NAME` and `oci:PATH[:TAG]`.
    fn from_str(text: &str) -> Result<ImageReference, ReferenceError> {
        if let Some(name) = text.strip_prefix("docker://") {
            return ImageReference::registry(name);
        }
        match text.split_once(':') {
            Some(("oci", name)) => ImageReference::directory(name),
            Some(("registry", name)) => ImageReference::registry(name),
            Some((foreign, _)) if FOREIGN_TRANSPORTS.contains(&foreign) => {
                Err(ReferenceError::Transport(foreign.to_owned()))
            }
            _ => Err(syntax(
                text,
                "it starts with neither \"docker://\" nor \"oci:\"",
            )),
        }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.transport, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image(text: &str) -> ImageReference {
        text.parse().unwrap()
    }

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

    #[test]
    fn registry_references_tell_their_parts() {
        let pinned = format!("docker://quay.io/ns/os:42@sha256:{HEX}");
        for (text, host, tag, digest) in [
            ("docker://quay.io/ns/os:42", "quay.io", Some("42"), false),
            ("docker://quay.io/ns/os", "quay.io", None, false),
            ("docker://localhost:5000/os", "localhost:5000", None, false),
            (
                "docker://localhost:5000/os:a.b",
                "localhost:5000",
                Some("a.b"),
                false,
            ),
            (&pinned, "quay.io", Some("42"), true),
            ("docker://busybox", "docker.io", None, false),
        ] {
            let image = image(text);
            assert_eq!(image.to_string(), text);
            assert_eq!(image.transport(), Transport::Registry);
            assert_eq!(image.registry_host(), Some(host));
            assert_eq!(image.tag(), tag, "{text}");
            assert_eq!(image.digest().is_some(), digest);
            assert_eq!(image.oci_dir(), None);
        }
    }

    #[test]
    fn directories_tell_their_parts() {
        for (text, path, tag) in [
            ("oci:/var/os.oci", "/var/os.oci", None),
            ("oci:/var/os:latest", "/var/os", Some("latest")),
            ("oci:/var/os:a:b", "/var/os", Some("a:b")),
        ] {
            let image = image(text);
            assert_eq!(image.to_string(), text);
            assert_eq!(image.oci_dir(), Some((Path::new(path), tag)));
            assert_eq!(image.tag(), tag);
            assert_eq!(image.registry_host(), None);
            assert_eq!(image.with_digest(&Digest::of(b"")), image);
            assert_eq!(image.canonical(), image);
        }
    }

    #[test]
    fn pinning_drops_the_tag_and_keeps_the_spelling() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        for (text, pinned) in [
            ("docker://localhost:5000/os", "docker://localhost:5000/os"),
            ("docker://localhost:5000/os:1", "docker://localhost:5000/os"),
            ("docker://busybox:1", "docker://busybox"),
        ] {
            let pinned = format!("{pinned}@{digest}");
            assert_eq!(image(text).canonical(), image(text));
            assert_eq!(image(text).with_digest(&digest).to_string(), pinned);
            let both = image(&format!("{text}@{digest}"));
            assert_eq!(both.canonical().to_string(), pinned);
            assert_eq!(both.canonical(), image(&pinned));
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "",
            "docker://",
            "docker:quay.io/os",
            "quay.io/os",
            "docker://quay.io/OS",
            "docker://quay.io/os:",
            "docker://quay.io/os@sha256:12",
            "docker://quay.io/os\n",
            "docker://quay.io/../os",
            "oci:",
            "oci::tag",
            "oci:/os:",
            "oci:/os:a b",
            "oci:/o\u{7}s",
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text:?}");
        }
        let sha512 = format!("docker://quay.io/os@sha512:{HEX}{HEX}");
        assert!(matches!(
            sha512.parse::<ImageReference>(),
            Err(ReferenceError::Digest(_))
        ));
        let long = format!("docker://quay.io/{}", "a".repeat(5000));
        assert!(long.parse::<ImageReference>().is_err());
        assert_eq!(
            "containers-storage:localhost/os".parse::<ImageReference>(),
            Err(ReferenceError::Transport("containers-storage".into()))
        );
    }
}
