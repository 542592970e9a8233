//! Power cuts at random instants of an update, one after the other on the same machine.
//!
//! Owns where a cut falls: into each part of an update in turn, at a random moment of it. The
//! parts are told apart by lines that the machine itself writes to its console. Invariants that
//! every cut has to leave: what boots is the version before or the one after, whole; the
//! repository is sound; the next upgrade completes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use osteward_tests::bootable::pulse;
use osteward_tests::image::Layout;
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{Status, done};
use crate::update::sound;

/// The parts of an update in their order, and the boot that follows, each with what the console
/// says when it begins: the daemon's words, those of [`UPDATE`], systemd's, and the boot
/// loader's.
const PARTS: [(&str, &str); 9] = [
    ("downloading", "fetching 1 layers"),
    ("importing", "writing the last layers"),
    ("merging", "composing the root tree"),
    ("staging", "making the deployment"),
    ("cleaning", "removing what is no longer"),
    ("shutdown", "lab-update: reboots"),
    ("finalize", "Stopping ostree-finalize-staged.service"),
    ("going down", "Stopped ostree-finalize-staged.service"),
    ("booting", "booting ostree-"),
];

/// What an update takes at most, however busy the host is.
const PATIENCE: Duration = Duration::from_secs(300);

/// Moments between two looks at the console: its log is a file, which tells nobody that it grew.
const GLANCE: Duration = Duration::from_millis(5);

/// Sends the journal to the console at once; what reads the journal learns of it later.
const LOUD: &str = r#"
    mkdir -p /etc/systemd/journald.conf.d
    echo '[Journal]
    ForwardToConsole=yes' >/etc/systemd/journald.conf.d/20-lab.conf
    systemctl restart systemd-journald"#;

/// Starts an update that ends in a reboot.
const UPDATE: &str = r#"systemd-run --quiet --collect --description "An update" sh -c '
    osteward upgrade --quiet && echo "lab-update: reboots" >/dev/console &&
        systemctl --no-block reboot'"#;

/// The moments at which the parts of one update began, as far as they did.
#[derive(Debug, Default)]
struct Parts(Vec<(&'static str, Instant)>);

impl Parts {
    /// Notes what is new on the console since `from` bytes.
    fn look(&mut self, machine: &Machine, from: u64) -> Result<()> {
        let text = machine.console_since(from)?;
        for (part, words) in PARTS {
            if self.begin(part).is_none() && text.contains(words) {
                self.0.push((part, Instant::now()));
            }
        }
        Ok(())
    }

    fn begin(&self, part: &str) -> Option<Instant> {
        self.0.iter().find(|(name, _)| *name == part).map(|it| it.1)
    }

    /// How long a part took, until the next one began.
    fn length(&self, part: &str) -> Option<Duration> {
        let at = self.0.iter().position(|(name, _)| *name == part)?;
        let next = self.0.get(at + 1)?.1;
        Some(next.saturating_duration_since(self.0[at].1))
    }
}

/// Waits until the part has begun, or a later one: those before may be too short to be seen.
fn wait_for(machine: &Machine, from: u64, part: &str) -> Result<Instant> {
    let until = Instant::now() + PATIENCE;
    let wanted = PARTS.iter().position(|(name, _)| *name == part);
    let wanted = &PARTS[wanted.context("no such part")?..];
    let mut parts = Parts::default();
    while Instant::now() < until {
        parts.look(machine, from)?;
        if let Some(begin) = wanted.iter().find_map(|(part, _)| parts.begin(part)) {
            return Ok(begin);
        }
        std::thread::sleep(GLANCE);
    }
    bail!("no {part} after {PATIENCE:?}; seen: {parts:?}")
}

/// The images of one machine's updates: each is new to everybody.
#[derive(Debug)]
pub(crate) struct Pulses {
    layout: Layout,
    pub(crate) origin: Origin,
    _dir: tempfile::TempDir,
    last: u32,
}

impl Pulses {
    /// Their numbers begin after `first`. The machine tracks [`Pulses::origin`] from now on.
    pub(crate) fn new(case: &mut Case<'_>, first: u32) -> Result<Self> {
        let origin = Origin::of(case)?;
        // Beside the images, so that blobs are shared and not copied.
        let parent = case.bootable.layout.path.parent().context("no parent")?;
        let dir = tempfile::Builder::new()
            .prefix("pulses-")
            .tempdir_in(parent)?;
        let layout = case.bootable.layout.copy_to(&dir.path().join("oci"))?;
        Ok(Self {
            layout,
            origin,
            _dir: dir,
            last: first,
        })
    }

    /// Publishes the next one; returns its version.
    pub(crate) fn next(&mut self) -> Result<String> {
        self.last += 1;
        pulse(&self.layout, self.last)?;
        let tag = format!("pulse-{}", self.last);
        self.layout.push(&tag, &self.origin.image())?;
        Ok(format!("pulse {}", self.last))
    }
}

fn version(machine: &mut Machine) -> Result<String> {
    machine.ok("cat /usr/lib/lab/version")
}

/// `cuts` cuts, with images from number `first` on.
pub(crate) fn cuts(case: &mut Case<'_>, cuts: u32, seed: u64, first: u32) -> Result<()> {
    eprintln!("{}: {cuts} power cuts, OSTEWARD_SEED={seed}", case.name());
    let mut random = Rng::with_seed(seed ^ u64::from(first));
    let mut pulses = Pulses::new(case, first)?;
    case.step("the console tells what goes on", |machine| {
        machine.ok(LOUD).map(drop)
    })?;
    let lengths = case.step("an update without a cut, for its times", |machine| {
        calibrate(machine, &mut pulses)
    })?;
    for number in 0..cuts {
        let (part, longest) = lengths[number as usize % lengths.len()];
        let after = longest.mul_f64(random.f64());
        cut(case, &mut pulses, part, after)
            .with_context(|| format!("cut {} with OSTEWARD_SEED={seed}", number + 1))?;
    }
    case.step(
        "after all of them the machine updates as if nothing had been",
        |machine| {
            let version = pulses.next()?;
            done(machine, "upgrade")?;
            machine.reboot()?;
            let status = Status::read(machine)?;
            let booted = status.deployment("booted").context("nothing is booted")?;
            ensure!(
                booted["version"] == version.as_str(),
                "{}",
                status.summary()
            );
            sound(machine)
        },
    )
}

/// Lets one update through and measures its parts, into each of which cuts fall in turn.
fn calibrate(machine: &mut Machine, pulses: &mut Pulses) -> Result<Vec<(&'static str, Duration)>> {
    let wanted = pulses.next()?;
    let from = machine.console_length()?;
    machine.ok(UPDATE)?;
    let mut parts = Parts::default();
    let until = Instant::now() + PATIENCE;
    while parts.begin("booting").is_none() {
        ensure!(Instant::now() < until, "no reboot; seen: {parts:?}");
        parts.look(machine, from)?;
        std::thread::sleep(GLANCE);
    }
    machine.await_boot()?;
    ensure!(version(machine)? == wanted);
    let cuttable = PARTS.iter().take_while(|(part, _)| *part != "booting");
    let lengths = cuttable.map(|(part, _)| {
        let length = parts.length(part);
        Ok((
            *part,
            length.with_context(|| format!("no {part} in {parts:?}"))?,
        ))
    });
    lengths.collect()
}

/// One update, one cut, and what has to be true after it.
fn cut(case: &mut Case<'_>, pulses: &mut Pulses, part: &str, after: Duration) -> Result<()> {
    let what = format!("power cut {after:.3?} into {part}; the machine boots");
    let (before, wanted) = case.step(&what, |machine| {
        let before = version(machine)?;
        let wanted = pulses.next()?;
        let from = machine.console_length()?;
        machine.ok(UPDATE)?;
        let begin = wait_for(machine, from, part)?;
        // The moment is the point of the test; nothing is waited for.
        std::thread::sleep(after.saturating_sub(begin.elapsed()));
        machine.power_cut()?;
        machine.power_on()?;
        Ok((before, wanted))
    })?;
    case.step("it runs the version before or the one after", |machine| {
        let now = version(machine)?;
        ensure!(
            now == before || now == wanted,
            "{before} was to become {wanted}, and {now} boots"
        );
        let status = Status::read(machine)?;
        let booted = status.deployment("booted").context("nothing is booted")?;
        ensure!(booted["version"] == now.as_str(), "{:#}", status.0);
        Ok(())
    })?;
    case.step("the repository is sound", sound)?;
    case.step("the next upgrade completes", |machine| {
        done(machine, "upgrade")?;
        let status = Status::read(machine)?;
        let next = status.deployments().next().context("no deployment")?;
        ensure!(next["version"] == wanted.as_str(), "{:#}", status.0);
        Ok(())
    })
}
