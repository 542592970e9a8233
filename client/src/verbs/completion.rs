//! `completion`: what makes a shell complete verbs and options.

use clap::CommandFactory as _;
use clap_complete::generate;

use crate::args::{Cli, CompletionArgs};
use crate::fail::Exit;
use crate::output::out;

/// Prints the script. It comes from the command line's own description, so it never lags.
pub(crate) fn completion(args: &CompletionArgs) -> Exit {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "osteward", &mut script);
    out!("{}", String::from_utf8_lossy(&script));
    Exit::Done
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_shell_completes_every_verb() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            generate(*shell, &mut Cli::command(), "osteward", &mut script);
            let script = String::from_utf8(script).unwrap();
            for verb in Cli::command().get_subcommands() {
                let name = verb.get_name();
                assert!(script.contains(name), "{shell}: {name}");
                for argument in verb.get_arguments().filter_map(clap::Arg::get_long) {
                    assert!(script.contains(argument), "{shell}: {name} --{argument}");
                }
            }
        }
    }
}
