//! The proxy of `org.osteward1.Update`: an image that the host could boot next.

use std::collections::HashMap;

use crate::{Error, options::NoOptions, types::PackageChange};

/// An image that the host could boot next; see [`crate::types::UpdateInfo`].
#[zbus::proxy(interface = "org.osteward1.Update", default_service = "org.osteward1")]
pub trait Update {
    /// Digest of the manifest of this architecture.
    #[zbus(property(emits_changed_signal = "const"))]
    fn digest(&self) -> Result<String, Error>;

    /// Digest of the index it was found in; empty if none.
    #[zbus(property(emits_changed_signal = "const"))]
    fn index_digest(&self) -> Result<String, Error>;

    /// The image reference it was found under.
    #[zbus(property(emits_changed_signal = "const"))]
    fn image(&self) -> Result<String, Error>;

    /// The image's own version label; empty if none.
    #[zbus(property)]
    fn version(&self) -> Result<String, Error>;

    /// OCI architecture name, such as `amd64`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn architecture(&self) -> Result<String, Error>;

    /// When the image was made; 0 if unknown.
    #[zbus(property)]
    fn timestamp(&self) -> Result<u64, Error>;

    /// The image's labels, capped at 256 entries and 64 KiB. Untrusted text.
    #[zbus(property)]
    fn labels(&self) -> Result<HashMap<String, String>, Error>;

    /// The manifest's annotations, capped alike. Untrusted text.
    #[zbus(property)]
    fn annotations(&self) -> Result<HashMap<String, String>, Error>;

    /// `available`, `downloaded`, `staged` or `quarantined`.
    #[zbus(property)]
    fn state(&self) -> Result<String, Error>;

    /// `upgrade`, `downgrade`, `same` or `unknown`, against the booted image.
    #[zbus(property)]
    fn direction(&self) -> Result<String, Error>;

    /// Bytes to fetch, as found when the image was looked for last.
    #[zbus(property)]
    fn download_size(&self) -> Result<u64, Error>;

    /// Compressed bytes of all layers.
    #[zbus(property)]
    fn total_size(&self) -> Result<u64, Error>;

    /// Number of layers.
    #[zbus(property)]
    fn layers_total(&self) -> Result<u32, Error>;

    /// Number of layers that are not in the repository.
    #[zbus(property)]
    fn layers_missing(&self) -> Result<u32, Error>;

    /// The release of its kernel; empty if unknown.
    #[zbus(property)]
    fn kernel_version(&self) -> Result<String, Error>;

    /// How much is known of what changes: `none`, `layers`, `metadata` or `full`.
    #[zbus(property)]
    fn diff_level(&self) -> Result<String, Error>;

    /// The packages that are not the same as in the booted image, from `offset` on and at most
    /// `max` (0: as many as fit), and how many there are in all.
    fn get_package_diff(
        &self,
        offset: u64,
        max: u32,
        options: &NoOptions,
    ) -> Result<(Vec<PackageChange>, u64), Error>;
}
