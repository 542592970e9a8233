//! Differences in packages, as the API has them.
//!
//! Owns the words and numbers of a change, and how much is told at a time.

use osteward_dbus::types::{Dict, PackageChange, PackageMove, change};
use osteward_dbus::{DEPLOYMENT_PREFIX, Error};
use zbus::{ObjectPath, OwnedVariant, Variant};

use crate::engine::{Engine, Status};
use crate::packages::{Change, Package, Row};

/// Rows in one answer: far below what a message may have, whatever is in them.
const AT_MOST: usize = 2000;

/// A part of what changes with the candidate of that digest, and how much there is in all.
pub(super) fn of_update(
    status: &Status,
    digest: &str,
    offset: u64,
    max: u32,
) -> (Vec<PackageChange>, u64) {
    let is_it = status
        .offer()
        .is_some_and(|offer| offer.image.digest.as_str() == digest);
    let Some(difference) = status.difference.as_ref().filter(|_| is_it) else {
        return (Vec::new(), 0);
    };
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let max = match usize::try_from(max) {
        Ok(0) | Err(_) => AT_MOST,
        Ok(max) => max.min(AT_MOST),
    };
    let rows = difference.rows.iter().skip(offset).take(max);
    (rows.map(changed).collect(), difference.rows.len() as u64)
}

/// What changes from one deployment to another.
pub(super) async fn between(
    engine: &Engine,
    from: &str,
    to: &ObjectPath<'_>,
) -> Result<Vec<PackageMove>, Error> {
    let id = to.strip_prefix(DEPLOYMENT_PREFIX);
    let id = id.and_then(|id| id.strip_prefix('/'));
    let difference = engine.packages_between(from, id.unwrap_or(to)).await;
    let difference = difference.map_err(|error| error.to_bus())?;
    let moves = difference.rows.iter().map(|row| {
        let (name, number, old, new, arch, _) = changed(row);
        (name, change::name(number).to_owned(), old, new, arch)
    });
    Ok(moves.collect())
}

fn changed(row: &Row) -> PackageChange {
    let number = match row.change {
        Change::Added => change::ADDED,
        Change::Removed => change::REMOVED,
        Change::Upgraded => change::UPGRADED,
        Change::Downgraded => change::DOWNGRADED,
        Change::Rebuilt => change::REBUILT,
    };
    let version = |package: &Option<Package>| {
        let version = package.as_ref().map(|package| package.version.clone());
        version.unwrap_or_default()
    };
    let (name, arch) = row
        .package()
        .map(|package| (package.name.clone(), package.arch.clone()))
        .unwrap_or_default();
    (
        name,
        number,
        version(&row.old),
        version(&row.new),
        arch,
        extra(row),
    )
}

/// What is known besides.
fn extra(row: &Row) -> Dict {
    let text = |text: &str| OwnedVariant::try_from(Variant::from(text)).ok();
    let size = |package: &Option<Package>| {
        let size = package.as_ref().map_or(0, |package| package.size);
        (size > 0).then(|| OwnedVariant::from(size))
    };
    let package = row.package();
    let source = package.map(|package| package.source.as_str());
    let entries = [
        (
            "manager",
            package.and_then(|package| text(package.manager.name())),
        ),
        (
            "source",
            source.filter(|source| !source.is_empty()).and_then(text),
        ),
        ("old-size", size(&row.old)),
        ("new-size", size(&row.new)),
    ];
    let known = entries
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    known.collect()
}
