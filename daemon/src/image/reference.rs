//! What an image is called: transports and references.
//!
//! Pure. Invariant: an [`ImageReference`] keeps the user's spelling, because refs and origin files are
//! compared as strings with what other tools wrote, and never holds a control character.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use oci_client::{ParseError, Reference};

pub use super::digest::Digest;
pub use super::origin::{OriginReference, SignatureSource, parse_user_input};
pub use super::ref_name::{
    BASEIMAGE_PREFIX, BLOB_PREFIX, IMAGE_PREFIX, blob_ref, escape_ref, guard_ref, image_ref,
    unescape_ref,
};

/// Longer input is refused before anything looks at it; the longest legal reference has about 600.
const MAX_REFERENCE_LENGTH: usize = 4096;

/// Transports of other tools that can stand in an origin file, none of which is served here.
pub(super) const FOREIGN_TRANSPORTS: [&str; 3] = ["docker-archive", "docker-daemon", "dir"];

/// The schemes of the transports that are served, as they are written before a colon. `registry` is an
/// old word for `docker://`.
pub(super) const LOCAL_TRANSPORTS: [(&str, Transport); 3] = [
    ("oci", Transport::OciDir),
    ("oci-archive", Transport::OciArchive),
    ("containers-storage", Transport::ContainersStorage),
];

/// Why a name was not understood. All of these are the caller's to correct.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Not a sha256 digest in its one canonical spelling.
    #[error(
        "{0:?} is not a whole digest; write \"sha256:\" and all of its 64 lowercase hexadecimal digits"
    )]
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
    #[error(
        "images from {0:?} are not supported; use \"docker://\", \"oci:\", \"oci-archive:\" or \
         \"containers-storage:\""
    )]
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

/// How an image gets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `docker://NAME`: a registry.
    Registry,
    /// `oci:DIRECTORY[:TAG]`: an OCI image layout on this host.
    OciDir,
    /// `oci-archive:FILE[:TAG]`: the tar of an OCI image layout.
    OciArchive,
    /// `containers-storage:NAME`: what podman and buildah hold on this host.
    ContainersStorage,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Registry => "docker://",
            Transport::OciDir => "oci:",
            Transport::OciArchive => "oci-archive:",
            Transport::ContainersStorage => "containers-storage:",
        })
    }
}

/// A transport and a name: the part of a reference that says where the bytes are.
///
/// `Display` gives the transport form (`docker://NAME`, `oci:PATH[:TAG]`, …), which is what refs are named after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    transport: Transport,
    /// As the user wrote it: compared and stored as is.
    name: String,
    /// What the name means in docker's grammar; `None` for paths.
    docker: Option<Reference>,
}

impl ImageReference {
    pub(super) fn registry(name: &str) -> Result<ImageReference, ReferenceError> {
        Ok(ImageReference {
            transport: Transport::Registry,
            name: name.to_owned(),
            docker: Some(docker_reference(name)?),
        })
    }

    fn local(transport: Transport, name: &str) -> Result<ImageReference, ReferenceError> {
        let docker = match transport {
            Transport::ContainersStorage if name.starts_with('[') => {
                let reason =
                    "only the host's own container storage is read: leave the brackets out";
                return Err(syntax(name, reason));
            }
            Transport::ContainersStorage | Transport::Registry => Some(docker_reference(name)?),
            Transport::OciDir | Transport::OciArchive => {
                check_layout(name)?;
                None
            }
        };
        Ok(ImageReference {
            transport,
            name: name.to_owned(),
            docker,
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
        match &self.docker {
            // The parser fills in "latest"; the user's spelling tells the difference.
            Some(parsed) => parsed.tag().filter(|_| {
                self.without_digest()
                    .rsplit('/')
                    .next()
                    .is_some_and(|last| last.contains(':'))
            }),
            None => split_layout(&self.name).1,
        }
    }

    /// The digest that the name is pinned to, if any.
    pub fn digest(&self) -> Option<Digest> {
        self.docker.as_ref()?.digest()?.parse().ok()
    }

    /// The registry as `HOST[:PORT]`; `None` for what is on this host.
    pub fn registry_host(&self) -> Option<&str> {
        self.in_registry().map(Reference::registry)
    }

    /// What the name means in a registry, every default filled in; `None` for what is on this host.
    pub(super) fn in_registry(&self) -> Option<&Reference> {
        let docker = self.docker.as_ref();
        docker.filter(|_| self.transport == Transport::Registry)
    }

    /// The path of a layout, directory or archive, and the tag in it; `None` for all else.
    pub fn layout(&self) -> Option<(&Path, Option<&str>)> {
        let (path, tag) = split_layout(&self.name);
        self.docker.is_none().then(|| (Path::new(path), tag))
    }

    /// The same repository pinned to this digest, without tag. What is on this host stays as it is: there
    /// the digest selects among what the name leads to.
    pub fn with_digest(&self, digest: &Digest) -> ImageReference {
        let Some(parsed) = self.in_registry() else {
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
            docker: Some(pinned),
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

/// Parses a name in docker's grammar; a digest in it must be whole.
fn docker_reference(name: &str) -> Result<Reference, ReferenceError> {
    check_characters(name)?;
    if let Some((_, digest)) = name.split_once('@') {
        digest.parse::<Digest>()?;
    }
    name.parse()
        .map_err(|error: ParseError| syntax(name, error.to_string()))
}

/// Refuses a `PATH[:TAG]` without path, or with a tag that no index has.
fn check_layout(name: &str) -> Result<(), ReferenceError> {
    check_characters(name)?;
    let (path, tag) = split_layout(name);
    if path.is_empty() {
        return Err(syntax(name, "the path is missing"));
    }
    let Some(tag) = tag else { return Ok(()) };
    if tag.is_empty() || tag.contains(char::is_whitespace) {
        return Err(syntax(
            name,
            "the tag after the path is empty or has spaces",
        ));
    }
    if tag.starts_with('@') {
        return Err(syntax(
            name,
            "images are chosen by tag; leave out what begins with @, or ask for a digest",
        ));
    }
    Ok(())
}

/// Splits `PATH[:TAG]` where other tools split it: at the first colon.
fn split_layout(name: &str) -> (&str, Option<&str>) {
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

    /// Reads `docker://NAME`, `registry:NAME`, `oci:PATH[:TAG]`, `oci-archive:PATH[:TAG]` and
    /// `containers-storage:NAME`.
    fn from_str(text: &str) -> Result<ImageReference, ReferenceError> {
        if let Some(name) = text.strip_prefix("docker://") {
            return ImageReference::registry(name);
        }
        let (scheme, name) = text.split_once(':').unwrap_or((text, ""));
        if scheme == "registry" {
            return ImageReference::registry(name);
        }
        if let Some((_, transport)) = LOCAL_TRANSPORTS.iter().find(|(word, _)| *word == scheme) {
            return ImageReference::local(*transport, name);
        }
        if FOREIGN_TRANSPORTS.contains(&scheme) {
            return Err(ReferenceError::Transport(scheme.to_owned()));
        }
        Err(syntax(
            text,
            "it starts with none of \"docker://\", \"oci:\", \"oci-archive:\" and \"containers-storage:\"",
        ))
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
            assert_eq!(image.layout(), None);
        }
    }

    #[test]
    fn layouts_tell_their_parts() {
        for (text, path, tag) in [
            ("oci:/var/os.oci", "/var/os.oci", None),
            ("oci:/var/os:latest", "/var/os", Some("latest")),
            ("oci:/var/os:a:b", "/var/os", Some("a:b")),
            ("oci-archive:/var/os.tar", "/var/os.tar", None),
            ("oci-archive:/var/os.tar:1", "/var/os.tar", Some("1")),
        ] {
            let image = image(text);
            assert_eq!(image.to_string(), text);
            assert_eq!(image.layout(), Some((Path::new(path), tag)));
            assert_eq!(image.tag(), tag);
            assert_eq!(image.registry_host(), None);
            assert_eq!(image.with_digest(&Digest::of(b"")), image);
            assert_eq!(image.canonical(), image);
        }
    }

    #[test]
    fn stored_images_have_names_and_no_registry() {
        let name = image("containers-storage:localhost/os:1");
        assert_eq!(name.to_string(), "containers-storage:localhost/os:1");
        assert_eq!((name.tag(), name.digest()), (Some("1"), None));
        assert_eq!((name.layout(), name.registry_host()), (None, None));
        let pinned = image(&format!("containers-storage:quay.io/os:1@sha256:{HEX}"));
        assert!(pinned.digest().is_some());
        assert_eq!(pinned.canonical(), pinned);
        for text in [
            "containers-storage:",
            "containers-storage:[overlay@/var/x]quay.io/os",
            "containers-storage:quay.io/OS",
        ] {
            let error = text.parse::<ImageReference>().unwrap_err();
            assert!(matches!(error, ReferenceError::Syntax { .. }), "{error}");
        }
    }

    #[test]
    fn shortened_digests_are_refused_as_such() {
        for text in [
            "docker://quay.io/os@sha256:12",
            "docker://quay.io/os:1@sha256:e3b0c44298fc",
            "containers-storage:quay.io/os@sha256:12",
            "containers-storage:@e3b0c44298fc",
            &format!("containers-storage:localhost/os@{HEX}"),
            &format!("docker://quay.io/os@sha512:{HEX}{HEX}"),
        ] {
            let error = text.parse::<ImageReference>().unwrap_err();
            assert!(
                matches!(error, ReferenceError::Digest(_)),
                "{text}: {error}"
            );
            assert!(error.to_string().contains("all of its 64"), "{error}");
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
            "docker://quay.io/os\n",
            "docker://quay.io/../os",
            "oci:",
            "oci::tag",
            "oci:/os:",
            "oci:/os:a b",
            "oci:/o\u{7}s",
            "oci-archive:",
            "oci-archive:/os.tar:@0",
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text:?}");
        }
        let long = format!("docker://quay.io/{}", "a".repeat(5000));
        assert!(long.parse::<ImageReference>().is_err());
        assert_eq!(
            "docker-archive:/os.tar".parse::<ImageReference>(),
            Err(ReferenceError::Transport("docker-archive".into()))
        );
    }
}
