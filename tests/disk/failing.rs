//! Programs that end early, and disks that fail while they are written.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use openclaw_init::error::{Code, code_of, one_line};
use openclaw_lab::program;

use crate::fixture::{Fixture, NAME, alone, command, is_mounted, sha256, tool};
use crate::formatting::FIRST_ON_PATH;
use crate::images::{self, KEPT, OURS, RECORDS, THEIRS, made};
use crate::slow::served;

/// Ends as if the kernel had killed it.
const KILLED: &str = "kill -KILL $$";

/// Has the stage run `script` in the place of `program`, in the test's own mount namespace; an empty one is taken back.
fn replace(program: &str, script: &str) -> Result<()> {
    let path = Path::new(FIRST_ON_PATH).join(program);
    if script.is_empty() {
        return Ok(fs::remove_file(path)?);
    }
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}

/// Room for the scripts, and a boot disk of this size.
fn with_boot_disk(fixture: &Fixture, size: &str) -> Result<()> {
    let boot_disk = fixture.path("var/lib/openclaw-init");
    fs::create_dir_all(&boot_disk)?;
    program::run(command("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(boot_disk))
        .map(drop)
}

fn own_programs() -> Result<()> {
    program::run(command("mount").args(["-t", "tmpfs", "tmpfs", FIRST_ON_PATH])).map(drop)
}

/// The run ends with this code and these words, and leaves nothing mounted.
fn ends(fixture: &Fixture, code: Code, words: &str) -> Result<()> {
    let (found, said) = fixture.refusal()?;
    ensure!(found == code && said.contains(words), "{found}: {said}");
    println!("{said}");
    Ok(())
}

/// The next run formats the disk and uses it.
fn is_completed(fixture: &Fixture) -> Result<()> {
    let changes = fixture.changes()?;
    ensure!(changes.contains("formatted"), "then it {changes}");
    fixture.unmount()
}

#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_format_for_which_the_boot_disk_has_no_room_is_no_space() -> Result<()> {
    alone("failing::a_format_for_which_the_boot_disk_has_no_room_is_no_space", || {
        own_programs()?;
        let mut fixture = Fixture::new()?;
        with_boot_disk(&fixture, "80M")?;
        let (boot_disk, image) = (fixture.path("var/lib/openclaw-init"), fixture.image(NAME));
        images::sparse(&image)?;
        let disk = fixture.attach(NAME, false)?;
        let blank = sha256(&image)?;

        let full = boot_disk.join("full");
        fs::write(&full, vec![1; 40 << 20])?;
        ends(&fixture, Code::NoSpace, "openclaw-init")?;
        File::open(&disk.node)?.sync_all()?;
        ensure!(sha256(&image)? == blank, "another VM would not take it for blank any more");

        // It fills up at the worst moment.
        let fills_up = format!("head -c 90M /dev/zero > {} 2> /dev/null", full.display());
        replace("mkfs.ext4", &format!("{fills_up}; exec /usr/sbin/mkfs.ext4 \"$@\""))?;
        fs::remove_file(&full)?;
        ends(&fixture, Code::NoSpace, "openclaw-init").context("filled while mkfs runs")?;
        replace("mkfs.ext4", "")?;
        fs::remove_file(&full)?;
        is_completed(&fixture)
    })
}

#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_format_without_its_program_is_no_lack_of_space() -> Result<()> {
    alone("failing::a_format_without_its_program_is_no_lack_of_space", || {
        own_programs()?;
        let mut fixture = Fixture::new()?;
        images::sparse(&fixture.image(NAME))?;
        let _disk = fixture.attach(NAME, false)?;
        // The second time a format was cut before.
        replace("mkfs.ext4", KILLED)?;
        for when in ["blank", "cut before"] {
            ends(&fixture, Code::Internal, "was killed").context(when)?;
        }
        replace("mkfs.ext4", "")?;
        let nothing = Path::new(FIRST_ON_PATH).join("nothing");
        replace("nothing", "exit")?;
        fs::write(&nothing, "#!/nowhere\n")?;
        program::run(command("mount").arg("--bind").arg(nothing).arg("/usr/sbin/mkfs.ext4"))?;
        ends(&fixture, Code::UnsupportedSystem, "e2fsprogs")?;
        tool("umount {}", Path::new("/usr/sbin/mkfs.ext4"))?;
        is_completed(&fixture)
    })
}

#[test]
#[ignore = "needs root and nbdkit: cargo lab test machine"]
fn a_disk_that_fails_is_damaged() -> Result<()> {
    const FAILS: &str = "/usr/local/sbin/fails";
    alone("failing::a_disk_that_fails_is_damaged", || {
        own_programs()?;
        let when_mkfs_begins = format!("touch {FAILS}; exec /usr/sbin/mkfs.ext4 \"$@\"");
        for (fails, from, script, words) in [
            ("pread", "the beginning", "", "cannot be read: see `dmesg`"),
            ("pwrite", "the beginning", "", "cannot be written: see `dmesg`"),
            ("pwrite", "mkfs", when_mkfs_begins.as_str(), "cannot be written: see `dmesg`"),
        ] {
            let (error, rate) = (format!("error-{fails}=EIO"), format!("error-{fails}-rate=100%"));
            let file = format!("error-file={FAILS}");
            let arguments = ["--filter=error", "memory", "600M", &error, &rate, &file];
            let mut fixture = served(&arguments)?;
            let _disk = fixture.attach(NAME, false)?;
            if script.is_empty() {
                fs::write(FAILS, "")?;
            } else {
                replace("mkfs.ext4", script)?;
            }
            ends(&fixture, Code::DiskDamaged, words).with_context(|| format!("{fails} fails from {from} on"))?;
            if !script.is_empty() {
                replace("mkfs.ext4", "")?;
            }
            fs::remove_file(FAILS)?;
            is_completed(&fixture).with_context(|| format!("after {fails}"))?;
        }
        Ok(())
    })
}

/// The image but for its first block: e2undo asks there for another check.
fn beyond_superblock(image: &Path) -> Result<String> {
    let copy = image.with_extension("copy");
    program::run(command("cp").arg("--sparse=always").arg(image).arg(&copy))?;
    File::options().write(true).open(&copy)?.write_all_at(&[0; 4096], 0)?;
    sha256(&copy)
}

#[test]
#[ignore = "needs root and strace: cargo lab test machine"]
fn a_check_that_ends_early_is_undone() -> Result<()> {
    alone("failing::a_check_that_ends_early_is_undone", || {
        own_programs()?;
        let mut count = 0;
        while is_undone_when_killed_at(count + 1).with_context(|| format!("killed at write {}", count + 1))? {
            count += 1;
        }
        println!("killed at each of {count} writes");
        ensure!(count >= 10, "e2fsck is not killed where it writes");
        Ok(())
    })
}

/// What e2fsck mends unasked.
fn needs_a_check(image: &Path) -> Result<()> {
    let change = |what: &str| format!("debugfs -w -R {} {{}}", what.replace(' ', "\u{a0}"));
    made(image, &[OURS, KEPT, &change("ssv free_blocks_count 5"), &change("ssv state 0")])
}

/// Kills e2fsck at its write number `count`; false when there are not as many.
fn is_undone_when_killed_at(count: u32) -> Result<bool> {
    let mut fixture = Fixture::new()?;
    let image = fixture.image(NAME);
    needs_a_check(&image)?;
    let before = beyond_superblock(&image)?;
    let disk = fixture.attach(NAME, false)?;
    let inject = format!("inject=pwrite64:signal=KILL:when={count}");
    replace("e2fsck", &format!("exec strace -qq -o /dev/null -e {inject} /usr/sbin/e2fsck \"$@\""))?;
    let outcome = fixture.run().0;
    replace("e2fsck", "")?;
    let Err(error) = outcome else { return Ok(false) };
    let said = one_line(&error);
    ensure!(code_of(&error) == Code::DiskDamaged && said.contains("was killed"), "{}: {said}", code_of(&error));
    ensure!(!is_mounted(&fixture.data())?, "it is mounted");
    File::open(&disk.node)?.sync_all()?;
    ensure!(beyond_superblock(&image)? == before, "it is half repaired");
    ensure!(fixture.changes()?.contains("repaired"), "a check that is not cut repairs nothing");
    Ok(true)
}

#[test]
#[ignore = "needs root: cargo lab test machine"]
fn a_program_that_looks_at_a_disk_and_ends_early_has_a_code() -> Result<()> {
    alone("failing::a_program_that_looks_at_a_disk_and_ends_early_has_a_code", || {
        own_programs()?;
        for (program, disk) in [("blkid", OURS), ("blkid", THEIRS), ("debugfs", THEIRS), ("e2fsck", THEIRS)] {
            let mut fixture = Fixture::new()?;
            let image = fixture.image(NAME);
            made(&image, &[disk, RECORDS])?;
            let before = sha256(&image)?;
            let attached = fixture.attach(NAME, false)?;
            replace(program, KILLED)?;
            let ended = ends(&fixture, Code::DiskForeign, "was killed");
            replace(program, "")?;
            ended.with_context(|| format!("{program} of {disk}"))?;
            drop(attached);
            ensure!(sha256(&image)? == before, "the disk was changed");
        }
        let mut fixture = Fixture::new()?;
        needs_a_check(&fixture.image(NAME))?;
        let _disk = fixture.attach(NAME, false)?;
        let many_words = "head -c 6000000 /dev/zero | tr '\\0' x; echo";
        replace("e2fsck", &format!("{many_words}; exec /usr/sbin/e2fsck \"$@\""))?;
        ensure!(fixture.changes()?.contains("repaired"), "what it says is too much");
        Ok(())
    })
}
