//! Option values as the jobs want them; what cannot be understood is `InvalidArgs`.

use osteward_dbus::Error;
use osteward_dbus::options::{
    Common, ImportArchiveOptions, InhibitOptions, SetKernelArgumentsOptions, UpgradeOptions,
};
use zbus::OwnedFd;

use crate::engine::{Caller, Terms};
use crate::image::Handed;
use crate::image::reference::{Digest, OriginReference, parse_user_input};
use crate::inhibit::What;
use crate::jobs::{Archive, Discardable, KernelChange, Pull, Reboot};
use crate::kargs::{Arguments, Edit};

/// The longest `client-label`.
const LABEL_CHARACTERS: usize = 128;
/// The longest `reason`: it goes to the journal, and is kept as long as the job.
const REASON_CHARACTERS: usize = 1024;
/// What `priority` can be.
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

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

/// The option `apply`: whether to reboot, and how.
pub(super) fn apply(text: Option<&str>) -> Result<Option<Reboot>, Error> {
    match text {
        None | Some("none") => Ok(None),
        Some(word) => way(word).map(Some).ok_or_else(|| {
            Error::InvalidArgs(format!(
                "option `apply` is {word:?}; it can be \"none\", \"auto\", \"reboot\" or \
                 \"soft-reboot\""
            ))
        }),
    }
}

/// The option `mode` of `Apply`.
pub(super) fn mode(text: Option<&str>) -> Result<Reboot, Error> {
    let word = text.unwrap_or("reboot");
    way(word).ok_or_else(|| {
        Error::InvalidArgs(format!(
            "option `mode` is {word:?}; it can be \"auto\", \"reboot\" or \"soft-reboot\""
        ))
    })
}

fn way(word: &str) -> Option<Reboot> {
    match word {
        "auto" => Some(Reboot::Auto),
        "reboot" => Some(Reboot::Full),
        "soft-reboot" => Some(Reboot::Soft),
        _ => None,
    }
}

/// The arguments and options of `SetKernelArguments`.
pub(super) fn kernel_change(
    append: Vec<String>,
    replace: Vec<String>,
    delete: Vec<String>,
    options: &SetKernelArgumentsOptions,
) -> Result<KernelChange, Error> {
    let edit = Edit {
        delete,
        replace,
        append,
    };
    edit.check()
        .map_err(|refused| Error::InvalidArgs(refused.to_string()))?;
    Ok(KernelChange {
        edit,
        expect: options.expect.as_ref().map(Arguments::new),
        digest: digest(options.digest.as_deref())?,
    })
}

/// The options of `Upgrade` and `Switch`.
pub(super) fn pull(options: &UpgradeOptions) -> Result<Pull, Error> {
    let pull = Pull {
        digest: digest(options.digest.as_deref())?,
        allow_downgrade: options.allow_downgrade.unwrap_or(false),
        replace_staged: options.replace_staged.unwrap_or(false),
        download_only: options.download_only.unwrap_or(false),
        from_cache: options.from_cache.unwrap_or(false),
        lock: options.lock,
        apply: apply(options.apply.as_deref())?,
    };
    let lock = pull.lock == Some(true);
    for (first, second, both, why) in [
        (
            "apply",
            "lock",
            pull.apply.is_some() && lock,
            "no reboot leads into what is locked",
        ),
        (
            "download-only",
            "apply",
            pull.download_only && pull.apply.is_some(),
            "nothing is staged",
        ),
        (
            "download-only",
            "lock",
            pull.download_only && lock,
            "nothing is staged",
        ),
        (
            "download-only",
            "from-cache",
            pull.download_only && pull.from_cache,
            "nothing is left to do",
        ),
    ] {
        if both {
            return Err(Error::InvalidArgs(format!(
                "options `{first}` and `{second}` exclude each other: {why} then"
            )));
        }
    }
    Ok(pull)
}

/// The descriptor and the options of `ImportArchive`.
pub(super) fn archive(
    descriptor: OwnedFd,
    options: &ImportArchiveOptions,
) -> Result<(Archive, Pull), Error> {
    let origin = options.image.as_deref().map(image).transpose()?;
    let layout = origin.as_ref().and_then(|origin| origin.image.layout());
    let shown = layout.map_or("the archive".as_ref(), |(path, _)| path);
    let handed = Handed::new(descriptor.into(), shown.to_owned())
        .map_err(|error| Error::InvalidArgs(format!("argument `archive`: {error}")))?;
    let written = layout.and_then(|(_, tag)| tag).map(str::to_owned);
    let archive = Archive {
        handed,
        tag: options.tag.clone().or(written),
        origin,
    };
    let pull = pull(&UpgradeOptions {
        digest: options.digest.clone(),
        allow_downgrade: options.allow_downgrade,
        replace_staged: options.replace_staged,
        lock: options.lock,
        apply: options.apply.clone(),
        ..UpgradeOptions::default()
    })?;
    Ok((archive, pull))
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

/// The terms on which a job runs: the options `on-busy`, `background` and `priority`.
pub(super) fn terms(options: &Common) -> Result<Terms, Error> {
    let queue = match options.on_busy.as_deref() {
        None | Some("fail") => false,
        Some("queue") => true,
        Some(other) => {
            return Err(Error::InvalidArgs(format!(
                "option `on-busy` is {other:?}; it can be \"fail\" or \"queue\""
            )));
        }
    };
    let priority = options.priority.unwrap_or(0);
    if !PRIORITIES.contains(&priority) {
        return Err(Error::InvalidArgs(format!(
            "option `priority` is {priority}; it can be {} to {}",
            PRIORITIES.start(),
            PRIORITIES.end()
        )));
    }
    Ok(Terms {
        queue,
        background: options.background.unwrap_or(false),
        priority,
        alone: None,
    })
}

/// The arguments of `Manager.Inhibit`.
pub(super) fn inhibitor(
    options: InhibitOptions,
    who: String,
    why: String,
) -> Result<(What, String, String), Error> {
    let what = match options.what.as_deref() {
        None | Some("idle") => What::Idle,
        Some("apply") => What::Apply,
        Some(other) => {
            return Err(Error::InvalidArgs(format!(
                "option `what` is {other:?}; it can be \"idle\" or \"apply\""
            )));
        }
    };
    if who.trim().is_empty() {
        return Err(Error::InvalidArgs(
            "`who` is empty; say which program inhibits".into(),
        ));
    }
    let who = text("who", Some(who), LABEL_CHARACTERS)?;
    let why = text("why", Some(why), REASON_CHARACTERS)?;
    Ok((what, who, why))
}

/// Text that a caller sends for others to read.
pub(super) fn text(name: &str, text: Option<String>, characters: usize) -> Result<String, Error> {
    let text = text.unwrap_or_default();
    if text.chars().count() > characters || text.chars().any(char::is_control) {
        return Err(Error::InvalidArgs(format!(
            "`{name}` must be printable and at most {characters} characters"
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
        assert!(is_invalid(apply(Some("kexec"))));
        assert!(is_invalid(mode(Some("none"))));
        assert_eq!(apply(Some("none")).unwrap(), None);
        assert_eq!(apply(Some("soft-reboot")).unwrap(), Some(Reboot::Soft));
        assert_eq!(mode(None).unwrap(), Reboot::Full);
        assert_eq!(mode(Some("auto")).unwrap(), Reboot::Auto);
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
        let ranked = |priority| Common {
            priority: Some(priority),
            ..Default::default()
        };
        assert!(is_invalid(terms(&ranked(101))) && is_invalid(terms(&ranked(-101))));
        let on_busy = |word: &str| Common {
            on_busy: Some(word.into()),
            ..Default::default()
        };
        assert!(is_invalid(terms(&on_busy("wait"))));
        let inhibits = |what: Option<&str>, who: &str| {
            let what = what.map(str::to_owned);
            inhibitor(InhibitOptions { what }, who.into(), String::new())
        };
        assert!(is_invalid(inhibits(Some("sleep"), "me")));
        assert!(is_invalid(inhibits(None, " ")));
        assert!(is_invalid(inhibits(None, "a\nb")));
        assert!(is_invalid(discardables(&[])));
        assert!(is_invalid(discardables(&["booted".into()])));
    }

    #[test]
    fn missing_values_have_their_defaults() {
        assert_eq!(pull(&UpgradeOptions::default()).unwrap(), Pull::default());
        let nothing = Common::default();
        assert_eq!(terms(&nothing).unwrap(), Terms::default());
        let caller = caller(nothing).unwrap();
        assert_eq!((caller.label.as_str(), caller.reason.as_str()), ("", ""));
        let all = ["staged", "rollback", "cache", "unreferenced"].map(String::from);
        assert_eq!(discardables(&all).unwrap().len(), 4);
    }
}
