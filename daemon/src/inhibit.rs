//! Who keeps the daemon from leaving, or keeps it from rebooting the host.
//!
//! Owns the list of inhibitors. Invariants: an inhibitor is on the list for exactly as long
//! as its [`Held`] lives; nobody can fill the list up; what is on it never stops anything
//! but the idle exit and, if its holder asked for that, a reboot by a job.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// How many one user may hold: each costs the daemon a file descriptor.
const EACH_USER: usize = 16;
/// How many there can be.
const IN_ALL: usize = 128;

/// What is kept from happening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The exit of the idle daemon.
    Idle,
    /// That, and reboots by jobs.
    Apply,
}

impl What {
    /// The word of the option `what` of `Manager.Inhibit`.
    pub fn name(self) -> &'static str {
        match self {
            What::Idle => "idle",
            What::Apply => "apply",
        }
    }
}

/// One who inhibits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibitor {
    /// What.
    pub what: What,
    /// Its name, for people.
    pub who: String,
    /// Its reason, for people.
    pub why: String,
    /// The user it runs as.
    pub uid: u32,
    /// Since when: microseconds since the epoch.
    pub since: u64,
}

impl Inhibitor {
    /// One that begins now.
    pub fn new(what: What, who: String, why: String, uid: u32) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            what,
            who,
            why,
            uid,
            since: now.map_or(0, |now| now.as_micros() as u64),
        }
    }
}

/// There are too many already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are {0} inhibitors already, which is the most; close some first")]
pub struct TooMany(usize);

/// The list; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Inhibitors(watch::Sender<BTreeMap<u64, Inhibitor>>);

/// An entry of the list, for as long as it lives.
#[derive(Debug)]
pub struct Held {
    list: Inhibitors,
    number: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.list.0.send_modify(|list| {
            list.remove(&self.number);
        });
    }
}

impl Inhibitors {
    /// Puts one on the list.
    pub fn hold(&self, inhibitor: Inhibitor) -> Result<Held, TooMany> {
        let mut result = Err(TooMany(IN_ALL));
        self.0.send_if_modified(|list| {
            let of_user = list.values().filter(|one| one.uid == inhibitor.uid);
            if of_user.count() >= EACH_USER {
                result = Err(TooMany(EACH_USER));
            } else if list.len() < IN_ALL {
                let number = list.keys().next_back().map_or(0, |last| last + 1);
                list.insert(number, inhibitor);
                result = Ok(number);
            }
            result.is_ok()
        });
        result.map(|number| Held {
            list: self.clone(),
            number,
        })
    }

    /// Who is on the list now, the oldest first.
    pub fn list(&self) -> Vec<Inhibitor> {
        self.0.borrow().values().cloned().collect()
    }

    /// The first who keeps jobs from rebooting the host.
    pub fn against_reboot(&self) -> Option<Inhibitor> {
        let list = self.0.borrow();
        let mut against = list.values().filter(|one| one.what == What::Apply);
        against.next().cloned()
    }

    /// Returns when the list changes after the call.
    pub fn changes(&self) -> watch::Receiver<BTreeMap<u64, Inhibitor>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inhibitor(what: What, uid: u32) -> Inhibitor {
        Inhibitor::new(what, "who".into(), "why".into(), uid)
    }

    #[test]
    fn an_inhibitor_ends_with_its_holder() {
        let list = Inhibitors::default();
        let first = list.hold(inhibitor(What::Idle, 1)).unwrap();
        assert_eq!(list.against_reboot(), None);
        let second = list.hold(inhibitor(What::Apply, 2)).unwrap();
        let changes = list.changes();
        drop(first);
        assert!(changes.has_changed().unwrap());
        assert_eq!(list.against_reboot().map(|one| one.uid), Some(2));
        drop(second);
        assert_eq!(list.list(), vec![]);
    }

    #[test]
    fn nobody_can_fill_the_list_up() {
        let list = Inhibitors::default();
        let mut held = Vec::new();
        for uid in 0..(IN_ALL / EACH_USER) as u32 {
            for _ in 0..EACH_USER {
                held.push(list.hold(inhibitor(What::Idle, uid)).unwrap());
            }
            let one_more = list.hold(inhibitor(What::Idle, uid));
            assert_eq!(one_more.unwrap_err(), TooMany(EACH_USER));
        }
        let another = list.hold(inhibitor(What::Idle, 1000));
        assert_eq!(another.unwrap_err(), TooMany(IN_ALL));
        held.pop();
        list.hold(inhibitor(What::Idle, 1000)).unwrap();
    }
}
