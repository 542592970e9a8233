//! The direction of dependencies, asserted by reading the sources (ARCHITECTURE.md).

#[cfg(test)]
mod layering {
    use std::path::{Path, PathBuf};

    /// Which of our own modules each area may name. An area that is missing here fails.
    const MAY_NAME: &[(&str, &[&str])] = &[
        ("config", &[]),
        ("state", &[]),
        ("record", &["packages"]),
        ("inhibit", &[]),
        ("kargs", &[]),
        ("etc", &[]),
        ("observe", &[]),
        ("packages", &[]),
        ("image", &[]),
        ("chunked", &["image"]),
        ("delta", &["image"]),
        (
            "import",
            &["chunked", "delta", "etc", "image", "kargs", "packages"],
        ),
        ("sysroot", &["image", "kargs"]),
        (
            "error",
            &[
                "image", "import", "jobs", "observe", "packages", "record", "state", "sysroot",
            ],
        ),
        (
            "jobs",
            &[
                "config", "delta", "error", "etc", "image", "import", "inhibit", "kargs",
                "observe", "packages", "record", "state", "sysroot",
            ],
        ),
        (
            "engine",
            &[
                "config", "error", "image", "inhibit", "jobs", "observe", "packages", "record",
                "state", "sysroot",
            ],
        ),
        ("report", &["engine"]),
        ("lifetime", &["engine", "report"]),
        (
            "service",
            &[
                "engine", "etc", "image", "inhibit", "jobs", "kargs", "observe", "packages",
                "sysroot",
            ],
        ),
        ("lib", &[]),
        (
            "main",
            &[
                "config", "engine", "lifetime", "observe", "report", "service", "sysroot",
            ],
        ),
    ];

    /// Crates that only some areas may name.
    const CRATES: &[(&str, &[&str])] = &[
        ("zbus", &["service", "observe", "lifetime", "main"]),
        ("zbus_polkit", &["service"]),
        ("osteward_dbus", &["service", "engine", "error", "main"]),
        ("ostree", &["sysroot", "import"]),
        ("reqwest", &["image"]),
        ("oci_client", &["image"]),
        ("oci_spec", &["image"]),
        ("rustls", &["image"]),
    ];

    fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    /// The code of a file without comments and without its tests.
    fn code(path: &Path) -> String {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        let lines = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The identifiers that follow `prefix` where it stands for itself.
    fn named_after(code: &str, prefix: &str) -> Vec<String> {
        code.match_indices(prefix)
            .filter(|(at, _)| {
                let before = code[..*at].chars().next_back().unwrap_or(' ');
                !before.is_alphanumeric() && before != '_' && before != ':'
            })
            .flat_map(|(at, _)| {
                let rest = &code[at + prefix.len()..];
                let group = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
                let names = group.map_or(rest, |(names, _)| names);
                let count = if group.is_some() { usize::MAX } else { 1 };
                names
                    .split(',')
                    .take(count)
                    .map(first_word)
                    .collect::<Vec<_>>()
            })
            .filter(|name| !name.is_empty())
            .collect()
    }

    fn first_word(text: &str) -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    }

    fn area(source: &Path, root: &Path) -> String {
        let relative = source.strip_prefix(root).unwrap();
        let first = relative.iter().next().unwrap().to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    }

    fn each_source(mut check: impl FnMut(&str, &Path, &str)) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found = Vec::new();
        sources(&root, &mut found);
        assert!(found.len() > 20, "the sources were not found");
        for source in found {
            check(&area(&source, &root), &source, &code(&source));
        }
    }

    #[test]
    fn modules_name_only_what_is_below_them() {
        each_source(|area, source, code| {
            let rule = MAY_NAME.iter().find(|(name, _)| *name == area);
            let (_, allowed) =
                rule.unwrap_or_else(|| panic!("{area} has no rule: add it to MAY_NAME"));
            let own = if area == "main" {
                "ostewardd::"
            } else {
                "crate::"
            };
            for name in named_after(code, own) {
                let is_module = MAY_NAME.iter().any(|(module, _)| *module == name);
                assert!(
                    !is_module || name == area || allowed.contains(&name.as_str()),
                    "{} names {name}, but {area} must not know it",
                    source.display()
                );
            }
        });
    }

    #[test]
    fn crates_are_named_only_where_they_belong() {
        each_source(|area, source, code| {
            for (name, areas) in CRATES {
                let named = !named_after(code, &format!("{name}::")).is_empty();
                assert!(
                    !named || areas.contains(&area),
                    "{} names {name}, which belongs to {areas:?}",
                    source.display()
                );
            }
        });
    }

    #[test]
    fn no_interface_method_takes_the_write_lock_and_unsafe_has_one_home() {
        each_source(|area, source, code| {
            assert!(
                area != "service" || !code.contains("&mut self"),
                "{}: `&mut self` would block every reader of the interface",
                source.display()
            );
            let home = source.ends_with("sysroot/symbols.rs");
            assert!(
                home || !code.contains("unsafe "),
                "{} is unsafe",
                source.display()
            );
        });
    }

    #[test]
    fn the_client_does_not_know_the_daemon() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        assert!(manifest.contains("osteward-dbus") && !manifest.contains("ostewardd"));
    }
}
