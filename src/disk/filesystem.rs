//! What to do with what is on the disk; making and checking the ext4 file system.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::find::{self, Device};
use super::format_intent::{self, Intent};
use super::marker::MARKER;
use super::probe::{Content, Superblock, look};
use crate::error::{Classify as _, Code};
use crate::host::{Access, Host, blocking, remove_if_exists};
use crate::paths::{BOOT_DISK_DIR, E2FSCK_UNDO};

/// The label of the file systems that this program makes.
const LABEL: &str = "openclaw-data";

/// A whole inode table can have to be written where the kernel cannot do it later.
const MKFS_LIMIT: Duration = Duration::from_secs(600);
/// A check after an accident reads all metadata; less than the whole run's deadline.
const FSCK_LIMIT: Duration = Duration::from_secs(2400);

/// What is to be done with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Provably blank: make the file system.
    Format,
    /// Ours: let e2fsck make it safe, mount.
    Check,
    /// Somebody else's, whole and clean: add our directories, change nothing else.
    Adopt,
    /// Look at the only partition.
    Partition,
}

/// Decides from what was found. `marked`: our marker file is on that ext4 file system.
fn decide(content: &Content, marked: bool, partitions: usize, intent: Intent) -> Result<Plan> {
    if intent == Intent::Ours && partitions == 0 && may_be_cut_format(content) {
        return Ok(Plan::Format);
    }
    let found = match content {
        Content::Blank if partitions == 0 => return Ok(Plan::Format),
        Content::Table(_) if partitions == 1 => return Ok(Plan::Partition),
        Content::Ext4(superblock) if superblock.truncated => {
            return Err(anyhow!("its ext4 file system is larger than the disk")).classify(
                Code::DiskDamaged,
                "The disk was cut short: attach the whole one, or restore it from a snapshot.",
            );
        }
        Content::Ext4(superblock) if intent == Intent::Foreign && !superblock.used => ANOTHERS.to_owned(),
        Content::Ext4(superblock) if superblock.label == LABEL || marked => return Ok(Plan::Check),
        Content::Ext4(superblock) if superblock.clean => return Ok(Plan::Adopt),
        Content::Ext4(_) => "an ext4 file system of somebody else that was not unmounted cleanly".to_owned(),
        Content::Blank => format!("zeros, but {partitions} partitions in the kernel's table"),
        Content::Table(table) => format!("a partition table ({table}) with {partitions} partitions"),
        Content::Unknown(_) if intent == Intent::Foreign => ANOTHERS.to_owned(),
        Content::Unknown(at) => format!("no known signature, but a non-zero byte at offset {at}"),
        Content::Other(found) => found.clone(),
    };
    bail!("{found}")
}

/// What is said of a cut format that this boot disk knows nothing of.
const ANOTHERS: &str = "the remains of a format that another machine began, or this one with another boot disk";

/// What our own mkfs can leave when it is cut: anything without a signature, or the file system, never mounted.
fn may_be_cut_format(content: &Content) -> bool {
    match content {
        Content::Blank | Content::Unknown(_) => true,
        Content::Ext4(superblock) => superblock.label == LABEL && !superblock.used,
        Content::Table(_) | Content::Other(_) => false,
    }
}

/// A device with what is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The node of the disk or of its only partition.
    pub(super) node: PathBuf,
    pub(super) plan: Plan,
}

/// Looks at an unmounted disk and decides. Nothing is written.
pub(super) async fn plan(host: &Host, device: &Device) -> Result<Target> {
    let whole = Target { node: device.node.clone(), plan: plan_for(host, &device.node, device.partitions()).await? };
    if whole.plan != Plan::Partition {
        return Ok(whole);
    }
    let node = device.only_partition(host)?;
    match plan_for(host, &node, 0).await? {
        plan @ (Plan::Check | Plan::Adopt) => Ok(Target { node, plan }),
        Plan::Format | Plan::Partition => refuse(anyhow!("an empty partition"), &node),
    }
}

async fn plan_for(host: &Host, node: &Path, partitions: usize) -> Result<Plan> {
    let content = look(host, node).await?;
    let marked = matches!(&content, Content::Ext4(found) if found.label != LABEL) && is_marked(host, node).await?;
    let intent = match content {
        Content::Unknown(_) | Content::Ext4(_) => format_intent::read(host, node).await?,
        _ => Intent::None,
    };
    decide(&content, marked, partitions, intent)
        .or_else(|error| if error.is::<crate::error::Diagnosis>() { Err(error) } else { refuse(error, node) })
}

fn refuse<T>(found: anyhow::Error, node: &Path) -> Result<T> {
    let node = node.display();
    Err(found.context(format!("{node} is neither blank nor ours, and was not touched; found"))).classify(
        Code::DiskForeign,
        format!(
            "Look at it with `blkid -p {node}` and `wipefs --no-act {node}`. An ext4 file system that is to be used: run \
             `e2fsck -f {node}`, then `sudo openclaw-init boot`. Something that nobody needs: attach a new, blank disk in its \
             place. Otherwise name another disk in openclaw-data-disk."
        ),
    )
}

/// Whether our marker file is on an unmounted ext4 file system, read without replaying its journal.
async fn is_marked(host: &Host, node: &Path) -> Result<bool> {
    let output = host.command("debugfs").args(["-R", &format!("cat /{MARKER}")]).arg(node).answers(&[1]).run().await?;
    Ok(output.stdout.trim_start().starts_with('{'))
}

/// Makes the file system on a disk that was proven to be blank, or to hold only our own interrupted attempt.
pub(super) async fn format(host: &Host, node: &Path) -> Result<()> {
    let shown = node.display();
    host.progress(format!("formatting {shown}"));
    format_intent::declare(host, node).await?;
    // No -F: mkfs's own refusals stay in force. Nothing to discard, and nothing to overwrite, on a blank disk.
    host.command("mkfs.ext4")
        .args(["-q", "-m", "0", "-L", LABEL, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"])
        .arg(node)
        .timeout(MKFS_LIMIT)
        .run()
        .await
        .with_context(|| format!("formatting {shown}"))?;
    host.changed(format!("formatted {shown} as ext4"));
    find::settle(host, &["settle", "--timeout=5"]).await;
    match look(host, node).await? {
        Content::Ext4(Superblock { label, .. }) if label == LABEL => format_intent::withdraw(node).await,
        found => bail!("after formatting {shown} there is {found:?} on it"),
    }
}

/// What e2fsck's exit code means for us (e2fsck(8); the codes are bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checked {
    Clean,
    /// 1 and 2: errors corrected.
    Repaired,
    /// 4 and what is unknown: errors left.
    Damaged,
    /// 8: it could not do its work.
    Failed,
}

fn checked(code: i32) -> Checked {
    match code {
        0 => Checked::Clean,
        1..=3 => Checked::Repaired,
        8..=11 => Checked::Failed,
        _ => Checked::Damaged,
    }
}

/// Checks an unmounted file system of ours, repairing what is safe to repair. One that cannot be made safe is
/// left as it was: whatever e2fsck had written by then is undone.
pub(super) async fn check(host: &Host, node: &Path) -> Result<()> {
    let shown = node.display();
    host.progress(format!("checking {shown}"));
    host.ensure_dir(BOOT_DISK_DIR, Access::root(0o700)).await?;
    let undo = host.path(E2FSCK_UNDO);
    forget(&undo).await?;
    let preen = [OsStr::new("-p"), OsStr::new("-z"), undo.as_os_str()];
    let (mut outcome, mut said) = e2fsck(host, &preen, node).await?;
    match outcome {
        Checked::Damaged => {
            if let Err(error) = host.command("e2undo").arg(&undo).arg(node).timeout(FSCK_LIMIT).run().await {
                host.warn(format!("what e2fsck wrote to {shown} could not be undone: {error:#}"));
            }
        }
        // Possibly for lack of space for the undo file.
        Checked::Failed => (outcome, said) = e2fsck(host, &preen[..1], node).await?,
        Checked::Clean | Checked::Repaired => {}
    }
    forget(&undo).await?;
    match outcome {
        Checked::Clean => {
            // After a power cut; e2fsck counts it as no correction.
            if said.contains("recovering journal") {
                host.changed(format!("replayed the journal of {shown}"));
            }
            Ok(())
        }
        Checked::Repaired => {
            host.changed(format!("repaired the file system on {shown}"));
            host.warn(format!("e2fsck repaired the file system on {shown}: {said}"));
            Ok(())
        }
        Checked::Damaged | Checked::Failed => Err(anyhow!(
            "e2fsck could not make {shown} safe, so it was not mounted: {said}"
        ))
        .classify(
            Code::DiskDamaged,
            format!("Take a snapshot of the disk, then run `e2fsck {shown}` by hand and `sudo openclaw-init boot`."),
        ),
    }
}

/// Removes an undo file, if there is one.
async fn forget(undo: &Path) -> Result<()> {
    let undo = undo.to_owned();
    blocking(move || remove_if_exists(&undo)).await.map(drop)
}

/// Checks an unmounted file system of somebody else, writing nothing. It is read in full, whatever it says of
/// itself: this happens once in its life.
pub(super) async fn check_foreign(host: &Host, node: &Path) -> Result<()> {
    match e2fsck(host, &["-f", "-n"].map(OsStr::new), node).await? {
        (Checked::Clean, _) => Ok(()),
        (_, said) => refuse(anyhow!("an ext4 file system with errors ({said})"), node),
    }
}

async fn e2fsck(host: &Host, mode: &[&OsStr], node: &Path) -> Result<(Checked, String)> {
    let codes: Vec<i32> = (1..=15).collect();
    let output = host.command("e2fsck").args(mode).arg(node).answers(&codes).timeout(FSCK_LIMIT).run().await?;
    let said = if output.stdout.trim().is_empty() { output.stderr } else { output.stdout };
    // What it says about the undo file is meant for somebody who called it by hand.
    let lines = said.lines().map(str::trim).filter(|line| {
        !line.is_empty() && !line.starts_with("Overwriting existing filesystem") && !line.starts_with("e2undo ")
    });
    let said = lines.collect::<Vec<_>>().join("; ");
    Ok((checked(output.code), crate::text::tail(&said, 400).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext4(label: &str, clean: bool, truncated: bool) -> Content {
        let (uuid, label) = ("u".into(), label.into());
        Content::Ext4(Superblock { uuid, label, clean, used: true, truncated, spare: 0 })
    }

    #[test]
    fn only_the_provably_blank_is_formatted() {
        let other = Content::Other("xfs".into());
        let table = Content::Table("gpt".into());
        let dirty = "an ext4 file system of somebody else that was not unmounted cleanly";
        let short = "The disk was cut short: attach the whole one, or restore it from a snapshot.";
        let cases = [
            (Content::Blank, false, 0, Ok(Plan::Format)),
            (Content::Blank, false, 1, Err("zeros, but 1 partitions in the kernel's table")),
            (ext4(LABEL, true, false), false, 0, Ok(Plan::Check)),
            (ext4(LABEL, false, false), false, 0, Ok(Plan::Check)),
            (ext4("theirs", false, false), true, 0, Ok(Plan::Check)),
            (ext4("theirs", true, false), false, 0, Ok(Plan::Adopt)),
            (ext4("", false, false), false, 0, Err(dirty)),
            (ext4(LABEL, true, true), false, 0, Err(short)),
            (table.clone(), false, 1, Ok(Plan::Partition)),
            (table.clone(), false, 0, Err("a partition table (gpt) with 0 partitions")),
            (table, false, 2, Err("a partition table (gpt) with 2 partitions")),
            (Content::Unknown(5), false, 0, Err("no known signature, but a non-zero byte at offset 5")),
            (other, false, 0, Err("xfs")),
        ];
        for (content, marked, partitions, expected) in cases {
            let found = decide(&content, marked, partitions, Intent::None).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{content:?}, {marked}, {partitions}");
        }
    }

    #[test]
    fn a_format_is_repeated_only_when_it_was_ours_and_nobody_used_the_disk_since() {
        let unused = match ext4(LABEL, true, false) {
            Content::Ext4(superblock) => Content::Ext4(Superblock { used: false, ..superblock }),
            other => other,
        };
        let cases = [
            (Content::Unknown(5), 0, Intent::Ours, Some(Plan::Format)),
            (Content::Unknown(5), 0, Intent::Foreign, None),
            (Content::Unknown(5), 0, Intent::None, None),
            (Content::Unknown(5), 1, Intent::Ours, None),
            (unused.clone(), 0, Intent::Ours, Some(Plan::Format)),
            (unused.clone(), 0, Intent::Foreign, None),
            (unused, 0, Intent::None, Some(Plan::Check)),
            (ext4(LABEL, true, false), 0, Intent::Foreign, Some(Plan::Check)),
            (ext4(LABEL, true, false), 0, Intent::Ours, Some(Plan::Check)),
            (ext4("theirs", true, false), 0, Intent::Ours, Some(Plan::Adopt)),
            (Content::Other("xfs".into()), 0, Intent::Ours, None),
            (Content::Table("dos".into()), 0, Intent::Ours, None),
        ];
        for (content, partitions, intent, expected) in cases {
            assert_eq!(decide(&content, false, partitions, intent).ok(), expected, "{content:?} {intent:?}");
        }
    }

    #[test]
    fn the_exit_codes_of_e2fsck_are_answers() {
        let cases = [
            (0, Checked::Clean),
            (1, Checked::Repaired),
            (2, Checked::Repaired),
            (3, Checked::Repaired),
            (4, Checked::Damaged),
            (5, Checked::Damaged),
            (8, Checked::Failed),
            (12, Checked::Damaged),
        ];
        for (code, expected) in cases {
            assert_eq!(checked(code), expected, "{code}");
        }
    }
}
