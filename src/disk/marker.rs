//! The file that marks a disk as ours.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::LastDisk;
use crate::host::{Access, Host, json_file, untrusted};

/// Relative to the root of the file system.
pub(crate) const MARKER: &str = "openclaw-init/disk.json";
const FILE: &str = "disk.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Marker {
    device_name: String,
    /// When this program first used the disk (RFC 3339).
    created: String,
    /// The instance that used the disk last.
    instance_id: u64,
    /// Somebody else made the file system. Absent in markers of earlier versions.
    #[serde(default)]
    adopted: bool,
}

/// Whether the marker at `root` says that somebody else made the file system; `None` without one that can be read.
pub(super) async fn is_adopted(host: &Host, root: &Path) -> Option<bool> {
    let path = root.join(MARKER);
    read(host, path.parent()?).await.map(|marker| marker.adopted)
}

async fn read(host: &Host, records: &Path) -> Option<Marker> {
    let found = untrusted::read(host, records, FILE).await.ok().flatten();
    found.and_then(|text| serde_json::from_str(&text).ok())
}

/// Marks the file system at `root` as ours, and as used by this instance.
pub(super) async fn write(host: &Host, root: &Path, disk: &LastDisk, adopted: bool) -> Result<()> {
    let path = root.join(MARKER);
    let records = path.parent().context("the marker has no directory")?;
    host.ensure_dir(records, Access::root(0o700)).await?;
    // An unreadable marker is still a marker; it is written anew.
    let found = read(host, records).await;
    if let Some(before) = found.as_ref().filter(|marker| marker.instance_id != disk.instance_id) {
        host.changed(format!("took over the disk {} from the instance {}", disk.device_name, before.instance_id));
    }
    let created = found.map_or_else(|| jiff::Timestamp::now().to_string(), |marker| marker.created);
    let marker = Marker { device_name: disk.device_name.clone(), created, instance_id: disk.instance_id, adopted };
    json_file::write(host, &path, &marker).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_marker_of_an_earlier_version_says_that_nothing_was_adopted() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, disk) = (Host::new(root.path()), Path::new("/disk"));
        assert_eq!(is_adopted(&host, disk).await, None);
        std::fs::create_dir_all(host.path("/disk/openclaw-init"))?;
        let before = r#"{"device-name": "work", "created": "2026-01-01T00:00:00Z", "instance-id": 7}"#;
        for (text, expected) in [("", None), ("{", None), (before, Some(false))] {
            std::fs::write(host.path(disk.join(MARKER)), text)?;
            assert_eq!(is_adopted(&host, disk).await, expected, "{text}");
        }
        if nix::unistd::geteuid().is_root() {
            let used = LastDisk { device_name: "work".into(), uuid: "u".into(), instance_id: 7 };
            for adopted in [true, false] {
                write(&host, disk, &used, adopted).await?;
                assert_eq!(is_adopted(&host, disk).await, Some(adopted));
            }
            assert!(std::fs::read_to_string(host.path(disk.join(MARKER)))?.contains("2026-01-01"));
        }
        Ok(())
    }
}
