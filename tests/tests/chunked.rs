//! Layers with a table of contents: only what is missing is fetched, whoever lies in the table gains nothing,
//! and the tree is always that of the whole layer.

#[cfg(test)]
mod chunked {
    use std::collections::BTreeSet;

    use anyhow::{Context, Result, ensure};
    use osteward_tests::image::chunked::{Lie, Style};
    use osteward_tests::image::{Compression, Layer};
    use osteward_tests::sandbox::refs::blob_ref;
    use osteward_tests::watched::{Watched, last};

    const MODERN: Compression = Compression::Chunked(Style::Modern);
    const NEW: &str = "io.github.containers.zstd-chunked";

    /// Bytes of each file.
    const FILE: usize = 64 << 10;

    fn noise(seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; FILE];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    }

    fn path(file: u64) -> String {
        format!("usr/share/files/{file}")
    }

    /// So many files that do not compress, of which one may be another than usual; and what else there is in
    /// layers.
    fn layer(files: u64, changed: Option<u64>) -> Layer {
        let mut layer = Layer::new()
            .in_records()
            .dir("usr")
            .dir("usr/share")
            .file("usr/share/empty", "")
            .file("usr/share/zeros", vec![0; 100_000])
            .file("usr/share/owned", "o")
            .mode(0o4755)
            .owner(7, 9)
            .file("usr/share/noted", "o")
            .xattr("user.note", b"a=b")
            .dir("usr/share/files");
        for file in 0..files {
            let seed = if changed == Some(file) { !file } else { file };
            layer = layer.file(&path(file), noise(seed));
        }
        layer
            .hardlink("usr/share/hard", &path(0))
            .symlink("usr/share/link", "files/0")
            .file("usr/share/same", noise(1))
            .compressed(MODERN)
    }

    #[tokio::test]
    async fn an_upgrade_fetches_the_file_that_changed() -> Result<()> {
        const FILES: u64 = 160;
        let mut first = Watched::boot()?;
        first.start_with(layer(FILES, None)).await?;
        first.host.reboot()?;
        let image = first.publish(layer(FILES, Some(FILES / 2)))?;
        let size = first.size(&image)?;
        assert!(size > 10 << 20, "{size}");
        let (requests, carried) = (first.relay.requests().len(), first.relay.carried());
        let bytes = first.fetched(&image).await?;
        assert!(
            (FILE as u64..size / 10).contains(&bytes),
            "{bytes} of {size}"
        );
        // Manifest and configuration, and the heads of requests and answers.
        let carried = first.relay.carried() - carried;
        assert!(
            (bytes..bytes + 32_768).contains(&carried),
            "{carried} for {bytes}"
        );
        let (ranges, wholes) = first.asked(&image, requests)?;
        assert!(
            wholes == 0 && (2..10).contains(&ranges),
            "{ranges} ranges, {wholes} wholes"
        );
        first.is_like_the_oracles(&image, layer(FILES, Some(FILES / 2)))?;

        // Another host has nothing of it, and pulls it whole.
        let mut second = Watched::boot()?;
        second.version = first.version - 1;
        let same = second.publish(layer(FILES, Some(FILES / 2)))?;
        assert_eq!(last(&same)?, last(&image)?);
        second.fetches_it_whole(&same).await?;
        assert_eq!(second.trees(&same)?, first.trees(&image)?);
        Ok(())
    }

    #[tokio::test]
    async fn what_came_in_another_form_is_shared_too() -> Result<()> {
        const FILES: u64 = 64;
        for before in [
            Compression::Gzip,
            Compression::Chunked(Style::Old),
            Compression::Chunked(Style::Stargz),
        ] {
            let mut watched = Watched::boot()?;
            watched
                .start_with(layer(FILES, None).compressed(before))
                .await?;
            watched.host.reboot()?;
            let image = watched.publish(layer(FILES, Some(7)))?;
            let size = watched.size(&image)?;
            let bytes = watched.fetched(&image).await?;
            assert!(bytes < size / 10, "{before:?}: {bytes} of {size}");
            watched.is_like_the_oracles(&image, layer(FILES, Some(7)))?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn forms_that_nothing_proves_come_whole() -> Result<()> {
        const FILES: u64 = 64;
        let mut watched = Watched::boot()?;
        watched.start_with(layer(FILES, None)).await?;
        for (file, style) in [(3, Style::Old), (4, Style::Stargz)] {
            let tree = layer(FILES, Some(file));
            let image = watched.publish(tree.compressed(Compression::Chunked(style)))?;
            let size = watched.size(&image)?;
            assert_eq!(watched.fetched(&image).await?, size, "{style:?}");
            watched.is_like_the_oracles(&image, layer(FILES, Some(file)))?;
        }
        Ok(())
    }

    /// A layer that lies, and what becomes of it.
    struct Case {
        what: &'static str,
        layer: Layer,
        /// The error's name and words; or else the layer is pulled whole.
        refused: Option<&'static str>,
    }

    impl Case {
        fn cases(layer: impl Fn(u64) -> Layer) -> Vec<Self> {
            let name = |file: u64| path(file);
            let lies = [
                ("another digest", Lie::Digest(name(1))),
                ("outside", Lie::Outside(name(2))),
                ("setuid in the table", Lie::Setuid(name(3))),
                ("setuid, also in the tar-split", Lie::SetuidInBoth(name(4))),
                ("hidden in the table", Lie::Hidden(name(5))),
            ];
            let mut cases = Vec::new();
            for (number, (what, lie)) in (1..).zip(lies) {
                cases.push(Self {
                    what,
                    layer: layer(number).lie(lie),
                    refused: None,
                });
            }
            let zeros = format!("sha256:{}", "0".repeat(64));
            let annotations = [
                ("another table", "manifest-checksum", zeros.as_str()),
                ("a tar-split elsewhere", "tarsplit-position", "100:100:1000"),
            ];
            for (number, (what, key, value)) in (20..).zip(annotations) {
                let key = format!("{NEW}.{key}");
                cases.push(Self {
                    what,
                    layer: layer(number).annotation(&key, value),
                    refused: None,
                });
            }
            let diff_id = layer(40).lie_about_diff_id();
            cases.push(Self {
                what: "another diff_id",
                layer: diff_id,
                refused: Some("but the image promises"),
            });
            cases
        }
    }

    #[tokio::test]
    async fn a_table_that_lies_changes_nothing() -> Result<()> {
        const FILES: u64 = 48;
        let mut watched = Watched::boot()?;
        watched.start_with(layer(FILES, None)).await?;
        watched.host.reboot()?;
        for case in Case::cases(|file| layer(FILES, Some(file))) {
            lying(&mut watched, case).await?;
        }
        // Who does not lie still gets by with little.
        let image = watched.publish(layer(FILES, Some(0)))?;
        let (bytes, size) = (watched.fetched(&image).await?, watched.size(&image)?);
        assert!(bytes < size / 5, "{bytes} of {size}");
        watched.is_like_the_oracles(&image, layer(FILES, Some(0)))
    }

    /// What images the repository has by their names.
    fn images(watched: &Watched) -> Result<BTreeSet<String>> {
        let refs = watched.host.sandbox.refs("ostree/container/image/")?;
        Ok(refs.into_iter().collect())
    }

    async fn lying(watched: &mut Watched, case: Case) -> Result<()> {
        let Case {
            what,
            layer,
            refused,
        } = case;
        let refs = images(watched)?;
        let deployments = watched.host.sandbox.deployments()?;
        let image = watched.publish(layer.clone())?;
        let size = watched.size(&image)?;
        let ended = watched.upgrade().await.context(what)?;
        let Some(words) = refused else {
            let ended = ended.succeeded().context(what)?;
            // A part of it may have come before it was found out.
            let bytes: u64 = ended.value("fetched-bytes")?;
            ensure!(
                (size..size + size / 4).contains(&bytes),
                "{what}: {bytes} of {size}"
            );
            return watched.is_like_the_oracles(&image, layer).context(what);
        };
        let ended = ended.failed("ImageInvalid").context(what)?;
        let text = &ended.error_message;
        ensure!(text.contains(words), "{what}: {words} is not in {text}");
        assert_eq!(watched.host.sandbox.deployments()?, deployments, "{what}");
        assert_eq!(images(watched)?, refs, "{what}");
        let blob = blob_ref(last(&image)?);
        ensure!(
            !watched.host.sandbox.refs("ostree/")?.contains(&blob),
            "{what}"
        );
        watched.host.sandbox.fsck().context(what)
    }
}
