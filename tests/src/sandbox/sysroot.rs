//! The resting half of a sandbox: a physical sysroot on disk, its first deployment, and what
//! the boot loader would read from it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::refs::{blob_ref, image_ref, source_of_origin};
use super::{FirstDeployment, Options, STATEROOT};
use crate::image::{Layout, open_tar, os_tree};
use crate::process::{command, run};

/// A sysroot directory as `bootc install` leaves it.
#[derive(Debug)]
pub(super) struct Sysroot {
    pub(super) path: PathBuf,
}

impl Sysroot {
    /// Makes a sysroot at `path` with one deployment.
    ///
    /// # Errors
    /// When ostree refuses; or the file system lacks what ostree needs.
    pub(super) fn install(path: &Path, options: &Options<'_>) -> Result<Self> {
        let sysroot = Self {
            path: path.to_owned(),
        };
        fs::create_dir_all(path)?;
        sysroot.ostree(["admin", "init-fs", "--modern"], [path])?;
        for (key, value) in [
            ("sysroot.bootloader", "none"),
            ("sysroot.bootprefix", "true"),
            ("sysroot.readonly", "true"),
            // The default is a share of the whole disk, here of whoever builds: it may be gone
            // long before the disk is full.
            ("core.min-free-space-percent", "0"),
        ] {
            sysroot.repo(["config", "set", key, value])?;
        }
        sysroot.admin(["os-init", STATEROOT])?;
        let commit = match &options.first {
            FirstDeployment::Tree(version) => sysroot.commit_tree(version)?,
            FirstDeployment::Image(layout, tag) => {
                sysroot.commit_image(layout, tag, &options.origin)?
            }
            FirstDeployment::Import(import) => import(&sysroot.repo_path())?,
        };
        sysroot.deploy(&commit, &options.origin)?;
        Ok(sysroot)
    }

    /// The repository of the sysroot.
    pub(super) fn repo_path(&self) -> PathBuf {
        self.path.join("ostree/repo")
    }

    fn ostree<S: AsRef<OsStr>, P: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
        paths: impl IntoIterator<Item = P>,
    ) -> Result<String> {
        run(command(["ostree"]).args(words).args(paths))
    }

    /// Runs `ostree --repo=…` with these words.
    pub(super) fn repo<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        self.ostree(words, [format!("--repo={}", self.repo_path().display())])
    }

    fn admin<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        let sysroot = format!("--sysroot={}", self.path.display());
        run(command(["ostree", "admin", &sysroot]).args(words))
    }

    fn deploy(&self, commit: &str, origin: &str) -> Result<()> {
        let file = self.path.join("origin");
        fs::write(
            &file,
            format!("[origin]\ncontainer-image-reference={origin}\n"),
        )?;
        let os = format!("--os={STATEROOT}");
        let origin = format!("--origin-file={}", file.display());
        let kargs = ["--karg=root=LABEL=test", "--karg=rw"];
        self.admin(["deploy", &os, &origin, kargs[0], kargs[1], commit])?;
        fs::remove_file(file).context("removing the origin template")
    }

    fn commit_tree(&self, version: &str) -> Result<String> {
        let tar = self.path.join("tree.tar");
        os_tree(version).write_tar(&mut fs::File::create(&tar)?)?;
        let commit = self.commit_tar(&tar, &["--orphan"])?;
        fs::remove_file(tar)?;
        Ok(commit)
    }

    /// Commits a tar with `/etc` where ostree wants it.
    fn commit_tar(&self, tar: &Path, options: &[&str]) -> Result<String> {
        let tree = format!("--tree=tar={}", tar.display());
        let mut words = vec!["commit", "--no-bindings", "--tar-autocreate-parents", &tree];
        words.push("--tar-pathname-filter=^etc(/|$),usr/etc\\1");
        words.extend(options);
        Ok(self.repo(words)?.trim().to_owned())
    }

    /// Writes an image into the repository as bootc hosts hold it: a commit a layer, a merge
    /// commit that carries the manifest, and their refs. Only plain paths and whiteouts: what
    /// a first deployment needs, not an importer.
    fn commit_image(&self, layout: &Layout, tag: &str, origin: &str) -> Result<String> {
        let image = layout.find(tag)?;
        let merged = self.path.join("merged");
        for digest in &image.layers {
            let tar = self.path.join("layer.tar");
            unpack(&layout.blob(digest), &tar)?;
            let branch = format!("--branch={}", blob_ref(digest));
            let commit = self.commit_tar(&tar, &[&branch])?;
            let checkout = ["checkout", "--union", "--whiteouts", "-H", &commit];
            self.ostree(
                checkout,
                [
                    merged.as_os_str(),
                    format!("--repo={}", self.repo_path().display()).as_ref(),
                ],
            )?;
            fs::remove_file(tar)?;
        }
        let compact = |digest: &str| anyhow::Ok(layout.json(digest)?.to_string());
        let metadata = [
            format!("ostree.manifest-digest={}", image.digest),
            format!("ostree.manifest={}", compact(&image.digest)?),
            format!(
                "ostree.container.image-config={}",
                compact(&image.config_digest)?
            ),
            "ostree.importer.version=osteward-tests".to_owned(),
        ]
        .map(|pair| format!("--add-metadata-string={pair}"));
        let branch = format!("--branch={}", image_ref(&source_of_origin(origin)));
        let tree = format!("--tree=dir={}", merged.display());
        let mut words = vec!["commit", "--no-bindings", &branch, &tree];
        words.extend(metadata.iter().map(String::as_str));
        let commit = self.repo(words)?.trim().to_owned();
        fs::remove_dir_all(merged).context("removing the merged tree")?;
        Ok(commit)
    }

    /// The deployment that a boot loader would start: that of the entry with the highest version.
    ///
    /// # Errors
    /// When there are no entries, or the entry names nothing.
    pub(super) fn default_deployment(&self) -> Result<PathBuf> {
        let mut best: Option<(u32, String)> = None;
        for entry in fs::read_dir(self.path.join("boot/loader/entries"))? {
            let text = fs::read_to_string(entry?.path())?;
            let field = |key: &str| {
                let mut lines = text.lines();
                lines
                    .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
                    .map(str::to_owned)
            };
            let version = field("version")
                .and_then(|v| v.trim().parse().ok())
                .unwrap_or(0);
            let options = field("options").unwrap_or_default();
            if best.as_ref().is_none_or(|(highest, _)| version > *highest) {
                best = Some((version, options));
            }
        }
        let (_, options) = best.context("no boot entries")?;
        let link = options
            .split_whitespace()
            .find_map(|karg| karg.strip_prefix("ostree="))
            .context("the default boot entry has no ostree=")?;
        let link = self.path.join(link.trim_start_matches('/'));
        fs::canonicalize(&link).with_context(|| format!("the boot entry's {}", link.display()))
    }

    /// Removes the sysroot, immutable deployments included.
    ///
    /// # Errors
    /// When something is left.
    pub(super) fn remove(&self) -> Result<()> {
        let stateroots = self.path.join("ostree/deploy");
        if stateroots.exists() {
            for stateroot in fs::read_dir(stateroots)? {
                for deployment in fs::read_dir(stateroot?.path().join("deploy"))? {
                    let path = deployment?.path();
                    if path.is_dir() {
                        run(command(["chattr", "-i"]).arg(&path))?;
                    }
                }
            }
        }
        fs::remove_dir_all(&self.path).context("removing the sysroot")?;
        ensure!(
            !self.path.exists(),
            "{} is still there",
            self.path.display()
        );
        Ok(())
    }
}

/// Decompresses a layer blob.
fn unpack(blob: &Path, tar: &Path) -> Result<()> {
    std::io::copy(&mut open_tar(blob)?, &mut fs::File::create(tar)?)?;
    Ok(())
}
