//! The file system follows its disk when that is enlarged, mounted and in use.

use std::path::Path;
use std::time::Duration;

use super::find::Device;
use super::probe::Superblock;
use crate::host::Host;

/// Less is not worth a change: disks grow by whole GiB, and mkfs may leave out an incomplete last block group.
const WORTHWHILE: u64 = 128 * 1024 * 1024;

/// Kernels add block groups one after the other: seconds for a TiB.
const RESIZE_LIMIT: Duration = Duration::from_secs(600);

/// What is to be done about bytes that are not used.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Grow the file system on the whole disk.
    Grow,
    /// Tell the operator how to grow this partition: a partition table is never written.
    Advise(u32),
}

/// `partition`: the only partition's number and the bytes behind it, when the file system is on one.
fn decide(spare: u64, partition: Option<(u32, u64)>) -> Action {
    match partition {
        Some((index, behind)) if behind >= WORTHWHILE => Action::Advise(index),
        None if spare >= WORTHWHILE => Action::Grow,
        _ => Action::Nothing,
    }
}

/// Grows the mounted file system on `node` to the size of the disk. One that cannot be grown is a warning: the
/// state is there and in order.
pub(super) async fn ensure(host: &Host, device: &Device, node: &Path, superblock: &Superblock) {
    let partition = if node == device.node { None } else { device.behind_partition() };
    let (disk, shown) = (device.node.display(), node.display());
    match decide(superblock.spare, partition) {
        Action::Nothing => {}
        Action::Grow => {
            host.progress(format!("growing the file system on {shown}"));
            match host.command("resize2fs").arg(node).timeout(RESIZE_LIMIT).run().await {
                Ok(_) => host.changed(format!("grew the file system on {shown} to the size of the disk")),
                Err(error) => host.warn(format!("the disk {} is larger than its file system: {error:#}", device.name)),
            }
        }
        Action::Advise(index) => host.warn(format!(
            "the disk {} is larger than its partition: run `growpart {disk} {index}` and `resize2fs {shown}`",
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
            (0, None, Action::Nothing),
            (WORTHWHILE - 1, None, Action::Nothing),
            (WORTHWHILE, None, Action::Grow),
            (0, Some((1, WORTHWHILE - 1)), Action::Nothing),
            (0, Some((3, WORTHWHILE)), Action::Advise(3)),
            (WORTHWHILE, Some((1, 0)), Action::Nothing),
        ];
        for (spare, partition, expected) in cases {
            assert_eq!(decide(spare, partition), expected, "{spare} {partition:?}");
        }
    }
}
