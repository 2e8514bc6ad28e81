//! What happens to a disk in the course of its life: it grows, it is copied.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use openclaw_init::error::{Code, code_of, one_line};
use openclaw_lab::program;

use crate::fixture::{Fixture, NAME, alone, command, is_mounted, sha256, tool};
use crate::images::{self, KEPT, MIB, SIZE, made};

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

/// A person may keep something behind a file system that is smaller than its disk.
#[test]
#[ignore = "needs root: cargo lab test machine"]
fn what_lies_behind_somebodys_file_system_is_not_grown_over() -> Result<()> {
    alone("lifecycle::what_lies_behind_somebodys_file_system_is_not_grown_over", || {
        for label in ["theirs", "openclaw-data"] {
            is_not_grown_over(label).with_context(|| format!("labelled {label}"))?;
        }
        Ok(())
    })
}

fn is_not_grown_over(label: &str) -> Result<()> {
    let mut fixture = Fixture::new()?;
    let image = fixture.image(NAME);
    made(&image, &[&format!("mkfs.ext4 -q -L {label} {{}} 300M"), KEPT])?;
    images::write_at(&image, 400 * MIB, &[1; 4096])?;
    let _disk = fixture.attach(NAME, false)?;
    for (when, is_new) in [("adopted", true), ("in use", false), ("mounted anew", false)] {
        let (outcome, notes) = fixture.run();
        outcome?;
        let warnings = notes.warnings;
        let has = |words: &str| warnings.iter().any(|warning| warning.contains(words));
        ensure!(has("`resize2fs ") && has("came with an ext4") == is_new, "{when}: {warnings:?}");
        ensure!(capacity(&fixture)? < 300 * MIB, "{when}, it grew to {} bytes", capacity(&fixture)?);
        let top = fs::metadata(fixture.data())?;
        ensure!(top.mode() & 0o777 == 0o755, "{when}, its top directory became {:o}", top.mode());
        if !is_new {
            fixture.unmount()?;
        }
    }
    Ok(())
}

/// Whoever can write there could exchange our directories for others. Our label alone makes nothing ours.
#[test]
#[ignore = "needs root: cargo lab test machine"]
fn somebodys_top_directory_is_roots_or_refused() -> Result<()> {
    alone("lifecycle::somebodys_top_directory_is_roots_or_refused", || {
        for label in ["theirs", "openclaw-data"] {
            let mut fixture = Fixture::new()?;
            let image = fixture.image(NAME);
            made(&image, &[&format!("mkfs.ext4 -q -L {label} -E root_owner=33:33 {{}}"), KEPT])?;
            let _disk = fixture.attach(NAME, false)?;
            let error = fixture.run().0.err().with_context(|| format!("{label} was accepted"))?;
            let said = one_line(&error);
            ensure!(code_of(&error) == Code::DiskForeign && said.contains("chmod go-w"), "{label}: {said}");
            ensure!(!is_mounted(&fixture.data())?, "{label} is mounted");
            let there = tool("debugfs -R ls\u{a0}-p\u{a0}/ {}", &image)?;
            ensure!(!there.contains("openclaw-init"), "something was written to {label}");
        }
        Ok(())
    })
}

/// A line in /etc/fstab is quicker than a run. What it mounted is as foreign as before, and stays mounted.
#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_disk_that_is_mounted_already_is_not_taken_for_ours() -> Result<()> {
    alone("lifecycle::a_disk_that_is_mounted_already_is_not_taken_for_ours", || {
        let mut fixture = Fixture::new()?;
        let image = fixture.image(NAME);
        made(&image, &[images::THEIRS, KEPT, "debugfs -w -R mkdir\u{a0}openclaw {}"])?;
        let disk = fixture.attach(NAME, false)?;
        fs::create_dir_all(fixture.data())?;
        program::run(command("mount").arg(&disk.node).arg(fixture.data()))?;
        let website = fixture.data().join("openclaw");
        std::os::unix::fs::chown(&website, Some(33), Some(33))?;
        let error = fixture.run().0.err().context("it was accepted")?;
        let said = one_line(&error);
        ensure!(code_of(&error) == Code::DiskForeign && said.contains("names already: openclaw"), "{said}");
        ensure!(is_mounted(&fixture.data())? && fs::metadata(&website)?.uid() == 33, "its owner's use was disturbed");
        ensure!(!fixture.data().join("openclaw-init").exists(), "something was written");

        fs::rename(&website, fixture.data().join("website"))?;

        // Nor is an empty directory, whose ever it is: this is no disk of a run that was cut.
        for owner in [0, 1000] {
            let empty = fixture.data().join("backups");
            fs::create_dir(&empty)?;
            std::os::unix::fs::chown(&empty, Some(owner), Some(owner))?;
            let error = fixture.run().0.err().with_context(|| format!("an empty directory of {owner} was taken"))?;
            let said = one_line(&error);
            ensure!(code_of(&error) == Code::DiskForeign && said.contains("names already: backups"), "{said}");
            ensure!(fs::metadata(&empty)?.uid() == owner, "it has another owner");
            fs::remove_dir(&empty)?;
        }
        let (outcome, notes) = fixture.run();
        outcome?;
        ensure!(notes.warnings.iter().any(|warning| warning.contains("came with an ext4")), "{:?}", notes.warnings);
        ensure!(fixture.changes()?.is_empty(), "a second run changes something");
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
        let note = fixture.path("var/lib/openclaw-init/mkfs.undo.uuid");
        let uuid = tool("blkid -p -s UUID -o value {}", &image)?;
        ensure!(fs::read_to_string(&note)?.trim() == uuid.trim(), "it is not known of which disk the undo file is");
        let copy = fixture.image("copy");
        program::run(command("cp").arg("--sparse=always").arg(&image).arg(&copy))?;
        program::run(command("e2undo").arg("-f").arg(&undo).arg(&copy))?;
        let left = fs::read(&copy)?.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count();
        println!("{left} blocks of the first mount are left");
        ensure!((256..2000).contains(&left), "{left} blocks are left");

        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 24 * 3600);
        File::options().write(true).open(&undo)?.set_modified(old)?;
        ensure!(fixture.changes()?.contains("mkfs.undo") && !undo.exists(), "the undo file outlives its week");
        ensure!(!note.exists(), "the undo file's disk is still named");
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

/// Makes something in the place of a file or a directory of ours.
type Make = fn(&Path) -> std::io::Result<()>;

/// A disk may come with records that others made.
#[test]
#[ignore = "needs root: cargo lab test machine"]
fn records_that_are_no_small_files_hold_nothing_up() -> Result<()> {
    const MAKE: [Make; 4] = [
        |path| File::create(path)?.set_len(900 * MIB),
        |path| fs::create_dir(path),
        |path| symlink("/etc/hostname", path),
        |path| Ok(nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)?),
    ];
    alone("lifecycle::records_that_are_no_small_files_hold_nothing_up", || {
        let mut fixture = Fixture::new()?;
        images::sparse(&fixture.image(NAME))?;
        let _disk = fixture.attach(NAME, false)?;
        fixture.changes()?;
        for name in ["operation.json", "switch.json", "update.json"] {
            let path = fixture.data().join("openclaw-init").join(name);
            for make in MAKE {
                make(&path)?;
                let start = Instant::now();
                let error = fixture.run().0.err().with_context(|| format!("{name} is passed over"))?;
                let said = one_line(&error);
                ensure!(code_of(&error) == Code::DiskDamaged && said.contains(name), "{}: {said}", code_of(&error));
                ensure!(start.elapsed() < Duration::from_secs(25), "{name} held it up for {:?}", start.elapsed());
                fs::remove_file(&path).or_else(|_| fs::remove_dir(&path))?;
            }
        }
        ensure!(fixture.changes()?.is_empty(), "something is left");
        Ok(())
    })
}

/// The marker is on it, the owners are right: nothing would be written that could fail.
#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_disk_that_became_read_only_by_itself_is_not_mounted() -> Result<()> {
    alone("lifecycle::a_disk_that_became_read_only_by_itself_is_not_mounted", || {
        let mut fixture = Fixture::new()?;
        images::sparse(&fixture.image(NAME))?;
        let disk = fixture.attach(NAME, false)?;
        fixture.changes()?;
        fixture.unmount()?;
        tool("tune2fs -O read-only {}", &disk.node)?;
        for run in ["first", "second"] {
            let error = fixture.run().0.err().with_context(|| format!("the {run} run accepts it"))?;
            let said = one_line(&error);
            ensure!(code_of(&error) == Code::DiskReadonly && said.contains("tune2fs -l"), "the {run} run: {said}");
            ensure!(!is_mounted(&fixture.data())?, "it is mounted");
        }
        tool("tune2fs -O ^read-only {}", &disk.node)?;
        ensure!(fixture.changes()?.contains("mounted"), "it is not used again");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: cargo lab test machine"]
fn what_is_where_the_disk_is_to_be_mounted_is_seen_before_the_disk_is_read() -> Result<()> {
    const FILE: Make = |path| fs::write(path, "somebody's");
    const LINK: Make = |path| symlink("/etc", path);
    const DANGLING: Make = |path| symlink("nowhere", path);
    alone("lifecycle::what_is_where_the_disk_is_to_be_mounted_is_seen_before_the_disk_is_read", || {
        let mut fixture = Fixture::new()?;
        let image = fixture.image(NAME);
        images::sparse(&image)?;
        let before = sha256(&image)?;
        let disk = fixture.attach(NAME, false)?;
        let point = "mnt/disks/openclaw-data";
        let cases = [("mnt", FILE), ("mnt/disks", FILE), ("mnt/disks", DANGLING), (point, FILE), (point, LINK)];
        for (path, make) in cases {
            let taken = fixture.path(path);
            fs::create_dir_all(taken.parent().context("it has no parent")?)?;
            make(&taken)?;
            let error = fixture.run().0.err().with_context(|| format!("{path} is not seen"))?;
            let said = one_line(&error);
            let command = format!("`sudo mv /{path} /{path}.before`");
            ensure!(code_of(&error) == Code::DiskForeign && said.contains(&command), "{}: {said}", code_of(&error));
            File::open(&disk.node)?.sync_all()?;
            ensure!(sha256(&image)? == before, "the disk was changed");
            fs::remove_file(&taken)?;
        }
        ensure!(fixture.changes()?.contains("formatted"), "it is not used then");

        // Where people look for the state.
        fixture.unmount()?;
        let alias = fixture.path("home/node/.openclaw");
        tool("chattr -i {}", &alias)?;
        fs::remove_dir(&alias)?;
        for make in [FILE, LINK, DANGLING] {
            make(&alias)?;
            let error = fixture.run().0.err().context("what has the state's name is not seen")?;
            let said = one_line(&error);
            let has_command = said.contains("`sudo mv /home/node/.openclaw /home/node/.openclaw.before`");
            ensure!(code_of(&error) == Code::DiskForeign && has_command, "{}: {said}", code_of(&error));
            fs::remove_file(&alias)?;
        }
        ensure!(fixture.changes()?.contains("mounted"), "it is not published then");
        Ok(())
    })
}
