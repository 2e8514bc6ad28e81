//! Everything that can be on a disk, and what must become of it.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use openclaw_init::error::{Code, code_of, one_line};
use openclaw_lab::program;

use crate::fixture::{Attached, Fixture, NAME, alone, command, is_mounted, sha256, tool};
use crate::images::{self, KEPT, OURS, RECORDS, THEIRS, cut, made, partitioned, write_at};

/// How the disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    ReadOnly,
    MountedElsewhere,
    HeldOpen,
    BootDisk,
}

/// What the stage must do.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Formatted,
    /// Mounted with what is in it; the changes hold this text.
    Mounted(&'static str),
    /// Left untouched; the sentence holds this text.
    Refused(Code, &'static str),
    /// The same, but our disk was mounted for a moment.
    Ended(Code, &'static str),
}

use Expected::{Ended, Formatted, Mounted, Refused};
use State::{BootDisk, Free, HeldOpen, MountedElsewhere, ReadOnly};

struct Case {
    name: &'static str,
    make: fn(&Path) -> Result<()>,
    state: State,
    expected: Expected,
}

macro_rules! cases {
    ($($name:literal, $state:expr, $make:expr, $expected:expr;)*) => {
        [$(Case { name: $name, make: $make, state: $state, expected: $expected },)*]
    };
}

const FOREIGN: Code = Code::DiskForeign;
const DAMAGED: Code = Code::DiskDamaged;

#[rustfmt::skip]
fn cases() -> impl IntoIterator<Item = Case> {
    cases![
        // name, attached, made by, expected
        "blank", Free, images::zeros, Formatted;
        "sparse blank", Free, images::sparse, Formatted;
        "ours, clean", Free, |i| made(i, &[OURS, KEPT]), Mounted("");
        "ours, journal not replayed", Free, |i| cut(i, &[OURS]), Mounted("replayed the journal");
        "ours, needs a check", Free,
            |i| made(i, &[OURS, KEPT, "debugfs -w -R ssv\u{a0}free_blocks_count\u{a0}5 {}", "debugfs -w -R ssv\u{a0}state\u{a0}0 {}"]),
            Mounted("repaired the file system");
        "somebody's ext4, clean", Free, |i| made(i, &[THEIRS, KEPT]), Mounted("");
        "GPT with one clean ext4", Free, images::gpt_with_ext4, Mounted("");
        "somebody's ext4, 5 MB of names in its top directory", Free, images::many_names, Mounted("");

        "random", Free, images::random, Refused(FOREIGN, "no known signature");
        "ext4 without its first superblock", Free,
            |i| made(i, &[OURS, "dd if=/dev/zero of={} bs=1024 seek=1 count=1 conv=notrunc status=none"]),
            Refused(FOREIGN, "no known signature");
        "ext4 without its first 8 MiB", Free,
            |i| made(i, &[OURS, "dd if=/dev/zero of={} bs=1M count=8 conv=notrunc status=none"]),
            Refused(FOREIGN, "no known signature");
        "ext4, cut short", Free, |i| made(i, &["truncate -s 1200M {}", OURS, "truncate -s 600M {}"]), Refused(DAMAGED, "larger than the disk");
        "ours, beyond e2fsck -p", Free,
            |i| made(i, &[OURS, KEPT, "debugfs -w -R clri\u{a0}<2> {}", "debugfs -w -R ssv\u{a0}state\u{a0}0 {}"]),
            Refused(DAMAGED, "Root inode is not a directory");
        "ours, journal not replayed, beyond e2fsck -p", Free, images::cut_and_torn, Refused(DAMAGED, "directory corrupted");
        "somebody's ext4, not unmounted", Free, |i| cut(i, &[THEIRS]), Refused(FOREIGN, "not unmounted cleanly");
        "somebody's ext4, clean but damaged", Free, |i| made(i, &[THEIRS, "debugfs -w -R clri\u{a0}<2> {}"]), Refused(FOREIGN, "with errors");
        "xfs", Free, |i| made(i, &["mkfs.xfs -q {}"]), Refused(FOREIGN, "xfs");
        "btrfs", Free, |i| made(i, &["mkfs.btrfs -q {}"]), Refused(FOREIGN, "btrfs");
        "vfat", Free, |i| made(i, &["mkfs.vfat {}"]), Refused(FOREIGN, "vfat");
        "swap", Free, |i| made(i, &["mkswap -q {}"]), Refused(FOREIGN, "swap");
        "LUKS", Free, |i| made(i, &["cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /etc/hostname {}"]), Refused(FOREIGN, "crypto_LUKS");
        "LVM physical volume", Free, |i| made(i, &["unshare --mount sh tests/disk/scripts/lvm.sh {} 1"]), Refused(FOREIGN, "LVM2_member");
        "md member", Free, images::raid, Refused(FOREIGN, "linux_raid_member");
        "ZFS", Free, |i| made(i, &["unshare --mount sh tests/disk/scripts/zpool.sh {}"]), Refused(FOREIGN, "zfs_member");
        "GPT, empty", Free, |i| partitioned(i, "label: gpt\n"), Refused(FOREIGN, "(gpt) with 0 partitions");
        "GPT, two partitions", Free, |i| partitioned(i, "label: gpt\n,200M\n,\n"), Refused(FOREIGN, "(gpt) with 2 partitions");
        "GPT, one empty partition", Free, |i| partitioned(i, "label: gpt\n,\n"), Refused(FOREIGN, "no file system");
        "DOS table", Free, |i| partitioned(i, "label: dos\n"), Refused(FOREIGN, "(dos) with 0 partitions");
        "DOS table over ext4", Free,
            |i| { partitioned(i, "label: dos\n,\n")?; tool("mkfs.ext4 -q -F -L theirs {}", i)?; with_table(i) },
            Refused(FOREIGN, "");
        "iso9660", Free, |i| archive(i, "xorriso -as mkisofs -quiet -o {} /etc/apt"), Refused(FOREIGN, "iso9660");
        "squashfs", Free, |i| archive(i, "mksquashfs /etc/apt {} -quiet -no-progress -noappend"), Refused(FOREIGN, "squashfs");
        "ext2", Free, |i| made(i, &["mkfs.ext2 -q {}"]), Refused(FOREIGN, "only ext4 is used");
        "ext3", Free, |i| made(i, &["mkfs.ext3 -q {}"]), Refused(FOREIGN, "only ext4 is used");
        "somebody's ext4 with our names", Free,
            |i| made(i, &[THEIRS, "debugfs -w -R mkdir\u{a0}openclaw {}", "debugfs -w -R mkdir\u{a0}backups {}"]),
            Refused(FOREIGN, "names already: openclaw, backups");
        "somebody's ext4 with deleted files in use", Free,
            |i| made(i, &[THEIRS, "debugfs -w -R ssv\u{a0}last_orphan\u{a0}12 {}"]),
            Refused(FOREIGN, "not unmounted cleanly");
        "ours, read-only by a feature", Free,
            |i| made(i, &[OURS, "tune2fs -O read-only {}"]), Ended(Code::DiskReadonly, "read-only");
        "ours, without a free block", Free, |i| images::full(i, "for s in 99M 9M 1M 4K; do while fallocate -l $s f$((n += 1)); do :; done; done"), Ended(Code::NoSpace, "df -i");
        "ours, without a free inode", Free,
            |i| images::full(i, "seq 9999 | xargs mkdir"), Ended(Code::NoSpace, "df -i");
        "ours, a file has our name", Free,
            |i| made(i, &[OURS, "debugfs -w -R write\u{a0}/etc/hostname\u{a0}openclaw {}"]), Ended(FOREIGN, "not a directory");
        "ours, a link has our name", Free,
            |i| made(i, &[OURS, "debugfs -w -R symlink\u{a0}openclaw\u{a0}/etc {}"]), Ended(FOREIGN, "not a directory");
        "labelled like ours, with a website of our name", Free,
            |i| made(i, &[OURS, "debugfs -w -R mkdir\u{a0}openclaw {}", "debugfs -w -R write\u{a0}/etc/hostname\u{a0}openclaw/index.html {}"]),
            Ended(FOREIGN, "names already: openclaw");
        "labelled like ours, with another user's directory of our name", Free,
            |i| made(i, &[OURS, "debugfs -w -R mkdir\u{a0}backups {}", "debugfs -w -R sif\u{a0}backups\u{a0}uid\u{a0}33 {}"]),
            Ended(FOREIGN, "names already: backups");
        "ours, its top directory is immutable", Free, |i| made(i, &[OURS, &immutable("/")]), Ended(FOREIGN, "lsattr");
        "ours, the directory of the records is immutable", Free,
            |i| made(i, &[OURS, RECORDS, &immutable("openclaw-init")]), Ended(FOREIGN, "lsattr");
        "somebody's ext4, its top directory is immutable", Free,
            |i| made(i, &[THEIRS, &immutable("/")]), Ended(FOREIGN, "lsattr");
        "ours, cut before the marker was written", Free,
            |i| made(i, &[OURS, KEPT, RECORDS, "debugfs -w -R mkdir\u{a0}openclaw {}", "debugfs -w -R mkdir\u{a0}backups {}"]), Mounted("");
        "ours, cut while the marker was written", Free,
            |i| made(i, &[OURS, KEPT, RECORDS, "debugfs -w -R write\u{a0}/etc/hostname\u{a0}openclaw-init/.tmpAbCdEf {}"]), Mounted("");
        "ours, the marker is a directory", Free,
            |i| made(i, &[OURS, RECORDS, "debugfs -w -R mkdir\u{a0}openclaw-init/disk.json {}"]), Ended(FOREIGN, "disk.json");
        "ours, the marker is a pipe", Free,
            |i| made(i, &[OURS, KEPT, RECORDS, "sh -c cd\u{a0}/;printf\u{a0}'cd\u{a0}openclaw-init\\nmknod\u{a0}disk.json\u{a0}p\\n'|debugfs\u{a0}-w\u{a0}{}"]), Mounted("");
        "ours, the marker has 900 MB", Free,
            |i| made(i, &[OURS, KEPT, RECORDS, "debugfs -w -R write\u{a0}/etc/hostname\u{a0}openclaw-init/disk.json {}",
                "debugfs -w -R sif\u{a0}openclaw-init/disk.json\u{a0}size\u{a0}900000000 {}"]), Mounted("");
        "one block of data anywhere", Free,
            |i| { images::sparse(i)?; write_at(i, images::random_block(), &[1; 4096]) },
            Refused(FOREIGN, "no known signature");
        "of no length", Free, |i| Ok(File::create_new(i).map(drop)?), Refused(FOREIGN, "only 0 bytes");
        "unreadable", Free, images::unreadable, Refused(DAMAGED, "cannot be read");
        "read-only", ReadOnly, |i| made(i, &[OURS]), Refused(Code::DiskReadonly, "read-only");
        "blank, read-only", ReadOnly, images::sparse, Refused(Code::DiskReadonly, "read-only");
        "mounted elsewhere", MountedElsewhere, |i| made(i, &[OURS, KEPT]), Refused(FOREIGN, "is mounted on");
        "blank, held by a program", HeldOpen, images::sparse, Refused(FOREIGN, "in use");
        "the boot disk, by name", BootDisk, images::sparse, Refused(Code::ConfigInvalid, "is the boot disk");
    ]
}

/// What `chattr +i` does.
fn immutable(path: &str) -> String {
    format!("debugfs -w -R sif\u{a0}{path}\u{a0}flags\u{a0}0x80010 {{}}")
}

/// The table and its end mark, which mkfs has overwritten, as another machine's tool would put them back.
fn with_table(image: &Path) -> Result<()> {
    let mut table = [0; 66];
    table[4] = 0x83;
    table[8..16].copy_from_slice(&[0, 8, 0, 0, 0, 0, 16, 0]);
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    write_at(image, 446, &table)
}

/// An archive that is a file system, padded to a disk's size.
fn archive(image: &Path, line: &str) -> Result<()> {
    tool(line, image)?;
    tool("truncate -s 600M {}", image).map(drop)
}

#[test]
#[ignore = "needs root and the tools that make disks: cargo lab test machine"]
fn every_disk_is_formatted_mounted_or_left_alone() -> Result<()> {
    alone("corpus::every_disk_is_formatted_mounted_or_left_alone", || {
        let mut wrong = Vec::new();
        for case in cases() {
            let Case { name, expected, .. } = case;
            let start = std::time::Instant::now();
            let outcome = check(&case);
            println!("{name:44} {expected:44?} {} ms", start.elapsed().as_millis());
            wrong.extend(outcome.err().map(|error| format!("{name}: {error:#}")));
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

fn check(case: &Case) -> Result<()> {
    let mut fixture = Fixture::new()?;
    let image = fixture.image(NAME);
    (case.make)(&image).context("making the disk")?;
    let attached = fixture.attach(NAME, case.state == ReadOnly)?;
    let _busy = occupy(&mut fixture, &attached, case.state)?;
    let before = sha256(&image);
    match case.expected {
        Formatted => is_used(&fixture, &attached.node, "formatted", false),
        Mounted(text) => is_used(&fixture, &attached.node, text, true),
        Refused(code, text) | Ended(code, text) => {
            let error = fixture.run().0.err().context("it was accepted")?;
            let said = one_line(&error);
            ensure!(code_of(&error) == code && said.contains(text), "{}: {said}", code_of(&error).name());
            ensure!(!is_mounted(&fixture.data())?, "it was mounted");
            drop(attached);
            if let (Ok(before), Refused(..)) = (before, case.expected) {
                ensure!(sha256(&image)? == before, "the disk was changed");
            }
            Ok(())
        }
    }
}

fn occupy(fixture: &mut Fixture, attached: &Attached, state: State) -> Result<Option<File>> {
    match state {
        MountedElsewhere => {
            let point: PathBuf = fixture.path("elsewhere");
            fs::create_dir(&point)?;
            program::run(command("mount").args(["-o", "ro"]).arg(&attached.node).arg(&point))?;
        }
        HeldOpen => {
            let exclusive = nix::fcntl::OFlag::O_EXCL.bits();
            return Ok(Some(File::options().read(true).custom_flags(exclusive).open(&attached.node)?));
        }
        BootDisk => fixture.instance.disks.retain(|disk| disk.device_name == NAME),
        Free | ReadOnly => {}
    }
    if state == BootDisk {
        fixture.instance.disks[0].index = 0;
    }
    Ok(None)
}

/// The stage takes the disk into use, a second run changes nothing, and the next boot mounts it again.
fn is_used(fixture: &Fixture, node: &Path, text: &str, held_something: bool) -> Result<()> {
    let changes = fixture.changes()?;
    ensure!(changes.contains(text), "it {changes}");
    ensure!(changes.contains("formatted") != held_something, "it {changes}");
    ensure!(!held_something || fixture.data().join("kept").exists(), "the file has gone");
    let source = tool("findmnt -no SOURCE {}", &fixture.data())?;
    ensure!(source.starts_with(&*node.to_string_lossy()), "{source} is mounted");
    ensure!(fixture.changes()?.is_empty(), "the second run changed something: {}", fixture.changes()?);
    fixture.unmount()?;
    let again = fixture.changes()?;
    ensure!(again.split("; ").all(|change| change.starts_with("mounted ")), "after a reboot it {again}");
    fixture.unmount()
}
