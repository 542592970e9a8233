//! `osteward`: the client of `ostewardd`.
//!
//! Owns nothing but the wiring: command line, terminal, connection, exit code. The client
//! talks D-Bus, and only `doctor` looks at the host itself; what else it can do, any other
//! D-Bus client can.

mod agent;
mod args;
mod attend;
mod bus;
mod doctor;
mod fail;
mod follow;
#[cfg(test)]
mod follow_tests;
mod handover;
mod json;
mod manner;
mod output;
mod pick;
mod progress;
mod request;
#[cfg(test)]
mod sample;
mod show;
mod summary;
mod text;
mod verbs;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Global, Verb, When};
use crate::fail::{Exit, Failure};
use crate::manner::Manner;
use crate::output::outln;
use crate::text::Look;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let manner = manner(&cli.global);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let exit = match runtime.block_on(run(&cli, manner)) {
        Ok(exit) => exit,
        Err(failure) => {
            report(&failure, cli.verb.name(), manner);
            Exit::Failed
        }
    };
    // A thread may still be reading the terminal.
    runtime.shutdown_background();
    exit.into()
}

async fn run(cli: &Cli, manner: Manner) -> Result<Exit, Failure> {
    match &cli.verb {
        Verb::Completion(args) => return Ok(verbs::completion::completion(args)),
        // It has an answer also where there is no bus.
        Verb::Doctor => return doctor::doctor(cli.global.bus.as_deref(), manner).await,
        _ => {}
    }
    let ask = manner.attended && manner.stderr_terminal && !cli.global.no_ask_password;
    let bus = bus::Bus::connect(cli.global.bus.as_deref(), ask).await?;
    let needs_agent = !matches!(
        cli.verb,
        Verb::Status(_) | Verb::Jobs(_) | Verb::Log(_) | Verb::History(_) | Verb::Diff(_)
    );
    let _agent = match ask && needs_agent && cli.global.bus.is_none() {
        true => agent::Agent::start().await,
        false => None,
    };
    verbs::run(cli, &bus, manner).await
}

/// Prints why the command failed, once: a job's last JSON line has said it already.
fn report(failure: &Failure, verb: &str, manner: Manner) {
    if !manner.json {
        eprintln!("{}", failure.render(verb, manner.stderr_color));
    } else if !failure.told {
        outln!(
            "{}",
            json::line(&serde_json::json!({"error": failure.to_json(verb)}))
        );
    }
}

/// Looks at the terminal and the environment, once.
fn manner(global: &Global) -> Manner {
    let (stdout, stderr) = (console::Term::stdout(), console::Term::stderr());
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = |terminal: &console::Term| match global.color {
        When::Always => true,
        When::Never => false,
        When::Auto => !no_color && terminal.features().colors_supported(),
    };
    console::set_colors_enabled_stderr(color(&stderr));
    Manner {
        json: global.json,
        quiet: global.quiet,
        stdout_terminal: stdout.is_term(),
        stderr_terminal: stderr.is_term(),
        attended: std::io::stdin().is_terminal() && stderr.is_term(),
        look: Look {
            color: color(&stdout),
            unicode: speaks_unicode(),
            width: stdout.size_checked().map(|(_, columns)| columns.into()),
        },
        stderr_color: color(&stderr),
    }
}

/// The character set of the locale, in the order of setlocale(3).
fn speaks_unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|value| !value.is_empty());
    let locale = locale.unwrap_or_default().to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}
