//! Uninstalling: this program leaves the machine. What it was installed for stays: the data, Docker, images.

use std::io::ErrorKind;

use anyhow::{Context, Result};

use crate::bake;
use crate::bootstrap::only_run;
use crate::host::Host;
use crate::{disk, docker, gateway, shield, swap, units};

/// What the loader and cloud-init's user-data leave beside the program.
const LOADER_DIRECTORY: &str = "/usr/local/lib/openclaw-init";
const PER_BOOT_SCRIPT: &str = "/var/lib/cloud/scripts/per-boot/openclaw-init";

/// Removes the container (stopped with its full grace), the metadata shield, the units and the program, and
/// unmounts the data disk, so that it can be detached. Keeps every byte of data, Docker and its images.
/// Returns the last words for the operator.
pub async fn run(host: &Host) -> Result<String> {
    let _only_run = only_run(host).await?;
    if let Some(engine) = docker::present(host).await? {
        gateway::remove(host, &engine).await?;
    }
    let data = disk::present(host).await?;
    disk::release(host).await?;
    shield::remove(host).await?;
    swap::remove(host).await?;
    host.remove_file(bake::FILE).await?;
    remove_if_empty(host, bake::DIRECTORY).await?;
    host.remove_file(PER_BOOT_SCRIPT).await?;
    remove_tree(host, LOADER_DIRECTORY).await?;
    units::remove(host).await?;

    let data: Vec<_> = data.iter().map(|path| path.display().to_string()).collect();
    let was = if data.is_empty() { String::new() } else { format!(" (it was in {})", data.join(", ")) };
    Ok(format!(
        "uninstalled; Docker, its images and the data{was} stay. A startup script or user data in the VM's metadata \
         would install it again at the next boot: gcloud compute instances remove-metadata VM --zone=ZONE \
         --keys=startup-script,startup-script-url,user-data"
    ))
}

async fn remove_tree(host: &Host, directory: &str) -> Result<()> {
    match tokio::fs::remove_dir_all(host.path(directory)).await {
        Ok(()) => host.changed(format!("removed {directory}")),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("removing {directory}")),
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
