//! Kernel arguments: what a command line is made of, how it is edited, and what an update
//! makes of it.
//!
//! Pure. Invariants: what nobody asked to change stays, and in its place; libostree's own
//! argument, which says which deployment boots, is never among those that are edited.

use std::fmt;

/// What libostree adds to every boot entry.
const OURS: &str = "ostree";
/// The longest command line: as long as any architecture's kernel reads it by default.
const LONGEST: usize = 4096;

/// The arguments of a boot entry in their order, without libostree's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments(Vec<String>);

impl Arguments {
    /// Those of an entry; `all` may have libostree's own.
    pub fn new<S: AsRef<str>>(all: impl IntoIterator<Item = S>) -> Self {
        let all = all.into_iter().map(|argument| argument.as_ref().to_owned());
        Self(all.filter(|argument| key(argument) != OURS).collect())
    }

    /// One string an argument.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    fn has(&self, argument: &str) -> bool {
        self.0.iter().any(|known| known == argument)
    }

    /// What an update makes of them. `before` and `after` are what the image that the arguments
    /// belong to and the new image bring along.
    ///
    /// What the image no longer brings goes, what it newly brings comes last. Where the host has
    /// put another value in place of the image's, the host's stays, also when the image's
    /// changes.
    pub fn updated(&self, before: &[String], after: &[String]) -> Self {
        let is_gone = |argument: &String| before.contains(argument) && !after.contains(argument);
        let mut updated: Vec<String> = self.0.clone();
        updated.retain(|argument| !is_gone(argument));
        let replaced_here = |new: &String| {
            let same_key = |argument: &&String| key(argument) == key(new);
            let mut dropped = before.iter().filter(same_key);
            let mut own = self.0.iter().filter(same_key);
            dropped.any(|argument| is_gone(argument) && !self.has(argument))
                && own.any(|argument| !before.contains(argument) && !after.contains(argument))
        };
        for new in after {
            let is_known = before.contains(new) || updated.contains(new);
            if !is_known && key(new) != OURS && !replaced_here(new) {
                updated.push(new.clone());
            }
        }
        Self(updated)
    }

    /// What is in `other` and not here, and what is here and not in `other`; an argument that
    /// is there twice counts twice.
    pub fn difference(&self, other: &Self) -> (Vec<String>, Vec<String>) {
        (without(&other.0, &self.0), without(&self.0, &other.0))
    }
}

fn without(these: &[String], those: &[String]) -> Vec<String> {
    let mut those: Vec<&String> = those.iter().collect();
    let is_left = |argument: &&String| match those.iter().position(|other| other == argument) {
        Some(at) => {
            those.swap_remove(at);
            false
        }
        None => true,
    };
    these.iter().filter(is_left).cloned().collect()
}

/// The arguments of a command line as the kernel tells them apart: at white space that is not
/// between double quotes.
pub fn split(line: &str) -> Vec<String> {
    let mut quoted = false;
    let separates = |c: char| {
        quoted ^= c == '"';
        c.is_ascii_whitespace() && !quoted
    };
    let words = line.split(separates).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// What is before the first `=`, or all of it.
fn key(argument: &str) -> &str {
    argument.split_once('=').map_or(argument, |(key, _)| key)
}

/// Why arguments cannot be changed like that; a sentence for who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether it is one argument that a boot entry can have.
///
/// # Errors
/// When it is none, or several, or libostree's own.
pub fn check(argument: &str) -> Result<(), Refused> {
    let refuse = |why: &str| Err(Refused(format!("{argument:?} {why}")));
    if argument.chars().any(char::is_control) {
        return refuse("has characters that no boot entry can have");
    }
    if !argument.matches('"').count().is_multiple_of(2) {
        return refuse("has a quotation mark that is not closed");
    }
    if split(argument).len() != 1 || argument.trim() != argument {
        return refuse("is not one kernel argument; put double quotes around white space");
    }
    match key(argument) {
        "" => refuse("begins with \"=\""),
        OURS => refuse("is libostree's own argument, which follows from the deployment"),
        _ => Ok(()),
    }
}

/// Changes of a command line, in this order: delete, replace, append.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    /// `KEY=VALUE` goes, every time it is there; `KEY` as well, and also if it has one value.
    pub delete: Vec<String>,
    /// `KEY=NEW` for a key with one value, `KEY=OLD=NEW` for one of several.
    pub replace: Vec<String>,
    /// These come last, whether they are there already or not.
    pub append: Vec<String>,
}

impl Edit {
    /// Whether every argument of it is one.
    ///
    /// # Errors
    /// For the first that is none.
    pub fn check(&self) -> Result<(), Refused> {
        let mut all = self.delete.iter().chain(&self.replace).chain(&self.append);
        if all.clone().next().is_none() {
            return Err(Refused("nothing is to be changed".into()));
        }
        all.try_for_each(|argument| check(argument))
    }

    /// The arguments after it.
    ///
    /// # Errors
    /// When what is to be deleted or replaced is not there, or could be several.
    pub fn apply(&self, to: &Arguments) -> Result<Arguments, Refused> {
        let mut arguments = to.0.clone();
        for deleted in &self.delete {
            delete(&mut arguments, deleted)?;
        }
        for replaced in &self.replace {
            replace(&mut arguments, replaced)?;
        }
        arguments.extend(self.append.iter().cloned());
        let length = arguments.iter().map(|one| one.len() + 1).sum::<usize>();
        if length > LONGEST {
            return Err(Refused(format!(
                "the command line would have {length} bytes; kernels read {LONGEST} at most"
            )));
        }
        Ok(Arguments(arguments))
    }
}

fn delete(arguments: &mut Vec<String>, deleted: &str) -> Result<(), Refused> {
    if arguments.iter().any(|argument| argument == deleted) {
        arguments.retain(|argument| argument != deleted);
        return Ok(());
    }
    if deleted.contains('=') {
        return Err(missing(deleted));
    }
    let only = only(arguments, deleted)?;
    arguments.remove(only);
    Ok(())
}

fn replace(arguments: &mut [String], replacement: &str) -> Result<(), Refused> {
    let key = key(replacement);
    // The longest of the values that are there, should one begin with another.
    let old = |argument: &String| {
        let value = argument.strip_prefix(key)?.strip_prefix('=')?;
        let new = replacement.strip_prefix(argument)?.strip_prefix('=')?;
        Some((value.len(), new.to_owned()))
    };
    let named = arguments.iter().enumerate();
    let named = named.filter_map(|(at, argument)| Some((old(argument)?, at)));
    let (at, new) = match named.max() {
        Some(((_, new), at)) => (at, format!("{key}={new}")),
        None => (only(arguments, key)?, replacement.to_owned()),
    };
    arguments[at] = new;
    Ok(())
}

/// The place of the one argument with that key.
fn only(arguments: &[String], wanted: &str) -> Result<usize, Refused> {
    let mut places = (0..arguments.len()).filter(|at| key(&arguments[*at]) == wanted);
    match (places.next(), places.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(Refused(format!(
            "{wanted} has several values; say which one is meant, as {wanted}=VALUE"
        ))),
        (None, _) => Err(missing(wanted)),
    }
}

fn missing(wanted: &str) -> Refused {
    Refused(format!("{wanted} is not among the kernel arguments"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(line: &str) -> Vec<String> {
        split(line)
    }

    fn arguments(line: &str) -> Arguments {
        Arguments::new(split(line))
    }

    fn line(arguments: &Arguments) -> String {
        arguments.as_slice().join(" ")
    }

    #[test]
    fn lines_are_split_as_the_kernel_does() {
        assert_eq!(
            split("  root=UUID=1  quiet\tdyndbg=\"file a.c +p; file b.c +p\" x \n"),
            [
                "root=UUID=1",
                "quiet",
                "dyndbg=\"file a.c +p; file b.c +p\"",
                "x"
            ]
        );
        assert_eq!(split(""), Vec::<String>::new());
        assert_eq!(
            line(&arguments("rw ostree=/ostree/boot.1/x quiet")),
            "rw quiet"
        );
    }

    #[test]
    fn an_update_changes_what_the_image_changes_and_nothing_else() {
        for (here, before, after, expected) in [
            // Neither image brings any: all that is there is local.
            ("root=x rw quiet", "", "", "root=x rw quiet"),
            ("root=x rw", "", "a=1 b", "root=x rw a=1 b"),
            ("root=x a=1 rw b local", "a=1 b", "", "root=x rw local"),
            ("root=x a=1 b", "a=1 b", "b c", "root=x b c"),
            // A new value for a key.
            ("a=1 root=x", "a=1", "a=2", "root=x a=2"),
            // What was taken out here stays out, and comes when it is new again.
            ("root=x", "a=1", "a=1", "root=x"),
            ("root=x", "a=1", "a=2", "root=x a=2"),
            // What is there already does not come twice.
            ("quiet", "", "quiet", "quiet"),
            ("x", "", "y y", "x y"),
            // Another value that was put in its place here stays, and alone.
            ("a=3", "a=1", "a=2", "a=3"),
            ("a=3", "a=1", "", "a=3"),
            // But one that was added beside the image's is none in its place.
            ("a=1 a=3", "a=1", "a=2", "a=3 a=2"),
            (
                "console=tty0 console=ttyS1",
                "console=tty0 console=ttyS0",
                "console=tty0 console=hvc0",
                "console=tty0 console=ttyS1",
            ),
            // The image has no say in which deployment boots.
            ("a", "", "ostree=/x", "a"),
        ] {
            let updated = arguments(here).updated(&strings(before), &strings(after));
            assert_eq!(
                line(&updated),
                expected,
                "{here:?}: {before:?} to {after:?}"
            );
        }
    }

    #[test]
    fn an_update_and_its_opposite_lead_back() {
        let host = arguments("root=x rw console=tty0 local=1");
        let (one, two) = (strings("quiet lsm=a"), strings("lsm=b splash"));
        let first = host.updated(&[], &one);
        let there = first.updated(&one, &two);
        assert_eq!(
            there.updated(&two, &one).difference(&first),
            (vec![], vec![])
        );
        assert_eq!(there.updated(&two, &[]), host);
    }

    #[test]
    fn edits_delete_replace_and_append() {
        let here = arguments("root=UUID=old rw console=tty0 console=ttyS0 quiet quiet a=1");
        for (delete, replace, append, expected) in [
            (
                "quiet",
                "",
                "",
                Ok("root=UUID=old rw console=tty0 console=ttyS0 a=1"),
            ),
            (
                "a",
                "",
                "quiet",
                Ok("root=UUID=old rw console=tty0 console=ttyS0 quiet quiet quiet"),
            ),
            (
                "console=tty0 quiet",
                "",
                "",
                Ok("root=UUID=old rw console=ttyS0 a=1"),
            ),
            (
                "quiet",
                "a=2",
                "b c=d",
                Ok("root=UUID=old rw console=tty0 console=ttyS0 a=2 b c=d"),
            ),
            (
                "quiet",
                "a=1=3",
                "",
                Ok("root=UUID=old rw console=tty0 console=ttyS0 a=3"),
            ),
            (
                "quiet a=1",
                "root=UUID=new",
                "",
                Ok("root=UUID=new rw console=tty0 console=ttyS0"),
            ),
            (
                "quiet a=1",
                "root=UUID=old=LABEL=x",
                "",
                Ok("root=LABEL=x rw console=tty0 console=ttyS0"),
            ),
            (
                "quiet a",
                "console=ttyS0=hvc0 rw=1",
                "",
                Ok("root=UUID=old rw=1 console=tty0 console=hvc0"),
            ),
            ("console", "", "", Err("several values")),
            ("", "console=hvc0", "", Err("several values")),
            ("", "quiet=1", "", Err("several values")),
            ("a=2", "", "", Err("not among")),
            ("b", "", "", Err("not among")),
            ("a", "a=2", "", Err("not among")),
            ("", "b=2", "", Err("not among")),
        ] {
            let edit = Edit {
                delete: strings(delete),
                replace: strings(replace),
                append: strings(append),
            };
            match (edit.apply(&here), expected) {
                (Ok(edited), Ok(expected)) => assert_eq!(line(&edited), expected, "{edit:?}"),
                (Err(refused), Err(words)) => {
                    assert!(refused.to_string().contains(words), "{edit:?}: {refused}");
                }
                (got, _) => panic!("{edit:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn of_values_that_begin_alike_the_longer_one_is_replaced() {
        let edit = Edit {
            replace: strings("a=1=2=3"),
            ..Edit::default()
        };
        let edited = edit.apply(&arguments("a=1 a=1=2")).unwrap();
        assert_eq!(line(&edited), "a=1 a=3");
    }

    #[test]
    fn what_is_no_argument_never_gets_into_a_boot_entry() {
        for wrong in [
            "",
            " ",
            "a b",
            "a ",
            "a\nlinux /evil",
            "=1",
            "ostree=/x",
            "ostree",
            "a=\"b",
            "\u{7f}",
        ] {
            assert!(check(wrong).is_err(), "{wrong:?}");
            for edit in [
                Edit {
                    append: vec![wrong.into()],
                    ..Edit::default()
                },
                Edit {
                    replace: vec![wrong.into()],
                    ..Edit::default()
                },
                Edit {
                    delete: vec![wrong.into()],
                    ..Edit::default()
                },
            ] {
                assert!(edit.check().is_err(), "{edit:?}");
            }
        }
        for right in ["quiet", "a=", "a=b=c", "a=\"b c\"", "ostree.x=1", "name=ü"] {
            assert_eq!(check(right), Ok(()), "{right:?}");
        }
        assert!(Edit::default().check().is_err());
        let long = Edit {
            append: vec!["a".repeat(LONGEST)],
            ..Edit::default()
        };
        assert!(long.apply(&Arguments::default()).is_err());
    }

    #[test]
    fn differences_count() {
        let (added, removed) = arguments("a b b c").difference(&arguments("c b d d"));
        assert_eq!(
            (added.join(" "), removed.join(" ")),
            ("d d".into(), "a b".into())
        );
    }
}
