//! The proxy of `org.osteward1.Job`: something the daemon does, or did a moment ago.

use zbus::OwnedObjectPath;

use crate::{Error, options::NoOptions, types::Dict};

/// Something the daemon does, or did a moment ago; see [`crate::types::JobInfo`].
#[zbus::proxy(interface = "org.osteward1.Job", default_service = "org.osteward1")]
pub trait Job {
    /// Asks the job to stop; the own job without authorisation.
    fn cancel(&self, options: &NoOptions) -> Result<(), Error>;

    /// As `cancel`, and polkit may ask the user.
    #[zbus(name = "Cancel", allow_interactive_auth)]
    fn cancel_interactive(&self, options: &NoOptions) -> Result<(), Error>;

    /// Stops the download until it is resumed.
    fn pause(&self, options: &NoOptions) -> Result<(), Error>;

    /// As `pause`, and polkit may ask the user.
    #[zbus(name = "Pause", allow_interactive_auth)]
    fn pause_interactive(&self, options: &NoOptions) -> Result<(), Error>;

    /// Lets a paused job go on when it is its turn.
    fn resume(&self, options: &NoOptions) -> Result<(), Error>;

    /// As `resume`, and polkit may ask the user.
    #[zbus(name = "Resume", allow_interactive_auth)]
    fn resume_interactive(&self, options: &NoOptions) -> Result<(), Error>;

    /// Takes the job out of the background: somebody waits for it.
    fn adopt(&self, options: &NoOptions) -> Result<(), Error>;

    /// As `adopt`, and polkit may ask the user.
    #[zbus(name = "Adopt", allow_interactive_auth)]
    fn adopt_interactive(&self, options: &NoOptions) -> Result<(), Error>;

    /// The result was read: as far as this user is concerned, the object may go.
    fn release(&self) -> Result<(), Error>;

    /// The last 200 lines that the job has said, the oldest first.
    fn get_log(&self, options: &NoOptions) -> Result<Vec<String>, Error>;

    /// A pipe with the job's events from now on, one JSON object a line.
    fn stream_events(&self, options: &NoOptions) -> Result<zbus::OwnedFd, Error>;

    /// The properties that changed, by name.
    #[zbus(signal)]
    fn progress(&self, changed: Dict) -> Result<(), Error>;

    /// The job ended; sent exactly once.
    #[zbus(signal)]
    fn finished(
        &self,
        state: &str,
        error_name: &str,
        error_message: &str,
        result: Dict,
    ) -> Result<(), Error>;

    /// `check`, `download`, `upgrade`, `switch`, `rollback`, `cancel-rollback`, `apply` or `discard`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> Result<String, Error>;

    /// `queued`, `running`, `cancelling`, `succeeded`, `failed` or `cancelled`.
    #[zbus(property)]
    fn state(&self) -> Result<String, Error>;

    /// `resolving`, `downloading`, `importing`, `merging`, `staging`, `bootloader`, `cleaning`, `rebooting`; empty before the first.
    #[zbus(property)]
    fn phase(&self) -> Result<String, Error>;

    /// Which phase of this job it is, from 1; 0 before the first.
    #[zbus(property)]
    fn phase_index(&self) -> Result<u32, Error>;

    /// How many phases this job has.
    #[zbus(property)]
    fn phase_count(&self) -> Result<u32, Error>;

    /// 0 to 1 over the whole job; never decreases; −1 when unknown.
    #[zbus(property)]
    fn fraction(&self) -> Result<f64, Error>;

    /// Bytes of layers, tables of contents and deltas that were fetched.
    #[zbus(property)]
    fn bytes_done(&self) -> Result<u64, Error>;

    /// What the bytes done will be at most; without what is here already.
    #[zbus(property)]
    fn bytes_total(&self) -> Result<u64, Error>;

    /// Compressed bytes of the image that need not be fetched.
    #[zbus(property)]
    fn bytes_cached(&self) -> Result<u64, Error>;

    /// Layers written to the repository by this job.
    #[zbus(property)]
    fn layers_done(&self) -> Result<u32, Error>;

    /// Layers to write.
    #[zbus(property)]
    fn layers_total(&self) -> Result<u32, Error>;

    /// Layers in flight (at most 8): digest, bytes done, bytes total.
    #[zbus(property)]
    fn active_layers(&self) -> Result<Vec<(String, u64, u64)>, Error>;

    /// Bytes a second, smoothed; 0 when nothing moves.
    #[zbus(property)]
    fn rate(&self) -> Result<u64, Error>;

    /// Seconds left of the download; `UNKNOWN` when it cannot be told.
    #[zbus(property)]
    fn eta(&self) -> Result<u64, Error>;

    /// The last line for people.
    #[zbus(property)]
    fn message(&self) -> Result<String, Error>;

    /// False from the point of no return on.
    #[zbus(property)]
    fn cancellable(&self) -> Result<bool, Error>;

    /// Whether somebody paused it.
    #[zbus(property)]
    fn paused(&self) -> Result<bool, Error>;

    /// Whether it gives way to jobs that somebody waits for.
    #[zbus(property)]
    fn background(&self) -> Result<bool, Error>;

    /// The job before a queued one; `/` if there is none.
    #[zbus(property)]
    fn blocked_by(&self) -> Result<OwnedObjectPath, Error>;

    /// D-Bus error name and message; both empty unless the job failed.
    #[zbus(property)]
    fn error(&self) -> Result<(String, String), Error>;

    /// What came out: `digest s`, `deployment o`, `changed b`, `reboot s`, `freed-bytes t`, …
    #[zbus(property)]
    fn result(&self) -> Result<Dict, Error>;

    /// The Update or Deployment object it works on; `/` when not known yet.
    #[zbus(property)]
    fn target(&self) -> Result<OwnedObjectPath, Error>;

    /// Microseconds since the epoch.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_at(&self) -> Result<u64, Error>;

    /// Microseconds since the epoch; 0 before it began.
    #[zbus(property)]
    fn started_at(&self) -> Result<u64, Error>;

    /// Microseconds since the epoch; 0 while it has not ended.
    #[zbus(property)]
    fn finished_at(&self) -> Result<u64, Error>;

    /// The user who asked.
    #[zbus(property(emits_changed_signal = "const"))]
    fn started_by_uid(&self) -> Result<u32, Error>;

    /// The name the client gave itself.
    #[zbus(property(emits_changed_signal = "const"))]
    fn started_by_label(&self) -> Result<String, Error>;

    /// Counts the changes; lets a client drop a stale read.
    #[zbus(property)]
    fn sequence(&self) -> Result<u64, Error>;
}
