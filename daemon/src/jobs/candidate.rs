//! What a reference was found to mean: what this host could be updated to.
//!
//! Invariant: of two answers the later one stays, however long it takes to find out how much there is to fetch.

use std::sync::Arc;

use tokio::sync::watch::Sender;

use crate::image::layout::Image;
use crate::image::reference::ImageReference;

/// What a check found.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The image.
    pub image: Arc<Image>,
    /// The reference it was found under.
    pub reference: ImageReference,
    /// When the registry said so, in seconds since 1970; zero for what is known from disk.
    pub found_at: u64,
    /// Layers that are missing here; `None` = not known.
    pub layers_missing: Option<u32>,
    /// Compressed bytes that are missing here; `None` = not known.
    pub download_size: Option<u64>,
}

impl Candidate {
    fn is(&self, image: &Image, reference: &ImageReference) -> bool {
        self.image.digest == image.digest && self.reference == *reference
    }
}

/// The reference means this image. How much of it is missing stays what was found out before, if anything was.
pub(super) fn found(
    last: &Sender<Option<Candidate>>,
    image: &Arc<Image>,
    reference: &ImageReference,
    found_at: u64,
) {
    last.send_modify(|last| {
        let before = last.take().filter(|last| last.is(image, reference));
        *last = Some(Candidate {
            image: image.clone(),
            reference: reference.clone(),
            found_at,
            layers_missing: before.as_ref().and_then(|before| before.layers_missing),
            download_size: before.and_then(|before| before.download_size),
        });
    });
}

/// So many layers of the image are missing, and so many bytes are to be fetched, if it is still what was found
/// last.
pub(super) fn planned(
    last: &Sender<Option<Candidate>>,
    image: &Image,
    reference: &ImageReference,
    (layers, bytes): (u32, u64),
) {
    last.send_if_modified(|last| {
        let Some(last) = last.as_mut().filter(|last| last.is(image, reference)) else {
            return false;
        };
        let told = (Some(layers), Some(bytes));
        let is_news = (last.layers_missing, last.download_size) != told;
        (last.layers_missing, last.download_size) = told;
        is_news
    });
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::image::reference::Digest;

    fn image(name: &str) -> Arc<Image> {
        let digest = Digest::of(name.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",
                "digest":"{digest}","size":1}},"layers":[]}}"#
        );
        Arc::new(Image::from_commit_metadata(digest.as_str(), &manifest, "null").unwrap())
    }

    #[test]
    fn the_size_belongs_to_what_was_found_last() {
        let [one, two] = ["one", "two"].map(image);
        let os: ImageReference = "docker://r.test/os:1".parse().unwrap();
        let (last, _watching) = watch::channel(None::<Candidate>);
        let sizes = || {
            let last = last.borrow();
            let last = last.as_ref().unwrap();
            (last.image.digest.clone(), last.found_at, last.download_size)
        };
        planned(&last, &one, &os, (1, 10));
        assert!(last.borrow().is_none());
        found(&last, &one, &os, 5);
        assert_eq!(sizes(), (one.digest.clone(), 5, None));
        // Somebody else asked later, and was answered otherwise.
        found(&last, &two, &os, 6);
        planned(&last, &one, &os, (1, 10));
        assert_eq!(sizes(), (two.digest.clone(), 6, None));
        planned(&last, &two, &os, (2, 20));
        assert_eq!(sizes(), (two.digest.clone(), 6, Some(20)));
        // The same again is no reason to forget that.
        found(&last, &two, &os, 7);
        assert_eq!(sizes(), (two.digest.clone(), 7, Some(20)));
        let other: ImageReference = "docker://r.test/os:2".parse().unwrap();
        planned(&last, &two, &other, (3, 30));
        assert_eq!(sizes(), (two.digest.clone(), 7, Some(20)));
        found(&last, &two, &other, 8);
        assert_eq!(sizes(), (two.digest.clone(), 8, None));
    }
}
