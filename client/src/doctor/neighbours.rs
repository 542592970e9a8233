//! Those on the bus that updates need, and those that would update the host as well.
//!
//! Owns which of systemd's units matter. Invariant: only questions that systemd, the bus and
//! timedated answer to everybody; nothing here starts, stops or enables a unit.

use zbus::fdo::DBusProxy;
use zbus::names::BusName;
use zbus::proxy::CacheProperties;
use zbus::{Connection, proxy};

use super::{Finding, in_time};
use crate::bus::Bus;
use crate::fail::Failure;

/// Whatever else updates hosts of this kind by itself.
const COMPETING: [&str; 7] = [
    "bootc-fetch-apply-updates.timer",
    "eos-autoupdater.timer",
    "os-update.timer",
    "rpm-ostreed-automatic.timer",
    "ublue-update.timer",
    "uupd.timer",
    "zincati.service",
];
/// What makes a staged deployment the next boot while the host shuts down.
const FINALIZE: &str = "ostree-finalize-staged.service";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const TIMEDATE: &str = "org.freedesktop.timedate1";

/// Unit, description, load, active and sub state, followed unit, path, and its job, if any:
/// number, type and path.
type UnitLine = (
    String,
    String,
    String,
    String,
    String,
    String,
    zbus::OwnedObjectPath,
    u32,
    String,
    zbus::OwnedObjectPath,
);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    fn list_units_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<UnitLine>>;
    fn list_unit_files_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<(String, String)>>;
}

#[proxy(
    interface = "org.freedesktop.timedate1",
    default_service = "org.freedesktop.timedate1",
    default_path = "/org/freedesktop/timedate1"
)]
trait TimeDate {
    #[zbus(property, name = "NTPSynchronized")]
    fn ntp_synchronized(&self) -> zbus::Result<bool>;
}

pub(super) async fn findings(bus: &Bus) -> Vec<Finding> {
    let connection = &bus.connection;
    let there = match in_time("the bus", Names::of(connection)).await {
        Ok(there) => there,
        Err(failure) => return vec![Finding::of("bus", &failure)],
    };
    let mut findings = vec![there.polkit(), there.logind()];
    if there.has(SYSTEMD) {
        match in_time("systemd", Units::of(connection)).await {
            Ok(units) => findings.extend(units.findings()),
            Err(failure) => findings.push(unanswered("units", &failure)),
        }
    } else {
        let text = "systemd is not on this bus: its units were not looked at";
        let next = "Ask on the host itself, not in a container and without --bus.";
        findings.push(Finding::warn("units", text, next));
    }
    if there.has(TIMEDATE) {
        // It is started for this question, and where it cannot be there is no answer.
        let synchronized = in_time("timedated", synchronized(connection)).await.ok();
        findings.extend(synchronized.map(network_time));
    }
    findings
}

/// Somebody who does not answer a question is no obstacle to updates.
fn unanswered(id: &'static str, failure: &Failure) -> Finding {
    let next = "`systemctl status` shows how systemd is.";
    Finding::warn(id, &failure.message, next)
}

async fn synchronized(connection: &Connection) -> Result<bool, Failure> {
    let proxy = TimeDateProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    Ok(proxy.ntp_synchronized().await?)
}

fn network_time(synchronized: bool) -> Finding {
    const ID: &str = "network-time";
    match synchronized {
        true => Finding::ok(ID, "the clock follows the network's"),
        false => Finding::warn(
            ID,
            "nothing sets the clock: certificates of registries are refused when it is far off",
            "`timedatectl set-ntp true`, or install systemd-timesyncd or chrony in the image.",
        ),
    }
}

/// The names that are on the bus, or come when they are called.
struct Names(Vec<String>);

impl Names {
    async fn of(connection: &Connection) -> Result<Self, Failure> {
        let bus = DBusProxy::new(connection).await.map_err(Failure::from)?;
        let wanted = [
            "org.freedesktop.PolicyKit1",
            "org.freedesktop.login1",
            SYSTEMD,
            TIMEDATE,
        ];
        let activatable = bus.list_activatable_names().await.map_err(of_bus)?;
        let mut names: Vec<String> = activatable.iter().map(ToString::to_string).collect();
        for name in wanted {
            let known = BusName::try_from(name)?;
            if bus.name_has_owner(known).await.map_err(of_bus)? {
                names.push(name.to_owned());
            }
        }
        Ok(Self(names))
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|known| known == name)
    }

    fn polkit(&self) -> Finding {
        const ID: &str = "polkit";
        match self.has("org.freedesktop.PolicyKit1") {
            true => Finding::ok(ID, "polkit decides who may act"),
            false => Finding::warn(
                ID,
                "there is no polkit: only root may act",
                "Act with sudo, or add polkit to the image.",
            ),
        }
    }

    fn logind(&self) -> Finding {
        const ID: &str = "logind";
        match self.has("org.freedesktop.login1") {
            true => Finding::ok(ID, "systemd-logind reboots, and knows who objects"),
            false => Finding::warn(
                ID,
                "there is no systemd-logind: `osteward apply` cannot reboot",
                "Reboot by other means; what is staged is booted then.",
            ),
        }
    }
}

fn of_bus(error: zbus::fdo::Error) -> Failure {
    zbus::Error::from(error).into()
}

/// What systemd says about the units that matter.
#[derive(Debug, Default)]
struct Units {
    /// Names of competing units that run or wait for their time.
    active: Vec<String>,
    /// Names of competing units that the next boot starts.
    enabled: Vec<String>,
    /// State of the unit file that finalizes; `None` if there is none.
    finalize: Option<String>,
}

impl Units {
    async fn of(connection: &Connection) -> Result<Self, Failure> {
        let systemd = SystemdProxy::builder(connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let active = systemd.list_units_by_patterns(&["active", "activating"], &COMPETING);
        let active = active.await?.into_iter().map(|unit| unit.0).collect();
        let states = ["enabled", "enabled-runtime"];
        let enabled = systemd.list_unit_files_by_patterns(&states, &COMPETING);
        let enabled = enabled.await?.into_iter().map(|file| name_of(file.0));
        let finalize = systemd.list_unit_files_by_patterns(&[], &[FINALIZE]);
        let finalize = finalize.await?.into_iter().next().map(|file| file.1);
        Ok(Self {
            active,
            enabled: enabled.collect(),
            finalize,
        })
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.finalizer()];
        let mut competing: Vec<&String> = self.active.iter().chain(&self.enabled).collect();
        competing.sort_unstable();
        competing.dedup();
        if competing.is_empty() {
            let text = "no other updater is active or enabled";
            findings.push(Finding::ok("competing-updater", text));
        }
        findings.extend(competing.into_iter().map(|unit| {
            let how = match self.active.contains(unit) {
                true => "active",
                false => "enabled",
            };
            Finding::warn(
                "competing-updater",
                format!("{unit} is {how}: it updates this host as well, and may reboot it"),
                format!("`systemctl disable --now {unit}` leaves that to osteward."),
            )
        }));
        findings
    }

    fn finalizer(&self) -> Finding {
        const ID: &str = "finalizer";
        match self.finalize.as_deref() {
            None => Finding::fail(
                ID,
                format!("there is no {FINALIZE}: what is staged never becomes the next boot"),
                "Add the package to the image that boots ostree hosts (ostree-boot on Debian).",
            ),
            Some("masked" | "masked-runtime") => Finding::fail(
                ID,
                format!("{FINALIZE} is masked: what is staged never becomes the next boot"),
                format!("`systemctl unmask {FINALIZE}`"),
            ),
            Some(_) => Finding::ok(ID, format!("{FINALIZE} is there")),
        }
    }
}

/// The unit of a unit file.
fn name_of(path: String) -> String {
    match path.rsplit_once('/') {
        Some((_, name)) => name.to_owned(),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_masked_or_missing_finalizer_fails() {
        for (state, expected) in [
            (None, Level::Fail),
            (Some("masked"), Level::Fail),
            (Some("static"), Level::Ok),
        ] {
            let units = Units {
                finalize: state.map(str::to_owned),
                ..Units::default()
            };
            assert_eq!(units.finalizer().level, expected, "{state:?}");
        }
    }

    #[test]
    fn each_competing_updater_is_named_once() {
        let units = Units {
            active: vec!["uupd.timer".into()],
            enabled: vec!["zincati.service".into(), "uupd.timer".into()],
            finalize: Some("static".into()),
        };
        let findings = units.findings();
        let told: Vec<&str> = findings.iter().map(|one| one.text.as_str()).collect();
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(told[1].starts_with("uupd.timer is active"), "{told:?}");
        assert!(
            told[2].starts_with("zincati.service is enabled"),
            "{told:?}"
        );
        assert!(findings[2].next.contains("disable --now zincati.service"));
        assert_eq!(Units::default().findings()[1].level, Level::Ok);
    }

    #[test]
    fn neighbours_that_are_missing_are_no_failures() {
        let none = Names(Vec::new());
        assert_eq!(none.polkit().level, Level::Warn);
        assert_eq!(none.logind().level, Level::Warn);
        let all = Names(vec![
            "org.freedesktop.PolicyKit1".into(),
            "org.freedesktop.login1".into(),
        ]);
        assert_eq!(all.polkit().level, Level::Ok);
        assert_eq!(all.logind().level, Level::Ok);
        assert_eq!(network_time(false).level, Level::Warn);
    }

    #[test]
    fn unit_files_are_named_like_their_units() {
        let path = "/usr/lib/systemd/system/uupd.timer".to_owned();
        assert_eq!(name_of(path), "uupd.timer");
        assert_eq!(name_of("uupd.timer".to_owned()), "uupd.timer");
    }
}
