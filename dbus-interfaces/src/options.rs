//! The option dictionaries (`a{sv}`) that methods take.
//!
//! Owns which keys a method knows. Invariant: parsing is strict; an unknown key or a
//! value of another type never reaches the daemon's code (zbus answers `InvalidArgs`).
//! Keys are kebab-case. Every job-making method also takes the keys of [`Common`].

use zbus::{DeserializeDict, SerializeDict, Type};

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
        }

        impl $name {
            /// The options that every job-making method takes.
            pub fn common(&self) -> Common {
                Common {
                    client_label: self.client_label.clone(),
                    reason: self.reason.clone(),
                }
            }

            /// The same options with others of those that every method takes.
            #[must_use]
            pub fn with_common(mut self, common: Common) -> Self {
                self.client_label = common.client_label;
                self.reason = common.reason;
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
}

options! {
    /// Options of `Host.Check`.
    CheckOptions {
        /// Seconds: an answer from memory of at most this age will do.
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
        /// Whether to keep it from finalization, so that no reboot but `Apply`'s switches to it
        /// (default: as what is staged already, else not).
        lock: bool,
        /// What to do when it is staged: `none` (default) or `reboot`.
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
        /// What to do then: `none` (default) or `reboot`.
        apply: String,
    }
    /// Options of `Host.CancelRollback`.
    CancelRollbackOptions {}
    /// Options of `Host.Apply`.
    ApplyOptions {
        /// Only if the next boot gives this manifest digest.
        digest: String,
        /// Reboot although a logind inhibitor forbids it.
        ignore_inhibitors: bool,
    }
    /// Options of the methods of a deployment: only those of every job.
    ManageOptions {}
    /// Options of `Host.Discard`.
    DiscardOptions {
        /// Change nothing, only tell in `Job.Result` what would go, and the least it would free.
        dry_run: bool,
    }
}

/// For methods without options: any key is unknown.
#[derive(Debug, Clone, Default, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct NoOptions {}
