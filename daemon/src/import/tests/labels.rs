//! Labels by the image's own policy: the same ones whatever is on the host already, and looked
//! up, read and written no more often than needed.

use super::encapsulated::encapsulated;
use super::guess::{Guess, labelled_by};
use super::label::Labeller;
use super::objects::{Attributes, S_IFREG, file_header, sha256};
use super::*;

const DEFAULT: &str = "system_u:object_r:default_t:s0";
/// What most of these images agree on.
const CONTEXTS: &str = "/.* system_u:object_r:default_t:s0\n\
                        /usr/bin(/.*)? system_u:object_r:bin_t:s0\n\
                        /usr/bin/kind -- system_u:object_r:file_t:s0\n\
                        /usr/bin/kind -l system_u:object_r:link_t:s0\n\
                        /usr/libexec(/.*)? system_u:object_r:bin_t:s0\n\
                        /usr/share/plain(/.*)? <<none>>\n";

/// A layer with a policy. Its binary part is the same whatever the labels are.
fn policy(contexts: &str) -> Tar {
    Tar::new()
        .file(
            "etc/selinux/config",
            "# a comment\nSELINUX=enforcing\nSELINUXTYPE=tiny\n",
        )
        .file("etc/selinux/tiny/contexts/files/file_contexts", contexts)
        .file("etc/selinux/tiny/policy/policy.33", "not read")
        .file("etc/selinux/tiny/active/modules/100/x/cil", "not copied")
}

fn system() -> Tar {
    Tar::new()
        .dir("usr/")
        .dir("usr/bin/")
        .file("usr/bin/old", "old")
        .file("usr/bin/kind", "a file")
        .file("usr/lib/old", "old")
        .file("usr/share/plain/old", "old")
        .symlink("bin", "usr/bin")
}

/// The files of the first image, and those of the next.
fn application(version: &str) -> Tar {
    Tar::new()
        .file("usr/libexec/app", version)
        .file("usr/libexec/large", &version.repeat(1_500_000))
        .file("usr/share/app/data", version)
}

/// What a later image adds: new and hidden paths, implied directories, other kinds of files
/// under the same name, and one object under two paths.
fn addition() -> Tar {
    Tar::new()
        .file("usr/bin/new", "new")
        .symlink("usr/bin/kind", "new")
        .file("usr/lib/implied/directory/file", "file")
        .hard_link("usr/lib/linked", "usr/bin/new")
        .hard_link("usr/share/plain/linked", "usr/bin/new")
        .file("usr/share/plain/new", "new")
        .file("usr/share/app/.wh.data", "")
}

fn image(contexts: &str, layers: impl IntoIterator<Item = Tar>) -> TestImage {
    let base = TestImage::default()
        .layer(Compression::Gzip, system())
        .layer(Compression::Gzip, policy(contexts));
    layers
        .into_iter()
        .fold(base, |image, layer| image.layer(Compression::Zstd, layer))
}

/// Imports the image into a repository that knows nothing, and into one that has `before`; both
/// come to the same trees. Tells what the latter took.
async fn upgrade(before: &TestImage, after: &TestImage) -> (Host, Imported) {
    let (mut fresh, mut host) = (Host::new(), Host::new());
    let expected = fresh.import(after).await.unwrap();
    host.import(before).await.unwrap();
    let found = host.import(after).await.unwrap();
    assert_eq!(host.tree(&found.commit), fresh.tree(&expected.commit));
    for layer in &after.image().layers {
        let tree = |host: &Host| host.tree(&commit_of_layer(host, layer));
        assert_eq!(tree(&host), tree(&fresh), "{}", layer.digest);
    }
    host.fsck();
    (host, found)
}

fn commit_of_layer(host: &Host, layer: &Layer) -> String {
    let name = blob_ref(&layer.digest);
    resolve(&host.repo(), &name).unwrap().unwrap()
}

/// The policies that the image's layers and its merge say they have the labels of.
fn marks(host: &Host, test: &TestImage, imported: &Imported) -> Vec<Option<String>> {
    let (repo, layers) = (host.repo(), test.image().layers);
    let layers = layers.iter().map(|layer| commit_of_layer(host, layer));
    let commits = layers.chain([imported.commit.clone()]);
    commits.map(|commit| labelled_by(&repo, &commit)).collect()
}

fn label(host: &Host, tree: &Dir, path: &str) -> Option<String> {
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent: Vec<_> = parent.split('/').collect();
    let id = &tree.dir(&parent).unwrap().files[name];
    super::label::inspect(&host.repo(), id).unwrap().label
}

/// Whether a file of root with these contents and without a label is in the repository.
fn has_unlabelled(host: &Host, content: &str) -> bool {
    let attributes = Attributes {
        mode: S_IFREG | 0o644,
        ..Attributes::default_directory()
    };
    let mut bytes = file_header(&attributes, "");
    bytes.extend_from_slice(content.as_bytes());
    let id = hex(&sha256(&bytes));
    host.repo()
        .has_object(ObjectType::File, &id, gio::Cancellable::NONE)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_labelled_already_is_not_looked_at_again() {
    let mut host = Host::new();
    let test = image(CONTEXTS, [application("1")]);
    let first = host.import(&test).await.unwrap();
    assert!(has_unlabelled(&host, "old"), "there was nothing to go by");
    assert!(first.labels.looked_up > 0 && first.labels.rewritten > 0);
    let again = test.label("x", "y");
    let second = host.import(&again).await.unwrap();
    assert_eq!(second.layers_written, 0);
    // No layer has `/var`.
    let expected = Labels {
        looked_up: 1,
        ..Labels::default()
    };
    assert_eq!(second.labels, expected);
    assert_eq!(host.tree(&second.commit), host.tree(&first.commit));
    let marks = marks(&host, &again, &second);
    assert!(marks[0].is_some(), "{marks:?}");
    assert!(marks.iter().all(|mark| *mark == marks[0]), "{marks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_same_policy_objects_are_written_once_with_their_labels() {
    let before = image(CONTEXTS, [application("1")]);
    let after = image(CONTEXTS, [application("2"), addition()]);
    let (host, imported) = upgrade(&before, &after).await;
    // New files and directories, a file that became a link, and hard links; the rest is known
    // by the image before, and the merge does not ask again.
    let expected = Labels {
        looked_up: 10,
        inspected: 0,
        rewritten: 0,
    };
    assert_eq!(imported.labels, expected);
    for content in ["2", "new", "file"] {
        let is_plain = content == "new";
        assert_eq!(has_unlabelled(&host, content), is_plain, "{content}");
    }
    let tree = host.tree(&imported.commit);
    for (path, expected) in [
        ("usr/bin/new", Some("system_u:object_r:bin_t:s0")),
        ("usr/bin/kind", Some("system_u:object_r:link_t:s0")),
        ("usr/libexec/large", Some("system_u:object_r:bin_t:s0")),
        ("usr/lib/linked", Some(DEFAULT)),
        ("usr/share/plain/linked", None),
        ("usr/share/plain/new", None),
    ] {
        assert_eq!(label(&host, &tree, path).as_deref(), expected, "{path}");
    }
    let marks = marks(&host, &after, &imported);
    assert!(marks[0].is_some() && marks.iter().all(|mark| *mark == marks[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_policy_corrects_what_it_labels_otherwise() {
    let before = image(CONTEXTS, [application("1")]);
    let others = CONTEXTS
        .replace(
            "/usr/libexec(/.*)? system_u:object_r:bin_t:s0",
            "/usr/libexec(/.*)? <<none>>",
        )
        .replace("file_t", "other_t");
    let after = image(&others, [application("2"), addition()]);
    let (host, imported) = upgrade(&before, &after).await;
    // `kind` of the lowest layer, and what was written by the wrong guess: `app`, `large`.
    assert_eq!(imported.labels.rewritten, 3);
    let tree = host.tree(&imported.commit);
    assert_eq!(label(&host, &tree, "usr/libexec/app"), None);
    // The binary policies are equal, and yet these are two.
    let mut other = Host::new();
    let first = other.import(&before).await.unwrap();
    let (old, new) = (
        marks(&other, &before, &first),
        marks(&host, &after, &imported),
    );
    assert!(new[0].is_some() && new.iter().all(|mark| *mark == new[0]));
    assert_ne!(old[0], new[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_gets_its_labels_in_the_merge_unless_it_has_them() {
    let image = |layers: Vec<Tar>| {
        let (_, base) = encapsulated("one", false);
        let layers = [policy(CONTEXTS)].into_iter().chain(layers);
        layers.fold(base, |image, layer| image.layer(Compression::Gzip, layer))
    };
    let after = image(vec![application("1")]);
    let (host, imported) = upgrade(&image(Vec::new()), &after).await;
    // The base has none: two files and three directories. The new layer has three of each.
    let expected = Labels {
        looked_up: 11,
        inspected: 2,
        rewritten: 2,
    };
    assert_eq!(imported.labels, expected);
    let mut root = host.tree(&imported.commit);
    assert_eq!(label(&host, &root, "usr/lib/one").as_deref(), Some(DEFAULT));
    // As if the base were what it has become.
    let (repo, cancellable) = (host.repo(), gio::Cancellable::new());
    let name = "docker://localhost:5000/os:1".parse().unwrap();
    let guess = Guess::load(&repo, &name, &cancellable).unwrap();
    let mut transaction = Transaction::begin(&repo, &cancellable).unwrap();
    let labeller = Labeller::load(&transaction, &root, Some(&guess)).unwrap();
    let (mut labeller, known) = (labeller.unwrap(), guess.reference().unwrap());
    let is_pure = labeller.label_tree(&mut transaction, &mut root, &[known], None);
    assert!(is_pure.unwrap());
    assert_eq!(labeller.took(), Labels::default());
    labeller
        .label_tree(&mut transaction, &mut root, &[], None)
        .unwrap();
    let took = labeller.took();
    assert!(took.inspected > 5 && took.rewritten == 0, "{took:?}");
    assert_eq!(root, *known);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_the_image_where_the_policy_wants_none_stay_and_are_nothing_to_go_by() {
    let own: &[(&str, &[u8])] = &[(
        "SCHILY.xattr.security.selinux",
        b"system_u:object_r:own_t:s0",
    )];
    let labelled = |version: &str| {
        Tar::new()
            .pax(own)
            .file("usr/share/plain/own", version)
            .pax(own)
            .file("usr/bin/own", version)
    };
    let before = || image(CONTEXTS, [labelled("1")]);
    let after = image(
        CONTEXTS,
        [labelled("2"), Tar::new().file("usr/share/plain/own", "3")],
    );
    let (host, imported) = upgrade(&before(), &after).await;
    let tree = host.tree(&imported.commit);
    assert_eq!(label(&host, &tree, "usr/share/plain/own"), None);
    assert_eq!(
        label(&host, &tree, "usr/bin/own").as_deref(),
        Some("system_u:object_r:bin_t:s0")
    );
    let marks = marks(&host, &after, &imported);
    assert_eq!((marks[2].as_ref(), marks[4].as_ref()), (None, None));
    let (host, imported) = upgrade(&before(), &before().label("x", "y")).await;
    let tree = host.tree(&imported.commit);
    assert_eq!(
        label(&host, &tree, "usr/share/plain/own").as_deref(),
        Some("system_u:object_r:own_t:s0")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_off_costs_nothing() {
    for config in [
        "SELINUX=disabled\nSELINUXTYPE=tiny\n",
        "",
        "SELINUXTYPE=tiny\n",
    ] {
        let off = |version: &str| {
            let off = policy(CONTEXTS).file("etc/selinux/config", config);
            TestImage::default()
                .layer(Compression::Gzip, system())
                .layer(Compression::Gzip, off)
                .layer(Compression::Gzip, application(version))
        };
        let (host, imported) = upgrade(&off("1"), &off("2")).await;
        assert_eq!(imported.labels, Labels::default());
        assert!(has_unlabelled(&host, "2"));
        assert_eq!(
            label(&host, &host.tree(&imported.commit), "usr/bin/old"),
            None
        );
        let name = "docker://localhost:5000/os:1".parse().unwrap();
        let guess = Guess::load(&host.repo(), &name, &gio::Cancellable::new());
        assert!(guess.is_none());
        let marks = marks(&host, &off("2"), &imported);
        assert!(marks.iter().all(Option::is_none));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_come_and_go_with_the_policy() {
    let without = || {
        TestImage::default()
            .layer(Compression::Gzip, system())
            .layer(Compression::Zstd, application("1"))
    };
    let (_, imported) = upgrade(&without(), &image(CONTEXTS, [application("1")])).await;
    assert!(imported.labels.rewritten > 0);
    // A guess that turns out to be wrong altogether.
    let mut host = Host::new();
    host.import(&image(CONTEXTS, [])).await.unwrap();
    let imported = host.import(&without()).await.unwrap();
    assert_eq!(imported.labels, Labels::default());
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_no_guess() {
    let mut host = Host::new();
    let imported = host.import(&image(CONTEXTS, [])).await.unwrap();
    let tree = host.tree(&imported.commit);
    let config = tree.dir(&["usr", "etc", "selinux"]).unwrap().files["config"];
    let id = hex(&config);
    let object = format!("objects/{}/{}.file", &id[..2], &id[2..]);
    std::fs::remove_file(host.dir.path().join(object)).unwrap();
    let name = "docker://localhost:5000/os:1".parse().unwrap();
    let guess = Guess::load(&host.repo(), &name, &gio::Cancellable::new());
    assert!(guess.is_none());
    let test = TestImage::default().layer(Compression::Gzip, application("1"));
    host.import(&test).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_the_copies_of_a_policy() {
    let (host, _) = upgrade(
        &image(CONTEXTS, [application("1")]),
        &image(&CONTEXTS.replace("bin_t", "other_t"), [application("2")]),
    )
    .await;
    let names = std::fs::read_dir(host.dir.path().join("tmp")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = names.filter(|name| name.contains("policy")).collect();
    assert!(left.is_empty(), "{left:?}");
}
