//! The directories on the data disk, and the file that marks it as ours.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::DataDir;
use crate::host::{Access, Host};
use crate::metadata::Instance;

/// The marker file, relative to the root of the file system.
pub(super) const MARKER: &str = "openclaw-init/disk.json";

/// The marker's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Marker {
    device_name: String,
    /// When this program first used the disk (RFC 3339).
    created: String,
    /// The instance that used the disk last.
    instance_id: u64,
}

/// The directories below `root`.
pub(super) fn data_dir(root: &Path, on_boot_disk: bool) -> DataDir {
    DataDir {
        state: root.join("openclaw"),
        config: root.join("config-openclaw"),
        records: root.join("openclaw-init"),
        backups: root.join("backups"),
        on_boot_disk,
    }
}

/// Makes the directories, or repairs their owners and modes: of themselves, never of what is in them.
pub(super) async fn ensure(host: &Host, data: &DataDir) -> Result<()> {
    for (path, access) in [
        (&data.records, Access::root(0o700)),
        (&data.backups, Access::root(0o700)),
        (&data.config, Access::gateway(0o700)),
        (&data.state, Access::gateway(0o700)),
    ] {
        host.ensure_dir(path, access).await?;
    }
    Ok(())
}

/// Marks the disk as ours, and as used by this instance.
pub(super) async fn mark(host: &Host, root: &Path, device_name: &str, instance: &Instance) -> Result<()> {
    let path = root.join(MARKER);
    // A marker that cannot be read marks all the same; it is written anew.
    let present = host.read(&path).await?.and_then(|bytes| serde_json::from_slice::<Marker>(&bytes).ok());
    if let Some(before) = present.as_ref().filter(|marker| marker.instance_id != instance.id) {
        host.changed(format!("took over the disk {device_name} from the instance {}", before.instance_id));
    }
    let created = present.map_or_else(|| jiff::Timestamp::now().to_string(), |marker| marker.created);
    let marker = Marker { device_name: device_name.to_owned(), created, instance_id: instance.id };
    host.ensure_file(&path, serde_json::to_vec(&marker)?, Access::root(0o600)).await.map(drop)
}

/// Whether a gateway has lived in this state directory: there is anything besides `.env`, which holds only
/// what this program puts there before a gateway's first start. Looks at two entries at most.
pub(super) async fn holds_state(host: &Host, state: &Path) -> Result<bool> {
    let doing = || format!("listing {}", state.display());
    let mut entries = match tokio::fs::read_dir(host.path(state)).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(doing),
    };
    while let Some(entry) = entries.next_entry().await.with_context(doing)? {
        if entry.file_name() != ".env" {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lone_env_file_is_no_state() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, state) = (Host::new(root.path()), Path::new("/state"));
        assert!(!holds_state(&host, state).await?, "no directory");
        std::fs::create_dir(host.path(state))?;
        assert!(!holds_state(&host, state).await?, "empty");
        std::fs::write(host.path("/state/.env"), "TOKEN=x")?;
        assert!(!holds_state(&host, state).await?, "only .env");
        std::fs::write(host.path("/state/openclaw.json"), "{}")?;
        assert!(holds_state(&host, state).await?);
        Ok(())
    }
}
