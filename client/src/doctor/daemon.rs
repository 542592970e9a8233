//! What only the daemon knows: its configuration, what is tracked, what went wrong last.
//!
//! Pure but for the asking: everything is in properties that everybody may read.

use osteward_dbus::NO_OBJECT;
use osteward_dbus::types::{Dict, Status};

use super::Finding;
use crate::bus::Bus;
use crate::fail::Failure;

/// What the daemon has said.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) status: Status,
    features: Vec<String>,
    warnings: Vec<String>,
}

impl Known {
    pub(super) async fn ask(bus: &Bus) -> Result<Self, Failure> {
        let (_, status) = bus.status().await?;
        let (features, warnings) = bus.abilities().await?;
        Ok(Self {
            status,
            features,
            warnings,
        })
    }

    /// That it answers, and what it is able to do here.
    pub(super) fn presence(&self) -> Finding {
        let features = self.features.join(", ");
        let text = format!(
            "ostewardd {} answers; this host can: {features}",
            self.status.daemon_version
        );
        Finding::ok("daemon", text)
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = self.configuration();
        findings.push(self.tracking());
        findings.extend(self.registry());
        findings.extend(self.finalization());
        findings.extend(self.staged());
        findings.extend(self.lock());
        findings.extend(self.deployments());
        findings
    }

    fn configuration(&self) -> Vec<Finding> {
        const ID: &str = "configuration";
        if self.warnings.is_empty() {
            return vec![Finding::ok(ID, "the daemon's configuration is in order")];
        }
        // A file that does not count leaves the others in force; any other complaint keeps the
        // daemon from fetching.
        let harmless = |text: &str| text.contains(" is ignored: ");
        let finding = |text: &String| match harmless(text) {
            true => Finding::warn(ID, text, "Rename the file, or remove it."),
            false => Finding::fail(ID, text, "Correct the file, then `osteward reload`."),
        };
        self.warnings.iter().map(finding).collect()
    }

    fn tracking(&self) -> Finding {
        const ID: &str = "tracking";
        let tracking = &self.status.host.tracking;
        let image = string(tracking, "image").unwrap_or_default();
        match string(tracking, "transport").unwrap_or_default() {
            _ if image.is_empty() => Finding::fail(
                ID,
                "the booted deployment says nothing about where updates come from",
                "`osteward switch IMAGE` tells it.",
            ),
            "ostree" => Finding::fail(
                ID,
                format!("updates come from the ostree remote {image}, not from an image"),
                "`osteward switch IMAGE` leads to one; what runs now stays as the rollback.",
            ),
            "containers-storage:" if !self.can("containers-storage") => Finding::fail(
                ID,
                format!("{image} is in the container storage, which needs podman or skopeo"),
                "Add one of them to the image, or `osteward switch` to a registry.",
            ),
            _ => Finding::ok(ID, format!("updates come from {image}")),
        }
    }

    fn can(&self, feature: &str) -> bool {
        self.features.iter().any(|known| known == feature)
    }

    /// How the last check ended: whether the registry answered, and let this host in.
    fn registry(&self) -> Option<Finding> {
        const ID: &str = "registry";
        let last = &self.status.host.last_check;
        if last.is_empty() {
            let text = "not asked yet on this host; `osteward check` does";
            return Some(Finding::ok(ID, text));
        }
        if flag(last, "ok") {
            return Some(Finding::ok(ID, "answered when it was asked last"));
        }
        let name = string(last, "error-name").unwrap_or_default();
        let message = string(last, "error-message").unwrap_or("the last check failed");
        let failure = Failure::new(name, message);
        // A check that somebody cancelled tells nothing about the registry.
        (name != "org.osteward1.Error.Cancelled").then(|| {
            let again = "`osteward check` asks again.";
            let next = match failure.hint("check") {
                Some(hint) => format!("{hint} {again}"),
                None => again.to_owned(),
            };
            Finding::fail(ID, message, next)
        })
    }

    fn finalization(&self) -> Option<Finding> {
        let last = &self.status.host.last_finalize;
        flag(last, "failed").then(|| {
            let message = string(last, "message").unwrap_or("nobody knows why");
            let text = format!("the last update could not be made the next boot: {message}");
            let next = "Remove the cause, then `osteward upgrade` stages it again.";
            Finding::fail("finalization", text, next)
        })
    }

    fn staged(&self) -> Option<Finding> {
        let staged = self.status.host.staged_deployment.as_str();
        let locked = self.status.deployments.iter().any(|one| one.locked);
        match (staged, locked) {
            (NO_OBJECT, _) => None,
            (_, true) => Some(Finding::warn(
                "staged",
                "an update is staged and locked: no ordinary reboot switches to it",
                "`osteward apply` reboots into it, `osteward unlock` lets any reboot do it.",
            )),
            (_, false) => Some(Finding::ok("staged", "an update waits for the next reboot")),
        }
    }

    fn lock(&self) -> Option<Finding> {
        let is_booted = self.status.host.booted_deployment.as_str() != NO_OBJECT;
        (is_booted && !self.can("finalization-lock")).then(|| {
            let text = "no update can be staged and locked: ostewardd cannot write to /run/ostree";
            let next = "See to it that it can; until then `osteward download` fetches only.";
            Finding::warn("finalization-lock", text, next)
        })
    }

    fn deployments(&self) -> Vec<Finding> {
        let warnings = self.status.deployments.iter().flat_map(|one| &one.warnings);
        warnings
            .map(|text| Finding::warn("deployment", text, "`osteward status` shows which one."))
            .collect()
    }
}

fn string<'a>(dict: &'a Dict, key: &str) -> Option<&'a str> {
    dict.get(key).and_then(|value| value.try_into().ok())
}

fn flag(dict: &Dict, key: &str) -> bool {
    dict.get(key)
        .and_then(|value| bool::try_from(value).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use zbus::OwnedVariant;

    use super::*;
    use crate::doctor::Level;
    use crate::sample;

    fn known(status: Status) -> Known {
        Known {
            status,
            features: vec!["switch".into(), "finalization-lock".into()],
            warnings: Vec::new(),
        }
    }

    fn levels(known: &Known, id: &str) -> Vec<Level> {
        let findings = known.findings().into_iter();
        findings
            .filter(|finding| finding.id == id)
            .map(|finding| finding.level)
            .collect()
    }

    #[test]
    fn a_host_in_order_has_no_complaints() {
        let known = known(sample::status("idle"));
        let findings = known.findings();
        assert!(
            findings.iter().all(|one| one.level == Level::Ok),
            "{findings:?}"
        );
        assert!(known.presence().text.contains("switch"));
    }

    #[test]
    fn a_configuration_that_cannot_be_used_fails_and_a_stray_file_does_not() {
        let mut host = known(sample::status("idle"));
        host.warnings = vec!["/etc/osteward/osteward.toml: unknown field".into()];
        assert_eq!(levels(&host, "configuration"), [Level::Fail]);
        host.warnings = vec!["/etc/osteward/config.d/x is ignored: its name".into()];
        assert_eq!(levels(&host, "configuration"), [Level::Warn]);
    }

    #[test]
    fn where_updates_come_from() {
        let storage = "containers-storage:localhost/os";
        let cases = [
            ("", "", Level::Fail),
            ("fedora:stable", "ostree", Level::Fail),
            (storage, "containers-storage:", Level::Fail),
            ("docker://registry.example.org/os", "docker://", Level::Ok),
            ("oci:/srv/os", "oci:", Level::Ok),
            ("oci-archive:/srv/os.tar", "oci-archive:", Level::Ok),
        ];
        let is_host = |(name, _): &&(&str, &str)| *name == "org.osteward1.Host";
        let (_, contract) = osteward_dbus::INTERFACES.iter().find(is_host).unwrap();
        for (image, transport, expected) in cases {
            let promised = contract.contains(&format!("\"{transport}\""));
            assert!(
                promised || transport.is_empty(),
                "no daemon says {transport}"
            );
            let mut host = known(sample::status("idle"));
            let tracking = &mut host.status.host.tracking;
            tracking.insert("image".into(), sample::text(image));
            tracking.insert("transport".into(), sample::text(transport));
            assert_eq!(levels(&host, "tracking"), [expected], "{image}");
        }
        let mut host = known(sample::status("idle"));
        let tracking = &mut host.status.host.tracking;
        tracking.insert("image".into(), sample::text(storage));
        tracking.insert("transport".into(), sample::text("containers-storage:"));
        host.features.push("containers-storage".into());
        assert_eq!(levels(&host, "tracking"), [Level::Ok], "with its tools");
    }

    #[test]
    fn a_host_without_a_finalization_lock_is_told_of() {
        let mut host = known(sample::status("idle"));
        host.features.pop();
        assert_eq!(levels(&host, "finalization-lock"), [Level::Warn]);
        host.status.host.booted_deployment = Default::default();
        assert_eq!(
            levels(&host, "finalization-lock"),
            [],
            "of a host of another kind"
        );
    }

    #[test]
    fn a_registry_that_refused_comes_with_the_hint_of_the_error() {
        let mut host = known(sample::status("idle"));
        let last = &mut host.status.host.last_check;
        last.insert("ok".into(), OwnedVariant::from(false));
        last.insert("error-message".into(), sample::text("401"));
        last.insert(
            "error-name".into(),
            sample::text("org.osteward1.Error.RegistryAuth"),
        );
        let finding = host.registry().unwrap();
        assert_eq!(finding.level, Level::Fail);
        assert!(
            finding.next.contains("/etc/ostree/auth.json"),
            "{finding:?}"
        );
        let cancelled = sample::text("org.osteward1.Error.Cancelled");
        let last = &mut host.status.host.last_check;
        last.insert("error-name".into(), cancelled);
        assert_eq!(host.registry(), None);
        host.status.host.last_check.clear();
        assert_eq!(host.registry().unwrap().level, Level::Ok);
    }

    #[test]
    fn a_failed_finalization_a_lock_and_warnings_are_told() {
        let mut host = known(sample::staged());
        assert_eq!(levels(&host, "staged"), [Level::Ok]);
        host.status.deployments[0].locked = true;
        host.status.deployments[1].warnings = vec!["odd".into()];
        let last = &mut host.status.host.last_finalize;
        last.insert("failed".into(), OwnedVariant::from(true));
        last.insert("message".into(), sample::text("no space"));
        assert_eq!(levels(&host, "staged"), [Level::Warn]);
        assert_eq!(levels(&host, "deployment"), [Level::Warn]);
        assert_eq!(levels(&host, "finalization"), [Level::Fail]);
    }
}
