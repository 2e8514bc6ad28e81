//! The data disk: find, observe, decide, format if provably blank, mount, verify.
//!
//! State is never lost: only a disk that is proven to be blank is formatted, the device is the one of the
//! attribute's device name and no other, and where two answers are possible the run stops and asks. The
//! mount belongs to this stage alone: at every boot, by verified device, without fstab or mount unit (a
//! UUID would choose between a disk and its snapshot by chance).

mod filesystem;
mod find;
mod growth;
mod history;
mod intent;
mod layout;
mod mount;
mod moving;
mod probe;
mod release;
mod write_test;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::config::DiskChoice;
use crate::failure::{Blame as _, Code};
use crate::host::{Access, Host};
use crate::metadata::Instance;
use crate::switch;
use filesystem::Plan;
use find::{Device, Place};
use history::Last;
use mount::Mounts;
pub use moving::move_in;
use probe::Superblock;
pub use release::{current, hide, present, release};

/// Where data disks are mounted, by device name.
const MOUNT_DIR: &str = "/mnt/disks";

/// This program's own directory on the boot disk.
pub(crate) const BOOT_DISK_DIR: &str = "/var/lib/openclaw-init";

/// Where the data lives when it lives on the boot disk.
const BOOT_DISK_DATA: &str = "/var/lib/openclaw-init/data";

/// What the boot disk knows of data disks: one machine's own, so nothing for an image.
pub const REMEMBERED: [&str; 4] = [history::FILE, intent::FILE, filesystem::UNDO, moving::FILE];

/// Where people look for the state: the path that it has in the container.
const PEOPLES_PATH: &str = "/home/node/.openclaw";

/// The prepared directories of the data disk (or of the boot disk), as paths on the host.
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
    /// True when all of it lies on the boot disk.
    pub on_boot_disk: bool,
}

impl DataDir {
    /// The directory in which all of it lies; only root can write there.
    pub(crate) fn root(&self) -> Result<&Path> {
        self.state.parent().context("the state directory has no parent")
    }

    /// Whether a gateway has lived in the state directory (anything but a lone `.env` is in it).
    pub async fn holds_state(&self, host: &Host) -> Result<bool> {
        layout::holds_state(host, &self.state).await
    }
}

/// Makes the data directory available: on the chosen disk, formatted if it is provably blank, checked and
/// mounted at `/mnt/disks/<device name>`, and shown at `/home/node/.openclaw`.
///
/// Takes constant time but for an e2fsck after an accident. On a machine where all is well it changes
/// nothing and runs no program. Every refusal leaves the disk untouched and carries a code of
/// [`Code`]: disk-missing, disk-foreign, disk-damaged, disk-readonly, two-states or config-invalid.
///
/// A state on the boot disk that must go to the data disk is left to [`move_in`], which needs the engine.
pub async fn ensure(host: &Host, choice: &DiskChoice, instance: &Instance) -> Result<DataDir> {
    let last = Last::read(host, instance.id).await?;
    match find::select(choice, instance, last.as_ref())? {
        Place::BootDisk { warning } => {
            if let Some(warning) = warning {
                host.warn(warning);
            }
            warn_of_another(host, last.as_ref(), None);
            let data = layout::data_dir(Path::new(BOOT_DISK_DATA), true);
            host.ensure_dir(BOOT_DISK_DIR, Access::root(0o700)).await?;
            moving::take_back(host).await?;
            host.ensure_dir(BOOT_DISK_DATA, Access::root(0o700)).await?;
            switch::complete(host, &data).await?;
            layout::ensure(host, &data).await?;
            show(host, &data).await?;
            Ok(data)
        }
        Place::Disk(name) => {
            warn_of_another(host, last.as_ref(), Some(&name));
            let device = find::device(host, &name).await.with_context(|| format!("finding the data disk {name}"))?;
            let preparing = || format!("preparing the data disk {name}");
            on_disk(host, &device, instance, last.as_ref()).await.with_context(preparing)
        }
    }
}

/// Shows the state, which is ready for the gateway, at `/home/node/.openclaw` too, where people look for it.
pub async fn show(host: &Host, data: &DataDir) -> Result<()> {
    for directory in [&data.state, &data.config] {
        write_test::run(host, directory).await?;
    }
    mount::bind(host, &data.state, Path::new(PEOPLES_PATH)).await
}

fn warn_of_another(host: &Host, last: Option<&Last>, name: Option<&str>) {
    if let Some(last) = last.filter(|last| Some(last.device_name.as_str()) != name) {
        host.warn(format!("the state on the data disk {} is not used any more", last.device_name));
    }
}

async fn on_disk(host: &Host, device: &Device, instance: &Instance, last: Option<&Last>) -> Result<DataDir> {
    let root = Path::new(MOUNT_DIR).join(&device.name);
    let data = layout::data_dir(&root, false);
    let mounts = Mounts::read(host).await?;
    let point = mount::resolved(host, &root).await?;
    device.check(&mounts, point.as_deref())?;
    let present = point.and_then(|point| mounts.at(&point).cloned());
    if !is_mounted(device, present.as_ref())? {
        mount_new(host, device, &root, instance, last).await?;
    }
    switch::complete(host, &data).await?;
    let (node, superblock) = in_use(host, device, &root).await?;
    let moves_in = moving::is_due(host, &data, &device.name, &superblock.uuid).await?;
    layout::ensure(host, &data).await?;
    layout::mark(host, &root, &device.name, instance).await?;
    growth::ensure(host, device, &node, &superblock).await;
    warn_of_copies(host, device, &superblock, instance).await?;
    let (device_name, uuid) = (device.name.clone(), superblock.uuid);
    Last { device_name, uuid, instance_id: instance.id }.write(host).await?;
    if !moves_in {
        show(host, &data).await?;
    }
    Ok(data)
}

/// Whether the disk is mounted where it belongs; an error when that is not as it must be.
fn is_mounted(device: &Device, present: Option<&mount::Mount>) -> Result<bool> {
    let Some(present) = present else { return Ok(false) };
    let shown = present.point.display();
    if !device.numbers().contains(&present.device) || present.kind != "ext4" {
        return Err(anyhow!("device {} ({}) is mounted on {shown}", present.device, present.kind)).blame(
            Code::DiskForeign,
            format!("Run `umount {shown}`, take it out of /etc/fstab and run `openclaw-init boot`."),
        );
    }
    if present.read_only {
        return Err(anyhow!("{shown} has become read-only: the kernel found its file system damaged")).blame(
            Code::DiskDamaged,
            "Look at `dmesg`, take a snapshot of the disk, then reboot the VM to have it checked.",
        );
    }
    Ok(true)
}

async fn mount_new(host: &Host, device: &Device, root: &Path, instance: &Instance, last: Option<&Last>) -> Result<()> {
    let target = filesystem::plan(host, device).await?;
    let node = &target.node;
    match target.plan {
        Plan::Format => {
            was_never_ours(device, last)?;
            filesystem::format(host, node).await?;
        }
        Plan::Check => filesystem::check(host, node).await?,
        Plan::Adopt | Plan::Partition => {
            filesystem::check_foreign(host, node).await?;
            adopt(host, device, node, root, instance).await?;
        }
    }
    mount::ext4(host, node, root).await?;
    intent::forget(host).await
}

/// Takes a clean file system of somebody else into use. The marker goes through an unmount, which writes
/// the journal back in place: after a power cut it must be found without replaying the journal.
async fn adopt(host: &Host, device: &Device, node: &Path, root: &Path, instance: &Instance) -> Result<()> {
    let name = &device.name;
    host.warn(format!("the disk {name} came with an ext4 file system: used as it is, only our directories are added"));
    mount::ext4(host, node, root).await?;
    host.ensure_dir(layout::data_dir(root, false).records, Access::root(0o700)).await?;
    layout::mark(host, root, name, instance).await?;
    mount::unmount(host, root).await
}

/// A blank disk that held our file system yesterday is not a new disk.
fn was_never_ours(device: &Device, last: Option<&Last>) -> Result<()> {
    let Some(last) = last.filter(|last| last.device_name == device.name) else { return Ok(()) };
    Err(anyhow!("the disk is blank, but this machine used a file system ({}) on it before", last.uuid)).blame(
        Code::DiskForeign,
        format!("If the disk was replaced on purpose, run `{}` and `openclaw-init boot`.", Last::FORGET),
    )
}

/// The node of the disk or its partition that is mounted at `root`, and the file system's superblock.
async fn in_use(host: &Host, device: &Device, root: &Path) -> Result<(PathBuf, Superblock)> {
    let mounts = Mounts::read(host).await?;
    let point = mount::resolved(host, root).await?.context("the mount point has gone")?;
    let mounted = mounts.at(&point).with_context(|| format!("nothing is mounted on {}", root.display()))?;
    let node = if mounted.device == device.number { device.node.clone() } else { device.only_partition(host)? };
    let superblock = probe::superblock(&node).await?;
    let superblock = superblock.with_context(|| format!("{} is mounted but has no ext4 superblock", node.display()))?;
    Ok((node, superblock))
}

/// A disk made from a snapshot has the UUID of its original. That confuses people and programs, not this one:
/// it mounts the device of the device name.
async fn warn_of_copies(host: &Host, device: &Device, ours: &Superblock, instance: &Instance) -> Result<()> {
    for other in instance.disks.iter().filter(|disk| disk.device_name != device.name) {
        for node in find::nodes(host, &other.device_name).await? {
            // A disk that cannot be read is not our concern here.
            if probe::superblock(&node).await.is_ok_and(|found| found.is_some_and(|found| found.uuid == ours.uuid)) {
                host.warn(format!(
                    "the disk {} has the same file system UUID as {}, as after a snapshot: {} is the one in use",
                    other.device_name,
                    device.name,
                    device.node.display()
                ));
            }
        }
    }
    Ok(())
}

/// Runs `work`, which waits for the disk, where it does not hold up the other stages.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("waiting for a thread")?
}
