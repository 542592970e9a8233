//! Debian's `docker-registry`, with storage of its own: over plain HTTP and for everybody,
//! unless it is told otherwise.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::authority::Certificate;
use crate::bootable::registry_data::keep_delta;
use crate::image::Layout;
use crate::image::delta::Delta;
use crate::process::{Tethered, command, target_dir};
use crate::served::{Account, Served};

/// The user and the password that a registry with [`Door::login`] knows.
pub const LOGIN: (&str, &str) = ("alice", "hunter2");

/// Its line in a file of `htpasswd`: the registry wants bcrypt.
const HTPASSWD: &str = "alice:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";

/// How a registry is entered.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// Only with user and password, [`LOGIN`].
    pub login: bool,
    /// Over TLS, with this certificate.
    pub certificate: Option<Certificate>,
}

/// A running registry; dropping it stops it and forgets its images.
#[derive(Debug)]
pub struct Registry {
    process: Option<Tethered>,
    dir: TempDir,
    listen: SocketAddr,
    host: String,
    door: Door,
    account: Arc<Account>,
}

impl Registry {
    /// Starts a registry on a free port and waits until it accepts connections.
    ///
    /// # Errors
    /// When `docker-registry` is not installed or does not start; its log is in the error.
    pub fn start() -> Result<Self> {
        // Free now, and unlikely to be anybody's before the registry takes it.
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Self::start_with(listen, &listen.to_string(), |_| Ok(()))
    }

    /// Starts a registry at `listen`, which others call `host`, after `stock` has put images into
    /// its data directory, which is new.
    ///
    /// # Errors
    /// As [`Registry::start`], and those of `stock`.
    pub fn start_with(
        listen: SocketAddr,
        host: &str,
        stock: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let parent = target_dir()?.join("sandbox");
        fs::create_dir_all(&parent)?;
        let dir = tempfile::Builder::new().prefix("r-").tempdir_in(parent)?;
        let mut registry = Self {
            process: None,
            dir,
            listen,
            host: host.to_owned(),
            door: Door::default(),
            account: Arc::default(),
        };
        fs::create_dir(registry.data())?;
        stock(&registry.data())?;
        registry.resume()?;
        Ok(registry)
    }

    /// Starts the registry again after [`Registry::stop`], on the same port with its images.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn resume(&mut self) -> Result<()> {
        let config = self.dir.path().join("config.yml");
        let data = self.data();
        let mut file = fs::File::create(&config)?;
        // Level info and no further than needed: "listening on" is the line that is waited for.
        write!(
            file,
            "version: 0.1\n\
             log: {{level: info, formatter: text, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
             http:\n  addr: {}\n  secret: unused\n",
            data.display(),
            self.listen
        )?;
        if let Some(Certificate { certificate, key }) = &self.door.certificate {
            let (certificate, key) = (certificate.display(), key.display());
            writeln!(file, "  tls: {{certificate: {certificate}, key: {key}}}")?;
        }
        if self.door.login {
            let known = self.dir.path().join("htpasswd");
            fs::write(&known, HTPASSWD)?;
            let path = known.display();
            writeln!(file, "auth: {{htpasswd: {{realm: test, path: {path}}}}}")?;
        }
        drop(file);
        let log = self.dir.path().join("log");
        // Its log goes to standard error, which becomes the pipe that is read here.
        let serve = r#"exec docker-registry serve "$1" 2>&1"#;
        let words = ["sh", "-c", serve, "registry"];
        let mut process = Tethered::start(command(words).arg(&config), &log)?;
        let mut said = String::new();
        loop {
            let Some(line) = process.next_line()? else {
                bail!("the registry did not start:\n{said}");
            };
            if line.contains("listening on") {
                break;
            }
            said.push_str(&line);
            said.push('\n');
        }
        let account = Arc::clone(&self.account);
        process.watch(move |line| account.note(line));
        TcpStream::connect(self.listen).context("asking the registry")?;
        self.process = Some(process);
        Ok(())
    }

    /// Stops the registry; its images stay.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts the registry again, on the same port with its images, behind another door.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn move_behind(&mut self, door: Door) -> Result<()> {
        self.stop();
        self.door = door;
        self.resume()
    }

    /// What it has answered so far, to everybody; it must be entered by everybody, over plain HTTP.
    ///
    /// # Errors
    /// When it does not run.
    pub fn served(&self) -> Result<Served> {
        self.account.close(self.listen)
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        let process = self.process.as_ref();
        process.context("the registry does not run")?.pid()
    }

    /// The data directory; see [`Registry::start_with`].
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.listen.port()
    }

    /// What it is called by those who use it: `127.0.0.1:PORT`, unless it was given a name.
    pub fn host(&self) -> String {
        self.host.clone()
    }

    /// `HOST/name`.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// Lets a delta of a layout on the same file system be found beside its image, as publishers do it where
    /// the registry has no list of its own. It is not pushed: Debian 12's skopeo refuses to copy a list that
    /// gives the `artifactType` of what it names.
    ///
    /// # Errors
    /// When the layout does not have all of it.
    pub fn offer_delta(&self, repository: &str, layout: &Layout, delta: &Delta) -> Result<()> {
        keep_delta(&self.data(), repository, layout, delta)
    }

    /// The file in which the registry keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let prefix = hex.get(..2).unwrap_or_default();
        let blobs = self.data().join("docker/registry/v2/blobs/sha256");
        blobs.join(prefix).join(hex).join("data")
    }

    /// Changes a stored blob's last byte: what is served no longer has its digest.
    ///
    /// # Errors
    /// When the registry has no such blob.
    pub fn corrupt(&self, digest: &str) -> Result<()> {
        let path = self.blob(digest);
        let mut data = fs::read(&path).with_context(|| format!("no blob {digest}"))?;
        let last = data.last_mut().context("an empty blob")?;
        *last ^= 0xff;
        fs::write(path, data).context("changing a blob")
    }
}
