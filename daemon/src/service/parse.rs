//! Option values as the jobs want them; what cannot be understood is `InvalidArgs`.

use osteward_dbus::Error;
use osteward_dbus::options::{Common, UpgradeOptions};

use crate::engine::Caller;
use crate::image::reference::{Digest, OriginReference, parse_user_input};
use crate::jobs::{Discardable, Pull};

/// The longest `client-label`.
const LABEL_CHARACTERS: usize = 128;
/// The longest `reason`: it goes to the journal, and is kept as long as the job.
const REASON_CHARACTERS: usize = 1024;
/// The option `digest`.
pub(super) fn digest(text: Option<&str>) -> Result<Option<Digest>, Error> {
    text.map(str::parse)
        .transpose()
        .map_err(|error: crate::image::reference::ReferenceError| {
            Error::InvalidArgs(format!("option `digest`: {error}"))
        })
}

/// The argument `image` of `Switch`.
pub(super) fn image(text: &str) -> Result<OriginReference, Error> {
    parse_user_input(text)
        .map_err(|error| Error::InvalidArgs(format!("{text:?} is no image reference: {error}")))
}

/// The option `apply`: whether to reboot.
pub(super) fn apply(text: Option<&str>) -> Result<bool, Error> {
    match text {
        None | Some("none") => Ok(false),
        Some("reboot") => Ok(true),
        Some(other) => Err(Error::InvalidArgs(format!(
            "option `apply` is {other:?}; it can be \"none\" or \"reboot\""
        ))),
    }
}

/// The options of `Upgrade` and `Switch`.
pub(super) fn pull(options: &UpgradeOptions) -> Result<Pull, Error> {
    let pull = Pull {
        digest: digest(options.digest.as_deref())?,
        allow_downgrade: options.allow_downgrade.unwrap_or(false),
        replace_staged: options.replace_staged.unwrap_or(false),
        lock: options.lock,
        apply: apply(options.apply.as_deref())?,
    };
    if pull.apply && pull.lock == Some(true) {
        return Err(Error::InvalidArgs(
            "options `apply` and `lock` exclude each other: a reboot would not lead into what is locked"
                .into(),
        ));
    }
    Ok(pull)
}

/// Who asks, apart from the user id: the options `client-label` and `reason`.
pub(super) fn caller(options: Common) -> Result<Caller, Error> {
    Ok(Caller {
        // Nobody, until the call is authorised.
        uid: u32::MAX,
        label: text("client-label", options.client_label, LABEL_CHARACTERS)?,
        reason: text("reason", options.reason, REASON_CHARACTERS)?,
    })
}

/// Text that a caller sends for others to read.
pub(super) fn text(name: &str, text: Option<String>, characters: usize) -> Result<String, Error> {
    let text = text.unwrap_or_default();
    if text.chars().count() > characters || text.chars().any(char::is_control) {
        return Err(Error::InvalidArgs(format!(
            "option `{name}` must be printable and at most {characters} characters"
        )));
    }
    Ok(text)
}

/// The argument `what` of `Discard`.
pub(super) fn discardables(what: &[String]) -> Result<Vec<Discardable>, Error> {
    if what.is_empty() {
        return Err(Error::InvalidArgs(
            "name what to discard: staged, rollback, cache or unreferenced".into(),
        ));
    }
    what.iter()
        .map(|name| match name.as_str() {
            "staged" => Ok(Discardable::Staged),
            "rollback" => Ok(Discardable::Rollback),
            "cache" => Ok(Discardable::Cache),
            "unreferenced" => Ok(Discardable::Unreferenced),
            other => Err(Error::InvalidArgs(format!(
                "{other:?} cannot be discarded; choose from staged, rollback, cache, unreferenced"
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_invalid<T: std::fmt::Debug>(result: Result<T, Error>) -> bool {
        matches!(result, Err(Error::InvalidArgs(_)))
    }

    #[test]
    fn bad_values_are_invalid_args() {
        assert!(is_invalid(digest(Some("sha256:12"))));
        assert!(is_invalid(apply(Some("soft-reboot"))));
        let labelled = |label: String| Common {
            client_label: Some(label),
            ..Default::default()
        };
        assert!(is_invalid(caller(labelled("x".repeat(129)))));
        assert!(is_invalid(caller(labelled("a\nb".into()))));
        let because = |reason: String| Common {
            reason: Some(reason),
            ..Default::default()
        };
        assert!(is_invalid(caller(because("x".repeat(1025)))));
        assert!(is_invalid(caller(because("a\nOSTEWARD_UID=0".into()))));
        assert!(is_invalid(discardables(&[])));
        assert!(is_invalid(discardables(&["booted".into()])));
    }

    #[test]
    fn missing_values_have_their_defaults() {
        assert_eq!(pull(&UpgradeOptions::default()).unwrap(), Pull::default());
        let caller = caller(Common::default()).unwrap();
        assert_eq!((caller.label.as_str(), caller.reason.as_str()), ("", ""));
        let all = ["staged", "rollback", "cache", "unreferenced"].map(String::from);
        assert_eq!(discardables(&all).unwrap().len(), 4);
    }
}
