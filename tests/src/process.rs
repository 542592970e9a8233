//! Running other programs: to their end, or for as long as the harness lives.
//!
//! Owns the rule that nothing outlives its owner: a [`Tethered`] program is stopped when its
//! owner is dropped *or killed*, because it hangs on a pipe that the kernel closes then.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// Fails unless the process is root, which mounts, other users and the immutable bit need.
///
/// # Errors
/// When the effective user is another one; the text says what to do.
pub fn require_root() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("reading own process status")?;
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|rest| rest.split_whitespace().nth(1));
    ensure!(
        uid == Some("0"),
        "this needs root (mount namespaces, an ostree sysroot, other users): run it again with sudo"
    );
    Ok(())
}

/// A command whose words are given at once.
pub fn command<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Command {
    let mut words = words.into_iter();
    let program = words.next();
    let mut command = Command::new(program.as_ref().map_or(OsStr::new("true"), AsRef::as_ref));
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns what it wrote to standard output.
///
/// # Errors
/// When it cannot be started or fails; the error holds the command and all of its output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    ensure_success(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// When it cannot be started.
pub fn finish(command: &mut Command) -> Result<Output> {
    command
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))
}

fn ensure_success(command: &Command, output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!(
            "{:?} failed ({})\n{}{}",
            command,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// The process ids whose parent is `parent`, as seen by the harness.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn children_of(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").context("listing processes")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end between the listing and the reading: then it is nobody's child.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        if after_name.split_whitespace().nth(1) == Some(&parent.to_string()) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// Follows only children from `parent` down to the last one: the program behind wrappers such
/// as `unshare --fork` or `nsenter`.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn innermost(parent: u32) -> Result<u32> {
    let mut pid = parent;
    while let [child] = children_of(pid)?[..] {
        pid = child;
    }
    Ok(pid)
}

/// Sends a signal by name (`KILL`, `TERM`) to one process.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    run(&mut command(["kill", "-s", name, &pid.to_string()])).map(drop)
}

/// A program that runs until its owner is dropped or dies.
#[derive(Debug)]
pub struct Tethered {
    shell: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Tethered {
    /// Starts `command`; `log` receives its standard error.
    ///
    /// # Errors
    /// When the log cannot be written or no process can be started.
    pub fn start(command: &Command, log: &Path) -> Result<Self> {
        // The shell waits on its standard input, our end of which closes even when we are killed;
        // a Ctrl-C at the terminal, which it gets as well, must not end it before its child.
        const SCRIPT: &str = r#"
            trap '' HUP INT QUIT
            "$@" </dev/null &
            child=$!
            exec >/dev/null
            while read -r line; do :; done
            kill -TERM "$child" 2>/dev/null
            wait "$child""#;
        let log = fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", SCRIPT, "tether"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let mut shell = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let stdout = shell.stdout.take().map(BufReader::new);
        Ok(Self { shell, stdout })
    }

    /// Waits for the program's next line on standard output; `None` when it has ended instead.
    ///
    /// # Errors
    /// When reading fails.
    pub fn next_line(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let Some(stdout) = self.stdout.as_mut() else {
            return Ok(None);
        };
        let read = stdout
            .read_line(&mut line)
            .context("reading a program's output")?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }

    /// Reads and forgets all further output, so that the program never waits for a reader.
    pub fn drain(&mut self) {
        self.watch(|_| {});
    }

    /// Hands all further lines to `each`, so that the program never waits for a reader.
    pub fn watch(&mut self, mut each: impl FnMut(&str) + Send + 'static) {
        if let Some(mut stdout) = self.stdout.take() {
            // Ends with the program; what it cannot read any more nobody wants.
            std::thread::spawn(move || {
                let mut line = Vec::new();
                while stdout
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|read| read > 0)
                {
                    each(String::from_utf8_lossy(&line).trim_end());
                    line.clear();
                }
            });
        }
    }

    /// The program's process id.
    ///
    /// # Errors
    /// When `/proc` cannot be listed.
    pub fn pid(&self) -> Result<u32> {
        innermost(self.shell.id())
    }
}

impl Drop for Tethered {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // The shell cannot outlast its end of the pipe, so neither wait can hang nor matter.
        let _ended = self.shell.wait();
    }
}

/// The directory cargo builds into, found from where this program itself stands.
///
/// # Errors
/// When the program was not built by cargo.
pub fn target_dir() -> Result<PathBuf> {
    let profile = profile_dir()?;
    profile
        .parent()
        .map(Path::to_owned)
        .context("the build directory has no parent")
}

fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding the own executable")?;
    let dir = exe.parent().context("the executable has no directory")?;
    let is_deps = dir.file_name() == Some(OsStr::new("deps"));
    let profile = if is_deps { dir.parent() } else { Some(dir) };
    profile
        .map(Path::to_owned)
        .context("the executable is not in a build directory")
}

/// The directory of `ostewardd` and `osteward`: where this program was built, or
/// `OSTEWARD_BIN_DIR`, for testing what is installed.
///
/// # Errors
/// When the program was not built by cargo.
pub fn binary_dir() -> Result<PathBuf> {
    std::env::var_os("OSTEWARD_BIN_DIR").map_or_else(profile_dir, |dir| Ok(dir.into()))
}

/// Builds what [`binary_dir`] should hold, once, unless it was named.
///
/// # Errors
/// When the daemon or the client does not build.
pub fn build_binaries() -> Result<()> {
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    if std::env::var_os("OSTEWARD_BIN_DIR").is_some() {
        return Ok(());
    }
    BUILT
        .get_or_init(|| build().map_err(|e| format!("{e:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn build() -> Result<()> {
    let profile = profile_dir()?;
    let mut build = cargo();
    // What was started with these packages selected finds their dependencies compiled: cargo
    // unites the features of what is selected, and another selection is another build.
    build.args(["build", "--quiet"]);
    build.args(["-p", "ostewardd", "-p", "osteward", "-p", "osteward-tests"]);
    build.args(["--bin", "ostewardd", "--bin", "osteward"]);
    if profile.file_name() == Some(OsStr::new("release")) {
        build.arg("--release");
    }
    build.env("CARGO_TARGET_DIR", target_dir()?);
    run(build.current_dir(workspace())).context("building the daemon and the client")?;
    Ok(())
}

/// The cargo that built this program, or the one on the search path.
pub fn cargo() -> Command {
    command([std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())])
}

/// The top directory of the sources.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}
