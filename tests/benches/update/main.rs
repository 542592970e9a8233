//! What an update costs: time, processor time, memory, bytes on the wire and on the disk.
//!
//! osteward, the importer of bootc hosts and floors, in turn, on the same images out of the same
//! registry. Asserts nothing about time; fails when an import fails or trees differ.

mod cases;
mod deltas;
mod disk;
mod goals;
mod lines;
mod ours;
mod theirs;

use std::any::Any;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use osteward_tests::bench::floor::run_file;
use osteward_tests::bench::images::{SETS, Source};
use osteward_tests::bench::report::{OSTEWARD, PEER, Report, Run};
use osteward_tests::bench::shelf::Shelf;
use osteward_tests::bench::usage::{Usage, cpu};
use osteward_tests::bench::{files, plot, rounds, scale, work_dir};
use osteward_tests::oracle;
use osteward_tests::process::require_root;
use osteward_tests::served::Served;

use disk::Disk;

/// What all measurements share.
pub(crate) struct Bench {
    /// The registry that they fetch from.
    pub(crate) shelf: Shelf,
    /// Where images are.
    pub(crate) images: PathBuf,
    /// How often each thing is measured.
    pub(crate) rounds: usize,
    /// The peer's program.
    pub(crate) peer: PathBuf,
    /// The peer's trees of versions A and B, by the number of layers.
    pub(crate) trees: HashMap<usize, Trees>,
    /// What was measured.
    pub(crate) report: Report,
    /// What the round leaves; goes before the disk that it is on.
    kept: Vec<Box<dyn Any>>,
    /// Where all of a round is written.
    disk: Option<Disk>,
}

/// The checksums of two roots, of contents and metadata.
pub(crate) type Trees = [(String, String); 2];

/// What the registry had done at a moment.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    served: Served,
    cpu: Duration,
}

impl Bench {
    /// A moment before a measurement: nothing of what was written before is still to go to disk.
    pub(crate) fn before(&self) -> Result<Moment> {
        rustix::fs::sync();
        self.now()
    }

    fn now(&self) -> Result<Moment> {
        let registry = &self.shelf.registry;
        Ok(Moment {
            served: registry.served()?,
            cpu: cpu(registry.pid()?)?,
        })
    }

    /// A measurement since `before`.
    pub(crate) fn since(&self, before: Moment, usage: Usage) -> Result<Run> {
        let now = self.now()?;
        let registry_cpu = now.cpu.saturating_sub(before.cpu);
        Ok(Run::new(
            usage,
            now.served.since(before.served),
            registry_cpu,
        ))
    }

    /// Keeps what would be removed, until the end of the round.
    pub(crate) fn keep(&mut self, what: impl Any) {
        self.kept.push(Box::new(what));
    }

    /// Removes what the round left.
    fn clear(&mut self) -> Result<()> {
        self.kept.clear();
        self.disk = None;
        self.disk = Some(Disk::new(&work_dir()?)?);
        Ok(())
    }

    /// A reference by which the registry itself is asked.
    pub(crate) fn reference(&self, name: &str) -> String {
        Shelf::reference(&self.shelf.registry.host(), name)
    }

    /// Takes a measurement down, and tells standard error.
    pub(crate) fn note(&mut self, set: &str, case: &str, who: &str, run: Run) {
        eprintln!(
            "{set:>12} {case:<28} {who:<32} {:>8.2} s {:>8.2} CPU s {:>8.1} MB wire {:>6.0} MB peak",
            run.wall,
            run.cpu,
            run.wire as f64 / 1e6,
            run.peak as f64 / 1e6
        );
        self.report.note(set, case, who, run);
    }

    /// Writes all results so far into the directory `work`.
    fn write(&self, work: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(&self.report)?;
        fs::write(work.join("update.json"), json)?;
        let sizes = files::SIZES.map(|files| (files, cases::set_of_files(files)));
        fs::write(
            work.join("update.svg"),
            plot::draw(&self.report, cases::UPGRADE, &sizes),
        )?;
        fs::write(work.join("update.md"), self.report.tables()).context("writing results")
    }
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("--floor") {
        return run_file(Path::new(&words.next().context("--floor FILE")?));
    }
    if disk::leave_mounts()? {
        return Ok(());
    }
    tokio::runtime::Runtime::new()?.block_on(measure_all())
}

/// What `CASES` can name beside sets of images.
const OTHERS: [&str; 2] = ["files", "lines"];

/// Who can be named in `WHO`.
pub(crate) const FLOORS: &str = "floors";

/// The names in the variable `CASES` or `WHO`; none for all.
fn named(variable: &str) -> Vec<String> {
    let names = std::env::var(variable).unwrap_or_default();
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// Whether the variable has a name, which it does by default.
pub(crate) fn is_wanted(variable: &str, name: &str) -> bool {
    let named = named(variable);
    named.is_empty() || named.iter().any(|wanted| wanted == name)
}

/// A name that nothing has would measure nothing, without a word.
fn check_names() -> Result<()> {
    let sets = SETS.map(|set| set.name());
    let cases: Vec<&str> = sets.iter().map(String::as_str).chain(OTHERS).collect();
    for (variable, known) in [("CASES", &cases[..]), ("WHO", &[FLOORS, PEER, OSTEWARD])] {
        for name in named(variable) {
            ensure!(
                known.contains(&name.as_str()),
                "{variable}: {name} is none of {}",
                known.join(", ")
            );
        }
    }
    Ok(())
}

async fn measure_all() -> Result<()> {
    require_root()?;
    check_names()?;
    let begun = Instant::now();
    let (work, scale) = (work_dir()?, scale()?);
    let images = work.join("images");
    let source = Source::make(&images, scale)?;
    let (bytes, files) = source.size();
    println!("the images: {files} files, {:.2} GB", bytes as f64 / 1e9);
    let mut bench = Bench {
        shelf: Shelf::open()?,
        images,
        rounds: rounds()?,
        peer: oracle::released()?,
        trees: HashMap::new(),
        report: Report::default(),
        kept: Vec::new(),
        disk: Some(Disk::new(&work)?),
    };
    let sets = SETS
        .into_iter()
        .filter(|set| is_wanted("CASES", &set.name()));
    let sets = sets
        .map(|set| Ok((set, source.set(set)?)))
        .collect::<Result<Vec<_>>>()?;
    for (set, layout) in &sets {
        for round in 0..bench.rounds {
            cases::set(&mut bench, *set, layout, round).await?;
            bench.clear()?;
        }
        bench.write(&work)?;
    }
    if is_wanted("CASES", "files") {
        cases::files(&mut bench, scale).await?;
        bench.write(&work)?;
    }
    if is_wanted("CASES", "lines") {
        for (set, layout) in &sets {
            lines::all(&mut bench, *set, layout).await?;
        }
    }
    goals::judge(&mut bench, &sets)?;
    bench.write(&work)?;
    println!("{}", bench.report.tables());
    println!(
        "It took {:.0} minutes; results are in {}.",
        begun.elapsed().as_secs_f64() / 60.0,
        work.display()
    );
    Ok(())
}
