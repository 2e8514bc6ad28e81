//! Uninstalling: this program leaves the machine; the data, Docker and its images stay.

use std::io::ErrorKind;

use anyhow::{Context, Result};

use crate::error::one_line;
use crate::host::{Host, blocking, remove_tree_if_exists};
use crate::lock::RunLock;
use crate::memory::swap;
use crate::paths::{BAKED, ETC_DIR, LAST_BOOT, LOADER_DIR, LOCK, PER_BOOT_SCRIPT, SYSCTL};
use crate::{account, docker, gateway, identity, proxy, shield, state, trust};

/// Removes the container (stopped with its full grace), the metadata shield, the units and the program, and
/// unmounts the data disk, so that it can be detached. Keeps every byte of data, Docker and its images.
/// Returns the last words for the operator.
pub async fn run(host: &Host) -> Result<String> {
    let _lock = RunLock::acquire(&host.path(LOCK)).await?;
    if let Some(engine) = docker::find(host).await? {
        gateway::purge(host, &engine).await?;
    }
    let data = state::find(host).await?;
    // It holds the data disk. A package that apt cannot remove now keeps nobody's disk here.
    if let Err(error) = proxy::remove(host).await {
        host.warn(format!("what openclaw-domain installed is not all gone: {}", one_line(&error)));
    }
    state::unmount(host).await?;
    account::remove(host).await?;
    identity::remove(host).await?;
    shield::remove(host).await?;
    swap::remove(host).await?;
    trust::remove(host).await?;
    host.remove_file(SYSCTL).await?;
    host.remove_file(BAKED).await?;
    host.remove_file(LAST_BOOT).await?;
    remove_if_empty(host, ETC_DIR).await?;
    host.remove_file(PER_BOOT_SCRIPT).await?;
    remove_tree(host, LOADER_DIR).await?;
    super::remove(host).await?;

    let data: Vec<_> = data.iter().map(|path| path.display().to_string()).collect();
    let was = if data.is_empty() { String::new() } else { format!(" (it was in {})", data.join(", ")) };
    Ok(format!(
        "uninstalled; Docker, its images and the data{was} stay. A startup script or user data in the VM's metadata \
         would install it again at the next boot: gcloud compute instances remove-metadata VM --zone=ZONE \
         --keys=startup-script,startup-script-url,user-data"
    ))
}

async fn remove_tree(host: &Host, directory: &str) -> Result<()> {
    let path = host.path(directory);
    if blocking(move || remove_tree_if_exists(&path)).await? {
        host.changed(format!("removed {directory}"));
    }
    Ok(())
}

/// Root may have put files of its own there; those stay.
async fn remove_if_empty(host: &Host, directory: &str) -> Result<()> {
    match tokio::fs::remove_dir(host.path(directory)).await {
        Ok(()) => {
            host.changed(format!("removed {directory}"));
            Ok(())
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {directory}")),
    }
}
