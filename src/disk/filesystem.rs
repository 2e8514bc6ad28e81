//! What to do with what is on the disk; making and checking the ext4 file system.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::find::{self, Device};
use super::layout::MARKER;
use super::probe::{Content, Superblock, look};
use crate::failure::{Blame as _, Code};
use crate::host::Host;

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
fn decide(content: &Content, marked: bool, partitions: usize) -> Result<Plan> {
    let found = match content {
        Content::Blank if partitions == 0 => return Ok(Plan::Format),
        Content::Table(_) if partitions == 1 => return Ok(Plan::Partition),
        Content::Ext4(superblock) if superblock.truncated => {
            return Err(anyhow!("its ext4 file system is larger than the disk")).blame(
                Code::DiskDamaged,
                "The disk was cut short: attach the whole one, or restore it from a snapshot.",
            );
        }
        Content::Ext4(superblock) if superblock.label == LABEL || marked => return Ok(Plan::Check),
        Content::Ext4(superblock) if superblock.clean => return Ok(Plan::Adopt),
        Content::Ext4(_) => "an ext4 file system of somebody else that was not unmounted cleanly".to_owned(),
        Content::Blank => format!("zeros, but {partitions} partitions in the kernel's table"),
        Content::Table(table) => format!("a partition table ({table}) with {partitions} partitions"),
        Content::Other(found) => found.clone(),
    };
    bail!("{found}")
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
    decide(&content, marked, partitions)
        .or_else(|error| if error.is::<crate::failure::Verdict>() { Err(error) } else { refuse(error, node) })
}

fn refuse<T>(found: anyhow::Error, node: &Path) -> Result<T> {
    let node = node.display();
    Err(found.context(format!("{node} is neither blank nor ours, and was not touched; found"))).blame(
        Code::DiskForeign,
        format!(
            "Look at it with `blkid -p {node}` and `wipefs --no-act {node}`. An ext4 file system that is to be used: run \
             `e2fsck -f {node}`, then `openclaw-init boot`. Something that nobody needs: attach a new, blank disk in its \
             place. Otherwise name another disk in openclaw-data-disk."
        ),
    )
}

/// Whether our marker file is on an unmounted ext4 file system, read without replaying its journal.
async fn is_marked(host: &Host, node: &Path) -> Result<bool> {
    let output = host.command("debugfs").args(["-R", &format!("cat /{MARKER}")]).arg(node).answers(&[1]).run().await?;
    Ok(output.stdout.trim_start().starts_with('{'))
}

/// Makes the file system on a disk that was proven to be blank.
pub(super) async fn format(host: &Host, node: &Path) -> Result<()> {
    let shown = node.display();
    host.progress(format!("formatting {shown}"));
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
        Content::Ext4(Superblock { label, .. }) if label == LABEL => Ok(()),
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

/// Checks an unmounted file system of ours, repairing what is safe to repair.
pub(super) async fn check(host: &Host, node: &Path) -> Result<()> {
    let shown = node.display();
    host.progress(format!("checking {shown}"));
    let (mut outcome, mut said) = e2fsck(host, "-p", node).await?;
    if outcome == Checked::Failed {
        (outcome, said) = e2fsck(host, "-p", node).await?;
    }
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
        Checked::Damaged | Checked::Failed => {
            Err(anyhow!("e2fsck could not make {shown} safe, so it was not mounted: {said}")).blame(
                Code::DiskDamaged,
                format!("Take a snapshot of the disk, then run `e2fsck {shown}` by hand and `openclaw-init boot`."),
            )
        }
    }
}

/// Checks an unmounted file system of somebody else, writing nothing.
pub(super) async fn check_foreign(host: &Host, node: &Path) -> Result<()> {
    match e2fsck(host, "-n", node).await? {
        (Checked::Clean, _) => Ok(()),
        (_, said) => refuse(anyhow!("an ext4 file system with errors ({said})"), node),
    }
}

async fn e2fsck(host: &Host, mode: &str, node: &Path) -> Result<(Checked, String)> {
    let codes: Vec<i32> = (1..=15).collect();
    let output = host.command("e2fsck").arg(mode).arg(node).answers(&codes).timeout(FSCK_LIMIT).run().await?;
    let said = if output.stdout.trim().is_empty() { output.stderr } else { output.stdout };
    Ok((checked(output.code), crate::host::tail(said.trim(), 400).replace('\n', "; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ext4(label: &str, clean: bool, truncated: bool) -> Content {
        Content::Ext4(Superblock { uuid: "u".into(), label: label.into(), clean, truncated })
    }

    #[test]
    fn only_the_provably_blank_is_formatted() {
        let other = Content::Other("xfs".into());
        let table = Content::Table("gpt".into());
        let cases = [
            (Content::Blank, false, 0, Ok(Plan::Format)),
            (Content::Blank, false, 1, Err("zeros, but 1 partitions in the kernel's table")),
            (ext4(LABEL, true, false), false, 0, Ok(Plan::Check)),
            (ext4(LABEL, false, false), false, 0, Ok(Plan::Check)),
            (ext4("theirs", false, false), true, 0, Ok(Plan::Check)),
            (ext4("theirs", true, false), false, 0, Ok(Plan::Adopt)),
            (
                ext4("", false, false),
                false,
                0,
                Err("an ext4 file system of somebody else that was not unmounted cleanly"),
            ),
            (
                ext4(LABEL, true, true),
                false,
                0,
                Err("The disk was cut short: attach the whole one, or restore it from a snapshot."),
            ),
            (table.clone(), false, 1, Ok(Plan::Partition)),
            (table.clone(), false, 0, Err("a partition table (gpt) with 0 partitions")),
            (table, false, 2, Err("a partition table (gpt) with 2 partitions")),
            (other, false, 0, Err("xfs")),
        ];
        for (content, marked, partitions, expected) in cases {
            let found = decide(&content, marked, partitions).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{content:?}, {marked}, {partitions}");
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
