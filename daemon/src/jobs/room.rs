//! Is there room in `/boot`? Asked before the download, as far as the image tells, and again
//! when the image is here, before anything is staged.
//!
//! The repository's own room is the import's business: it knows which layers are missing.

use super::Job;
use super::source::Found;
use crate::error::Error;
use crate::image::layout::Image;
use crate::sysroot::{BootRoom, Deployment, Kernel, Snapshot};

/// Before a byte is fetched.
pub(super) async fn before_download(
    job: &Job,
    snapshot: &Snapshot,
    found: &Found,
) -> Result<(), Error> {
    Ok(of_image(job, snapshot, &found.image).await?.suffices()?)
}

/// As far as the image tells.
pub(super) async fn of_image(
    job: &Job,
    snapshot: &Snapshot,
    image: &Image,
) -> Result<BootRoom, Error> {
    let kernel = expected(&snapshot.deployments, image);
    Ok(job.sysroot.boot_room(kernel).await?)
}

/// Before the image is staged: now its kernel can be looked at.
pub(super) async fn before_staging(job: &Job, commit: &str) -> Result<(), Error> {
    let kernel = Kernel::Of(commit.to_owned());
    Ok(job.sysroot.boot_room(kernel).await?.suffices()?)
}

/// Only an image that says that its kernel is another one is expected to bring one.
fn expected(deployments: &[Deployment], image: &Image) -> Kernel {
    let Some(new) = image.kernel() else {
        return Kernel::There;
    };
    let is_here = |deployment: &Deployment| {
        let label = deployment.image.as_ref().and_then(Image::kernel);
        label.unwrap_or(&deployment.kernel_version) == new
    };
    if deployments.iter().any(is_here) {
        Kernel::There
    } else {
        Kernel::LikeBooted
    }
}
