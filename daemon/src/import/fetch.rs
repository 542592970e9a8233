//! What an import asks of the place where an image is: bytes of its layers, whole or by parts.

use std::ops::Range;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::image::layer::Layer;
use crate::image::{ByteStream, Error, Pace, Source};

/// Gives the bytes of layers; what arrives is proven by whoever reads it.
pub trait Fetch: Send + Sync {
    /// Opens what is transferred for a layer, from byte `from` on (0: the whole).
    fn whole(&self, layer: &Layer, from: u64) -> BoxFuture<'static, Result<ByteStream, Error>>;

    /// Exactly these bytes of the layer's blob. A source that says nothing of parts has whole layers only.
    ///
    /// # Errors
    /// [`Error::NoRanges`] when they cannot be had without the rest.
    fn part(
        &self,
        _layer: &Layer,
        _range: Range<u64>,
    ) -> BoxFuture<'static, Result<ByteStream, Error>> {
        async { Err(Error::NoRanges) }.boxed()
    }

    /// Whether parts can be had, as far as known.
    fn has_parts(&self) -> bool {
        false
    }

    /// How many parts of one layer are to be asked for at a time, as things are now; at least 1.
    fn connections(&self) -> usize {
        1
    }

    /// What a request takes, as measured so far.
    fn pace(&self) -> Pace {
        Pace::default()
    }
}

impl Fetch for Source {
    fn whole(&self, layer: &Layer, from: u64) -> BoxFuture<'static, Result<ByteStream, Error>> {
        let (source, layer) = (self.clone(), layer.clone());
        async move { source.blob(&layer, from).await }.boxed()
    }

    fn part(
        &self,
        layer: &Layer,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<ByteStream, Error>> {
        let (source, layer) = (self.clone(), layer.clone());
        async move { source.part(&layer, range).await }.boxed()
    }

    fn has_parts(&self) -> bool {
        Source::has_parts(self)
    }

    fn connections(&self) -> usize {
        Source::connections(self)
    }

    fn pace(&self) -> Pace {
        Source::pace(self)
    }
}
