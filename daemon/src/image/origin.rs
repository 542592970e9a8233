//! The forms in which an origin file names an image, and what a user may write instead.
//!
//! Pure. Invariant: what is written is what other tools write for the same image, since each of them
//! writes the whole origin file anew.

use std::fmt;
use std::str::FromStr;

use super::reference::{
    FOREIGN_TRANSPORTS, ImageReference, LOCAL_TRANSPORTS, ReferenceError, Transport,
    check_characters, syntax,
};

/// What the forms of an origin file start with.
const ORIGIN_SCHEMES: [&str; 5] = [
    "ostree-unverified-registry",
    "ostree-unverified-image",
    "ostree-image-signed",
    "ostree-remote-registry",
    "ostree-remote-image",
];

/// What vouches for an image, as the origin file says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignatureSource {
    /// Nothing is insisted on.
    Insecure,
    /// The signature policy of the host, which must not accept just anything.
    ContainerPolicy,
    /// Signatures of the ostree commit inside, checked with the keys of this ostree remote.
    OstreeRemote(String),
}

/// The value of `container-image-reference` in an origin file.
///
/// `FromStr` reads every form that is found on hosts; `Display` writes the one form each of them has
/// when other tools write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginReference {
    /// What vouches for the image.
    pub signature: SignatureSource,
    /// Where it is.
    pub image: ImageReference,
}

impl FromStr for OriginReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<OriginReference, ReferenceError> {
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| syntax(text, "the signature scheme is missing"))?;
        let remote = || match rest.split_once(':') {
            Some((remote, rest)) if !remote.is_empty() => {
                check_characters(remote)?;
                Ok((SignatureSource::OstreeRemote(remote.to_owned()), rest))
            }
            _ => Err(syntax(text, "the name of the ostree remote is missing")),
        };
        let (signature, image) = match scheme {
            "ostree-unverified-registry" => {
                (SignatureSource::Insecure, ImageReference::registry(rest)?)
            }
            "ostree-unverified-image" => (SignatureSource::Insecure, rest.parse()?),
            "ostree-image-signed" => (SignatureSource::ContainerPolicy, rest.parse()?),
            "ostree-remote-registry" => {
                let (remote, name) = remote()?;
                (remote, ImageReference::registry(name)?)
            }
            "ostree-remote-image" => {
                let (remote, image) = remote()?;
                (remote, image.parse()?)
            }
            other => {
                return Err(syntax(text, format!("{other:?} is not a signature scheme")));
            }
        };
        Ok(OriginReference { signature, image })
    }
}

impl fmt::Display for OriginReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = &self.image;
        match &self.signature {
            SignatureSource::Insecure if image.transport() == Transport::Registry => {
                write!(f, "ostree-unverified-registry:{}", image.name())
            }
            SignatureSource::Insecure => write!(f, "ostree-unverified-image:{image}"),
            SignatureSource::ContainerPolicy => write!(f, "ostree-image-signed:{image}"),
            SignatureSource::OstreeRemote(remote) => {
                write!(f, "ostree-remote-image:{remote}:{image}")
            }
        }
    }
}

/// Reads what a person or a program passes to `Switch`: any form of an origin file, `docker://NAME`,
/// `oci:PATH[:TAG]`, `oci-archive:PATH[:TAG]`, `containers-storage:NAME`, or a bare
/// `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`. All but the first insist on no signature.
///
/// # Errors
/// As parsing each form; [`ReferenceError::ShortName`] when no registry is named, whatever the form;
/// [`ReferenceError::Syntax`] for a directory or archive that is not given by its absolute path.
pub fn parse_user_input(text: &str) -> Result<OriginReference, ReferenceError> {
    let text = text.trim();
    let scheme = text.split(':').next().unwrap_or_default();
    // A host can be called like a transport, but then a port follows.
    let is_host = text[scheme.len()..]
        .strip_prefix(':')
        .is_none_or(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let is_local = LOCAL_TRANSPORTS.iter().any(|(word, _)| *word == scheme);
    let parsed = if ORIGIN_SCHEMES.contains(&scheme) {
        text.parse()?
    } else if FOREIGN_TRANSPORTS.contains(&scheme) && !is_host {
        return Err(ReferenceError::Transport(scheme.to_owned()));
    } else {
        // "oci:5000/x" was never a registry: a relative path is the likelier mistake.
        let is_transport = scheme == "oci" || (is_local && !is_host);
        let image = if text.starts_with("docker://") || is_transport && text.contains(':') {
            text.parse()?
        } else {
            ImageReference::registry(text)?
        };
        OriginReference {
            signature: SignatureSource::Insecure,
            image,
        }
    };
    match parsed.image.layout() {
        None if !parsed.image.is_qualified() => {
            Err(ReferenceError::ShortName(parsed.image.name().to_owned()))
        }
        Some((path, _)) if !path.is_absolute() => Err(syntax(text, "the path is not absolute")),
        _ => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_in_every_form_and_written_in_one() {
        for (text, written) in [
            ("ostree-unverified-registry:quay.io/x/y:1", None),
            ("ostree-unverified-image:oci:/var/os:tag", None),
            ("ostree-image-signed:docker://quay.io/x/y", None),
            ("ostree-image-signed:oci:/var/os", None),
            ("ostree-remote-image:fedora:docker://quay.io/x/y", None),
            (
                "ostree-unverified-image:docker://quay.io/x/y:1",
                Some("ostree-unverified-registry:quay.io/x/y:1"),
            ),
            (
                "ostree-unverified-image:registry:quay.io/x/y:1",
                Some("ostree-unverified-registry:quay.io/x/y:1"),
            ),
            (
                "ostree-image-signed:registry:quay.io/x/y",
                Some("ostree-image-signed:docker://quay.io/x/y"),
            ),
            (
                "ostree-remote-registry:fedora:quay.io/x/y",
                Some("ostree-remote-image:fedora:docker://quay.io/x/y"),
            ),
        ] {
            let origin: OriginReference = text.parse().unwrap();
            assert_eq!(origin.to_string(), written.unwrap_or(text));
            assert_eq!(origin.to_string().parse(), Ok(origin), "{text}");
        }
        for text in [
            "",
            "ostree-unverified-registry",
            "ostree-unverified-registry:",
            "ostree-image-signed:quay.io/x/y",
            "ostree-remote-image:docker://quay.io/x/y",
            "ostree-remote-registry::quay.io/x/y",
            "docker://quay.io/x/y",
            "ostree-nonsense:docker://quay.io/x/y",
        ] {
            assert!(text.parse::<OriginReference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn users_may_write_any_qualified_form() {
        for (text, origin) in [
            ("quay.io/x/y", "ostree-unverified-registry:quay.io/x/y"),
            (
                " localhost/x:1\n",
                "ostree-unverified-registry:localhost/x:1",
            ),
            (
                "registry:5000/x",
                "ostree-unverified-registry:registry:5000/x",
            ),
            ("docker:5000/x", "ostree-unverified-registry:docker:5000/x"),
            ("dir:5000/x", "ostree-unverified-registry:dir:5000/x"),
            (
                "ostree-host:5000/x",
                "ostree-unverified-registry:ostree-host:5000/x",
            ),
            (
                "docker://quay.io/x/y:1",
                "ostree-unverified-registry:quay.io/x/y:1",
            ),
            ("oci:/var/os:1", "ostree-unverified-image:oci:/var/os:1"),
            (
                "oci-archive:/var/os.tar:1",
                "ostree-unverified-image:oci-archive:/var/os.tar:1",
            ),
            (
                "containers-storage:localhost/os",
                "ostree-unverified-image:containers-storage:localhost/os",
            ),
            (
                "oci-archive:5000/x",
                "ostree-unverified-registry:oci-archive:5000/x",
            ),
            (
                "ostree-image-signed:docker://quay.io/x",
                "ostree-image-signed:docker://quay.io/x",
            ),
        ] {
            assert_eq!(parse_user_input(text).unwrap().to_string(), origin);
        }
    }

    #[test]
    fn short_names_and_foreign_transports_are_refused_with_advice() {
        for text in [
            "fedora",
            "fedora:42",
            "library/fedora",
            "docker://fedora",
            "ostree-unverified-registry:fedora",
            "containers-storage:fedora",
            "containers-storage:e3b0c44298fc",
        ] {
            let error = parse_user_input(text).unwrap_err();
            assert!(
                matches!(error, ReferenceError::ShortName(_)),
                "{text}: {error}"
            );
            assert!(error.to_string().contains("quay.io/example/os:latest"));
        }
        for text in [
            "docker-archive:/x.tar",
            "docker-daemon:localhost/x",
            "dir:/x",
        ] {
            let error = parse_user_input(text).unwrap_err();
            assert!(
                matches!(error, ReferenceError::Transport(_)),
                "{text}: {error}"
            );
        }
        for text in [
            "oci:relative",
            "oci:5000/x",
            "oci-archive:x.tar",
            "",
            "--help",
            "quay.io/X",
        ] {
            let error = parse_user_input(text).unwrap_err();
            assert!(
                matches!(error, ReferenceError::Syntax { .. }),
                "{text}: {error}"
            );
        }
    }
}
