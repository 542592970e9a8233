//! Deltas that are published beside an image: taken where they are fewer bytes, and never a reason to fail.

#[cfg(test)]
mod deltas {
    use anyhow::{Result, ensure};
    use osteward_tests::image::chunked::Style;
    use osteward_tests::image::delta::{Copies, Delta, Differ};
    use osteward_tests::image::{Compression, Layer, Written};
    use osteward_tests::watched::{Watched, last};

    const CHUNKED: Compression = Compression::Chunked(Style::Modern);

    const FILES: u64 = 48;
    /// Bytes of each file.
    const FILE: usize = 64 << 10;
    /// Bytes that are new in a file that changed: far more than manifests and configurations have.
    const NEW: usize = 40_000;
    /// The configuration of an image.
    const CONFIGURATION: u64 = 8 << 10;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    }

    /// Files that do not compress; four of those of version 2 have other bytes in the middle, one has another
    /// name, one is in /etc, and one is new.
    fn layer(version: u64, compression: Compression) -> Layer {
        let is_second = version > 1;
        let mut layer = Layer::new().in_records().dir("etc").dir("usr");
        layer = layer.dir("usr/lib").dir("usr/lib/files");
        for file in 0..FILES {
            let mut content = noise(file, FILE);
            if is_second && file < 4 {
                content.splice(20_000..20_007, noise(!file, NEW / 4));
            }
            let path = match is_second && file == 4 {
                true => "usr/lib/files/renamed".to_owned(),
                false => format!("usr/lib/files/{file}"),
            };
            layer = layer.file(&path, content);
        }
        if is_second {
            layer = layer.file("usr/lib/new", "new");
        }
        let layer = layer.hardlink("usr/lib/hard", "usr/lib/files/0");
        let layer = layer.symlink("usr/lib/link", "hard");
        layer
            .file("etc/large", noise(1000, FILE))
            .compressed(compression)
    }

    /// A host that runs the first of two images, and both images.
    async fn upgradable(layers: [Layer; 2]) -> Result<(Watched, [Written; 2])> {
        let [first, second] = layers;
        let mut watched = Watched::boot()?;
        let old = watched.start_with(first).await?;
        watched.host.reboot()?;
        let new = watched.publish(second)?;
        Ok((watched, [old, new]))
    }

    fn offer<'a>(
        watched: &'a Watched,
        [old, new]: &'a [Written; 2],
        change: fn(Differ<'a>) -> Differ<'a>,
    ) -> Result<Delta> {
        let layout = &watched.host.layout;
        let delta = change(Differ::new(layout, old, new)).write(layout)?;
        watched.host.registry.offer_delta("os", layout, &delta)?;
        Ok(delta)
    }

    /// How often any of the delta was asked for since the request of this number.
    fn asked_for(watched: &Watched, delta: &Delta, from: usize) -> usize {
        let requests = watched.relay.requests().split_off(from);
        let is_of_it = |path: &str| delta.blobs.iter().any(|blob| path.contains(blob.as_str()));
        let of_it = requests.iter().filter(|request| is_of_it(&request.path));
        of_it.count()
    }

    #[tokio::test]
    async fn a_delta_of_fewer_bytes_is_taken() -> Result<()> {
        let layers = [1, 2].map(|version| layer(version, Compression::Gzip));
        let (first, images) = upgradable(layers).await?;
        let delta = offer(&first, &images, |differ| differ)?;
        let [_, image] = &images;
        let size = first.size(image)?;
        assert!(delta.size < size / 10, "{delta:?} of {size}");
        let (requests, served) = (first.relay.requests().len(), first.served()?);
        let (ended, log) = first.upgrade_with_log().await?;
        let ended = ended.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        assert_eq!(ended.value::<u64>("fetched-bytes")?, delta.size);
        let served = first.served()? - served;
        assert!(
            (delta.size..delta.size + CONFIGURATION).contains(&served),
            "{served} for {delta:?}"
        );
        assert_eq!(first.asked(image, requests)?, (0, 0));
        assert!(
            !log.iter().any(|line| line.contains("left aside")),
            "{log:#?}"
        );
        first.host.sandbox.fsck()?;

        // Another host has nothing that the delta starts from, and pulls the layer.
        let mut second = Watched::boot()?;
        second.version = first.version - 1;
        let same = second.publish(layer(2, Compression::Gzip))?;
        assert_eq!(last(&same)?, last(image)?);
        second.fetches_it_whole(&same).await?;
        assert_eq!(second.trees(&same)?, first.trees(image)?);
        Ok(())
    }

    #[tokio::test]
    async fn a_delta_of_more_bytes_is_not() -> Result<()> {
        // More than the parts that are missing …
        let layers = [1, 2].map(|version| layer(version, CHUNKED));
        let (watched, images) = upgradable(layers).await?;
        let delta = offer(&watched, &images, |differ| differ.copies(Copies::Nothing))?;
        let requests = watched.relay.requests().len();
        let fetched = watched.fetched(&images[1]).await?;
        assert!(fetched < delta.size / 4, "{fetched} with {delta:?}");
        assert_eq!(asked_for(&watched, &delta, requests), 0);

        // … and than the layer.
        let words = |version: u8| {
            let words =
                (0..200_000_u32).flat_map(|n| (n * u32::from(version)).to_string().into_bytes());
            Layer::new()
                .dir("usr")
                .file("usr/words", words.collect::<Vec<_>>())
        };
        let (watched, images) = upgradable([words(1), words(2)]).await?;
        let delta = offer(&watched, &images, |differ| {
            differ.copies(Copies::Nothing).level(-20)
        })?;
        let size = watched.size(&images[1])?;
        assert!(delta.size > size, "{delta:?} for {size}");
        let requests = watched.relay.requests().len();
        assert_eq!(watched.fetched(&images[1]).await?, size);
        assert_eq!(asked_for(&watched, &delta, requests), 0);
        Ok(())
    }

    #[tokio::test]
    async fn a_delta_that_makes_something_else_is_left_aside() -> Result<()> {
        let layers = [1, 2].map(|version| layer(version, Compression::Zstd));
        let (watched, images) = upgradable(layers).await?;
        let delta = offer(&watched, &images, Differ::damaged)?;
        let [_, image] = &images;
        let size = watched.size(image)?;
        let (ended, log) = watched.upgrade_with_log().await?;
        let ended = ended.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        assert_eq!(ended.value::<u64>("fetched-bytes")?, size + delta.size);
        let noted = format!("the delta {} is left aside: ", delta.blobs[0]);
        let notes = log.iter().filter(|line| line.contains(&noted));
        assert_eq!(notes.count(), 1, "{log:#?}");
        watched.is_like_the_oracles(image, layer(2, Compression::Zstd))
    }

    #[tokio::test]
    async fn a_check_counts_the_delta() -> Result<()> {
        for compression in [Compression::Gzip, CHUNKED] {
            let layers = [1, 2].map(|version| layer(version, compression));
            let (watched, images) = upgradable(layers).await?;
            let delta = offer(&watched, &images, |differ| differ)?;
            let fetched = watched.fetches_what_it_told(&images[1]).await?;
            ensure!(
                fetched < delta.size + CONFIGURATION,
                "{compression:?}: {fetched} with {delta:?}"
            );
        }
        Ok(())
    }
}
