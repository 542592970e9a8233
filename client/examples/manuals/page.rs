//! Manual pages as text in roff.
//!
//! Owns their form: the order of sections, and how the help's own sections (`Examples:`,
//! `Exit status:`) become those of a page. Pure.

use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// The pages of a command and of all its verbs: file names and texts.
///
/// # Errors
/// Never in memory; the writer's type has them.
pub(crate) fn of_command(command: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let version = command.get_version().unwrap_or_default().to_owned();
    let mut pages = Vec::new();
    collect(&command, &version, &mut pages)?;
    Ok(pages)
}

fn collect(command: &Command, version: &str, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let man = Man::new(command.clone())
        .source(format!("osteward {version}"))
        .manual("osteward");
    pages.push((man.get_filename(), page(command, &man)?));
    let shown = command.get_subcommands();
    shown
        .filter(|verb| !verb.is_hide_set())
        .try_for_each(|verb| collect(verb, version, pages))
}

fn page(command: &Command, man: &Man) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    let is_root = man.get_filename() == "osteward.1";
    if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    man.render_options_section(&mut text)?;
    let more = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    let more = more.map(ToString::to_string).unwrap_or_default();
    let mut roff = Roff::new();
    for (heading, lines) in sections(&more) {
        roff.control("SH", [heading.as_str()]);
        render(&mut roff, &lines);
    }
    roff.control("SH", ["SEE ALSO"]);
    let others: &[&str] = match is_root {
        true => &["osteward.toml(5)", "ostewardd(8)", "ostree(1)", "bootc(8)"],
        false => &["osteward(1)", "ostewardd(8)"],
    };
    roff.text([roman(others.join(", "))]);
    roff.to_writer(&mut text)?;
    Ok(text)
}

/// What follows the options in the help: headings and their lines. What stands after an empty
/// line without a heading, and is not indented, is a section of notes.
pub(crate) fn sections(help: &str) -> Vec<(String, Vec<&str>)> {
    let mut sections: Vec<(String, Vec<&str>)> = Vec::new();
    let mut after_empty = true;
    for line in help.lines() {
        let indented = line.starts_with(' ');
        match line.strip_suffix(':').filter(|_| !indented) {
            Some(heading) => sections.push((heading.to_uppercase(), Vec::new())),
            None if after_empty && !indented && !line.is_empty() => {
                sections.push(("NOTES".to_owned(), vec![line]));
            }
            None => match sections.last_mut() {
                Some((_, lines)) => lines.push(line),
                None => sections.push(("NOTES".to_owned(), vec![line])),
            },
        }
        after_empty = line.is_empty();
    }
    sections
}

/// Indented lines stay as they are, others are running text.
fn render(roff: &mut Roff, lines: &[&str]) {
    let end = lines.iter().rposition(|line| !line.is_empty());
    let lines = &lines[..end.map_or(0, |last| last + 1)];
    for group in lines.chunk_by(|a, b| a.starts_with(' ') == b.starts_with(' ')) {
        let verbatim = group[0].starts_with(' ');
        if verbatim {
            roff.control("nf", []);
        }
        for line in group {
            match line.trim_end() {
                "" => roff.control("PP", []),
                line => roff.text([roman(line)]),
            };
        }
        if verbatim {
            roff.control("fi", []);
        }
    }
}

/// `osteward.toml(5)`: the template, with the file of all keys as its table.
pub(crate) fn of_configuration(template: &str, keys: &str, version: &str) -> String {
    let mut roff = Roff::new();
    for line in keys.lines() {
        let Some((key, rest)) = line.split_once(" = ") else {
            if line.starts_with('[') {
                roff.control("SS", [line]);
            }
            continue;
        };
        let (default, meaning) = rest.split_once(" # ").unwrap_or((rest, ""));
        let default = roman(format!(" (default {})", default.trim()));
        roff.control("TP", []);
        roff.text([bold(key), default]);
        roff.text([roman(meaning.trim())]);
    }
    template
        .replace("@KEYS@\n", &roff.to_roff())
        .replace("@VERSION@", version)
}
