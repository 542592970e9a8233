//! What an import does before the first byte of a layer is fetched.

use std::path::PathBuf;
use std::sync::Arc;

use ostree::gio;

use super::error::{During, Error, repository_path};
use super::guess::Guess;
use super::partial::Stock;
use super::parts::{self, Outlook};
use super::plan::{Survey, has_all_layers, stored_image, stored_images, survey};
use super::transaction::{Transaction, is_complete, open, resolve};
use super::{ImportRequest, guard, leftovers};
use crate::image::layout::Image;
use crate::image::reference::{Digest, ImageReference, blob_ref, image_ref};

/// Where an import begins.
pub(super) enum Start {
    /// The image is here, and has its name.
    Here(String),
    /// Something is to be done.
    Missing(Missing),
}

/// What is to be done, and with what.
pub(super) struct Missing {
    pub(super) survey: Survey,
    /// What labels the files may have.
    pub(super) guess: Option<Guess>,
    /// What is here, if layers can share it.
    pub(super) stock: Option<Arc<Stock>>,
}

/// What is looked at.
pub(super) struct Beginning {
    path: PathBuf,
    image: Arc<Image>,
    imgref: ImageReference,
    needed: Vec<Digest>,
    outlook: Outlook,
}

impl Beginning {
    pub(super) fn of(request: &ImportRequest, outlook: Outlook) -> Self {
        Self {
            path: request.repo_path.clone(),
            image: request.image.clone(),
            imgref: request.imgref.clone(),
            needed: request.needed.clone(),
            outlook,
        }
    }

    /// Guards the image, and finds out what is missing of it.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when it cannot fit; whatever the repository or the source fails with.
    pub(super) fn run(&self) -> Result<Start, Error> {
        let (image, cancellable) = (&*self.image, &self.outlook.cancellable);
        let repo = open(&self.path, cancellable)?;
        if let Some(commit) = stored(&repo, image, &self.imgref, cancellable)? {
            guard::whole(&repo, image, &commit, &self.needed, cancellable)?;
            leftovers::tidy(&repo);
            return Ok(Start::Here(commit));
        }
        let mut survey = survey(&repo, image, cancellable)?;
        let mut transaction = Transaction::begin(&repo, cancellable)?;
        guard::half_fetched(&mut transaction, image, &self.needed)?;
        for (digest, commit) in &survey.aliases {
            transaction.set_ref(&blob_ref(digest), commit);
        }
        let need = survey.plan.missing_size();
        transaction
            .commit()
            .map_err(|error| error.with_space(&repo, need))?;
        leftovers::tidy(&repo);
        let guess = Guess::load(&repo, &self.imgref, cancellable);
        let found = parts::look(&self.outlook, &repo, image, true, &mut survey.plan)?;
        for note in found.notes {
            self.outlook.observer.note(note);
        }
        let (need, have) = (survey.plan.needed_size(), leftovers::room(&repo)?);
        if need > have {
            return Err(Error::NoSpace {
                need,
                have,
                where_: repository_path(&repo),
            });
        }
        Ok(Start::Missing(Missing {
            survey,
            guess,
            stock: found.stock.map(Arc::new),
        }))
    }
}

/// The merge commit of this very manifest, if it is here and whole: what the image's ref points at, or what is
/// deployed, or kept, under another name. A tag that went on and came back finds it so.
fn stored(
    repo: &ostree::Repo,
    image: &Image,
    imgref: &ImageReference,
    cancellable: &gio::Cancellable,
) -> Result<Option<String>, Error> {
    let named = resolve(repo, &image_ref(imgref))?;
    let is_same = |commit: &String| {
        stored_image(repo, commit).is_some_and(|stored| stored.digest == image.digest)
    };
    let found = match named.clone().filter(is_same) {
        Some(commit) => Some(commit),
        None => stored_images(repo)?.remove(&image.digest),
    };
    let Some(commit) = found else { return Ok(None) };
    let whole =
        is_complete(repo, &commit, cancellable)? && has_all_layers(repo, image, cancellable)?;
    if !whole {
        return Ok(None);
    }
    if named.as_ref() != Some(&commit) {
        repo.set_ref_immediate(None, &image_ref(imgref), Some(&commit), Some(cancellable))
            .during("naming a pulled image")?;
    }
    Ok(Some(commit))
}
