//! Every format that libblkid knows, at every place: none may ever be formatted over.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use openclaw_init::config::ProofChoice;
use openclaw_init::error::{Code, code_of, one_line};

use crate::fixture::{Fixture, NAME, alone, command, is_mounted, sha256, tool};
use crate::images::{KEPT, MIB, SIZE, copy_at, partitioned, sparse, write_at};
use openclaw_lab::program;

/// How a disk of a format comes to be.
enum Made<'a> {
    /// By its own tool.
    Tool(&'a str),
    /// By its signature, where no tool of Debian 12's makes it: bytes and offset (negative: from the end). mdadm needs
    /// the kernel's md driver and integritysetup its device mapper, which not every kernel has that tests run on.
    /// bcachefs, Stratis, VDO and Oracle ASM have no package; nobody but their vendors' systems makes VMFS and
    /// `BitLocker`; `ceph-osd` would bring hundreds of megabytes.
    Signature(&'a [u8], i64),
}

use Made::{Signature, Tool};

/// libblkid's name, what is made, how. A format of several kinds has several rows.
#[rustfmt::skip]
const FORMATS: &[(&str, &str, Made<'static>)] = &[
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
    ("DM_verity_hash", "verity", Tool("veritysetup format /bin/bash {}")),
    ("ocfs2", "ocfs2", Tool("mkfs.ocfs2 -q -F -x {}")),
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
    ("bcache", "bcache's cache", Tool("make-bcache -C {}")),
    ("ceph_bluestore", "Ceph", Signature(b"bluestore block device", 0)),
    ("drbd", "DRBD 8", Tool("drbdmeta --force 0 v08 {} internal create-md")),
    ("drbd", "DRBD 9", Tool("drbdmeta --force 0 v09 {} internal create-md 1")),
    ("drbdmanage_control_volume", "drbdmanage", Signature(b"$DRBDmgr=q", 0)),
    ("drbdproxy_datalog", "drbdproxy", Signature(b"DRBDdlh*", 0)),
    ("LVM2_member", "LVM2", Tool("unshare --mount sh tests/disk/scripts/lvm.sh {} 1")),
    ("LVM2_member", "LVM2, metadata at both ends", Tool("unshare --mount sh tests/disk/scripts/lvm.sh {} 2")),
    ("LVM1_member", "LVM1", Signature(b"HM", 0)),
    ("DM_snapshot_cow", "snapshot", Signature(b"SnAp", 0)),
    ("DM_integrity", "integrity", Signature(b"integrt\0", 0)),
    ("VMFS_volume_member", "VMFS volume", Signature(&[0x0d, 0xd0, 0x01, 0xc0], 0x10_0000)),
    ("VMFS", "VMFS", Signature(&[0x5e, 0xf1, 0xab, 0x2f], 0x20_0000)),
    ("ubi", "ubi", Signature(b"UBI#", 0)),
    ("ubifs", "ubifs", Tool("mkfs.ubifs -m 2048 -e 126976 -c 100 -r /etc/apt -o {}")),
    ("vdo", "vdo", Signature(b"dmvdo001", 0)),
    ("stratis", "stratis", Signature(b"!Stra0tis\x86\xff\x02^\x41rh", 512 + 4)),
    ("BitLocker", "BitLocker", Signature(b"\xeb\x58\x90-FVE-FS-", 0)),
    ("swsuspend", "hibernation", Signature(b"S1SUSPEND", 4086)),
    ("xfs_external_log", "xfs log", Tool("sh -c truncate\u{a0}-s\u{a0}600M\u{a0}{}.data\u{a0}&&\u{a0}mkfs.xfs\u{a0}-q\u{a0}-l\u{a0}logdev={},size=64m\u{a0}{}.data")),
    ("exfs", "exfs", Signature(b"EXFS", 0)),
    ("ext4dev", "ext4dev", Tool("mkfs.ext4 -q -F -E test_fs {}")),
    ("reiser4", "reiser4", Tool("mkfs.reiser4 -y -f {}")),
    ("iso9660", "iso9660", Tool("xorriso -as mkisofs -quiet -o {} /etc/apt")),
    // Without its first 64 MiB: the labels at the end alone.
    ("zfs_member", "ZFS", Tool("unshare --mount sh tests/disk/scripts/zpool.sh {}")),
    ("hfsplus", "HFS+", Signature(b"H+\0\x04", 1024)),
    ("hfs", "HFS", Tool("sh -c HOME={}.home;\u{a0}export\u{a0}HOME;\u{a0}mkdir\u{a0}$HOME\u{a0}&&\u{a0}hformat\u{a0}{}")),
    ("ufs", "ufs", Tool("makefs -t ffs -s 64m {} /etc/apt")),
    ("ufs", "ufs 2", Tool("makefs -t ffs -o version=2 -s 64m {} /etc/apt")),
    ("hpfs", "hpfs", Signature(&[0x49, 0xe8, 0x95, 0xf9], 8192)),
    ("sysv", "sysv", Signature(&[0xfd, 0x18, 0x7e, 0x20], 512 + 504)),
    ("xenix", "xenix", Signature(&[0x2b, 0x55, 0x44], 1024 + 1016)),
    ("ReFS", "ReFS", Signature(b"\0\0\0ReFS\0", 0)),
    ("cramfs", "cramfs", Tool("mkfs.cramfs /etc/apt {}")),
    ("romfs", "romfs", Tool("genromfs -f {} -d /etc/apt")),
    ("gfs", "gfs", Signature(&[0x01, 0x16, 0x19, 0x70], 65536)),
    ("vxfs", "vxfs", Signature(&[0xf5, 0xfc, 0x01, 0xa5], 1024)),
    ("squashfs", "squashfs", Tool("mksquashfs /etc/apt {} -quiet -no-progress -noappend")),
    ("squashfs3", "squashfs 3", Signature(b"sqsh", 0)),
    ("nss", "nss", Signature(b"SPB5", 0x1000)),
    ("befs", "befs", Signature(b"BFS1", 512 + 32)),
    ("mpool", "mpool", Signature(b"mpoolDev", 0)),
    ("apfs", "apfs", Tool("mkapfs {}")),
    ("zonefs", "zonefs", Signature(b"SFOZ", 0)),
    ("erofs", "erofs", Tool("mkfs.erofs {} /etc/apt")),
    // What libblkid does not know.
    ("", "bcachefs", Signature(&[0xc6, 0x85, 0x73, 0xf6], 4096 + 24)),
    ("", "tar", Tool("tar -C / -cf {} etc/apt")),
    ("", "text", Tool("cp /etc/services {}")),
];

/// The features of `mke2fs -O` (ext4(5)), each with what it needs and without what it excludes.
#[rustfmt::skip]
const EXT_FEATURES: &[&str] = &[
    "64bit", "^64bit", "bigalloc -C 8192", "casefold", "^dir_index", "^dir_nlink", "ea_inode", "encrypt", "^ext_attr", "extent",
    "^extent,^64bit", "^extra_isize", "fast_commit", "^filetype", "flex_bg", "^flex_bg", "has_journal", "^has_journal",
    "^huge_file", "inline_data", "large_dir", "^large_file", "metadata_csum", "^metadata_csum", "metadata_csum_seed",
    "meta_bg,^resize_inode", "mmp", "orphan_file", "project,quota", "quota", "^resize_inode", "^sparse_super,^resize_inode",
    "sparse_super2,^resize_inode", "stable_inodes", "uninit_bg,^metadata_csum", "verity",
];

/// Those of which a copy at a fixed place outlives the first 64 MiB: samples find them, too.
const COPIED: &[&str] = &[
    "ext2",
    "ext3",
    "ext4, dirty",
    "xfs",
    "btrfs",
    "ntfs",
    "ZFS",
    "ext4dev",
    "md 0.90",
    "md 1.0",
    "ddf",
    "Intel",
    "LSI",
    "VIA",
    "Silicon",
    "NVIDIA",
    "Promise",
    "HighPoint 45x",
    "Adaptec",
    "JMicron",
];

/// Where on the disk the format is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// In a first partition that begins at this sector, or on the whole disk.
    partition: Option<u64>,
    /// Without its first 64 MiB, and without the partition table.
    is_headless: bool,
}

const WHOLE: Place = Place { partition: None, is_headless: false };
const HEADLESS: Place = Place { partition: None, is_headless: true };

/// The disk itself, whole and without its head, and a partition as today's tools begin it.
const PLACES: [Place; 3] = [WHOLE, HEADLESS, Place { partition: Some(2048), is_headless: false }];
/// The partition without its head, and one as DOS' tools began it.
const MORE_PLACES: [Place; 3] = [
    Place { partition: Some(2048), is_headless: true },
    Place { partition: Some(63), is_headless: false },
    Place { partition: Some(63), is_headless: true },
];

const HEAD: u64 = 64 * MIB;
/// What a disk has besides its first partition.
const AROUND: u64 = 2 * MIB;

fn make(made: &Made<'_>, place: Place, image: &Path) -> Result<()> {
    let size = if place.partition.is_some() { SIZE - AROUND } else { SIZE };
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
    if place.is_headless {
        tool(&format!("fallocate --punch-hole --offset 0 --length {HEAD} {{}}"), &alone)?;
    }
    let Some(sector) = place.partition else { return Ok(fs::rename(&alone, image)?) };
    if place.is_headless {
        sparse(image)?;
    } else {
        partitioned(image, &format!("label: dos\nstart={sector}, size={}\n", size / 512))?;
    }
    copy_at(&alone, image, sector * 512)
}

#[test]
#[ignore = "needs root and the tools that make disks: cargo lab test machine"]
fn no_format_at_any_place_is_formatted_over() -> Result<()> {
    alone("formats::no_format_at_any_place_is_formatted_over", || {
        let blank = none_is_formatted_over(&PLACES)?;
        println!("nothing is left without the first 64 MiB of: {blank:?}");
        ensure!(blank == documented(), "docs/disks.md names {:?}", documented());
        Ok(())
    })
}

#[test]
#[ignore = "needs root and the tools that make disks: cargo lab test machine --long"]
fn no_format_at_more_places_is_formatted_over() -> Result<()> {
    alone("formats::no_format_at_more_places_is_formatted_over", || none_is_formatted_over(&MORE_PLACES).map(drop))
}

/// The formats made by tools of which nothing is left without the head of the disk.
fn none_is_formatted_over(places: &[Place]) -> Result<BTreeSet<&'static str>> {
    let (mut wrong, mut shapes, mut blank) = (Vec::new(), 0, BTreeSet::new());
    for (known, name, made) in FORMATS {
        for place in places {
            shapes += 1;
            match is_left_alone(made, *place, COPIED.contains(name)).with_context(|| format!("{name}, {place:?}")) {
                Ok(false) if *place == HEADLESS && matches!(made, Tool(_)) => {
                    blank.insert(if known.is_empty() { *name } else { *known });
                }
                Ok(_) => {}
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
    }
    println!("{shapes} shapes of {} formats", FORMATS.len());
    ensure!(wrong.is_empty() && shapes >= 250, "{}", wrong.join("\n"));
    Ok(blank)
}

/// The formats of which docs/disks.md says that they leave nothing.
fn documented() -> BTreeSet<&'static str> {
    let mut lines = include_str!("../../docs/disks.md").lines();
    let line = lines.find(|line| line.contains(" leaves nothing")).unwrap_or_default();
    line.split('`').skip(1).step_by(2).collect()
}

#[test]
#[ignore = "needs root and the tools that make disks: cargo lab test machine"]
fn ext2_to_4_with_each_feature_are_left_alone_or_used_as_they_are() -> Result<()> {
    alone("formats::ext2_to_4_with_each_feature_are_left_alone_or_used_as_they_are", || {
        let (mut wrong, mut used, mut refused) = (Vec::new(), 0, 0);
        for kind in ["ext2", "ext3", "ext4"] {
            for feature in EXT_FEATURES {
                match is_used_or_left_alone(&format!("mkfs.{kind} -q -F -O {feature} {{}}")) {
                    Ok(Some(true)) => used += 1,
                    Ok(Some(false)) => refused += 1,
                    Ok(None) => println!("mkfs makes no {kind} with {feature}"),
                    Err(error) => wrong.push(format!("{kind} with {feature}: {error:#}")),
                }
            }
        }
        println!("{used} are used as they are, {refused} are left alone");
        ensure!(wrong.is_empty() && used >= 20 && refused >= 40, "{used}, {refused}; {}", wrong.join("\n"));
        Ok(())
    })
}

/// A clean file system that `line` makes is mounted with the file in it, or refused and unchanged; without its first
/// 64 MiB it is refused. True when it was mounted; nothing when there is no such file system.
fn is_used_or_left_alone(line: &str) -> Result<Option<bool>> {
    let mut fixture = Fixture::new()?;
    let image = fixture.image(NAME);
    sparse(&image)?;
    if tool(line, &image).is_err() {
        return Ok(None);
    }
    tool(KEPT, &image)?;
    let before = sha256(&image)?;
    let attached = fixture.attach(NAME, false)?;
    let (outcome, notes) = fixture.run();
    ensure!(!notes.changes.iter().any(|(_, what)| what.contains("formatted")), "it was formatted: {:?}", notes.changes);
    let is_used = outcome.is_ok();
    match outcome {
        Ok(_) => ensure!(fixture.data().join("kept").exists(), "the file has gone"),
        Err(error) => {
            ensure!(code_of(&error) == Code::DiskForeign, "{}: {}", code_of(&error).name(), one_line(&error));
            ensure!(!is_mounted(&fixture.data())?, "it is mounted");
        }
    }
    fixture.unmount()?;
    drop(attached);
    ensure!(is_used || sha256(&image)? == before, "the disk was changed");
    drop(fixture);
    is_left_alone(&Tool(line), HEADLESS, true).context("without its first 64 MiB")?;
    Ok(Some(is_used))
}

/// The disk is refused and unchanged, also after samples where it has `copies` or its head; false when it is blank
/// indeed.
fn is_left_alone(made: &Made<'_>, place: Place, copies: bool) -> Result<bool> {
    let mut fixture = Fixture::new()?;
    let image = fixture.image(NAME);
    make(made, place, &image)?;
    let before = sha256(&image)?;
    let empty = fixture.path("images/empty");
    fs::File::create(&empty)?.set_len(SIZE)?;
    if before == sha256(&empty)? {
        ensure!(place.is_headless && !copies, "nothing of it is on the disk");
        return Ok(false);
    }
    let attached = fixture.attach(NAME, false)?;
    is_refused(&fixture)?;
    if copies || !place.is_headless {
        fixture.proof = ProofChoice::Sampled;
        is_refused(&fixture).context("after samples")?;
    }
    drop(attached);
    ensure!(sha256(&image)? == before, "the disk was changed");
    Ok(true)
}

fn is_refused(fixture: &Fixture) -> Result<()> {
    let (code, words) = fixture.refusal()?;
    ensure!(code.name().starts_with("disk-"), "{code}: {words}");
    Ok(())
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
