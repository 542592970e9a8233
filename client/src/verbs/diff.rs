//! `diff`: which packages are not the same, in an update or between two deployments.

use osteward_dbus::NO_OBJECT;
use osteward_dbus::types::{
    DeploymentInfo, PackageChange, PackageMove, Status, UpdateInfo, change,
};
use serde_json::{Value, json};
use zbus::OwnedObjectPath;

use crate::args::DiffArgs;
use crate::bus::Bus;
use crate::fail::{Exit, Failure};
use crate::json as dbus_json;
use crate::manner::Manner;
use crate::output::out;
use crate::pick;
use crate::show::diff::{self, Line};

/// The level of a difference that has all packages in it.
const FULL: &str = "full";

/// The packages of the update, or between two deployments that words name.
pub(super) async fn packages(bus: &Bus, manner: Manner, args: &DiffArgs) -> Result<Exit, Failure> {
    let (_, status) = bus.status().await?;
    if let (Some(old), Some(new)) = (&args.old, &args.new) {
        let (old, new) = (
            pick::deployment(&status, old)?,
            pick::deployment(&status, new)?,
        );
        return deployments(bus, manner, &status, [old, new]).await;
    }
    let staged = &status.host.staged_deployment;
    match &status.update {
        Some(update) => of_update(bus, manner, &status, update).await,
        // What is staged is no candidate any more when the daemon has started anew.
        None if staged.as_str() != NO_OBJECT => {
            let ends = [status.host.booted_deployment.clone(), staged.clone()];
            deployments(bus, manner, &status, ends).await
        }
        None => {
            if manner.json {
                manner.print_json(&json!({"update": null, "level": "none", "packages": []}));
            }
            manner.note("No update is known; `osteward check` looks for one.");
            Ok(Exit::Done)
        }
    }
}

async fn of_update(
    bus: &Bus,
    manner: Manner,
    status: &Status,
    update: &UpdateInfo,
) -> Result<Exit, Failure> {
    let path = &status.host.update;
    let rows = match update.diff_level.as_str() {
        FULL => bus.package_diff(path).await?,
        _ => Vec::new(),
    };
    let lines: Vec<Line> = rows.iter().map(of_change).collect();
    let booted = status.deployments.iter().find(|one| one.booted);
    if manner.json {
        manner.print_json(&json!({
            "update": path.as_str(),
            "level": update.diff_level,
            "digest": update.digest,
            "version": {"old": booted.map_or("", |one| one.version.as_str()), "new": update.version},
            "kernel": {"old": booted.map_or("", |one| one.kernel_version.as_str()), "new": update.kernel_version},
            "layers-missing": update.layers_missing,
            "download-size": update.download_size,
            "packages": diff::to_json(&lines),
        }));
        return Ok(Exit::Done);
    }
    let is_full = update.diff_level == FULL;
    tell(
        manner,
        || diff::update(update, booted, manner.look),
        is_full,
        &lines,
    );
    if !is_full {
        manner.note(match update.state.as_str() {
            "available" => {
                "Which packages differ is not known before the download: `osteward download` finds out."
            }
            _ => {
                "Which packages differ is not known: there is no package database of dpkg, rpm or apk \
                 that could be read, or nobody has looked yet (`osteward check` does)."
            }
        });
    }
    Ok(Exit::Done)
}

async fn deployments(
    bus: &Bus,
    manner: Manner,
    status: &Status,
    [old, new]: [OwnedObjectPath; 2],
) -> Result<Exit, Failure> {
    let moves = bus.packages_between(&old, &new).await?;
    let lines: Vec<Line> = moves.iter().map(of_move).collect();
    let info = |path: &OwnedObjectPath| -> Option<&DeploymentInfo> {
        let all = status.host.deployments.iter().zip(&status.deployments);
        all.into_iter()
            .find(|(other, _)| *other == path)
            .map(|(_, info)| info)
    };
    if manner.json {
        let kernel = |path| info(path).map_or("", |info| info.kernel_version.as_str());
        manner.print_json(&json!({
            "from": old.as_str(),
            "to": new.as_str(),
            "level": FULL,
            "kernel": {"old": kernel(&old), "new": kernel(&new)},
            "packages": diff::to_json(&lines),
        }));
        return Ok(Exit::Done);
    }
    let facts = || match (info(&old), info(&new)) {
        (Some(old), Some(new)) => diff::deployments(old, new, manner.look),
        _ => String::new(),
    };
    tell(manner, facts, true, &lines);
    Ok(Exit::Done)
}

/// Everything on a terminal; in a pipe only the packages, a line each.
fn tell(manner: Manner, facts: impl FnOnce() -> String, is_full: bool, lines: &[Line]) {
    if !manner.stdout_terminal {
        out!("{}", diff::plain_lines(lines));
        return;
    }
    out!("{}", facts());
    if is_full {
        out!("\n{}", diff::packages(lines, manner.look));
    }
}

fn of_change((name, number, old, new, arch, extra): &PackageChange) -> Line {
    let size = |key: &str| extra.get(key).and_then(|value| u64::try_from(value).ok());
    let sizes = (size("old-size"), size("new-size"));
    let growth = match sizes {
        (None, None) => None,
        // What was added or goes has one size only; else both have to be known.
        (Some(_), None) if *number != change::REMOVED => None,
        (None, Some(_)) if *number != change::ADDED => None,
        (old, new) => Some(i128::from(new.unwrap_or(0)) - i128::from(old.unwrap_or(0))),
    };
    Line {
        change: change::name(*number).to_owned(),
        name: name.clone(),
        arch: arch.clone(),
        old: old.clone(),
        new: new.clone(),
        growth,
        extra: Value::Object(dbus_json::object(extra)),
    }
}

fn of_move((name, change, old, new, arch): &PackageMove) -> Line {
    Line {
        change: change.clone(),
        name: name.clone(),
        arch: arch.clone(),
        old: old.clone(),
        new: new.clone(),
        growth: None,
        extra: json!({}),
    }
}

#[cfg(test)]
mod tests {
    use osteward_dbus::types::Dict;
    use zbus::OwnedVariant;

    use super::*;

    fn growth(number: u32, sizes: &[(&str, u64)]) -> Option<i128> {
        let sizes = sizes
            .iter()
            .map(|(key, size)| ((*key).to_owned(), OwnedVariant::from(*size)));
        let extra: Dict = sizes.collect();
        let (name, old, new) = ("a".to_owned(), "1".to_owned(), "2".to_owned());
        of_change(&(name, number, old, new, "all".to_owned(), extra)).growth
    }

    #[test]
    fn growth_is_known_when_all_sizes_are_that_there_can_be() {
        let (old, new) = (("old-size", 5), ("new-size", 3));
        assert_eq!(growth(change::UPGRADED, &[old, new]), Some(-2));
        assert_eq!(growth(change::UPGRADED, &[old]), None);
        assert_eq!(growth(change::UPGRADED, &[new]), None);
        assert_eq!(growth(change::ADDED, &[new]), Some(3));
        assert_eq!(growth(change::REMOVED, &[old]), Some(-5));
        assert_eq!(growth(change::REMOVED, &[]), None);
    }
}
