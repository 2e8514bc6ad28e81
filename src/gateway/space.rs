//! Little room on a disk that the gateway needs: said before there is none.

use std::path::Path;

use crate::host::Host;
use crate::state::DataDir;
use crate::state::room::{LOW_PERCENT, is_low};

/// Warns of a disk that is nearly full, by bytes or by files.
pub(super) async fn warn(host: &Host, data: &DataDir) {
    let mut disks = vec![("boot", Path::new("/"))];
    if !data.on_boot_disk {
        disks.push(("data", &data.records));
    }
    for (disk, path) in disks {
        match is_low(host, path).await {
            Ok(false) => {}
            Ok(true) => host.warn(format!(
                "less than {LOW_PERCENT} % of the {disk} disk is free: see `df -h` and `df -i`, remove what nobody \
                 needs, or enlarge it: `gcloud compute disks resize DISK --zone=ZONE --size=SIZE`"
            )),
            Err(error) => tracing::debug!("{error:#}"),
        }
    }
}
