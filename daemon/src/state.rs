//! Which command the host may follow now: the one table, pure.
//!
//! Owns [`State`] and [`next`]. Invariant: every pair of state and command has its
//! answer written down (no `_`), so a new command does not compile until each state
//! has one; nothing here reads a clock, a file or a bus.

/// What the write slot is doing, and what the deployments allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The first look at the sysroot is not done yet.
    Unknown,
    /// The sysroot cannot be read; a later look may succeed.
    Broken,
    /// Not booted by ostree.
    NotBooted,
    /// Nothing waits for the next boot.
    Idle,
    /// A deployment is staged.
    Staged,
    /// The next boot goes back.
    RollbackQueued,
    /// A write job runs.
    Working,
}

/// What a caller, or the end of a job, asks of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Look whether there is something new. A read job.
    Check,
    /// Pull without staging.
    Download,
    /// Pull and stage what is tracked.
    Upgrade,
    /// Pull and stage another image.
    Switch,
    /// Order the previous deployment first.
    Rollback {
        /// Whether a deployment to go back to exists.
        possible: bool,
        /// Whether the caller agreed to lose what is staged.
        discard_staged: bool,
    },
    /// Undo a queued rollback.
    CancelRollback,
    /// Reboot into the default deployment.
    Apply,
    /// Remove what is not needed.
    Discard,
    /// Lock, unlock, pin or remove one deployment, or change the running one.
    Manage,
    /// Stage what boots next once more, with other kernel arguments.
    SetKernelArguments,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Another write job runs.
    Busy,
    /// Not booted by ostree.
    NotBooted,
    /// The sysroot cannot be read.
    Broken,
    /// Nothing is staged or queued.
    NothingToApply,
    /// Something is staged and would be lost.
    StagedPending,
    /// There is no deployment to go back to.
    NoRollback,
    /// The rollback is queued already.
    AlreadyQueued,
    /// No rollback is queued.
    NotQueued,
    /// A rollback is queued and would be undone.
    RollbackPending,
}

/// The state after `command` was let in, or why it is not.
///
/// `Unknown` admits everything: the job's own first step is the look at the sysroot,
/// and it asks again with what it saw.
pub fn next(state: State, command: Command) -> Result<State, Refused> {
    use Command as C;
    use State as S;
    match (state, command) {
        (S::Broken, _) => Err(Refused::Broken),
        (S::NotBooted, _) => Err(Refused::NotBooted),

        (S::Unknown | S::Idle | S::Staged | S::RollbackQueued | S::Working, C::Check) => Ok(state),

        (S::Working, C::Download | C::Upgrade | C::Switch | C::Rollback { .. }) => {
            Err(Refused::Busy)
        }
        (S::Working, C::CancelRollback | C::Apply | C::Discard | C::Manage) => Err(Refused::Busy),
        (S::Working, C::SetKernelArguments) => Err(Refused::Busy),

        // Whoever went back must not find a newer image at the next boot instead.
        (S::RollbackQueued, C::Upgrade | C::Switch | C::SetKernelArguments) => {
            Err(Refused::RollbackPending)
        }
        (S::Unknown | S::Idle | S::Staged, C::Upgrade | C::Switch | C::SetKernelArguments)
        | (
            S::Unknown | S::Idle | S::Staged | S::RollbackQueued,
            C::Download | C::Discard | C::Manage,
        ) => Ok(S::Working),

        (
            S::Idle | S::Staged | S::RollbackQueued,
            C::Rollback {
                possible: false, ..
            },
        ) => Err(Refused::NoRollback),
        (
            S::Staged,
            C::Rollback {
                possible: true,
                discard_staged: false,
            },
        ) => Err(Refused::StagedPending),
        (S::RollbackQueued, C::Rollback { possible: true, .. }) => Err(Refused::AlreadyQueued),
        (S::Idle, C::Rollback { possible: true, .. })
        | (
            S::Staged,
            C::Rollback {
                possible: true,
                discard_staged: true,
            },
        )
        | (S::Unknown, C::Rollback { .. }) => Ok(S::Working),

        (S::Idle | S::Staged, C::CancelRollback) => Err(Refused::NotQueued),
        (S::Unknown | S::RollbackQueued, C::CancelRollback) => Ok(S::Working),

        (S::Idle, C::Apply) => Err(Refused::NothingToApply),
        (S::Unknown | S::Staged | S::RollbackQueued, C::Apply) => Ok(S::Working),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Command as C;
    use State as S;

    const STATES: [State; 7] = [
        S::Unknown,
        S::Broken,
        S::NotBooted,
        S::Idle,
        S::Staged,
        S::RollbackQueued,
        S::Working,
    ];
    const BACK: Command = C::Rollback {
        possible: true,
        discard_staged: false,
    };

    #[test]
    fn one_write_job_at_a_time() {
        for command in [
            C::Download,
            C::Upgrade,
            C::Switch,
            BACK,
            C::CancelRollback,
            C::Apply,
            C::Discard,
            C::Manage,
            C::SetKernelArguments,
        ] {
            assert_eq!(next(S::Working, command), Err(Refused::Busy), "{command:?}");
        }
        assert_eq!(next(S::Working, C::Check), Ok(S::Working));
    }

    #[test]
    fn a_staged_update_is_never_lost_silently() {
        assert_eq!(next(S::Staged, BACK), Err(Refused::StagedPending));
        let agreed = C::Rollback {
            possible: true,
            discard_staged: true,
        };
        assert_eq!(next(S::Staged, agreed), Ok(S::Working));
    }

    #[test]
    fn nothing_starts_without_an_ostree_host() {
        for command in [
            C::Check,
            C::Download,
            C::Upgrade,
            C::Switch,
            BACK,
            C::CancelRollback,
            C::Apply,
            C::Discard,
            C::Manage,
            C::SetKernelArguments,
        ] {
            assert_eq!(next(S::NotBooted, command), Err(Refused::NotBooted));
            assert_eq!(next(S::Broken, command), Err(Refused::Broken));
        }
    }

    #[test]
    fn rollback_and_apply_need_something_to_act_on() {
        let impossible = C::Rollback {
            possible: false,
            discard_staged: false,
        };
        for (state, command, expected) in [
            (S::Idle, impossible, Err(Refused::NoRollback)),
            (S::Staged, impossible, Err(Refused::NoRollback)),
            (S::Idle, BACK, Ok(S::Working)),
            (S::RollbackQueued, BACK, Err(Refused::AlreadyQueued)),
            (S::RollbackQueued, C::CancelRollback, Ok(S::Working)),
            (S::Idle, C::CancelRollback, Err(Refused::NotQueued)),
            (S::RollbackQueued, C::Upgrade, Err(Refused::RollbackPending)),
            (S::RollbackQueued, C::Switch, Err(Refused::RollbackPending)),
            (
                S::RollbackQueued,
                C::SetKernelArguments,
                Err(Refused::RollbackPending),
            ),
            (S::Staged, C::SetKernelArguments, Ok(S::Working)),
            (S::RollbackQueued, C::Download, Ok(S::Working)),
            (S::Idle, C::Apply, Err(Refused::NothingToApply)),
            (S::Staged, C::Apply, Ok(S::Working)),
            (S::RollbackQueued, C::Apply, Ok(S::Working)),
        ] {
            assert_eq!(next(state, command), expected, "{state:?} {command:?}");
        }
    }

    #[test]
    fn letting_in_a_command_leads_to_work_or_changes_nothing() {
        for state in STATES {
            for command in [
                C::Check,
                C::Download,
                C::Upgrade,
                C::Switch,
                BACK,
                C::Apply,
                C::Discard,
                C::Manage,
                C::SetKernelArguments,
            ] {
                if let Ok(after) = next(state, command) {
                    assert!(after == S::Working || (after == state && command == C::Check));
                }
            }
        }
    }
}
