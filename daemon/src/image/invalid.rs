//! What can be wrong with the documents of an image.

use super::reference::{Digest, ReferenceError};

/// Why a manifest or a configuration is not that of an image that can be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Bytes that are not the ones their digest names.
    #[error("the {what} has the digest {actual} instead of {expected}")]
    DigestMismatch {
        /// Manifest or configuration.
        what: &'static str,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// JSON that does not say what it must.
    #[error("the {what} cannot be read: {reason}")]
    Unreadable {
        /// Manifest, index or configuration.
        what: &'static str,
        /// What the parser found.
        reason: String,
    },
    /// Docker's first manifest format, whose digests do not cover what matters.
    #[error("the manifest is in docker's schema 1; push the image again with a current tool")]
    Schema1,
    /// Something else than an image is stored under this name.
    #[error("this is not a container image but {0:?}")]
    NotAnImage(String),
    /// An index without an image for this machine.
    #[error("the image is not made for {wanted}; there is {offered}")]
    NoPlatform {
        /// `os/architecture` of this machine.
        wanted: String,
        /// The platforms in the index.
        offered: String,
    },
    /// A digest in the manifest or in the configuration is none.
    #[error(transparent)]
    Digest(#[from] ReferenceError),
    /// No layer at all.
    #[error("the image has no layers")]
    NoLayers,
    /// Manifest and configuration disagree.
    #[error("the manifest has {layers} layers and the configuration {diff_ids} diff_ids")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Entries of `rootfs.diff_ids`.
        diff_ids: usize,
    },
    /// A layer in a format that nothing here reads.
    #[error("layer {digest} has the unknown media type {media_type:?}")]
    LayerMediaType {
        /// The layer.
        digest: Digest,
        /// What the manifest says of it.
        media_type: String,
    },
    /// A layer that is longer than the administrator allows.
    #[error(
        "layer {digest} has {size} bytes, more than the {limit} that registry.max_layer_size allows"
    )]
    LayerTooLarge {
        /// The layer.
        digest: Digest,
        /// Bytes by the manifest.
        size: u64,
        /// Bytes that are allowed.
        limit: u64,
    },
    /// The label that ends the ostree base names a layer that is not there.
    #[error("no layer has the diff_id {0:?} that the label ostree.final-diffid names")]
    FinalDiffId(String),
    /// A blob that is shorter or longer than the manifest says.
    #[error("the blob {digest} has {actual} bytes instead of {expected}")]
    BlobSize {
        /// The blob.
        digest: Digest,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// The layer that ends the ostree base is there twice.
    #[error("Multiple entries for {0}, which ends the ostree base")]
    MultipleEntries(Digest),
    /// A container image, but not of a bootable host.
    #[error(
        "the image is not bootable: it has neither the label containers.bootc nor ostree.bootable; \
         choose one that is made for bootc or ostree hosts"
    )]
    NotBootable,
    /// For another machine.
    #[error(
        "the image is for {image:?} machines, this one is {host:?}; choose one that is made for it"
    )]
    Architecture {
        /// What the configuration says.
        image: String,
        /// What this machine is.
        host: String,
    },
}
