//! The file system grows with its disk while it is mounted and in use.

use std::path::Path;
use std::time::Duration;

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
    /// Advise the operator how to grow this partition: a partition table is never written.
    Advise(u32),
}

/// `spare` bytes follow the file system. `partition`: its number and the bytes behind it, if the file system is in it.
fn decide(spare: u64, partition: Option<(u32, u64)>) -> Growth {
    match partition {
        Some((index, behind)) if behind >= MIN_GROWTH_BYTES => Growth::Advise(index),
        None if spare >= MIN_GROWTH_BYTES => Growth::Grow,
        _ => Growth::Nothing,
    }
}

/// Grows the mounted file system on `node` to the size of the disk. A failure is a warning: the state is in order.
pub(super) async fn ensure(host: &Host, device: &Device, node: &Path, superblock: &Superblock) {
    let partition = if node == device.node { None } else { device.behind_partition() };
    let (display_disk, display_node) = (device.node.display(), node.display());
    match decide(superblock.spare, partition) {
        Growth::Nothing => {}
        Growth::Grow => {
            host.progress(format!("growing the file system on {display_node}"));
            match host.command("resize2fs").arg(node).timeout(RESIZE_TIMEOUT).run().await {
                Ok(_) => host.changed(format!("grew the file system on {display_node} to the size of the disk")),
                Err(error) => host.warn(format!("the disk {} is larger than its file system: {error:#}", device.name)),
            }
        }
        Growth::Advise(index) => host.warn(format!(
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
            (0, None, Growth::Nothing),
            (MIN_GROWTH_BYTES - 1, None, Growth::Nothing),
            (MIN_GROWTH_BYTES, None, Growth::Grow),
            (0, Some((1, MIN_GROWTH_BYTES - 1)), Growth::Nothing),
            (0, Some((3, MIN_GROWTH_BYTES)), Growth::Advise(3)),
            (MIN_GROWTH_BYTES, Some((1, 0)), Growth::Nothing),
        ];
        for (spare, partition, expected) in cases {
            assert_eq!(decide(spare, partition), expected, "{spare} {partition:?}");
        }
    }
}
