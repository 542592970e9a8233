//! Small files of a commit, and the links on the way to them.

use super::commit_files::CommitFiles;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn links_are_followed_inside_the_commit_and_never_out_of_it() {
    let tar = Tar::new()
        .file("usr/share/units/a", "a")
        .file("etc/units/b", "b")
        .symlink("usr/links", "share/units")
        .symlink("usr/d/relative", "../share/units/a")
        .symlink("usr/d/absolute", "/usr/links/a")
        .symlink("usr/d/above", "../../../../usr/share/units/a")
        .symlink("usr/d/configured", "/etc/units/b")
        .symlink("usr/d/circle", "circle")
        .symlink("usr/d/outside", "/proc/self/environ")
        .symlink("usr/d/directory", "/usr/share");
    let mut host = Host::new();
    let test = TestImage::default().layer(Compression::Gzip, tar);
    let commit = host.import(&test).await.unwrap().commit;
    let (repo, cancellable) = (host.repo(), gio::Cancellable::new());
    let files = CommitFiles::as_host(&repo, &commit, &cancellable).unwrap();
    for (path, content) in [
        ("usr/d/relative", Some("a")),
        ("usr/d/absolute", Some("a")),
        ("usr/d/above", Some("a")),
        ("usr/d/configured", Some("b")),
        ("etc/units/b", Some("b")),
        ("usr/d/circle", None),
        ("usr/d/outside", None),
        ("usr/d/directory", None),
        ("usr/d/none", None),
        ("usr/share/units/a/beneath", None),
    ] {
        assert_eq!(files.text(path).unwrap().as_deref(), content, "{path}");
    }
    let names = files.names("usr/links").unwrap();
    assert_eq!(names, Some(vec![("a".to_owned(), false)]));
    let names = files.names("usr").unwrap().unwrap();
    assert!(names.contains(&("links".to_owned(), true)), "{names:?}");
    assert_eq!(files.names("usr/none").unwrap(), None);
    assert_eq!(files.names("usr/share/units/a").unwrap(), None);
    // The commit itself has its /etc where ostree keeps it.
    let files = CommitFiles::open(&repo, &commit, &cancellable).unwrap();
    assert_eq!(files.text("etc/units/b").unwrap(), None);
    assert_eq!(files.text("usr/etc/units/b").unwrap().as_deref(), Some("b"));
}
