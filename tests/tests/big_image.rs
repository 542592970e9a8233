//! The big image: real content in real numbers.

#[cfg(test)]
mod big_image {
    use anyhow::Result;
    use osteward_tests::big_image::{LAYERS, big_image};

    #[test]
    fn the_big_image_has_sixty_layers_and_more_than_a_gigabyte() -> Result<()> {
        let layout = big_image()?;
        let (sixty, one) = (layout.find("sixty")?, layout.find("one")?);
        println!(
            "60 layers: {} bytes of blobs; 1 layer: {} bytes",
            sixty.size, one.size
        );
        assert_eq!((sixty.layers.len(), one.layers.len()), (LAYERS, 1));
        Ok(())
    }
}
