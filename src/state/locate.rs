//! Where this machine has states, found without the metadata server; and letting go of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::DataDir;
use crate::disk::MARKER;
use crate::disk::mount;
use crate::host::{Host, if_exists};
use crate::paths::{BOOT_DISK_DIR, MOUNT_DIR, STATE_ALIAS, VOLUME_DIRS};

/// Where this machine has a gateway's data now: our data disks that are mounted, and the boot disk's own
/// directory if there is anything in it, be it only a token.
pub async fn find(host: &Host) -> Result<Vec<PathBuf>> {
    let mut found = our_disks(host).await?;
    let boot = DataDir::boot_disk();
    for directory in [boot.state, boot.config, boot.backups, boot.certificates] {
        if !mount::is_empty(host, &directory).await? {
            found.push(directory);
        }
    }
    found.extend(former(host).await?);
    Ok(found)
}

/// States on the boot disk that are not in use: one that is being moved, and what moves left behind.
async fn former(host: &Host) -> Result<Vec<PathBuf>> {
    let mut found = list(host, BOOT_DISK_DIR).await?;
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("data.")));
    Ok(found)
}

/// What updates, rollbacks, restores and moves put aside: beside the state in use, and on the boot disk.
pub async fn aside(host: &Host, data: Option<&DataDir>) -> Result<Vec<PathBuf>> {
    let mut found = former(host).await?;
    if let Some(data) = data {
        let is_aside = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.split_once('.').is_some_and(|(directory, _)| VOLUME_DIRS.contains(&directory))
        };
        found.extend(list(host, data.root()?).await?.into_iter().filter(is_aside));
    }
    Ok(found)
}

/// The paths in `directory` in the order of their names; none when there is no such directory.
async fn list(host: &Host, directory: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let directory = directory.as_ref();
    let (doing, mut paths) = (|| format!("listing {}", directory.display()), Vec::new());
    let entries = if_exists(tokio::fs::read_dir(host.path(directory)).await).with_context(doing)?;
    let Some(mut entries) = entries else { return Ok(paths) };
    while let Some(entry) = entries.next_entry().await.with_context(doing)? {
        paths.push(directory.join(entry.file_name()));
    }
    paths.sort();
    Ok(paths)
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
    let published = host.path(STATE_ALIAS);
    if let [_, _, ..] = found[..] {
        found.retain(|data| mount::same_directory(&host.path(&data.state), &published).unwrap_or(false));
        ensure!(!found.is_empty(), "several disks hold a state, and none of them is published at {STATE_ALIAS}");
    }
    Ok(found.pop())
}

/// Unmounts the volumes and removes the mount points, so that a data disk can be detached.
/// The data stays where it is. What somebody still uses stays mounted until the next reboot, with a warning.
pub async fn unmount(host: &Host) -> Result<()> {
    let disks = our_disks(host).await?;
    for point in [PathBuf::from(STATE_ALIAS)].into_iter().chain(disks) {
        if mount::find(host, &point).await?.is_some() {
            unmount_point(host, &point).await?;
        }
    }
    for point in [PathBuf::from(STATE_ALIAS)].into_iter().chain(list(host, MOUNT_DIR).await?) {
        remove_point(host, &point).await?;
    }
    Ok(())
}

/// The mount points of the data disks that are mounted and carry our marker.
async fn our_disks(host: &Host) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for point in list(host, MOUNT_DIR).await? {
        if mount::find(host, &point).await?.is_some() && host.path(point.join(MARKER)).is_file() {
            found.push(point);
        }
    }
    Ok(found)
}

async fn unmount_point(host: &Host, point: &Path) -> Result<()> {
    match mount::unmount(host, point).await {
        Ok(()) => host.changed(format!("unmounted {}", point.display())),
        Err(error) if error.root_cause().downcast_ref() == Some(&Errno::EBUSY) => host.warn(format!(
            "{0} is in use (sudo fuser --verbose --mount {0}) and stays mounted until the next reboot",
            point.display()
        )),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Removes a directory that this program made to mount on: empty, and immutable since.
async fn remove_point(host: &Host, point: &Path) -> Result<()> {
    let path = host.path(point);
    let is_mounted = mount::find(host, point).await?.is_some();
    if is_mounted || !path.is_dir() || !mount::is_empty(host, point).await? || !is_immutable(host, &path).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with a data disk of ours that is mounted below `directory`, to which [`MOUNT_DIR`] may be a link.
    fn machine(root: &Path, directory: &str) -> Result<Host> {
        let root = root.canonicalize()?;
        let (host, point) = (Host::new(&root), root.join(directory).join("disks/openclaw-data"));
        for made in [point.join("openclaw-init"), point.join("openclaw"), root.join("proc/self")] {
            std::fs::create_dir_all(made)?;
        }
        if directory != "mnt" {
            std::os::unix::fs::symlink(directory, root.join("mnt"))?;
        }
        std::fs::write(point.join(MARKER), "{}")?;
        std::fs::write(point.join("openclaw/openclaw.json"), "{}")?;
        let line = format!("30 27 8:16 / {} rw,nosuid,nodev - ext4 /dev/sdb rw\n", point.display());
        std::fs::write(host.path("/proc/self/mountinfo"), line)?;
        Ok(host)
    }

    #[tokio::test]
    async fn a_mounted_data_disk_is_found_through_a_link() -> Result<()> {
        for directory in ["mnt", "srv"] {
            let root = tempfile::tempdir()?;
            let host = machine(root.path(), directory)?;
            let disk = Path::new("/mnt/disks/openclaw-data");
            assert_eq!(find(&host).await?, [disk], "{directory}");
            assert_eq!(current(&host).await?.map(|data| data.state), Some(disk.join("openclaw")), "{directory}");
            // Nothing is really mounted there.
            let error = unmount(&host).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(error.starts_with("unmounting /mnt/disks/openclaw-data: E"), "{directory}: {error:?}");
        }
        Ok(())
    }
}
