//! Option values as the jobs want them; what cannot be understood is `InvalidArgs`.

use osteward_dbus::Error;
use osteward_dbus::options::UpgradeOptions;

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
    Ok(Pull {
        digest: digest(options.digest.as_deref())?,
        allow_downgrade: options.allow_downgrade.unwrap_or(false),
        replace_staged: options.replace_staged.unwrap_or(false),
        apply: apply(options.apply.as_deref())?,
    })
}

/// The option `client-label`.
pub(super) fn label(text: Option<String>) -> Result<String, Error> {
    let label = text.unwrap_or_default();
    if label.chars().count() > LABEL_CHARACTERS || label.chars().any(char::is_control) {
        return Err(Error::InvalidArgs(format!(
            "option `client-label` must be printable and at most {LABEL_CHARACTERS} characters"
        )));
    }
    Ok(label)
}

/// The option `reason`.
pub(super) fn reason(text: Option<String>) -> Result<String, Error> {
    let reason = text.unwrap_or_default();
    if reason.chars().count() > REASON_CHARACTERS || reason.chars().any(char::is_control) {
        return Err(Error::InvalidArgs(format!(
            "option `reason` must be printable and at most {REASON_CHARACTERS} characters"
        )));
    }
    Ok(reason)
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
        assert!(is_invalid(label(Some("x".repeat(129)))));
        assert!(is_invalid(label(Some("a\nb".into()))));
        assert!(is_invalid(reason(Some("x".repeat(1025)))));
        assert!(is_invalid(reason(Some("a\nOSTEWARD_UID=0".into()))));
        assert!(is_invalid(discardables(&[])));
        assert!(is_invalid(discardables(&["booted".into()])));
    }

    #[test]
    fn missing_values_have_their_defaults() {
        assert_eq!(pull(&UpgradeOptions::default()).unwrap(), Pull::default());
        assert_eq!(label(None).unwrap(), "");
        let all = ["staged", "rollback", "cache", "unreferenced"].map(String::from);
        assert_eq!(discardables(&all).unwrap().len(), 4);
    }
}
