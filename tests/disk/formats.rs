//! Every format that libblkid knows, at every place: none may ever be formatted over.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use openclaw_init::error::{code_of, one_line};

use crate::fixture::{Fixture, NAME, alone, command, is_mounted, sha256, tool};
use crate::images::{MIB, SIZE, partitioned, write_at};
use openclaw_lab::program;

/// How a disk of a format comes to be.
enum Made {
    /// By its own tool.
    Tool(&'static str),
    /// By its signature, where no tool of Debian's makes it without a device mapper or the hardware: bytes and offset
    /// (negative: from the end).
    Signature(&'static [u8], i64),
}

use Made::{Signature, Tool};

/// libblkid's name, what is made, how. A format of several kinds has several rows.
#[rustfmt::skip]
const FORMATS: &[(&str, &str, Made)] = &[
    ("ext2", "ext2", Tool("mkfs.ext2 -q -F {}")),
    ("ext3", "ext3", Tool("mkfs.ext3 -q -F {}")),
    ("ext4", "ext4, dirty", Tool("sh -c mkfs.ext4\u{a0}-q\u{a0}-F\u{a0}{}\u{a0}&&\u{a0}debugfs\u{a0}-w\u{a0}-R\u{a0}'ssv\u{a0}state\u{a0}0'\u{a0}{}")),
    ("jbd", "external journal", Tool("mke2fs -q -F -O journal_dev {}")),
    ("xfs", "xfs", Tool("mkfs.xfs -q -f {}")),
    ("btrfs", "btrfs", Tool("mkfs.btrfs -q -f {}")),
    ("vfat", "FAT16", Tool("mkfs.vfat -F 16 {}")),
    ("vfat", "FAT32", Tool("mkfs.vfat -F 32 {}")),
    ("exfat", "exfat", Tool("mkfs.exfat {}")),
    ("ntfs", "ntfs", Tool("mkntfs -q -F -f {}")),
    ("f2fs", "f2fs", Tool("mkfs.f2fs -q -f {}")),
    ("nilfs2", "nilfs2", Tool("mkfs.nilfs2 -q -f {}")),
    ("jfs", "jfs", Tool("mkfs.jfs -q {}")),
    ("reiserfs", "reiserfs", Tool("mkfs.reiserfs -q -ff {}")),
    ("udf", "udf", Tool("mkudffs {}")),
    ("gfs2", "gfs2", Tool("mkfs.gfs2 -q -O -p lock_nolock -J 8 {}")),
    ("minix", "minix", Tool("mkfs.minix {}")),
    ("bfs", "bfs", Tool("mkfs.bfs {}")),
    ("swap", "swap", Tool("mkswap -q {}")),
    ("crypto_LUKS", "LUKS1", Tool("cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 --key-file /etc/hostname {}")),
    ("crypto_LUKS", "LUKS2", Tool("cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /etc/hostname {}")),
    ("DM_verity_hash", "verity", Signature(b"verity\0\0", 0)),
    ("ocfs2", "ocfs2", Signature(b"OCFSV2", 4096)),
    ("ocfs", "ocfs", Signature(b"OracleCFS", 8)),
    ("oracleasm", "Oracle ASM", Signature(b"ORCLDISK", 32)),
    ("linux_raid_member", "md 0.90", Signature(&[0xfc, 0x4e, 0x2b, 0xa9], -65536)),
    ("linux_raid_member", "md 1.0", Signature(&[0xfc, 0x4e, 0x2b, 0xa9], -8192)),
    ("linux_raid_member", "md 1.1", Signature(&[0xfc, 0x4e, 0x2b, 0xa9], 0)),
    ("linux_raid_member", "md 1.2", Signature(&[0xfc, 0x4e, 0x2b, 0xa9], 4096)),
    ("ddf_raid_member", "ddf", Signature(&[0xde, 0x11, 0xde, 0x11], -512)),
    ("isw_raid_member", "Intel", Signature(b"Intel Raid ISM Cfg Sig. ", -1024)),
    ("lsi_mega_raid_member", "LSI", Signature(b"$XIDE$", -512)),
    ("via_raid_member", "VIA", Signature(&[0x55, 0xaa], -512)),
    ("silicon_medley_raid_member", "Silicon", Signature(&[0, 0, 0, 0x2f], -512)),
    ("nvidia_raid_member", "NVIDIA", Signature(b"NVIDIA", -1024)),
    ("promise_fasttrack_raid_member", "Promise", Signature(b"Promise Technology, Inc.", -32256)),
    ("hpt45x_raid_member", "HighPoint 45x", Signature(&[0xf3, 0x7a, 0x16, 0x5a], -5632)),
    ("hpt37x_raid_member", "HighPoint 37x", Signature(&[0xf3, 0x7a, 0x16, 0x5a], 4608)),
    ("adaptec_raid_member", "Adaptec", Signature(b"DPTM", -512)),
    ("jmicron_raid_member", "JMicron", Signature(b"JM", -512)),
    ("bcache", "bcache", Tool("make-bcache -B {}")),
    ("ceph_bluestore", "Ceph", Signature(b"bluestore block device", 0)),
    ("drbd", "DRBD", Signature(&[0x83, 0x74, 0x02, 0x6b], -4096 + 60)),
    ("drbdmanage_control_volume", "drbdmanage", Signature(b"$DRBDmgr=q", 0)),
    ("drbdproxy_datalog", "drbdproxy", Signature(b"DRBDdlh*", 0)),
    ("LVM2_member", "LVM2", Signature(b"LABELONE", 512)),
    ("LVM1_member", "LVM1", Signature(b"HM", 0)),
    ("DM_snapshot_cow", "snapshot", Signature(b"SnAp", 0)),
    ("DM_integrity", "integrity", Signature(b"integrt\0", 0)),
    ("VMFS_volume_member", "VMFS volume", Signature(&[0x0d, 0xd0, 0x01, 0xc0], 0x10_0000)),
    ("VMFS", "VMFS", Signature(&[0x5e, 0xf1, 0xab, 0x2f], 0x20_0000)),
    ("ubi", "ubi", Signature(b"UBI#", 0)),
    ("ubifs", "ubifs", Signature(&[0x31, 0x18, 0x10, 0x06], 0)),
    ("vdo", "vdo", Signature(b"dmvdo001", 0)),
    ("stratis", "stratis", Signature(b"!Stra0tis\x86\xff\x02^\x41rh", 512 + 4)),
    ("BitLocker", "BitLocker", Signature(b"\xeb\x58\x90-FVE-FS-", 0)),
    ("swsuspend", "hibernation", Signature(b"S1SUSPEND", 4086)),
    ("xfs_external_log", "xfs log", Signature(&[0xfe, 0xed, 0xba, 0xbe], 0)),
    ("exfs", "exfs", Signature(b"EXFS", 0)),
    ("ext4dev", "ext4dev", Signature(&[0x53, 0xef], 1024 + 56)),
    ("reiser4", "reiser4", Signature(b"ReIsEr4", 65536)),
    ("iso9660", "iso9660", Signature(b"\x01CD001\x01", 32768)),
    ("zfs_member", "ZFS, both ends", Signature(&[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], 131_072)),
    ("zfs_member", "ZFS, the end alone", Signature(&[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], -131_072)),
    ("hfsplus", "HFS+", Signature(b"H+\0\x04", 1024)),
    ("hfs", "HFS", Signature(b"BD", 1024)),
    ("ufs", "ufs", Signature(&[0x54, 0x19, 0x01, 0x00], 8192 + 1372)),
    ("hpfs", "hpfs", Signature(&[0x49, 0xe8, 0x95, 0xf9], 8192)),
    ("sysv", "sysv", Signature(&[0xfd, 0x18, 0x7e, 0x20], 512 + 504)),
    ("xenix", "xenix", Signature(&[0x2b, 0x55, 0x44], 1024 + 1016)),
    ("ReFS", "ReFS", Signature(b"\0\0\0ReFS\0", 0)),
    ("cramfs", "cramfs", Signature(&[0x45, 0x3d, 0xcd, 0x28], 0)),
    ("romfs", "romfs", Signature(b"-rom1fs-", 0)),
    ("gfs", "gfs", Signature(&[0x01, 0x16, 0x19, 0x70], 65536)),
    ("vxfs", "vxfs", Signature(&[0xf5, 0xfc, 0x01, 0xa5], 1024)),
    ("squashfs", "squashfs", Signature(b"hsqs", 0)),
    ("squashfs3", "squashfs 3", Signature(b"sqsh", 0)),
    ("nss", "nss", Signature(b"SPB5", 0x1000)),
    ("befs", "befs", Signature(b"BFS1", 512 + 32)),
    ("mpool", "mpool", Signature(b"mpoolDev", 0)),
    ("apfs", "apfs", Signature(b"NXSB", 32)),
    ("zonefs", "zonefs", Signature(b"SFOZ", 0)),
    ("erofs", "erofs", Signature(&[0xe2, 0xe1, 0xf5, 0xe0], 1024)),
    // What libblkid does not know.
    ("", "bcachefs", Signature(&[0xc6, 0x85, 0x73, 0xf6], 4096 + 24)),
    ("", "tar", Tool("tar -C / -cf {} etc/apt")),
    ("", "text", Tool("cp /etc/services {}")),
];

/// Where on the disk the format is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Whole,
    /// Without its first 64 MiB.
    Headless,
    InPartition,
}

const HEAD: u64 = 64 * MIB;
const PARTITION: u64 = MIB;

fn make(made: &Made, place: Place, image: &Path) -> Result<()> {
    let size = if place == Place::InPartition { SIZE - 2 * PARTITION } else { SIZE };
    let alone = image.with_extension("format");
    fs::File::create(&alone)?.set_len(size)?;
    match made {
        Tool(line) => drop(tool(line, &alone)?),
        Signature(bytes, offset) => {
            let at = if *offset < 0 { size.saturating_add_signed(*offset) } else { offset.unsigned_abs() };
            write_at(&alone, at, bytes)?;
        }
    }
    fs::File::options().write(true).open(&alone)?.set_len(size)?;
    if place == Place::InPartition {
        partitioned(image, "label: dos\nstart=2048, size=1224704\n")?;
        let mut copy = command("dd");
        copy.args(["bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]);
        copy.arg(format!("if={}", alone.display())).arg(format!("of={}", image.display()));
        program::run(&mut copy)?;
    } else {
        fs::rename(&alone, image)?;
    }
    if place == Place::Headless {
        tool(&format!("fallocate --punch-hole --offset 0 --length {HEAD} {{}}"), image)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root and the tools that make disks: cargo lab test machine"]
fn no_format_at_any_place_is_formatted_over() -> Result<()> {
    alone("formats::no_format_at_any_place_is_formatted_over", || {
        let (mut wrong, mut shapes, mut blank) = (Vec::new(), 0, Vec::new());
        for (_, name, made) in FORMATS {
            for place in [Place::Whole, Place::Headless, Place::InPartition] {
                shapes += 1;
                match is_left_alone(made, place).with_context(|| format!("{name}, {place:?}")) {
                    Ok(true) => {}
                    Ok(false) => blank.push(*name),
                    Err(error) => wrong.push(format!("{error:#}")),
                }
            }
        }
        println!("{shapes} shapes; nothing is left without the first 64 MiB of: {}", blank.join(", "));
        ensure!(wrong.is_empty() && shapes >= 120, "{}", wrong.join("\n"));
        Ok(())
    })
}

/// The disk is refused and unchanged; false when it is blank indeed.
fn is_left_alone(made: &Made, place: Place) -> Result<bool> {
    let mut fixture = Fixture::new()?;
    let image = fixture.image(NAME);
    make(made, place, &image)?;
    let before = sha256(&image)?;
    let empty = fixture.path("images/empty");
    fs::File::create(&empty)?.set_len(SIZE)?;
    if before == sha256(&empty)? {
        ensure!(place == Place::Headless, "its maker makes nothing");
        return Ok(false);
    }
    let attached = fixture.attach(NAME, false)?;
    let (outcome, notes) = fixture.run();
    let changes: Vec<String> = notes.changes.into_iter().map(|(_, what)| what).collect();
    ensure!(!changes.iter().any(|change| change.contains("formatted")), "it was formatted: {changes:?}");
    let error = outcome.err().context("it was accepted")?;
    ensure!(code_of(&error).name().starts_with("disk-"), "{}: {}", code_of(&error).name(), one_line(&error));
    ensure!(!is_mounted(&fixture.data())?, "it is mounted");
    drop(attached);
    ensure!(sha256(&image)? == before, "the disk was changed");
    Ok(true)
}

/// A format that a newer libblkid knows has no row yet, and fails here.
#[test]
#[ignore = "reads the list of this machine's blkid: cargo lab test machine"]
fn every_format_that_blkid_knows_has_a_row() -> Result<()> {
    let known = program::run(command("blkid").arg("-k"))?;
    let rows: BTreeSet<&str> = FORMATS.iter().map(|(name, ..)| *name).collect();
    let missing: Vec<&str> = known.split_whitespace().filter(|name| !rows.contains(name)).collect();
    ensure!(missing.is_empty(), "no row for {missing:?}");
    Ok(())
}
