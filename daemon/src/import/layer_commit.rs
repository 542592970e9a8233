//! The commit of a plain layer, from the tree of its entries.
//!
//! Invariant: without a time, and with the same guess of labels, the same layer is always the
//! same commit.

use super::error::Error;
use super::guess::Guess;
use super::importer_metadata;
use super::label::Labeller;
use super::layer_tree::{LayerTree, Misfit, Objects, Path};
use super::objects::{Attributes, Id};
use super::path::display;
use super::transaction::Transaction;
use crate::image::layer::Layer;

/// Writes the commit of `layer`; `ids` are what the slots of its tree turned out to be, and its
/// files have their labels by the guess.
///
/// # Errors
/// When the tree breaks a rule, or cannot be written.
pub(crate) fn write_files(
    transaction: &mut Transaction<'_>,
    layer: &Layer,
    tree: &LayerTree,
    ids: &[Id],
    guess: Option<&Guess>,
) -> Result<String, Error> {
    let guess = guess.map(|guess| guess.of_layer(tree.has_others));
    let guess = guess.as_ref();
    let mut stored = Stored {
        transaction,
        labels: guess.map(|guess| (guess, Labeller::new(guess.policy().clone()))),
    };
    let root = tree
        .finish(ids, &mut stored)
        .map_err(|trouble| match trouble {
            Trouble::Misfit(misfit) => Error::Layer {
                digest: layer.digest.clone(),
                reason: misfit.to_string(),
            },
            Trouble::Write(error) => error,
        })?;
    let metadata = importer_metadata(layer, guess.and_then(Guess::mark));
    transaction.write_commit(&root, None, &metadata, 0)
}

/// Either kind of trouble while a layer's tree is finished.
enum Trouble {
    Misfit(Misfit),
    Write(Error),
}

impl From<Misfit> for Trouble {
    fn from(misfit: Misfit) -> Self {
        Self::Misfit(misfit)
    }
}

/// The repository, and the labels of what goes into it.
struct Stored<'a, 'repo> {
    transaction: &'a mut Transaction<'repo>,
    labels: Option<(&'a Guess, Labeller)>,
}

impl Stored<'_, '_> {
    fn relabel(&mut self, path: &Path, id: Id) -> Result<Id, Error> {
        let Some((guess, labeller)) = &mut self.labels else {
            return Ok(id);
        };
        let seen = labeller.look_at(self.transaction, id)?;
        let label = guess.label(&display(path), seen.mode)?;
        // It may have come with the label; who knows is the one who merges.
        if label.is_none() && guess.mark().is_none() {
            return Ok(id);
        }
        labeller.set_label(self.transaction, id, label)
    }
}

impl Objects<Trouble> for Stored<'_, '_> {
    fn directory(&mut self, path: &Path, attributes: &Attributes) -> Result<Id, Trouble> {
        let labelled = match &self.labels {
            Some((guess, _)) => guess.attributes(&display(path), attributes.clone()),
            None => return self.transaction.dirmeta(attributes).map_err(Trouble::Write),
        };
        let stored = labelled.and_then(|attributes| self.transaction.dirmeta(&attributes));
        stored.map_err(Trouble::Write)
    }

    fn linked(&mut self, path: &Path, id: Id) -> Result<Id, Trouble> {
        self.relabel(path, id).map_err(Trouble::Write)
    }
}
