//! Following a job, against a fake daemon at the other end of a socket pair.

use std::os::unix::net::UnixStream;

use futures_util::StreamExt as _;
use osteward_dbus::types::{Dict, JobInfo, property_name, to_dict};
use zbus::connection::Builder;
use zbus::{Connection, Guid, Message, MessageStream, OwnedObjectPath};

use crate::bus::Bus;
use crate::fail::{DISCONNECTED, Failure};
use crate::follow::{Event, Follower, Listener};
use crate::request::Request;
use crate::sample;

const PATH: &str = "/org/osteward1/job/7";

/// The daemon's end: answers by hand, so that a test decides what comes in which order.
pub(crate) struct Daemon {
    connection: Connection,
    calls: MessageStream,
}

impl Daemon {
    /// The next method call.
    async fn call(&mut self) -> Message {
        loop {
            let message = self.calls.next().await.unwrap().unwrap();
            if message.message_type() == zbus::message::Type::MethodCall {
                return message;
            }
        }
    }

    /// Answers the next call, which is one of `member`, with an error.
    pub(crate) async fn refuse(&mut self, member: &str, name: &str) {
        let call = self.call().await;
        let header = call.header();
        assert_eq!(header.member().unwrap().as_str(), member);
        self.connection
            .reply_error(&header, name, &("because",))
            .await
            .unwrap();
    }

    /// Goes away.
    pub(crate) async fn close(self) {
        self.connection.close().await.unwrap();
    }

    /// Answers a `GetAll` on the job.
    async fn answer_properties(&mut self, info: &JobInfo) {
        let call = self.call().await;
        let header = call.header();
        assert_eq!(header.member().unwrap().as_str(), "GetAll");
        assert_eq!(header.path().unwrap().as_str(), PATH);
        self.connection
            .reply(&header, &(properties(info),))
            .await
            .unwrap();
    }

    async fn changed(&self, path: &str, info: &JobInfo) {
        let body = ("org.osteward1.Job", properties(info), Vec::<String>::new());
        let interface = "org.freedesktop.DBus.Properties";
        self.connection
            .emit_signal(None::<&str>, path, interface, "PropertiesChanged", &body)
            .await
            .unwrap();
    }

    async fn finished(&self, path: &str, state: &str, error: (&str, &str)) {
        let mut result = Dict::new();
        result.insert("changed".into(), (state == "succeeded").into());
        let body = (state, error.0, error.1, result);
        self.connection
            .emit_signal(None::<&str>, path, "org.osteward1.Job", "Finished", &body)
            .await
            .unwrap();
    }
}

/// The record under the names of the properties.
fn properties(info: &JobInfo) -> Dict {
    let record = to_dict(info).unwrap();
    record
        .into_iter()
        .map(|(key, value)| (property_name(&key), value))
        .collect()
}

fn running(sequence: u64, fraction: f64) -> JobInfo {
    JobInfo {
        sequence,
        fraction,
        ..sample::downloading()
    }
}

pub(crate) async fn pair() -> (Bus, Daemon) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guid = Guid::generate();
    let server = Builder::unix_stream(theirs).server(guid).p2p();
    let client = Builder::unix_stream(ours).p2p();
    let (server, client) = tokio::join!(server.build(), client.build());
    let (server, client) = (server.unwrap(), client.unwrap());
    let calls = MessageStream::from(&server);
    (
        Bus {
            connection: client,
            interactive: false,
        },
        Daemon {
            connection: server,
            calls,
        },
    )
}

/// Listens and reads the job, which the daemon describes as `info`.
async fn follow(bus: &Bus, daemon: &mut Daemon, info: &JobInfo) -> Follower {
    let listener = Listener::subscribe(&bus.connection).await.unwrap();
    let path = OwnedObjectPath::try_from(PATH).unwrap();
    let (follower, ()) = tokio::join!(listener.follow(path), daemon.answer_properties(info));
    follower.unwrap()
}

#[tokio::test]
async fn a_late_joiner_sees_where_the_job_is_and_how_it_ends() {
    let (bus, mut daemon) = pair().await;
    let mut follower = follow(&bus, &mut daemon, &running(5, 0.45)).await;
    assert_eq!(follower.info().layers_done, 12);
    assert_eq!(follower.snapshot()["phase"], "downloading");

    daemon.changed(PATH, &running(6, 0.5)).await;
    let Event::Changed(changed) = follower.next().await.unwrap() else {
        panic!()
    };
    assert_eq!(changed["fraction"], 0.5);
    assert_eq!(follower.info().fraction, 0.5);

    daemon.finished(PATH, "succeeded", ("", "")).await;
    assert_eq!(follower.next().await.unwrap(), Event::Finished);
    assert_eq!(follower.info().state, "succeeded");
    assert_eq!(bool::try_from(&follower.info().result["changed"]), Ok(true));
    assert_eq!(
        follower.next().await.unwrap(),
        Event::Finished,
        "the end stays the end"
    );
}

#[tokio::test]
async fn a_job_that_ended_before_it_was_read_is_read_from_its_properties() {
    let (bus, mut daemon) = pair().await;
    let ended = JobInfo {
        state: "succeeded".into(),
        ..running(9, 1.0)
    };
    let mut follower = follow(&bus, &mut daemon, &ended).await;
    assert_eq!(follower.next().await.unwrap(), Event::Finished);
    assert_eq!(follower.info().state, "succeeded");
}

#[tokio::test]
async fn an_end_that_overtakes_the_answer_is_not_missed() {
    let (bus, mut daemon) = pair().await;
    let listener = Listener::subscribe(&bus.connection).await.unwrap();
    let path = OwnedObjectPath::try_from(PATH).unwrap();
    let answer = async {
        let call = daemon.call().await;
        // The properties were read before the end, but sent after it.
        daemon.finished(PATH, "succeeded", ("", "")).await;
        daemon
            .connection
            .reply(&call.header(), &(properties(&running(3, 0.9)),))
            .await
            .unwrap();
    };
    let (follower, ()) = tokio::join!(listener.follow(path), answer);
    let mut follower = follower.unwrap();
    assert_eq!(follower.info().state, "running");
    assert_eq!(follower.next().await.unwrap(), Event::Finished);
    assert_eq!(follower.info().state, "succeeded");
}

#[tokio::test]
async fn a_failed_job_keeps_the_name_of_its_error() {
    let (bus, mut daemon) = pair().await;
    let mut follower = follow(&bus, &mut daemon, &running(1, 0.1)).await;
    daemon
        .finished(
            PATH,
            "failed",
            ("org.osteward1.Error.NoSpace", "need 3 GiB"),
        )
        .await;
    assert_eq!(follower.next().await.unwrap(), Event::Finished);
    let info = follower.info();
    let failure = Failure::of_job(&info.state, &info.error).unwrap();
    assert_eq!(
        failure,
        Failure::new("org.osteward1.Error.NoSpace", "need 3 GiB")
    );
    assert!(
        failure
            .hint("upgrade")
            .unwrap()
            .contains("osteward discard")
    );
}

#[tokio::test]
async fn a_daemon_that_goes_away_is_noticed() {
    let (bus, mut daemon) = pair().await;
    let mut follower = follow(&bus, &mut daemon, &running(1, 0.1)).await;
    daemon.changed(PATH, &running(2, 0.2)).await;
    daemon.connection.close().await.unwrap();
    assert!(
        matches!(follower.next().await.unwrap(), Event::Changed(_)),
        "what it said comes first"
    );
    assert_eq!(follower.next().await.unwrap(), Event::Vanished);
    assert_eq!(follower.info().state, "running");
}

#[tokio::test]
async fn a_daemon_that_dies_after_the_last_state_has_told_the_end() {
    let (bus, mut daemon) = pair().await;
    let mut follower = follow(&bus, &mut daemon, &running(1, 0.1)).await;
    let ended = JobInfo {
        state: "cancelled".into(),
        ..running(2, 0.2)
    };
    daemon.changed(PATH, &ended).await;
    daemon.connection.close().await.unwrap();
    assert!(matches!(follower.next().await.unwrap(), Event::Changed(_)));
    assert_eq!(follower.next().await.unwrap(), Event::Finished);
    assert_eq!(follower.info().state, "cancelled");
}

#[tokio::test]
async fn other_jobs_and_stale_changes_are_dropped() {
    let (bus, mut daemon) = pair().await;
    let mut follower = follow(&bus, &mut daemon, &running(5, 0.5)).await;
    daemon
        .changed("/org/osteward1/job/8", &running(9, 0.9))
        .await;
    daemon
        .finished("/org/osteward1/job/8", "failed", ("x.y", "z"))
        .await;
    daemon.changed(PATH, &running(4, 0.4)).await;
    daemon.changed(PATH, &running(6, 0.6)).await;
    let Event::Changed(changed) = follower.next().await.unwrap() else {
        panic!()
    };
    assert_eq!(changed["fraction"], 0.6);
}

#[tokio::test]
async fn signals_while_a_call_is_pending_do_not_hold_up_its_reply() {
    let (bus, mut daemon) = pair().await;
    let mut listener = Listener::subscribe(&bus.connection).await.unwrap();
    let request = Request::Check(Default::default());
    let answer = async {
        let call = daemon.call().await;
        assert_eq!(call.header().member().unwrap().as_str(), "Check");
        // Many more than a queue holds: somebody else's job during a password dialog.
        for sequence in 0..2000 {
            daemon
                .changed("/org/osteward1/job/6", &running(sequence, 0.1))
                .await;
        }
        let path = OwnedObjectPath::try_from(PATH).unwrap();
        daemon
            .connection
            .reply(&call.header(), &(path,))
            .await
            .unwrap();
    };
    let ((path, heard), ()) = tokio::join!(listener.meanwhile(bus.start(&request)), answer);
    assert_eq!(path.unwrap().as_str(), PATH);
    assert!(heard.len() <= 256, "{}", heard.len());
}

#[tokio::test]
async fn the_first_word_of_any_job_names_it() {
    let (bus, daemon) = pair().await;
    let mut listener = Listener::subscribe(&bus.connection).await.unwrap();
    daemon.changed(PATH, &running(1, 0.0)).await;
    assert_eq!(listener.any_job().await.unwrap().as_str(), PATH);
    daemon.connection.close().await.unwrap();
    assert_eq!(listener.any_job().await.unwrap_err().name, DISCONNECTED);
}

#[tokio::test]
async fn errors_of_calls_keep_their_names() {
    let (bus, mut daemon) = pair().await;
    for name in [
        "org.osteward1.Error.Busy",
        "org.freedesktop.DBus.Error.AccessDenied",
    ] {
        let request = Request::Check(Default::default());
        let answer = async {
            let call = daemon.call().await;
            let header = call.header();
            daemon
                .connection
                .reply_error(&header, name, &("because",))
                .await
                .unwrap();
        };
        let (path, ()) = tokio::join!(bus.start(&request), answer);
        assert_eq!(path, Err(Failure::new(name, "because")));
    }
}

#[tokio::test]
async fn passwords_are_asked_for_only_with_leave() {
    let (mut bus, mut daemon) = pair().await;
    for interactive in [false, true] {
        bus.interactive = interactive;
        let request = Request::Rollback(Default::default());
        let answer = async {
            let call = daemon.call().await;
            let header = call.header();
            let flags = header.primary().flags();
            assert_eq!(
                flags.contains(zbus::message::Flags::ALLOW_INTERACTIVE_AUTH),
                interactive
            );
            let path = OwnedObjectPath::try_from(PATH).unwrap();
            daemon.connection.reply(&header, &(path,)).await.unwrap();
        };
        let (path, ()) = tokio::join!(bus.start(&request), answer);
        assert_eq!(path.unwrap().as_str(), PATH);
    }
}
