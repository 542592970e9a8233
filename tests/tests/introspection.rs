//! Other people's tools read what the live daemon says about its objects.

#[cfg(test)]
mod introspection {
    use std::collections::BTreeSet;

    use anyhow::{Context, Result, ensure};
    use osteward_tests::host::Host;
    use osteward_tests::image::Layer;
    use osteward_tests::process::{command, run};
    use zbus::fdo::ObjectManagerProxy;

    fn gdbus(host: &Host, path: &str) -> Result<String> {
        let words = ["gdbus", "introspect", "--address", &host.bus.address()];
        let mut introspect = command(words);
        introspect.args(["--dest", osteward_dbus::BUS_NAME, "--object-path", path]);
        run(&mut introspect).with_context(|| format!("gdbus introspect {path}"))
    }

    #[tokio::test]
    async fn gdbus_introspects_every_object() -> Result<()> {
        let host = Host::boot()?;
        let layer = Layer::new().dir("usr").dir("usr/share");
        host.publish(&host.next_image("2", [layer.file("usr/share/two", "2")]))?;
        // So that there is an object of each kind: a job, an update, two deployments.
        host.upgrade().await?.succeeded()?;
        let connection = host.connect().await?;
        let manager = ObjectManagerProxy::builder(&connection)
            .destination(osteward_dbus::BUS_NAME)
            .path("/org/osteward1")
            .build()
            .await?;
        let mut seen = BTreeSet::new();
        for (path, interfaces) in manager.get_managed_objects().await? {
            let told = gdbus(&host, path.as_str())?;
            for interface in interfaces.keys().map(|name| name.as_str()) {
                ensure!(
                    told.contains(&format!("interface {interface} {{")),
                    "{path}: {told}"
                );
                seen.insert(interface.to_owned());
            }
        }
        for (interface, _) in osteward_dbus::INTERFACES {
            ensure!(
                seen.contains(*interface),
                "no object has {interface}: {seen:?}"
            );
        }
        for path in ["/", "/org", "/org/osteward1"] {
            ensure!(gdbus(&host, path)?.contains("node "), "{path}");
        }
        Ok(())
    }
}
