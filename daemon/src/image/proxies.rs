//! The way out: which proxy requests go through, from the environment of the daemon.
//!
//! Invariants: loopback is always reached directly; a value that makes no sense is an error and not the
//! direct way; what a value says of user and password never gets into an error, a log line or `Debug`.

use std::fmt;

use reqwest::{ClientBuilder, NoProxy, Proxy, Url};

use super::Error;

/// Never through a proxy, whatever the environment says.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// The proxies that are used: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, or the same in lower case.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain HTTP: the name of the variable, and its value.
    http: Option<(&'static str, String)>,
    /// For HTTPS, likewise.
    https: Option<(&'static str, String)>,
    /// Hosts that are reached directly.
    direct: String,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [&self.http, &self.https].map(|proxy| proxy.as_ref().map(|(name, _)| *name));
        write!(f, "Proxies({names:?})")
    }
}

impl Proxies {
    /// What the environment of this process says.
    pub fn from_env() -> Proxies {
        // What is not UTF-8 makes no sense either, and is found to do so when it is used.
        let get = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into());
        Proxies::from_variables(get)
    }

    /// What these variables say; of two spellings the upper case counts, and empty is not set.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Proxies {
        let first = |names: [&'static str; 2]| {
            let set = |name| Some((name, get(name).filter(|value| !value.trim().is_empty())?));
            names.into_iter().find_map(set)
        };
        let direct = first(["NO_PROXY", "no_proxy"]).unwrap_or_default().1;
        Proxies {
            http: first(["HTTP_PROXY", "http_proxy"]),
            https: first(["HTTPS_PROXY", "https_proxy"]),
            direct: direct.split(',').map(entry).collect::<Vec<_>>().join(","),
        }
    }

    /// The variable that decides about such requests, for whoever looks for the reason of a failure.
    pub(super) fn variable(&self, plain_http: bool) -> Option<&'static str> {
        let proxy = if plain_http { &self.http } else { &self.https };
        proxy.as_ref().map(|(name, _)| *name)
    }

    /// What it means that such a request was refused by a proxy for want of a password; `None` when
    /// there is no proxy for it.
    pub(super) fn refusal(&self, plain_http: bool) -> Option<Error> {
        self.variable(plain_http).map(|variable| Error::Proxy {
            variable,
            problem: "names a proxy that wants another user and password; write them into it, as \
                      http://USER:PASSWORD@HOST[:PORT]",
        })
    }

    /// Lets the client use these proxies and no others.
    ///
    /// # Errors
    /// [`Error::Proxy`] for a value that names no proxy of a known kind.
    pub(super) fn apply(&self, builder: ClientBuilder) -> Result<ClientBuilder, Error> {
        let direct = NoProxy::from_string(&format!("{},{LOOPBACK}", self.direct));
        let mut builder = builder.no_proxy();
        if let Some((variable, value)) = &self.http {
            let proxy = Proxy::http(url(variable, value)?).map_err(|_| nonsense(variable))?;
            builder = builder.proxy(proxy.no_proxy(direct.clone()));
        }
        if let Some((variable, value)) = &self.https {
            let proxy = Proxy::https(url(variable, value)?).map_err(|_| nonsense(variable))?;
            builder = builder.proxy(proxy.no_proxy(direct));
        }
        Ok(builder)
    }
}

/// An entry of `NO_PROXY` as the HTTP client knows it: other tools also accept a port, which says no
/// more here than the host does, and a star before the dot.
fn entry(text: &str) -> &str {
    let text = text.trim();
    let host = match text.rsplit_once(':') {
        // An IPv6 address has more than one colon, and its brackets say where a port begins.
        Some((host, port)) if port.parse::<u16>().is_ok() && !host.contains(':') => host,
        Some((host, _)) if host.ends_with(']') => host,
        _ => text,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.strip_prefix("*.") {
        Some(domain) => domain,
        None => host,
    }
}

fn url(variable: &'static str, value: &str) -> Result<Url, Error> {
    let value = value.trim();
    let spelled = match value.contains("://") {
        true => value.to_owned(),
        false => format!("http://{value}"),
    };
    let url = Url::parse(&spelled).map_err(|_| nonsense(variable))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err(nonsense(variable)),
    }
}

fn nonsense(variable: &'static str) -> Error {
    Error::Proxy {
        variable,
        problem: "is not http://[USER:PASSWORD@]HOST[:PORT] (or https://); correct or unset it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &'static [(&'static str, &'static str)]) -> Proxies {
        Proxies::from_variables(|name| {
            let set = variables.iter().find(|(known, _)| *known == name);
            set.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn upper_case_wins_and_empty_is_not_set() {
        let found = proxies(&[
            ("http_proxy", "http://lower.example"),
            ("HTTP_PROXY", "http://upper.example"),
            ("HTTPS_PROXY", ""),
            ("https_proxy", "lower.example:3128"),
        ]);
        assert_eq!(found.variable(true), Some("HTTP_PROXY"));
        assert_eq!(found.variable(false), Some("https_proxy"));
        assert!(found.apply(reqwest::Client::builder()).is_ok());
        assert_eq!(proxies(&[]).variable(true), None);
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_quoting_it() {
        for value in [
            "http://",
            "socks5://hunter2@proxy.example",
            "ftp://proxy.example",
            "http://hunter2:@:80",
            "http://hunter2:@\u{fffd}.example",
        ] {
            let found =
                Proxies::from_variables(|name| (name == "HTTPS_PROXY").then(|| value.into()));
            let error = found.apply(reqwest::Client::builder()).unwrap_err();
            assert!(
                error.to_string().contains("HTTPS_PROXY"),
                "{value}: {error}"
            );
            let text = format!("{error} {error:?} {found:?}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn entries_of_other_tools_are_understood() {
        for (written, meant) in [
            (" registry.example ", "registry.example"),
            ("registry.example:5000", "registry.example"),
            (".example", ".example"),
            ("*.example", "example"),
            ("*", "*"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1:443", "10.0.0.1"),
            ("::1", "::1"),
            ("[fd00::1]:5000", "fd00::1"),
            ("fd00::/8", "fd00::/8"),
        ] {
            assert_eq!(entry(written), meant, "{written}");
        }
    }
}
