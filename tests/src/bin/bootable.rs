//! Makes the products that bootable machines need, and says where they are: for CI, which
//! wants them made before the clock of the tests runs, and for whoever wants to look at them.

use anyhow::Result;
use osteward_tests::bootable::{Installer, Suite, prepare};

fn main() -> Result<()> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        names.push(Suite::Forky.name().into());
    }
    for name in names {
        let made = prepare(Suite::from_name(&name)?, Installer::Bootc)?;
        println!("tree    {}", made.tree.display());
        println!(
            "images  {} ({})",
            made.layout.path.display(),
            made.layout.tags()?.join(" ")
        );
        println!("disk    {}", made.disk.display());
    }
    Ok(())
}
