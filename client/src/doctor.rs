//! `doctor`: what on this host would keep updates from working.
//!
//! Owns which examinations there are and their order. Invariants: nothing is changed, and no
//! privilege is needed; what this user cannot know is left out rather than guessed; whatever
//! is not well comes with what to do next. This is the one verb that looks at the host
//! itself, because it has to have an answer also where the daemon has none.

mod daemon;
mod finding;
mod host;
mod neighbours;
mod room;

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

pub(crate) use self::finding::{Finding, Level};
use self::host::Host;
use crate::bus::Bus;
use crate::fail::{Exit, Failure};
use crate::manner::Manner;
use crate::output::out;
use crate::{show, verbs};

/// How long somebody on the bus may take to answer before that is a finding of its own. More
/// than a daemon takes that has to be started and to look at the sysroot first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the verb: on the bus at `address`, or the system bus.
pub(crate) async fn doctor(address: Option<&str>, manner: Manner) -> Result<Exit, Failure> {
    let findings = examine(address, &Host::new(Path::new("/"), verbs::now())).await;
    let healthy = findings.iter().all(|finding| finding.level != Level::Fail);
    if manner.json {
        let list: Vec<_> = findings.iter().map(Finding::to_json).collect();
        manner.print_json(&json!({"healthy": healthy, "findings": list}));
    } else {
        out!(
            "{}",
            show::doctor::findings(&findings, manner.look, manner.quiet)
        );
    }
    Ok(if healthy { Exit::Done } else { Exit::Failed })
}

async fn examine(address: Option<&str>, host: &Host) -> Vec<Finding> {
    let mut findings = host.findings();
    let bus = match Bus::connect(address, false).await {
        Ok(bus) => bus,
        Err(failure) => {
            findings.push(Finding::of("bus", &failure));
            return findings;
        }
    };
    let known = match in_time("the daemon", daemon::Known::ask(&bus)).await {
        Ok(known) => {
            findings.push(known.presence());
            findings.extend(known.findings());
            Some(known)
        }
        Err(failure) => {
            findings.push(Finding::of("daemon", &failure));
            None
        }
    };
    if host.is_booted() {
        let status = known.as_ref().map(|known| &known.status);
        findings.extend(host.leftover(status));
        findings.extend(room::findings(
            host,
            status.and_then(|status| status.update.as_ref()),
        ));
    }
    findings.extend(neighbours::findings(&bus).await);
    findings
}

/// What `work` gives, or a failure when it does not end.
async fn in_time<T>(
    whose: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| {
            let text = format!("{whose} did not answer in {} s", PATIENCE.as_secs());
            Err(Failure::new("org.freedesktop.DBus.Error.TimedOut", text))
        })
}
