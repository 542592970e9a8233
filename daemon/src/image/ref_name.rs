//! Names of ostree refs that stand for layers and images, and the escaping that makes any string one.
//!
//! Pure. Every tool on the host computes these names from the same digest or image reference, so the
//! rules are exactly those of the on-disk format: a name that does not unescape breaks the garbage
//! collection of the others.

use super::reference::{Digest, ImageReference, ReferenceError};

/// Where the commit of one layer hangs: this and the escaped layer digest.
pub const BLOB_PREFIX: &str = "ostree/container/blob";
/// Where the merge commit of a pulled image hangs: this and the escaped transport reference.
pub const IMAGE_PREFIX: &str = "ostree/container/image";
/// Our own corner of the refs that every tool's garbage collection takes for roots.
pub const BASEIMAGE_PREFIX: &str = "ostree/container/baseimage/osteward";

/// Escapes any string into one that is a valid ref, or part of one.
///
/// ASCII letters, digits and `-` stand for themselves, `_` is doubled, `/` stays between an
/// alphanumeric and something else, and all other characters become `_XX_`.
///
/// # Errors
/// [`ReferenceError::Ref`] for the empty string and for an embedded NUL, which no ref can carry.
pub fn escape_ref(text: &str) -> Result<String, ReferenceError> {
    if text.is_empty() || text.contains('\0') {
        return Err(ReferenceError::Ref(text.to_owned()));
    }
    let mut escaped = String::with_capacity(text.len() * 2);
    let mut after_alphanumeric = false;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '-' => escaped.push(c),
            '_' => escaped.push_str("__"),
            '/' if after_alphanumeric && rest.peek().is_some() => escaped.push(c),
            c if c.is_ascii_alphanumeric() => escaped.push(c),
            other => escaped.push_str(&format!("_{:02X}_", u32::from(other))),
        }
        after_alphanumeric = c.is_ascii_alphanumeric();
    }
    Ok(escaped)
}

/// Gives back the string that [`escape_ref`] was given.
///
/// # Errors
/// [`ReferenceError::Ref`] when the text holds a character or an escape that escaping never produces.
pub fn unescape_ref(escaped: &str) -> Result<String, ReferenceError> {
    let bad = || ReferenceError::Ref(escaped.to_owned());
    let mut text = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '_' => {
                let (code, after) = rest.split_once('_').ok_or_else(bad)?;
                text.push(if code.is_empty() {
                    '_'
                } else {
                    decode_escape(code).ok_or_else(bad)?
                });
                rest = after;
            }
            '-' | '/' => text.push(c),
            c if c.is_ascii_alphanumeric() => text.push(c),
            _ => return Err(bad()),
        }
    }
    if text.is_empty() {
        return Err(bad());
    }
    Ok(text)
}

fn decode_escape(code: &str) -> Option<char> {
    // from_str_radix would accept a sign, which no escape has.
    if !code.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let decoded = char::from_u32(u32::from_str_radix(code, 16).ok()?)?;
    (decoded != '\0').then_some(decoded)
}

/// The ref that keeps the objects of one layer alive.
pub fn blob_ref(digest: &Digest) -> String {
    // The only character of a digest that needs an escape is the colon, so this cannot fail.
    format!("{BLOB_PREFIX}/sha256_3A_{}", digest.hex())
}

/// The ref of the merge commit that was made from the image of this name.
pub fn image_ref(image: &ImageReference) -> String {
    // Parsing refused empty names and control characters, the two things escaping fails on.
    let escaped = escape_ref(&image.to_string()).unwrap_or_default();
    format!("{IMAGE_PREFIX}/{escaped}")
}

/// The ref that keeps what is here of the image with that manifest until it is deployed.
pub fn guard_ref(manifest: &Digest) -> String {
    format!("{BASEIMAGE_PREFIX}/{}", manifest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of the on-disk format.
    const VECTORS: [(&str, &str); 6] = [
        ("sha256:2c26", "sha256_3A_2c26"),
        (
            "docker://quay.io/fedora/fedora-bootc:42",
            "docker_3A__2F__2F_quay_2E_io/fedora/fedora-bootc_3A_42",
        ),
        (
            "docker://localhost:5000/my_os/img-/x@sha256:abc",
            "docker_3A__2F__2F_localhost_3A_5000/my__os/img-_2F_x_40_sha256_3A_abc",
        ),
        (
            "containers-storage:localhost/bootc",
            "containers-storage_3A_localhost/bootc",
        ),
        (
            "oci:/var/mnt/usb/myos.oci",
            "oci_3A__2F_var/mnt/usb/myos_2E_oci",
        ),
        ("a/", "a_2F_"),
    ];

    #[test]
    fn the_vectors_escape_and_unescape() {
        for (plain, escaped) in VECTORS {
            assert_eq!(escape_ref(plain).as_deref(), Ok(escaped));
            assert_eq!(unescape_ref(escaped).as_deref(), Ok(plain));
        }
    }

    #[test]
    fn every_character_survives_the_round_trip() {
        for text in [
            "_",
            "__",
            "a_b",
            "/",
            "//",
            "é",
            "日本/x",
            "a+b..c.lock",
            "-/-",
            "\u{1}",
            "🐧",
        ] {
            let escaped = escape_ref(text).unwrap();
            assert!(
                escaped
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_/".contains(c)),
                "{escaped}"
            );
            assert_eq!(unescape_ref(&escaped).as_deref(), Ok(text), "{escaped}");
        }
    }

    #[test]
    fn what_no_ref_can_carry_is_refused() {
        assert!(escape_ref("").is_err());
        assert!(escape_ref("a\0b").is_err());
        for escaped in [
            "", "a.b", "a_", "a_3", "_G_", "_+41_", "_D800_", "_110000_", "_00_", "é",
        ] {
            assert!(unescape_ref(escaped).is_err(), "{escaped:?}");
        }
    }

    #[test]
    fn refs_of_layers_and_images_have_their_prefixes() {
        let digest = Digest::of(b"");
        assert_eq!(
            blob_ref(&digest),
            format!("{BLOB_PREFIX}/{}", escape_ref(digest.as_str()).unwrap())
        );
        let image: ImageReference = "docker://quay.io/fedora/fedora-bootc:42".parse().unwrap();
        assert_eq!(
            image_ref(&image),
            "ostree/container/image/docker_3A__2F__2F_quay_2E_io/fedora/fedora-bootc_3A_42"
        );
    }
}
