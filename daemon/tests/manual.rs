//! What is written about the configuration says what the configuration is.

#[cfg(test)]
mod manual {
    use std::collections::{BTreeMap, BTreeSet};

    use ostewardd::config::{Config, parse};

    /// The one list of all keys: of the README, of osteward.toml(5), and installed as it is.
    const KEYS: &str = include_str!("../osteward.toml");
    const README: &str = include_str!("../../README.md");

    type Tables = BTreeMap<String, BTreeSet<String>>;

    /// The names that a parser expects where it met `unknown`, from its own words.
    fn expected(document: &str) -> BTreeSet<String> {
        let message = parse(document, "test").unwrap_err().to_string();
        let (_, names) = message.split_once("expected").unwrap();
        names
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn the_list_has_every_key_and_every_default() {
        let written = parse(KEYS, "osteward.toml").unwrap();
        assert_eq!(written.resolve("osteward.toml").unwrap(), Config::default());
        let tables = expected("[unknown]");
        let all: Tables = tables
            .into_iter()
            .map(|table| {
                let keys = expected(&format!("[{table}]\nunknown = 0"));
                (table, keys)
            })
            .collect();
        let mut listed = Tables::new();
        let mut table = String::new();
        for line in KEYS.lines() {
            match line.strip_prefix('[') {
                Some(name) => table = name.trim_end_matches(']').to_owned(),
                None => {
                    let (key, meaning) = line.split_once(" = ").unwrap();
                    assert!(meaning.contains(" # "), "{key} is not explained");
                    listed.entry(table.clone()).or_default().insert(key.into());
                }
            }
        }
        assert_eq!(listed, all);
    }

    #[test]
    fn the_readme_has_the_same_list() {
        let indented: String = KEYS.lines().map(|line| format!("    {line}\n")).collect();
        assert!(README.contains(&indented), "the README lacks:\n{indented}");
    }
}
