//! The end of a job that takes the host down, and with it whoever could tell how it ended.
//!
//! Owns when a loss counts as that reboot. Invariant: it does only after a request that ends
//! in one, and only if the daemon, asked once more, is not there any more: one that crashed
//! is started again by the question, and then its loss is a failure.

use std::time::Duration;

use osteward_dbus::types::JobInfo;
use serde_json::json;
use zbus::OwnedObjectPath;

use super::end_event;
use crate::bus::Bus;
use crate::fail::{DISCONNECTED, Exit, Failure};
use crate::manner::Manner;
use crate::output::outln;
use crate::request::Request;

/// What is heard of a daemon or a bus that goes down with the host. The first one is what
/// systemd answers who would start a service then.
const LOSSES: [&str; 3] = [
    "org.freedesktop.systemd1.ShuttingDown",
    DISCONNECTED,
    "org.freedesktop.DBus.Error.NameHasNoOwner",
];
/// How long a daemon that crashed may take until it answers again.
const ANSWER: Duration = Duration::from_secs(15);

fn is_loss(failure: &Failure) -> bool {
    LOSSES.contains(&failure.name.as_str())
}

/// Whether `failure` is the loss of a daemon that goes down because of `request`.
pub(super) async fn ends_in_it(bus: &Bus, request: &Request, failure: &Failure) -> bool {
    request.reboots() && is_loss(failure) && is_down(bus).await
}

/// Whether the daemon, asked once more, is not there and does not come back.
pub(super) async fn is_down(bus: &Bus) -> bool {
    match tokio::time::timeout(ANSWER, bus.status()).await {
        Ok(answer) => answer.is_err_and(|failure| is_loss(&failure)),
        // A bus that starts nobody any more.
        Err(_) => true,
    }
}

/// Says that the host reboots; `info` is what was known of the job in the end.
pub(super) fn say(manner: Manner, path: &OwnedObjectPath, info: Option<&JobInfo>) -> Exit {
    if manner.json {
        let event = match info {
            Some(info) => end_event(path.as_str(), info, None, None, "apply"),
            None => json!({"event": "rebooting", "job": path.as_str()}),
        };
        outln!("{}", crate::json::line(&event));
    }
    manner.note("The host reboots.");
    Exit::Done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::follow_tests::pair;

    fn upgrade(apply: Option<&str>) -> Request {
        Request::Upgrade(osteward_dbus::options::UpgradeOptions {
            apply: apply.map(str::to_owned),
            ..Default::default()
        })
    }

    #[tokio::test]
    async fn a_loss_is_a_reboot_when_nobody_answers_any_more() {
        let apply = Request::Apply(Default::default());
        for loss in LOSSES {
            for answer in LOSSES {
                let (bus, mut daemon) = pair().await;
                let answering = daemon.refuse("Status", answer);
                let loss = Failure::new(loss, "gone");
                let (ended, ()) = tokio::join!(ends_in_it(&bus, &apply, &loss), answering);
                assert!(ended, "{loss:?} {answer}");
            }
        }
        let (bus, daemon) = pair().await;
        daemon.close().await;
        let loss = Failure::new(DISCONNECTED, "gone");
        assert!(ends_in_it(&bus, &upgrade(Some("reboot")), &loss).await);
    }

    #[tokio::test]
    async fn a_daemon_that_is_back_has_crashed() {
        let (bus, mut daemon) = pair().await;
        // Whatever it says: it is there.
        let answering = daemon.refuse("Status", "org.osteward1.Error.NotBooted");
        let (apply, loss) = (
            Request::Apply(Default::default()),
            Failure::new(DISCONNECTED, "gone"),
        );
        let (ended, ()) = tokio::join!(ends_in_it(&bus, &apply, &loss), answering);
        assert!(!ended);
    }

    #[tokio::test]
    async fn only_a_loss_after_a_request_that_reboots_counts() {
        let (bus, daemon) = pair().await;
        daemon.close().await;
        let loss = Failure::new(DISCONNECTED, "gone");
        for request in [
            upgrade(None),
            upgrade(Some("none")),
            Request::Check(Default::default()),
        ] {
            assert!(!ends_in_it(&bus, &request, &loss).await, "{request:?}");
        }
        let other = Failure::new("org.osteward1.Error.Inhibited", "no");
        assert!(!ends_in_it(&bus, &Request::Apply(Default::default()), &other).await);
    }
}
