//! What a scenario of the boot suite is made of, and the report of a run.
//!
//! Owns steps: each is named, timed and told as it ends. Invariants: a step that failed ends
//! its scenario and keeps the machine's traces; the report names every step that was begun.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::bootable::Bootable;
use crate::machine::{Kind, Machine};

/// One thing that a user can see, on its way from nothing to true.
#[derive(Debug, Serialize)]
struct Step {
    what: String,
    seconds: f64,
    passed: bool,
}

/// What became of one scenario.
#[derive(Debug, Serialize)]
struct Record {
    scenario: String,
    seconds: f64,
    steps: Vec<Step>,
    /// Why it failed, if it did.
    failure: Option<String>,
}

/// A scenario while it runs: its machine, and the steps so far.
#[derive(Debug)]
pub struct Case<'a> {
    /// What the machine was made from.
    pub bootable: &'a Bootable,
    /// The machine, for what lies between steps.
    pub machine: Machine,
    name: String,
    steps: Vec<Step>,
}

impl Case<'_> {
    /// Does one step and tells how it went and how long it took.
    ///
    /// # Errors
    /// The step's own, with its name.
    pub fn step<T>(
        &mut self,
        what: &str,
        does: impl FnOnce(&mut Machine) -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let machine = &mut self.machine;
        // A panic is a failure of the step like any other, so that the report has it too.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| does(machine)))
            .unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", words_of(&*panic))));
        let step = Step::ended(&self.name, what, start.elapsed(), outcome.is_ok());
        self.steps.push(step);
        outcome.with_context(|| format!("step failed: {what}"))
    }

    /// The scenario's name, which no other one of a run has.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Step {
    /// Tells of a step that has just ended.
    fn ended(scenario: &str, what: &str, took: Duration, passed: bool) -> Self {
        let seconds = took.as_secs_f64();
        let mark = if passed { "ok" } else { "FAILED" };
        eprintln!("{seconds:8.1} s  {scenario}: {what} ... {mark}");
        Self {
            what: what.to_owned(),
            seconds,
            passed,
        }
    }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a word")
}

/// The report of a run; clones write into the same one.
#[derive(Clone, Debug)]
pub struct Report {
    start: Instant,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Default for Report {
    fn default() -> Self {
        let records = Arc::default();
        let start = Instant::now();
        Self { start, records }
    }
}

impl Report {
    /// Runs one scenario on a machine of its own and records it.
    ///
    /// # Errors
    /// As text: what went wrong, and where to look.
    pub fn scenario(
        &self,
        name: &str,
        kind: Kind,
        bootable: &Bootable,
        run: impl FnOnce(&mut Case<'_>) -> Result<()>,
    ) -> Result<(), String> {
        let start = Instant::now();
        let directory = name.replace('/', "-");
        let started = Machine::start(kind, bootable, &directory);
        let first = Step::ended(name, "the machine boots", start.elapsed(), started.is_ok());
        let (steps, failure) = match started {
            Err(error) => (vec![first], Some(format!("{error:#}"))),
            Ok(machine) => {
                let mut case = Case {
                    bootable,
                    machine,
                    name: name.to_owned(),
                    steps: vec![first],
                };
                let outcome = run(&mut case);
                let failure = outcome.err().map(|error| match case.machine.keep() {
                    Ok(dir) => format!("{error:#}\nits console and journal: {}", dir.display()),
                    Err(other) => format!("{error:#}\nand its traces: {other:#}"),
                });
                (case.steps, failure)
            }
        };
        let record = Record {
            scenario: name.to_owned(),
            seconds: start.elapsed().as_secs_f64(),
            steps,
            failure: failure.clone(),
        };
        self.lock().push(record);
        failure.map_or(Ok(()), Err)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The report for people: every step of every scenario with its time.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let records = self.lock();
        for record in &*records {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{:8.1} s  {}", record.seconds, record.scenario);
            for step in &record.steps {
                let mark = if step.passed { "" } else { "  FAILED" };
                let _ = writeln!(text, "{:12.1} s  {}{mark}", step.seconds, step.what);
            }
            for line in record.failure.iter().flat_map(|failure| failure.lines()) {
                let _ = writeln!(text, "               {line}");
            }
        }
        let steps: usize = records.iter().map(|record| record.steps.len()).sum();
        let failed = records.iter().filter(|it| it.failure.is_some()).count();
        let _ = writeln!(
            text,
            "{:8.1} s  for {} scenarios, {steps} steps; {failed} failed",
            self.start.elapsed().as_secs_f64(),
            records.len()
        );
        text
    }

    /// Writes `report.txt`, and `report.json` with the same, into `dir`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::write(dir.join("report.txt"), self.text()).context("writing the report")?;
        let json = serde_json::to_vec_pretty(&*self.lock())?;
        fs::write(dir.join("report.json"), json).context("writing the report")
    }
}
