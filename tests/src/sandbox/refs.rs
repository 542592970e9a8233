//! The names of container refs in the ostree repository (on-disk format 1.1), written down a
//! second time so that the daemon's own escaping is tested against something.

use std::fmt::Write;

/// The ref of a layer's commit.
pub fn blob_ref(digest: &str) -> String {
    format!("ostree/container/blob/{}", escape(digest))
}

/// The ref of an image's merge commit; `source` is `docker://NAME` or `oci:PATH[:tag]`.
pub fn image_ref(source: &str) -> String {
    format!("ostree/container/image/{}", escape(source))
}

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    let mut previous = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let plain_slash =
            previous.is_some_and(|p: char| p.is_ascii_alphanumeric()) && chars.peek().is_some();
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' => escaped.push(c),
            '_' => escaped.push_str("__"),
            '/' if plain_slash => escaped.push(c),
            // Writing to a String cannot fail.
            other => drop(write!(escaped, "_{:02X}_", u32::from(other))),
        }
        previous = Some(c);
    }
    escaped
}

/// The part of an origin's image reference that image refs are made of.
///
/// `ostree-unverified-registry:NAME` is short for `ostree-unverified-image:docker://NAME`.
pub fn source_of_origin(origin: &str) -> String {
    if let Some(name) = origin.strip_prefix("ostree-unverified-registry:") {
        return format!("docker://{name}");
    }
    origin
        .split_once(':')
        .map_or(origin, |(_, source)| source)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_the_format_says() {
        for (source, escaped) in [
            ("sha256:2c26", "sha256_3A_2c26"),
            (
                "docker://localhost:5000/my_os/img-/x@sha256:abc",
                "docker_3A__2F__2F_localhost_3A_5000/my__os/img-_2F_x_40_sha256_3A_abc",
            ),
            (
                "oci:/var/mnt/usb/myos.oci",
                "oci_3A__2F_var/mnt/usb/myos_2E_oci",
            ),
        ] {
            assert_eq!(escape(source), escaped);
        }
    }

    #[test]
    fn origins_name_sources() {
        assert_eq!(
            source_of_origin("ostree-unverified-registry:a/b:c"),
            "docker://a/b:c"
        );
        assert_eq!(
            source_of_origin("ostree-unverified-image:oci:/a:b"),
            "oci:/a:b"
        );
    }
}
