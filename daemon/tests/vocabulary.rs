//! Words of the contract that are values rather than members: those that the documents list are those that the
//! daemon says.

#[cfg(test)]
mod vocabulary {
    use std::collections::BTreeSet;

    use osteward_dbus::INTERFACES;
    use ostewardd::image::reference::ImageReference;
    use ostewardd::jobs::{Reboot, Request};

    /// What the document says about a property of the interface.
    fn text_of(interface: &str, property: &str) -> String {
        let found = INTERFACES.iter().find(|(name, _)| *name == interface);
        let (_, xml) = found.unwrap();
        let (_, text) = xml.split_once(&format!("\n      {property}:\n")).unwrap();
        let (text, _) = text.split_once("-->").unwrap();
        text.to_owned()
    }

    /// What stands between quotation marks.
    fn words(text: &str) -> BTreeSet<&str> {
        text.split('"').skip(1).step_by(2).collect()
    }

    /// Read from the source: no list of requests could be known to be complete.
    #[test]
    fn the_kinds_of_jobs_are_those_of_the_document() {
        let (_, code) = include_str!("../src/jobs/mod.rs")
            .split_once("pub fn kind(&self)")
            .unwrap();
        let (code, _) = code.split_once("\n    }\n").unwrap();
        let kinds = words(code);
        assert_eq!(kinds, words(&text_of("org.osteward1.Job", "Kind")));
        let apply = Request::Apply {
            digest: None,
            mode: Reboot::Full,
            ignore_inhibitors: false,
        };
        for request in [apply, Request::Simulate(None), Request::CancelRollback] {
            assert!(kinds.contains(request.kind()), "{request:?}: {kinds:?}");
        }
    }

    #[test]
    fn only_the_kinds_that_write_make_the_daemon_busy() {
        let text = text_of("org.osteward1.Manager", "Busy");
        let (_, but) = text.split_once("any kind but").unwrap();
        let (but, _) = but.split_once(')').unwrap();
        let check = Request::Check { max_age: None };
        let reads = [check, Request::Simulate(None)];
        assert!(reads.iter().all(Request::is_read), "{reads:?}");
        let reads: BTreeSet<&str> = reads.iter().map(Request::kind).collect();
        assert_eq!(reads, words(but));
    }

    #[test]
    fn transports_are_called_as_the_document_says() {
        let text = text_of("org.osteward1.Host", "Tracking");
        let words = words(&text);
        for image in [
            "docker://registry.example.org/os",
            "oci:/srv/os",
            "oci-archive:/srv/os.tar",
            "containers-storage:localhost/os",
        ] {
            let image: ImageReference = image.parse().unwrap();
            let transport = image.transport().to_string();
            assert!(words.contains(transport.as_str()), "{transport}: {text}");
        }
    }
}
