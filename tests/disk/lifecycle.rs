//! What happens to a disk in the course of its life: it grows, it is copied.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use openclaw_init::error::{Code, code_of, one_line};
use openclaw_lab::program;

use crate::fixture::{Fixture, NAME, alone, command, is_mounted, tool};
use crate::images::{self, MIB, SIZE, made};

/// The size of the mounted file system, in bytes.
fn capacity(fixture: &Fixture) -> Result<u64> {
    let blocks = tool("stat -f -c %S*%b {}", &fixture.data())?;
    let (size, count) = blocks.trim().split_once('*').unwrap_or_default();
    Ok(size.parse::<u64>()? * count.parse::<u64>()?)
}

/// Whether this process has `CAP_SYS_RESOURCE`, as root has on a VM but not in every container.
fn may_grow() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    Ok(u64::from_str_radix(set.trim(), 16)? & 1 << 24 != 0)
}

#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_file_system_grows_with_its_disk() -> Result<()> {
    alone("lifecycle::a_file_system_grows_with_its_disk", || {
        let mut fixture = Fixture::new()?;
        let image = fixture.image(NAME);
        images::sparse(&image)?;
        let disk = fixture.attach(NAME, false)?;
        fixture.changes()?;
        fs::write(fixture.data().join("openclaw/kept"), "kept")?;
        let resize = |size: u64| -> Result<()> {
            File::options().write(true).open(&image)?.set_len(size)?;
            program::run(command("losetup").arg("--set-capacity").arg(&disk.node)).map(drop)
        };
        let small = capacity(&fixture)?;

        resize(2 * SIZE)?;
        if !may_grow()? {
            println!("this machine's root may not grow a mounted file system: only that is shown to be no failure");
            let (outcome, notes) = fixture.run();
            outcome?;
            ensure!(notes.warnings.iter().any(|warning| warning.contains("larger than its file system")));
            return Ok(());
        }
        let changes = fixture.changes()?;
        ensure!(changes.starts_with("grew the file system") && !changes.contains(';'), "mounted, it {changes}");
        ensure!(capacity(&fixture)? > small + SIZE - 40 * MIB, "it has {} bytes, before {small}", capacity(&fixture)?);
        ensure!(fixture.changes()?.is_empty(), "it grows again");

        fixture.unmount()?;
        resize(3 * SIZE)?;
        let changes = fixture.changes()?;
        ensure!(changes.contains("grew the file system"), "between two boots, it {changes}");
        ensure!(fs::read(fixture.data().join("openclaw/kept"))? == b"kept", "a file was lost");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_partition_is_left_to_the_operator() -> Result<()> {
    alone("lifecycle::a_partition_is_left_to_the_operator", || {
        let mut fixture = Fixture::new()?;
        let image = fixture.image(NAME);
        images::gpt_with_ext4(&image)?;
        File::options().write(true).open(&image)?.set_len(2 * SIZE)?;
        let disk = fixture.attach(NAME, false)?;
        let (outcome, notes) = fixture.run();
        outcome?;
        let command = format!("`growpart {} 1`", disk.node.display());
        ensure!(notes.warnings.iter().any(|warning| warning.contains(&command)), "it warns: {:?}", notes.warnings);
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_snapshot_beside_its_original_is_a_warning_and_not_used() -> Result<()> {
    alone("lifecycle::a_snapshot_beside_its_original_is_a_warning_and_not_used", || {
        let mut fixture = Fixture::new()?;
        let image = fixture.image(NAME);
        images::sparse(&image)?;
        let disk = fixture.attach(NAME, false)?;
        fixture.changes()?;
        fixture.unmount()?;
        program::run(command("cp").arg("--sparse=always").arg(&image).arg(fixture.image("copy")))?;
        let copy = fixture.attach("copy", false)?;
        for _ in ["mounted anew", "mounted already"] {
            let (outcome, notes) = fixture.run();
            outcome.map_err(|error| anyhow::anyhow!(one_line(&error)))?;
            let copies: Vec<_> =
                notes.warnings.iter().filter(|warning| warning.contains("the disk copy has")).collect();
            ensure!(copies.len() == 1, "it warns: {:?}", notes.warnings);
        }
        let source = tool("findmnt -no SOURCE {}", &fixture.data())?;
        ensure!(source.trim() == disk.node.to_string_lossy(), "{source} is mounted, not {copy:?}");
        Ok(())
    })
}

/// Before the first mount nothing is lost (see the unit tests); from then on what was written since.
#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_format_is_taken_back_for_a_week_but_for_what_was_written_since() -> Result<()> {
    alone("lifecycle::a_format_is_taken_back_for_a_week_but_for_what_was_written_since", || {
        let mut fixture = Fixture::new()?;
        let image = fixture.image(NAME);
        images::sparse(&image)?;
        let disk = fixture.attach(NAME, false)?;
        fixture.changes()?;
        let options = tool("findmnt -no OPTIONS {}", &fixture.data())?;
        ensure!(options.contains("noinit_itable"), "mounted with {options}");
        fs::write(fixture.data().join("openclaw/kept"), vec![1; 1 << 20])?;
        fixture.unmount()?;
        let undo = fixture.path("var/lib/openclaw-init/mkfs.undo");
        ensure!(fs::metadata(&undo)?.len() <= 64 * MIB, "its undo file is {:?}", fs::metadata(&undo)?);
        let copy = fixture.image("copy");
        program::run(command("cp").arg("--sparse=always").arg(&image).arg(&copy))?;
        program::run(command("e2undo").arg("-f").arg(&undo).arg(&copy))?;
        let left = fs::read(&copy)?.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count();
        println!("{left} blocks of the first mount are left");
        ensure!((256..2000).contains(&left), "{left} blocks are left");

        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 24 * 3600);
        File::options().write(true).open(&undo)?.set_modified(old)?;
        ensure!(fixture.changes()?.contains("mkfs.undo") && !undo.exists(), "the undo file outlives its week");
        let options = tool("findmnt -no OPTIONS {}", &fixture.data())?;
        ensure!(!options.contains("noinit_itable"), "mounted with {options}");
        drop(disk);
        Ok(())
    })
}

/// Made with a newer kernel, perhaps: e2fsck has nothing against it, and the disk is not called damaged.
#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_feature_that_the_kernel_does_not_know_is_no_damage() -> Result<()> {
    alone("lifecycle::a_feature_that_the_kernel_does_not_know_is_no_damage", || {
        let mut fixture = Fixture::new()?;
        let image = fixture.image(NAME);
        let knows_case_folding = Path::new("/sys/fs/ext4/features/casefold").exists();
        let unknown = if knows_case_folding { "-b 65536" } else { "-O casefold" };
        made(&image, &[&format!("mkfs.ext4 -q -F -L openclaw-data {unknown} {{}}")])?;
        let disk = fixture.attach(NAME, false)?;
        let error = fixture.run().0.err().with_context(|| format!("with {unknown} it was accepted"))?;
        let said = one_line(&error);
        ensure!(code_of(&error) == Code::DiskForeign && said.contains("The disk itself is in order"), "{said}");
        ensure!(!is_mounted(&fixture.data())?, "it is mounted");
        drop(disk);
        tool("e2fsck -f -n {}", &image).map(drop)
    })
}
