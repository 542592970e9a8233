//! The `osteward` binary against a scripted daemon on a private bus: what it prints, where,
//! and what it exits with. Needs `dbus-daemon`, as the whole test suite does.

#[cfg(test)]
#[path = "../src/sample.rs"]
mod sample;

#[cfg(test)]
mod tests {
    use std::process::{Output, Stdio};

    use futures_util::StreamExt as _;
    use osteward_dbus::BUS_NAME;
    use osteward_dbus::types::{Dict, JobInfo, Status, property_name, to_dict};
    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::process::{Child, Command};
    use zbus::message::Type;
    use zbus::names::UniqueName;
    use zbus::{Connection, Message, MessageStream, OwnedObjectPath, connection::Builder};

    use crate::sample;

    const PATH: &str = "/org/osteward1/job/7";

    /// A bus of our own; it ends with this value.
    struct PrivateBus {
        address: String,
        _daemon: Child,
    }

    impl PrivateBus {
        async fn start() -> Self {
            let mut daemon = Command::new("dbus-daemon")
                .args(["--session", "--nofork", "--nopidfile", "--print-address"])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("dbus-daemon is installed");
            let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
            let address = lines.next_line().await.unwrap().unwrap();
            Self {
                address,
                _daemon: daemon,
            }
        }

        async fn osteward(&self, arguments: &[&str]) -> Output {
            let mut command = Command::new(env!("CARGO_BIN_EXE_osteward"));
            command.args(["--bus", &self.address]).args(arguments);
            command
                .env("LC_ALL", "C.UTF-8")
                .env_remove("OSTEWARD_BUS")
                .stdin(Stdio::null());
            command.output().await.unwrap()
        }
    }

    async fn connect(address: &str) -> Connection {
        Builder::address(address).build().await.unwrap()
    }

    /// How the one job of the fake ends.
    #[derive(Clone, Copy)]
    enum End {
        Succeeded,
        Failed(&'static str, &'static str),
        DaemonDies,
        Never,
        /// Somebody else claims that it failed, before it succeeds.
        Imitated,
    }

    fn properties(info: &JobInfo) -> Dict {
        let record = to_dict(info).unwrap();
        record
            .into_iter()
            .map(|(key, value)| (property_name(&key), value))
            .collect()
    }

    async fn finish(
        from: &Connection,
        to: Option<UniqueName<'_>>,
        state: &str,
        error: (&str, &str),
    ) {
        let mut result = Dict::new();
        result.insert("changed".into(), (state == "succeeded").into());
        result.insert(
            "digest".into(),
            sample::text(&sample::update("staged", 'c').digest),
        );
        let body = (state, error.0, error.1, result);
        from.emit_signal(to, PATH, "org.osteward1.Job", "Finished", &body)
            .await
            .unwrap();
    }

    /// Runs the job's script, after somebody has read the job.
    async fn play(address: &str, daemon: &Connection, reader: UniqueName<'_>, end: End) {
        let phases = [("importing", 2, 0.7), ("staging", 3, 0.9)];
        for (phase, sequence, fraction) in phases {
            let info = JobInfo {
                phase: phase.into(),
                sequence,
                fraction,
                ..sample::downloading()
            };
            let mut changed = properties(&info);
            changed.remove("Kind");
            let body = ("org.osteward1.Job", changed, Vec::<String>::new());
            let interface = "org.freedesktop.DBus.Properties";
            let signal =
                daemon.emit_signal(None::<&str>, PATH, interface, "PropertiesChanged", &body);
            signal.await.unwrap();
        }
        match end {
            End::Succeeded => finish(daemon, None, "succeeded", ("", "")).await,
            End::Failed(name, message) => finish(daemon, None, "failed", (name, message)).await,
            End::DaemonDies => {
                daemon.release_name(BUS_NAME).await.unwrap();
            }
            End::Never => {}
            End::Imitated => {
                let stranger = connect(address).await;
                finish(
                    &stranger,
                    Some(reader),
                    "failed",
                    ("org.osteward1.Error.Failed", "ha"),
                )
                .await;
                // The bus has passed it on when it answers the stranger again.
                stranger.request_name("org.example.Stranger").await.unwrap();
                finish(daemon, None, "succeeded", ("", "")).await;
            }
        }
    }

    /// A daemon that answers until the test ends.
    async fn serve(bus: &PrivateBus, status: Status, end: End) {
        let address = bus.address.clone();
        let daemon = connect(&address).await;
        daemon.request_name(BUS_NAME).await.unwrap();
        let mut calls = MessageStream::from(&daemon);
        let mut kind = "upgrade".to_owned();
        tokio::spawn(async move {
            while let Some(Ok(call)) = calls.next().await {
                if call.message_type() == Type::MethodCall {
                    answer(&address, &daemon, &call, &status, end, &mut kind).await;
                }
            }
        });
    }

    async fn answer(
        address: &str,
        daemon: &Connection,
        call: &Message,
        status: &Status,
        end: End,
        kind: &mut String,
    ) {
        let header = call.header();
        let path = OwnedObjectPath::try_from(PATH).unwrap();
        match header.member().unwrap().as_str() {
            "Status" => daemon
                .reply(&header, &(status.to_dict().unwrap(),))
                .await
                .unwrap(),
            "GetAll" => {
                let info = JobInfo {
                    kind: kind.clone(),
                    ..sample::downloading()
                };
                daemon.reply(&header, &(properties(&info),)).await.unwrap();
                let reader = header.sender().unwrap().to_owned();
                play(address, daemon, reader, end).await;
            }
            "Rollback" => {
                let error = "org.osteward1.Error.StagedPending";
                daemon
                    .reply_error(&header, error, &("43 is staged",))
                    .await
                    .unwrap();
            }
            method => {
                *kind = method.to_lowercase();
                daemon.reply(&header, &(path,)).await.unwrap();
            }
        }
    }

    fn stdout(output: &Output) -> String {
        String::from_utf8(output.stdout.clone()).unwrap()
    }

    fn stderr(output: &Output) -> String {
        String::from_utf8(output.stderr.clone()).unwrap()
    }

    #[tokio::test]
    async fn an_upgrade_in_a_pipe() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::staged(), End::Succeeded).await;
        let output = bus.osteward(&["upgrade"]).await;
        assert_eq!(
            stdout(&output),
            "Staged 43 (sha256:cccccccccccc) for the next boot.\n`osteward apply` reboots into it now.\n"
        );
        let progress = stderr(&output);
        let phases: Vec<&str> = progress
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(
            phases,
            ["downloading", "importing", "staging"],
            "{progress}"
        );
        assert_eq!(output.status.code(), Some(0));
    }

    #[tokio::test]
    async fn exit_codes_of_check_and_status() {
        let cases = [
            (sample::status("idle"), 0),
            (sample::status("available"), 10),
            (sample::staged(), 11),
        ];
        for (status, code) in cases {
            let bus = PrivateBus::start().await;
            serve(&bus, status, End::Succeeded).await;
            assert_eq!(bus.osteward(&["check"]).await.status.code(), Some(code));
            assert_eq!(
                bus.osteward(&["status", "--exit-code"]).await.status.code(),
                Some(code)
            );
            assert_eq!(bus.osteward(&["status"]).await.status.code(), Some(0));
        }
    }

    #[tokio::test]
    async fn json_is_one_document_a_line() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::status("available"), End::Succeeded).await;
        let output = bus.osteward(&["check", "--json"]).await;
        let text = stdout(&output);
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let events: Vec<&str> = lines
            .iter()
            .map(|line| line["event"].as_str().unwrap())
            .collect();
        assert_eq!(events, ["progress", "progress", "progress", "finished"]);
        assert_eq!(
            (&lines[3]["error"], &lines[3]["update"]["version"]),
            (&Value::Null, &"43".into())
        );
        assert_eq!(stderr(&output), "");

        let status: Value =
            serde_json::from_str(&stdout(&bus.osteward(&["--json", "status"]).await)).unwrap();
        assert_eq!(status["deployments"][0]["booted"], true);
        assert_eq!(status["schema"], 1);
    }

    #[tokio::test]
    async fn a_job_that_fails() {
        let bus = PrivateBus::start().await;
        let end = End::Failed("org.osteward1.Error.NoSpace", "need 3 GiB");
        serve(&bus, sample::status("available"), end).await;
        let output = bus.osteward(&["upgrade", "--quiet"]).await;
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(1), String::new())
        );
        let text = stderr(&output);
        assert!(
            text.starts_with(
                "error: need 3 GiB\n  D-Bus error: org.osteward1.Error.NoSpace\n  hint: "
            ),
            "{text}"
        );
        let output = bus.osteward(&["upgrade", "--json"]).await;
        let text = stdout(&output);
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            (&last["event"], &last["error"]["name"]),
            (&"finished".into(), &"org.osteward1.Error.NoSpace".into())
        );
    }

    #[tokio::test]
    async fn a_call_that_fails() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::staged(), End::Succeeded).await;
        let output = bus.osteward(&["rollback"]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("--discard-staged"),
            "{}",
            stderr(&output)
        );
        let output = bus.osteward(&["rollback", "--json"]).await;
        let error: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(error["error"]["name"], "org.osteward1.Error.StagedPending");
    }

    #[tokio::test]
    async fn a_daemon_that_dies_and_one_that_is_not_there() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::status("available"), End::DaemonDies).await;
        let output = bus.osteward(&["upgrade"]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("the daemon went away"),
            "{}",
            stderr(&output)
        );
        let output = bus.osteward(&["status"]).await;
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(
            text.contains("org.freedesktop.DBus.Error.ServiceUnknown"),
            "{text}"
        );
        assert!(text.contains("systemctl status ostewardd"), "{text}");
    }

    #[tokio::test]
    async fn strangers_are_not_believed() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::staged(), End::Imitated).await;
        let output = bus.osteward(&["watch", "7"]).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }

    #[tokio::test]
    async fn no_wait_prints_the_path() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::staged(), End::DaemonDies).await;
        let output = bus.osteward(&["upgrade", "--no-wait"]).await;
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(0), format!("{PATH}\n"))
        );
    }

    /// A command on a pseudo-terminal; what it prints is in `screen`.
    struct Terminal {
        script: Child,
        output: tokio::process::ChildStdout,
        input: tokio::process::ChildStdin,
        screen: String,
    }

    impl Terminal {
        fn run(bus: &PrivateBus, arguments: &str) -> Self {
            let osteward = env!("CARGO_BIN_EXE_osteward");
            let line = format!("{osteward} --bus {} {arguments}", bus.address);
            let mut script = Command::new("script")
                .args([
                    "--quiet",
                    "--return",
                    "--flush",
                    "--command",
                    &line,
                    "/dev/null",
                ])
                .env("TERM", "xterm")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let (output, input) = (script.stdout.take().unwrap(), script.stdin.take().unwrap());
            Self {
                script,
                output,
                input,
                screen: String::new(),
            }
        }

        async fn wait_for(&mut self, text: &str) {
            while !self.screen.contains(text) {
                let mut buffer = [0; 4096];
                let length = self.output.read(&mut buffer).await.unwrap();
                assert_ne!(length, 0, "no {text:?} in {:?}", self.screen);
                self.screen
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        }

        async fn press(&mut self, keys: &str) {
            self.input.write_all(keys.as_bytes()).await.unwrap();
        }

        async fn code(&mut self) -> Option<i32> {
            self.script.wait().await.unwrap().code()
        }
    }

    #[tokio::test]
    async fn a_terminal_gets_a_bar() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::staged(), End::Never).await;
        let mut terminal = Terminal::run(&bus, "upgrade");
        terminal.wait_for(" 90 %").await;
        for part in ["staging", "======>", "512.00 MiB of 1.00 GiB"] {
            assert!(
                terminal.screen.contains(part),
                "{part} in {:?}",
                terminal.screen
            );
        }
        terminal.press("\u{3}").await;
        terminal.wait_for("Cancel the job [c]").await;
        terminal.press("l\n").await;
        terminal
            .wait_for("Job 7 goes on: `osteward watch 7` follows it")
            .await;
        assert_eq!(terminal.code().await, Some(130));
    }

    #[tokio::test]
    async fn ctrl_c_twice_leaves_the_job_running() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::staged(), End::Never).await;
        let mut terminal = Terminal::run(&bus, "upgrade");
        terminal.wait_for("staging").await;
        terminal.press("\u{3}").await;
        terminal.wait_for("Cancel the job [c]").await;
        terminal.press("\u{3}").await;
        terminal.wait_for("Job 7 goes on").await;
        assert_eq!(terminal.code().await, Some(130));
    }

    #[tokio::test]
    async fn ctrl_c_without_a_terminal_asks_nobody() {
        let bus = PrivateBus::start().await;
        serve(&bus, sample::staged(), End::Never).await;
        let mut osteward = Command::new(env!("CARGO_BIN_EXE_osteward"))
            .args(["--bus", &bus.address, "upgrade"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(osteward.stderr.take().unwrap()).lines();
        assert!(
            lines
                .next_line()
                .await
                .unwrap()
                .unwrap()
                .starts_with("downloading 45 %")
        );
        let pid = osteward.id().unwrap().to_string();
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .await
            .unwrap();
        let mut last = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            last = line;
        }
        let advice = "Job 7 goes on: `osteward watch 7` follows it, `osteward cancel 7` stops it.";
        assert_eq!(last, advice);
        assert_eq!(osteward.wait().await.unwrap().code(), Some(130));
    }
}
