//! `make demo`: the main job on a host made for the occasion, as its administrator sees it.
//!
//! Everything is real but the machine (see the harness): two small images in a local OCI
//! layout, the older one booted. Ends with 0 only if every step did what it shows.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use osteward_tests::bus::Bus;
use osteward_tests::client;
use osteward_tests::daemon::Daemon;
use osteward_tests::image::{Compression, Image, Layer, Layout, Written, os_tree};
use osteward_tests::process::require_root;
use osteward_tests::sandbox::{FirstDeployment, Options, Sandbox, UNPRIVILEGED_UID};

/// What the host tracks, as it sees it.
const ORIGIN: &str = "ostree-unverified-image:oci:/run/share/images:latest";

fn main() -> ExitCode {
    if let Err(error) = require_root() {
        eprintln!("osteward-demo: {error:#}");
        return ExitCode::from(2);
    }
    match demonstrate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nosteward-demo: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate() -> Result<()> {
    narrate("Making a host that has booted version 1 of a small image, and its message bus");
    let scratch = tempfile::tempdir()?;
    let layout = Layout::create(scratch.path().join("images"))?;
    let second = build_images(&layout)?;
    let sandbox = Sandbox::install_with(|share| {
        copy(&layout.path, &share.join("images"))?;
        let first = FirstDeployment::Image(&layout, "latest");
        Ok(Options {
            first,
            origin: ORIGIN.into(),
        })
    })?;
    let bus = Bus::start(&sandbox)?;
    let mut host = Host {
        daemon: Some(Daemon::start(&sandbox, &bus)?),
        sandbox,
        bus,
    };
    narrate("Any user may ask how things stand");
    host.osteward(Some(UNPRIVILEGED_UID), &["status"], &[0])?;
    ensure!(
        host.sandbox
            .run(["cat", "/etc/motd"])?
            .contains("version 1")
    );

    narrate("Version 2 is published under the name that the host follows");
    Layout::create(host.sandbox.share().join("images"))?.retag("latest", &second)?;
    host.osteward(None, &["check"], &[10])?;
    host.osteward(None, &["upgrade"], &[0])?;
    host.osteward(None, &["status"], &[0])?;
    host.reboot()?;
    ensure!(
        host.sandbox
            .run(["cat", "/etc/motd"])?
            .contains("version 2"),
        "version 1 still runs"
    );
    host.osteward(None, &["status"], &[0])?;

    narrate("Something is wrong with version 2: back to version 1");
    host.osteward(None, &["rollback"], &[0])?;
    host.osteward(None, &["status"], &[0])?;
    host.reboot()?;
    ensure!(
        host.sandbox
            .run(["cat", "/etc/motd"])?
            .contains("version 1"),
        "version 2 still runs"
    );
    host.osteward(None, &["status"], &[0])?;
    host.stop()?;
    host.sandbox.fsck().context("the repository is damaged")?;
    drop(host);
    narrate("All of it is gone again: processes, mounts and files");
    Ok(())
}

struct Host {
    daemon: Option<Daemon>,
    bus: Bus,
    sandbox: Sandbox,
}

impl Host {
    /// Runs the client on the harness's own terminal, with the command shown before it.
    fn osteward(&self, uid: Option<u32>, words: &[&str], codes: &[i32]) -> Result<()> {
        let prompt = if uid.is_some() { '$' } else { '#' };
        println!("\n{prompt} osteward {}", words.join(" "));
        let mut command = client::osteward(&self.sandbox, &self.bus, uid, words)?;
        let terminal = std::env::var("TERM").unwrap_or_else(|_| "dumb".into());
        let status = command
            .env("TERM", terminal)
            .status()
            .context("starting osteward")?;
        let log = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        ensure!(
            status.code().is_some_and(|code| codes.contains(&code)),
            "`osteward {}` ended with {status}; the daemon's log:\n{log}",
            words.join(" ")
        );
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            let status = daemon.stop()?;
            ensure!(status.success(), "the daemon ended with {status}");
        }
        Ok(())
    }

    fn reboot(&mut self) -> Result<()> {
        narrate("The host reboots");
        self.stop()?;
        self.sandbox.reboot()?;
        self.daemon = Some(Daemon::start(&self.sandbox, &self.bus)?);
        Ok(())
    }
}

fn narrate(text: &str) {
    println!("\n── {text}");
}

/// Version 1, tagged `latest`, and version 2, which shares its lower layers and is returned.
fn build_images(layout: &Layout) -> Result<Written> {
    let base = Image::new("1").layer(os_tree("1")).layer(filler("base", 2));
    let first = base.write_as(layout, "latest")?;
    let motd = Layer::new()
        .dir("etc")
        .file("etc/motd", "Welcome to version 2\n");
    Image::new("2")
        .on(&first)
        .created("2025-02-01T00:00:00Z")
        .layer(motd)
        .layer(filler("application", 24).compressed(Compression::Zstd))
        .layer(filler("data", 12))
        .write(layout)
}

/// A layer of some files that do not compress well, so that there is something to watch.
fn filler(name: &str, mebibytes: u64) -> Layer {
    let mut layer = Layer::new()
        .dir("usr")
        .dir("usr/share")
        .dir(&format!("usr/share/{name}"));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ name.len() as u64;
    for number in 0..mebibytes * 4 {
        let mut content = Vec::with_capacity(256 << 10);
        while content.len() < 256 << 10 {
            // xorshift: the same bytes in every run, and as good as random to a compressor.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            content.extend_from_slice(&state.to_le_bytes());
        }
        layer = layer.file(&format!("usr/share/{name}/{number:03}"), content);
    }
    layer
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut cp = osteward_tests::process::command(["cp", "--archive"]);
    osteward_tests::process::run(cp.arg(from).arg(to)).map(drop)
}
