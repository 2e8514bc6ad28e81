//! The way back from a format: what mkfs overwrote, kept on the boot disk for a week.
//!
//! It takes back mkfs alone. So the kernel writes no inode tables in that week. What people wrote since is not in it. A
//! note beside it says of which file system it is: written to another one it would destroy that.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};

use super::probe;
use crate::error::{Classify as _, Code, RUN_AGAIN};
use crate::host::{Access, Host, blocking, if_exists, remove_if_exists};
use crate::paths::{BOOT_DISK_DIR, MKFS_UNDO, MKFS_UNDO_UUID};
use crate::text::{GIB, MIB};

const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What mkfs overwrites grows with the disk; on a larger one it would fill the boot disk.
const MAX_DISK_BYTES: u64 = 2048 * GIB;
/// What it overwrites on a disk of that size.
const MAX_BYTES: u64 = 64 * MIB;

const E2UNDO_TIMEOUT: Duration = Duration::from_secs(600);

/// Refuses a format of the disk `node` for whose way back there is no room. An earlier file will give way.
pub(super) async fn check_room(host: &Host, node: &Path) -> Result<()> {
    host.ensure_dir(BOOT_DISK_DIR, Access::root(0o700)).await?;
    let (undo, directory) = (host.path(MKFS_UNDO), host.path(BOOT_DISK_DIR));
    let room = blocking(move || {
        let boot_disk = nix::sys::statvfs::statvfs(&directory).context("asking for the room on the boot disk")?;
        let earlier = if_exists(std::fs::metadata(undo))?.map_or(0, |found| found.blocks() * 512);
        Ok(boot_disk.fragment_size() * boot_disk.blocks_available() + earlier)
    });
    if room.await? < MAX_BYTES && is_for(node).await? {
        return Err(anyhow!("the boot disk has no room for what a format overwrites ({} MiB)", MAX_BYTES / MIB))
            .classify(Code::NoSpace, format!("Make room in {BOOT_DISK_DIR}, then run `{RUN_AGAIN}`."));
    }
    Ok(())
}

/// Where mkfs shall keep what it overwrites on the disk `node`; `None`: nowhere. An earlier file gives way.
pub(super) async fn begin(host: &Host, node: &Path) -> Result<Option<PathBuf>> {
    let undo = host.path(MKFS_UNDO);
    for removed in [host.path(MKFS_UNDO_UUID), undo.clone()] {
        blocking(move || remove_if_exists(&removed)).await?;
    }
    check_room(host, node).await?;
    Ok(is_for(node).await?.then_some(undo))
}

async fn is_for(node: &Path) -> Result<bool> {
    Ok(probe::size_of(node).await? <= MAX_DISK_BYTES)
}

/// Makes the file durable, and with it of which file system it is; the disk must not be mounted before.
pub(super) async fn complete(host: &Host, undo: &Path, uuid: &str) -> Result<()> {
    let undo = undo.to_owned();
    let synced = blocking(move || Ok(std::fs::File::open(undo)?.sync_all()?));
    synced.await.with_context(|| format!("syncing {MKFS_UNDO}"))?;
    // This syncs the directory, too.
    host.ensure_file(MKFS_UNDO_UUID, format!("{uuid}\n"), Access::root(0o600)).await.map(drop)
}

/// Takes back a format that was cut, as far as its file goes: the next one keeps what was there before both.
pub(super) async fn take_back(host: &Host, node: &Path) {
    if let Err(error) =
        host.command("e2undo").arg("-f").arg(host.path(MKFS_UNDO)).arg(node).timeout(E2UNDO_TIMEOUT).run().await
    {
        tracing::debug!("{error:#}");
    }
}

/// Whether a format can still be taken back; the file is removed when its week is over.
pub(super) async fn is_kept(host: &Host) -> Result<bool> {
    let undo = host.path(MKFS_UNDO);
    let found =
        if_exists(tokio::fs::metadata(&undo).await).with_context(|| format!("looking at {}", undo.display()))?;
    let Some(found) = found else { return Ok(false) };
    let is_kept = is_fresh(found.modified()?, SystemTime::now());
    if !is_kept {
        host.remove_file(MKFS_UNDO).await?;
        host.remove_file(MKFS_UNDO_UUID).await?;
    }
    Ok(is_kept)
}

/// A time in the future is a clock that was wrong: the file stays.
fn is_fresh(written: SystemTime, now: SystemTime) -> bool {
    now.duration_since(written).map_or(true, |age| age < KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_can_be_taken_back_for_a_week() {
        let now = SystemTime::now();
        for (written, expected) in [(now, true), (now - KEPT, false), (now - KEPT / 2, true), (now + KEPT, true)] {
            assert_eq!(is_fresh(written, now), expected);
        }
    }
}
