//! How far a job is: the one place where its numbers are kept.
//!
//! Owns the phases of each kind of job and their share of the whole, and the counters
//! that import threads add to. Invariants: `fraction` and `bytes_done` never decrease; a
//! phase is never left for an earlier one unless the job is parked and begins anew; readers
//! get a consistent copy; writing a counter never waits for a reader (publication is the
//! engine's, at most five times a second).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::image::layer::Layer;
use crate::image::reference::Digest;
use crate::import::{MergeStep, Observer};

use super::log::{Event, Log};

/// What a job is doing, in the words of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Asking the registry what the reference means.
    Resolving,
    /// Receiving layers (they are written as they arrive).
    Downloading,
    /// Writing what has arrived.
    Importing,
    /// Composing the root tree out of the layers.
    Merging,
    /// Making the deployment for the next boot.
    Staging,
    /// Changing the boot order.
    Bootloader,
    /// Removing what is no longer needed.
    Cleaning,
    /// Asking logind for the reboot.
    Rebooting,
}

impl Phase {
    /// The name in `Job.Phase`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Resolving => "resolving",
            Phase::Downloading => "downloading",
            Phase::Importing => "importing",
            Phase::Merging => "merging",
            Phase::Staging => "staging",
            Phase::Bootloader => "bootloader",
            Phase::Cleaning => "cleaning",
            Phase::Rebooting => "rebooting",
        }
    }
}

/// The phases of a job in order, each with its share of the whole (they sum to 1).
pub type Phases = &'static [(Phase, f64)];

/// The shares are of a first pull over a fast network on a slow disk; they only shape
/// the bar.
pub mod phases {
    use super::{Phase, Phases};

    /// `Check`.
    pub const CHECK: Phases = &[(Phase::Resolving, 1.0)];
    /// `Download`.
    pub const DOWNLOAD: Phases = &[
        (Phase::Resolving, 0.02),
        (Phase::Downloading, 0.8),
        (Phase::Importing, 0.08),
        (Phase::Merging, 0.1),
    ];
    /// `Upgrade` and `Switch`.
    pub const UPGRADE: Phases = &[
        (Phase::Resolving, 0.02),
        (Phase::Downloading, 0.68),
        (Phase::Importing, 0.06),
        (Phase::Merging, 0.08),
        (Phase::Staging, 0.12),
        (Phase::Cleaning, 0.04),
    ];
    /// `Rollback` and `CancelRollback`.
    pub const ROLLBACK: Phases = &[(Phase::Bootloader, 1.0)];
    /// `Apply`.
    pub const APPLY: Phases = &[(Phase::Rebooting, 1.0)];
    /// `SetLocked` and `SetPinned` of a deployment.
    pub const CHANGE: Phases = &[(Phase::Staging, 1.0)];
    /// `SetKernelArguments`.
    pub const RESTAGE: Phases = &[(Phase::Staging, 0.7), (Phase::Cleaning, 0.3)];
    /// `Discard`.
    pub const DISCARD: Phases = &[(Phase::Cleaning, 1.0)];
}

/// The longest list of layers in flight that is published.
const ACTIVE_LAYERS: usize = 8;

/// A copy of the numbers at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The phase, once the first has begun.
    pub phase: Option<Phase>,
    /// From 1; 0 before the first phase.
    pub phase_index: u32,
    /// How many phases this job has.
    pub phase_count: u32,
    /// 0 to 1.
    pub fraction: f64,
    /// Network bytes received.
    pub bytes_done: u64,
    /// Network bytes to receive.
    pub bytes_total: u64,
    /// Bytes that were here already.
    pub bytes_cached: u64,
    /// Layers written.
    pub layers_done: u32,
    /// Layers to write.
    pub layers_total: u32,
    /// Layers in flight: digest, done, total.
    pub active_layers: Vec<(String, u64, u64)>,
    /// The last line for people.
    pub message: String,
    /// Whether cancelling still has an effect.
    pub cancellable: bool,
}

impl Reading {
    /// Whether the job, if it is one that fetches, can be stopped now and begin anew later with
    /// nothing lost: layers that are complete stay.
    pub fn is_before_the_merge(&self) -> bool {
        let fetches = match self.phase {
            None | Some(Phase::Resolving | Phase::Downloading | Phase::Importing) => true,
            Some(
                Phase::Merging
                | Phase::Staging
                | Phase::Bootloader
                | Phase::Cleaning
                | Phase::Rebooting,
            ) => false,
        };
        fetches && self.cancellable
    }
}

#[derive(Debug)]
struct Numbers {
    reading: Reading,
    /// How much of the current phase is done, 0 to 1.
    part: f64,
    changed: bool,
}

/// A handle to the numbers of one job; cheap to clone.
#[derive(Debug, Clone)]
pub struct Progress {
    phases: Phases,
    log: Log,
    numbers: Arc<Mutex<Numbers>>,
}

impl Progress {
    /// Numbers of a job that has not begun.
    pub fn new(phases: Phases) -> Self {
        let reading = Reading {
            phase: None,
            phase_index: 0,
            phase_count: phases.len() as u32,
            fraction: 0.0,
            bytes_done: 0,
            bytes_total: 0,
            bytes_cached: 0,
            layers_done: 0,
            layers_total: 0,
            active_layers: Vec::new(),
            message: String::new(),
            cancellable: true,
        };
        let numbers = Numbers {
            reading,
            part: 0.0,
            changed: false,
        };
        Self {
            phases,
            log: Log::default(),
            numbers: Arc::new(Mutex::new(numbers)),
        }
    }

    /// What was said.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn update(&self, change: impl FnOnce(&mut Numbers)) {
        let mut numbers = self.lock();
        change(&mut numbers);
        numbers.changed = true;
        let reading = &mut numbers.reading;
        let Some(index) = (reading.phase_index as usize).checked_sub(1) else {
            return;
        };
        let before: f64 = self.phases.iter().take(index).map(|(_, share)| share).sum();
        let share = self.phases.get(index).map_or(0.0, |(_, share)| *share);
        let part = numbers.part.clamp(0.0, 1.0);
        let reading = &mut numbers.reading;
        reading.fraction = reading.fraction.max(before + share * part).min(1.0);
    }

    /// The numbers are plain data, so a panic elsewhere leaves them usable.
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a phase. Entering an earlier one, or one that this job does not have, only
    /// changes the message.
    pub fn enter(&self, phase: Phase, message: impl Into<String>) {
        let message = message.into();
        tracing::info!(phase = phase.name(), "{message}");
        self.log.event(|| Event::Phase(phase.name()));
        self.log.line(&message);
        let index = self
            .phases
            .iter()
            .position(|(known, _)| *known == phase)
            .map(|i| i as u32 + 1);
        self.update(|numbers| {
            numbers.reading.message = message;
            if let Some(index) = index.filter(|index| *index > numbers.reading.phase_index) {
                numbers.reading.phase = Some(phase);
                numbers.reading.phase_index = index;
                numbers.part = 0.0;
            }
        });
    }

    /// How much of the current phase is done, 0 to 1.
    pub fn part(&self, part: f64) {
        self.update(|numbers| numbers.part = numbers.part.max(part));
    }

    /// A line for people.
    pub fn say(&self, message: impl Into<String>) {
        let message = message.into();
        tracing::info!("{message}");
        self.log.line(&message);
        self.update(|numbers| numbers.reading.message = message);
    }

    /// The job was stopped and will begin anew: what was counted stays counted.
    pub fn park(&self) {
        self.update(|numbers| {
            numbers.reading.phase = None;
            numbers.reading.phase_index = 0;
            numbers.reading.active_layers.clear();
            numbers.part = 0.0;
        });
    }

    /// From here on cancelling has no effect.
    pub fn point_of_no_return(&self) {
        self.update(|numbers| numbers.reading.cancellable = false);
    }

    /// The whole job is done.
    pub fn complete(&self) {
        self.update(|numbers| {
            numbers.reading.fraction = 1.0;
            numbers.reading.active_layers.clear();
        });
    }

    /// The numbers now.
    pub fn read(&self) -> Reading {
        self.lock().reading.clone()
    }

    /// The numbers now if they changed since the last call.
    pub fn take_changed(&self) -> Option<Reading> {
        let mut numbers = self.lock();
        std::mem::take(&mut numbers.changed).then(|| numbers.reading.clone())
    }
}

impl Observer for Progress {
    fn total(&self, layers: u32, bytes_to_fetch: u64, bytes_cached: u64) {
        self.enter(
            Phase::Downloading,
            format!(
                "fetching {layers} layers, {bytes_to_fetch} bytes; {bytes_cached} bytes are here"
            ),
        );
        self.update(|numbers| {
            // What a job fetched before it was parked is not to be fetched again.
            numbers.reading.layers_total = numbers.reading.layers_done + layers;
            numbers.reading.bytes_total = numbers.reading.bytes_done + bytes_to_fetch;
            numbers.reading.bytes_cached = bytes_cached;
        });
    }

    fn layer_started(&self, layer: &Layer) {
        self.log.event(|| Event::LayerStarted {
            digest: layer.digest.to_string(),
            size: layer.size,
        });
        let entry = (layer.digest.to_string(), 0, layer.size);
        self.update(|numbers| {
            if numbers.reading.active_layers.len() < ACTIVE_LAYERS {
                numbers.reading.active_layers.push(entry);
            }
        });
    }

    fn bytes(&self, digest: &Digest, delta: u64) {
        self.update(|numbers| {
            let reading = &mut numbers.reading;
            reading.bytes_done += delta;
            if let Some(layer) = reading
                .active_layers
                .iter_mut()
                .find(|l| l.0 == digest.as_str())
            {
                layer.1 += delta;
            }
            if reading.phase == Some(Phase::Downloading) && reading.bytes_total > 0 {
                numbers.part = reading.bytes_done as f64 / reading.bytes_total as f64;
            }
        });
    }

    fn layer_done(&self, layer: &Layer) {
        self.log.event(|| Event::LayerDone {
            digest: layer.digest.to_string(),
        });
        self.update(|numbers| {
            let reading = &mut numbers.reading;
            reading.layers_done += 1;
            reading
                .active_layers
                .retain(|entry| entry.0 != layer.digest.as_str());
            if reading.phase == Some(Phase::Importing) && reading.layers_total > 0 {
                numbers.part = f64::from(reading.layers_done) / f64::from(reading.layers_total);
            }
        });
    }

    fn downloaded(&self) {
        self.enter(Phase::Importing, "writing the last layers");
    }

    fn merging(&self, step: MergeStep) {
        let (part, message) = match step {
            MergeStep::Compose => (0.0, "composing the root tree"),
            MergeStep::Label => (0.2, "labelling"),
            MergeStep::Write => (0.6, "writing the root tree"),
            MergeStep::Commit => (0.8, "committing"),
        };
        self.enter(Phase::Merging, message);
        self.part(part);
    }

    fn more(&self, bytes: u64) {
        self.update(|numbers| numbers.reading.bytes_total += bytes);
    }

    fn note(&self, text: String) {
        self.say(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_one() {
        for phases in [
            phases::CHECK,
            phases::DOWNLOAD,
            phases::UPGRADE,
            phases::ROLLBACK,
            phases::APPLY,
            phases::DISCARD,
        ] {
            let sum: f64 = phases.iter().map(|(_, share)| share).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{phases:?}");
        }
    }

    #[test]
    fn the_fraction_only_grows_and_every_phase_moves_it() {
        let progress = Progress::new(phases::UPGRADE);
        let mut last = -1.0;
        for (phase, _) in phases::UPGRADE {
            progress.enter(*phase, "");
            for part in [0.5, 0.2, 1.0] {
                progress.part(part);
                let now = progress.read().fraction;
                assert!(now >= last, "{phase:?}");
                last = now;
            }
            progress.enter(Phase::Resolving, "back?");
            assert_eq!(progress.read().phase, Some(*phase));
        }
        assert!((last - 1.0).abs() < 1e-9);
    }

    #[test]
    fn readers_see_each_change_once() {
        let progress = Progress::new(phases::CHECK);
        assert!(progress.take_changed().is_none());
        progress.say("hello");
        assert_eq!(progress.take_changed().unwrap().message, "hello");
        assert!(progress.take_changed().is_none());
    }
}
