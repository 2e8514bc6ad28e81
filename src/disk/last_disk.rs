//! What the boot disk remembers of the data disk.
//!
//! It answers two questions that nothing else on a machine can: was there a data disk that is missing now (no fresh
//! start elsewhere), and did this disk, which is blank now, hold data before (no formatting)? It decides nothing else.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::host::{Access, Host, json_file};
use crate::paths::{BOOT_DISK_DIR, LAST_DISK};

/// The data disk that was last in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct LastDisk {
    pub(crate) device_name: String,
    /// The file system's UUID.
    pub(crate) uuid: String,
    /// The instance that used it: a VM made from a copy of the boot disk starts without a past.
    pub(crate) instance_id: u64,
}

impl LastDisk {
    /// The disk that `instance_id` used last. A file that cannot be understood is a warning and counts as none: this is
    /// a second safeguard, not worth a gateway that does not start.
    pub(super) async fn read(host: &Host, instance_id: u64) -> Result<Option<Self>> {
        let last: Option<Self> = json_file::read_hint(host, LAST_DISK).await?;
        Ok(last.filter(|last| last.instance_id == instance_id))
    }

    /// Remembers it.
    pub(super) async fn write(&self, host: &Host) -> Result<()> {
        host.ensure_dir(BOOT_DISK_DIR, Access::root(0o700)).await?;
        json_file::write(host, LAST_DISK, self).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_this_instances_past_counts() -> Result<()> {
        let last = LastDisk { device_name: "work".into(), uuid: "u".into(), instance_id: 7 };
        let whole = serde_json::to_vec(&last)?;
        let cases = [
            (None, 7, None),
            (Some(&whole[..]), 7, Some(last)),
            (Some(&whole[..]), 8, None),
            (Some(&whole[1..]), 7, None),
        ];
        for (bytes, instance_id, expected) in cases {
            let root = tempfile::tempdir()?;
            let host = Host::new(root.path());
            if let Some(bytes) = bytes {
                std::fs::create_dir_all(host.path(BOOT_DISK_DIR))?;
                std::fs::write(host.path(LAST_DISK), bytes)?;
            }
            assert_eq!(LastDisk::read(&host, instance_id).await?, expected);
        }
        Ok(())
    }
}
