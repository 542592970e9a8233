//! The service: started by whoever asks first, gone when idle, in its sandbox, in the journal.

use anyhow::{Context, Result, ensure};
use osteward_tests::machine::Machine;
use osteward_tests::suite::Case;
use serde_json::Value;

use crate::origin::Origin;
use crate::osteward::{apply, done, expect_status, refused};

/// Waits in the machine until the daemon has exited; nothing there tells a shell when.
const UNTIL_IDLE: &str = "
    for _ in {1..600}; do
        systemctl --quiet is-active ostewardd || exit 0
        sleep 0.1
    done
    exit 1";

/// The highest exposure that `systemd-analyze security` may see, out of ten.
const EXPOSURE: f64 = 3.5;

fn property(machine: &mut Machine, name: &str) -> Result<String> {
    machine.ok(&format!(
        "systemctl show --property {name} --value ostewardd"
    ))
}

/// Activation and idle exit.
pub(crate) fn activation(case: &mut Case<'_>) -> Result<()> {
    case.step("nothing runs before the first call", |machine| {
        ensure!(property(machine, "ActiveState")? == "inactive");
        Ok(())
    })?;
    let first = case.step(
        "the first call starts the daemon through systemd",
        |machine| {
            let version = machine
                .ok("busctl get-property org.osteward1 /org/osteward1/Manager \
             org.osteward1.Manager Version")?;
            ensure!(version.starts_with("s \""), "{version}");
            ensure!(property(machine, "ActiveState")? == "active");
            property(machine, "InvocationID")
        },
    )?;
    case.step("its first answer is complete", |machine| {
        expect_status(machine, "booted 1").map(drop)
    })?;
    case.step("it stays while nobody lets it go", |machine| {
        ensure!(property(machine, "InvocationID")? == first);
        Ok(())
    })?;
    case.step("it exits when idle, in good order", |machine| {
        machine.ok("mkdir -p /etc/osteward/config.d
            printf '[daemon]\\nidle_timeout = \"1s\"\\n' >/etc/osteward/config.d/10-lab.toml
            systemctl restart ostewardd")?;
        machine.ok(UNTIL_IDLE)?;
        ensure!(property(machine, "Result")? == "success");
        ensure!(property(machine, "ExecMainStatus")? == "0");
        Ok(())
    })?;
    case.step("the next call starts it again", |machine| {
        expect_status(machine, "booted 1")?;
        let again = property(machine, "InvocationID")?;
        ensure!(!again.is_empty() && again != first);
        machine.ok(UNTIL_IDLE).map(drop)
    })?;
    case.step(
        "a configuration that is wrong is told, with file and line",
        |machine| {
            machine.ok("echo 'idle = 1' >/etc/osteward/config.d/20-lab.toml")?;
            let message = refused(machine, "check", "ConfigInvalid")?;
            ensure!(message.contains("20-lab.toml"), "{message}");
            machine.ok("rm /etc/osteward/config.d/20-lab.toml; systemctl stop ostewardd")?;
            done(machine, "check").map(drop)
        },
    )?;
    case.step("no unit of the machine has failed", |machine| {
        let failed = machine.ok("systemctl list-units --failed --plain --no-legend")?;
        ensure!(failed.is_empty(), "{failed}");
        Ok(())
    })
}

/// Looks at the file system as the daemon sees it.
const PROBE: &str = r#"
    inside() {
        nsenter --target "$(systemctl show -P MainPID ostewardd)" --mount sh -c "$1"
    }
    for path in /etc/lab-probe /usr/lab-probe /var/lab-probe; do
        if inside ": >$path" 2>/dev/null; then echo "$path can be written"; exit 1; fi
    done
    inside ': >/var/lib/osteward/lab-probe && rm /var/lib/osteward/lab-probe' || exit 1
    : >/root/lab-probe
    if inside 'find /root/ /home/ -mindepth 1' 2>/dev/null | grep .; then exit 1; fi"#;

/// What the daemon said to the journal since its last start, one object an entry.
fn journal(machine: &mut Machine) -> Result<Vec<Value>> {
    let lines =
        machine.ok("journalctl --sync; journalctl --boot --unit ostewardd --output json")?;
    let objects = lines.lines().filter(|line| line.starts_with('{'));
    objects
        .map(|line| serde_json::from_str(line).context("the journal's JSON"))
        .collect()
}

fn has(entries: &[Value], fields: &[(&str, &str)]) -> bool {
    let matches = |entry: &Value| fields.iter().all(|(name, value)| entry[name] == **value);
    entries.iter().any(matches)
}

/// The journal's fields.
pub(crate) fn log(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    case.step(
        "who asked for what, and why, is in the journal",
        |machine| {
            done(machine, "check --reason 'the lab wants to know'")?;
            let entries = journal(machine)?;
            let asked = [
                ("OSTEWARD_KIND", "check"),
                ("OSTEWARD_UID", "0"),
                ("OSTEWARD_REASON", "the lab wants to know"),
            ];
            let job = entries
                .iter()
                .find(|entry| asked.iter().all(|(name, value)| entry[name] == **value))
                .with_context(|| format!("nobody asked: {entries:#?}"))?;
            let job = job["OSTEWARD_JOB"].as_str().context("no job")?;
            let ended = [("OSTEWARD_JOB", job), ("OSTEWARD_DIGEST", "")];
            let ended = entries.iter().find(|entry| {
                entry["OSTEWARD_JOB"] == ended[0].1 && entry.get(ended[1].0).is_some()
            });
            let digest = ended.and_then(|entry| entry["OSTEWARD_DIGEST"].as_str());
            ensure!(
                digest.is_some_and(|it| it.starts_with("sha256:")),
                "{entries:#?}"
            );
            Ok(())
        },
    )?;
    case.step("a failure is in the journal by its name", |machine| {
        let image = origin.image();
        refused(
            machine,
            &format!("switch {image}-that-is-not-there"),
            "ImageNotFound",
        )?;
        let entries = journal(machine)?;
        let failed = [
            ("OSTEWARD_KIND", "switch"),
            ("OSTEWARD_ERROR", "org.osteward1.Error.ImageNotFound"),
            ("PRIORITY", "3"),
        ];
        ensure!(has(&entries, &failed), "{entries:#?}");
        Ok(())
    })?;
    case.step("systemctl status says what it does", |machine| {
        let status = machine.ok("systemctl show --property StatusText --value ostewardd")?;
        ensure!(status == "idle", "{status}");
        Ok(())
    })
}

/// The sandbox, as systemd rates it and as the daemon finds it, while it does its work.
pub(crate) fn sandbox(case: &mut Case<'_>) -> Result<()> {
    let origin = Origin::of(case)?;
    case.step("systemd-analyze security is content", |machine| {
        let last = machine.ok("systemd-analyze security --no-pager ostewardd | tail -n 1")?;
        let words = last.split_whitespace();
        let exposure = words.filter_map(|word| word.parse::<f64>().ok()).next();
        let exposure = exposure.with_context(|| format!("no number: {last}"))?;
        ensure!(exposure <= EXPOSURE, "{last}");
        Ok(())
    })?;
    case.step(
        "the daemon itself runs without privileges it does not need",
        |machine| {
            done(machine, "check")?;
            let status = machine.ok("cat /proc/$(systemctl show -P MainPID ostewardd)/status")?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            ensure!(field("NoNewPrivs:") == "1", "{status}");
            ensure!(field("Seccomp:") == "2", "{status}");
            let bounding = u64::from_str_radix(&field("CapBnd:"), 16)?;
            // CAP_NET_ADMIN, CAP_SYS_MODULE, CAP_SYS_PTRACE and CAP_SYS_BOOT of linux/capability.h.
            let forbidden: u64 = [12, 16, 19, 22].iter().map(|bit| 1 << bit).sum();
            ensure!(bounding & forbidden == 0, "CapBnd {bounding:x}");
            ensure!(
                bounding & (1 << 21) != 0,
                "without CAP_SYS_ADMIN it cannot remount"
            );
            Ok(())
        },
    )?;
    case.step(
        "what it has no business with cannot be written, or seen",
        |machine| machine.ok(PROBE).map(drop),
    )?;
    case.step(
        "an upgrade works in there and leaves the host's mounts alone",
        |machine| {
            let mounts = "findmnt --noheadings --output OPTIONS /sysroot | cut -d, -f1";
            ensure!(machine.ok(mounts)? == "ro");
            origin.publish("v2")?;
            done(machine, "upgrade")?;
            ensure!(machine.ok(mounts)? == "ro");
            let denied = machine.ok(
            "journalctl --sync; journalctl --boot --unit ostewardd --priority warning --output cat",
        )?;
            ensure!(denied.is_empty(), "{denied}");
            Ok(())
        },
    )?;
    case.step("and what it staged is finalized", apply)?;
    case.step("version 2 runs", |machine| {
        expect_status(machine, "booted 2, rollback 1").map(drop)
    })
}
