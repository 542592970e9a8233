//! The private bus and what runs on it, without the daemon.

#[cfg(test)]
mod bus {
    use std::collections::HashMap;

    use anyhow::Result;
    use osteward_tests::bus::{Bus, POLKIT, add_polkit_rule};
    use osteward_tests::process::run;
    use osteward_tests::sandbox::{OTHER_UID, Sandbox, UNPRIVILEGED_UID};
    use zbus::fdo::DBusProxy;

    const ORIGIN: &str = "ostree-unverified-registry:registry.test/os:latest";

    #[tokio::test]
    async fn users_inside_are_known_by_their_uid() -> Result<()> {
        let sandbox = Sandbox::tiny(ORIGIN)?;
        let bus = Bus::start(&sandbox)?;
        let connection = bus.connect().await?;
        let proxy = DBusProxy::new(&connection).await?;
        let name = connection
            .unique_name()
            .cloned()
            .map(zbus::names::BusName::from);
        let name = name.ok_or_else(|| anyhow::anyhow!("no name"))?;
        assert_eq!(proxy.get_connection_unix_user(name).await?, 0);
        let address = format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus.address());
        let words = ["env", &address, "busctl", "list", "--no-legend"];
        let mut list = sandbox.command_as(UNPRIVILEGED_UID, words)?;
        let listed = run(&mut list)?;
        assert!(listed.contains("nobody"), "{listed}");
        Ok(())
    }

    #[tokio::test]
    async fn polkit_decides_by_the_rules_of_the_test() -> Result<()> {
        let sandbox = Sandbox::tiny(ORIGIN)?;
        let script = r#"polkit.addRule(function(action, subject) {
            return subject.user == "nobody" ? polkit.Result.YES : polkit.Result.NO;
        });"#;
        add_polkit_rule(&sandbox, "10-test", script)?;
        let bus = Bus::start(&sandbox)?;
        let polkit = bus.start_polkit(&sandbox).await?;
        let connection = bus.connect().await?;
        let path = "/org/freedesktop/PolicyKit1/Authority";
        let interface = "org.freedesktop.PolicyKit1.Authority";
        let reply = connection
            .call_method(
                Some(POLKIT),
                path,
                Some(interface),
                "EnumerateActions",
                &("",),
            )
            .await?;
        drop(reply);
        // A rule that asks for the user answers differently to a process of each.
        for (uid, authorized) in [(UNPRIVILEGED_UID, true), (OTHER_UID, false)] {
            let mut sleeper = sandbox.command_as(uid, ["sleep", "infinity"])?.spawn()?;
            let pid = osteward_tests::process::innermost(sleeper.id())?;
            let mut details = HashMap::new();
            details.insert("pid", zbus::Variant::from(pid));
            details.insert("start-time", zbus::Variant::from(0_u64));
            details.insert("uid", zbus::Variant::from(i32::try_from(uid)?));
            let empty: HashMap<&str, &str> = HashMap::new();
            let arguments = (
                ("unix-process", details),
                "org.freedesktop.policykit.exec",
                empty,
                0_u32,
                "",
            );
            let reply = connection
                .call_method(
                    Some(POLKIT),
                    path,
                    Some(interface),
                    "CheckAuthorization",
                    &arguments,
                )
                .await?;
            let answer: (bool, bool, HashMap<String, String>) = reply.body().deserialize()?;
            assert_eq!(answer.0, authorized, "uid {uid}");
            sleeper.kill()?;
            sleeper.wait()?;
        }
        drop(polkit);
        bus.wait_for_name(POLKIT, false).await
    }
}
