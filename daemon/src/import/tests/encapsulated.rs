//! Images with an ostree base, and labels by the image's own policy.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn changed_objects_of_the_images_own_repository_reach_their_links() {
    let object = "sysroot/ostree/repo/objects/ab/cdef.file";
    let modified = |kind, path: &str, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(17);
        header.set_size(content.len() as u64);
        (header, path.to_owned(), link.to_owned(), content.to_vec())
    };
    let mut builder = Tar::new();
    for (mut header, path, link, content) in [
        modified(tar::EntryType::Regular, object, "", b"changed"),
        modified(tar::EntryType::Link, "usr/a", object, b""),
        modified(tar::EntryType::Link, "etc/b", object, b""),
        modified(
            tar::EntryType::Link,
            "usr/c",
            "sysroot/ostree/repo/objects/other",
            b"",
        ),
    ] {
        if link.is_empty() {
            builder
                .0
                .append_data(&mut header, path, content.as_slice())
                .unwrap();
        } else {
            builder.0.append_link(&mut header, path, link).unwrap();
        }
    }
    let mut host = Host::new();
    let test = TestImage::default().layer(Compression::Gzip, builder);
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    assert_eq!(host.content(&tree, "usr/a").as_deref(), Some("changed"));
    assert_eq!(host.content(&tree, "usr/etc/b").as_deref(), Some("changed"));
    assert_eq!(host.content(&tree, "usr/c"), None);
    assert!(!tree.dirs.contains_key("sysroot"));
}

/// The tar of an object layer.
struct Objects(Tar);

impl Objects {
    fn path(id: &str, suffix: &str) -> String {
        format!(
            "sysroot/ostree/repo/objects/{}/{}.{suffix}",
            &id[..2],
            &id[2..]
        )
    }

    fn metadata(self, id: &str, kind: &str, variant: &glib::Variant) -> Self {
        let path = Self::path(id, kind);
        Self(
            self.0
                .entry(tar::EntryType::Regular, &path, "", variant.data()),
        )
    }

    /// A file without attributes, in the current format or in the older one.
    fn file(self, id: &str, content: &[u8], old: bool) -> Self {
        let none = super::objects::xattrs_variant(&Vec::new());
        let xattrs = hex(&super::objects::sha256(none.data()));
        let (stored, link) = if old {
            (
                format!("sysroot/ostree/repo/xattrs/{xattrs}"),
                Self::path(id, "file.xattrs"),
            )
        } else {
            (
                Self::path(&xattrs, "file-xattrs"),
                Self::path(id, "file-xattrs-link"),
            )
        };
        let tar = self
            .0
            .entry(tar::EntryType::Regular, &stored, "", none.data());
        let tar = tar.hard_link(&link, &stored);
        Self(tar.entry(
            tar::EntryType::Regular,
            &Self::path(id, "file"),
            "",
            content,
        ))
    }
}

/// A commit of `/usr/lib/<name>` in a repository of its own, and its layers: commit and chunk.
pub(super) fn encapsulated(name: &str, damaged: bool) -> (String, TestImage) {
    let source = Host::new();
    let repo = source.repo();
    let cancellable = gio::Cancellable::new();
    let attributes = super::objects::Attributes {
        mode: super::objects::S_IFREG | 0o644,
        ..super::objects::Attributes::default_directory()
    };
    let mut transaction = Transaction::begin(&repo, &cancellable).unwrap();
    let file = |content: &str| {
        let mut bytes = super::objects::file_header(&attributes, "");
        bytes.extend_from_slice(content.as_bytes());
        super::objects::Payload::Memory(bytes)
            .write(&repo, &cancellable)
            .unwrap()
    };
    let (one, two) = (file("one"), file("two"));
    let default = super::objects::Attributes::default_directory();
    let meta = transaction.dirmeta(&default).unwrap();
    let mut lib = Dir::new(meta);
    lib.files.insert(name.into(), one);
    lib.files.insert("two".into(), two);
    let mut usr = Dir::new(meta);
    usr.dirs.insert("lib".into(), lib.clone());
    let mut root = Dir::new(meta);
    root.dirs.insert("usr".into(), usr.clone());
    let commit = transaction
        .write_commit(&root, None, &no_metadata(), 5)
        .unwrap();
    let trees = [&root, &usr, &lib].map(|dir| hex(&transaction.dirtree(dir).unwrap()));
    transaction.commit().unwrap();
    let load = |kind, id: &str| repo.load_variant(kind, id).unwrap();
    let mut first = Objects(Tar::new().dir("sysroot/"))
        .metadata(&commit, "commit", &load(ObjectType::Commit, &commit))
        .metadata(
            &hex(&meta),
            "dirmeta",
            &load(ObjectType::DirMeta, &hex(&meta)),
        );
    for tree in &trees {
        first = first.metadata(tree, "dirtree", &load(ObjectType::DirTree, tree));
    }
    first = first.file(&hex(&two), b"two", false);
    let content: &[u8] = if damaged { b"0ne" } else { b"one" };
    let chunk = Objects(Tar::new())
        .file(&hex(&one), content, true)
        .0
        .bytes();
    let last = Digest::of(&chunk);
    let image = TestImage::default()
        .label("ostree.final-diffid", last.as_str())
        .layer(Compression::Gzip, first.0)
        .blob(Compression::Gzip, compress(Compression::Gzip, &chunk), last);
    (commit, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encapsulated_base_comes_back_as_the_commit_it_was() {
    let (base, image) = encapsulated("one", false);
    let test = image.layer(
        Compression::Zstd,
        Tar::new()
            .file("usr/lib/three", "three")
            .file("usr/lib/.wh.two", "")
            .file("opt/x", "x"),
    );
    let mut host = Host::new();
    let imported = host.import(&test).await.unwrap();
    let layers = test.image().layers;
    let commit = |index: usize| resolve(&host.repo(), &blob_ref(&layers[index].digest)).unwrap();
    assert_eq!(commit(0), Some(base.clone()));
    let chunk = host.tree(&commit(1).unwrap());
    let name = chunk.files.keys().next().unwrap();
    assert_eq!(hex(&chunk.files[name]), **name);
    let tree = host.tree(&imported.commit);
    assert_eq!(host.content(&tree, "usr/lib/one").as_deref(), Some("one"));
    assert_eq!(host.content(&tree, "usr/lib/two"), None);
    assert_eq!(
        host.content(&tree, "usr/lib/three").as_deref(),
        Some("three")
    );
    assert!(!tree.dirs.contains_key("opt"), "this base does not show it");
    let (variant, _) = host.repo().load_commit(&imported.commit).unwrap();
    assert_eq!(
        ostree::commit_get_parent(&variant).as_deref(),
        Some(base.as_str())
    );
    host.fsck();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_fails_the_base() {
    let (base, test) = encapsulated("one", true);
    let mut host = Host::new();
    let error = host.import(&test).await.unwrap_err();
    assert!(
        matches!(&error, Error::Layer { reason, .. } if reason.contains("is really")),
        "{error}"
    );
    assert_eq!(host.refs(), [guard(&test)]);
    assert!(host.repo().load_commit(&base).is_err());
    host.fsck();
}

/// The security labels of a file and of the directory that holds it.
fn label(host: &Host, tree: &Dir, path: &[&str], name: &str) -> (Option<String>, String) {
    let repo = host.repo();
    let dir = tree.dir(path).unwrap();
    let find = |xattrs: glib::Variant| {
        super::objects::xattrs_from_variant(&xattrs)
            .into_iter()
            .find(|(name, _)| name == b"security.selinux\0")
            .map(|(_, value)| String::from_utf8(value).unwrap())
    };
    let file = repo
        .query_file(&hex(&dir.files[name]), gio::Cancellable::NONE)
        .unwrap()
        .1;
    let dir = repo
        .load_variant(ObjectType::DirMeta, &hex(&dir.meta))
        .unwrap();
    (find(file), find(dir.child_value(3)).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_of_the_image_labels_the_tree_and_its_layers() {
    let contexts = "/.* system_u:object_r:default_t:s0\n\
                    /usr/bin(/.*)? system_u:object_r:bin_t:s0\n\
                    /usr/share/plain -- <<none>>\n";
    let policy = Tar::new()
        .file(
            "etc/selinux/config",
            "SELINUX=enforcing\nSELINUXTYPE=tiny\n",
        )
        .file("etc/selinux/tiny/contexts/files/file_contexts", contexts)
        .file("etc/selinux/tiny/policy/policy.33", "not read")
        .file("usr/share/plain", "plain")
        .file("usr/bin/large", &"x".repeat(3_000_000));
    let test = TestImage::default()
        .layer(
            Compression::Gzip,
            Tar::new()
                .file("usr/bin/a", "same")
                .file("usr/lib/a", "same"),
        )
        .layer(Compression::Gzip, policy)
        .layer(
            Compression::Gzip,
            Tar::new().file("usr/bin/b", "b").symlink("usr/bin/l", "b"),
        );
    let mut host = Host::new();
    let imported = host.import(&test).await.unwrap();
    let tree = host.tree(&imported.commit);
    let bin = "system_u:object_r:bin_t:s0\0";
    let default = "system_u:object_r:default_t:s0\0";
    for (path, name, file, dir) in [
        ("bin", "a", Some(bin), bin),
        ("bin", "large", Some(bin), bin),
        ("bin", "l", Some(bin), bin),
        ("lib", "a", Some(default), default),
        ("share", "plain", None, default),
    ] {
        let found = label(&host, &tree, &["usr", path], name);
        assert_eq!(
            found,
            (file.map(str::to_owned), dir.to_owned()),
            "{path}/{name}"
        );
    }
    for layer in &test.image().layers {
        let commit = resolve(&host.repo(), &blob_ref(&layer.digest))
            .unwrap()
            .unwrap();
        let layer = host.tree(&commit);
        for (name, id) in &layer.dirs["usr"].dirs["bin"].files {
            assert_eq!(tree.dirs["usr"].dirs["bin"].files[name], *id, "{name}");
        }
    }
    host.fsck();
    // Labels that are right already cost nothing.
    let again = host.import(&test.label("x", "y")).await.unwrap();
    assert_eq!(host.tree(&again.commit), tree);
}
