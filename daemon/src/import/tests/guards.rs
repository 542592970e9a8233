//! What keeps images that are not deployed, and for how long.

use super::*;
use crate::image::reference::BASEIMAGE_PREFIX;

fn named(name: &str) -> TestImage {
    TestImage::default().layer(Compression::Plain, Tar::new().file("usr/name", name))
}

/// Its only layer never arrives whole.
fn half(name: &str) -> TestImage {
    let mut test = named(name);
    test.blobs.values_mut().for_each(|blob| blob[1000] ^= 1);
    test
}

fn set(host: &Host, name: &str, commit: &str) {
    let repo = host.repo();
    repo.set_ref_immediate(None, name, Some(commit), gio::Cancellable::NONE)
        .unwrap();
}

/// All guards, ours and others'.
fn guards(host: &Host) -> Vec<String> {
    let mut refs = host.refs();
    refs.retain(|name| name.starts_with("ostree/container/baseimage"));
    refs
}

fn sorted<const N: usize>(mut names: [String; N]) -> [String; N] {
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_stays_while_somebody_needs_it() {
    let (first, second, third) = (named("first"), half("second"), named("third"));
    let mut host = Host::new();
    let commit = host.import(&first).await.unwrap().commit;
    assert_eq!(guards(&host), [guard(&first)]);
    let foreign = "ostree/container/baseimage/bootc/0".to_owned();
    set(&host, &foreign, &commit);
    // As an earlier version named its only one.
    set(&host, &format!("{BASEIMAGE_PREFIX}/0"), &commit);

    host.needed = vec![first.image().digest];
    host.import(&second).await.unwrap_err();
    let expected = [foreign.clone(), guard(&first), guard(&second)];
    assert_eq!(guards(&host), sorted(expected));

    host.needed = vec![second.image().digest];
    let commit = host.import(&third).await.unwrap().commit;
    let expected = [foreign.clone(), guard(&second), guard(&third)];
    assert_eq!(guards(&host), sorted(expected));
    let resolved = |name: &str| resolve(&host.repo(), name).unwrap().unwrap();
    assert_eq!(resolved(&guard(&third)), commit);
    let kept = stored_image(&host.repo(), &resolved(&guard(&second))).unwrap();
    assert_eq!(kept.digest, second.image().digest);

    // Also by an import that finds everything here.
    host.needed.clear();
    let again = host.import(&third).await.unwrap();
    assert_eq!((again.commit, again.layers_written), (commit, 0));
    assert_eq!(guards(&host), sorted([foreign, guard(&third)]));
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deployed_is_not_made_again_when_the_tag_comes_back() {
    let (first, second) = (named("first"), named("second"));
    let mut host = Host::new();
    let commit = host.import(&first).await.unwrap().commit;
    set(&host, "ostree/0/1/0", &commit);
    let other = host.import(&second).await.unwrap().commit;
    assert_ne!(commit, other);
    assert_eq!(guards(&host), [guard(&second)]);

    let again = host.import(&first).await.unwrap();
    assert_eq!((again.commit.as_str(), again.layers_written), (&*commit, 0));
    assert!(host.recorder.steps.lock().unwrap().is_empty(), "composed");
    let name = host
        .refs()
        .into_iter()
        .find(|name| name.starts_with("ostree/container/image/"));
    let named = resolve(&host.repo(), &name.unwrap()).unwrap();
    assert_eq!(
        (named, guards(&host)),
        (Some(commit.clone()), vec![guard(&first)])
    );

    // Half of an image is none, whoever has deployed it.
    host.import(&second).await.unwrap();
    let layer = &first.image().layers[0];
    let repo = host.repo();
    repo.set_ref_immediate(None, &blob_ref(&layer.digest), None, gio::Cancellable::NONE)
        .unwrap();
    let made = host.import(&first).await.unwrap();
    assert!(!host.recorder.steps.lock().unwrap().is_empty());
    assert_eq!(made.commit, commit);
    host.fsck();
}
