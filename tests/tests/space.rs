//! Disks that are full, at every point of an upgrade, and a disk that nobody can write to: told
//! by name and with numbers, and nothing is lost.

#[cfg(test)]
mod space {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use anyhow::{Context, Result, ensure};
    use osteward_dbus::options::UpgradeOptions;
    use osteward_tests::client;
    use osteward_tests::host::Host;
    use osteward_tests::image::{Layer, Written, os_tree};
    use osteward_tests::job::{Ended, Listener};
    use osteward_tests::process::{command, run, target_dir};
    use osteward_tests::small_disk::{Ballast, SmallDisk, free, outside};

    const DISK: u64 = 256 << 20;
    const BOOT: u64 = 8 << 20;
    const KERNEL: u64 = 3 << 20;
    const MODULES: &str = "usr/lib/modules/6.1.0-osteward";

    fn layer(name: &str) -> Layer {
        let path = format!("usr/share/{name}");
        Layer::new().dir("usr").dir("usr/share").file(&path, name)
    }

    /// Another kernel, of which gzip leaves nothing to download.
    fn kernel(fill: u8) -> Layer {
        let path = format!("{MODULES}/vmlinuz");
        let content = vec![fill; usize::try_from(KERNEL).unwrap_or_default()];
        Layer::new().file(&path, content)
    }

    /// Version 2 runs, version 1 is what it can go back to.
    async fn settled() -> Result<Host> {
        let mut host = Host::boot()?;
        host.publish(&host.next_image("2", [os_tree("2"), kernel(2)]))?;
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        Ok(host)
    }

    fn boot(host: &Host) -> PathBuf {
        host.sandbox.sysroot().join("boot")
    }

    /// Gives `/boot` a file system of its own, as after a reboot.
    fn with_small_boot(host: &mut Host) -> Result<SmallDisk> {
        let daemon = host.daemon.take().context("the daemon does not run")?;
        ensure!(daemon.stop()?.success(), "the daemon did not end well");
        let small = SmallDisk::over(&boot(host), BOOT)?;
        host.sandbox.power_cut()?;
        host.start_daemon()?;
        Ok(small)
    }

    /// Fails unless the job ended for want of space, with numbers that make sense; returns
    /// where.
    fn no_space(ended: Ended) -> Result<(String, u64)> {
        let ended = ended.failed("NoSpace")?;
        let (need, have) = (ended.value::<u64>("need")?, ended.value::<u64>("have")?);
        ensure!(need > have, "{need} of {have}: {ended:?}");
        ensure!(ended.error_message.contains("free some"), "{ended:?}");
        Ok((ended.value("where")?, need))
    }

    async fn rollback(host: &Host) -> Result<Ended> {
        let connection = host.connect().await?;
        let mut listener = Listener::new(&connection).await?;
        let proxy = Host::proxy(&connection).await?;
        let job = proxy.rollback(&Default::default()).await?;
        listener.end(&job).await
    }

    #[tokio::test]
    async fn a_boot_that_is_too_small_is_told_before_the_download() -> Result<()> {
        if outside(
            "space::a_boot_that_is_too_small_is_told_before_the_download",
            DISK,
        )? {
            return Ok(());
        }
        let mut host = settled().await?;
        let _boot = with_small_boot(&mut host)?;
        let before = host.sandbox.deployments()?;
        let layers = host.sandbox.refs("ostree/container/blob/")?;
        let image = |version: &str| {
            let image = host.next_image(version, [os_tree(version), kernel(3)]);
            image.label("ostree.linux", "6.2.0")
        };
        host.publish(&image("3"))?;
        let full = Ballast::leaving(&boot(&host), KERNEL / 2)?;
        let (place, need) = no_space(host.upgrade().await?)?;
        assert_eq!(place, "/boot");
        assert!(need >= KERNEL, "{need}");
        assert_eq!(host.sandbox.refs("ostree/container/blob/")?, layers);
        // A kernel that is here already needs no room, whatever else is new.
        let same = host.next_image("4", [os_tree("2"), kernel(2), layer("four")]);
        let same = host.publish(&same.label("ostree.linux", "6.1.0-osteward"))?;
        let ended = host.upgrade().await?.succeeded()?;
        assert_eq!(ended.value::<String>("digest")?, same.digest);
        client::ask(&host.sandbox, &host.bus, &["discard", "staged"])?.expect(&[0])?;
        drop(full);
        host.publish(&image("5"))?;
        host.upgrade().await?.succeeded()?;
        assert_eq!(host.sandbox.deployments()?[1..], before);
        Ok(())
    }

    #[tokio::test]
    async fn a_kernel_that_nobody_announced_is_measured_before_it_is_staged() -> Result<()> {
        let name = "space::a_kernel_that_nobody_announced_is_measured_before_it_is_staged";
        if outside(name, DISK)? {
            return Ok(());
        }
        let mut host = settled().await?;
        let _boot = with_small_boot(&mut host)?;
        let staged: Written = host.publish(&host.next_image("3", [os_tree("2"), kernel(2)]))?;
        host.upgrade().await?.succeeded()?;
        let before = host.sandbox.deployments()?;
        host.publish(&host.next_image("4", [os_tree("4"), kernel(4)]))?;
        let full = Ballast::leaving(&boot(&host), KERNEL / 2)?;
        let replace = UpgradeOptions {
            replace_staged: Some(true),
            ..Default::default()
        };
        let (place, need) = no_space(host.upgrade_with(&replace).await?)?;
        assert_eq!(place, "/boot");
        assert!(need >= KERNEL, "{need}");
        assert_eq!(
            host.sandbox.deployments()?,
            before,
            "{staged:?} is not lost"
        );
        drop(full);
        let ended = host.upgrade_with(&replace).await?.succeeded()?;
        assert_eq!(ended.value::<u64>("fetched-bytes")?, 0, "it was kept");
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_boot_that_is_full_stops_a_rollback_and_a_finalization_and_nothing_else() -> Result<()>
    {
        let name =
            "space::a_boot_that_is_full_stops_a_rollback_and_a_finalization_and_nothing_else";
        if outside(name, DISK)? {
            return Ok(());
        }
        let mut host = settled().await?;
        let _boot = with_small_boot(&mut host)?;
        let booted = host.sandbox.booted()?;
        let before = host.sandbox.deployments()?;
        let full = Ballast::leaving(&boot(&host), 0)?;
        let (place, _) = no_space(rollback(&host).await?)?;
        assert_eq!(place, "/boot");
        assert_eq!(host.sandbox.deployments()?, before);
        drop(full);

        host.publish(&host.next_image("3", [os_tree("3"), kernel(3)]))?;
        host.upgrade().await?.succeeded()?;
        // Somebody fills it after the update was staged.
        let full = Ballast::leaving(&boot(&host), KERNEL / 2)?;
        let daemon = host.daemon.take().context("the daemon does not run")?;
        ensure!(daemon.stop()?.success(), "the daemon did not end well");
        let words = ["ostree", "admin", "finalize-staged"];
        ensure!(!host.sandbox.succeeds(words)?, "it fitted after all");
        host.sandbox.power_cut()?;
        host.start_daemon()?;
        assert_eq!(host.sandbox.booted()?, booted);
        let last = client::ask(&host.sandbox, &host.bus, &["status"])?.expect(&[0])?;
        assert!(last.stdout.contains("Finalize: failed"), "{last:?}");
        drop(full);
        host.upgrade().await?.succeeded()?;
        host.reboot()?;
        assert_ne!(host.sandbox.booted()?.checksum, booted.checksum);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_full_disk_stops_an_upgrade_at_every_phase_and_loses_nothing() -> Result<()> {
        let name = "space::a_full_disk_stops_an_upgrade_at_every_phase_and_loses_nothing";
        if outside(name, DISK)? {
            return Ok(());
        }
        const STEP: u64 = 40 << 10;
        let host = settled().await?;
        // libostree's reserve would stop the import long before the end of the disk.
        let reserve = ["config", "set", "core.min-free-space-percent", "0"];
        host.sandbox.ostree(reserve)?;
        let before = host.sandbox.deployments()?;
        let disk = target_dir()?.join("sandbox");
        let zeros = Layer::new()
            .dir("usr")
            .file("usr/zeros", vec![0; 400 << 10]);
        // Two layers fill the same directories, of thirty kinds each; the merge writes as many
        // as there are pairs of them. That takes more than any layer, so that whichever layer
        // comes last, the room that let it in is too small for the merge.
        let half = || Layer::new().dir("usr").dir("usr/many");
        let (mut left_half, mut right_half) = (half(), half());
        for number in 0..900 {
            let directory = format!("usr/many/{number}");
            let file = |side: &str, kind: u32| format!("{directory}/{side}-{kind}");
            left_half = left_half
                .dir(&directory)
                .file(&file("left", number % 30), "left");
            right_half = right_half
                .dir(&directory)
                .file(&file("right", number / 30), "right");
        }
        // One object as long as it is in the repository, and all of them in a deployment.
        let mut empty = Layer::new().dir("usr").dir("usr/empty");
        for number in 0..600 {
            empty = empty.dir(&format!("usr/empty/{number}"));
        }
        let layers = [os_tree("3"), zeros, left_half, right_half, empty];
        let image = host.publish(&host.next_image("3", layers))?;
        let mut phases = BTreeSet::new();
        let mut left = 0;
        let ended = loop {
            let full = Ballast::leaving(&disk, left)?;
            let ended = host.upgrade().await?;
            drop(full);
            if ended.state == "succeeded" {
                break ended;
            }
            phases.extend(ended.phases.last().cloned());
            no_space(ended)?;
            assert_eq!(host.sandbox.deployments()?, before, "{left} bytes left");
            left += STEP;
            ensure!(left < 4 << 20, "it never fits; stopped in {phases:?}");
        };
        assert_eq!(ended.value::<String>("digest")?, image.digest);
        println!("stopped in {phases:?}, went through with {left} bytes");
        for phase in ["downloading", "merging", "staging"] {
            assert!(
                phases.contains(phase),
                "never stopped in {phase}: {phases:?}"
            );
        }
        assert_eq!(host.sandbox.deployments()?[1..], before);
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_full_disk_can_be_cleaned_up() -> Result<()> {
        if outside("space::a_full_disk_can_be_cleaned_up", DISK)? {
            return Ok(());
        }
        let host = settled().await?;
        let big = Layer::new().dir("usr").file("usr/big", vec![7; 8 << 20]);
        host.publish(&host.next_image("3", [layer("third"), big]))?;
        let ask = |words: &[&str]| client::ask(&host.sandbox, &host.bus, words)?.expect(&[0]);
        ask(&["download"])?;
        let disk = target_dir()?.join("sandbox");
        let full = Ballast::leaving(&disk, 0)?;
        ask(&["status"])?;
        ask(&["discard", "cache", "unreferenced"])?;
        assert!(free(&disk)? > 7 << 20, "{}", free(&disk)?);
        drop(full);
        host.upgrade().await?.succeeded()?;
        host.sandbox.fsck()
    }

    #[tokio::test]
    async fn a_disk_that_cannot_be_written_is_told_by_name() -> Result<()> {
        if outside("space::a_disk_that_cannot_be_written_is_told_by_name", DISK)? {
            return Ok(());
        }
        let mut host = settled().await?;
        host.publish(&host.next_image("3", [layer("third")]))?;
        host.upgrade().await?.succeeded()?;
        host.publish(&host.next_image("4", [layer("fourth")]))?;
        client::ask(&host.sandbox, &host.bus, &["download"])?.expect(&[0])?;
        let before = host.sandbox.deployments()?;
        host.kill_daemon()?;
        host.registry.stop();
        let disk = target_dir()?.join("sandbox");
        let device = run(command(["findmnt", "-n", "-o", "SOURCE", "--target"]).arg(&disk))?;
        let device = device.trim();
        run(command(["mount", "-o", "remount,ro"]).arg(&disk))?;
        run(&mut command(["blockdev", "--setro", device]))?;

        host.start_daemon()?;
        let lines: [&[&str]; 8] = [
            &["upgrade", "--from-cache"],
            &["switch", "oci:/run/share/oci:latest", "--replace-staged"],
            &["rollback", "--discard-staged"],
            &["discard", "staged"],
            &["discard", "cache"],
            &["pin", "booted"],
            &["remove", "rollback"],
            &["lock"],
        ];
        for line in lines {
            let answer = client::ask(&host.sandbox, &host.bus, line)?.expect(&[1])?;
            let named = answer
                .stderr
                .contains("org.osteward1.Error.SysrootReadOnly");
            assert!(
                named && answer.stderr.contains("findmnt"),
                "{line:?}: {answer:?}"
            );
        }
        client::ask(&host.sandbox, &host.bus, &["status"])?.expect(&[0])?;
        let dry = ["discard", "cache", "--dry-run"];
        client::ask(&host.sandbox, &host.bus, &dry)?.expect(&[1])?;
        assert_eq!(host.sandbox.deployments()?, before);

        run(&mut command(["blockdev", "--setrw", device]))?;
        run(command(["mount", "-o", "remount,rw"]).arg(&disk))?;
        fs::write(disk.join("writable"), "again")?;
        host.kill_daemon()?;
        host.start_daemon()?;
        client::ask(&host.sandbox, &host.bus, &["upgrade", "--from-cache"])?.expect(&[0])?;
        host.sandbox.fsck()
    }
}
