//! A daemon that is killed in the middle of a large layer: what had arrived is not fetched again.

#[cfg(test)]
mod resuming {
    use std::fs;

    use anyhow::{Context, Result};
    use osteward_tests::chance::Dice;
    use osteward_tests::client;
    use osteward_tests::image::{Compression, Layer, Written};
    use osteward_tests::relay::Request;
    use osteward_tests::settled::{ON_ITS_WAY, Settled};

    /// Bytes of a layer that comes by several requests at a time …
    const LARGE: usize = 40 << 20;

    /// … and of one that is still kept when it is not complete.
    const KEPT: usize = 18 << 20;

    fn small(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    fn large(seed: u64, size: usize) -> Layer {
        let layer = Layer::new().dir("usr").dir("usr/share");
        let layer = layer.file(&format!("usr/share/large-{seed}"), Dice(seed).noise(size));
        layer.compressed(Compression::Zstd)
    }

    /// A host that has the first half of the last layer, of `size` bytes, of an image; the daemon was killed.
    async fn killed_at_half(seed: u64, size: usize) -> Result<(Settled, Written)> {
        let mut settled = Settled::new([small("second")]).await?;
        let image = settled.publish([small("a"), large(seed, size)])?;
        settled.kill_at_half(&image).await?;
        Ok((settled, image))
    }

    /// The next upgrade asks for what was not kept, once.
    async fn fetches_the_rest(mut settled: Settled, image: &Written) -> Result<()> {
        let digest = image.layers.last().context("no layers")?;
        let size = fs::metadata(settled.host.layout.blob(digest))?.len();
        let (kept, half) = (settled.kept(digest), size / 2);
        assert!(kept > half - ON_ITS_WAY && kept <= half, "{kept} are kept");
        let before = settled.relay.requests().len();
        let missing = settled.finish(image).await?;
        let requests = settled.relay.requests().split_off(before);
        let ranges = requests
            .iter()
            .filter(|request| request.path.contains(digest));
        let mut ranges: Vec<_> = ranges.map(Request::range).collect();
        ranges.sort_unstable();
        let mut next = kept;
        for (first, last) in &ranges {
            assert_eq!(*first, next, "{ranges:?}");
            next = last.map_or(size, |last| last + 1);
        }
        assert_eq!(next, size, "{ranges:?}");
        assert!(missing >= size - kept && missing < size - kept + half);
        assert_eq!(settled.kept(digest), 0, "it is in the repository");
        Ok(())
    }

    #[tokio::test]
    async fn a_kill_costs_what_was_on_its_way() -> Result<()> {
        let (mut settled, image) = killed_at_half(1, LARGE).await?;
        settled.host.start_daemon()?;
        fetches_the_rest(settled, &image).await
    }

    #[tokio::test]
    async fn so_does_a_reboot() -> Result<()> {
        let (mut settled, image) = killed_at_half(2, LARGE).await?;
        settled.host.sandbox.power_cut()?;
        settled.check("downloading")?;
        settled.host.start_daemon()?;
        fetches_the_rest(settled, &image).await
    }

    #[tokio::test]
    async fn what_is_kept_goes_when_the_cache_is_discarded() -> Result<()> {
        let (mut settled, image) = killed_at_half(3, KEPT).await?;
        let digest = image.layers.last().context("no layers")?;
        settled.host.start_daemon()?;
        let ask = |words: &[&str]| client::ask(&settled.host.sandbox, &settled.host.bus, words);
        ask(&["discard", "unreferenced"])?.expect(&[0])?;
        assert!(
            settled.kept(digest) > KEPT as u64 / 2 - ON_ITS_WAY,
            "the image is guarded"
        );
        ask(&["discard", "cache"])?.expect(&[0])?;
        assert_eq!(settled.kept(digest), 0);
        settled.finish(&image).await?;
        Ok(())
    }
}
