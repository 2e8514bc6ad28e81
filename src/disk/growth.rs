//! The file system grows with its disk while it is mounted and in use.
//!
//! Only one that a run made: it had the whole disk, which was blank. What lies behind somebody else's may be data.

use std::path::Path;
use std::time::Duration;

use super::filesystem::LABEL;
use super::find::Device;
use super::probe::Superblock;
use crate::host::Host;
use crate::text::MIB;

/// Less is not worth a change: disks grow by whole GiB, and mkfs may leave out an incomplete last block group.
const MIN_GROWTH_BYTES: u64 = 128 * MIB;

/// The kernel adds one block group after the other: seconds for a TiB.
const RESIZE_TIMEOUT: Duration = Duration::from_secs(600);

/// What is to be done about unused bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Growth {
    Nothing,
    /// Grow the file system on the whole disk.
    Grow,
    /// Advise the operator how to grow the file system.
    Advise,
    /// Advise the operator how to grow this partition: a partition table is never written.
    AdvisePartition(u32),
}

/// Whether somebody else made the file system. `marked`: what our marker says of that, if it is on it. Without one the
/// label is no proof: a run's file system fills its disk.
pub(super) fn is_adopted(marked: Option<bool>, superblock: &Superblock) -> bool {
    superblock.label != LABEL || marked.unwrap_or(superblock.spare >= MIN_GROWTH_BYTES)
}

/// `spare` bytes follow the file system. `partition`: its number and the bytes behind it, if the file system is in it.
fn decide(is_own: bool, spare: u64, partition: Option<(u32, u64)>) -> Growth {
    match partition {
        Some((index, behind)) if behind >= MIN_GROWTH_BYTES => Growth::AdvisePartition(index),
        None if spare >= MIN_GROWTH_BYTES && is_own => Growth::Grow,
        None if spare >= MIN_GROWTH_BYTES => Growth::Advise,
        _ => Growth::Nothing,
    }
}

/// Grows the mounted file system on `node` to the size of the disk. A failure is a warning: the state is in order.
pub(super) async fn ensure(host: &Host, device: &Device, node: &Path, spare: u64, is_own: bool) {
    let partition = if node == device.node { None } else { device.behind_partition() };
    let (display_disk, display_node) = (device.node.display(), node.display());
    match decide(is_own, spare, partition) {
        Growth::Nothing => {}
        Growth::Grow => {
            host.progress(format!("growing the file system on {display_node}"));
            match host.command("resize2fs").arg(node).timeout(RESIZE_TIMEOUT).run().await {
                Ok(_) => host.changed(format!("grew the file system on {display_node} to the size of the disk")),
                Err(error) => host.warn(format!("the disk {} is larger than its file system: {error:#}", device.name)),
            }
        }
        Growth::Advise => host.warn(format!(
            "the disk {} is larger than its file system, which is not of this program: if nothing lies behind it, run \
             `resize2fs {display_node}`",
            device.name
        )),
        Growth::AdvisePartition(index) => host.warn(format!(
            "the disk {} is larger than its partition: run `growpart {display_disk} {index}` and `resize2fs {display_node}`",
            device.name
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_disk_grows_and_a_partition_is_the_operators() {
        let cases = [
            (true, 0, None, Growth::Nothing),
            (true, MIN_GROWTH_BYTES - 1, None, Growth::Nothing),
            (true, MIN_GROWTH_BYTES, None, Growth::Grow),
            (false, MIN_GROWTH_BYTES - 1, None, Growth::Nothing),
            (false, MIN_GROWTH_BYTES, None, Growth::Advise),
            (true, 0, Some((1, MIN_GROWTH_BYTES - 1)), Growth::Nothing),
            (true, 0, Some((3, MIN_GROWTH_BYTES)), Growth::AdvisePartition(3)),
            (false, MIN_GROWTH_BYTES, Some((1, 0)), Growth::Nothing),
        ];
        for (is_own, spare, partition, expected) in cases {
            assert_eq!(decide(is_own, spare, partition), expected, "{is_own} {spare} {partition:?}");
        }
    }

    #[test]
    fn our_label_alone_does_not_make_a_file_system_ours_to_grow() {
        let cases = [
            // Of a run that was cut before the marker.
            (LABEL, None, 0, Growth::Nothing),
            (LABEL, None, MIN_GROWTH_BYTES - 1, Growth::Nothing),
            (LABEL, None, MIN_GROWTH_BYTES, Growth::Advise),
            (LABEL, Some(true), MIN_GROWTH_BYTES, Growth::Advise),
            (LABEL, Some(false), MIN_GROWTH_BYTES, Growth::Grow),
            ("theirs", None, MIN_GROWTH_BYTES, Growth::Advise),
            ("theirs", Some(true), MIN_GROWTH_BYTES, Growth::Advise),
            // A marker of an earlier version.
            ("theirs", Some(false), MIN_GROWTH_BYTES, Growth::Advise),
        ];
        for (label, marked, spare, expected) in cases {
            let (uuid, label) = (String::new(), label.to_owned());
            let superblock = Superblock { uuid, label, clean: true, used: true, truncated: false, spare };
            let found = decide(!is_adopted(marked, &superblock), spare, None);
            assert_eq!(found, expected, "{} {marked:?} {spare}", superblock.label);
        }
    }
}
