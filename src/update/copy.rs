//! The copy of the state that is the way back, beside the state itself.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;

use crate::disk::DataDir;
use crate::failure::{Blame as _, Code};
use crate::host::Host;
use crate::record::{Copy, Record};
use crate::replica;
use crate::switch::Prepared;

/// The disk must hold the state a second time.
pub(super) async fn room(host: &Host, data: &DataDir) -> Result<()> {
    for directory in [&data.state, &data.config] {
        let (needed, free) = (replica::size(host, directory).await?, replica::free(host, &data.records).await?);
        if !free.has_room_for(needed) {
            return Err(anyhow!(
                "a copy of {} needs {} MiB and the disk has {} MiB left",
                directory.display(),
                needed.bytes >> 20,
                free.bytes >> 20
            ))
            .blame(
                Code::NoSpace,
                "Grow the disk with `gcloud compute disks resize DISK --size=SIZE --zone=ZONE` (it is in use at the \
                 next boot), or remove a state that was renamed aside (`openclaw.before-*` beside the state directory).",
            );
        }
    }
    Ok(())
}

impl Copy {
    /// The copy of the state directory.
    pub(super) fn state_of(&self, data: &DataDir) -> Result<PathBuf> {
        beside(data, &self.state)
    }

    /// What takes the place of the present data when this copy does, with the record that belongs to it.
    pub(super) fn prepared(&self, data: &DataDir, record: Record) -> Result<Prepared> {
        Ok(Prepared { state: beside(data, &self.state)?, config: Some(beside(data, &self.config)?), record })
    }
}

/// A copy that does not exist yet.
pub(super) fn named(data: &DataDir, time: Timestamp) -> Result<Copy> {
    let named = |directory: &Path| {
        let name = directory.file_name().and_then(|name| name.to_str()).context("a directory without a name")?;
        Ok::<_, anyhow::Error>(format!("{name}.before-update-{}", time.strftime("%Y%m%dT%H%M%SZ")))
    };
    Ok(Copy { state: named(&data.state)?, config: named(&data.config)? })
}

/// Brings the copy level with the present data, which may be in use.
pub(super) async fn level(host: &Host, data: &DataDir, copy: &Copy) -> Result<()> {
    for (original, copy) in [(&data.state, &copy.state), (&data.config, &copy.config)] {
        let leveled = replica::level(host, original, &beside(data, copy)?).await?;
        tracing::debug!("copied {} files of {}, {} bytes", leveled.copied, original.display(), leveled.bytes);
    }
    host.changed(format!("copied {} to {}", data.state.display(), copy.state));
    Ok(())
}

/// Compares the copy with the present data, both at rest.
pub(super) async fn verify(host: &Host, data: &DataDir, copy: &Copy) -> Result<()> {
    replica::verify(host, &data.state, &beside(data, &copy.state)?).await?;
    replica::verify(host, &data.config, &beside(data, &copy.config)?).await
}

/// Removes a copy of ours; what is not there is fine.
pub(super) async fn discard(host: &Host, data: &DataDir, copy: &Copy) -> Result<()> {
    for name in [&copy.state, &copy.config] {
        let path = beside(data, name)?;
        let (removed, doing) = (host.path(&path), format!("removing the copy {}", path.display()));
        match tokio::task::spawn_blocking(move || std::fs::remove_dir_all(removed)).await? {
            Ok(()) => host.changed(format!("removed the copy {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(doing),
        }
    }
    Ok(())
}

fn beside(data: &DataDir, name: &str) -> Result<PathBuf> {
    Ok(data.root()?.join(name))
}
