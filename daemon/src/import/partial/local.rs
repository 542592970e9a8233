//! What a layer needs that is not fetched: objects without content, and contents that are here under another
//! header.
//!
//! Invariant: what is here is believed only when it was looked at in the transaction that is open.

use std::path::Path;
use std::sync::Arc;

use ostree::gio;

use super::wanted::{self, Wanted};
use super::{Looked, Setback, known};
use crate::import::error::{During as _, Error};
use crate::import::index::Contents;
use crate::import::objects::{Id, Payload};
use crate::import::transaction::tmp_dir;
use crate::import::write_pool::{self, Hashing, WritePool};

/// Writes objects that need nothing from elsewhere: those without content, and those whose content is
/// here under another header. Tells how many of the latter cannot be read as expected.
pub(super) fn write_local(
    looked: &mut Looked,
    repo: &ostree::Repo,
    contents: &Arc<Contents>,
    cancellable: &gio::Cancellable,
) -> Result<usize, Setback> {
    let tmp = tmp_dir(repo);
    let (mut written, mut lost) = (Vec::new(), 0);
    let ids = std::thread::scope(|scope| {
        let mut pool = WritePool::start(scope, repo, tmp.clone(), Some(contents), cancellable);
        let all = looked.wanted.targets.iter().zip(&mut looked.elsewhere);
        for (index, (target, elsewhere)) in all.enumerate() {
            if target.id.is_some() {
                continue;
            }
            let slot = match (target.content, &*elsewhere) {
                (None, _) => pool.push(Payload::Memory(target.header.clone())),
                (Some(content), Some(object)) => {
                    match recast(repo, object, target, &content, &tmp, cancellable) {
                        Ok(Some((payload, known))) => pool.push_with(payload, known),
                        Ok(None) => {
                            *elsewhere = None;
                            lost += 1;
                            continue;
                        }
                        Err(error) => return pool.finish().and(Err(error)),
                    }
                }
                (Some(_), None) => continue,
            };
            match slot {
                Ok(slot) => written.push((index, slot)),
                // The writers say why when they are joined.
                Err(_) => break,
            }
        }
        pool.finish()
    })?;
    for (index, slot) in written {
        looked.wanted.targets[index].id = Some(ids[slot]);
    }
    Ok(lost)
}

/// The object with the content of another one; `None` if that is not what the index says.
fn recast(
    repo: &ostree::Repo,
    object: &Id,
    target: &wanted::Target,
    content: &wanted::Content,
    tmp: &Path,
    cancellable: &gio::Cancellable,
) -> Result<Option<(Payload, write_pool::Content)>, Error> {
    let Some(file) = known::open(repo, object, cancellable)? else {
        return Ok(None);
    };
    let mut hashing = Hashing::new(file);
    match Payload::read(target.header.clone(), content.size, &mut hashing, tmp) {
        Ok(payload) if hashing.finish() == content.digest => {
            let known = write_pool::Content::Known {
                content: content.digest,
                header: target.header_id,
                size: content.size,
            };
            Ok(Some((payload, known)))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).during("reading a file again"),
    }
}

/// Between two transactions anybody may prune, and a slice holds only what was fetched for it: what was
/// here before, or needed nothing, may be gone.
pub(super) fn forget_removed(
    wanted: &mut Wanted,
    repo: &ostree::Repo,
    cancellable: &gio::Cancellable,
) -> Result<(), Error> {
    for target in &mut wanted.targets {
        if let Some(id) = target.id
            && !known::has_object(repo, &id, cancellable)?
        {
            target.id = None;
        }
    }
    Ok(())
}
