//! Stopping a program where it reads one object of an ostree repository.
//!
//! A lease on the object's file (fcntl(2), "Leases") makes whoever opens it wait, and tells who
//! holds the lease: a place inside libostree's work that can be hit exactly. The file itself
//! is never touched. Invariant: whoever waits is let go when the turnstile is dropped, or this
//! process dies; the kernel does so after 45 seconds in any case.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::command;

/// Longest time until somebody comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Takes the lease, says `ready`, and `reached` when somebody wants in; lets go at the end of
/// its standard input. Signals are what the kernel tells leases' holders with, and Perl is the
/// smallest program of every Debian that can hear them.
const LEASE: &str = r#"
use Fcntl;
$| = 1;
$SIG{IO} = sub { print "reached\n" };
open(my $file, "<", $ARGV[0]) or die "$ARGV[0]: $!\n";
my $set_lease = 1024;
fcntl($file, $set_lease, F_WRLCK) or die "lease: $!\n";
print "ready\n";
while (<STDIN>) {}
"#;

/// One object behind bars.
#[derive(Debug)]
pub struct Turnstile {
    perl: Child,
    lines: Receiver<String>,
}

impl Turnstile {
    /// Bars the directory object with that checksum.
    ///
    /// # Errors
    /// When the repository has no such object, or somebody has it open now.
    pub fn at_directory(repo: &Path, checksum: &str) -> Result<Self> {
        let (bucket, rest) = checksum.split_at_checked(2).context("not a checksum")?;
        let object = repo.join(format!("objects/{bucket}/{rest}.dirtree"));
        let mut perl = command(["perl", "-e", LEASE])
            .arg(&object)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting perl")?;
        let output = perl.stdout.take().context("no output")?;
        let turnstile = Self {
            perl,
            lines: lines_of(output),
        };
        ensure!(
            turnstile.lines.recv_timeout(PATIENCE).as_deref() == Ok("ready"),
            "no lease on {}",
            object.display()
        );
        Ok(turnstile)
    }

    /// Waits until somebody stands before the object.
    ///
    /// # Errors
    /// When nobody comes within two minutes.
    pub fn wait(&self) -> Result<()> {
        let line = self.lines.recv_timeout(PATIENCE);
        ensure!(
            line.as_deref() == Ok("reached"),
            "nobody read the object: {line:?}"
        );
        Ok(())
    }

    /// Lets everybody pass.
    pub fn pass(self) {
        drop(self);
    }
}

impl Drop for Turnstile {
    fn drop(&mut self) {
        drop(self.perl.stdin.take());
        // Ends with its input; a failed wait means it ended before.
        let _ended = self.perl.wait();
    }
}

fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
