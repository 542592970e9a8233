//! The option dictionaries (`a{sv}`) that methods take.
//!
//! Owns which keys a method knows. Invariant: parsing is strict; an unknown key or a
//! value of another type never reaches the daemon's code (zbus answers `InvalidArgs`).
//! Keys are kebab-case. Every job-making method also takes the keys of [`Common`].

use zbus::{DeserializeDict, OwnedObjectPath, SerializeDict, Type};

macro_rules! options {
    ($($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $fdoc:literal])+ $field:ident: $ty:ty,)* })+) => {
        $($(#[doc = $doc])+
        #[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
        #[zbus(signature = "a{sv}", rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $fdoc])+ pub $field: Option<$ty>,)*
            /// Who asks, for display only.
            pub client_label: Option<String>,
            /// Why, for the journal and for polkit rules.
            pub reason: Option<String>,
            /// While another job writes: `fail` (default) or `queue`.
            pub on_busy: Option<String>,
            /// Give way to jobs that somebody waits for.
            pub background: Option<bool>,
            /// The place in the queue; higher goes first, 0 by default.
            pub priority: Option<i32>,
        }

        impl $name {
            /// The options that every job-making method takes.
            pub fn common(&self) -> Common {
                Common {
                    client_label: self.client_label.clone(),
                    reason: self.reason.clone(),
                    on_busy: self.on_busy.clone(),
                    background: self.background,
                    priority: self.priority,
                }
            }

            /// The same options with others of those that every method takes.
            #[must_use]
            pub fn with_common(mut self, common: Common) -> Self {
                self.client_label = common.client_label;
                self.reason = common.reason;
                self.on_busy = common.on_busy;
                self.background = common.background;
                self.priority = common.priority;
                self
            }
        })+
    };
}

/// The options that every job-making method takes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Common {
    /// Who asks, for display only (`Job.StartedByLabel`); at most 128 characters.
    pub client_label: Option<String>,
    /// Why, for the journal and for polkit rules; at most 1024 characters.
    pub reason: Option<String>,
    /// While another job writes: `fail` (default) or `queue`.
    pub on_busy: Option<String>,
    /// Give way to jobs that somebody waits for.
    pub background: Option<bool>,
    /// The place in the queue, −100 to 100; higher goes first, 0 by default.
    pub priority: Option<i32>,
}

options! {
    /// Options of `Host.Check`.
    CheckOptions {
        /// Seconds: what a check of at most this age found will do.
        max_age: u64,
    }
    /// Options of `Host.Download`.
    DownloadOptions {
        /// Pull exactly this manifest digest of the tracked repository.
        digest: String,
        /// Accept an image that is older than the booted one.
        allow_downgrade: bool,
    }
    /// Options of `Host.Upgrade` and `Host.Switch`.
    UpgradeOptions {
        /// Stage exactly this manifest digest, whatever the tag says now.
        digest: String,
        /// Accept an image that is older than the booted one.
        allow_downgrade: bool,
        /// Replace another update that is staged already.
        replace_staged: bool,
        /// Pull without staging.
        download_only: bool,
        /// Use only what was pulled before: no network.
        from_cache: bool,
        /// Whether to keep it from finalization, so that no reboot but `Apply`'s switches to it
        /// (default: as what is staged already, else not).
        lock: bool,
        /// What to do when it is staged: `none` (default), `auto`, `reboot` or `soft-reboot`.
        apply: String,
    }
    /// Options of `Host.ImportArchive`.
    ImportArchiveOptions {
        /// What is tracked from then on, in any form that `Host.Switch` takes (default: what is
        /// tracked now).
        image: String,
        /// Which image of several in the archive, by its `org.opencontainers.image.ref.name`
        /// (default: the tag in `image` if that is a layout, else the only one).
        tag: String,
        /// Stage exactly this manifest digest.
        digest: String,
        /// Accept an image that is older than the booted one.
        allow_downgrade: bool,
        /// Replace another update that is staged already.
        replace_staged: bool,
        /// Whether to keep it from finalization, as for `Host.Upgrade`.
        lock: bool,
        /// What to do when it is staged: `none` (default), `auto`, `reboot` or `soft-reboot`.
        apply: String,
    }
    /// Options of `Host.Rollback`.
    RollbackOptions {
        /// Go back to the deployment with this manifest digest (default: the previous one).
        digest: String,
        /// Throw a staged update away.
        discard_staged: bool,
        /// Remember the digest left behind and do not stage it again by itself (default true).
        quarantine: bool,
        /// What to do then: `none` (default), `auto`, `reboot` or `soft-reboot`.
        apply: String,
    }
    /// Options of `Host.CancelRollback`.
    CancelRollbackOptions {}
    /// Options of `Host.Apply`.
    ApplyOptions {
        /// Only if the next boot gives this manifest digest.
        digest: String,
        /// How: `reboot` (default), `soft-reboot`, or `auto`, a soft one where that can be.
        mode: String,
        /// Reboot although a logind inhibitor forbids it.
        ignore_inhibitors: bool,
    }
    /// Options of the methods of a deployment: only those of every job.
    ManageOptions {}
    /// Options of `Host.Discard`.
    DiscardOptions {
        /// Change nothing, only tell in `Job.Result` what would go and what it would free.
        dry_run: bool,
    }
    /// Options of `Host.SetKernelArguments`.
    SetKernelArgumentsOptions {
        /// Only if these are the arguments now, without `ostree=`.
        expect: Vec<String>,
        /// Only if the next boot gives this manifest digest.
        digest: String,
    }
    /// Options of `Host.Simulate`.
    SimulateOptions {
        /// Look at exactly this manifest digest.
        digest: String,
    }
    /// Options of `Host.UsrOverlay`.
    UsrOverlayOptions {
        /// Mount it read-only, for programs that make it writable for themselves.
        read_only: bool,
    }
}

/// Options of `Manager.ListJobs`.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case", deny_unknown_fields)]
pub struct ListJobsOptions {
    /// True: only those that have not ended; false: only those that have.
    pub active: Option<bool>,
    /// Only those of this `Job.Kind`.
    pub kind: Option<String>,
}

/// Options of `Manager.Inhibit`.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case", deny_unknown_fields)]
pub struct InhibitOptions {
    /// What is kept from happening: `idle` (default), the exit of the idle daemon, or
    /// `apply`, that and reboots by jobs.
    pub what: Option<String>,
}

/// Options of `Host.DiffEtc`.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiffEtcOptions {
    /// The deployment to look at (default: the booted one).
    pub deployment: Option<OwnedObjectPath>,
}

/// For methods without options: any key is unknown.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct NoOptions {}
