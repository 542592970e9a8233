//! The boot suite: osteward on machines that really start, update, lose power and roll back.
//!
//! A scenario is a function over a [`Case`]: a machine of its own, made from a pristine disk,
//! and steps. [`SCENARIOS`] says which runs where; `KIND/SUITE/TOPIC` names it on the command
//! line. Everything is done as a user does it, with `osteward` or on the bus.

use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Trial};
use osteward_tests::bootable::{Bootable, Installer, Suite, prepare, work_dir};
use osteward_tests::chance::number;
use osteward_tests::machine::{Kind, network};
use osteward_tests::suite::{Case, Report};

mod arguments;
mod bound;
mod cancelling;
mod finalizing;
mod generations;
mod holding;
mod keeping;
mod origin;
mod osteward;
mod people;
mod power;
mod refusing;
mod service;
mod soft;
mod sources;
mod takeover;
mod update;

/// What happens, and on which machines.
struct Scenario {
    topic: &'static str,
    on: &'static [(Kind, Suite)],
    run: fn(&mut Case<'_>) -> Result<()>,
}

/// Most scenarios: nothing in them depends on the kernel.
const CONTAINER: &[(Kind, Suite)] = &[(Kind::Container, Suite::Forky)];

/// With libostree of three generations, with and without ComposeFS.
const CONTAINERS: &[(Kind, Suite)] = &[
    (Kind::Container, Suite::Forky),
    (Kind::Container, Suite::Trixie),
    (Kind::Container, Suite::Bookworm),
];

/// Those that are slow come first: the others run beside them.
const SCENARIOS: &[Scenario] = &[
    Scenario {
        topic: "power-cuts-1",
        on: &[(Kind::Uml, Suite::Forky)],
        run: |case| cut_half(case, 0),
    },
    Scenario {
        topic: "power-cuts-2",
        on: &[(Kind::Uml, Suite::Forky)],
        run: |case| cut_half(case, 1),
    },
    Scenario {
        topic: "there-and-back",
        on: &[(Kind::Qemu, Suite::Forky)],
        run: update::there_and_back,
    },
    Scenario {
        topic: "rollback",
        on: CONTAINERS,
        run: update::rollback,
    },
    Scenario {
        topic: "upgrade",
        on: &[
            (Kind::Uml, Suite::Forky),
            (Kind::Container, Suite::Forky),
            (Kind::Container, Suite::Trixie),
            (Kind::Container, Suite::Bookworm),
        ],
        run: update::upgrade,
    },
    Scenario {
        topic: "cleanup",
        // Without ComposeFS, deployments are immutable, and somebody has to undo that.
        on: &[
            (Kind::Container, Suite::Forky),
            (Kind::Container, Suite::Bookworm),
        ],
        run: generations::cleanup,
    },
    Scenario {
        topic: "keep",
        on: CONTAINER,
        run: keeping::keep,
    },
    Scenario {
        topic: "kernel-arguments",
        // libostree takes them in another way since 2022.7.
        on: &[
            (Kind::Container, Suite::Forky),
            (Kind::Container, Suite::Bookworm),
        ],
        run: arguments::merged,
    },
    Scenario {
        topic: "foreign-keys",
        on: CONTAINER,
        run: arguments::foreign_keys,
    },
    Scenario {
        topic: "soft-reboot",
        on: CONTAINER,
        run: soft::reboot,
    },
    Scenario {
        topic: "bound-images",
        on: CONTAINER,
        run: bound::images,
    },
    Scenario {
        topic: "plain-ostree",
        on: CONTAINER,
        run: takeover::plain_ostree,
    },
    Scenario {
        topic: "ostree-ext",
        on: CONTAINER,
        run: takeover::ostree_ext,
    },
    Scenario {
        topic: "cancel",
        on: CONTAINER,
        run: cancelling::every_phase,
    },
    Scenario {
        topic: "permissions",
        on: CONTAINER,
        run: people::permissions,
    },
    Scenario {
        topic: "switch",
        on: CONTAINER,
        run: sources::switch,
    },
    Scenario {
        topic: "offline",
        on: CONTAINER,
        run: sources::offline,
    },
    Scenario {
        topic: "full-boot",
        on: CONTAINER,
        run: finalizing::full_boot,
    },
    Scenario {
        topic: "stuck-boot",
        on: &[
            (Kind::Container, Suite::Forky),
            (Kind::Container, Suite::Bookworm),
        ],
        run: finalizing::stuck_boot,
    },
    Scenario {
        topic: "sandbox",
        on: CONTAINERS,
        run: service::sandbox,
    },
    Scenario {
        topic: "lock",
        on: CONTAINERS,
        run: holding::locked,
    },
    Scenario {
        topic: "unfit-images",
        on: CONTAINER,
        run: refusing::unfit,
    },
    Scenario {
        topic: "activation",
        on: CONTAINER,
        run: service::activation,
    },
    Scenario {
        topic: "journal",
        on: CONTAINER,
        run: service::log,
    },
];

/// How many power cuts there are in all: `OSTEWARD_CUTS`, or this.
const CUTS: u64 = 50;

/// A half of the cuts, on one of two machines; `OSTEWARD_SEED` repeats a run.
fn cut_half(case: &mut Case<'_>, half: u32) -> Result<()> {
    static CHOSEN: LazyLock<u64> = LazyLock::new(|| fastrand::u64(..1_000_000));
    let cuts = number("OSTEWARD_CUTS", CUTS)?;
    let cuts = u32::try_from(cuts).context("too many cuts")?;
    let seed = number("OSTEWARD_SEED", *CHOSEN)?;
    // Each half has images of its own.
    power::cuts(case, (cuts + half) / 2, seed, half * 100_000)
}

fn name_of(scenario: &Scenario, (kind, suite): (Kind, Suite)) -> String {
    format!("{kind}/{}/{}", suite.name(), scenario.topic)
}

/// What is to run, by the command line's filters.
fn chosen(arguments: &Arguments) -> Vec<(&'static Scenario, (Kind, Suite))> {
    let all = SCENARIOS
        .iter()
        .flat_map(|scenario| scenario.on.iter().map(move |on| (scenario, *on)));
    all.filter(|(scenario, on)| {
        let trial = Trial::test(name_of(scenario, *on), || Ok(()));
        !arguments.is_filtered_out(&trial)
    })
    .collect()
}

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    let chosen = chosen(&arguments);
    if arguments.list || chosen.is_empty() {
        let names = chosen.iter().map(|(scenario, on)| name_of(scenario, *on));
        let trials = names.map(|name| Trial::test(name, || Ok(())));
        return Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code());
    }
    // Most of what a machine does is to wait, for its disk or for another process of its own.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    arguments.test_threads.get_or_insert(cores + 1);

    let mut bootables: Vec<Arc<Bootable>> = Vec::new();
    for (_, (_, suite)) in &chosen {
        if bootables.iter().all(|made| made.suite != *suite) {
            bootables.push(Arc::new(prepare(*suite, Installer::Bootc)?));
        }
    }
    // Starts the program again, this time to find everything made and to come back from here:
    // only out there is the network that Debian's packages come from.
    network::enter()?;
    let shared: Vec<&Bootable> = bootables.iter().map(Arc::as_ref).collect();
    let _registry = network::serve(&shared)?;
    let report = Report::default();
    let mut trials = Vec::new();
    for (scenario, on) in chosen {
        let made = bootables.iter().find(|made| made.suite == on.1);
        let bootable = Arc::clone(made.context("a suite that was not made")?);
        let (name, report) = (name_of(scenario, on), report.clone());
        trials.push(Trial::test(name.clone(), move || {
            let outcome = report.scenario(&name, on.0, &bootable, scenario.run);
            outcome.map_err(libtest_mimic::Failed::from)
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let dir = work_dir()?;
    report.write(&dir)?;
    println!(
        "{}\nthe same in {}",
        report.text(),
        dir.join("report.txt").display()
    );
    Ok(conclusion.exit_code())
}
