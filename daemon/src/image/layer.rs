//! The layers of an image: of which kind each is, and what proves it.
//!
//! Pure. Invariant: the layers of a manifest with its configuration are as many as the diff_ids
//! there, and all in a compression that can be read.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};

use super::chunked::Chunked;
use super::layout::{LayoutError, digest_of, labels};
use super::manifest::layer_compression;
use super::reference::Digest;

/// Config label: the diff_id of the last layer of the ostree base.
const LABEL_FINAL_DIFFID: &str = "ostree.final-diffid";

/// How the tar stream of a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly with skippable frames.
    Zstd,
}

/// What the tar stream of a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Files.
    Plain,
    /// A part of the objects of an ostree commit.
    ObjectChunk,
    /// An ostree commit and the rest of its objects.
    Commit,
}

/// Which bytes a source delivers for a layer, and so which digest proves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The blob that the manifest names.
    Blob,
    /// The tar stream in it, as stores do that keep layers unpacked: only the diff_id proves it.
    Tar,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its place in the manifest, from 0.
    pub index: usize,
    /// Of the blob, as the manifest names it.
    pub digest: Digest,
    /// Bytes that are transferred.
    pub size: u64,
    /// How what is transferred is compressed.
    pub compression: Compression,
    /// What is transferred.
    pub transfer: Transfer,
    /// Of the tar stream. In an [`Image`] from a commit that lacks the configuration: the blob's digest.
    pub diff_id: Digest,
    /// What is in it.
    pub kind: LayerKind,
    /// Says where the table of contents is, if the blob has one of use.
    pub chunked: Option<Chunked>,
    /// Why that is not so although the manifest says something about one.
    pub not_chunked: Option<String>,
}

impl Layer {
    /// The digest that the transferred bytes must have.
    pub fn proof(&self) -> &Digest {
        match self.transfer {
            Transfer::Blob => &self.digest,
            Transfer::Tar => &self.diff_id,
        }
    }
}

/// The layers as the manifest lists them, of the kinds that the configuration says.
pub(super) fn layers(
    manifest: &ImageManifest,
    config: &ImageConfiguration,
) -> Result<Vec<Layer>, LayoutError> {
    let diff_ids = config.rootfs().diff_ids();
    let count = manifest.layers().len();
    if count == 0 {
        return Err(LayoutError::NoLayers);
    }
    if count != diff_ids.len() {
        return Err(LayoutError::LayerCount {
            layers: count,
            diff_ids: diff_ids.len(),
        });
    }
    let mut layers = Vec::with_capacity(count);
    for (index, (descriptor, diff_id)) in manifest.layers().iter().zip(diff_ids).enumerate() {
        let digest = digest_of(descriptor)?;
        let media_type = descriptor.media_type().as_ref();
        let Some((compression, _)) = layer_compression(media_type) else {
            return Err(LayoutError::LayerMediaType {
                digest,
                media_type: media_type.to_owned(),
            });
        };
        // It only saves bytes, so that annotations of no use are no error.
        let annotations = descriptor.annotations().as_ref();
        let (chunked, not_chunked) = match Chunked::of(annotations, descriptor.size(), compression)
        {
            Ok(chunked) => (chunked, None),
            Err(reason) => (None, Some(reason)),
        };
        layers.push(Layer {
            index,
            chunked,
            not_chunked,
            digest,
            size: descriptor.size(),
            compression,
            transfer: Transfer::Blob,
            diff_id: diff_id.parse()?,
            kind: LayerKind::Plain,
        });
    }
    if let Some(final_diff_id) = labels(config).get(LABEL_FINAL_DIFFID) {
        mark_ostree_base(&mut layers, final_diff_id)?;
    }
    Ok(layers)
}

/// The first layer is the commit; chunks of it follow, up to the one that the label names.
fn mark_ostree_base(layers: &mut [Layer], final_diff_id: &str) -> Result<(), LayoutError> {
    let last = layers
        .iter()
        .position(|layer| layer.diff_id.as_str() == final_diff_id)
        .ok_or_else(|| LayoutError::FinalDiffId(final_diff_id.to_owned()))?;
    let again = layers[last + 1..]
        .iter()
        .find(|layer| layer.digest == layers[last].digest);
    if let Some(layer) = again {
        return Err(LayoutError::MultipleEntries(layer.digest.clone()));
    }
    for layer in &mut layers[..=last] {
        layer.kind = if layer.index == 0 {
            LayerKind::Commit
        } else {
            LayerKind::ObjectChunk
        };
    }
    Ok(())
}

/// The layers of an image that is here already but whose configuration says nothing about them.
pub(super) fn layers_without_config(manifest: &ImageManifest) -> Result<Vec<Layer>, LayoutError> {
    let layer = |(index, descriptor): (usize, &Descriptor)| {
        let digest = digest_of(descriptor)?;
        let known = layer_compression(descriptor.media_type().as_ref());
        Ok(Layer {
            index,
            size: descriptor.size(),
            compression: known.map_or(Compression::Plain, |(compression, _)| compression),
            transfer: Transfer::Blob,
            // True of an uncompressed blob, and of no tar stream otherwise: it never matches by mistake.
            diff_id: digest.clone(),
            digest,
            kind: LayerKind::Plain,
            chunked: None,
            not_chunked: None,
        })
    };
    manifest.layers().iter().enumerate().map(layer).collect()
}

#[cfg(test)]
mod tests {
    use super::super::layout::Image;
    use super::super::test_images::{TestImage, bytes, diff_id, image};
    use super::*;

    fn parse(image: &TestImage) -> Result<Image, LayoutError> {
        let (manifest, config) = (bytes(&image.manifest), bytes(&image.config));
        Image::parse(image.digest(), None, &manifest, &config)
    }

    fn kinds(image: &TestImage) -> Vec<LayerKind> {
        parse(image)
            .unwrap()
            .layers
            .iter()
            .map(|layer| layer.kind)
            .collect()
    }

    #[test]
    fn the_label_divides_the_layers() {
        use LayerKind::{Commit, ObjectChunk, Plain};
        let layers: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];
        for (end, expected) in [
            (None, [Plain, Plain, Plain, Plain]),
            (Some(0), [Commit, Plain, Plain, Plain]),
            (Some(2), [Commit, ObjectChunk, ObjectChunk, Plain]),
            (Some(3), [Commit, ObjectChunk, ObjectChunk, ObjectChunk]),
        ] {
            let end = end.map(|end: usize| diff_id(layers[end]));
            let labels: Vec<_> = end
                .iter()
                .map(|id| (LABEL_FINAL_DIFFID, id.as_str()))
                .collect();
            assert_eq!(kinds(&image("amd64", &labels, &layers)), expected);
        }
    }

    #[test]
    fn the_layer_that_ends_the_base_must_be_there_once() {
        let end = diff_id(b"b");
        let label = [(LABEL_FINAL_DIFFID, end.as_str())];
        let error = parse(&image("amd64", &label, &[b"a", b"b", b"c", b"b"])).unwrap_err();
        assert_eq!(error, LayoutError::MultipleEntries(Digest::of(b"b")));
        assert!(
            error
                .to_string()
                .starts_with("Multiple entries for sha256:")
        );
        let error = parse(&image("amd64", &label, &[b"a", b"c"])).unwrap_err();
        assert_eq!(error, LayoutError::FinalDiffId(end));
    }

    #[test]
    fn annotations_of_no_use_cost_only_the_saving() {
        const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
        const PREFIX: &str = "io.github.containers.zstd-chunked.";
        let mut given = image("amd64", &[], &[&[b'a'; 2000], b"b"]);
        let digest = given.manifest["layers"][0]["digest"].clone();
        for layer in 0..2 {
            let layer = &mut given.manifest["layers"][layer];
            layer["mediaType"] = ZSTD.into();
            layer["annotations"][format!("{PREFIX}manifest-checksum")] = digest.clone();
            layer["annotations"][format!("{PREFIX}manifest-position")] = "1000:500:4000:1".into();
        }
        let layers = parse(&given).unwrap().layers;
        let chunked = layers[0].chunked.as_ref().unwrap();
        assert_eq!((chunked.toc.offset, chunked.toc.end()), (1000, 1500));
        assert_eq!(layers[0].not_chunked, None);
        // That layer is too short for it.
        assert_eq!((layers[1].size, &layers[1].chunked), (1, &None));
        assert!(layers[1].not_chunked.is_some());
    }
}
