//! The configuration: which files count, what they may say, what it means.
//!
//! Owns the three steps *fragment* (one file, every key optional, unknown keys refused)
//! → *merged fragment* (files in order, later scalars and arrays replace) → [`Config`]
//! (no options left, units resolved, invariants checked). [`load`] does the I/O,
//! [`parse`] is pure. Invariant: an error names the file, and toml's own text the line
//! and the key; nothing of a file that has an error is used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Directories from the lowest to the highest precedence (systemd's rule for drop-ins).
const DIRECTORIES: [&str; 4] = [
    "usr/lib/osteward",
    "usr/local/lib/osteward",
    "run/osteward",
    "etc/osteward",
];

/// Lower rates are mistakes: half of them, for the background, would be silence to a server.
const LEAST_RATE: u64 = 16 << 10;

/// What the daemon runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Exit after this long without work. Zero: never.
    pub idle_timeout: Duration,
    /// How long a job waits for another tool that holds the sysroot lock.
    pub lock_wait: Duration,
    /// Registries (`host` or `host:port`) that are reached by plain HTTP. Loopback always may.
    pub insecure: Vec<String>,
    /// Longest wait for a connection to a registry.
    pub connect_timeout: Duration,
    /// Longest wait until a registry begins to answer.
    pub response_timeout: Duration,
    /// Longest silence on an open connection.
    pub read_timeout: Duration,
    /// How long a registry that is out of reach or overloaded is waited for. Zero: not at all.
    pub retry_time: Duration,
    /// Cap on a manifest, an index or an image configuration, in bytes.
    pub max_manifest_size: u64,
    /// Cap on a layer as it is transferred, in bytes.
    pub max_layer_size: u64,
    /// Most bytes of layers a second; the background gets half of it. Zero: as many as come.
    pub max_rate: u64,
    /// Layers fetched and written side by side, 1 to 8.
    pub parallel_layers: usize,
    /// What a check may fetch of layers to tell which packages differ, in bytes. Zero: nothing.
    pub max_peek_size: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(60),
            lock_wait: Duration::from_secs(30),
            insecure: Vec::new(),
            connect_timeout: Duration::from_secs(15),
            response_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            retry_time: Duration::from_secs(120),
            max_manifest_size: 4 << 20,
            max_layer_size: 32 << 30,
            max_rate: 0,
            parallel_layers: 3,
            max_peek_size: 8 << 20,
        }
    }
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not valid TOML, has an unknown key or a value of another type.
    #[error("{origin}: {message}")]
    Syntax {
        /// The file.
        origin: String,
        /// toml's text: line, key, what was expected.
        message: String,
    },
    /// A value is out of its range.
    #[error("{origin}: `{key}` {problem}")]
    Value {
        /// The file that set the value last, or "merged configuration".
        origin: String,
        /// Table and key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// One file: every key may be missing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fragment {
    daemon: Option<DaemonFragment>,
    registry: Option<RegistryFragment>,
    import: Option<ImportFragment>,
    check: Option<CheckFragment>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DaemonFragment {
    idle_timeout: Option<String>,
    lock_wait: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryFragment {
    insecure: Option<Vec<String>>,
    connect_timeout: Option<String>,
    response_timeout: Option<String>,
    read_timeout: Option<String>,
    retry_time: Option<String>,
    max_manifest_size: Option<u64>,
    max_layer_size: Option<u64>,
    max_rate: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportFragment {
    parallel_layers: Option<usize>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckFragment {
    max_peek_size: Option<u64>,
}

/// Reads one file's text. `origin` is what errors call it.
pub fn parse(text: &str, origin: &str) -> Result<Fragment, Error> {
    toml::from_str(text).map_err(|error| Error::Syntax {
        origin: origin.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    })
}

impl Fragment {
    /// This fragment with everything that `higher` says put over it.
    fn merged(self, higher: Fragment) -> Fragment {
        let (low, high) = (
            self.daemon.unwrap_or_default(),
            higher.daemon.unwrap_or_default(),
        );
        let daemon = DaemonFragment {
            idle_timeout: high.idle_timeout.or(low.idle_timeout),
            lock_wait: high.lock_wait.or(low.lock_wait),
        };
        let (low, high) = (
            self.registry.unwrap_or_default(),
            higher.registry.unwrap_or_default(),
        );
        let registry = RegistryFragment {
            insecure: high.insecure.or(low.insecure),
            connect_timeout: high.connect_timeout.or(low.connect_timeout),
            response_timeout: high.response_timeout.or(low.response_timeout),
            read_timeout: high.read_timeout.or(low.read_timeout),
            retry_time: high.retry_time.or(low.retry_time),
            max_manifest_size: high.max_manifest_size.or(low.max_manifest_size),
            max_layer_size: high.max_layer_size.or(low.max_layer_size),
            max_rate: high.max_rate.or(low.max_rate),
        };
        let (low, high) = (
            self.import.unwrap_or_default(),
            higher.import.unwrap_or_default(),
        );
        let import = ImportFragment {
            parallel_layers: high.parallel_layers.or(low.parallel_layers),
        };
        let (low, high) = (
            self.check.unwrap_or_default(),
            higher.check.unwrap_or_default(),
        );
        let check = CheckFragment {
            max_peek_size: high.max_peek_size.or(low.max_peek_size),
        };
        Fragment {
            daemon: Some(daemon),
            registry: Some(registry),
            import: Some(import),
            check: Some(check),
        }
    }

    /// The meaning of this fragment, checked. `origin` is what errors call it.
    pub fn resolve(self, origin: &str) -> Result<Config, Error> {
        let defaults = Config::default();
        let daemon = self.daemon.unwrap_or_default();
        let registry = self.registry.unwrap_or_default();
        let import = self.import.unwrap_or_default();
        let check = self.check.unwrap_or_default();
        let duration = |key, text: Option<String>, default| match text {
            None => Ok(default),
            Some(text) => humantime::parse_duration(&text).map_err(|error| Error::Value {
                origin: origin.to_owned(),
                key,
                problem: format!("is {text:?}, not a time such as \"60s\" or \"2min\": {error}"),
            }),
        };
        let parallel_layers = import.parallel_layers.unwrap_or(defaults.parallel_layers);
        if !(1..=8).contains(&parallel_layers) {
            return Err(Error::Value {
                origin: origin.to_owned(),
                key: "import.parallel_layers",
                problem: format!("is {parallel_layers}, not 1 to 8"),
            });
        }
        let max_rate = registry.max_rate.unwrap_or(defaults.max_rate);
        if (1..LEAST_RATE).contains(&max_rate) {
            return Err(Error::Value {
                origin: origin.to_owned(),
                key: "registry.max_rate",
                problem: format!(
                    "is {max_rate}, not 0 (no limit) or at least {LEAST_RATE} bytes a second"
                ),
            });
        }
        Ok(Config {
            idle_timeout: duration(
                "daemon.idle_timeout",
                daemon.idle_timeout,
                defaults.idle_timeout,
            )?,
            lock_wait: duration("daemon.lock_wait", daemon.lock_wait, defaults.lock_wait)?,
            insecure: registry.insecure.unwrap_or_default(),
            connect_timeout: duration(
                "registry.connect_timeout",
                registry.connect_timeout,
                defaults.connect_timeout,
            )?,
            response_timeout: duration(
                "registry.response_timeout",
                registry.response_timeout,
                defaults.response_timeout,
            )?,
            read_timeout: duration(
                "registry.read_timeout",
                registry.read_timeout,
                defaults.read_timeout,
            )?,
            retry_time: duration(
                "registry.retry_time",
                registry.retry_time,
                defaults.retry_time,
            )?,
            max_manifest_size: registry
                .max_manifest_size
                .unwrap_or(defaults.max_manifest_size),
            max_layer_size: registry.max_layer_size.unwrap_or(defaults.max_layer_size),
            max_rate,
            parallel_layers,
            max_peek_size: check.max_peek_size.unwrap_or(defaults.max_peek_size),
        })
    }
}

/// The files that count below `root`, in the order in which they apply: the main files
/// of all directories, then drop-ins sorted by name, where the same name in a higher
/// directory replaces the lower one and an empty file or a link to `/dev/null` masks it.
pub fn files(root: &Path) -> Result<(Vec<PathBuf>, Vec<String>), Error> {
    let mut main = Vec::new();
    let mut drop_ins: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    let mut warnings = Vec::new();
    for directory in DIRECTORIES {
        let directory = root.join(directory);
        let file = directory.join("osteward.toml");
        if file.exists() {
            main.push(file);
        }
        let entries = match std::fs::read_dir(directory.join("config.d")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(Error::Read {
                    path: directory.join("config.d"),
                    source,
                });
            }
        };
        for entry in entries {
            let path = entry
                .map_err(|source| Error::Read {
                    path: directory.join("config.d"),
                    source,
                })?
                .path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                drop_ins.insert(path.file_name().unwrap_or_default().to_owned(), path);
            } else {
                warnings.push(format!(
                    "{} is ignored: its name does not end in .toml",
                    path.display()
                ));
            }
        }
    }
    main.extend(drop_ins.into_values());
    Ok((main, warnings))
}

/// The configuration below `root` (`/` on a host) and what an administrator should know
/// about it although it is usable.
pub fn load(root: &Path) -> Result<(Config, Vec<String>), Error> {
    let (paths, warnings) = files(root)?;
    let mut merged = Fragment::default();
    let mut origin = String::from("defaults");
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        origin = path.display().to_string();
        let fragment = parse(&text, &origin)?;
        // Checked file by file, so that the error names the one that is wrong.
        fragment.clone().resolve(&origin)?;
        merged = merged.merged(fragment);
    }
    Ok((merged.resolve(&origin)?, warnings))
}

#[cfg(test)]
mod tests;
