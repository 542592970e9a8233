//! Notices changes that other tools make.
//!
//! Owns the inotify watches on what libostree, bootc and rpm-ostree touch when they
//! change a deployment: the mtime of `/ostree/deploy`, the files in `/run/ostree`, and
//! bootc's `/ostree/bootc`. Invariant: it only says *that* something changed; a burst
//! becomes one notice.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::mpsc;

/// A finalization or a `bootc upgrade` touches several paths within this time.
const SETTLE: Duration = Duration::from_millis(50);

/// Sends one notice for each burst of changes below `root` until the receiver is gone.
/// Paths that do not exist are looked for again whenever another one changes.
pub async fn watch(root: PathBuf, notices: mpsc::Sender<()>) -> std::io::Result<()> {
    // libostree makes it when it first needs it; a watch needs it now.
    if let Err(error) = std::fs::create_dir_all(root.join("run/ostree")) {
        tracing::debug!(%error, "cannot make /run/ostree");
    }
    let inotify = Inotify::init()?;
    let mut watches = inotify.watches();
    let names = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM;
    let all = names | WatchMask::ATTRIB | WatchMask::CLOSE_WRITE;
    // `ostree` itself only for `bootc` to appear in it: its lock file is written often.
    let paths = [
        ("ostree/deploy", all),
        ("run/ostree", all),
        ("ostree/bootc", all),
        ("ostree", names),
    ];
    // Adding a watch again changes nothing, and finds a directory that was made anew.
    let mut place = || {
        for (path, mask) in paths {
            if let Err(error) = watches.add(root.join(path), mask) {
                tracing::debug!(%error, path, "not watched (yet)");
            }
        }
    };
    place();
    // What changed before the watches were there.
    if notices.send(()).await.is_err() {
        return Ok(());
    }
    let mut stream = inotify.into_event_stream([0; 4096])?;
    while let Some(event) = stream.next().await {
        event?;
        // Whatever else arrives while it settles belongs to the same notice.
        let settled = tokio::time::sleep(SETTLE);
        tokio::pin!(settled);
        loop {
            tokio::select! {
                () = &mut settled => break,
                next = stream.next() => match next {
                    Some(event) => { event?; }
                    None => return Ok(()),
                },
            }
        }
        place();
        if notices.send(()).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_that_appears_later_is_watched_too() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("ostree/deploy")).unwrap();
        let (notices, mut seen) = mpsc::channel(1);
        let watcher = tokio::spawn(watch(root.path().to_owned(), notices));
        // The watch may not be placed yet: change until the first notice arrives.
        let late = root.path().join("ostree/bootc");
        loop {
            let _ = std::fs::remove_dir(&late);
            std::fs::create_dir(&late).unwrap();
            if tokio::time::timeout(Duration::from_millis(500), seen.recv())
                .await
                .is_ok()
            {
                break;
            }
        }
        while tokio::time::timeout(4 * SETTLE, seen.recv()).await.is_ok() {}
        std::fs::write(late.join("changed"), "x").unwrap();
        tokio::time::timeout(Duration::from_secs(5), seen.recv())
            .await
            .unwrap()
            .unwrap();
        watcher.abort();
    }
}
