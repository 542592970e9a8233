//! What is written about the client against the client's own command line: the README, the
//! help and its examples, the manual pages.

#[cfg(test)]
#[path = "../src"]
#[expect(
    dead_code,
    unused_imports,
    reason = "only the description is used, not the values"
)]
mod client {
    pub(crate) mod args;
}

#[cfg(test)]
#[path = "../examples/manuals/page.rs"]
mod page;

#[cfg(test)]
mod documents {
    use std::collections::BTreeSet;
    use std::process::Stdio;

    use clap::{CommandFactory as _, Parser as _};
    use tokio::process::Command;

    use crate::client::args::Cli;
    use crate::page;

    const README: &str = include_str!("../../README.md");

    #[tokio::test]
    async fn a_reader_that_has_enough_is_no_failure() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = Command::new(env!("CARGO_BIN_EXE_osteward"))
            .args(["completion", "bash"])
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ended = ended.wait_with_output().await.unwrap();
        assert_eq!(ended.status.code(), Some(141));
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    }

    fn verbs() -> BTreeSet<String> {
        let command = Cli::command();
        let verbs = command.get_subcommands();
        verbs.map(|verb| verb.get_name().to_owned()).collect()
    }

    /// What the README sets in `code` that is a command of ours, also in indented blocks.
    fn commands_of_the_readme() -> Vec<String> {
        let mut found = Vec::new();
        for line in README.lines() {
            if let Some(block) = line.strip_prefix("    ") {
                let command = block
                    .rsplit_once("# ")
                    .map_or(block, |(_, command)| command);
                let command = if block.starts_with("osteward ") {
                    block
                } else {
                    command
                };
                let command = command.split(" #").next().unwrap_or_default();
                found.extend(command.starts_with("osteward ").then(|| command.to_owned()));
                continue;
            }
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(
                spans
                    .filter(|span| span.starts_with("osteward "))
                    .map(str::to_owned),
            );
        }
        found
    }

    /// The verb and whatever of the words is wrong.
    fn check(line: &str) -> Result<String, String> {
        let mut command = Cli::command();
        command.build();
        let mut words = line.split_whitespace().skip(1);
        let mut verb = &command;
        let first = words.next().unwrap_or_default().to_owned();
        // The options of osteward itself go with every verb.
        if first != "VERB" && !first.starts_with("--") {
            verb = command
                .find_subcommand(&first)
                .ok_or_else(|| format!("there is no verb {first}"))?;
        }
        for word in words.chain(first.starts_with("--").then_some(first.as_str())) {
            if let Some(deeper) = verb.find_subcommand(word) {
                verb = deeper;
            }
            let Some(name) = word.strip_prefix("--") else {
                continue;
            };
            let name = name.split(['=', ']', '|']).next().unwrap_or_default();
            let known = |argument: &clap::Arg| argument.get_long() == Some(name);
            if !name.is_empty() && name != "help" && !verb.get_arguments().any(known) {
                return Err(format!("{first} has no --{name}"));
            }
        }
        Ok(first)
    }

    #[test]
    fn the_readme_names_what_there_is_and_all_verbs() {
        let commands = commands_of_the_readme();
        let mut named = BTreeSet::new();
        for line in &commands {
            named.insert(check(line).unwrap_or_else(|wrong| panic!("README: `{line}`: {wrong}")));
        }
        let missing: Vec<String> = verbs().difference(&named).cloned().collect();
        assert!(
            missing.is_empty(),
            "the README does not mention {missing:?}"
        );
    }

    #[test]
    fn wrong_names_are_noticed() {
        assert!(check("osteward status --json").is_ok());
        assert!(check("osteward updat").is_err());
        assert!(check("osteward status --jsn").is_err());
        assert_eq!(check("osteward --version"), Ok("--version".into()));
    }

    /// What bootc has for hosts that run, as the left column of the comparison calls it.
    const OF_BOOTC: [&str; 45] = [
        "upgrade",
        "upgrade --check",
        "upgrade --download-only",
        "upgrade --from-downloaded",
        "upgrade --apply",
        "upgrade --soft-reboot",
        "upgrade --tag",
        "upgrade --quiet",
        "--progress-fd",
        "switch",
        "switch --transport",
        "switch --enforce-container-sigpolicy",
        "switch --retain",
        "rollback",
        "edit",
        "status",
        "usr-overlay",
        "install reset",
        "image list",
        "loader-entries set-options-for-source",
        "config-diff",
        "delete-deployment",
        "internals cleanup",
        "internals fsck",
        "ostree container image list",
        "ostree container image metadata",
        "ostree container image prune-layers",
        "ostree container image prune-images",
        "bootc-fetch-apply-updates.timer",
        "bootc-status-updated.path",
        "bootc-status-updated.target",
        "bootc-status-updated-onboot.target",
        "/run/reboot-required",
        "ostree-finalize-staged.path",
        "ostree-finalize-staged.service",
        "ostree-boot-complete.service",
        "/usr/lib/bootc/kargs.d",
        "/usr/lib/bootc/bound-images.d",
        "/usr/lib/ostree/prepare-root.conf",
        "auth.json",
        "/etc/containers/policy.json",
        "/etc/containers/registries.d",
        "/etc/containers/registries.conf",
        "/etc/containers/registries.conf.d",
        "/etc/containers/certs.d",
    ];

    /// Rows of the comparison: what bootc has, and what osteward has or why it has not.
    fn comparison() -> Vec<(String, String)> {
        let (_, section) = README.split_once("\n## Compared with bootc\n").unwrap();
        let section = section.split("\n## ").next().unwrap_or_default();
        let cells = |row: &str| {
            let row = row.strip_prefix("| ")?.strip_suffix(" |")?;
            let (left, right) = row.split_once(" | ")?;
            Some((left.to_owned(), right.to_owned()))
        };
        section.lines().filter_map(cells).skip(1).collect()
    }

    #[test]
    fn the_comparison_with_bootc_answers_every_row() {
        let rows = comparison();
        let spans = |cell: &str| {
            let spans = cell.split('`').skip(1).step_by(2);
            spans.map(str::to_owned).collect::<Vec<_>>()
        };
        let mut named: Vec<String> = rows.iter().flat_map(|(theirs, _)| spans(theirs)).collect();
        named.sort_unstable();
        let mut expected = OF_BOOTC.map(str::to_owned);
        expected.sort_unstable();
        assert_eq!(named, expected, "each once, and nothing else");
        for (theirs, ours) in &rows {
            assert!(theirs.contains('`'), "{theirs}: what of bootc is this?");
            let answered = ours.contains('`') || ours.starts_with("no: ");
            assert!(answered, "{theirs}: neither a name nor a reason: {ours}");
        }
    }

    /// The words of a command in an example, up to its comment.
    fn words(command: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for (index, c) in command.char_indices() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted && command[index..].starts_with("  ") => break,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(c),
            }
        }
        words
    }

    #[test]
    fn every_verb_teaches_with_examples_that_work() {
        for verb in Cli::command()
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
        {
            let name = verb.get_name();
            assert!(verb.get_long_about().is_some(), "{name}: no explanation");
            let help = verb
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("Examples:\n"), "{name}: no example");
            let mut own = 0;
            for line in help.lines() {
                for command in line.split(['|', ';', '>', '&']).map(str::trim) {
                    if !command.starts_with("osteward ") {
                        continue;
                    }
                    let words = words(command);
                    own += usize::from(words[1] == name);
                    if let Err(error) = Cli::try_parse_from(&words) {
                        panic!("{name}: {command}: {error}");
                    }
                }
            }
            assert!(own > 0, "{name}: its examples are of other verbs");
        }
    }

    #[test]
    fn every_verb_has_a_page_with_its_options_and_examples() {
        let pages = page::of_command(Cli::command()).unwrap();
        let names: BTreeSet<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains("osteward.1"));
        for verb in Cli::command()
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
        {
            let name = format!("osteward-{}.1", verb.get_name());
            let page = pages.iter().find(|(page, _)| *page == name);
            let text = String::from_utf8(page.unwrap_or_else(|| panic!("no {name}")).1.clone());
            let text = text.unwrap();
            for heading in [
                ".SH NAME",
                ".SH SYNOPSIS",
                ".SH EXAMPLES",
                ".SH \"SEE ALSO\"",
            ] {
                assert!(text.contains(heading), "{name}: no {heading}\n{text}");
            }
            for option in verb.get_arguments().filter_map(clap::Arg::get_long) {
                let option = option.replace('-', "\\-");
                assert!(text.contains(&option), "{name}: no {option}");
            }
        }
        let (_, root) = &pages[0];
        assert!(String::from_utf8_lossy(root).contains(".SH \"EXIT STATUS\""));
    }

    /// groff's own judgement, where it is installed; `make test` installs it.
    #[tokio::test]
    async fn pages_are_without_warnings() {
        let keys = include_str!("../../daemon/osteward.toml");
        let template = include_str!("../../daemon/man/osteward.toml.5.in");
        let configuration = page::of_configuration(template, keys, "0");
        assert!(
            configuration.contains("\\fBidle_timeout\\fR (default \"60s\")"),
            "{configuration}"
        );
        let mut pages = page::of_command(Cli::command()).unwrap();
        pages.push(("osteward.toml.5".into(), configuration.into_bytes()));
        let daemon = include_str!("../../daemon/man/ostewardd.8.in");
        pages.push(("ostewardd.8".into(), daemon.as_bytes().to_vec()));
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in pages {
            let path = directory.path().join(&name);
            std::fs::write(&path, text).unwrap();
            let groff = Command::new("groff")
                .args(["-Kutf8", "-man", "-Tutf8", "-ww", "-z"])
                .arg(&path)
                .stdin(Stdio::null())
                .output()
                .await
                .expect("groff is installed");
            let warnings = String::from_utf8_lossy(&groff.stderr);
            assert!(
                groff.status.success() && warnings.is_empty(),
                "{name}: {warnings}"
            );
        }
    }

    #[test]
    fn the_sections_of_the_help_are_those_of_the_page() {
        let help = "Exit status:\n   0  done\nwords\n\nOutput:\n  x\n\nMore words.\n";
        let expected = vec![
            ("EXIT STATUS".to_owned(), vec!["   0  done", "words", ""]),
            ("OUTPUT".to_owned(), vec!["  x", ""]),
            ("NOTES".to_owned(), vec!["More words."]),
        ];
        assert_eq!(page::sections(help), expected);
    }
}
