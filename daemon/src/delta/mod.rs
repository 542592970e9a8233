//! Deltas that are published beside an image: what they say of themselves, and how they become layers.
//!
//! [`Artifact::parse`] reads the manifest of an `oci-delta` artifact, [`TarDiff`] turns one of its blobs and
//! the files of an older image into the tar of a layer. Pure, but for the files that it is given.
//!
//! Invariant: nothing here is trusted. A delta is not signed and names what it likes; what it leads to is a
//! layer only when the tar has the diff_id that the image's own configuration names, which is for the one who
//! reads the tar to compare. Until then it gets no more memory, and makes no more bytes, than set here.

mod artifact;
#[cfg(test)]
pub(crate) mod made;
mod memory;
mod patch_frame;
mod tar_diff;

pub use self::artifact::{ARTIFACT_TYPE, Artifact, ArtifactError, Patch, names_source};
pub use self::memory::Memory;
pub use self::tar_diff::{SourceFiles, TarDiff, TarDiffError};
