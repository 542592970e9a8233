//! The harness proves itself: without this, no other test means anything.

#[cfg(test)]
mod harness {
    use std::fs;
    use std::io::Read;
    use std::process::Stdio;

    use anyhow::{Context, Result, ensure};
    use osteward_tests::image::{Compression, Image, Layer, Layout, os_tree};
    use osteward_tests::oracle;
    use osteward_tests::process::{command, run};
    use osteward_tests::registry::Registry;
    use osteward_tests::sandbox::{FirstDeployment, Options, Sandbox, UNPRIVILEGED_UID, refs};

    const ORIGIN: &str = "ostree-unverified-registry:registry.test/os:latest";

    #[test]
    fn libostree_takes_the_sandbox_for_booted() -> Result<()> {
        let mut sandbox = Sandbox::tiny(ORIGIN)?;
        let first = sandbox.booted()?;
        assert_eq!(sandbox.deployments()?, std::slice::from_ref(&first));
        sandbox.run(["sh", "-c", "echo mine >/etc/mine; echo kept >/var/kept"])?;

        let tree = sandbox.inside("/")?.join("tree");
        ensure!(
            fs::create_dir(tree).is_err(),
            "the deployment's root must be immutable"
        );
        let second = commit_next(&sandbox)?;
        sandbox.run([
            "ostree",
            "admin",
            "deploy",
            "--stage",
            "--os=default",
            &second,
        ])?;
        let deployments = sandbox.deployments()?;
        assert!(
            deployments[0].staged && deployments[0].checksum == second,
            "{deployments:?}"
        );
        assert_eq!(sandbox.booted()?, first);

        sandbox.reboot()?;
        assert_eq!(sandbox.booted()?.checksum, second);
        let deployments = sandbox.deployments()?;
        assert!(deployments[1].rollback && deployments[1].checksum == first.checksum);
        assert_eq!(
            sandbox.run(["cat", "/etc/mine", "/var/kept"])?,
            "mine\nkept\n"
        );
        sandbox.fsck()
    }

    #[test]
    fn a_power_cut_loses_what_was_staged() -> Result<()> {
        let mut sandbox = Sandbox::tiny(ORIGIN)?;
        let first = sandbox.booted()?;
        let second = commit_next(&sandbox)?;
        sandbox.run([
            "ostree",
            "admin",
            "deploy",
            "--stage",
            "--os=default",
            &second,
        ])?;
        sandbox.power_cut()?;
        assert_eq!(sandbox.booted()?.checksum, first.checksum);
        Ok(())
    }

    /// Commits a tree that differs from the booted one by a file.
    fn commit_next(sandbox: &Sandbox) -> Result<String> {
        let tar = sandbox.share().join("next.tar");
        let layer = Layer::new().dir("usr").file("usr/next", "new\n");
        layer.write_tar(&mut fs::File::create(&tar)?)?;
        let base = format!("--tree=ref={}", sandbox.booted()?.checksum);
        let upper = format!("--tree=tar={}", tar.display());
        let commit = sandbox.ostree(["commit", "--orphan", "--no-bindings", &base, &upper])?;
        Ok(commit.trim().to_owned())
    }

    #[test]
    fn commands_run_as_other_users() -> Result<()> {
        let sandbox = Sandbox::tiny(ORIGIN)?;
        let mut id = sandbox.command_as(UNPRIVILEGED_UID, ["id", "-un"])?;
        assert_eq!(run(&mut id)?, "nobody\n");
        let mut touch = sandbox.command_as(UNPRIVILEGED_UID, ["touch", "/var/x"])?;
        assert!(run(&mut touch).is_err());
        Ok(())
    }

    #[test]
    fn nothing_is_left_behind() -> Result<()> {
        let before = fs::read_to_string("/proc/self/mounts")?;
        let sandbox = Sandbox::tiny(ORIGIN)?;
        let places = [
            sandbox.sysroot().to_owned(),
            sandbox.meet().to_owned(),
            sandbox.share(),
        ];
        assert_eq!(fs::read_to_string("/proc/self/mounts")?, before);
        let words = ["sh", "-c", "echo up; exec sleep infinity"];
        let mut shell = sandbox.command(words)?.stdout(Stdio::piped()).spawn()?;
        let mut up = [0; 3];
        shell
            .stdout
            .take()
            .context("no output")?
            .read_exact(&mut up)?;
        drop(sandbox);
        for place in places {
            assert!(!place.exists(), "{}", place.display());
        }
        assert!(!shell.wait()?.success(), "a process outlived its sandbox");
        assert_eq!(fs::read_to_string("/proc/self/mounts")?, before);
        Ok(())
    }

    #[test]
    fn an_image_goes_through_the_registry_unchanged() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = Layout::create(dir.path().join("oci"))?;
        let layer = Layer::new()
            .dir("usr")
            .file("usr/x", "x")
            .compressed(Compression::Zstd);
        let image = Image::new("1").layer(os_tree("1")).layer(layer);
        let amd64 = image.clone().write(&layout)?;
        let other = image.architecture("riscv64").write(&layout)?;
        let index = layout.tag_platforms("both", &[&amd64, &other])?;
        let registry = Registry::start()?;
        layout.push("both", &registry.name("os:both"))?;
        let name = format!("docker://{}", registry.name("os:both"));
        let words = ["skopeo", "inspect", "--tls-verify=false", "--raw", &name];
        let raw = run(&mut command(words))?;
        let path = dir.path().join("raw");
        fs::write(&path, raw)?;
        let digest = osteward_tests::image::sha256_of_file(&path)?;
        assert_eq!(format!("sha256:{digest}"), index);
        registry.corrupt(&amd64.layers[0])
    }

    /// A repository, and a layout whose image `base` is an encapsulated ostree commit.
    fn oracle_base(dir: &std::path::Path) -> Result<(std::path::PathBuf, Layout)> {
        let layout = Layout::create(dir.join("oci"))?;
        oracle::write_base(dir, &layout, "base")?;
        let repo = dir.join("repo");
        run(command(["ostree", "init", "--mode=bare", "--repo"]).arg(&repo))?;
        Ok((repo, layout))
    }

    #[test]
    fn the_oracle_imports_an_image() -> Result<()> {
        let dir = tempfile::tempdir_in(osteward_tests::process::target_dir()?)?;
        let (repo, layout) = oracle_base(dir.path())?;
        let base = layout.find("base")?;
        let image = Image::new("7").on(&base).layer(os_tree("7"));
        let image = image
            .layer(Layer::new().whiteout("etc/motd"))
            .write_as(&layout, "os")?;
        let source = format!("oci:{}:os", layout.path.display());
        let imported = oracle::import(&repo, &source)?;
        assert_eq!(imported.manifest_digest, image.digest);
        assert_eq!(imported.version.as_deref(), Some("7"));
        assert_eq!(oracle::query(&repo, &source)?.as_ref(), Some(&imported));
        assert_eq!(oracle::query(&repo, "docker://registry.test/none")?, None);
        assert_eq!(oracle::list(&repo)?, [source]);
        assert_eq!(oracle::collect_layers(&repo)?, 0);
        let ls = |path: &str| {
            let repo = format!("--repo={}", repo.display());
            run(&mut command([
                "ostree",
                "ls",
                &repo,
                &imported.merge_commit,
                path,
            ]))
        };
        ls("/usr/etc/fstab")?;
        ensure!(ls("/usr/etc/motd").is_err(), "the whiteout had no effect");
        Ok(())
    }

    #[test]
    fn a_sandbox_starts_from_an_image_as_bootc_would_have_it() -> Result<()> {
        let origin = "ostree-unverified-image:oci:/run/share/oci:latest";
        let sandbox = Sandbox::install_with(|share| {
            let layout = Layout::create(share.join("oci"))?;
            oracle::write_base(share, &layout, "base")?;
            let base = layout.find("base")?;
            Image::new("1")
                .on(&base)
                .layer(os_tree("1"))
                .write_as(&layout, "latest")?;
            let source = format!("oci:{}:latest", layout.path.display());
            let import = move |repo: &std::path::Path| {
                Ok(oracle::import_as(repo, &source, "oci:/run/share/oci:latest")?.merge_commit)
            };
            let first = FirstDeployment::Import(Box::new(import));
            Ok(Options {
                first,
                origin: origin.into(),
            })
        })?;
        let source = refs::source_of_origin(origin);
        let image = oracle::query(&sandbox.repo(), &source)?;
        assert_eq!(
            image.map(|image| image.merge_commit),
            Some(sandbox.booted()?.checksum)
        );
        assert_eq!(oracle::prune(sandbox.sysroot())?, (0, 0));
        Ok(())
    }

    #[test]
    fn the_harness_writes_images_that_the_oracle_accepts() -> Result<()> {
        let origin = "ostree-unverified-registry:registry.test/os:1";
        let sandbox = Sandbox::install_with(|share| {
            let layout = Layout::create(share.join("oci"))?;
            let upper = Layer::new()
                .dir("etc")
                .file("etc/motd", "2\n")
                .whiteout("etc/fstab");
            let image = Image::new("1").layer(os_tree("1")).layer(upper);
            image.write_as(&layout, "1")?;
            let layout: &'static Layout = Box::leak(Box::new(layout));
            Ok(Options {
                first: FirstDeployment::Image(layout, "1"),
                origin: origin.into(),
            })
        })?;
        let source = refs::source_of_origin(origin);
        let image = oracle::query(&sandbox.repo(), &source)?;
        assert_eq!(
            image.map(|image| image.merge_commit),
            Some(sandbox.booted()?.checksum)
        );
        assert_eq!(sandbox.run(["cat", "/etc/motd"])?, "2\n");
        assert!(!sandbox.exists("/etc/fstab"));
        assert_eq!(oracle::prune(sandbox.sysroot())?, (0, 0));
        Ok(())
    }
}
