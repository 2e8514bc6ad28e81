//! Little room on a disk that the gateway needs: said before there is none.

use std::path::Path;

use anyhow::Result;
use nix::sys::statvfs::statvfs;

use crate::host::{Host, blocking};
use crate::state::DataDir;

/// Below this share of a disk a run warns.
const LEAST_PERCENT: u128 = 5;

/// Warns of a disk that is nearly full, by bytes or by files.
pub(super) async fn warn(host: &Host, data: &DataDir) {
    let mut disks = vec![("boot", Path::new("/"))];
    if !data.on_boot_disk {
        disks.push(("data", &data.records));
    }
    for (disk, path) in disks {
        match is_short(host, path).await {
            Ok(false) => {}
            Ok(true) => host.warn(format!(
                "less than {LEAST_PERCENT} % of the {disk} disk is free: see `df -h` and `df -i`, remove what nobody \
                 needs, or enlarge it: `gcloud compute disks resize DISK --zone=ZONE --size=SIZE`"
            )),
            Err(error) => tracing::debug!("asking for the room on the {disk} disk: {error:#}"),
        }
    }
}

async fn is_short(host: &Host, path: &Path) -> Result<bool> {
    let directory = host.path(path);
    let found = blocking(move || Ok(statvfs(&directory)?)).await?;
    let used = found.blocks().saturating_sub(found.blocks_free());
    // What is reserved for root is nobody else's; a file system that makes files as it needs them has no number.
    Ok(is_below(found.blocks_available(), used) || is_below(found.files_free(), found.files() - found.files_free()))
}

/// Whether `free` is too small a part of both.
fn is_below(free: u64, used: u64) -> bool {
    u128::from(free) * 100 < LEAST_PERCENT * (u128::from(free) + u128::from(used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_is_enough() {
        for (free, used, short) in
            [(5, 95, false), (4, 96, true), (0, 0, false), (0, 1, true), (u64::MAX, u64::MAX, false)]
        {
            assert_eq!(is_below(free, used), short, "{free} {used}");
        }
    }
}
