//! What a reference meant when it was asked for last: the registry has only to say whether it still does.
//!
//! Owns which image counts as what it meant. Invariants: the documents of that image were compared with its
//! digest, by this process or by the import of what is deployed; in doubt the registry is asked for all.

use std::sync::Arc;

use super::{Candidate, Job};
use crate::error::Error;
use crate::image::Source;
use crate::image::layout::{Image, host_architecture};
use crate::image::reference::{Digest, ImageReference};
use crate::record::last_check::LastCheck;
use crate::sysroot::Snapshot;

/// What the reference means, if that is what it meant before and that image is known.
pub(super) async fn look(
    job: &Job,
    snapshot: &Snapshot,
    source: &Source,
    reference: &ImageReference,
) -> Result<Option<Arc<Image>>, Error> {
    let found = job.found.borrow().clone();
    let deployed = snapshot.deployments.iter();
    let deployed = deployed.filter_map(|deployment| deployment.image.as_ref());
    let Some(image) = known(found, job.last_check.as_ref(), deployed, reference) else {
        return Ok(None);
    };
    let still = tokio::select! {
        still = source.still_means(image.served()) => still?,
        () = job.cancel.cancelled() => return Err(Error::Cancelled),
    };
    Ok(still.then_some(image))
}

/// What the reference meant, as far as it is known as a whole.
fn known<'a>(
    found: Option<Candidate>,
    check: Option<&LastCheck>,
    mut deployed: impl Iterator<Item = &'a Image>,
    reference: &ImageReference,
) -> Option<Arc<Image>> {
    if let Some(found) = found.filter(|found| found.reference == *reference) {
        return Some(found.image);
    }
    let check = check.filter(|check| check.reference == reference.to_string())?;
    let served: Digest = check.served.parse().ok()?;
    let image = deployed.find(|image| image.digest.as_str() == check.digest)?;
    // A commit can carry less than the registry has.
    image.require_bootable(host_architecture()).ok()?;
    Some(Arc::new(Image {
        index_digest: (served != image.digest).then_some(served),
        ..image.clone()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image as a commit carries it, with these labels.
    fn image(digest: &str, labels: &str) -> Image {
        let blob = Digest::of(b"x");
        let descriptor = |kind: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{blob}","size":1}}"#
            )
        };
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor("config.v1+json"),
            descriptor("layer.v1.tar+gzip")
        );
        let architecture = host_architecture();
        let config = format!(
            r#"{{"os":"linux","architecture":"{architecture}","config":{{"Labels":{{{labels}}}}},
                "rootfs":{{"type":"layers","diff_ids":["{blob}"]}}}}"#
        );
        Image::from_commit_metadata(digest, &manifest, &config).unwrap()
    }

    fn bootable(digest: &Digest) -> Image {
        image(digest.as_str(), r#""containers.bootc":"1""#)
    }

    fn reference(text: &str) -> ImageReference {
        text.parse().unwrap()
    }

    fn check(digest: &Digest, served: &str) -> LastCheck {
        LastCheck {
            digest: digest.to_string(),
            served: served.to_owned(),
            reference: reference("docker://r.test/os:1").to_string(),
            ..LastCheck::default()
        }
    }

    #[test]
    fn what_is_deployed_is_known_by_the_digest_it_was_served_under() {
        let [one, two, index] = [b"1", b"2", b"i"].map(|text| Digest::of(text));
        let images = [bootable(&one), bootable(&two)];
        let known = |check: &LastCheck, name: &str| {
            known(None, Some(check), images.iter(), &reference(name))
        };
        let os = "docker://r.test/os:1";
        let through_index = known(&check(&two, index.as_str()), os).unwrap();
        assert_eq!(through_index.digest, two);
        assert_eq!(through_index.served(), &index);
        let alone = known(&check(&one, one.as_str()), os).unwrap();
        assert_eq!((alone.served(), &alone.index_digest), (&one, &None));

        // Of another reference, of an image that is gone, or written by an older version.
        assert!(known(&check(&one, one.as_str()), "docker://r.test/os:2").is_none());
        assert!(known(&check(&index, index.as_str()), os).is_none());
        assert!(known(&check(&one, ""), os).is_none());
    }

    #[test]
    fn a_commit_that_lacks_the_configuration_is_not_enough() {
        let digest = Digest::of(b"1");
        let images = [image(digest.as_str(), "")];
        let check = check(&digest, digest.as_str());
        let reference = reference("docker://r.test/os:1");
        assert!(known(None, Some(&check), images.iter(), &reference).is_none());
    }

    #[test]
    fn what_this_process_found_comes_first() {
        let [old, new] = [b"1", b"2"].map(|text| Digest::of(text));
        let images = [bootable(&old)];
        let os = reference("docker://r.test/os:1");
        let found = Candidate {
            image: Arc::new(bootable(&new)),
            reference: os.clone(),
            found_at: 1,
            layers_missing: None,
            download_size: None,
        };
        let check = check(&old, old.as_str());
        let known = |found: &Candidate| {
            let image = known(Some(found.clone()), Some(&check), images.iter(), &os);
            image.map(|image| image.digest.clone())
        };
        assert_eq!(known(&found), Some(new));
        let elsewhere = Candidate {
            reference: reference("docker://r.test/os:2"),
            ..found
        };
        assert_eq!(known(&elsewhere), Some(old));
    }
}
