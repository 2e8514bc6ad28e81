//! Disk images, made with the real tools; by their on-disk headers where the tools need a driver of the kernel's.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::fixture::{command, data, tool};
use openclaw_lab::program;

pub(crate) const MIB: u64 = 1 << 20;
/// Of most images.
pub(crate) const SIZE: u64 = 600 * MIB;

/// A sparse file of [`SIZE`] bytes.
pub(crate) fn sparse(image: &Path) -> Result<()> {
    Ok(File::create_new(image)?.set_len(SIZE)?)
}

pub(crate) fn zeros(image: &Path) -> Result<()> {
    tool("fallocate --length 600M {}", image).map(drop)
}

pub(crate) fn random(image: &Path) -> Result<()> {
    made(image, &["dd if=/dev/urandom of={} bs=1M count=32 conv=notrunc status=none"])
}

/// The offset of any block of a disk, but at random.
pub(crate) fn random_block() -> u64 {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    random % (SIZE / 4096) * 4096
}

pub(crate) fn write_at(image: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    Ok(File::options().write(true).open(image)?.write_all_at(bytes, offset)?)
}

/// Copies what is no hole in `from` to this offset of the image.
pub(crate) fn copy_at(from: &Path, image: &Path, offset: u64) -> Result<()> {
    let (from, image) = (File::open(from)?, File::options().write(true).open(image)?);
    for Range { start, end } in data(&from)? {
        let mut part = vec![0; usize::try_from(end - start)?];
        from.read_exact_at(&mut part, start)?;
        image.write_all_at(&part, start + offset)?;
    }
    Ok(())
}

/// Runs `lines` one after the other on a new sparse image.
pub(crate) fn made(image: &Path, lines: &[&str]) -> Result<()> {
    sparse(image)?;
    lines.iter().try_for_each(|line| tool(line, image).map(drop))
}

pub(crate) const OURS: &str = "mkfs.ext4 -q -m 0 -L openclaw-data {}";
pub(crate) const THEIRS: &str = "mkfs.ext4 -q -L theirs {}";
/// Something in it that must survive.
pub(crate) const KEPT: &str = "debugfs -w -R write\u{a0}/etc/hostname\u{a0}kept {}";

/// The directory of our records.
pub(crate) const RECORDS: &str = "debugfs -w -R mkdir\u{a0}openclaw-init {}";

/// Ours, filled by a shell's `script` until that fails.
pub(crate) fn full(image: &Path, script: &str) -> Result<()> {
    made(image, &["mkfs.ext4 -q -m 0 -N 4096 -L openclaw-data {}"])?;
    let point = tempfile::tempdir()?;
    program::run(command("mount").args(["-o", "loop"]).arg(image).arg(point.path()))?;
    program::run(command("sh").args(["-c", &format!("{script} 2> /dev/null || true")]).current_dir(point.path()))?;
    tool("umount {}", point.path()).map(drop)
}

/// Somebody's, with [`KEPT`] and as many long names beside it as inodes.
pub(crate) fn many_names(image: &Path) -> Result<()> {
    made(image, &[THEIRS, KEPT])?;
    let point = tempfile::tempdir()?;
    program::run(command("mount").args(["-o", "loop"]).arg(image).arg(point.path()))?;
    let script = "seq --format %0250.0f 20000 | xargs touch";
    program::run(command("sh").args(["-c", script]).current_dir(point.path()))?;
    tool("umount {}", point.path()).map(drop)
}

/// An ext4 as a power cut leaves it: made by `lines`, a file synced, the journal not yet written back.
pub(crate) fn cut(image: &Path, lines: &[&str]) -> Result<()> {
    made(image, lines)?;
    let point = tempfile::tempdir()?;
    let (file, copy) = (point.path().join("kept"), PathBuf::from(format!("{}.copy", image.display())));
    program::run(command("mount").args(["-o", "loop"]).arg(image).arg(point.path()))?;
    fs::write(&file, "kept")?;
    tool("sync -f {}", &file)?;
    program::run(command("cp").arg("--sparse=always").arg(image).arg(&copy))?;
    tool("umount {}", point.path())?;
    Ok(fs::rename(copy, image)?)
}

/// The same, due for a full check, in which a directory without entries cannot be repaired unasked.
pub(crate) fn cut_and_torn(image: &Path) -> Result<()> {
    cut(image, &[OURS, "tune2fs -c 1 {}", "debugfs -w -R mkdir\u{a0}torn {}"])?;
    let block: u64 = tool("debugfs -R blocks\u{a0}torn {}", image)?.trim().parse()?;
    write_at(image, block * 4096, &[0; 4096])
}

/// Partitions by sfdisk's script.
pub(crate) fn partitioned(image: &Path, script: &str) -> Result<()> {
    sparse(image)?;
    let table = PathBuf::from(format!("{}.table", image.display()));
    fs::write(&table, script)?;
    let mut sfdisk = command("sh");
    sfdisk.args(["-c", "sfdisk --quiet \"$0\" < \"$1\""]).arg(image).arg(table);
    program::run(&mut sfdisk).map(drop)
}

/// GPT with one partition at 1 MiB, 590 MiB long, with a clean ext4 in it.
pub(crate) fn gpt_with_ext4(image: &Path) -> Result<()> {
    partitioned(image, "label: gpt\nstart=2048, size=1208320\n")?;
    tool("mkfs.ext4 -q -L theirs -E offset=1048576 {} 590M", image)?;
    tool(&KEPT.replace("{}", "{}?offset=1048576"), image).map(drop)
}

/// An md superblock, version 1.2, with its checksum (`linux/raid/md_p.h`): mdadm makes none without the md driver.
pub(crate) fn raid(image: &Path) -> Result<()> {
    sparse(image)?;
    let (magic, sum) = (0xa92b_4efc_u32, 0xa92b_4f05_u32);
    write_at(image, 4096, &[magic.to_le_bytes(), 1_u32.to_le_bytes()].concat())?;
    write_at(image, 4096 + 0x90, &8_u64.to_le_bytes())?;
    write_at(image, 4096 + 0xd8, &sum.to_le_bytes())
}

/// A file whose blocks from the 13th on cannot be read: its indirect block lies outside its file system, which is
/// mounted beside it.
pub(crate) fn unreadable(image: &Path) -> Result<()> {
    let carrier = PathBuf::from(format!("{}.carrier", image.display()));
    let point = PathBuf::from(format!("{}.point", image.display()));
    File::create_new(&carrier)?.set_len(64 * MIB)?;
    tool("mkfs.ext4 -q -b 4096 -O ^extent,^64bit,^metadata_csum,^has_journal {}", &carrier)?;
    for change in ["write /dev/null disk", "sif disk size 629145600", "sif disk block[IND] 999999"] {
        program::run(command("debugfs").args(["-w", "-R", change]).arg(&carrier))?;
    }
    fs::create_dir(&point)?;
    program::run(command("mount").args(["-o", "loop"]).arg(&carrier).arg(&point))?;
    Ok(std::os::unix::fs::symlink(point.join("disk"), image)?)
}
