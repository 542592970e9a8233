//! `make vm`: a test machine on the terminal, with osteward on it and a registry beside it.
//!
//! The machine starts from the pristine disk and is gone afterwards.

use anyhow::{Result, ensure};
use osteward_tests::bootable::{Installer, Suite, prepare};
use osteward_tests::machine::{Kind, Machine, network};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    ensure!(
        words.len() <= 2,
        "usage: osteward-vm [container|uml|qemu] [SUITE]"
    );
    let kind = words.first().map_or("uml", String::as_str);
    let suite = words.get(1).map_or("forky", String::as_str);
    let (kind, suite) = (Kind::from_name(kind)?, Suite::from_name(suite)?);

    // Debian's archive is out of reach in the machines' network.
    let bootable = prepare(suite, Installer::Ostree)?;
    network::enter()?;
    let _registry = network::serve(&[&bootable])?;
    println!("{}", welcome(kind, suite));
    Machine::attend(kind, &bootable, &format!("vm-{kind}-{}", suite.name()))
}

fn welcome(kind: Kind, suite: Suite) -> String {
    format!(
        "A machine with Debian {suite} ({kind}) starts now, with a root shell. To try:\n\
         \n\
         \x20   osteward status\n\
         \x20   osteward switch {v2}   # stages version 2\n\
         \x20   osteward apply                           # reboots into it\n\
         \x20   osteward rollback                        # lets the next boot go back\n\
         \x20   systemctl poweroff                       # ends the machine\n\
         \n\
         The registry at {registry} has versions 1 to 4. Users, with their names as\n\
         passwords: admin, who may administer, and alice, who may not.\n",
        suite = suite.name(),
        v2 = suite.reference("v2"),
        registry = osteward_tests::bootable::REGISTRY,
    )
}
