//! Which deployment a word on the command line names.
//!
//! Owns those words: a place in the boot order (`booted`, `staged`, `rollback`, or a number as
//! `ostree admin` counts them), a version, or the beginning of a digest or commit. Invariant:
//! a word that could mean two deployments names none.

use osteward_dbus::types::{DeploymentInfo, Status};
use zbus::OwnedObjectPath;

use crate::fail::Failure;
use crate::show::name;
use crate::text::plain;

/// Shorter beginnings of a digest are more likely numbers or typing errors.
const SHORTEST: usize = 6;

/// The object of the deployment that `word` names.
pub(crate) fn deployment(status: &Status, word: &str) -> Result<OwnedObjectPath, Failure> {
    let known = status.host.deployments.iter().zip(&status.deployments);
    let named: Vec<_> = known
        .enumerate()
        .filter(|(index, (_, info))| is_named(*index, info, word))
        .map(|(_, found)| found)
        .collect();
    match named[..] {
        [(path, _)] => Ok(path.clone()),
        [] if word == "staged" => Err(Failure::new(
            "org.osteward1.Error.NoUpdate",
            "nothing is staged",
        )),
        [] => Err(Failure::new(
            "org.freedesktop.DBus.Error.UnknownObject",
            format!("no deployment is '{}'", plain(word)),
        )),
        _ => {
            let names = named.iter().map(|(_, info)| in_words(info));
            let names: Vec<_> = names.collect();
            let text = format!("'{}' can be {}", plain(word), names.join(" or "));
            Err(Failure::new("org.freedesktop.DBus.Error.InvalidArgs", text))
        }
    }
}

fn is_named(index: usize, info: &DeploymentInfo, word: &str) -> bool {
    if word.len() < SHORTEST && word.bytes().all(|byte| byte.is_ascii_digit()) && !word.is_empty() {
        return word.parse() == Ok(index) || info.version == word;
    }
    let hex = word.strip_prefix("sha256:").unwrap_or(word);
    let begins = |whole: &str| hex.len() >= SHORTEST && whole.starts_with(hex);
    info.state == word
        || info.id == word
        || info.version == word
        || begins(info.digest.strip_prefix("sha256:").unwrap_or_default())
        || begins(&info.checksum)
}

fn in_words(info: &DeploymentInfo) -> String {
    let commit: String = info.checksum.chars().take(12).collect();
    format!(
        "{} (commit {}.{})",
        name(&info.version, &info.digest),
        plain(&commit),
        info.serial
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn picked(status: &Status, word: &str) -> Result<String, String> {
        let path = deployment(status, word).map_err(|failure| failure.name)?;
        Ok(path.rsplit('/').next().unwrap().to_owned())
    }

    #[test]
    fn places_versions_and_beginnings() {
        let status = sample::staged();
        for (word, expected) in [
            ("staged", "d_staged"),
            ("booted", "d_booted"),
            ("rollback", "d_rollback"),
            ("d_rollback", "d_rollback"),
            ("0", "d_staged"),
            ("2", "d_rollback"),
            ("42", "d_booted"),
            ("bbbbbb", "d_rollback"),
            ("sha256:aaaaaaaaaaaa", "d_booted"),
        ] {
            assert_eq!(picked(&status, word).as_deref(), Ok(expected), "{word}");
        }
    }

    #[test]
    fn what_is_not_there_or_not_clear_names_nothing() {
        let mut status = sample::status("idle");
        let unknown = "org.freedesktop.DBus.Error.UnknownObject";
        for word in ["", "7", "bbbbb", "sha256:", "pending", "cccccc"] {
            assert_eq!(picked(&status, word), Err(unknown.into()), "{word}");
        }
        assert_eq!(
            picked(&status, "staged"),
            Err("org.osteward1.Error.NoUpdate".into())
        );
        status.deployments[1].version = "42".into();
        let failure = deployment(&status, "42").unwrap_err();
        assert_eq!(failure.name, "org.freedesktop.DBus.Error.InvalidArgs");
        let both = failure.message.contains("aaaaaaaaaaaa") && failure.message.contains("bbbbbb");
        assert!(both, "{failure:?}");
        // A number is a place first, and only then a version.
        status.deployments[0].version = "1".into();
        assert_eq!(picked(&status, "0").as_deref(), Ok("d_booted"));
        assert!(picked(&status, "1").is_err());
    }
}
