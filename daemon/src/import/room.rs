//! What an import would need, before anybody asks for it.

use std::path::Path;

use super::error::Error;
use super::leftovers;
use super::plan::plan;
use super::transaction::open;
use crate::image::layout::Image;

/// Bytes that an import would write at least, and bytes that it could write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Compressed bytes of the missing layers, whatever an interrupted attempt left of them: that goes
    /// when the layer is written, and does not take up less.
    pub need: u64,
    /// Free bytes, without the reserve of the repository.
    pub have: u64,
    /// Bytes to fetch.
    pub download: u64,
    /// Whether every layer is here.
    pub is_whole: bool,
}

/// What an import of `image` into the repository at `path` would need. Blocks.
///
/// # Errors
/// [`Error::Ostree`] when the repository cannot be read.
pub fn room(path: &Path, image: &Image) -> Result<Room, Error> {
    let repo = open(path, &ostree::gio::Cancellable::new())?;
    let plan = plan(&repo, image)?;
    Ok(Room {
        need: plan.missing_size(),
        have: leftovers::room(&repo)?,
        download: plan.download_size(),
        is_whole: plan.missing.is_empty(),
    })
}
