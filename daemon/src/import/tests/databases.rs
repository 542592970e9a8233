//! Package databases in commits, and in layers of images that are not here.

use super::*;
use crate::packages::Inventory;

/// dpkg's database with packages `name version`.
fn status(packages: &[&str]) -> String {
    let stanzas = packages.iter().map(|words| {
        let (name, version) = words.split_once(' ').unwrap();
        format!(
            "Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: {version}\n"
        )
    });
    stanzas.collect::<Vec<_>>().join("\n")
}

fn one_layer(tar: Tar) -> TestImage {
    TestImage::default().layer(Compression::Gzip, tar)
}

fn shown(inventory: &Inventory) -> Vec<String> {
    let words = inventory.packages.iter().map(|package| {
        let (manager, name) = (package.manager, &package.name);
        format!("{manager} {name} {}", package.version)
    });
    words.collect()
}

/// Imports the image and reads what is installed in it.
async fn installed_in(tar: Tar) -> Result<Inventory, Error> {
    let mut host = Host::new();
    let imported = host.import(&one_layer(tar)).await?;
    installed(host.dir.path(), &imported.commit)
}

/// The place of the database of an image whose `/var` is kept or not, as the running libostree
/// has it.
fn in_var(path: &str) -> String {
    match ostree::check_version(2024, 3) {
        true => format!("var/{path}"),
        false => format!("usr/share/factory/var/{path}"),
    }
}

#[tokio::test]
async fn the_database_is_found_through_links_and_wherever_var_is() {
    let moved = Tar::new()
        .file("usr/lib/sysimage/dpkg/status", &status(&["a 1", "b 2"]))
        .symlink("var/lib/dpkg", "../../usr/lib/sysimage/dpkg")
        .file("usr/lib/modules/6.1.0-1/modules.dep", "")
        .file("usr/lib/modules/6.1.0-2/vmlinuz", "kernel");
    let inventory = installed_in(moved).await.unwrap();
    assert_eq!(shown(&inventory), ["dpkg a 1", "dpkg b 2"]);
    assert_eq!(inventory.databases, ["usr/lib/sysimage/dpkg/status"]);
    assert_eq!(inventory.kernel, "6.1.0-2");
    assert!(inventory.whole);

    let in_place = Tar::new().file("var/lib/dpkg/status", &status(&["a 1"]));
    let inventory = installed_in(in_place).await.unwrap();
    assert_eq!(shown(&inventory), ["dpkg a 1"]);
    assert_eq!(inventory.databases, [in_var("lib/dpkg/status")]);

    let link = Tar::new()
        .file("usr/share/packages/installed", "P:musl\nV:1.2-r0\n\n")
        .symlink("lib", "usr/lib")
        .symlink("usr/lib/apk/db", "/usr/share/packages");
    let inventory = installed_in(link).await.unwrap();
    assert_eq!(shown(&inventory), ["apk musl 1.2-r0"]);
    assert_eq!(inventory.databases, ["usr/share/packages/installed"]);
}

#[tokio::test]
async fn files_of_single_packages_and_several_managers_make_one_list() {
    let part = "Package: tzdata\nVersion: 2024a\nArchitecture: all\n";
    let tar = Tar::new()
        .file("var/lib/dpkg/status.d/tzdata", part)
        .file("var/lib/dpkg/status.d/tzdata.md5sums", "no stanza")
        .file("lib/apk/db/installed", "P:musl\nV:1.2-r0\n\n");
    let inventory = installed_in(tar).await.unwrap();
    assert_eq!(shown(&inventory), ["dpkg tzdata 2024a", "apk musl 1.2-r0"]);
    let nothing = installed_in(Tar::new().file("usr/bin/sh", ""))
        .await
        .unwrap();
    assert!(nothing.databases.is_empty() && nothing.packages.is_empty());
}

#[tokio::test]
async fn a_list_that_would_be_incomplete_is_an_error() {
    let good = || Tar::new().file("usr/lib/sysimage/dpkg/status", &status(&["a 1"]));
    let database = "usr/share/rpm/rpmdb.sqlite";
    let log = format!("{database}-wal");
    for (tar, words) in [
        (good().file("usr/lib/sysimage/rpm/Packages.db", "x"), "NDB"),
        (good().file("var/lib/rpm/Packages", "x"), "Berkeley DB"),
        (
            good().file(database, "SQLite").file(&log, "x"),
            "did not close",
        ),
        (good().file(database, "SQLite").file(&log, ""), "damaged"),
        (
            good().file(database, &"x".repeat(5000)),
            "no SQLite database",
        ),
        (good().file("lib/apk/db/installed", "P:a\n"), "no version"),
    ] {
        let error = installed_in(tar).await.unwrap_err();
        let is_own = matches!(error, Error::Packages(_));
        assert!(is_own && error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn the_commit_of_an_image_is_found_but_no_placeholder() {
    let mut host = Host::new();
    let (first, second) = (three_layers(), one_layer(Tar::new().file("usr/x", "x")));
    let imported = host.import(&first).await.unwrap();
    let fails: Arc<dyn Fetch> = Arc::new(|_: &Layer| {
        let gone = || image::Error::NotSupported("gone".into());
        async move { Err(gone()) }.boxed()
    });
    host.import_with(&second, fails).await.unwrap_err();
    let commit = |image: &TestImage| commit_of(host.dir.path(), &image.image().digest).unwrap();
    assert_eq!(commit(&first), Some(imported.commit));
    assert_eq!(commit(&second), None);
}

const DATABASE: &str = "usr/lib/sysimage/dpkg/status";

fn database(packages: &[&str]) -> Tar {
    Tar::new().file(DATABASE, &status(packages))
}

/// Looks at `image` on a host that has `here`; `at_most`: compressed bytes that may be fetched.
/// Tells what was found and how many layers were asked for.
async fn peeked(
    here: &TestImage,
    image: &TestImage,
    at_most: u64,
) -> (Result<Option<Inventory>, Error>, usize) {
    let mut host = Host::new();
    host.import(here).await.unwrap();
    let before = host.refs();
    let (asked, serve) = (Arc::new(AtomicUsize::new(0)), memory(image));
    let counter = asked.clone();
    let fetch: Arc<dyn Fetch> = Arc::new(move |layer: &Layer| {
        counter.fetch_add(1, Ordering::Relaxed);
        serve.whole(layer, 0)
    });
    let scratch = tempfile::tempdir().unwrap();
    let found = peek(Peek {
        repo_path: host.dir.path().to_owned(),
        image: Arc::new(image.image()),
        databases: vec![DATABASE.to_owned()],
        fetch,
        at_most,
        scratch: scratch.path().to_owned(),
        cancel: host.cancel.clone(),
    })
    .await;
    assert_eq!(host.refs(), before, "nothing is written");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    (found, asked.load(Ordering::Relaxed))
}

/// What a large layer has: nothing that compresses.
fn large() -> Tar {
    let mut random = fastrand::Rng::with_seed(1);
    let noise: String = (0..100_000).map(|_| random.alphanumeric()).collect();
    Tar::new().file("usr/large", &noise)
}

#[tokio::test]
async fn the_uppermost_layer_with_the_database_tells_and_what_is_below_is_not_fetched() {
    let here = one_layer(database(&["a 1"]));
    let gz = Compression::Gzip;
    let image = |layers: Vec<Tar>| {
        let layers = layers.into_iter();
        layers.fold(TestImage::default(), |image, tar| image.layer(gz, tar))
    };
    let base = || database(&["a 1"]);
    for (layers, expected, fetched) in [
        // Here, under a missing small one without it and over a missing large one.
        (
            vec![large(), base(), Tar::new().file("usr/x", "x")],
            "a 1",
            1,
        ),
        // Small, missing, on top of the one that is here.
        (vec![base(), database(&["a 2"])], "a 2", 1),
        (
            vec![
                base(),
                database(&["a 2"]),
                Tar::new().dir("usr/lib/sysimage/"),
            ],
            "a 2",
            2,
        ),
        // As builders write it who replace the directory.
        (
            vec![
                base(),
                database(&["a 3"]).file("usr/lib/sysimage/.wh..wh..opq", ""),
            ],
            "a 3",
            1,
        ),
    ] {
        let (found, asked) = peeked(&here, &image(layers), 10_000).await;
        let found = found.unwrap().expect("it can be told");
        assert_eq!(shown(&found), [format!("dpkg {expected}")]);
        assert!(!found.whole && found.databases == [DATABASE]);
        assert_eq!(asked, fetched, "{expected}");
    }
    for (layers, fetched) in [
        // Whatever is in the large one.
        (vec![base(), large()], 0),
        (vec![Tar::new().file("usr/x", "x")], 1),
        (
            vec![
                base(),
                Tar::new().file("usr/lib/sysimage/dpkg/.wh.status", ""),
            ],
            1,
        ),
        (vec![base(), Tar::new().file("usr/lib/.wh.sysimage", "")], 1),
        (vec![base(), Tar::new().file("usr/lib/.wh..wh..opq", "")], 1),
        (
            vec![base(), Tar::new().symlink("usr/lib/sysimage", "../share")],
            1,
        ),
        (vec![base(), Tar::new().symlink(DATABASE, "elsewhere")], 1),
        (
            vec![base(), Tar::new().file(&format!("{DATABASE}-wal"), "x")],
            1,
        ),
    ] {
        let (found, asked) = peeked(&here, &image(layers), 10_000).await;
        assert_eq!(found.unwrap(), None);
        assert_eq!(asked, fetched);
    }
}

#[tokio::test]
async fn layers_that_are_here_hide_in_the_same_ways() {
    for tar in [
        Tar::new().file("usr/lib/sysimage/dpkg/.wh.status", ""),
        Tar::new().file("usr/lib/.wh.sysimage", ""),
        Tar::new().file("usr/lib/.wh..wh..opq", ""),
        Tar::new().symlink("usr/lib/sysimage", "../share"),
        Tar::new().symlink(DATABASE, "elsewhere"),
        Tar::new().dir(DATABASE),
        database(&["a 2"]).file(&format!("{DATABASE}-wal"), "x"),
    ] {
        let layers = TestImage::default().layer(Compression::Gzip, database(&["a 1"]));
        let layers = layers.layer(Compression::Gzip, tar);
        let (found, asked) = peeked(&layers, &layers, 0).await;
        assert_eq!((found.unwrap(), asked), (None, 0));
    }
}

#[tokio::test]
async fn a_layer_that_is_not_what_it_should_be_tells_nothing() {
    let here = one_layer(Tar::new().file("usr/x", "x"));
    let tar = database(&["a 1"]).bytes();
    let blob = compress(Compression::Gzip, &tar);
    let lying = TestImage::default().blob(Compression::Gzip, blob, Digest::of(b"other"));
    let (found, _) = peeked(&here, &lying, 10_000).await;
    assert!(
        matches!(found, Err(Error::DiffIdMismatch { .. })),
        "{found:?}"
    );
    let mut damaged = one_layer(database(&["a 1"]));
    for blob in damaged.blobs.values_mut() {
        let middle = blob.len() / 2;
        blob[middle] ^= 1;
    }
    let (found, _) = peeked(&here, &damaged, 10_000).await;
    assert!(
        matches!(found, Err(Error::DigestMismatch { .. })),
        "{found:?}"
    );
}
