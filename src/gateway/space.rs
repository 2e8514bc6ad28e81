//! Little room on a disk that the gateway needs: said before there is none.

use std::path::Path;

use anyhow::Result;

use crate::host::Host;
use crate::state::DataDir;
use crate::state::room::{LITTLE_PERCENT, LOW_PERCENT, is_below};

/// Warns of a disk that is nearly full, or will be, by bytes or by files.
pub(super) async fn warn(host: &Host, data: &DataDir) {
    let mut disks = vec![("boot", Path::new("/"))];
    if !data.on_boot_disk {
        disks.push(("data", &data.records));
    }
    for (disk, path) in disks {
        match least(host, path).await {
            Ok(None) => {}
            Ok(Some(percent)) => host.warn(format!(
                "less than {percent} % of the {disk} disk is free: see `df -h` and `df -i`, remove what nobody needs, \
                 or enlarge it: `gcloud compute disks resize DISK --zone=ZONE --size=SIZE`"
            )),
            Err(error) => tracing::debug!("{error:#}"),
        }
    }
}

/// The threshold below which a disk is.
async fn least(host: &Host, path: &Path) -> Result<Option<u128>> {
    for percent in [LOW_PERCENT, LITTLE_PERCENT] {
        if is_below(host, path, percent).await? {
            return Ok(Some(percent));
        }
    }
    Ok(None)
}
