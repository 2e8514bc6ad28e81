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
}

/// Marks the file system at `root` as ours, and as used by this instance.
pub(super) async fn write(host: &Host, root: &Path, disk: &LastDisk) -> Result<()> {
    let path = root.join(MARKER);
    let records = path.parent().context("the marker has no directory")?;
    host.ensure_dir(records, Access::root(0o700)).await?;
    // An unreadable marker is still a marker; it is written anew.
    let found = untrusted::read(host, records, FILE).await.ok().flatten();
    let found = found.and_then(|text| serde_json::from_str::<Marker>(&text).ok());
    if let Some(before) = found.as_ref().filter(|marker| marker.instance_id != disk.instance_id) {
        host.changed(format!("took over the disk {} from the instance {}", disk.device_name, before.instance_id));
    }
    let created = found.map_or_else(|| jiff::Timestamp::now().to_string(), |marker| marker.created);
    let marker = Marker { device_name: disk.device_name.clone(), created, instance_id: disk.instance_id };
    json_file::write(host, &path, &marker).await.map(drop)
}
