//! `Update.DownloadSize`: what a check tells is what the upgrade then fetches, within a twentieth.

#[cfg(test)]
mod download_size {
    use std::fs;

    use anyhow::{Context, Result, ensure};
    use osteward_tests::chance::Dice;
    use osteward_tests::image::chunked::Style;
    use osteward_tests::image::{Compression, Image, Layer};
    use osteward_tests::settled::Settled;
    use osteward_tests::watched::{Watched, is_close};

    const CHUNKED: Compression = Compression::Chunked(Style::Modern);

    const FILES: u64 = 64;
    /// Bytes of each file: far more than manifests and configurations have.
    const FILE: usize = 64 << 10;
    /// The configuration of an image.
    const CONFIGURATION: u64 = 8 << 10;
    /// Bytes of a layer of which a half is kept.
    const LARGE: usize = 40 << 20;

    /// Files that do not compress, of which so many are other ones than usual.
    fn layer(name: &str, changed: u64) -> Layer {
        let top = format!("usr/lib/{name}");
        let mut layer = Layer::new()
            .in_records()
            .dir("usr")
            .dir("usr/lib")
            .dir(&top);
        for file in 0..FILES {
            let seed = if file < changed { !file } else { file };
            layer = layer.file(&format!("{top}/{file}"), Dice(seed).noise(FILE));
        }
        layer
    }

    /// What it is called, and what it puts on top of the host's first image.
    type Form = (&'static str, fn(Image) -> Image);

    /// So many small files: what a table of contents says of them is about as long as they are.
    fn small_files(version: u64) -> Layer {
        let mut layer = Layer::new().dir("usr").dir("usr/lib").dir("usr/lib/small");
        for file in 0..3000 {
            let content = Dice(version << 32 | file).noise(100);
            layer = layer.file(&format!("usr/lib/small/{file}"), content);
        }
        layer.compressed(CHUNKED)
    }

    #[tokio::test]
    async fn layers_that_come_whole() -> Result<()> {
        let mut watched = Watched::boot()?;
        let image = |same: u64, other: u64| {
            let [same, other] = [layer("same", same), layer("other", other)];
            move |image: Image| image.layer(same).layer(other)
        };
        let first = watched.publish_image(image(0, 0))?;
        let served = watched.fetches_what_it_told(&first).await?;
        ensure!(served > 2 * FILES * FILE as u64, "{served}");
        watched.host.reboot()?;
        let next = watched.publish_image(image(0, 1))?;
        let (served, size) = (
            watched.fetches_what_it_told(&next).await?,
            watched.size(&next)?,
        );
        ensure!(
            (size..size + CONFIGURATION).contains(&served),
            "{served} for {size}"
        );
        Ok(())
    }

    #[tokio::test]
    async fn layers_of_which_parts_come() -> Result<()> {
        let mut watched = Watched::boot()?;
        let chunked = |changed| layer("files", changed).compressed(CHUNKED);
        watched.start_with(chunked(0)).await?;
        watched.host.reboot()?;
        let few = watched.publish(chunked(5))?;
        let (served, size) = (
            watched.fetches_what_it_told(&few).await?,
            watched.size(&few)?,
        );
        ensure!(served < size / 8, "{served} of {size}");
        Ok(())
    }

    #[tokio::test]
    async fn layers_of_which_all_is_new() -> Result<()> {
        let mut watched = Watched::boot()?;
        watched.start_with(small_files(1)).await?;
        watched.host.reboot()?;
        let chunked = layer("files", FILES).compressed(CHUNKED);
        for (what, layer) in [("long table", small_files(2)), ("all is new", chunked)] {
            let image = watched.publish(layer)?;
            let told = watched.fetches_what_it_told(&image).await;
            let (served, size) = (told.context(what)?, watched.size(&image)?);
            ensure!(
                (size - size / 20..size + size / 20).contains(&served),
                "{what}: {served} for {size}"
            );
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_layer_of_which_a_half_is_here() -> Result<()> {
        let first = Layer::new().dir("usr").file("usr/first", "first");
        let mut settled = Settled::new([first]).await?;
        let large = Layer::new()
            .dir("usr")
            .file("usr/large", Dice(1).noise(LARGE));
        let image = settled.publish([large.compressed(Compression::Zstd)])?;
        settled.kill_at_half(&image).await?;
        settled.host.start_daemon()?;
        let told = settled.host.download_size().await?;
        let before = settled.host.registry.served()?;
        let missing = settled.finish(&image).await?;
        let served = settled.host.registry.served()?.since(before).blobs;
        ensure!(is_close(told, served), "{told} were told, {served} came");
        assert_eq!(told, missing);
        let layer = image.layers.last().context("no layers")?;
        let size = fs::metadata(settled.host.layout.blob(layer))?.len();
        ensure!(told < size * 6 / 10, "{told} of {size}");
        Ok(())
    }

    #[tokio::test]
    async fn a_tree_that_is_here_in_another_form_costs_no_layer() -> Result<()> {
        let mut watched = Watched::boot()?;
        let first = watched.start_with(layer("files", 0)).await?;
        let [tree, _] = watched.trees(&first)?;
        watched.host.reboot()?;
        let forms: [Form; 2] = [
            ("another annotation", |image| {
                image
                    .annotation("org.example.note", "another")
                    .layer(layer("files", 0))
            }),
            ("compressed anew", |image| {
                image.layer(layer("files", 0).compressed(Compression::Zstd))
            }),
        ];
        for (what, form) in forms {
            let image = watched.publish_image(form)?;
            assert_eq!(watched.host.download_size().await?, 0, "{what}");
            let before = watched.served()?;
            assert_eq!(watched.fetched(&image).await?, 0, "{what}");
            let served = watched.served()? - before;
            ensure!(served < CONFIGURATION, "{what}: {served}");
            assert_eq!(watched.trees(&image)?[0], tree, "{what}");
        }
        watched.host.sandbox.fsck()
    }
}
