//! Images that carry an ostree commit in chunks: what ostree-ext makes of them is what we make of them.

#[cfg(test)]
mod encapsulated {
    use std::fs;
    use std::path::Path;

    use anyhow::{Context, Result};
    use osteward_tests::host::Host;
    use osteward_tests::image::{Image, Layer, Written, os_tree};
    use osteward_tests::oracle;
    use osteward_tests::process::{command, run};
    use osteward_tests::sandbox::refs::{blob_ref, image_ref};

    /// A system with everything that an object can be: large, empty, linked, owned by others, with attributes
    /// and with bits that matter.
    fn tree(version: &str) -> Layer {
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        os_tree(version)
            .dir("usr/lib/large")
            .file("usr/lib/large/file", large)
            .file("usr/lib/large/medium", vec![7; 200_000])
            .dir("usr/lib/attributes")
            .file("usr/lib/attributes/capable", "c")
            .xattr("security.capability", &capability)
            .file("usr/lib/attributes/noted", "n")
            .xattr("user.note", b"a=b")
            .dir("usr/lib/odd")
            .file("usr/lib/odd/empty", "")
            .file("usr/lib/odd/setuid", "s")
            .mode(0o4755)
            .file("usr/lib/odd/owned", "o")
            .owner(7, 9)
            .symlink("usr/lib/odd/link", "../large/file")
            .dir("usr/lib/version")
            .file("usr/lib/version/number", version)
    }

    /// A chunked base of that tree in the host's layout.
    fn base(host: &Host, version: &str, epoch: u32) -> Result<Written> {
        let dir = tempfile::tempdir_in(host.sandbox.share())?;
        let (repo, tar) = (dir.path().join("repo"), dir.path().join("tree.tar"));
        run(command(["ostree", "init", "--mode=bare", "--repo"]).arg(&repo))?;
        tree(version).write_tar(&mut fs::File::create(&tar)?)?;
        let words = [
            "ostree",
            "commit",
            "--no-bindings",
            "--orphan",
            "--tar-autocreate-parents",
            "--tar-pathname-filter=^etc(/|$),usr/etc\\1",
            "--add-metadata-string=version=1",
        ];
        let commit = run(command(words).args([
            format!("--repo={}", repo.display()),
            format!("--tree=tar={}", tar.display()),
            format!("--timestamp=@{epoch}"),
        ]))?;
        let tag = format!("base-{version}");
        oracle::encapsulate_chunked(&repo, commit.trim(), &host.layout.path, &tag)?;
        host.layout.find(&tag)
    }

    fn checksum(repo: &Path, name: &str) -> Result<String> {
        let repo = format!("--repo={}", repo.display());
        let checksum = run(&mut command(["ostree", &repo, "rev-parse", name]))?;
        Ok(checksum.trim().to_owned())
    }

    /// Compares what is in the host's repository with what the oracle imports of the published image.
    fn same_as_the_oracle(host: &Host, objects: usize, image: &Written) -> Result<()> {
        let dir = tempfile::tempdir_in(host.sandbox.share())?;
        let theirs = dir.path().join("repo");
        run(command(["ostree", "init", "--mode=bare", "--repo"]).arg(&theirs))?;
        let place = format!("oci:{}:latest", host.layout.path.display());
        let imported = oracle::import_as(&theirs, &place, &host.source())?;
        let ours = host.sandbox.repo();
        let stored = oracle::query(&ours, &host.source())?.context("no image ref")?;
        assert_eq!(
            (&stored.root_contents, &stored.root_metadata),
            (&imported.root_contents, &imported.root_metadata),
            "{:#?}",
            host.differences(&stored.merge_commit)?
        );
        assert_eq!(stored.base_commit, imported.base_commit);
        assert_eq!(stored.manifest_digest, imported.manifest_digest);
        // The commits of object layers have no time and no importer in them.
        for layer in &image.layers[..objects] {
            let name = blob_ref(layer);
            assert_eq!(
                checksum(&ours, &name)?,
                checksum(&theirs, &name)?,
                "{layer}"
            );
        }
        for layer in &image.layers[objects..] {
            let root = |repo: &Path| {
                let repo = format!("--repo={}", repo.display());
                let name = blob_ref(layer);
                run(&mut command(["ostree", &repo, "ls", "-RXC", &name]))
            };
            assert_eq!(root(&ours)?, root(&theirs)?, "{layer}");
        }
        let mut refs = host.sandbox.refs("ostree/container/blob/")?;
        refs.retain(|name| image.layers.iter().any(|layer| *name == blob_ref(layer)));
        assert_eq!(refs.len(), image.layers.len());
        let refs = host.sandbox.refs("ostree/container/image/")?;
        assert!(refs.contains(&image_ref(&host.source())), "{refs:?}");
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn chunks_become_what_ostree_ext_makes_of_them() -> Result<()> {
        let mut host = Host::boot()?;
        let second = base(&host, "2", 1_740_000_000)?;
        assert!(second.layers.len() > 5, "not chunked: {second:?}");
        let image = Image::new("2").on(&second).created("2025-02-01T00:00:00Z");
        let bare = host.publish(&image)?;
        host.upgrade().await?.succeeded()?;
        same_as_the_oracle(&host, second.layers.len(), &bare)?;

        host.reboot()?;
        assert_eq!(
            host.sandbox.run(["cat", "/etc/motd"])?,
            "Welcome to version 2\n"
        );
        // One directory of the base has changed, and a layer of files is on top.
        let third = base(&host, "3", 1_750_000_000)?;
        let derived = Layer::new()
            .dir("etc")
            .file("etc/motd", "3\n")
            .whiteout("usr/lib/odd/link")
            .file("usr/lib/large/more", "more");
        let image = Image::new("3").on(&third).created("2025-03-01T00:00:00Z");
        let derived = host.publish(&image.layer(derived))?;
        let new: Vec<&String> = derived
            .layers
            .iter()
            .filter(|layer| !bare.layers.contains(layer))
            .collect();
        assert!(
            new.len() < bare.layers.len() - 2,
            "nothing is shared: {new:?}"
        );
        let mut size = 0;
        for layer in new {
            size += fs::metadata(host.layout.blob(layer))?.len();
        }
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, size);
        same_as_the_oracle(&host, third.layers.len(), &derived)?;

        host.reboot()?;
        assert_eq!(host.sandbox.run(["cat", "/etc/motd"])?, "3\n");
        oracle::prune(host.sandbox.sysroot())?;
        host.sandbox.fsck()
    }
}
