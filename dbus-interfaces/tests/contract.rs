//! The XML documents against the rest of this crate: records, proxies' records, errors.
//!
//! Owns the checks that need no daemon. What the daemon serves, and that the proxies
//! reach all of it, is checked in the daemon's own contract tests.

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use osteward_dbus::{
        Error, INTERFACES,
        options::{
            ApplyOptions, CancelRollbackOptions, CheckOptions, Common, DiffEtcOptions,
            DiscardOptions, DownloadOptions, NoOptions, RollbackOptions, SetKernelArgumentsOptions,
            SimulateOptions, UpgradeOptions, UsrOverlayOptions,
        },
        types::{
            DeploymentInfo, Dict, HostInfo, JobInfo, Status, UpdateInfo, from_dict, property_name,
            to_dict,
        },
    };
    use zbus::OwnedObjectPath;
    use zbus_xml::{ArgDirection, Interface, Node};

    const QT_TYPE: &str = "org.qtproject.QtDBus.QtTypeName";

    fn interface(name: &str) -> Interface<'static> {
        let (_, xml) = INTERFACES.iter().find(|(known, _)| *known == name).unwrap();
        let (node, warnings) = Node::from_reader_with_warnings(xml.as_bytes()).unwrap();
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
        assert_eq!(
            node.interfaces().len(),
            1,
            "{name}: one interface a document"
        );
        node.interfaces()[0].to_owned()
    }

    fn path(text: &str) -> OwnedObjectPath {
        OwnedObjectPath::try_from(text).unwrap()
    }

    fn deployment() -> DeploymentInfo {
        DeploymentInfo {
            id: "d_0123456789abcdef_0".into(),
            checksum: "0123456789abcdef".repeat(4),
            serial: 0,
            stateroot: "default".into(),
            state: "booted".into(),
            booted: true,
            staged: false,
            pinned: false,
            locked: false,
            image: "ostree-unverified-registry:registry.example.com/os:stable".into(),
            digest: format!("sha256:{}", "ab".repeat(32)),
            version: "42.1".into(),
            timestamp: 1_700_000_000,
            labels: HashMap::from([("a".to_owned(), "b".to_owned())]),
            layers: 60,
            size_bytes: 1 << 30,
            kernel_version: "6.1.0".into(),
            kernel_arguments: vec!["quiet".into()],
            soft_reboot_capable: "no".into(),
            unlocked: "none".into(),
            warnings: vec!["it is layered".into()],
        }
    }

    fn update() -> UpdateInfo {
        UpdateInfo {
            digest: format!("sha256:{}", "cd".repeat(32)),
            index_digest: String::new(),
            image: "docker://registry.example.com/os:stable".into(),
            version: "42.2".into(),
            architecture: "amd64".into(),
            timestamp: 1_700_000_001,
            labels: HashMap::new(),
            annotations: HashMap::new(),
            state: "available".into(),
            direction: "upgrade".into(),
            download_size: osteward_dbus::UNKNOWN,
            total_size: 7,
            layers_total: 2,
            layers_missing: 1,
            kernel_version: "6.1.1".into(),
            diff_level: "full".into(),
        }
    }

    fn job() -> JobInfo {
        JobInfo {
            kind: "upgrade".into(),
            state: "running".into(),
            phase: "downloading".into(),
            phase_index: 2,
            phase_count: 5,
            fraction: 0.25,
            bytes_done: 1,
            bytes_total: 4,
            bytes_cached: 9,
            layers_done: 0,
            layers_total: 2,
            active_layers: vec![("sha256:ab".into(), 1, 4)],
            rate: 1,
            eta: 3,
            message: "Downloading".into(),
            cancellable: true,
            paused: false,
            background: true,
            blocked_by: path("/"),
            error: (String::new(), String::new()),
            result: Dict::from([("changed".to_owned(), true.into())]),
            target: path("/org/osteward1/update/sha256_cd"),
            created_at: 1,
            started_at: 2,
            finished_at: 0,
            started_by_uid: 1000,
            started_by_label: "test".into(),
            sequence: 3,
        }
    }

    fn host() -> HostInfo {
        HostInfo {
            booted_deployment: path("/org/osteward1/deployment/d_0123456789abcdef_0"),
            staged_deployment: path("/"),
            default_deployment: path("/org/osteward1/deployment/d_0123456789abcdef_0"),
            rollback_deployment: path("/"),
            rollback_queued: false,
            deployments: vec![path("/org/osteward1/deployment/d_0123456789abcdef_0")],
            stateroot: "default".into(),
            os_name: "debian".into(),
            os_version: "12".into(),
            boot_digest: String::new(),
            tracking: Dict::from([("insecure".to_owned(), false.into())]),
            update_state: "idle".into(),
            update: path("/org/osteward1/update/sha256_cd"),
            last_check: Dict::new(),
            last_finalize: Dict::new(),
            reboot_required: "none".into(),
            kernel_arguments: vec!["quiet".into(), "ostree=/ostree/boot.1/x".into()],
        }
    }

    /// Property name → signature, as the XML has them.
    fn documented(name: &str) -> BTreeMap<String, String> {
        interface(name)
            .properties()
            .map(|property| {
                assert!(
                    property.access().read() && !property.access().write(),
                    "{name}: everything is read-only"
                );
                (property.name().to_string(), property.ty().to_string())
            })
            .collect()
    }

    /// Property name → signature, as the record travels.
    fn recorded(record: &Dict) -> BTreeMap<String, String> {
        record
            .iter()
            .map(|(key, value)| (property_name(key), value.value_signature().to_string()))
            .collect()
    }

    #[test]
    fn every_document_has_the_interface_it_is_named_after() {
        for (name, _) in INTERFACES {
            assert_eq!(interface(name).name().as_str(), *name);
        }
    }

    #[test]
    fn records_are_the_properties_of_their_interfaces() {
        let records = [
            ("org.osteward1.Deployment", to_dict(&deployment()).unwrap()),
            ("org.osteward1.Update", to_dict(&update()).unwrap()),
            ("org.osteward1.Job", to_dict(&job()).unwrap()),
            ("org.osteward1.Host", to_dict(&host()).unwrap()),
        ];
        for (name, record) in records {
            assert_eq!(documented(name), recorded(&record), "{name}");
        }
    }

    #[test]
    fn records_survive_the_trip() {
        assert_eq!(
            from_dict::<JobInfo>(&to_dict(&job()).unwrap()).unwrap(),
            job()
        );
        let status = Status {
            daemon_version: "0.1.0".into(),
            host: host(),
            deployments: vec![deployment()],
            update: Some(update()),
            jobs: vec![(path("/org/osteward1/job/1"), job())],
        };
        assert_eq!(
            Status::from_dict(&status.to_dict().unwrap()).unwrap(),
            status
        );
        let host = HostInfo {
            update: path("/"),
            ..host()
        };
        let bare = Status {
            host,
            update: None,
            jobs: Vec::new(),
            ..status
        };
        assert_eq!(Status::from_dict(&bare.to_dict().unwrap()).unwrap(), bare);
    }

    #[test]
    fn status_has_the_documented_keys() {
        let status = Status {
            daemon_version: "0.1.0".into(),
            host: host(),
            deployments: vec![deployment()],
            update: Some(update()),
            jobs: vec![(path("/org/osteward1/job/1"), job())],
        };
        let document = status.to_dict().unwrap();
        let mut expected: BTreeSet<String> = to_dict(&host()).unwrap().into_keys().collect();
        for key in ["schema", "daemon-version", "deployments", "update", "jobs"] {
            expected.insert(key.to_owned());
        }
        assert_eq!(document.keys().cloned().collect::<BTreeSet<_>>(), expected);
        // The lists replace the paths of the property of the same name.
        assert_eq!(
            document["deployments"].value_signature().to_string(),
            "aa{sv}"
        );
        assert_eq!(document["jobs"].value_signature().to_string(), "aa{sv}");
        assert_eq!(document["update"].value_signature().to_string(), "a{sv}");
        assert_eq!(document["schema"].value_signature().to_string(), "u");
    }

    /// qdbusxml2cpp refuses a type that Qt does not know unless an annotation names one.
    #[test]
    fn types_that_qt_does_not_know_are_annotated() {
        let known = ["s", "u", "i", "t", "x", "b", "d", "o", "ao", "as", "h"];
        let has = |annotations: &[zbus_xml::Annotation<'_>], name: &str| {
            annotations
                .iter()
                .any(|annotation| annotation.name() == name)
        };
        for (name, _) in INTERFACES {
            let interface = interface(name);
            for property in interface.properties() {
                let named = has(property.annotations(), QT_TYPE);
                let plain = known.contains(&property.ty().to_string().as_str());
                assert_ne!(named, plain, "{name}.{}", property.name());
            }
            for method in interface.methods() {
                for (direction, word) in [(ArgDirection::In, "In"), (ArgDirection::Out, "Out")] {
                    let arguments = method
                        .args()
                        .iter()
                        .filter(|arg| arg.direction() == Some(direction));
                    for (index, arg) in arguments.enumerate() {
                        let named = has(method.annotations(), &format!("{QT_TYPE}.{word}{index}"));
                        let plain = known.contains(&arg.ty().to_string().as_str());
                        assert_ne!(named, plain, "{name}.{} {word}{index}", method.name());
                    }
                }
            }
            for signal in interface.signals() {
                for (index, arg) in signal.args().iter().enumerate() {
                    let named = has(signal.annotations(), &format!("{QT_TYPE}.Out{index}"));
                    let plain = known.contains(&arg.ty().to_string().as_str());
                    assert_ne!(named, plain, "{name}.{} {index}", signal.name());
                }
            }
        }
    }

    /// The comments are the API document: each error stands where it can occur.
    #[test]
    fn every_error_is_documented() {
        let comments: String = INTERFACES.iter().map(|(_, xml)| comments_of(xml)).collect();
        let words: BTreeSet<&str> = comments
            .split(|c: char| !(c.is_alphanumeric() || c == '.'))
            .map(|word| word.trim_end_matches('.'))
            .collect();
        for name in Error::NAMES {
            assert!(words.contains(name), "{name} is in no comment");
        }
        for word in words.iter().filter(|word| word.contains(".Error.")) {
            assert!(
                Error::NAMES.contains(word),
                "{word} is not in the vocabulary"
            );
        }
    }

    /// Each member has a comment that starts with its name, and each option key is in the
    /// comment of its method.
    #[test]
    fn every_member_and_option_is_documented() {
        for (name, xml) in INTERFACES {
            let interface = interface(name);
            let members = interface
                .methods()
                .map(|method| method.name().to_string())
                .chain(interface.signals().map(|signal| signal.name().to_string()))
                .chain(
                    interface
                        .properties()
                        .map(|property| property.name().to_string()),
                );
            for member in members {
                assert!(
                    comment_for(xml, &member).is_some(),
                    "{name}.{member} has no comment"
                );
            }
        }
        let (_, xml) = INTERFACES
            .iter()
            .find(|(name, _)| *name == "org.osteward1.Host")
            .unwrap();
        for (method, keys) in option_keys() {
            let comment = comment_for(xml, method).unwrap();
            for key in keys.iter().filter(|key| !COMMON.contains(&key.as_str())) {
                assert!(comment.contains(&format!("\"{key}\"")), "{method}: {key}");
            }
        }
        for key in COMMON {
            assert!(comments_of(xml).contains(&format!("\"{key}\"")), "{key}");
        }
    }

    /// Options that every job-making method has; the head of the Host document has them.
    const COMMON: [&str; 5] = [
        "client-label",
        "reason",
        "on-busy",
        "background",
        "priority",
    ];

    fn text() -> Option<String> {
        Some("text".to_owned())
    }

    fn common() -> Common {
        Common {
            client_label: text(),
            reason: text(),
            on_busy: text(),
            background: Some(true),
            priority: Some(1),
        }
    }

    /// The keys of each method's options, from records with every field set.
    fn option_keys() -> Vec<(&'static str, Vec<String>)> {
        let check = CheckOptions {
            max_age: Some(1),
            ..CheckOptions::default().with_common(common())
        };
        let download = DownloadOptions {
            digest: text(),
            allow_downgrade: Some(true),
            ..DownloadOptions::default().with_common(common())
        };
        let upgrade = UpgradeOptions {
            digest: text(),
            allow_downgrade: Some(true),
            replace_staged: Some(true),
            download_only: Some(true),
            from_cache: Some(true),
            lock: Some(true),
            apply: text(),
            ..UpgradeOptions::default().with_common(common())
        };
        let rollback = RollbackOptions {
            digest: text(),
            discard_staged: Some(true),
            quarantine: Some(true),
            apply: text(),
            ..RollbackOptions::default().with_common(common())
        };
        let cancel = CancelRollbackOptions::default().with_common(common());
        let apply = ApplyOptions {
            digest: text(),
            mode: text(),
            ignore_inhibitors: Some(true),
            ..ApplyOptions::default().with_common(common())
        };
        let discard = DiscardOptions {
            dry_run: Some(true),
            ..DiscardOptions::default().with_common(common())
        };
        let kargs = SetKernelArgumentsOptions {
            expect: Some(vec!["quiet".into()]),
            digest: text(),
            ..SetKernelArgumentsOptions::default().with_common(common())
        };
        let simulate = SimulateOptions {
            digest: text(),
            ..SimulateOptions::default().with_common(common())
        };
        let overlay = UsrOverlayOptions {
            read_only: Some(true),
            ..UsrOverlayOptions::default().with_common(common())
        };
        let diff = DiffEtcOptions {
            deployment: Some(path("/org/osteward1/deployment/d_0_0")),
        };
        [
            ("Check", to_dict(&check)),
            ("Download", to_dict(&download)),
            ("Upgrade", to_dict(&upgrade)),
            ("Rollback", to_dict(&rollback)),
            ("CancelRollback", to_dict(&cancel)),
            ("Apply", to_dict(&apply)),
            ("Discard", to_dict(&discard)),
            ("SetKernelArguments", to_dict(&kargs)),
            ("Simulate", to_dict(&simulate)),
            ("UsrOverlay", to_dict(&overlay)),
            ("DiffEtc", to_dict(&diff)),
        ]
        .map(|(method, keys)| (method, keys.unwrap().into_keys().collect()))
        .into()
    }

    #[test]
    fn unknown_options_and_wrong_types_are_refused() {
        let unknown = Dict::from([("max-agee".to_owned(), 1_u64.into())]);
        assert!(from_dict::<CheckOptions>(&unknown).is_err());
        let wrong = Dict::from([("max-age".to_owned(), true.into())]);
        assert!(from_dict::<CheckOptions>(&wrong).is_err());
        let right = Dict::from([("max-age".to_owned(), 7_u64.into())]);
        assert_eq!(from_dict::<CheckOptions>(&right).unwrap().max_age, Some(7));
        assert!(from_dict::<NoOptions>(&right).is_err());
        assert!(from_dict::<NoOptions>(&Dict::new()).is_ok());
    }

    #[test]
    fn errors_keep_their_names() {
        let mut seen = BTreeSet::new();
        for name in Error::NAMES {
            assert!(seen.insert(name), "{name} twice");
            let error = Error::from_name(name, "what happened").unwrap();
            assert_eq!(error.name(), *name);
            assert_eq!(error.message(), "what happened");
            assert_eq!(error.to_string(), "what happened");

            // Over the wire: the reply that a server makes is read back as the same error.
            let call = zbus::message::Message::method_call("/", "Call")
                .build(&())
                .unwrap();
            let reply = zbus::DBusError::create_reply(&error, &call.header()).unwrap();
            assert_eq!(Error::from(zbus::Error::from(reply)), error);
        }
        assert_eq!(Error::from_name("org.example.Error.Other", ""), None);
    }

    #[test]
    fn errors_of_others_keep_their_names_too() {
        let call = zbus::message::Message::method_call("/", "Call")
            .build(&())
            .unwrap();
        let reply = zbus::message::Message::error(&call.header(), "org.example.Error.Other")
            .build(&("why",))
            .unwrap();
        let error = Error::from(zbus::Error::from(reply));
        assert!(matches!(error, Error::Bus(_)));
        assert_eq!(
            (error.name(), error.message().as_str()),
            ("org.example.Error.Other", "why")
        );
    }

    fn comments_of(xml: &str) -> String {
        let mut text = String::new();
        for part in xml.split("<!--").skip(1) {
            text.push_str(part.split("-->").next().unwrap_or_default());
            text.push('\n');
        }
        text
    }

    fn comment_for<'a>(xml: &'a str, member: &str) -> Option<&'a str> {
        xml.split("<!--")
            .skip(1)
            .filter_map(|part| part.split("-->").next())
            .find(|comment| comment.trim_start().starts_with(&format!("{member}:")))
    }
}
