//! The peer, ostree-ext's importer with skopeo; and the floors.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use osteward_tests::bench::floor::{Step, Task};
use osteward_tests::bench::report::Run;
use osteward_tests::bench::usage::measure;
use osteward_tests::bench::work_dir;
use osteward_tests::image::{Written, paths_below};
use osteward_tests::oracle::Image;
use osteward_tests::process::{command, run};
use tempfile::TempDir;

use crate::Bench;
use crate::disk::mount_point;

/// A repository of the peer's.
pub(crate) struct Theirs {
    dir: TempDir,
}

fn scratch() -> Result<TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("scratch-")
        .tempdir_in(mount_point(&work_dir()?))?)
}

impl Theirs {
    /// An empty repository, as hosts have it.
    pub(crate) fn new() -> Result<Self> {
        let theirs = Self { dir: scratch()? };
        run(command(["ostree", "init", "--mode=bare", "--repo"]).arg(theirs.repo()))?;
        // The default is a share of the whole disk, here of whoever builds.
        let repo = format!("--repo={}", theirs.repo().display());
        run(&mut command([
            "ostree",
            &repo,
            "config",
            "set",
            "core.min-free-space-percent",
            "0",
        ]))?;
        Ok(theirs)
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// A second one with the same content.
    pub(crate) fn copy(&self) -> Result<Self> {
        let copy = Self { dir: scratch()? };
        run(command(["cp", "-a", "--link", "--"]).args([self.repo(), copy.repo()]))?;
        Ok(copy)
    }

    /// Imports, and measures that; returns the checksums of the root as well.
    pub(crate) fn import(&self, bench: &Bench, reference: &str) -> Result<(Run, (String, String))> {
        let source = format!("docker://{reference}");
        let mut import = command([&bench.peer]);
        import
            .arg("import")
            .arg(self.repo())
            .args([&source, "--as", &source]);
        let before = bench.before()?;
        let (answer, usage) = measure(&mut import)?;
        let run = bench.since(before, usage)?;
        let image: Image =
            serde_json::from_str(&answer).with_context(|| format!("not understood: {answer}"))?;
        Ok((run, (image.root_contents, image.root_metadata)))
    }

    /// Fails unless the repository has all these objects.
    pub(crate) fn has_all(&self, objects: &Path) -> Result<()> {
        for (path, meta) in paths_below(objects, |_| true)? {
            let object = self.repo().join("objects").join(&path);
            ensure!(
                meta.is_dir() || object.symlink_metadata().is_ok(),
                "the floor wrote {path}, which ostree-ext did not"
            );
        }
        Ok(())
    }
}

/// Where floors write.
pub(crate) struct Floor {
    dir: TempDir,
}

impl Floor {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { dir: scratch()? })
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    /// Does as much with these layers, in a process of its own, and measures that.
    pub(crate) fn measure(
        &self,
        bench: &Bench,
        step: Step,
        set: &str,
        layers: &[String],
    ) -> Result<Run> {
        let task = Task {
            step,
            repository: format!("{}/bench/{set}", bench.shelf.registry.host()),
            layers: layers.to_vec(),
            objects: self.objects(),
        };
        let file = self.dir.path().join("task");
        serde_json::to_writer(File::create(&file)?, &task)?;
        let mut program = command([std::env::current_exe()?]);
        program.arg("--floor").arg(file);
        let before = bench.before()?;
        let (_, usage) = measure(&mut program)?;
        bench.since(before, usage)
    }
}

/// The layers of `next` that `first` has not, the biggest first.
pub(crate) fn new_layers(
    first: Option<&Written>,
    next: &Written,
    size: impl Fn(&str) -> u64,
) -> Vec<String> {
    let known = |layer: &&String| first.is_none_or(|first| !first.layers.contains(layer));
    let mut layers: Vec<String> = next.layers.iter().filter(known).cloned().collect();
    layers.sort_by_key(|layer| std::cmp::Reverse(size(layer)));
    layers
}
