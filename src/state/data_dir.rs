//! The directories of a state, as paths on the host.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::copy::tree::Dir;
use crate::disk::Volume;
use crate::host::{Host, blocking};
use crate::paths::VOLUME_DIRS;

/// The directories on the data disk (or on the boot disk).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    /// The gateway's state, 0700, 1000:1000: the container's bind source for `/home/node/.openclaw`.
    pub state: PathBuf,
    /// Bind source for `/home/node/.config/openclaw`, 0700, 1000:1000.
    pub config: PathBuf,
    /// Our own durable records, root 0700.
    pub records: PathBuf,
    /// Backups, root 0700.
    pub backups: PathBuf,
    /// Certificates of the proxy and their keys, its own; made when there is one.
    pub certificates: PathBuf,
    /// True when all of it lies on the boot disk.
    pub on_boot_disk: bool,
}

impl DataDir {
    /// The directories on `volume`.
    pub(crate) fn on(volume: &Volume) -> Self {
        Self::at(&volume.root, volume.disk.is_none())
    }

    /// The directories below `root`.
    pub(crate) fn at(root: impl AsRef<Path>, on_boot_disk: bool) -> Self {
        let [state, config, records, backups, certificates] = VOLUME_DIRS.map(|name| root.as_ref().join(name));
        Self { state, config, records, backups, certificates, on_boot_disk }
    }

    /// The directories of the boot disk.
    pub(crate) fn boot_disk() -> Self {
        Self::on(&Volume::boot_disk())
    }

    /// The directory in which all of it lies; only root can write there.
    pub(crate) fn root(&self) -> Result<&Path> {
        self.state.parent().context("the state directory has no parent")
    }

    /// The directory `name` beside the state directory.
    pub(crate) fn beside(&self, name: &str) -> Result<PathBuf> {
        Ok(self.root()?.join(name))
    }

    /// Whether a gateway has lived in the state directory: there is anything besides `.env`, which holds only what
    /// this program puts there before a gateway's first start. Looks at two entries at most.
    pub async fn holds_state(&self, host: &Host) -> Result<bool> {
        let doing = || format!("listing {}", self.state.display());
        let mut entries = match tokio::fs::read_dir(host.path(&self.state)).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(doing),
        };
        while let Some(entry) = entries.next_entry().await.with_context(doing)? {
            if entry.file_name() != ".env" {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// When the state was last written to: the newest time among its upper entries and its databases, whatever the
    /// size of the state. `None` when there is nothing.
    pub(crate) async fn last_used(&self, host: &Host) -> Result<Option<Timestamp>> {
        let upper = host.path(&self.state);
        let newest = blocking(move || {
            let Ok(top) = Dir::open(&upper) else { return Ok(None) };
            let databases = Dir::open(&top.at("state")).ok();
            let mut newest = None;
            for directory in [Some(top), databases].into_iter().flatten() {
                for name in directory.names()?.iter() {
                    if let Some(found) = directory.look(name)? {
                        newest = newest.max(Some(found.modified()?));
                    }
                }
            }
            Ok(newest.map(Timestamp::try_from).transpose()?)
        });
        newest.await.with_context(|| format!("finding when {} was last used", self.state.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lone_env_file_is_no_state() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (host, data) = (Host::new(root.path()), DataDir::at("/", false));
        assert!(!data.holds_state(&host).await?, "no directory");
        std::fs::create_dir(host.path(&data.state))?;
        assert!(!data.holds_state(&host).await?, "empty");
        std::fs::write(host.path(&data.state).join(".env"), "TOKEN=x")?;
        assert!(!data.holds_state(&host).await?, "only .env");
        std::fs::write(host.path(&data.state).join("openclaw.json"), "{}")?;
        assert!(data.holds_state(&host).await?);
        Ok(())
    }
}
