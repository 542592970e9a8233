//! Who may do what: people in sessions of their own, the real polkit, and an agent that asks.
//!
//! alice is nobody in particular, admin is in the group that polkit asks for; the passwords are
//! their names. A session is logind's, made by PAM as a login makes it.

use anyhow::{Context, Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::relay::Relay;
use osteward_tests::suite::Case;

use crate::origin::Origin;
use crate::osteward::{Ended, Status, expect_status};

const ASKS: &str = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired";
const DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";

/// Where somebody is when they call.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In no session, like a job of cron.
    Nowhere,
    /// Logged in at the machine itself.
    Seat,
}

/// Runs `osteward --json WORDS` as `user`.
fn osteward_as(machine: &mut Machine, user: &str, place: Place, words: &str) -> Result<Ended> {
    let osteward = format!("osteward --json --quiet {words}");
    let script = match place {
        Place::Nowhere => format!("runuser --user {user} -- {osteward}"),
        Place::Seat => in_session(user, &osteward),
    };
    let answer = machine.run(&script)?;
    Ended::parse(answer.status, &answer.output).with_context(|| format!("{user}: {words}"))
}

/// The command that runs `command` in a new session of `user` at the machine's seat.
fn in_session(user: &str, command: &str) -> String {
    // What getty and login give to PAM, which has logind make the session. The shell stays
    // between, as a login shell would: the first process has PAM's helper for a child, and
    // script(1) would wait for that one, too.
    format!(
        "systemd-run --quiet --wait --pipe --collect --uid={user} \
         --property=PAMName=login --setenv=XDG_SEAT=seat0 --setenv=XDG_SESSION_CLASS=user \
         --setenv=XDG_SESSION_TYPE=tty -- sh -c '\"$@\"; exit $?' login {command}"
    )
}

/// What a person at a terminal sees and answers.
#[derive(Debug)]
struct Dialog {
    /// Exit code of `osteward`.
    code: i32,
    /// All that was on the terminal.
    screen: String,
}

/// Runs `osteward WORDS` on a terminal in a session of `user`, types `password` when asked for
/// one, and waits for the end.
fn dialog(machine: &mut Machine, user: &str, words: &str, password: &str) -> Result<Dialog> {
    // The prompt comes on the terminal only; a shell has no other way to wait for it.
    let script = r#"
        dir=$(mktemp --directory); chown USER "$dir"; mkfifo "$dir/keys"; exec 9<>"$dir/keys"
        SESSION <"$dir/keys" >"$dir/screen" 2>&1 &
        for _ in {1..600}; do
            grep -q 'Password:' "$dir/screen" && { echo 'PASSWORD' >&9; break; }
            kill -0 $! 2>/dev/null || break
            sleep 0.1
        done
        wait $!; code=$?
        tr -d '\r' <"$dir/screen"; rm -r "$dir"
        exit $code"#;
    let terminal =
        format!("script --quiet --return --flush --command \"osteward {words}\" /dev/null");
    let answer = machine.run(
        &script
            .replace("SESSION", &in_session(user, &terminal))
            .replace("USER", user)
            .replace("PASSWORD", password),
    )?;
    Ok(Dialog {
        code: answer.status,
        screen: answer.output,
    })
}

/// What polkit's defaults mean for people.
pub(crate) fn permissions(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    origin.publish("v2")?;
    let relay = origin.through_relay(&mut case.machine)?;
    case.step("everybody reads the status", |machine| {
        let command = "runuser --user alice -- osteward status --json";
        let summary = Status::told_by(machine, command)?.summary();
        ensure!(summary == "booted 1", "{summary}");
        Ok(())
    })?;
    case.step("without a session, check is not for alice", |machine| {
        let words = "--no-ask-password check";
        osteward_as(machine, "alice", Place::Nowhere, words)?
            .failed(ASKS)
            .map(drop)
    })?;
    case.step("alice at the machine checks and downloads", |machine| {
        let check = osteward_as(machine, "alice", Place::Seat, "check")?;
        check.succeeded()?;
        ensure!(check.code == 10, "{check:?}");
        osteward_as(machine, "alice", Place::Seat, "download")?.succeeded()?;
        expect_status(machine, "booted 1").map(drop)
    })?;
    case.step(
        "upgrade, switch, rollback and discard want a password",
        |machine| {
            let switch = format!("switch {}", origin.image());
            for words in ["upgrade", &switch, "rollback", "discard cache"] {
                let words = format!("--no-ask-password {words}");
                osteward_as(machine, "alice", Place::Seat, &words)?.failed(ASKS)?;
            }
            expect_status(machine, "booted 1").map(drop)
        },
    )?;
    case.step("a wrong password is AccessDenied", |machine| {
        let dialog = dialog(machine, "alice", "upgrade", "wrong")?;
        ensure!(
            dialog.screen.contains("Authenticating as: admin"),
            "{dialog:#?}"
        );
        ensure!(
            dialog.code == 1 && dialog.screen.contains(DENIED),
            "{dialog:#?}"
        );
        expect_status(machine, "booted 1").map(drop)
    })?;
    case.step(
        "the administrator's password lets alice upgrade",
        |machine| {
            let dialog = dialog(
                machine,
                "alice",
                "--reason 'alice asked nicely' upgrade",
                "admin",
            )?;
            let asked = "org.osteward1.upgrade-unverified";
            ensure!(dialog.screen.contains(asked), "{dialog:#?}");
            ensure!(
                dialog.code == 0 && dialog.screen.contains("Staged"),
                "{dialog:#?}"
            );
            expect_status(machine, "staged 2, booted 1").map(drop)
        },
    )?;
    case.step("the journal knows that it was alice", |machine| {
        let alice = machine.ok("id --user alice")?;
        let found = machine.ok(&format!(
            "journalctl --sync; journalctl --boot --unit ostewardd --output cat \
             OSTEWARD_UID={alice} OSTEWARD_KIND=upgrade 'OSTEWARD_REASON=alice asked nicely'"
        ))?;
        ensure!(
            found.contains(&format!("asked for by uid {alice}")),
            "{found}"
        );
        Ok(())
    })?;
    case.step(
        "alice's own job is hers to cancel, root's is not",
        |machine| cancel_as_alice(machine, &relay),
    )?;
    case.step(
        "without polkit root goes on, and others are denied",
        |machine| {
            machine.ok("systemctl mask --runtime --now polkit")?;
            let alice = osteward_as(machine, "alice", Place::Seat, "--no-ask-password upgrade")?;
            alice.failed(DENIED)?;
            ensure!(machine.run("osteward upgrade")?.status == 0);
            machine.ok("systemctl unmask --runtime polkit").map(drop)
        },
    )
}

/// Two jobs that wait for a registry which does not answer.
fn cancel_as_alice(machine: &mut Machine, relay: &Relay) -> Result<()> {
    relay.stop("/manifests/", 0);
    machine.ok("osteward upgrade --no-wait")?;
    osteward_as(machine, "alice", Place::Seat, "--no-ask-password cancel")?.failed(ASKS)?;
    machine.ok("osteward cancel")?;
    machine.ok(&in_session("alice", "osteward download --no-wait"))?;
    let cancelled = osteward_as(machine, "alice", Place::Seat, "--no-ask-password cancel")?;
    ensure!(
        cancelled.code == 0 && cancelled.document["state"] == "cancelled",
        "{cancelled:?}"
    );
    relay.resume();
    Ok(())
}
