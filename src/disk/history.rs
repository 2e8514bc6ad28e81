//! What the boot disk remembers of the data disk.
//!
//! It answers two questions that no machine could answer by looking at what is left: was there a data
//! disk, which is now gone (no fresh start elsewhere); and did this disk, which is blank now, hold data
//! (no formatting). It decides nothing else.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::host::{Access, Host};

/// Beside the boot disk's other state of this program; `seal` removes it from an image.
pub(super) const FILE: &str = "/var/lib/openclaw-init/data-disk.json";

/// The data disk that was last in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Last {
    pub(super) device_name: String,
    /// The file system's UUID.
    pub(super) uuid: String,
    /// By which instance: a VM made from a copy of the boot disk starts without a past.
    pub(super) instance_id: u64,
}

impl Last {
    /// How an operator makes the machine forget.
    pub(super) const FORGET: &str = "rm /var/lib/openclaw-init/data-disk.json";

    /// What `instance_id` used last, if anything. A file that cannot be understood is forgotten, with a warning:
    /// it is a second safeguard, not worth a gateway that does not start.
    pub(super) async fn read(host: &Host, instance_id: u64) -> Result<Option<Self>> {
        let Some(bytes) = host.read(FILE).await? else { return Ok(None) };
        let last = serde_json::from_slice::<Self>(&bytes)
            .map_err(|error| host.warn(format!("{FILE} cannot be read ({error}): going on without it")));
        Ok(last.ok().filter(|last| last.instance_id == instance_id))
    }

    /// Remembers it.
    pub(super) async fn write(&self, host: &Host) -> Result<()> {
        host.ensure_dir(super::BOOT_DISK_DIR, Access::root(0o700)).await?;
        host.ensure_file(FILE, serde_json::to_vec(self)?, Access::root(0o600)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_this_instances_past_counts() -> Result<()> {
        let last = Last { device_name: "work".into(), uuid: "u".into(), instance_id: 7 };
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
                std::fs::create_dir_all(host.path(super::super::BOOT_DISK_DIR))?;
                std::fs::write(host.path(FILE), bytes)?;
            }
            assert_eq!(Last::read(&host, instance_id).await?, expected);
        }
        Ok(())
    }
}
