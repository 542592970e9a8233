//! What two lists of packages do not have in common. Pure.
//!
//! Packages are matched by manager and name; of a name that is installed more than once, what
//! is the same on both sides goes first, then architectures that both sides have once. What is
//! left over was added or removed.

use std::cmp::Ordering;

use super::{Inventory, Package, version};

/// What happened to a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Its version is higher.
    Upgraded,
    /// Its version is lower.
    Downgraded,
    /// Its version means the same, but it is another package.
    Rebuilt,
}

/// One package that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What happened.
    pub change: Change,
    /// What was there; `None` if it was added.
    pub old: Option<Package>,
    /// What is there then; `None` if it was removed.
    pub new: Option<Package>,
}

/// How two images differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// The packages that are not the same, by name.
    pub rows: Vec<Row>,
    /// The kernel's release before; empty if unknown.
    pub old_kernel: String,
    /// The kernel's release then; empty if unknown.
    pub new_kernel: String,
}

impl Row {
    fn added(new: &Package) -> Self {
        Self {
            change: Change::Added,
            old: None,
            new: Some(new.clone()),
        }
    }

    fn removed(old: &Package) -> Self {
        Self {
            change: Change::Removed,
            old: Some(old.clone()),
            new: None,
        }
    }

    fn changed(old: &Package, new: &Package) -> Self {
        let change = match version::compare(old.manager, &old.version, &new.version) {
            Ordering::Less => Change::Upgraded,
            Ordering::Greater => Change::Downgraded,
            Ordering::Equal => Change::Rebuilt,
        };
        Self {
            change,
            old: Some(old.clone()),
            new: Some(new.clone()),
        }
    }

    /// The package, as it is then if it is there.
    pub fn package(&self) -> Option<&Package> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

/// How `new` differs from `old`.
pub fn compare(old: &Inventory, new: &Inventory) -> Difference {
    let mut rows = Vec::new();
    each_group(&sorted(old), &sorted(new), name, |olds, news| {
        compare_name(olds, news, &mut rows);
    });
    rows.sort_by(|one, other| key(one).cmp(&key(other)));
    Difference {
        rows,
        old_kernel: old.kernel.clone(),
        new_kernel: new.kernel.clone(),
    }
}

fn name(package: &Package) -> (super::Manager, &str) {
    (package.manager, &package.name)
}

fn version_of(package: &Package) -> (&str, &str) {
    (&package.arch, &package.version)
}

fn arch(package: &Package) -> &str {
    &package.arch
}

fn key(row: &Row) -> Option<(&str, &str, super::Manager)> {
    let package = row.package()?;
    Some((&package.name, &package.arch, package.manager))
}

fn sorted(inventory: &Inventory) -> Vec<&Package> {
    let mut packages: Vec<_> = inventory.packages.iter().collect();
    // They mostly are, which costs next to nothing then.
    packages.sort();
    packages
}

/// Walks two sorted lists together: calls `each` with what has the same key on both sides,
/// where one of them can be nothing.
fn each_group<'a, K: Ord>(
    mut olds: &[&'a Package],
    mut news: &[&'a Package],
    key: impl Fn(&'a Package) -> K,
    mut each: impl FnMut(&[&'a Package], &[&'a Package]),
) {
    loop {
        let firsts = [olds, news].into_iter().filter_map(|list| list.first());
        let Some(least) = firsts.map(|package| key(package)).min() else {
            return;
        };
        let count = |list: &[&'a Package]| {
            let same = list.iter().take_while(|package| key(package) == least);
            same.count()
        };
        let (old, old_rest) = olds.split_at(count(olds));
        let (new, new_rest) = news.split_at(count(news));
        each(old, new);
        (olds, news) = (old_rest, new_rest);
    }
}

/// All that is installed under one name on either side.
fn compare_name(olds: &[&Package], news: &[&Package], rows: &mut Vec<Row>) {
    let (mut old_rest, mut new_rest) = (Vec::new(), Vec::new());
    each_group(olds, news, version_of, |olds, news| {
        for (old, new) in olds.iter().zip(news) {
            let are_known = !old.build.is_empty() && !new.build.is_empty();
            if are_known && old.build != new.build {
                rows.push(Row::changed(old, new));
            }
        }
        old_rest.extend(olds.iter().skip(news.len()).copied());
        new_rest.extend(news.iter().skip(olds.len()).copied());
    });
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    each_group(&old_rest, &new_rest, arch, |olds, news| {
        if let ([old], [new]) = (olds, news) {
            rows.push(Row::changed(old, new));
        } else {
            removed.extend_from_slice(olds);
            added.extend_from_slice(news);
        }
    });
    // The architecture itself changed, as when a package turns into one for all of them.
    if let ([old], [new]) = (&removed[..], &added[..]) {
        rows.push(Row::changed(old, new));
        return;
    }
    rows.extend(removed.into_iter().map(Row::removed));
    rows.extend(added.into_iter().map(Row::added));
}

#[cfg(test)]
mod tests {
    use super::super::Manager;
    use super::*;

    fn package(name: &str, arch: &str, version: &str) -> Package {
        Package {
            manager: Manager::Dpkg,
            name: name.into(),
            arch: arch.into(),
            version: version.into(),
            source: name.into(),
            size: 1,
            build: String::new(),
        }
    }

    fn inventory(packages: &[&str]) -> Inventory {
        let packages = packages.iter().map(|words| {
            let words: Vec<&str> = words.split(' ').collect();
            package(words[0], words[1], words[2])
        });
        Inventory {
            packages: packages.collect(),
            ..Inventory::default()
        }
    }

    fn shown(difference: &Difference) -> Vec<String> {
        let version = |package: &Option<Package>| {
            package
                .as_ref()
                .map_or("-", |one| one.version.as_str())
                .to_owned()
        };
        let rows = difference.rows.iter().map(|row| {
            let package = row.package().unwrap();
            let (old, new) = (version(&row.old), version(&row.new));
            format!(
                "{:?} {} {} {old} {new}",
                row.change, package.name, package.arch
            )
        });
        rows.collect()
    }

    fn differ(old: &[&str], new: &[&str]) -> Vec<String> {
        shown(&compare(&inventory(old), &inventory(new)))
    }

    #[test]
    fn each_kind_of_change_by_name() {
        let old = [
            "b all 1",
            "a amd64 1",
            "d amd64 1:0",
            "e amd64 1.0",
            "same all 3",
        ];
        let new = [
            "b all 2",
            "same all 3",
            "c amd64 1",
            "d amd64 9",
            "e amd64 1.0-0",
        ];
        assert_eq!(
            differ(&old, &new),
            [
                "Removed a amd64 1 -",
                "Upgraded b all 1 2",
                "Added c amd64 - 1",
                "Downgraded d amd64 1:0 9",
                "Rebuilt e amd64 1.0 1.0-0",
            ]
        );
        assert_eq!(differ(&old, &old), Vec::<String>::new());
        assert_eq!(differ(&[], &[]), Vec::<String>::new());
    }

    #[test]
    fn a_name_on_two_architectures_and_in_two_versions() {
        assert_eq!(
            differ(&["c amd64 1", "c i386 1"], &["c amd64 2", "c i386 1"]),
            ["Upgraded c amd64 1 2"]
        );
        assert_eq!(
            differ(&["c amd64 1", "c i386 1"], &["c amd64 2"]),
            ["Upgraded c amd64 1 2", "Removed c i386 1 -"]
        );
        assert_eq!(differ(&["c amd64 1"], &["c all 2"]), ["Upgraded c all 1 2"]);
        assert_eq!(differ(&["c amd64 1"], &["c all 1"]), ["Rebuilt c all 1 1"]);
        // As kernels: what is kept is no change.
        assert_eq!(
            differ(&["k x 1", "k x 2"], &["k x 2", "k x 3"]),
            ["Upgraded k x 1 3"]
        );
        assert_eq!(
            differ(&["k x 1", "k x 2"], &["k x 3"]),
            ["Removed k x 1 -", "Removed k x 2 -", "Added k x - 3"]
        );
    }

    #[test]
    fn another_build_of_the_same_version_is_seen_where_builds_are_known() {
        let with = |build: &str| {
            let mut inventory = inventory(&["a x 1"]);
            inventory.packages[0].build = build.into();
            inventory
        };
        let rebuilt = compare(&with("one"), &with("other"));
        assert_eq!(shown(&rebuilt), ["Rebuilt a x 1 1"]);
        assert!(compare(&with("one"), &with("")).rows.is_empty());
        assert!(compare(&with("one"), &with("one")).rows.is_empty());
    }

    #[test]
    fn managers_do_not_mix() {
        let mut other = inventory(&["a x 2"]);
        other.packages[0].manager = Manager::Rpm;
        let difference = compare(&inventory(&["a x 1"]), &other);
        assert_eq!(shown(&difference), ["Removed a x 1 -", "Added a x - 2"]);
    }

    #[test]
    fn many_packages_of_one_name_take_no_long() {
        let many = |from: usize| Inventory {
            packages: (from..from + 50_000)
                .map(|number| package("a", "x", &number.to_string()))
                .collect(),
            ..Inventory::default()
        };
        let difference = compare(&many(0), &many(25_000));
        assert_eq!(difference.rows.len(), 50_000);
    }
}
