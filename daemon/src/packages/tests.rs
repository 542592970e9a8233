//! Databases as their managers write them, cut, and full of nonsense.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::sync::OnceCell;

use super::*;

/// As dpkg writes it: an installed package on each of two architectures, one that is gone but
/// for its configuration, one that is half there.
const DPKG: &str = "\
Package: libc6
Status: install ok installed
Priority: optional
Installed-Size: 12986
Architecture: amd64
Multi-Arch: same
Source: glibc (2.36-9+deb12u10)
Version: 2.36-9+deb12u10
Conffiles:
 /etc/ld.so.conf.d/x86_64-linux-gnu.conf d4e7a7b88a71b5ffd9e2644e71a0cfab
Description: GNU C Library
 contains no: field
 .
 Package: in its description

Package: libc6
Status: install ok installed
Architecture: i386
Source: glibc
Version: 2.36-9+deb12u10

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: bash
Essential: yes
Status: hold ok triggers-pending
Architecture: amd64
Version: 5.2.15-2+b7

Package: asked-for
Status: install ok not-installed
Architecture: all
";

const APK: &str = "\
C:Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=
P:alpine-baselayout
V:3.4.3-r1
A:x86_64
S:8911
I:331776
T:Alpine base dir structure and init scripts
o:alpine-baselayout
F:dev
M:0:0:1777
F:etc
R:motd
Z:Q1SLkS9hBidUbPwwrw+XR0Whv3ww8=

P:musl
V:1.2.4_git20230717-r4
A:x86_64
o:musl

";

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    // Readers of text begin where the file stands.
    std::io::Seek::rewind(&mut file).unwrap();
    file
}

fn read_text(form: Form, content: &[u8]) -> Result<Vec<Package>, Error> {
    read(form, &file(content))
}

fn shown(packages: &[Package]) -> Vec<String> {
    let words = packages.iter().map(|package| {
        let Package {
            name,
            arch,
            version,
            source,
            size,
            build,
            ..
        } = package;
        format!("{name} {arch} {version} {source} {size} {build}")
            .trim_end()
            .to_owned()
    });
    words.collect()
}

#[test]
fn dpkg_lists_what_is_there() {
    let packages = read_text(Form::DpkgStatus, DPKG.as_bytes()).unwrap();
    assert_eq!(
        shown(&packages),
        [
            "libc6 amd64 2.36-9+deb12u10 glibc 13297664",
            "libc6 i386 2.36-9+deb12u10 glibc 0",
            "bash amd64 5.2.15-2+b7 bash 0",
        ]
    );
    let part = "Package: tzdata\nVersion: 2024a-0+deb12u1\nArchitecture: all\n";
    let packages = read_text(Form::DpkgPart, part.as_bytes()).unwrap();
    assert_eq!(shown(&packages), ["tzdata all 2024a-0+deb12u1 tzdata 0"]);
    assert_eq!(read_text(Form::DpkgStatus, part.as_bytes()), Ok(vec![]));
    assert_eq!(read_text(Form::DpkgStatus, b""), Ok(vec![]));
}

#[test]
fn apk_lists_what_is_there() {
    let packages = read_text(Form::ApkInstalled, APK.as_bytes()).unwrap();
    assert_eq!(
        shown(&packages),
        [
            "alpine-baselayout x86_64 3.4.3-r1 alpine-baselayout 331776 Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=",
            "musl x86_64 1.2.4_git20230717-r4 musl 0",
        ]
    );
}

#[test]
fn damaged_text_is_an_error_that_says_where() {
    for (form, text, words) in [
        (
            Form::DpkgStatus,
            &b"Package: a\nnonsense\n"[..],
            "line 2 is no field",
        ),
        (
            Form::DpkgStatus,
            b" continued\n",
            "line 1 belongs to no field",
        ),
        (
            Form::DpkgStatus,
            b"Status: install ok installed\n",
            "no name",
        ),
        (Form::DpkgPart, b"Package: a\n", "no version"),
        (Form::DpkgPart, b"Package:\nVersion: 1\n", "no name"),
        (Form::DpkgPart, b"Package: a b\n", "not one word"),
        (Form::DpkgPart, b"Package: a\x1b[2J\n", "not one word"),
        (Form::DpkgPart, b"Package: \xff\n", "not UTF-8"),
        (
            Form::ApkInstalled,
            b"P:a\nVersion: 1\n",
            "line 2 is no field",
        ),
        (Form::ApkInstalled, b"P:a\n\n", "no version"),
        (Form::ApkInstalled, b"V:1\n\n", "no name"),
    ] {
        let error = read_text(form, text).unwrap_err();
        let is_malformed = matches!(error, Error::Malformed { .. });
        assert!(is_malformed && error.to_string().contains(words), "{error}");
    }
}

#[test]
fn text_without_end_is_refused() {
    let long_line = [b"Package: ".as_slice(), &vec![b'a'; limits::LINE]].concat();
    let long_name = [b"Package: ".as_slice(), &vec![b'a'; limits::FIELD + 1]].concat();
    let many = "P:a\nV:1\n\n".repeat(limits::PACKAGES + 1);
    let much = format!("P:{}\nV:1\n\n", "a".repeat(limits::FIELD)).repeat(limits::KEPT / 512 + 1);
    for (form, content) in [
        (Form::DpkgStatus, long_line),
        (Form::DpkgStatus, long_name),
        (Form::ApkInstalled, many.into_bytes()),
        (Form::ApkInstalled, much.into_bytes()),
    ] {
        let error = read_text(form, &content).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
}

/// A database that rpm itself has made, and what rpm says is in it.
struct RpmDatabase {
    bytes: Vec<u8>,
    listed: Vec<String>,
}

async fn rpm_database() -> &'static RpmDatabase {
    static MADE: OnceCell<RpmDatabase> = OnceCell::const_new();
    let head =
        |name: &str, version: &str| format!("Name: {name}\nVersion: {version}\nRelease: 1.fc41");
    let epoch = format!("{}\nEpoch: 3", head("with-epoch", "1.0~rc1"));
    // Longer than a page, so that it goes on in others.
    let long = format!(
        "%changelog\n* Sat Jan 01 2022 A <a@b>\n- {}",
        "x".repeat(40_000)
    );
    let specs = [
        ("noarch", head("two-hyphens-in", "2.0^git1"), ""),
        ("x86_64", epoch, ""),
        ("aarch64", head("other", "5"), ""),
        ("noarch", head("long", "1"), &long),
    ];
    MADE.get_or_init(|| RpmDatabase::of(&specs)).await
}

impl RpmDatabase {
    /// Builds and installs packages: target, head and end of a spec file each.
    async fn of(specs: &[(&str, String, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let rest = "Summary: none\nLicense: none\n%description\nnone\n%files\n";
        for (index, (target, head, end)) in specs.iter().enumerate() {
            let spec = path(&format!("{index}.spec"));
            fs::write(&spec, format!("{head}\n{rest}{end}\n")).unwrap();
            let top = format!("_topdir {}", path("top").display());
            let to = format!("_rpmdir {}", path("built").display());
            let words = ["-bb", "--quiet", "--target", target];
            let define = ["--define", &top, "--define", &to];
            run(Command::new("rpmbuild").args(words).args(define).arg(&spec)).await;
        }
        let mut built = Vec::new();
        files_below(&path("built"), &mut built);
        assert_eq!(built.len(), specs.len());
        let root = path("root");
        fs::create_dir(&root).unwrap();
        let rpm = || {
            let mut command = Command::new("rpm");
            command.args([
                "--dbpath",
                "/rpm",
                "--define",
                "_db_backend sqlite",
                "--root",
            ]);
            command.arg(&root);
            command
        };
        run(rpm().arg("--initdb")).await;
        run(rpm()
            .args(["-i", "--justdb", "--nodeps", "--ignorearch"])
            .args(&built))
        .await;
        let format = "%{name} %{arch} %{evr} %{sha256header} %{sourcerpm}\n";
        let listed = run(rpm().args(["-qa", "--qf", format])).await;
        Self {
            bytes: fs::read(root.join("rpm/rpmdb.sqlite")).unwrap(),
            listed: listed.lines().map(str::to_owned).collect(),
        }
    }
}

async fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .await
        .expect("rpm and rpmbuild are installed");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {words}");
    String::from_utf8(output.stdout).unwrap()
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_below(&path, found),
            false => found.push(path),
        }
    }
}

#[tokio::test]
async fn rpm_lists_what_rpm_itself_lists() {
    let mut theirs = rpm_database().await.listed.clone();
    let mut ours: Vec<String> = read(Form::RpmSqlite, &file(&rpm_database().await.bytes))
        .unwrap()
        .iter()
        .map(|package| {
            let Package {
                name,
                arch,
                version,
                build,
                source,
                ..
            } = package;
            let (_, without_epoch) = version.split_once(':').unwrap_or(("", version));
            format!("{name} {arch} {version} {build} {source}-{without_epoch}.src.rpm")
        })
        .collect();
    theirs.sort();
    ours.sort();
    assert_eq!(ours, theirs);
    assert_eq!(ours.len(), 4);
}

#[tokio::test]
async fn a_damaged_rpm_database_is_an_error_and_never_more() {
    let whole = &rpm_database().await.bytes;
    assert!(read(Form::RpmSqlite, &file(whole)).is_ok());
    for length in [
        0,
        1,
        99,
        100,
        511,
        4096,
        whole.len() / 2,
        whole.len() - 4096,
    ] {
        let cut = read(Form::RpmSqlite, &file(&whole[..length]));
        assert!(
            matches!(cut, Err(Error::Malformed { .. })),
            "{length}: {cut:?}"
        );
    }
    // Bytes that mean something are in the first pages and at the ends of pages.
    let mut random = fastrand::Rng::with_seed(3);
    let mut errors = 0;
    for _ in 0..3000 {
        let mut damaged = whole.clone();
        for _ in 0..random.usize(1..8) {
            let page = random.usize(..damaged.len() / 4096) * 4096;
            let at = match random.u8(..3) {
                0 => page + random.usize(..16),
                1 => page + random.usize(..4096),
                _ => random.usize(..200),
            };
            damaged[at] = random.u8(..);
        }
        errors += usize::from(read(Form::RpmSqlite, &file(&damaged)).is_err());
    }
    assert!(errors > 300, "{errors}");
}

#[tokio::test]
async fn pages_that_lead_in_a_circle_end() {
    let mut database = rpm_database().await.bytes.clone();
    // The first page becomes an inner node whose only child is itself.
    database[100] = 5;
    database[103..105].copy_from_slice(&0_u16.to_be_bytes());
    database[108..112].copy_from_slice(&1_u32.to_be_bytes());
    let error = read(Form::RpmSqlite, &file(&database)).unwrap_err();
    assert!(error.to_string().contains("used twice"), "{error}");
}

#[test]
fn nonsense_is_refused_by_all() {
    let mut random = fastrand::Rng::with_seed(5);
    for form in [
        Form::DpkgStatus,
        Form::DpkgPart,
        Form::RpmSqlite,
        Form::ApkInstalled,
    ] {
        for _ in 0..200 {
            let length = random.usize(1..3000);
            let mut nonsense: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            nonsense[0] = b'!';
            assert!(read_text(form, &nonsense).is_err(), "{form:?}");
        }
    }
}
