//! What `diff` says of packages.

use osteward_dbus::UNKNOWN;
use osteward_dbus::types::{DeploymentInfo, UpdateInfo};
use serde_json::{Value, json};

use super::{Facts, name, table};
use crate::text::{Look, bytes, plain};

/// A package that is not the same, in either form of the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// What happens to it.
    pub(crate) change: String,
    /// Its name.
    pub(crate) name: String,
    /// Its architecture.
    pub(crate) arch: String,
    /// Its version before; empty if it is new.
    pub(crate) old: String,
    /// Its version then; empty if it goes.
    pub(crate) new: String,
    /// By how much its size grows, in bytes; `None` if that is not known.
    pub(crate) growth: Option<i128>,
    /// What else is known.
    pub(crate) extra: Value,
}

/// The order in which kinds of changes are counted.
const CHANGES: [&str; 5] = ["upgraded", "downgraded", "added", "removed", "rebuilt"];

/// The facts above the table: the update against what is booted.
pub(crate) fn update(update: &UpdateInfo, booted: Option<&DeploymentInfo>, look: Look) -> String {
    let mut facts = Facts::new(look);
    let known = booted.map(|booted| name(&booted.version, &booted.digest));
    let new = name(&update.version, &update.digest);
    facts.add(
        "Image",
        arrow(known.as_deref().unwrap_or_default(), &new, look),
    );
    let kernel = booted.map_or("", |booted| booted.kernel_version.as_str());
    facts.add("Kernel", kernels(kernel, &update.kernel_version, look));
    facts.add("Layers", layers(update));
    facts.render("")
}

/// The same for two deployments.
pub(crate) fn deployments(old: &DeploymentInfo, new: &DeploymentInfo, look: Look) -> String {
    let mut facts = Facts::new(look);
    let [old_name, new_name] = [old, new].map(|one| {
        let name = name(&one.version, &one.digest);
        format!("{name}, {}", plain(&one.state))
    });
    facts.add("Image", arrow(&old_name, &new_name, look));
    facts.add(
        "Kernel",
        kernels(&old.kernel_version, &new.kernel_version, look),
    );
    facts.render("")
}

/// The packages for people: how many of each kind, and a table.
pub(crate) fn packages(lines: &[Line], look: Look) -> String {
    if lines.is_empty() {
        return "The packages are the same.\n".to_owned();
    }
    let mut rows = vec![["PACKAGE", "ARCH", "CHANGE", "VERSION"].map(str::to_owned)];
    for line in lines {
        rows.push([
            plain(&line.name),
            plain(&line.arch),
            plain(&line.change),
            arrow(&plain(&line.old), &plain(&line.new), look),
        ]);
    }
    format!("{}\n\n{}", counted(lines), table(&rows, look))
}

/// The packages for programs that read lines: change, name, architecture, versions.
pub(crate) fn plain_lines(lines: &[Line]) -> String {
    let shown = |text: &str| match text {
        "" => "-".to_owned(),
        text => plain(text),
    };
    let lines = lines.iter().map(|line| {
        let words = [&line.change, &line.name, &line.arch, &line.old, &line.new];
        words.map(|word| shown(word)).join(" ") + "\n"
    });
    lines.collect()
}

/// The packages as JSON.
pub(crate) fn to_json(lines: &[Line]) -> Value {
    let lines = lines.iter().map(|line| {
        let mut value = line.extra.clone();
        let own = json!({
            "name": line.name, "change": line.change, "architecture": line.arch,
            "old": line.old, "new": line.new,
        });
        if let (Some(value), Value::Object(own)) = (value.as_object_mut(), own) {
            value.extend(own);
        }
        value
    });
    lines.collect()
}

/// `3 upgraded, 1 added; 1.20 MiB more when installed`.
fn counted(lines: &[Line]) -> String {
    let count = |change: &&str| lines.iter().filter(|line| line.change == **change).count();
    let known = CHANGES.iter().map(|change| (change, count(change)));
    let known = known.filter(|(_, count)| *count > 0);
    let mut words: Vec<_> = known
        .map(|(change, count)| format!("{count} {change}"))
        .collect();
    let others = lines
        .iter()
        .filter(|line| !CHANGES.contains(&line.change.as_str()));
    match others.count() {
        0 => {}
        others => words.push(format!("{others} changed")),
    }
    let growths: Vec<i128> = lines.iter().filter_map(|line| line.growth).collect();
    let growth: i128 = growths.iter().sum();
    let size = u64::try_from(growth.unsigned_abs()).unwrap_or(u64::MAX);
    let grown = match growth {
        0 => String::new(),
        1.. => format!("; {} more when installed", bytes(size)),
        _ => format!("; {} less when installed", bytes(size)),
    };
    format!("{}{grown}", words.join(", "))
}

fn layers(update: &UpdateInfo) -> String {
    let mut words = format!(
        "{} of {} missing",
        update.layers_missing, update.layers_total
    );
    if update.layers_missing == u32::MAX {
        return String::new();
    }
    if update.download_size != UNKNOWN && update.download_size > 0 {
        words += &format!(
            ", {} to download of {}",
            bytes(update.download_size),
            bytes(update.total_size)
        );
    }
    words
}

fn kernels(old: &str, new: &str, look: Look) -> String {
    match (plain(old), plain(new)) {
        (old, new) if new.is_empty() || old == new => old,
        (old, new) => arrow(&old, &new, look),
    }
}

fn arrow(old: &str, new: &str, look: Look) -> String {
    let sign = if look.unicode { "→" } else { "->" };
    match (old, new) {
        ("", new) => new.to_owned(),
        (old, "") => old.to_owned(),
        (old, new) => format!("{old} {sign} {new}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    const PLAIN: Look = Look {
        color: false,
        unicode: true,
        width: None,
    };

    fn line(change: &str, name: &str, old: &str, new: &str, growth: Option<i128>) -> Line {
        Line {
            change: change.into(),
            name: name.into(),
            arch: "amd64".into(),
            old: old.into(),
            new: new.into(),
            growth,
            extra: json!({"manager": "dpkg"}),
        }
    }

    fn lines() -> Vec<Line> {
        vec![
            line("upgraded", "bash", "5.2.15-2+b7", "5.2.15-2+b8", Some(2048)),
            line("removed", "gone\u{1b}", "1:1", "", Some(-1024)),
            line("added", "new", "", "2~rc1", None),
        ]
    }

    #[test]
    fn a_table_for_people() {
        let expected = "\
1 upgraded, 1 added, 1 removed; 1.00 KiB more when installed

PACKAGE  ARCH   CHANGE    VERSION
bash     amd64  upgraded  5.2.15-2+b7 → 5.2.15-2+b8
gone\u{fffd}    amd64  removed   1:1
new      amd64  added     2~rc1
";
        assert_eq!(packages(&lines(), PLAIN), expected);
        assert_eq!(packages(&[], PLAIN), "The packages are the same.\n");
        let unknown = [line("replaced", "x", "1", "2", Some(-5))];
        assert!(packages(&unknown, PLAIN).starts_with("1 changed; 5 B less when installed\n"));
    }

    #[test]
    fn words_for_programs() {
        let expected = "\
upgraded bash amd64 5.2.15-2+b7 5.2.15-2+b8
removed gone\u{fffd} amd64 1:1 -
added new amd64 - 2~rc1
";
        assert_eq!(plain_lines(&lines()), expected);
        let document = to_json(&lines());
        assert_eq!(
            document[2],
            json!({"name": "new", "change": "added", "architecture": "amd64", "old": "",
                "new": "2~rc1", "manager": "dpkg"})
        );
    }

    #[test]
    fn facts_of_an_update_and_of_two_deployments() {
        let status = sample::status("available");
        let mut new = status.update.clone().unwrap();
        let booted = &status.deployments[0];
        let expected = " Image: 42 (sha256:aaaaaaaaaaaa) → 43 (sha256:cccccccccccc)
Kernel: 6.12.1
Layers: 7 of 60 missing, 120.00 MiB to download of 1.00 GiB
";
        assert_eq!(update(&new, Some(booted), PLAIN), expected);
        new.kernel_version = "6.12.2".into();
        new.layers_missing = u32::MAX;
        let expected = " Image: 42 (sha256:aaaaaaaaaaaa) → 43 (sha256:cccccccccccc)
Kernel: 6.12.1 → 6.12.2
";
        assert_eq!(update(&new, Some(booted), PLAIN), expected);
        let text = deployments(booted, &status.deployments[1], PLAIN);
        assert!(
            text.contains("42 (sha256:aaaaaaaaaaaa), booted → 41 (sha256:bbbbbbbbbbbb), rollback")
        );
    }
}
