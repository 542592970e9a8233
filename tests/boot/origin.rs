//! Where a machine's updates come from: a repository of its own, whose tag its scenario moves.
//!
//! Invariant: no two machines share a repository, and nobody writes to the one with the stock of
//! images: the registry's files are not read and written at one time.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use osteward_tests::bootable::{REGISTRY, Suite};
use osteward_tests::image::Layout;
use osteward_tests::machine::Machine;
use osteward_tests::machine::network::HOST;
use osteward_tests::relay::Relay;
use osteward_tests::suite::Case;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A repository that only one machine tracks, by the tag `latest`.
#[derive(Debug)]
pub(crate) struct Origin {
    suite: Suite,
    layout: Layout,
    repository: String,
}

impl Origin {
    /// Makes the case's machine track a repository of its own, which has version 1 for now. The
    /// booted deployment's origin is edited in place, as `bootc switch --mutate-in-place` does.
    pub(crate) fn of(case: &mut Case<'_>) -> Result<Self> {
        let origin = Self {
            suite: case.bootable.suite,
            layout: case.bootable.layout.clone(),
            repository: format!("lab/{}", case.name().replace('/', "-")),
        };
        let image = origin.image();
        case.step("the machine tracks a repository of its own", |machine| {
            origin.publish("v1")?;
            rewrite(machine, &image)
        })?;
        Ok(origin)
    }

    /// `HOST:PORT/NAME:TAG`, as the machine and the harness both reach it.
    pub(crate) fn image(&self) -> String {
        format!("{REGISTRY}/{}:latest", self.repository)
    }

    /// Moves the tag to an image of the stock, by its name there: an update appears.
    pub(crate) fn publish(&self, version: &str) -> Result<()> {
        let image = self.layout.find(version)?;
        let (name, stock) = (&self.repository, self.suite.repository());
        for blob in image.layers.iter().chain([&image.config_digest]) {
            let mount = format!("POST /v2/{name}/blobs/uploads/?mount={blob}&from={stock}");
            ask(&mount, &[]).with_context(|| format!("sharing {blob}"))?;
        }
        let manifest = fs::read(self.layout.blob(&image.digest)).context("reading a manifest")?;
        ask(&format!("PUT /v2/{name}/manifests/latest"), &manifest).context("moving a tag")
    }

    /// Puts a relay of its own between a machine and the registry, and lets the machine use it.
    pub(crate) fn relay(machine: &mut Machine) -> Result<Relay> {
        let (_, port) = REGISTRY.rsplit_once(':').context("no port")?;
        let relay = Relay::listening(HOST, port.parse()?)?;
        machine.ok(&format!(
            r#"mkdir -p /etc/osteward/config.d
            echo '[registry]
            insecure = ["{REGISTRY}", "{}"]' >/etc/osteward/config.d/10-relay.toml
            systemctl stop ostewardd"#,
            relay.host()
        ))?;
        Ok(relay)
    }

    /// The image as it is reached through the relay.
    pub(crate) fn through(&self, relay: &Relay) -> String {
        relay.name(&format!("{}:latest", self.repository))
    }

    /// Makes the machine track the same tag through a relay.
    pub(crate) fn through_relay(&self, machine: &mut Machine) -> Result<Relay> {
        let relay = Self::relay(machine)?;
        rewrite(machine, &self.through(&relay))?;
        Ok(relay)
    }
}

/// Sends the registry a request, of which it has to make something.
fn ask(request: &str, body: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(REGISTRY).context("reaching the registry")?;
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {REGISTRY}\r\nConnection: close\r\n\
         Content-Type: {MANIFEST}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let created = answer.starts_with("HTTP/1.1 201 ");
    ensure!(created, "the registry to {request}: {answer}");
    Ok(())
}

/// Makes the booted deployment come from `image`.
fn rewrite(machine: &mut Machine, image: &str) -> Result<()> {
    let line = format!("container-image-reference=ostree-unverified-registry:{image}");
    let script = r#"
        deployment=$(readlink -f BOOTED)
        # /sysroot is read-only: as osteward does, this changes it in a namespace of its own.
        unshare --mount sh -ec 'mount -o remount,rw /sysroot
            sed -i "s|^container-image-reference=.*|LINE|" "$1.origin"' - "$deployment"
        # The daemon would not see a change that no tool makes; the next call starts it again.
        systemctl stop ostewardd"#;
    let script = script.replace("BOOTED", machine.deployment());
    machine.ok(&script.replace("LINE", &line)).map(drop)
}
