//! Files of the configuration: which count, in which order, and what is wrong with them.

use super::*;

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn nothing_configured_is_the_default() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(load(root.path()).unwrap(), (Config::default(), vec![]));
}

#[test]
fn later_files_replace_scalars_and_arrays() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        "usr/lib/osteward/osteward.toml",
        "[registry]\ninsecure=[\"a\"]\nread_timeout=\"5s\"",
    );
    write(
        root.path(),
        "etc/osteward/config.d/20.toml",
        "[registry]\ninsecure=[\"b\",\"c\"]",
    );
    write(
        root.path(),
        "usr/lib/osteward/config.d/90.toml",
        "[daemon]\nidle_timeout=\"2min\"",
    );
    let (config, _) = load(root.path()).unwrap();
    assert_eq!(config.insecure, ["b", "c"]);
    assert_eq!(config.read_timeout, Duration::from_secs(5));
    assert_eq!(config.idle_timeout, Duration::from_secs(120));
}

#[test]
fn a_rate_may_be_none() {
    for (text, rate) in [
        ("", 0),
        ("max_rate = 0", 0),
        ("max_rate = 2500000", 2_500_000),
    ] {
        let root = tempfile::tempdir().unwrap();
        let text = format!("[registry]\n{text}");
        write(root.path(), "etc/osteward/osteward.toml", &text);
        assert_eq!(load(root.path()).unwrap().0.max_rate, rate);
    }
}

#[test]
fn same_name_in_a_higher_directory_replaces_and_an_empty_file_masks() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        "usr/lib/osteward/config.d/10.toml",
        "[import]\nparallel_layers=7",
    );
    write(
        root.path(),
        "usr/lib/osteward/config.d/11.toml",
        "[daemon]\nlock_wait=\"9s\"",
    );
    write(root.path(), "etc/osteward/config.d/10.toml", "");
    write(root.path(), "etc/osteward/config.d/README", "");
    let (config, warnings) = load(root.path()).unwrap();
    assert_eq!(config.parallel_layers, 3);
    assert_eq!(config.lock_wait, Duration::from_secs(9));
    assert!(warnings[0].ends_with("README is ignored: its name does not end in .toml"));
}

#[test]
fn errors_name_file_line_and_key() {
    for (text, expected) in [
        ("[registry]\ninsecur = []", "unknown field `insecur`"),
        ("[registry]\ninsecure = 3", "line 2"),
        ("[regstry]", "unknown field `regstry`"),
        ("[daemon]\nidle_timeout = \"soon\"", "daemon.idle_timeout"),
        ("[registry]\nretry_time = \"1\"", "registry.retry_time"),
        ("[import]\nparallel_layers = 0", "import.parallel_layers"),
        ("[registry]\nmax_rate = 16383", "registry.max_rate"),
        ("[registry]\nmax_rate = -1", "line 2"),
        ("[daemon", "line 1"),
    ] {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "etc/osteward/config.d/x.toml", text);
        let error = load(root.path()).unwrap_err().to_string();
        assert!(
            error.contains("config.d/x.toml") && error.contains(expected),
            "{text}: {error}"
        );
    }
}
