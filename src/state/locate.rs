//! Where this machine has states, without the metadata server; and letting go of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::DataDir;
use crate::disk::MARKER;
use crate::disk::mount::{self, Mounts};
use crate::host::Host;
use crate::paths::{BOOT_DISK_DIR, MOUNT_DIR, STATE_ALIAS};

/// Where this machine has a gateway's data now: our data disks that are mounted, and the boot disk's own
/// directory if there is anything in it, be it only a token.
pub async fn find(host: &Host) -> Result<Vec<PathBuf>> {
    let mut found = our_disks(host).await?;
    let boot = DataDir::boot_disk();
    for directory in [boot.state, boot.config, boot.backups] {
        if !mount::is_empty(host, &directory).await? {
            found.push(directory);
        }
    }
    found.extend(former(host).await?);
    Ok(found)
}

/// States on the boot disk that are not in use: one that is being moved, and what moves left behind.
async fn former(host: &Host) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(host.path(BOOT_DISK_DIR)).await else { return Ok(found) };
    while let Some(entry) = entries.next_entry().await.with_context(|| format!("listing {BOOT_DISK_DIR}"))? {
        if entry.file_name().to_string_lossy().starts_with("data.") {
            found.push(Path::new(BOOT_DISK_DIR).join(entry.file_name()));
        }
    }
    Ok(found)
}

/// The directories of the gateway's state as they are on this machine now, without the metadata server and
/// without changing anything; `None` when there is no state. Where there are several, the one that is published at
/// [`STATE_ALIAS`] is in use.
pub async fn current(host: &Host) -> Result<Option<DataDir>> {
    let disks = our_disks(host).await?;
    let boot = DataDir::boot_disk();
    let mut found = Vec::new();
    for data in disks.iter().map(|root| DataDir::at(root, false)).chain([boot]) {
        if data.holds_state(host).await? {
            found.push(data);
        }
    }
    let shown = host.path(STATE_ALIAS);
    if let [_, _, ..] = found[..] {
        found.retain(|data| mount::same_directory(&host.path(&data.state), &shown).unwrap_or(false));
        ensure!(!found.is_empty(), "several disks hold a state, and none of them is shown at {STATE_ALIAS}");
    }
    Ok(found.pop())
}

/// Unmounts the volumes and removes the mount points, so that a data disk can be detached.
/// The data stays where it is. What somebody still uses stays mounted until the next reboot, with a warning.
pub async fn unmount(host: &Host) -> Result<()> {
    let disks = our_disks(host).await?;
    for point in [PathBuf::from(STATE_ALIAS)].into_iter().chain(disks) {
        if Mounts::read(host).await?.at(&host.path(&point)).is_some() {
            unmount_point(host, &point).await?;
        }
    }
    let mut points = vec![PathBuf::from(STATE_ALIAS)];
    if let Ok(mut entries) = tokio::fs::read_dir(host.path(MOUNT_DIR)).await {
        while let Some(entry) = entries.next_entry().await.with_context(|| format!("listing {MOUNT_DIR}"))? {
            points.push(Path::new(MOUNT_DIR).join(entry.file_name()));
        }
    }
    for point in points {
        remove_point(host, &point).await?;
    }
    Ok(())
}

/// Mounted file systems below the directory of data disks that carry our marker.
async fn our_disks(host: &Host) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mounts = Mounts::read(host).await?;
    for mount in mounts.iter().filter(|mount| mount.point.parent() == Some(Path::new(MOUNT_DIR))) {
        if host.read(mount.point.join(MARKER)).await?.is_some() {
            found.push(mount.point.clone());
        }
    }
    Ok(found)
}

async fn unmount_point(host: &Host, point: &Path) -> Result<()> {
    let shown = point.display();
    match mount::unmount(host, point).await {
        Ok(()) => host.changed(format!("unmounted {shown}")),
        Err(error) if error.root_cause().downcast_ref() == Some(&Errno::EBUSY) => host.warn(format!(
            "{shown} is in use (sudo fuser --verbose --mount {shown}) and stays mounted until the next reboot"
        )),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Removes a directory that [`mount::ext4`] or [`mount::bind`] made to mount on: empty, and immutable since.
async fn remove_point(host: &Host, point: &Path) -> Result<()> {
    let path = host.path(point);
    let mounted = Mounts::read(host).await?.at(&path).is_some();
    if mounted || !path.is_dir() || !mount::is_empty(host, point).await? || !is_immutable(host, &path).await {
        return Ok(());
    }
    host.command("chattr").arg("-i").arg(&path).run().await?;
    tokio::fs::remove_dir(&path).await.with_context(|| format!("removing {}", point.display()))?;
    host.changed(format!("removed the mount point {}", point.display()));
    Ok(())
}

async fn is_immutable(host: &Host, path: &Path) -> bool {
    let listed = host.command("lsattr").arg("-d").arg(path).run().await;
    listed.is_ok_and(|output| output.stdout.split(' ').next().is_some_and(|flags| flags.contains('i')))
}
